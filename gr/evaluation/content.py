"""Content-kNN: ranks items by how near their vectors are to those of the last items of a history."""

from collections.abc import Sequence

import numpy as np

from gr.data.examples import Histories
from gr.data.sequences import NO_ITEM, Splits
from gr.evaluation.baselines import Ranker, recent_items
from gr.evaluation.metrics import ndcg
from gr.evaluation.popularity import popularity_order, training_counts
from gr.evaluation.rankings import EvaluationError, item_ranks_of_lists

_CHUNK = 2**22  # Maximum number of scores in memory.
RECENTS = (1, 2, 3, 5, 10, None)  # Grid of `tune_content_knn`.


def fit_content_knn(
    splits: Splits,
    vectors: np.ndarray,
    *,
    recent: int | None = 1,
    allowed: np.ndarray | None = None,
) -> Ranker:
    """Ranks items by the sum of the cosines of their vectors to those of a history's last items.

    It learns nothing from interactions (they decide ties only, by popularity), so that items nobody trained on are
    ranked as any other.

    Args:
        splits: the data.
        vectors: of every item, `[N, D]`, of any length; 0 has cosine 0 with every other.
        recent: how many last items of a history count; None: all.
        allowed: which items may be in a list, bool `[N]`; None: all.

    Raises:
        EvaluationError: for vectors of other items, or `recent` below 1.
    """
    num_items = splits.sequences.num_items
    if vectors.ndim != 2 or len(vectors) != num_items or (recent is not None and recent < 1):
        raise EvaluationError(
            f"vectors {list(vectors.shape)} and recent={recent}: expected a vector for each of {num_items} items, and "
            "1 or more recent items (or None for all)."
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    popular = popularity_order(training_counts(splits))
    # Columns in the order of popularity: a stable sort leaves ties in it.
    listed = popular if allowed is None else popular[allowed[popular]]
    of_listed = unit[listed].T
    padded = np.pad(unit, ((0, 1), (0, 0)))  # A last row of zeros, which `NO_ITEM` selects.

    def scored(histories: np.ndarray, width: int) -> np.ndarray:
        used = histories if recent is None else recent_items(histories, recent)
        found = np.full((len(used), width), NO_ITEM, dtype=np.int32)
        count = min(width, len(listed))
        step = max(1, _CHUNK // max(1, len(listed), used.shape[1] * unit.shape[1]))
        for start in range(0, len(used), step):
            rows = slice(start, start + step)
            scores = padded[used[rows]].sum(axis=1) @ of_listed
            order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            found[rows, :count] = listed[order]
        return found

    return Ranker(popular=popular, scored=scored, backoff=False)


def tune_content_knn(
    splits: Splits,
    vectors: np.ndarray,
    histories: Histories,
    targets: np.ndarray,
    *,
    recents: Sequence[int | None] = RECENTS,
    exclude: bool = False,
    allowed: np.ndarray | None = None,
) -> tuple[Ranker, int | None]:
    """The content-kNN with the best item-level NDCG@10 on validation targets `[n]`, and its `recent`."""
    if len(targets) == 0:
        raise EvaluationError("content-kNN cannot be tuned without targets: there are none.")
    rankers = [
        fit_content_knn(splits, vectors, recent=recent, allowed=allowed) for recent in recents
    ]
    values = [
        ndcg(item_ranks_of_lists(ranker.rank(histories, 10, exclude=exclude), targets), 10).mean()
        for ranker in rankers
    ]
    best = int(np.argmax(values))  # Ties: the first.
    return rankers[best], recents[best]
