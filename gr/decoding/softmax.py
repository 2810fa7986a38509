"""The model's distribution over the next code; a search computes log-probabilities of few tokens, never of all."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.decoding.candidates import DecodingError

# What a prefix's probabilities are over: all tokens, or those that the trie has behind it.
VOCABULARY = "vocabulary"
CHILDREN = "children"

# Stands for log 0 of a token that may be chosen. It is above -inf, which means "no path", and a sum of some hundred
# million of them is still finite.
LOWEST = -1e30

# Below the range any two different logits already have probabilities 0 and 1, and LOWEST would turn them into ties.
# Above it the inverse is no longer a normal number.
_COLDEST, _HOTTEST = 1e-25, 1e37

_LANES = 128  # Of a TPU's vector unit.


def as_temperature(temperature: Any) -> Any:
    """A temperature as an argument of a compiled program, so that another value is not another program.

    All numbers share one program. None means 1 and has its own, which saves a product for every logit.

    Raises:
        DecodingError: unless it is one finite number above 0; the value of a traced number is not checked.
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
    """The inverse temperature `[]` float32, a factor of centred logits; None for a temperature of 1."""
    if temperature is None:
        return None
    return 1.0 / jnp.clip(jnp.asarray(temperature, jnp.float32), _COLDEST, _HOTTEST)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Softmax:
    """Distributions of beams `[B, M]`: the logit x of a token gives it `(x - largest) / T - log_total`.

    No log-probability is above 0 or, apart from rounding, below LOWEST. Every token with a logit of +inf has
    probability 1, even if there are several. If all logits are -inf, every token is as good as impossible.
    """

    largest: jax.Array  # [B, M] float32: of the logits that the distribution is over.
    log_total: jax.Array  # [B, M] float32: log of the sum of exp((x - largest) / T) over them.
    inverse: jax.Array | None  # [] float32: 1 / T; None for 1.

    @property
    def nan(self) -> jax.Array:
        """Distributions whose logits held NaN, `[B, M]` bool."""
        return jnp.isnan(self.log_total)

    @property
    def flawed(self) -> jax.Array:
        """Distributions whose logits held NaN or +inf, `[B, M]` bool."""
        return self.nan | (self.largest == jnp.inf)

    def of(self, logits: jax.Array) -> jax.Array:
        """Log-probabilities of tokens by their logits `[B, M, ...]`."""
        largest, log_total = (
            part.reshape(part.shape + (1,) * (logits.ndim - part.ndim))
            for part in (self.largest, self.log_total)
        )
        return centred(logits, largest, self.inverse) - log_total


def centred(logits: jax.Array, largest: jax.Array, inverse: jax.Array | None) -> jax.Array:
    """Log-probabilities minus that of the largest logit, in [LOWEST, 0]."""
    below = logits - largest
    if inverse is not None:
        below *= inverse
    return jnp.maximum(jnp.where(logits == largest, 0.0, below), LOWEST)  # inf - inf is not 0.


def softmax(logits: jax.Array, inverse: jax.Array | None, axis_name: str | None = None) -> Softmax:
    """The distributions over `logits [B, M, K]` float32; entries of -inf do not count.

    Args:
        logits: see above.
        inverse: 1 / T; None for 1.
        axis_name: mesh axis over whose devices the logits of a distribution are spread.
    """
    largest, total = jax.lax.platform_dependent(
        logits,
        tpu=functools.partial(_sum_by_lanes, inverse=inverse, axis_name=axis_name),
        default=functools.partial(_sum_by_rows, inverse=inverse, axis_name=axis_name),
    )
    # Infinity minus infinity is NaN: so +inf counts as certain, and if all are -inf, all are equally likely.
    log_total = jnp.where(largest == jnp.inf, 0.0, jnp.log(total))
    return Softmax(largest, jnp.where(largest == -jnp.inf, -LOWEST, log_total), inverse)


def _sum_by_rows(
    logits: jax.Array, inverse: jax.Array | None, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """The largest of logits `[B, M, K]`, and the sum of exp((x - largest) / T), `[B, M]` each."""
    largest = logits.max(axis=-1)
    if axis_name is not None:
        largest = _of_devices(largest, axis_name)
    # The difference is taken first, so that the largest is exactly 0 at every temperature.
    below = logits - largest[..., None]
    if inverse is not None:
        # One for each distribution: of a scalar XLA makes an array as large as all logits, and reads it at every step.
        below *= jnp.where(jnp.isnan(largest), jnp.nan, inverse)[..., None]
    total = jnp.exp(below).sum(axis=-1)
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    return largest, total


def _sum_by_lanes(
    logits: jax.Array, inverse: jax.Array | None, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """The same for a TPU, which reads the logits once: a part of each distribution for every lane, then their sum."""
    size = logits.shape[-1]
    if size <= _LANES:
        return _sum_by_rows(logits, inverse, axis_name)
    missing = [(0, 0)] * (logits.ndim - 1) + [(0, -size % _LANES)]
    logits = jnp.pad(logits, missing, constant_values=-jnp.inf)
    parts = [logits[..., i : i + _LANES] for i in range(0, logits.shape[-1], _LANES)]

    def exp(below: jax.Array) -> jax.Array:
        return jnp.exp(below if inverse is None else below * inverse)

    highest = functools.reduce(jnp.maximum, parts)
    # A lane may hold nothing but -inf, less which -inf is not a number.
    finite = jnp.where(highest == -jnp.inf, 0.0, highest)
    totals = functools.reduce(jnp.add, [exp(part - finite) for part in parts])
    # Else XLA would fuse the first pass into what follows, and so read the logits again.
    highest, totals = jax.lax.optimization_barrier((highest, totals))
    # Largest and sum in one operation: a maximum that is only subtracted is computed within it, and one is told by its
    # difference of 0, or of NaN where it is infinite.
    below = highest - highest.max(axis=-1, keepdims=True)
    largest = jnp.where(below < 0, -jnp.inf, highest).max(axis=-1)
    total = jnp.where(totals == 0, 0.0, totals * exp(below)).sum(axis=-1)
    largest, total = jax.lax.optimization_barrier((largest, total))
    if axis_name is None:
        return largest, total
    of_all = _of_devices(largest, axis_name)
    total = jnp.where(total == 0, 0.0, total * exp(largest - of_all))
    return of_all, jax.lax.psum(total, axis_name)


def _of_devices(largest: jax.Array, axis_name: str) -> jax.Array:
    """The largest along a mesh axis; NaN where a device has NaN, which a maximum over CPU devices would lose."""
    nan = jnp.isnan(largest)
    largest, nan = jax.lax.pmax((jnp.where(nan, -jnp.inf, largest), nan), axis_name)
    return jnp.where(nan, jnp.nan, largest)
