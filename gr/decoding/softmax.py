"""The model's distribution of the next code, as a search uses it: log-probabilities of a few tokens, never of all."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.decoding.candidates import DecodingError

# Stands for log 0 in the gain of a token that may be chosen: still above -inf, which means "no path". The sum of some
# hundred million of them is no infinity.
LOWEST = -1e30

# Colder than this, any two logits that differ are already apart as 0 and 1 are, and LOWEST would make ties of them;
# hotter, the inverse is no normal number.
_COLDEST, _HOTTEST = 1e-25, 1e37

_FEW = 1 << 19  # So many logits stay in a CPU's cache while something is done to each of them.


def as_temperature(temperature: Any) -> Any:
    """A temperature as an argument of a compiled program, so that another value is not another program.

    Raises:
        DecodingError: unless it is one number above 0 and finite; of a traced one the value is not known.
    """
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


def inverse_of(temperature: jax.Array) -> jax.Array:
    """What centred logits are multiplied by, `[]` float32."""
    return 1.0 / jnp.clip(jnp.asarray(temperature, jnp.float32), _COLDEST, _HOTTEST)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Softmax:
    """Distributions of beams `[B, M]`: the logit x of a token gives it `(x - largest) / T - log_total`.

    No log-probability is above 0 or, but for rounding, below LOWEST. +inf takes all of the probability, or an equal
    share; where all logits are -inf, every token is as good as impossible.
    """

    largest: jax.Array  # [B, M] float32: of the logits that the distribution is over.
    log_total: jax.Array  # [B, M] float32: log of the sum of exp((x - largest) / T) over them.
    inverse: jax.Array  # [] float32: 1 / T.

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


def centred(logits: jax.Array, largest: jax.Array, inverse: jax.Array) -> jax.Array:
    """Log-probabilities less that of the largest logit: from 0 down to LOWEST."""
    # Infinity less infinity is not 0.
    below = jnp.where(logits == largest, 0.0, (logits - largest) * inverse)
    return jnp.maximum(below, LOWEST)


def softmax(logits: jax.Array, inverse: jax.Array, axis_name: str | None = None) -> Softmax:
    """The distributions over `logits [B, M, K]` float32, -inf for what is not to be counted.

    Args:
        logits: by which all is decided.
        inverse: 1 / T.
        axis_name: of a mesh over whose devices the logits of a distribution are spread.
    """
    largest = logits.max(axis=-1)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    total = jax.lax.platform_dependent(
        logits, largest[..., None], inverse, cpu=_total_on_cpu, default=_total
    )
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    # Where all logits are -inf, none is below the largest.
    return Softmax(largest, jnp.where(largest == -jnp.inf, -LOWEST, jnp.log(total)), inverse)


def _total(logits: jax.Array, largest: jax.Array, inverse: jax.Array) -> jax.Array:
    """The sum of exp((x - largest) / T).

    The difference is taken first: the largest is then exactly 0 at every temperature, however it is compiled. Those
    equal to it are counted, for the difference of two infinities is NaN.
    """
    return jnp.where(logits == largest, 1.0, jnp.exp((logits - largest) * inverse)).sum(axis=-1)


def _total_on_cpu(logits: jax.Array, largest: jax.Array, inverse: jax.Array) -> jax.Array:
    """The same. Each operation on all logits counts here, so that none is done for what is seldom needed."""
    if logits.size <= _FEW:
        return _total(logits, largest, inverse)
    total = jax.lax.cond(inverse == 1.0, _plain_total, _scaled_total, logits, largest, inverse)
    return jax.lax.cond(jnp.isnan(total).any(), _total, lambda *_: total, logits, largest, inverse)


def _plain_total(logits: jax.Array, largest: jax.Array, _: jax.Array) -> jax.Array:
    return jnp.exp(logits - largest).sum(axis=-1)


def _scaled_total(logits: jax.Array, largest: jax.Array, inverse: jax.Array) -> jax.Array:
    return jnp.exp((logits - largest) * inverse).sum(axis=-1)
