"""Calibration of a value head: its values of prefixes against the Monte-Carlo returns below them, by depth."""

import dataclasses

import numpy as np

from gr.evaluation.rankings import EvaluationError


@dataclasses.dataclass(frozen=True)
class ValueCalibration:
    """Values of prefixes against the Monte-Carlo returns below them, by depth.

    Letters: S depths, of which the first is `first_depth`; Q bins with equal numbers of prefixes, from the lowest
    values to the highest. Undefined numbers are NaN.
    """

    first_depth: int
    counts: np.ndarray  # [S] prefixes.
    correlation: np.ndarray  # [S] Spearman's rank correlation, over the prefixes of all users.
    within_users: np.ndarray  # [S] its mean over users, computed for each alone, as in a search.
    users: (
        np.ndarray
    )  # [S] users in that mean: those with two or more different values and returns.
    bin_values: np.ndarray  # [S, Q] mean value.
    bin_returns: np.ndarray  # [S, Q] mean return.
    bin_errors: np.ndarray  # [S, Q] standard error of the mean return.

    def to_dict(self) -> dict[str, float | None]:
        """Correlations and numbers of prefixes as JSON values, `spearman/2`, `spearman_within/2`, `prefixes/2`, .."""
        flat = {}
        for place in range(len(self.counts)):
            depth = self.first_depth + place
            flat[f"spearman/{depth}"] = _json_number(self.correlation[place])
            flat[f"spearman_within/{depth}"] = _json_number(self.within_users[place])
            flat[f"prefixes/{depth}"] = int(self.counts[place])
        return flat


def value_calibration(
    values: np.ndarray,
    returns: np.ndarray,
    counted: np.ndarray,
    *,
    num_bins: int = 10,
    first_depth: int = 1,
) -> ValueCalibration:
    """Compares values with returns.

    Args:
        values: V of the candidates' prefixes `[B, G, S]`.
        returns: Monte-Carlo returns below them `[B, G, S]`: `prefix_means` of `monte_carlo_returns`.
        counted: `[B, G, S]` bool, the prefixes that count, from `distinct_prefixes`; others are ignored.
        num_bins: Q; at a depth with fewer prefixes some bins are empty.
        first_depth: depth of the first of the S places; 0 if the root is among them.

    Raises:
        EvaluationError: for shapes that do not match, or numbers that are not finite.
    """
    values, returns = np.asarray(values, np.float64), np.asarray(returns, np.float64)
    counted = np.asarray(counted, bool)
    if values.ndim != 3 or not values.shape == returns.shape == counted.shape or num_bins < 1:
        raise EvaluationError(
            f"values {values.shape}, returns {returns.shape} and counted {counted.shape} must "
            f"all be [B, G, S], num_bins={num_bins} at least 1."
        )
    if not (np.isfinite(values[counted]).all() and np.isfinite(returns[counted]).all()):
        raise EvaluationError("values or returns are not finite: leave such prefixes uncounted.")
    depths = [
        _of_depth(values[..., t], returns[..., t], counted[..., t], num_bins)
        for t in range(values.shape[-1])
    ]
    return ValueCalibration(
        first_depth, *(np.array(column) for column in zip(*depths, strict=True))
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of `a, b [n]`, equal values sharing their mean rank; NaN if either is constant."""
    from scipy.stats import rankdata

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _of_depth(values: np.ndarray, returns: np.ndarray, counted: np.ndarray, num_bins: int) -> tuple:
    """The fields of `ValueCalibration` at one depth, from arrays `[B, G]`."""
    pooled_values, pooled_returns = values[counted], returns[counted]
    by_user = np.array(
        [rank_correlation(v[c], r[c]) for v, r, c in zip(values, returns, counted, strict=True)]
    )
    by_user = by_user[~np.isnan(by_user)]
    order = np.argsort(pooled_values, kind="stable")
    bins = np.array_split(order, num_bins)
    return (
        counted.sum(),
        rank_correlation(pooled_values, pooled_returns),
        _mean(by_user),
        len(by_user),
        [_mean(pooled_values[members]) for members in bins],
        [_mean(pooled_returns[members]) for members in bins],
        [_standard_error(pooled_returns[members]) for members in bins],
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _standard_error(values: np.ndarray) -> float:
    if len(values) < 2:
        return float("nan")
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _json_number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
