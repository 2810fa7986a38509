"""Baselines that need no training loop: popularity, a first-order Markov chain, item-kNN, and the memory.

Each `fit_*` reads the training interactions of a split and returns a `Ranker`.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from gr.data.examples import Histories
from gr.data.sequences import NO_ITEM, Splits
from gr.data.splits import training_interactions
from gr.evaluation.metrics import ndcg
from gr.evaluation.popularity import popularity_order, training_counts
from gr.evaluation.ranker import (
    RankedRows,
    Ranker,
    as_histories,
    popularity_places,
    recent_items,
    slices_of,
)
from gr.evaluation.rankings import EvaluationError, first_occurrences, item_ranks_of_lists
from gr.memory import Memory

KNN_GRID = {
    "neighbours": (20, 100, 500),
    "shrinkages": (0.0, 10.0),
    "recents": (1, 2, 3, 5, 10, None),
}


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
    ties = popularity_places(popular)[following] if backoff else first_seen
    successors = RankedRows.of(previous, following, counts, ties, num_rows=num_items)

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
        item_users(splits), [neighbours], shrinkage, popularity_places(popular)
    )
    return _knn_ranker(similarities, popular, recent)


def tune_item_knn(
    splits: Splits,
    histories: Histories | np.ndarray,
    targets: np.ndarray,
    *,
    neighbours: Sequence[int] = KNN_GRID["neighbours"],
    shrinkages: Sequence[float] = KNN_GRID["shrinkages"],
    recents: Sequence[int | None] = KNN_GRID["recents"],
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
    histories, targets = as_histories(histories)[chosen], targets[chosen]
    popular, of_items = popularity_order(training_counts(splits)), item_users(splits)
    best_order, best = None, None
    for place, shrinkage in enumerate(shrinkages):
        pruned = _pruned_cosines(of_items, neighbours, shrinkage, popularity_places(popular))
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


def memory_ranker(splits: Splits, memory: Memory) -> Ranker:
    """Ranks items by the scores of a memory; equal scores are ordered by popularity, and so are items without one."""
    popular = popularity_order(training_counts(splits))
    place = popularity_places(popular)

    def scored(histories: np.ndarray, width: int) -> np.ndarray:
        past, heads = Histories.of_rows(histories), [np.empty((0, width), dtype=np.int32)]
        for rows in memory.chunks(past):
            scores = memory.unsorted_scores(past[rows], exclude=False).tocoo()
            ranked = RankedRows.of(
                scores.row, scores.col, scores.data, place[scores.col], num_rows=scores.shape[0]
            )
            heads.append(ranked.head(np.arange(scores.shape[0]), width))
        return np.concatenate(heads)

    return Ranker(popular=popular, scored=scored)


def _knn_ranker(similarities: sparse.csr_array, popular: np.ndarray, recent: int | None) -> Ranker:
    """Ranks by the summed `similarities [N, N]` rows of the last `recent` items of a history."""
    place = popularity_places(popular)
    similar = np.diff(similarities.indptr)  # [N] how many items are similar to each.

    def scored(histories: np.ndarray, width: int) -> np.ndarray:
        used = histories if recent is None else recent_items(histories, recent)
        sets = _item_sets(used, len(popular))
        heads = [np.empty((0, width), dtype=np.int32)]
        for rows in slices_of(np.minimum(sets @ similar, len(popular))):
            scores = (sets[rows] @ similarities).tocoo()
            ranked = RankedRows.of(
                scores.row, scores.col, scores.data, place[scores.col], num_rows=scores.shape[0]
            )
            heads.append(ranked.head(np.arange(scores.shape[0]), width))
        return np.concatenate(heads)

    return Ranker(popular=popular, scored=scored)


def item_users(splits: Splits) -> sparse.csr_array:
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
    for rows in slices_of(reach):
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
