"""Means of training metrics and the speed over an interval of steps, without waiting for the device."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gr.training.mesh import replicate


@dataclasses.dataclass(frozen=True)
class Interval:
    """The sums over an interval that has ended, still on the device."""

    step: int  # The last step of the interval.
    steps: int
    examples: int
    sums: dict[str, jax.Array]  # name -> [].
    bad_step: jax.Array  # [] int32, `TrainState.bad_step` at its end.
    meter: "Meter"

    def values(self) -> dict[str, float]:
        """Waits for the device and returns the means over the interval's steps, and `examples_per_second`."""
        sums = jax.device_get(self.sums)
        means = {name: float(value) / self.steps for name, value in sums.items()}
        return {**means, "examples_per_second": self.examples / self.meter.seconds()}


class Meter:
    """Sums metrics on the device; float32, added in the order of the steps."""

    def __init__(self, mesh: Mesh, saved: Mapping[str, Any]):
        """Continues from the result of `read`, or starts anew if `saved` is empty."""
        sums = {name: np.float32(value) for name, value in saved.get("sums", {}).items()}
        self.steps: int = saved.get("steps", 0)
        self._sums: dict[str, jax.Array] = replicate(sums, mesh)
        self._examples = 0
        self._since = time.perf_counter()

    def add(self, metrics: Mapping[str, jax.Array], examples: int) -> None:
        """Adds one step's metrics."""
        self._sums = _add(self._sums, metrics) if self.steps else dict(metrics)
        self.steps += 1
        self._examples += examples

    def take(self, step: int, bad_step: jax.Array) -> Interval:
        """Ends the interval at `step` and begins the next."""
        # A copy, since the next step donates the state.
        interval = Interval(step, self.steps, self._examples, self._sums, jnp.copy(bad_step), self)
        self._sums, self.steps, self._examples = {}, 0, 0
        return interval

    def read(self) -> dict[str, Any]:
        """Waits for the device and returns the unfinished interval as JSON values."""
        sums = {name: float(value) for name, value in jax.device_get(self._sums).items()}
        return {"sums": sums, "steps": self.steps}

    def seconds(self) -> float:
        """Seconds since the last call, without pauses; the first interval includes the compilation."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return max(seconds, 1e-9)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent inside from the speed."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began


@jax.jit
def _add(sums: dict[str, jax.Array], metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.add, sums, dict(metrics))
