"""The model's distribution of the next code, as a search uses it: log-probabilities of a few tokens, never of all."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.decoding.candidates import DecodingError

# What a prefix's probabilities are over: all tokens, or those that the trie has behind it.
VOCABULARY = "vocabulary"
CHILDREN = "children"

# Stands for log 0 in the gain of a token that may be chosen: still above -inf, which means "no path". The sum of some
# hundred million of them is no infinity.
LOWEST = -1e30

# Colder than this, any two logits that differ are already apart as 0 and 1 are, and LOWEST would make ties of them;
# hotter, the inverse is no normal number.
_COLDEST, _HOTTEST = 1e-25, 1e37


def as_temperature(temperature: Any) -> Any:
    """A temperature as an argument of a compiled program, so that another value is not another program.

    All numbers share one program. None, which stands for 1, has its own, without a product for every logit.

    Raises:
        DecodingError: unless it is one number above 0 and finite; of a traced one the value is not known.
    """
    if temperature is None:
        return None
    if np.ndim(temperature) != 0:
        raise DecodingError(
            f"temperature must be one number for all users, got shape {list(np.shape(temperature))}"
        )
    if isinstance(temperature, jax.core.Tracer):
        return temperature.astype(jnp.float32)
    try:
        value = float(temperature)
    except (TypeError, ValueError):
        raise DecodingError(f"temperature must be a number, got {temperature!r}") from None
    if not value > 0:
        raise DecodingError(f"temperature must be above 0, got {temperature}")
    if math.isinf(value):
        raise DecodingError(f"temperature must be finite, got {temperature}")
    return np.float32(min(max(value, _COLDEST), _HOTTEST))


def inverse_of(temperature: jax.Array | None) -> jax.Array | None:
    """What centred logits are multiplied by, `[]` float32; None for a temperature of 1."""
    if temperature is None:
        return None
    return 1.0 / jnp.clip(jnp.asarray(temperature, jnp.float32), _COLDEST, _HOTTEST)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Softmax:
    """Distributions of beams `[B, M]`: the logit x of a token gives it `(x - largest) / T - log_total`.

    No log-probability is above 0 or, but for rounding, below LOWEST. A token of logit +inf has probability 1, be there
    several of them or not; where all logits are -inf, every token is as good as impossible.
    """

    largest: jax.Array  # [B, M] float32: of the logits that the distribution is over.
    log_total: jax.Array  # [B, M] float32: log of the sum of exp((x - largest) / T) over them.
    inverse: jax.Array | None  # [] float32: 1 / T; None for 1.

    @property
    def nan(self) -> jax.Array:
        """Which were made of a NaN, `[B, M]` bool."""
        return jnp.isnan(self.log_total)

    @property
    def flawed(self) -> jax.Array:
        """Which were made of a NaN or of +inf, `[B, M]` bool."""
        return self.nan | (self.largest == jnp.inf)

    def of(self, logits: jax.Array) -> jax.Array:
        """Log-probabilities of tokens by their logits `[B, M, ...]`."""
        largest, log_total = (
            part.reshape(part.shape + (1,) * (logits.ndim - part.ndim))
            for part in (self.largest, self.log_total)
        )
        return centred(logits, largest, self.inverse) - log_total


def centred(logits: jax.Array, largest: jax.Array, inverse: jax.Array | None) -> jax.Array:
    """Log-probabilities less that of the largest logit: from 0 down to LOWEST."""
    below = logits - largest
    if inverse is not None:
        below *= inverse
    return jnp.maximum(jnp.where(logits == largest, 0.0, below), LOWEST)  # inf - inf is not 0.


def softmax(logits: jax.Array, inverse: jax.Array | None, axis_name: str | None = None) -> Softmax:
    """The distributions over `logits [B, M, K]` float32, -inf for what is not to be counted.

    Args:
        logits: by which all is decided.
        inverse: 1 / T; None for 1.
        axis_name: of a mesh over whose devices the logits of a distribution are spread.
    """
    largest = logits.max(axis=-1)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    # The difference is taken first, so that the largest is exactly 0 at every temperature.
    below = logits - largest[..., None]
    if inverse is not None:
        # One for each distribution: of a scalar XLA makes an array as large as all logits, and reads it at every step.
        below *= jnp.where(jnp.isnan(largest), jnp.nan, inverse)[..., None]
    total = jnp.exp(below).sum(axis=-1)
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    # Infinity less infinity is no number: +inf is as good as certain, and where all are -inf, none is likelier.
    log_total = jnp.where(largest == jnp.inf, 0.0, jnp.log(total))
    return Softmax(largest, jnp.where(largest == -jnp.inf, -LOWEST, log_total), inverse)
