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

    No log-probability is above 0 or below LOWEST. +inf takes all of the probability, or an equal share; where all
    logits are -inf, every token is as good as impossible.
    """

    largest: jax.Array  # [B, M] float32: of the logits that the distribution is over; 0 where all of them are -inf.
    log_total: jax.Array  # [B, M] float32: log of the sum of exp((x - largest) / T) over them.
    inverse: jax.Array  # [] float32: 1 / T.

    @property
    def nan(self) -> jax.Array:
        """Which were made of a NaN, `[B, M]` bool."""
        return jnp.isnan(self.log_total) | jnp.isnan(self.largest)

    @property
    def flawed(self) -> jax.Array:
        """Which were made of a NaN or of +inf, `[B, M]` bool."""
        return self.nan | (self.largest == jnp.inf)

    def of(self, logits: jax.Array) -> jax.Array:
        """Log-probabilities of tokens by their logits `[B, M, ...]`."""
        return log_probs(logits, *_behind((self.largest, self.log_total), logits), self.inverse)

    def of_beams(self, logits: jax.Array, beams: jax.Array) -> jax.Array:
        """Log-probabilities of tokens of `beams [B, n]` by their logits `[B, n, ...]`."""
        chosen = (
            jnp.take_along_axis(part, beams, axis=1, mode="promise_in_bounds")
            for part in (self.largest, self.log_total)
        )
        return log_probs(logits, *_behind(chosen, logits), self.inverse)

    def of_places(self, logits: jax.Array) -> jax.Array:
        """Log-probabilities of tokens by their logits `[B, K, M]`."""
        return log_probs(logits, self.largest[:, None], self.log_total[:, None], self.inverse)


def _behind(parts: Any, array: jax.Array) -> list[jax.Array]:
    """Parts `[B, n]` with as many axes as the array."""
    return [part.reshape(part.shape + (1,) * (array.ndim - part.ndim)) for part in parts]


def log_probs(
    logits: jax.Array, largest: jax.Array, log_total: jax.Array, inverse: jax.Array
) -> jax.Array:
    """See `Softmax`; clamped only here, where nothing is taken away any more."""
    # Infinity less infinity is not 0.
    centred = jnp.where(logits == largest, 0.0, (logits - largest) * inverse)
    return jnp.maximum(centred - log_total, LOWEST)


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
    # The difference is taken first: the largest is then exactly 0 at every temperature, however it is compiled.
    # Those equal to it are counted, so that infinite ones may be among them.
    top = largest[..., None]
    total = jnp.where(logits == top, 1.0, jnp.exp((logits - top) * inverse)).sum(axis=-1)
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    # 0 instead of -inf: each of the logits is then infinitely far below.
    return Softmax(jnp.where(largest == -jnp.inf, 0.0, largest), jnp.log(total), inverse)
