"""Rotary positions (arXiv 2104.09864): how fast each pair of numbers turns, also in checkpoints for long contexts."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from gr.models.backbone import ModelError

SCALINGS = ("default", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class Rope:
    """The angles of rotary positions; the fields beyond `factor` are those of "llama3".

    Raises:
        ModelError: naming the field that is unknown or out of range.
    """

    base: float = 10_000.0  # The slowest pair turns by about 1 / base a position.
    # "default"; "linear": all turn slower by `factor` (arXiv 2306.15595); "llama3": the slow ones do (2407.21783).
    scaling: str = "default"
    factor: float = 1.0
    low: float = 1.0  # Pairs that turn less than so often in the original length are slowed by all of `factor`.
    high: float = 4.0  # Those that turn more than so often in it keep their speed.
    original_length: int = 8192

    def __post_init__(self):
        if self.scaling not in SCALINGS:
            raise ModelError(
                f"rope.scaling={self.scaling!r} is not offered: use one of {', '.join(SCALINGS)}"
            )
        for field in ("base", "factor", "low", "original_length"):
            if not getattr(self, field) > 0:
                raise ModelError(f"rope.{field}={getattr(self, field)} must be above 0")
        if self.scaling == "llama3" and not self.high > self.low:
            raise ModelError(f"rope.high={self.high} must be above rope.low={self.low}")

    def frequencies(self, half: int) -> jax.Array:
        """By how much each of `half` pairs turns from one position to the next, `[half]` float32."""
        plain = self.base ** (-jnp.arange(half, dtype=jnp.float32) / half)
        if self.scaling == "default":
            return plain
        if self.scaling == "linear":
            return plain / self.factor
        turns = self.original_length * plain / (2 * math.pi)
        kept = jnp.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return plain * (kept + (1 - kept) / self.factor)
