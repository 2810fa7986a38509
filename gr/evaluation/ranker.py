"""`Ranker`: a fitted baseline that ranks the catalogue for any histories, and its `Rankings` of targets.

All rankers share the back-off to popularity, the removal of seen items and the chunking over users.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from gr.data.examples import Histories
from gr.data.sequences import NO_ITEM, Splits
from gr.evaluation.rankings import (
    NOT_FOUND,
    EvaluationError,
    Rankings,
    first_listed,
    first_occurrences,
    rankings_of_lists,
    sid_depth,
)
from gr.fields import load_own

_CHUNK = 2**20  # Maximum number of entries of a padded or dense table.


@dataclasses.dataclass(frozen=True)
class Ranker:
    """A fitted baseline: ranks the catalogue of N items for any histories."""

    popular: np.ndarray  # [N] int32 item rows, most popular first.
    # (histories [b, T], width) -> [b, <= width] items with a score, best first, NO_ITEM padded.
    scored: Callable[[np.ndarray, int], np.ndarray]
    backoff: bool = True  # Whether unscored items follow the scored ones, by popularity.

    def rank(
        self, histories: Histories | np.ndarray, top_k: int, *, exclude: bool = False
    ) -> np.ndarray:
        """The best items after each of n histories, `[n, top_k]`.

        With `exclude`, no item of a history is in its list. A list is padded with NO_ITEM only
        where the catalogue has no further item to give (or, without `backoff`, none with a score).

        Args:
            histories: whole ones, oldest item first; or rows `[n, T]`, padded on either side.
            top_k: length of a list.
            exclude: whether the items of a history are kept out of its list.

        Raises:
            EvaluationError: for histories of other items than the baseline was fitted on.
        """
        histories, num_items = as_histories(histories), len(self.popular)
        if top_k < 1 or histories.items.max(initial=NO_ITEM) >= num_items:
            raise EvaluationError(
                f"top_k={top_k}, histories of item rows up to {histories.items.max(initial=NO_ITEM)}: "
                f"expected top_k >= 1, and the {num_items} items that the baseline was fitted on."
            )
        lists = np.empty((len(histories), top_k), dtype=np.int32)
        # Longest first, so that chunks need little padding, and those of long histories are small.
        lengths = histories.lengths
        order, start = np.argsort(-lengths, kind="stable"), 0
        while start < len(order):
            longest = int(lengths[order[start]])
            width = min(top_k + longest * exclude, num_items)
            rows = order[start : start + max(1, _CHUNK // (longest + top_k + 2 * width))]
            lists[rows] = self._rank_chunk(histories[rows].padded(), top_k, width, exclude)
            start += len(rows)
        return lists

    def _rank_chunk(
        self, histories: np.ndarray, top_k: int, width: int, exclude: bool
    ) -> np.ndarray:
        # At most T of `width` distinct items are in the history, so at least top_k (or all) remain.
        parts = [self.scored(histories, width)]
        if self.backoff:
            popular = self.popular[:width]
            parts.append(np.broadcast_to(popular, (len(histories), len(popular))))
        if exclude:
            parts.insert(0, histories)
        items = np.concatenate(parts, axis=1).astype(np.int32)
        keep = first_occurrences(items)
        if exclude:
            # Items of the history come first here, so their later places are dropped too.
            keep[:, : histories.shape[1]] = False
        return first_listed(np.where(keep, items, NO_ITEM), top_k)


def fit_own_baseline(name: str, splits: Splits) -> Ranker:
    """Fits the user's own baseline.

    Args:
        name: `module:name` of a function `Splits -> Ranker`; it may learn from `splits.train` only.
        splits: the data.

    Raises:
        EvaluationError: if there is no such function, or it returns something else.
    """
    ranker = load_own(name, "baseline", (), EvaluationError)(splits)
    if not isinstance(ranker, Ranker):
        raise EvaluationError(
            f"baseline {name!r} returned a {type(ranker).__name__}; a baseline is a function "
            "gr.data.Splits -> gr.evaluation.Ranker"
        )
    return ranker


def rankings_of_baseline(
    ranker: Ranker,
    histories: Histories | np.ndarray,
    targets: np.ndarray,
    sid_of_item: np.ndarray,
    *,
    depth: int = 20,
    exclude: bool = False,
) -> Rankings:
    """Ranks n histories with a baseline, exact at SID level up to `depth`.

    Args:
        ranker: the baseline.
        histories: as for `Ranker.rank`.
        targets: the item that comes after each, `[n]`.
        sid_of_item: the SID number of each of N items, equal where items share one, `[N]`.
        depth: the largest k at which the rankings can be evaluated.
        exclude: whether the items of a history are kept out of its list. A target in the history is then a miss, as it
            is in a model's beams, even if another item with its SID is listed.
    """
    histories, targets = as_histories(histories), np.asarray(targets)
    if targets.shape != (len(histories),):
        raise EvaluationError(
            f"{len(histories)} histories and targets of shape {targets.shape} do not fit: give one target each."
        )
    width = sid_depth(sid_of_item, depth)  # Wide if many items share a SID, hence the chunks.
    step = max(1, _CHUNK // width)
    parts = [
        rankings_of_lists(
            ranker.rank(histories[start : start + step], width, exclude=exclude),
            targets[start : start + step],
            sid_of_item,
            depth=depth,
        )
        for start in range(0, max(1, len(targets)), step)
    ]
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("targets", "sid_ranks", "item_ranks", "items", "candidates", "duplicates")
    }
    seen = histories.hold(targets)
    if exclude:
        joined["sid_ranks"] = np.where(seen, NOT_FOUND, joined["sid_ranks"])
    return Rankings(**joined, seen=seen, exclude=exclude)


def as_histories(histories: Histories | np.ndarray) -> Histories:
    """Rows `[n, T]` as `Histories`; `EvaluationError` for what is neither."""
    if isinstance(histories, Histories):
        return histories
    rows = np.asarray(histories)
    if rows.ndim != 2 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        raise EvaluationError(
            f"histories of shape {rows.shape} and type {rows.dtype}: expected Histories, or rows [n, T] of items."
        )
    return Histories.of_rows(rows if rows.dtype.kind == "i" else rows.astype(np.int64))


def recent_items(histories: np.ndarray, count: int) -> np.ndarray:
    """Keeps the last `count` items of each row and pads the others: `[n, T]` -> `[n, T]`."""
    from_the_end = np.cumsum((histories >= 0)[:, ::-1], axis=1)[:, ::-1]
    return np.where((histories >= 0) & (from_the_end <= count), histories, NO_ITEM)


@dataclasses.dataclass(frozen=True)
class RankedRows:
    """Rows of items, each row best first; row r owns `items[offsets[r]:offsets[r + 1]]`."""

    offsets: np.ndarray  # [R + 1] int64.
    items: np.ndarray  # [E] int32.

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        items: np.ndarray,
        scores: np.ndarray,
        ties: np.ndarray,
        *,
        num_rows: int,
    ) -> "RankedRows":
        """Sorts entries `[E]` by row, then from high to low score, then by `ties` upwards."""
        order = np.lexsort((ties, -scores, rows))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))])
        return cls(offsets=offsets, items=items[order].astype(np.int32))

    def head(self, rows: np.ndarray, width: int) -> np.ndarray:
        """The first `width` items of the given rows `[n]` -> `[n, width]`, padded with NO_ITEM."""
        if len(self.items) == 0:
            return np.full((len(rows), width), NO_ITEM, dtype=np.int32)
        places = self.offsets[rows][:, None] + np.arange(width)
        inside = places < self.offsets[rows + 1][:, None]
        return np.where(inside, self.items[np.minimum(places, len(self.items) - 1)], NO_ITEM)


def slices_of(sizes: np.ndarray) -> list[slice]:
    """Cuts rows of these sizes `[n]` into slices of at most about `_CHUNK` entries in total, or of one row."""
    after = np.cumsum(sizes)
    cuts = np.flatnonzero(np.diff((after - sizes) // _CHUNK, prepend=-1, append=np.inf))
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts)]


def popularity_places(popular: np.ndarray) -> np.ndarray:
    """The place of each item in the popularity order, `[N]`: the inverse permutation."""
    places = np.empty(len(popular), dtype=np.int64)
    places[popular] = np.arange(len(popular))
    return places
