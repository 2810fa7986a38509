"""Baselines that need no training loop: popularity, a first-order Markov chain and item-kNN.

Each `fit_*` reads the training interactions of a split and returns a `Ranker`; all rankers share
the back-off to popularity, the removal of seen items and the chunking over users in `Ranker.rank`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from gr.data.examples import Histories
from gr.data.sequences import NO_ITEM, Splits
from gr.data.splits import training_interactions
from gr.evaluation.metrics import ndcg
from gr.evaluation.popularity import popularity_order, training_counts
from gr.evaluation.rankings import (
    NOT_FOUND,
    EvaluationError,
    Rankings,
    first_listed,
    first_occurrences,
    item_ranks_of_lists,
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
        histories, num_items = _as_histories(histories), len(self.popular)
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


def fit_popularity(splits: Splits) -> Ranker:
    """Ranks items by their number of training interactions, ties by item row."""
    return Ranker(
        popular=popularity_order(training_counts(splits)),
        scored=lambda histories, width: np.empty((len(histories), 0), dtype=np.int32),
    )


def fit_markov_chain(splits: Splits, *, backoff: bool = True) -> Ranker:
    """First-order Markov chain: ranks items by how often they followed the last item in training.

    Transitions are all pairs of consecutive training interactions of a user. Equal counts are
    ordered by popularity (then item row), and items that never followed come last, by popularity.
    Without `backoff` popularity is not used at all: equal counts are ordered by which transition came first in the log,
    and items that never followed are not listed.
    """
    items = splits.sequences.items
    num_items = splits.sequences.num_items
    train = training_interactions(splits)
    popular = popularity_order(training_counts(splits))
    later = np.flatnonzero(train)
    later = later[~np.isin(later, splits.sequences.offsets)]  # A user's first item follows nothing.
    pairs = items[later - 1].astype(np.int64) * num_items + items[later]
    pairs, first_seen, counts = np.unique(pairs, return_index=True, return_counts=True)
    previous, following = np.divmod(pairs, num_items)
    ties = _places(popular)[following] if backoff else first_seen
    successors = _RankedRows.of(previous, following, counts, ties, num_rows=num_items)

    def scored(histories: np.ndarray, width: int) -> np.ndarray:
        recent = recent_items(histories, 1)
        last = recent.max(axis=1, initial=NO_ITEM)
        return np.where((last >= 0)[:, None], successors.head(last, width), NO_ITEM)

    return Ranker(popular=popular, scored=scored, backoff=backoff)


def fit_item_knn(
    splits: Splits,
    *,
    neighbours: int = 100,
    shrinkage: float = 0.0,
    recent: int | None = None,
) -> Ranker:
    """Item-kNN: ranks items by the sum of their similarities to the items of the history.

    The similarity of two items is the cosine of their binary vectors of training users, `c_ij /
    (sqrt(c_i c_j) + shrinkage)`, with c_ij the number of users that have both. Every item of the
    history contributes its `neighbours` most similar items only (Deshpande and Karypis, "Item-based
    top-N recommendation algorithms", 2004). With `recent`, only the last `recent` items of the
    history contribute. Equal scores are ordered by popularity, and so are the items without a
    score.
    """
    if neighbours < 1 or shrinkage < 0 or (recent is not None and recent < 1):
        raise EvaluationError(
            f"neighbours={neighbours}, shrinkage={shrinkage}, recent={recent}: expected 1 or more "
            "neighbours, no negative shrinkage, and 1 or more recent items (or None for all)."
        )
    popular = popularity_order(training_counts(splits))
    (similarities,) = _pruned_cosines(
        _item_users(splits), [neighbours], shrinkage, _places(popular)
    )
    return _knn_ranker(similarities, popular, recent)


def tune_item_knn(
    splits: Splits,
    histories: Histories | np.ndarray,
    targets: np.ndarray,
    *,
    neighbours: Sequence[int] = (20, 100, 500),
    shrinkages: Sequence[float] = (0.0, 10.0),
    recents: Sequence[int | None] = (1, 2, 3, 5, 10, None),
    exclude: bool = False,
    max_users: int = 2000,
) -> tuple[Ranker, dict[str, float | int | None]]:
    """The item-kNN with the best item-level NDCG@10 on validation data, and its settings.

    `histories` (as for `Ranker.rank`) and `targets [n]` belong to the validation split. If there are more than
    `max_users`, evenly spaced ones are used.
    """
    if len(targets) == 0:
        raise EvaluationError(
            "item-kNN cannot be tuned without users: the validation split is empty."
        )
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(max_users, len(targets))).astype(int))
    histories, targets = _as_histories(histories)[chosen], targets[chosen]
    popular, item_users = popularity_order(training_counts(splits)), _item_users(splits)
    best_order, best = None, None
    for place, shrinkage in enumerate(shrinkages):
        pruned = _pruned_cosines(item_users, neighbours, shrinkage, _places(popular))
        for count, similarities in zip(neighbours, pruned, strict=True):
            for recent in recents:
                ranker = _knn_ranker(similarities, popular, recent)
                ranks = item_ranks_of_lists(ranker.rank(histories, 10, exclude=exclude), targets)
                # Ties: the settings that come first.
                order = (-ndcg(ranks, 10).mean(), neighbours.index(count), place)
                if best_order is None or order < best_order:
                    settings = {"neighbours": count, "shrinkage": shrinkage, "recent": recent}
                    best_order, best = order, (ranker, settings)
    return best


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
    histories, targets = _as_histories(histories), np.asarray(targets)
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


def _as_histories(histories: Histories | np.ndarray) -> Histories:
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
class _RankedRows:
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
    ) -> "_RankedRows":
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


def _knn_ranker(similarities: sparse.csr_array, popular: np.ndarray, recent: int | None) -> Ranker:
    """Ranks by the summed `similarities [N, N]` rows of the last `recent` items of a history."""
    place = _places(popular)
    similar = np.diff(similarities.indptr)  # [N] how many items are similar to each.

    def scored(histories: np.ndarray, width: int) -> np.ndarray:
        used = histories if recent is None else recent_items(histories, recent)
        sets = _item_sets(used, len(popular))
        heads = [np.empty((0, width), dtype=np.int32)]
        for rows in _slices_of(np.minimum(sets @ similar, len(popular))):
            scores = (sets[rows] @ similarities).tocoo()
            ranked = _RankedRows.of(
                scores.row, scores.col, scores.data, place[scores.col], num_rows=scores.shape[0]
            )
            heads.append(ranked.head(np.arange(scores.shape[0]), width))
        return np.concatenate(heads)

    return Ranker(popular=popular, scored=scored)


def _slices_of(sizes: np.ndarray) -> list[slice]:
    """Cuts rows of these sizes `[n]` into slices of at most about `_CHUNK` entries in total, or of one row."""
    after = np.cumsum(sizes)
    cuts = np.flatnonzero(np.diff((after - sizes) // _CHUNK, prepend=-1, append=np.inf))
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts)]


def _places(popular: np.ndarray) -> np.ndarray:
    """The place of each item in the popularity order, `[N]`: the inverse permutation."""
    places = np.empty(len(popular), dtype=np.int64)
    places[popular] = np.arange(len(popular))
    return places


def _item_users(splits: Splits) -> sparse.csr_array:
    """Which users interacted with which items in training, binary `[N, U]`."""
    sequences = splits.sequences
    train = training_interactions(splits)
    users = np.repeat(np.arange(sequences.num_users), sequences.lengths)[train]
    pairs = np.unique(sequences.items[train].astype(np.int64) * sequences.num_users + users)
    items, users = np.divmod(pairs, sequences.num_users)
    shape = (sequences.num_items, sequences.num_users)
    return sparse.csr_array((np.ones(len(pairs)), (items, users)), shape=shape)


def _item_sets(histories: np.ndarray, num_items: int) -> sparse.csr_array:
    """Which items each history holds, binary `[n, N]`."""
    rows, columns = np.nonzero((histories >= 0) & first_occurrences(histories))
    items = histories[rows, columns]
    shape = (len(histories), num_items)
    return sparse.csr_array((np.ones(len(rows)), (rows, items)), shape=shape)


def _pruned_cosines(
    item_users: sparse.csr_array, neighbours: Sequence[int], shrinkage: float, ties: np.ndarray
) -> list[sparse.csr_array]:
    """Shrunk cosines of items `[N, N]`, a matrix for each number of neighbours, the most similar of each row."""
    num_items = item_users.shape[0]
    norms = np.sqrt(item_users.sum(axis=1))
    # Maximum number of items that share a user with one item.
    reach = np.minimum(item_users @ item_users.sum(axis=0), num_items)
    blocks = [[] for _ in neighbours]
    for rows in _slices_of(reach):
        common = (item_users[rows] @ item_users.T).tocoo()
        row, column = common.row, common.col
        cosine = common.data / (norms[row + rows.start] * norms[column] + shrinkage)
        cosine[row + rows.start == column] = 0
        kept = _best_of_rows(row, cosine, ties[column], max(neighbours))
        row, column, cosine = row[kept], column[kept], cosine[kept]
        order = np.lexsort((ties[column], -cosine, row))
        row, column, cosine = row[order], column[order], cosine[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        shape = (rows.stop - rows.start, num_items)
        for count, of_count in zip(neighbours, blocks, strict=True):
            kept = (place < count) & (cosine > 0)
            of_count.append(
                sparse.csr_array((cosine[kept], (row[kept], column[kept])), shape=shape)
            )
    return [sparse.vstack(of_count, format="csr") for of_count in blocks]


def _best_of_rows(rows: np.ndarray, scores: np.ndarray, ties: np.ndarray, count: int) -> np.ndarray:
    """Marks the `count` best entries of each row; ties go to the least in `ties`: `[E]`, ... -> bool `[E]`.

    Entries are ordered by row. Sorting all of them would take far longer if one user has most of the items.
    """
    best = np.ones(len(rows), dtype=bool)
    ends = np.cumsum(np.bincount(rows))
    for start, end in itertools.pairwise([0, *ends]):
        if end - start > count:
            score, tie = scores[start:end], ties[start:end]
            least = np.partition(score, -count)[-count]
            above, equal = score > least, score == least
            places_left = count - np.count_nonzero(above)
            last = np.partition(tie[equal], places_left - 1)[places_left - 1]
            best[start:end] = above | (equal & (tie <= last))
    return best
