"""Residual k-means (RQ-k-means): item vectors -> L codes, coarse to fine, with frozen codebooks.

Level 0 clusters the vectors, level `l` the residuals of the levels above. The same seed gives the same codes for any
number of threads, origin and unit. To this end fitting runs on one thread and on centred and scaled numbers, and each
distance is computed from one vector and one centroid only.
"""

import dataclasses
import math
import warnings

import numpy as np

from gr.semantic_ids.item_vectors import LARGEST, check_vectors, middle_values
from gr.semantic_ids.semantic_ids import SemanticIdError

_BALANCED_ROUNDS = 10  # Lloyd rounds under the capacity constraint, from k-means' centroids.
_TIE = 1e-9  # Distances with a smaller relative difference count as equal.
_NOISE = 1e-10  # Relative to the vectors: smaller residuals are rounding.
_CHUNK = 1 << 22  # Maximum number of distances in memory.


@dataclasses.dataclass(frozen=True, eq=False)
class ResidualCodebooks:
    """The frozen codebooks of L levels.

    A level has fewer centroids than its codebook size where it has fewer distinct residuals.
    """

    centroids: tuple[np.ndarray, ...]  # L arrays [K_l, D] float64.

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Codes `[n, L]` int32 of vectors `[n, D]`, known or new: the nearest centroid each level.

        Training items get the same codes as in fitting, unless fitting was balanced: capacities apply to the training
        items only.
        """
        check_vectors(np.asarray(vectors))
        residuals = np.array(vectors, dtype=np.float64)
        if residuals.shape[1] != self.centroids[0].shape[1]:
            raise SemanticIdError(
                f"vectors have width {residuals.shape[1]}, the codebooks "
                f"{self.centroids[0].shape[1]}."
            )
        codes = np.empty((len(residuals), len(self.centroids)), dtype=np.int32)
        grain = _grain(residuals)
        for level, centroids in enumerate(self.centroids):
            codes[:, level] = _nearest(residuals, centroids, grain)
            residuals -= centroids[codes[:, level]]
        return codes


def fit_residual_kmeans(
    vectors: np.ndarray, *, num_levels: int, codebook_size: int, seed: int, balanced: bool = False
) -> tuple[ResidualCodebooks, np.ndarray]:
    """Fits codebooks to vectors `[N, D]`; returns them and the codes `[N, L]` int32.

    Args:
        vectors: one row per item.
        num_levels: L.
        codebook_size: K, the maximum number of codes of a level.
        seed: same seed, same codes.
        balanced: no code of a level gets more than `ceil(N / K)` items, see `assign_balanced`.

    Raises:
        SemanticIdError: for bad vectors or sizes.
    """
    check_vectors(np.asarray(vectors))
    residuals = np.array(vectors, dtype=np.float64)
    if num_levels < 1 or codebook_size < 1:
        raise SemanticIdError(
            f"num_levels and codebook_size must be at least 1, got {num_levels}, {codebook_size}."
        )
    if 0 < np.abs(residuals).max() < 1 / LARGEST:
        raise SemanticIdError(f"no number of the vectors is beyond {1 / LARGEST:g}; scale them.")
    grain = noise = _grain(residuals)
    origin = middle_values(residuals)
    points = residuals - origin  # Fitted points; `encode` will see `residuals`.
    all_centroids, codes = [], np.empty((len(residuals), num_levels), dtype=np.int32)
    for level in range(num_levels):
        centroids = _kmeans(points, codebook_size, noise, seed + level)
        if balanced:
            codes[:, level], centroids = _balanced_lloyd(points, centroids)
        all_centroids.append(centroids + origin)
        if not balanced:
            codes[:, level] = _nearest(residuals, all_centroids[-1], grain)
        if level == 0:
            noise = np.maximum(noise, _NOISE * np.abs(points).max(axis=1))
            origin = np.zeros_like(origin)
        points -= centroids[codes[:, level]]
        residuals -= all_centroids[-1][codes[:, level]]
    return ResidualCodebooks(tuple(all_centroids)), codes


def assign_balanced(distances: np.ndarray, capacity: int) -> np.ndarray:
    """Codes [N] of items, at most `capacity` each, from distances `[N, K]`.

    The rule is greedy: of all pairs of an item without a code and a code with room, the closest is joined, until every
    item has a code. It is computed in rounds, as Gale and Shapley's deferred acceptance: each item proposes to the
    nearest code that has not rejected it yet, and each code keeps the nearest `capacity` of its proposers. Since both
    sides rank by the same distances, the unique stable outcome is that of the rule. Ties go to the lower item row, then
    the lower code.
    """
    num_items, num_codes = distances.shape
    if capacity * num_codes < num_items:
        raise SemanticIdError(f"{num_codes} codes of {capacity} cannot hold {num_items} items.")
    preferences = np.argsort(distances, axis=1, kind="stable")
    asked = np.zeros(num_items, dtype=np.int64)  # Number of codes that rejected each item.
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
    """How well each level of codes `[N, L]` uses its codebook, one dictionary per level.

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


def _kmeans(points: np.ndarray, codebook_size: int, noise: np.ndarray, seed: int) -> np.ndarray:
    """Centroids `[K, D]` of points `[N, D]` that rounding may have moved by `noise` [N].

    K is `codebook_size`, or the number of distinct points where that is smaller.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    origin = middle_values(points)
    points = points - origin
    scale = float(np.abs(points).max()) or 1.0
    points /= scale
    # Rounded to float32 precision, points do not depend on the origin or the unit.
    rounded = points.astype(np.float32).astype(np.float64)
    size = min(codebook_size, _num_distinct_rows(rounded, 8 * float(np.median(noise)) / scale))
    # k-means++ starts well already; two runs guard against an unlucky start at twice the time.
    kmeans = KMeans(size, n_init=2, max_iter=100, random_state=seed, copy_x=True)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Points too close to each other for two centroids share one; the report counts it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        codes = kmeans.fit_predict(rounded)
    return (kmeans.cluster_centers_ + _means(points - rounded, codes, size)) * scale + origin


def _means(points: np.ndarray, codes: np.ndarray, size: int) -> np.ndarray:
    """The mean `[size, D]` of each code's points `[N, D]`, 0 for a code without any."""
    sums = np.zeros((size, points.shape[1]))
    np.add.at(sums, codes, points)
    return sums / np.maximum(np.bincount(codes, minlength=size), 1)[:, None]


def _num_distinct_rows(points: np.ndarray, noise: float) -> int:
    """The number of distinct rows; differences below `noise` are ignored."""
    if noise > 0:
        # Steps of a power of two leave numbers of few digits unchanged.
        points = np.round(points / 2.0 ** math.ceil(math.log2(noise))) + 0.0  # Turns -0 into 0.
    return len(np.unique(points, axis=0))


def _balanced_lloyd(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N] within capacity, and their centroids `[K, D]`."""
    size = len(centroids)
    capacity = math.ceil(len(points) / size)
    for _ in range(_BALANCED_ROUNDS):
        distances = _distances(points, centroids)
        # At float32 precision, distances that differ only by rounding are equal.
        distances = (distances / (distances.max() or 1.0)).astype(np.float32)
        codes = assign_balanced(distances, capacity)
        # Relative to the old centroids, which a code without items keeps.
        centroids = centroids + _means(points - centroids[codes], codes, size)
    return codes, centroids


def _nearest(points: np.ndarray, centroids: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """The nearest centroid of each point, [n]; ties go to the lowest.

    `grain` [n] is how far rounding may have moved each point.
    """
    codes = np.empty(len(points), dtype=np.int32)
    chunk = max(1, _CHUNK // len(centroids))
    for start in range(0, len(points), chunk):
        rows = slice(start, start + chunk)
        distances = _distances(points[rows], centroids)
        least = distances.min(axis=1)
        near = distances <= (least * (1 + _TIE) + grain[rows])[:, None]
        codes[rows] = near.argmax(axis=1)
    return codes


def _distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Distances `[n, K]`; each from one point and one centroid only, without cancellation."""
    from scipy.spatial.distance import cdist

    return cdist(points, centroids)


def _grain(vectors: np.ndarray) -> np.ndarray:
    """How far rounding may move each vector `[n, D]` when centroids are taken from it, [n]."""
    width = math.sqrt(vectors.shape[1])
    return 4 * np.finfo(np.float64).eps * width * np.abs(vectors).max(axis=1)
