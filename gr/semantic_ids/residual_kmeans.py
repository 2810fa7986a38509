"""Residual k-means (RQ-k-means): item vectors -> L codes, coarse to fine, with frozen codebooks.

Level 0 clusters the vectors, level `l` what the levels above left over. The same seed gives the
same codes on any number of threads: fitting runs on one, and `_nearest` settles ties by rule.
"""

import dataclasses
import math

import numpy as np

from gr.semantic_ids.item_vectors import check_vectors
from gr.semantic_ids.semantic_ids import SemanticIdError

_BALANCED_ROUNDS = 10  # Lloyd rounds under the capacity constraint, from k-means' centroids.
_TIE = 1e-9  # Relative to the data's squared scale: smaller differences are rounding, not distance.
_CHUNK = 8192  # Rows of a distance matrix held at once.


@dataclasses.dataclass(frozen=True, eq=False)
class ResidualCodebooks:
    """The frozen codebooks of L levels.

    A level has fewer centroids than its codebook size where it has fewer distinct residuals.
    """

    centroids: tuple[np.ndarray, ...]  # L arrays [K_l, D] float64.

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Codes `[n, L]` int32 of vectors `[n, D]`, known or new: the nearest centroid each level.

        Gives the training items the codes that fitting gave them, unless fitting was balanced:
        capacities belong to the training items alone.
        """
        check_vectors(np.asarray(vectors))
        residuals = np.array(vectors, dtype=np.float64)
        if residuals.shape[1] != self.centroids[0].shape[1]:
            raise SemanticIdError(
                f"vectors have width {residuals.shape[1]}, the codebooks "
                f"{self.centroids[0].shape[1]}."
            )
        codes = np.empty((len(residuals), len(self.centroids)), dtype=np.int32)
        for level, centroids in enumerate(self.centroids):
            codes[:, level] = _nearest(residuals, centroids)
            residuals -= centroids[codes[:, level]]
        return codes


def fit_residual_kmeans(
    vectors: np.ndarray, *, num_levels: int, codebook_size: int, seed: int, balanced: bool = False
) -> tuple[ResidualCodebooks, np.ndarray]:
    """Fits codebooks to vectors `[N, D]`; returns them and the codes `[N, L]` int32.

    Args:
      vectors: One row an item.
      num_levels: L.
      codebook_size: K, the most codes of a level.
      seed: Same seed, same codes.
      balanced: No code of a level gets more than `ceil(N / K)` items, see `assign_balanced`.

    Raises `SemanticIdError` for bad vectors or sizes.
    """
    check_vectors(np.asarray(vectors))
    residuals = np.array(vectors, dtype=np.float64)
    if num_levels < 1 or codebook_size < 1:
        raise SemanticIdError(
            f"num_levels and codebook_size must be at least 1, got {num_levels}, {codebook_size}."
        )
    scale = np.abs(residuals).max()
    all_centroids, codes = [], np.empty((len(residuals), num_levels), dtype=np.int32)
    for level in range(num_levels):
        size = min(codebook_size, _num_distinct_rows(residuals, scale))
        centroids = _kmeans(residuals, size, seed + level)
        if balanced:
            codes[:, level], centroids = _balanced_lloyd(residuals, centroids)
        else:
            codes[:, level] = _nearest(residuals, centroids)
        residuals -= centroids[codes[:, level]]
        all_centroids.append(centroids)
    return ResidualCodebooks(tuple(all_centroids)), codes


def assign_balanced(distances: np.ndarray, capacity: int) -> np.ndarray:
    """Codes [N] of items, at most `capacity` each, from distances `[N, K]`.

    The rule: of all pairs of an item without a code and a code with room, the closest is joined,
    and so on until every item has a code. It is computed in rounds: each item asks the nearest code
    that has not yet turned it away, and each code keeps the nearest `capacity` of those who ask
    (Gale and Shapley's deferred acceptance; when both sides rank by the same distances, its one
    stable outcome is that of the rule). Ties go to the lower item row, then the lower code.
    """
    num_items, num_codes = distances.shape
    if capacity * num_codes < num_items:
        raise SemanticIdError(f"{num_codes} codes of {capacity} cannot hold {num_items} items.")
    preferences = np.argsort(distances, axis=1, kind="stable")
    asked = np.zeros(num_items, dtype=np.int64)  # How many codes have turned each item away.
    rows = np.arange(num_items)
    while True:
        codes = preferences[rows, asked]
        order = np.lexsort((rows, distances[rows, codes], codes))
        sorted_codes = codes[order]
        place = rows - np.searchsorted(sorted_codes, sorted_codes)  # 0 for the nearest of a code.
        turned_away = order[place >= capacity]
        if len(turned_away) == 0:
            return codes.astype(np.int32)
        asked[turned_away] += 1


def codebook_report(codes: np.ndarray, codebook_sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """How well each level of codes `[N, L]` uses its codebook, one dictionary a level.

    `level`, `size` K, `used` codes, `used_share` of K, `perplexity` (exp of the entropy: K if all
    codes are equally frequent, 1 if only one is used), `relative_perplexity` (perplexity over the
    most that is possible, `min(K, N)`) and `largest_share`, the items of the most frequent code.
    """
    report = []
    for level, size in enumerate(codebook_sizes):
        shares = np.bincount(codes[:, level], minlength=size) / len(codes)
        used = shares[shares > 0]
        perplexity = float(np.exp(-(used * np.log(used)).sum()))
        report.append(
            {
                "level": level,
                "size": size,
                "used": len(used),
                "used_share": len(used) / size,
                "perplexity": perplexity,
                "relative_perplexity": perplexity / min(size, len(codes)),
                "largest_share": float(shares.max()),
            }
        )
    return report


def check_codebooks(report: list[dict[str, float]], min_perplexity: float) -> None:
    """Raises `SemanticIdError` for a level whose relative perplexity is below `min_perplexity`."""
    for level in report:
        if level["relative_perplexity"] < min_perplexity:
            raise SemanticIdError(
                f"codebook collapse at level {level['level']}: perplexity "
                f"{level['perplexity']:.1f} of {level['size']} codes "
                f"({level['relative_perplexity']:.3f} of what is possible, below min_perplexity="
                f"{min_perplexity}), {level['used']} codes used. Remedies: other vectors, "
                "balanced=True, a smaller codebook_size, fewer levels, or a lower min_perplexity."
            )


def _kmeans(points: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Centroids `[size, D]` of points `[N, D]`."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # k-means++ starts are good already; two runs guard against an unlucky one at double the time.
    kmeans = KMeans(size, n_init=2, max_iter=100, random_state=seed, copy_x=True)
    with threadpool_limits(limits=1):
        return kmeans.fit(points).cluster_centers_


def _balanced_lloyd(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N] within capacity, and their centroids `[K, D]`."""
    size = len(centroids)
    capacity = math.ceil(len(points) / size)
    squares = np.square(points).sum(axis=1, keepdims=True)
    scale = max(squares.max(), 1e-300)
    for _ in range(_BALANCED_ROUNDS):
        # Here items are compared with each other, so their own squares count; rounding
        # makes equal distances equal whatever the order of summation.
        distances = (squares + _relative_distances(points, centroids)) / scale
        codes = assign_balanced(np.round(distances, 9), capacity)
        counts = np.bincount(codes, minlength=size)
        sums = np.zeros_like(centroids)
        np.add.at(sums, codes, points)
        means = sums / np.maximum(counts, 1)[:, None]
        centroids = np.where(counts[:, None] > 0, means, centroids)
    return codes, centroids


def _nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each point, [n]; the lowest of those that are equally near."""
    codes = np.empty(len(points), dtype=np.int32)
    scale = max(np.square(points).sum(axis=1).max(), np.square(centroids).sum(axis=1).max())
    for start in range(0, len(points), _CHUNK):
        distances = _relative_distances(points[start : start + _CHUNK], centroids)
        # Rounding depends on threads and batch size; within it, the first code wins everywhere.
        near = distances <= distances.min(axis=1, keepdims=True) + _TIE * scale
        codes[start : start + _CHUNK] = near.argmax(axis=1)
    return codes


def _relative_distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Squared distances `[n, K]` less each point's own square, which is the same for all codes."""
    return np.square(centroids).sum(axis=1) - 2.0 * points @ centroids.T


def _num_distinct_rows(points: np.ndarray, scale: float) -> int:
    """Different rows, where differences below 1e-9 of the data's scale are none."""
    if scale == 0:
        return 1
    rounded = np.round(points / scale, 9) + 0.0  # + 0.0 turns -0 into 0.
    return len(np.unique(rounded, axis=0))
