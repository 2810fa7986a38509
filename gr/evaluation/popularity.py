"""Item popularity in training, and the catalogue's head, torso and tail."""

import numpy as np

from gr.data.sequences import Splits
from gr.data.splits import training_interactions

HEAD, TORSO, TAIL = 0, 1, 2
SLICE_NAMES = ("head", "torso", "tail")  # Indexed by slice id.


def training_counts(splits: Splits) -> np.ndarray:
    """Training interactions of each item, `[N]` int64."""
    trained = splits.sequences.items[training_interactions(splits)]
    return np.bincount(trained, minlength=splits.sequences.num_items)


def popularity_order(train_counts: np.ndarray) -> np.ndarray:
    """Item rows from the most to the least popular, ties by item row: `[N]` -> `[N]` int32."""
    return np.argsort(-train_counts, kind="stable").astype(np.int32)


def popularity_slices(train_counts: np.ndarray, *, share: float = 0.2) -> np.ndarray:
    """Head, torso and tail of the catalogue by training interactions: `[N]` -> slice id `[N]` int8.

    With items sorted by popularity, the head is the most popular items that together receive the
    first `share` of all training interactions, the tail those that receive the last `share` (and
    all items without an interaction), the torso the rest. Slices by interactions rather than by the
    number of items, as in Abdollahpouri et al., "User-centered Evaluation of Popularity Bias in
    Recommender Systems" (arXiv 2103.06364), leave enough targets in each slice to measure.
    """
    order = popularity_order(train_counts)
    ordered = train_counts[order]
    above = (np.cumsum(ordered) - ordered) / max(ordered.sum(), 1)  # Share of more popular items.
    slices = np.full(len(order), TORSO, dtype=np.int8)
    slices[order[above < share]] = HEAD
    slices[order[(above >= 1 - share) | (ordered == 0)]] = TAIL
    return slices
