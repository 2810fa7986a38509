"""The settings of a memory that rank validation targets best."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import sparse

from gr.data import Histories, Splits
from gr.memory.cooccurrence import (
    ItemMemoryError,
    Memory,
    MemorySettings,
    normalised,
)
from gr.memory.counts import interaction_counts, windowed_counts

# Where the search begins: what was best on review data (Amazon) and on ratings of films (MovieLens).
STARTS = (
    MemorySettings(),
    MemorySettings(window=50, decay=0.97, recency=0.7, reach=10),
)
GRID: Mapping[str, Sequence[float]] = {
    "content": (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
    "recency": (0.3, 0.5, 0.7, 0.85),
    "reach": (3, 5, 10, 20, 50),
    "shrink": (1.0, 10.0, 50.0, 200.0),
    "back": (0.0, 0.25, 0.5, 1.0),
    "decay": (0.6, 0.8, 0.9, 0.97, 1.0),
    "window": (3, 10, 25, 50, 100),
}
MAX_TURNS = 2


def tune_memory(
    splits: Splits,
    histories: Histories | np.ndarray,
    targets: np.ndarray,
    *,
    exclude: bool = False,
    starts: Sequence[MemorySettings] = STARTS,
    grid: Mapping[str, Sequence[float]] = GRID,
    similar: Mapping[str, sparse.csr_array] | None = None,
    max_users: int = 5000,
) -> tuple[Memory, float]:
    """The memory with the best item-level NDCG@10 on validation data, found one setting at a time.

    The search begins with the best of `starts` and goes through the settings of `grid` in turn, keeping the best value
    of each, until a whole turn improves nothing, two turns at most.

    Args:
        splits: the data; the memory learns from its training interactions only.
        histories: of the validation targets, as for `Memory.scores`.
        targets: item numbers `[n]`.
        exclude: whether items of a history are left out of its scores.
        starts: settings that the search begins with; the first of equal ones is taken.
        grid: the values of each setting that are tried; those of `content` for each of `similar`.
        similar: similarities of content, as for `fit_memory`.
        max_users: if there are more targets, this many evenly spaced ones are used.

    Returns:
        The memory, and its NDCG@10 on the users that were used.

    Raises:
        ItemMemoryError: without targets, or for a setting that does not exist or is out of range.
    """
    if len(targets) == 0:
        raise ItemMemoryError(
            "a memory cannot be tuned without targets: the validation split is empty"
        )
    if not isinstance(histories, Histories):
        histories = Histories.of_rows(np.asarray(histories))
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(max_users, len(targets))).astype(int))
    histories, targets = histories[chosen], np.asarray(targets)[chosen]
    counts, similar = interaction_counts(splits), similar or {}
    tried: dict[MemorySettings, float] = {}
    # The last matrices only, since they are large; neighbouring settings share them.
    forward: dict[tuple[int, float], sparse.csr_array] = {}
    fitted: dict[MemorySettings, Memory] = {}

    def memory(settings: MemorySettings) -> Memory:
        of_matrix = dataclasses.replace(settings, recency=1.0, reach=1)
        if of_matrix not in fitted:
            fitted.clear()
            key = (settings.window, settings.decay)
            if key not in forward:
                forward.clear()
                forward[key] = windowed_counts(splits, *key)
            fitted[of_matrix] = normalised(forward[key], counts, of_matrix, similar)
        return dataclasses.replace(fitted[of_matrix], settings=settings)

    def quality(settings: MemorySettings) -> float:
        if settings not in tried:
            tried[settings] = _ndcg10(memory(settings), histories, targets, exclude)
        return tried[settings]

    best = max(starts, key=quality)
    for _ in range(MAX_TURNS):
        before = best
        for name, values in grid.items():
            best = max([best, *_choices(best, name, values, similar)], key=quality)
        if best == before:
            break
    return memory(best), tried[best]


def _choices(
    settings: MemorySettings, name: str, values: Sequence[float], similar: Iterable[str]
) -> list[MemorySettings]:
    """The settings with each value of one of them; a weight of content goes with each of the similarities."""
    if name == "content":
        return [
            dataclasses.replace(settings, content=value, content_of=of if value else "")
            for of in similar
            for value in values
        ]
    try:
        return [dataclasses.replace(settings, **{name: value}) for value in values]
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(MemorySettings))
        raise ItemMemoryError(f"grid names {name!r}: a memory has {known}") from error


def _ndcg10(memory: Memory, histories: Histories, targets: np.ndarray, exclude: bool) -> float:
    """Mean of 1 / log2(rank + 2) over targets that are scored and have rank < 10; ties by item number."""
    ranks = [
        target_ranks(memory.unsorted_scores(histories[rows], exclude=exclude), targets[rows])
        for rows in memory.chunks(histories)
    ]
    rank = np.concatenate(ranks)
    return float(
        np.where((rank >= 0) & (rank < 10), 1 / np.log2(np.maximum(rank, 0) + 2), 0).mean()
    )


def target_ranks(scores: sparse.csr_array, targets: np.ndarray) -> np.ndarray:
    """How many entries of each row are above its target's, ties by column: `[n]`; -1 for a target without a score."""
    rows = np.repeat(np.arange(len(targets)), np.diff(scores.indptr))
    is_target = scores.indices == targets[rows]
    of_target = np.full(len(targets), np.nan, dtype=scores.dtype)
    of_target[rows[is_target]] = scores.data[is_target]
    level = of_target[rows]
    above = (scores.data > level) | ((scores.data == level) & (scores.indices < targets[rows]))
    return np.where(np.isnan(of_target), -1, np.bincount(rows[above], minlength=len(targets)))
