"""Confidence intervals and p-values by resampling users, and the correction of several p-values.

Percentile intervals: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. The p-value of a
difference is of the same resamples, so that it is below 1 - level where the interval at that level excludes 0.
"""

from typing import NamedTuple

import numpy as np

from gr.evaluation.rankings import EvaluationError

_CHUNK = 2**22  # Maximum number of drawn users in memory: 32 MiB of indices.


class PairedDifference(NamedTuple):
    """Mean over users of `a - b`, with the bounds of its confidence interval."""

    difference: float
    low: float
    high: float


def bootstrap_interval(
    values: np.ndarray, *, num_resamples: int = 2000, level: float = 0.95, seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean of `values [n]` over users -> (low, high)."""
    low, high = bootstrap_intervals(
        np.asarray(values)[:, None], num_resamples=num_resamples, level=level, seed=seed
    )
    return float(low[0]), float(high[0])


def bootstrap_intervals(
    values: np.ndarray, *, num_resamples: int = 2000, level: float = 0.95, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of the means of m metrics `[n, m]` -> low `[m]`, high `[m]`.

    All metrics are averaged over the same resampled users.

    Raises:
        EvaluationError: for values that are empty or not finite, and for a level outside (0, 1).
    """
    means = _means_of_resamples(values, num_resamples, level, seed)
    return _percentiles(means, level)


def bootstrap_tests(
    values: np.ndarray, *, num_resamples: int = 2000, level: float = 0.95, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `bootstrap_intervals`, with the two-sided p-values of "the mean is 0": low, high, p, `[m]` each.

    p is twice the smaller share of resamples whose mean is at most 0, or at least 0, with one more resample that counts
    for both (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, chapter 4); 1 at most. So it cannot
    be less than `2 / (num_resamples + 1)`.
    """
    means = _means_of_resamples(values, num_resamples, level, seed)
    below, above = (means <= 0).sum(axis=0), (means >= 0).sum(axis=0)
    p = 2 * (1 + np.minimum(below, above)) / (num_resamples + 1)
    return (*_percentiles(means, level), np.minimum(p, 1.0))


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusts m p-values of one family for their number: `[m, ...]` -> `[m, ...]`, along the first axis.

    Rejecting where the adjusted p is below a level keeps the chance of any wrong rejection in the family below that
    level (Holm, "A simple sequentially rejective multiple test procedure", 1979): sorted upwards, the j-th p times
    `m - j` (j from 0), at most 1, and no less than those before it.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=0, kind="stable")
    left = (len(p) - np.arange(len(p))).reshape(-1, *[1] * (p.ndim - 1))
    ordered = np.maximum.accumulate(np.take_along_axis(p, order, axis=0) * left, axis=0)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(ordered, 1.0), axis=0)
    return adjusted


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, *, num_resamples: int = 2000, level: float = 0.95, seed: int
) -> PairedDifference:
    """The mean of `a - b` with its percentile interval; `[n]` each, of the same users in order."""
    if np.shape(a) != np.shape(b):
        raise EvaluationError(
            f"arrays of shapes {np.shape(a)} and {np.shape(b)} cannot be paired: evaluate both on "
            "the same users."
        )
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    low, high = bootstrap_interval(difference, num_resamples=num_resamples, level=level, seed=seed)
    return PairedDifference(float(difference.mean()), low, high)


def _percentiles(means: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def _means_of_resamples(
    values: np.ndarray, num_resamples: int, level: float, seed: int
) -> np.ndarray:
    """The means of m metrics over resampled users, `[num_resamples, m]`; refuses what has no interval."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) == 0 or not np.isfinite(values).all():
        raise EvaluationError(
            f"values of shape {values.shape} have no interval: expected finite numbers, and at "
            "least one user."
        )
    if not 0 < level < 1 or num_resamples < 1:
        raise EvaluationError(
            f"level={level}, num_resamples={num_resamples}: expected 0 < level < 1 and one resample "
            "or more."
        )
    rng = np.random.default_rng(seed)
    num_users = len(values)
    chunk = max(1, _CHUNK // num_users)
    return np.concatenate(
        [
            _resampled_means(values, min(chunk, num_resamples - start), rng)
            for start in range(0, num_resamples, chunk)
        ]
    )


def _resampled_means(
    values: np.ndarray, num_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means `[r, m]` of r resamples of the n users, drawn with replacement."""
    num_users = len(values)
    drawn = rng.integers(num_users, size=(num_resamples, num_users), dtype=np.int32)
    # A user drawn c times weighs c / n: counts once, then one matrix product for all metrics.
    drawn += num_users * np.arange(num_resamples, dtype=np.int32)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_users)
    return counts.reshape(num_resamples, num_users).astype(np.float64) @ values / num_users
