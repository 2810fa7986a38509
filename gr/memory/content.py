"""Which items have like content: sparse item-to-item shares, that a memory adds to what it counted.

Co-occurrence knows nothing of an item that few have bought. Its content does: items of a close semantic ID, or of a
close text, tend to follow it too. Content-based neighbours are as old as the field (Pazzani and Billsus,
"Content-based recommendation systems", 2007).
"""

import numpy as np
from scipy import sparse

MAX_ITEMS = 100_000  # By vectors, all pairs of items are compared.
MAX_PAIRS = 50_000_000  # By codes, of similar items.
_CHUNK = 2**24  # Most similarities that are held at once.
_ROUNDING = 1e-6  # Cosines up to here count as 0.


def similar_by_codes(codes: np.ndarray, *, neighbours: int = 500) -> sparse.csr_array:
    """Shares of items in each item's content, by the codes that their semantic IDs have in common.

    Two items with the same first n codes have weight n^2. Where a first code is so common that an item would have more
    than `neighbours` of them on average, or all together more than `MAX_PAIRS`, more codes must agree.

    Args:
        codes: `[N, L]`.
        neighbours: most items that are compared with one, on average.

    Returns:
        `[N, N]` float32: rows sum to 1, or are empty; columns of a row in order.
    """
    num_items, length = codes.shape
    weights, most = sparse.csr_array((num_items, num_items)), min(neighbours * num_items, MAX_PAIRS)
    for depth in range(1, length + 1):
        _, group = np.unique(codes[:, :depth], axis=0, return_inverse=True)
        group = group.reshape(-1)
        if np.square(np.bincount(group, minlength=1)).sum() > most:
            continue
        of_group = sparse.csr_array((np.ones(num_items), (np.arange(num_items), group)))
        # From (n - 1)^2 to n^2, or from 0 at the first depth that counts.
        step = depth**2 if weights.nnz == 0 else 2 * depth - 1
        weights = weights + step * (of_group @ of_group.T)
    return _shares(weights)


def similar_by_vectors(
    vectors: np.ndarray, *, neighbours: int = 20, power: float = 2.0
) -> sparse.csr_array:
    """Shares of items in each item's content, by the cosine of their vectors to a power.

    Args:
        vectors: `[N, D]`, such as `gr.semantic_ids.text_vectors`; a row of zeros has no neighbours.
        neighbours: items of a row, those with the largest cosine above 0; ties by item number.
        power: of the cosine.

    Returns:
        `[N, N]` float32: rows sum to 1, or are empty; columns of a row in order.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros(vectors.shape, np.float32), where=lengths > 0)
    num_items = len(unit)
    count = min(neighbours, max(num_items - 1, 0))
    rows, columns, weights = [], [], []
    step = max(1, _CHUNK // max(1, num_items))
    for start in range(0, num_items if count else 0, step):
        cosine = unit[start : start + step] @ unit.T
        row = np.arange(len(cosine))
        cosine[row, start + row] = -np.inf
        # Only entries at or above the smallest that is kept are sorted.
        least = np.partition(cosine, num_items - count, axis=1)[:, num_items - count, None]
        row, column = np.nonzero((cosine >= least) & (cosine > _ROUNDING))
        value = cosine[row, column]
        order = np.lexsort((-value, row))
        row, column, value = row[order], column[order], value[order]
        starts = np.searchsorted(row, np.arange(len(cosine)))
        kept = np.arange(len(row)) - starts[row] < count
        rows.append(start + row[kept])
        columns.append(column[kept])
        weights.append(value[kept].astype(np.float64) ** power)
    if not rows:
        return sparse.csr_array((num_items, num_items), dtype=np.float32)
    entries = (np.concatenate(rows), np.concatenate(columns))
    return _shares(sparse.csr_array((np.concatenate(weights), entries), shape=(num_items,) * 2))


def _shares(weights: sparse.csr_array) -> sparse.csr_array:
    """Weights without the diagonal, rows divided by their sums."""
    entries = weights.tocoo()
    row, column = entries.coords
    kept = row != column
    weights = sparse.csr_array((entries.data[kept], (row[kept], column[kept])), shape=weights.shape)
    weights.sort_indices()
    sums = weights.sum(axis=1)
    weights.data /= np.repeat(sums, np.diff(weights.indptr))
    return weights.astype(np.float32)
