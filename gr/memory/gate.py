"""`Gate`: how much a user's recommendations rely on the memory, by what is known before decoding."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr.memory.cooccurrence import GATE_INPUTS, ItemMemoryError

_BINS = 5


@dataclasses.dataclass(frozen=True)
class Gate:
    """A weight for each user: one for all, or by intervals of one number that is known of the history.

    Attributes:
        weights: `[k]`, in rising order of the input.
        edges: `[k - 1]`, rising: interval i holds inputs from `edges[i - 1]` (inclusive) to `edges[i]`.
        input: one of `GATE_INPUTS`; "" for a single weight.
    """

    weights: tuple[float, ...]
    edges: tuple[float, ...] = ()
    input: str = ""

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """The weights `[n]` float32 of users with these `GATE_INPUTS` `[n, 3]`."""
        if not self.input:
            return np.full(len(inputs), self.weights[0], np.float32)
        column = inputs[:, GATE_INPUTS.index(self.input)]
        place = np.searchsorted(np.asarray(self.edges, np.float32), column, side="right")
        return np.asarray(self.weights, np.float32)[place]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Gate":
        """The inverse of `to_dict`."""
        return Gate(tuple(values["weights"]), tuple(values["edges"]), values["input"])


def best_weight(gains: np.ndarray, grid: Sequence[float]) -> Gate:
    """The one weight of the grid with the best mean gain, the smaller of equal ones.

    Args:
        gains: of each user with each weight, such as NDCG@10, `[n, A]`.
        grid: the weights `[A]`, rising.
    """
    return Gate((float(grid[int(gains.mean(axis=0).argmax())]),))


def fit_gate(inputs: np.ndarray, gains: np.ndarray, grid: Sequence[float]) -> Gate:
    """The gate with the best gain on users that its weights were not chosen by; one weight if none is better.

    For each input, users are cut into five equally large groups, and each gets its best weight of the grid. Which input
    is used, if any, is decided by two-fold cross-validation, since five weights always fit better than one.

    Args:
        inputs: `Memory.gate_inputs` `[n, 3]`.
        gains: of each user with each weight, such as NDCG@10, `[n, A]`.
        grid: the weights `[A]`, rising.

    Raises:
        ItemMemoryError: without users, if numbers of users or weights differ, or for weights that do not rise.
    """
    if (np.diff(grid) <= 0).any():
        raise ItemMemoryError(f"the weights {tuple(grid)} must rise")
    if len(inputs) == 0 or gains.shape != (len(inputs), len(grid)):
        raise ItemMemoryError(
            f"inputs of {len(inputs)} users, gains of shape {gains.shape} and {len(grid)} weights: give gains [n, A]"
        )
    folds = np.arange(len(inputs)) % 2
    best, best_gain = best_weight(gains, grid), _held_out(None, inputs, gains, grid, folds)
    for name in GATE_INPUTS:
        gain = _held_out(name, inputs, gains, grid, folds)
        if gain > best_gain:
            best, best_gain = _fitted(name, inputs, gains, grid), gain
    return best


def _held_out(
    name: str | None,
    inputs: np.ndarray,
    gains: np.ndarray,
    grid: Sequence[float],
    folds: np.ndarray,
) -> float:
    """Mean gain of each fold under the gate of the other."""
    total = 0.0
    for fold in (0, 1):
        here, there = folds == fold, folds != fold
        if not (here.any() and there.any()):
            return -np.inf if name else 0.0
        gate = _fitted(name, inputs[there], gains[there], grid)
        chosen = np.searchsorted(np.asarray(grid, np.float32), gate(inputs[here]))
        total += float(gains[here][np.arange(here.sum()), chosen].sum())
    return total / len(inputs)


def _fitted(name: str | None, inputs: np.ndarray, gains: np.ndarray, grid: Sequence[float]) -> Gate:
    if name is None:
        return best_weight(gains, grid)
    column = inputs[:, GATE_INPUTS.index(name)]
    edges = np.unique(np.quantile(column, np.arange(1, _BINS) / _BINS)).astype(np.float32)
    place = np.searchsorted(edges, column, side="right")
    overall = int(gains.mean(axis=0).argmax())
    weights = []
    for group in range(len(edges) + 1):
        mine = gains[place == group]
        weights.append(float(grid[int(mine.mean(axis=0).argmax()) if len(mine) else overall]))
    return Gate(tuple(weights), tuple(edges.tolist()), name)
