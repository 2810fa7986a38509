"""Sums over pairs of items of a user, as sparse matrices, and the weights of a history's last items."""

from collections.abc import Callable, Iterable

import numpy as np
from scipy import sparse

from gr.data import Histories, Sequences, Splits, training_interactions

_CHUNK = 2**22  # Most pairs that are added at once.


def interaction_counts(data: Splits | Sequences) -> np.ndarray:
    """Interactions of each item that may be learnt from, `[N]` int64."""
    sequences, learnt = _learnt(data)
    return np.bincount(sequences.items[learnt], minlength=sequences.num_items)


def windowed_counts(data: Splits | Sequences, window: int, decay: float) -> sparse.csr_array:
    """`sum over k of decay^(k-1) C_k`, `[N, N]` float64."""
    return weighted_pairs(
        data, range(1, window + 1), lambda distance, after: decay ** (distance - 1)
    )


def weighted_pairs(
    data: Splits | Sequences,
    distances: Iterable[int],
    weight: Callable[[int, np.ndarray], float | np.ndarray],
) -> sparse.csr_array:
    """Weights of all pairs of a user's interactions, added up for each first and second item, `[N, N]` float64.

    Args:
        data: splits, of which only training interactions are read; or sequences, of which all are.
        distances: of the pairs; at 0 an interaction is paired with itself.
        weight: of pairs of one distance, given for each how many of the user's interactions come after the second.
    """
    sequences, learnt = _learnt(data)
    num_items, items = sequences.num_items, sequences.items
    users = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    before = np.concatenate([[0], np.cumsum(learnt)])
    after = before[np.repeat(sequences.offsets[1:], sequences.lengths)] - before[1:]
    total = sparse.csr_array((num_items, num_items))
    # Pairs of several distances are added at once, so that they are sorted once.
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    last = int(sequences.lengths.max(initial=0)) - 1
    distances = [distance for distance in distances if distance <= last]
    for distance in distances:
        ends = len(items) - distance
        first = np.flatnonzero(
            learnt[:ends] & learnt[distance:] & (users[:ends] == users[distance:])
        )
        second = first + distance
        weights = np.broadcast_to(weight(distance, after[second]), len(first))
        pairs.append((items[first], items[second], weights))
        if distance == distances[-1] or sum(len(one) for one, _, _ in pairs) >= _CHUNK:
            row, column, added = map(np.concatenate, zip(*pairs, strict=True))
            total = total + sparse.csr_array((added, (row, column)), shape=total.shape)
            pairs = []
    return total


def recent_weights(
    histories: Histories, num_items: int, recency: float, reach: int
) -> sparse.csr_array:
    """`recency^place` of the last `reach` places of each history, added up for each item: `[n, N]` float32."""
    place = np.arange(reach)
    row, back = np.nonzero(place < np.minimum(histories.lengths, reach)[:, None])
    item = histories.items[histories.stops[row] - 1 - back]
    weight = (recency ** back.astype(np.float64)).astype(np.float32)
    recent = sparse.csr_array((weight, (row, item)), shape=(len(histories), num_items))
    recent.sum_duplicates()
    recent.eliminate_zeros()  # Powers too small for float32.
    return recent


def _learnt(data: Splits | Sequences) -> tuple[Sequences, np.ndarray]:
    """The sequences, and which interactions may be learnt from, bool `[E]`."""
    if isinstance(data, Sequences):
        return data, np.ones(len(data.items), dtype=bool)
    return data.sequences, training_interactions(data)
