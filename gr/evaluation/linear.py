"""Linear item-item models in closed form: EASE and SLIST. Both solve a dense system of N items.

They take N^2 memory and N^3 time, so that they are meant for catalogues of up to `MAX_ITEMS` items.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import linalg, sparse

from gr.data.examples import Histories
from gr.data.sequences import Splits
from gr.evaluation.baselines import item_users
from gr.evaluation.metrics import ndcg
from gr.evaluation.popularity import popularity_order, training_counts
from gr.evaluation.ranker import RankedRows, Ranker, as_histories, popularity_places
from gr.evaluation.rankings import NOT_FOUND, EvaluationError
from gr.memory.counts import recent_weights, weighted_pairs

MAX_ITEMS = 5000
EASE_GRID = {"l2": (10.0, 50.0, 200.0, 1000.0)}
# Tried one at a time, from the first values on.
SLIST_GRID = {"l2": (100.0, 20.0, 500.0), "alpha": (0.2, 0.5), "decay": (0.5, 0.8, 0.9)}
_CHUNK = 2**22  # Most entries of a dense table of scores.
_NEGLIGIBLE = 1e-5  # Weights below this share of the largest are left out.


def fit_ease(splits: Splits, *, l2: float = 50.0) -> Ranker:
    """EASE: ranks items by `x B`, with x the set of the history's items.

    `B = argmin ||X - X B||^2 + l2 ||B||^2` with a diagonal of 0, for the binary training matrix X of users and items:
    `B_ij = -P_ij / P_jj` off the diagonal, `P = (X^T X + l2 I)^-1` (Steck, "Embarrassingly shallow autoencoders for
    sparse data", 2019). Items with a score above 0 are listed, equal ones by popularity; the others follow by
    popularity.

    Raises:
        EvaluationError: if `l2` is not above 0.
    """
    return _ranker(splits, ease_weights(splits, l2), recency=None)


def ease_weights(splits: Splits, l2: float) -> np.ndarray:
    """`B` of `fit_ease`, `[N, N]` float32."""
    _check(l2 > 0, f"l2={l2}: expected a number above 0.")
    inverse = _inverse(_gram(splits), l2)
    inverse /= -np.diag(inverse).copy()
    np.fill_diagonal(inverse, 0)
    return inverse


def fit_slist(
    splits: Splits, *, l2: float = 100.0, alpha: float = 0.5, decay: float = 0.5
) -> Ranker:
    """SLIST: ranks items by `x B`, with x the history's items, each weighted by `decay^(places from the end)`.

    `B = argmin alpha ||X - X B||^2 + (1 - alpha) ||T - S B||^2 + l2 ||B||^2`. X is the binary matrix of users and
    items. S and T have a row for each cut of a user's training sequence into a past and a future: S holds the past's
    items, weighted by `decay` to the power of their places from its end, T the future's, from its beginning (Choe et
    al., "Session-aware linear item-item models for session-based recommendation", 2021, the joint model without the
    constraint on the diagonal and without weights by the age of a session). An item that comes twice counts twice.

    In closed form `B = (alpha X^T X + (1 - alpha) S^T S + l2 I)^-1 (alpha X^T X + (1 - alpha) S^T T)`, where the
    entries of `S^T S` and `S^T T` are sums over pairs of items of a user. Items are listed as by `fit_ease`.

    Raises:
        EvaluationError: for an argument out of range.
    """
    return _ranker(splits, slist_weights(splits, l2, alpha, decay), recency=decay)


def slist_weights(splits: Splits, l2: float, alpha: float, decay: float) -> np.ndarray:
    """`B` of `fit_slist`, `[N, N]` float32."""
    _check(
        l2 > 0 and 0 <= alpha <= 1 and 0 < decay < 1,
        f"l2={l2}, alpha={alpha}, decay={decay}: expected l2 above 0, alpha from 0 to 1, decay above 0 and below 1.",
    )
    most = int(splits.sequences.lengths.max(initial=1))
    distances = [d for d in range(1, most) if d * decay ** (d - 1) >= _NEGLIGIBLE]

    def past_past(distance: int, after: np.ndarray) -> np.ndarray:
        # The cuts after the pair's second item: decay^distance + decay^(distance + 2) + ...
        return decay**distance * (1 - decay ** (2 * after)) / (1 - decay**2)

    # A pair at distance d is cut in d places, each with the weight decay^(d - 1).
    past_future = weighted_pairs(splits, distances, lambda d, after: d * decay ** (d - 1))
    both = weighted_pairs(splits, distances, past_past)
    itself = weighted_pairs(splits, range(1), past_past)
    whole = _gram(splits)
    regression = (alpha * whole + (1 - alpha) * past_future).toarray().astype(np.float32)
    gram = alpha * whole + (1 - alpha) * (both + both.T + itself)
    return linalg.cho_solve(_factor(gram, l2), regression, overwrite_b=True, check_finite=False)


def tune_linear(
    splits: Splits,
    histories: Histories | np.ndarray,
    targets: np.ndarray,
    *,
    rules: Sequence[bool],
    max_users: int = 2000,
) -> dict[bool, dict[str, dict[str, float]]]:
    """The settings of EASE and SLIST with the best item-level NDCG@10 on validation data, for each rule.

    Args:
        splits: the data.
        histories: of the validation targets, as for `Ranker.rank`.
        targets: item rows `[n]`.
        rules: whether the items of a history are kept out of its list; one fit serves all of them.
        max_users: if there are more targets, this many evenly spaced ones are used.

    Returns:
        Rule -> "ease" or "slist" -> settings, of the grids `EASE_GRID` and `SLIST_GRID`; the latter is gone through one
        setting at a time.
    """
    _check(
        len(targets) > 0,
        "linear models cannot be tuned without users: the validation split is empty.",
    )
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(max_users, len(targets))).astype(int))
    histories, targets = as_histories(histories)[chosen], np.asarray(targets)[chosen]
    past_and_target = (histories, targets)
    ease = _tuned(EASE_GRID, lambda s: (ease_weights(splits, **s), None), *past_and_target, rules)
    slist = _tuned(
        SLIST_GRID, lambda s: (slist_weights(splits, **s), s["decay"]), *past_and_target, rules
    )
    return {rule: {"ease": ease[rule], "slist": slist[rule]} for rule in rules}


def _tuned(
    grid: Mapping[str, Sequence[float]],
    fit: Callable[[dict[str, float]], tuple[np.ndarray, float | None]],
    histories: Histories,
    targets: np.ndarray,
    rules: Sequence[bool],
) -> dict[bool, dict[str, float]]:
    """The best settings of a grid for each rule, gone through one setting at a time."""
    tried: dict[tuple[float, ...], dict[bool, float]] = {}

    def quality(settings: dict[str, float], rule: bool) -> float:
        key = tuple(settings.values())
        if key not in tried:
            tried[key] = _qualities(*fit(settings), histories, targets, rules)
        return tried[key][rule]

    found = {}
    for rule in rules:
        best = {key: values[0] for key, values in grid.items()}
        for key, values in grid.items():
            choices = [{**best, key: value} for value in values]
            best = choices[int(np.argmax([quality(choice, rule) for choice in choices]))]
        found[rule] = best
    return found


def _qualities(
    weights: np.ndarray,
    recency: float | None,
    histories: Histories,
    targets: np.ndarray,
    rules: Sequence[bool],
) -> dict[bool, float]:
    """Rule -> mean item-level NDCG@10; only scores above 0 count, ties are hits of the lower item row."""
    values: dict[bool, list[np.ndarray]] = {rule: [] for rule in rules}
    step = max(1, _CHUNK // len(weights))
    for start in range(0, len(targets), step):
        past, wanted = histories[start : start + step], targets[start : start + step]
        scores = _inputs(past, len(weights), recency) @ weights
        rows = np.arange(len(wanted))
        held = _inputs(past, len(weights), None).nonzero()
        for rule in sorted(rules):  # Seen items are removed from the scores last.
            if rule:
                scores[held] = 0
            level = scores[rows, wanted][:, None]
            above = (scores > level) | (
                (scores == level) & (np.arange(len(weights)) < wanted[:, None])
            )
            ranks = np.where(level[:, 0] > 0, above.sum(axis=1), NOT_FOUND)
            values[rule].append(ndcg(ranks, 10))
    return {rule: float(np.concatenate(of_rule).mean()) for rule, of_rule in values.items()}


def _ranker(splits: Splits, weights: np.ndarray, *, recency: float | None) -> Ranker:
    popular = popularity_order(training_counts(splits))
    place = popularity_places(popular)

    def scored(histories: np.ndarray, width: int) -> np.ndarray:
        past, heads = Histories.of_rows(histories), [np.empty((0, width), dtype=np.int32)]
        step = max(1, _CHUNK // len(weights))
        for start in range(0, len(past), step):
            scores = _inputs(past[start : start + step], len(weights), recency) @ weights
            best = _largest(scores, width)
            row, column = np.nonzero(np.take_along_axis(scores, best, axis=1) > 0)
            item = best[row, column]
            ranked = RankedRows.of(row, item, scores[row, item], place[item], num_rows=len(scores))
            heads.append(ranked.head(np.arange(len(scores)), width))
        return np.concatenate(heads)

    return Ranker(popular=popular, scored=scored)


def _largest(scores: np.ndarray, width: int) -> np.ndarray:
    """The columns of the `width` largest scores of each row, in any order: `[n, N]` -> `[n, width]`."""
    if width >= scores.shape[1]:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.argpartition(scores, -width, axis=1)[:, -width:]


def _inputs(histories: Histories, num_items: int, recency: float | None) -> sparse.csr_array:
    """A row for each history: its set of items, or these weighted by recency, `[n, N]` float32."""
    longest = int(histories.lengths.max(initial=1))
    if recency is None:
        inputs = recent_weights(histories, num_items, 1.0, longest)
        inputs.data[:] = 1
        return inputs
    reach = min(longest, math.ceil(math.log(_NEGLIGIBLE) / math.log(recency)))
    return recent_weights(histories, num_items, recency, reach)


def _gram(splits: Splits) -> sparse.csr_array:
    """How many users have both of two items in training, `[N, N]`."""
    users = item_users(splits)
    return (users @ users.T).tocsr()


def _factor(gram: sparse.csr_array, l2: float) -> tuple[np.ndarray, bool]:
    """Cholesky factor of `gram + l2 I`."""
    dense = gram.toarray().astype(np.float32, order="F")
    dense[np.diag_indices_from(dense)] += l2
    return linalg.cho_factor(dense, lower=True, overwrite_a=True, check_finite=False)


def _inverse(gram: sparse.csr_array, l2: float) -> np.ndarray:
    """`(gram + l2 I)^-1`, `[N, N]` float32."""
    factor, _ = _factor(gram, l2)
    (invert,) = linalg.get_lapack_funcs(("potri",), (factor,))
    lower, _ = invert(factor, lower=True, overwrite_c=True)
    lower = np.tril(lower)
    return lower + np.tril(lower, -1).T


def _check(fine: bool, message: str) -> None:
    if not fine:
        raise EvaluationError(message)
