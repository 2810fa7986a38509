"""Ranking metrics: per user, over all lists, and all metrics of a ranker as one flat dictionary.

Ranks start at 0, and a target that was not found (a negative rank) is a miss at every k. `evaluate_rankings` and
`evaluate_with_baselines` return the dictionary that a run writes and a report reads.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gr.evaluation.bootstrap import bootstrap_intervals, bootstrap_tests, holm
from gr.evaluation.popularity import SLICE_NAMES, popularity_slices
from gr.evaluation.rankings import EvaluationError, Rankings, inside_catalogue

KS = (1, 5, 10, 20)


def hit(ranks: np.ndarray, k: int) -> np.ndarray:
    """Hit@k of each user, 1 if the target is among the first k: `[n]` -> `[n]` float64."""
    return _found(ranks, k).astype(np.float64)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k with one relevant item, 1 / log2(rank + 2) within k: `[n]` -> `[n]` float64."""
    return np.where(_found(ranks, k), 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)


def mrr(ranks: np.ndarray, k: int) -> np.ndarray:
    """Reciprocal rank of each user, 1 / (rank + 1) within k: `[n]` -> `[n]` float64."""
    return np.where(_found(ranks, k), 1.0 / (np.maximum(ranks, 0) + 1.0), 0.0)


def coverage(items: np.ndarray, num_items: int) -> float:
    """Share of the catalogue of N items that occurs in at least one list `[n, k]`."""
    return float(np.count_nonzero(recommendation_counts(items, num_items)) / num_items)


def gini(items: np.ndarray, num_items: int) -> float:
    """Gini coefficient of how often each of N items is recommended in the lists `[n, k]`.

    0 if all items are recommended equally often, (N - 1) / N if all recommendations are one item.
    Items that are never recommended count. With counts x sorted upwards: sum_i (2 i - N - 1) x_i /
    (N sum x), i from 1.
    """
    counts = np.sort(recommendation_counts(items, num_items))
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float((weights * counts).sum() / (num_items * max(counts.sum(), 1)))


def novelty(items: np.ndarray, train_counts: np.ndarray) -> float:
    """Mean self-information of the recommended items, in bits.

    That is -log2 of an item's share of the training interactions.
    The share of item i is (count_i + 1) / (sum of counts + N), so that items without an interaction
    are finite (self-information as in Zhou et al., "Solving the apparent diversity-accuracy dilemma
    of recommender systems", 2010). Lists `[n, k]`, training counts `[N]`; 0 if nothing is
    recommended.
    """
    shares = (train_counts + 1) / (train_counts.sum() + len(train_counts))
    counts = recommendation_counts(items, len(train_counts))
    return float(-(counts * np.log2(shares)).sum() / max(counts.sum(), 1))


def recommendation_counts(items: np.ndarray, num_items: int) -> np.ndarray:
    """How often each item occurs in the lists `[n, k]`, without padding -> `[N]` int64."""
    return np.bincount(items[items >= 0], minlength=num_items)


def user_metrics(rankings: Rankings, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """Ranking metrics of every user: `hit@k`, ... by SID, `item_hit@k`, ... by item, each `[n]`.

    Raises:
        EvaluationError: if there are no users, or a k is beyond the depth of the rankings.
    """
    if len(rankings) == 0:
        raise EvaluationError("there are no users to evaluate: the split is empty; choose another.")
    if not ks or min(ks) < 1 or max(ks) > rankings.depth:
        raise EvaluationError(
            f"ks={tuple(ks)} cannot be read off rankings of depth {rankings.depth}: choose ks from "
            "1 to the depth, or rank deeper."
        )
    levels = (("", rankings.sid_ranks), ("item_", rankings.item_ranks))
    return {
        f"{level}{name}@{k}": metric(ranks, k)
        for level, ranks in levels
        for name, metric in (("hit", hit), ("ndcg", ndcg), ("mrr", mrr))
        for k in ks
    }


def evaluate_rankings(
    rankings: Rankings,
    train_counts: np.ndarray,
    *,
    ks: Sequence[int] = KS,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict:
    """All metrics of one ranker on one split, as a flat dictionary of JSON values.

    Args:
        rankings: where the targets of n users stand.
        train_counts: training interactions of each item, `[N]`.
        ks: cut-offs.
        num_resamples: resamples of users for the intervals.
        level: confidence level of the intervals.
        seed: seed of the resampling.

    Returns:
        A dictionary with the entries

        * `users`: number of users;
        * `targets_seen`, `targets_seen_share`: targets that are in their user's history, if the rankings know them;
        * `targets_impossible`: how many of these can never be hit, because histories were kept out of the lists;
        * `targets_outside`: targets that are none of the N items;
        * `hit@k`, `ndcg@k`, `mrr@k`: means over users, where a hit is the target's SID;
        * `item_hit@k`, ...: the same, where a hit is the target itself;
        * `coverage@k`, `gini@k`, `novelty@k`: of the top-k items;
        * `candidates`, `duplicate_share`: valid candidates per user, and the share of duplicates among them;
        * `head/users`, `head/hit@k`, `head/ndcg@k`: for the targets in this slice of the catalogue;
        * the same for `torso` and `tail`; a slice without users has only `.../users`;
        * `intervals`: maps each of the means over all users to `[low, high]`.

    Raises:
        EvaluationError: if there are no users, or a k is beyond the depth of the rankings.
    """
    per_user = user_metrics(rankings, ks)
    values = np.stack(list(per_user.values()), axis=1)
    metrics = _point_metrics(rankings, per_user, train_counts, ks)
    low, high = bootstrap_intervals(values, num_resamples=num_resamples, level=level, seed=seed)
    metrics["intervals"] = dict(zip(per_user, np.stack([low, high], axis=1).tolist(), strict=True))
    return metrics


def evaluate_with_baselines(
    model: Rankings,
    baselines: Mapping[str, Rankings],
    train_counts: np.ndarray,
    *,
    ks: Sequence[int] = KS,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict:
    """The metrics of a model, of each baseline, and the paired differences between them.

    Returns:
        The dictionary of `evaluate_rankings` for the model, with further entries: `baselines`, the same dictionary
        for each baseline by name; `differences`, which maps each baseline and each mean over users to `[model -
        baseline, low, high]`, resampled over users; `p_values`, which maps them to `[p, p adjusted]`: that of the same
        resamples (`bootstrap_tests`), and Holm's over the baselines of one metric.

    Raises:
        EvaluationError: where a baseline was not evaluated on the targets of the model, or not under its rule: with the
            items of histories kept out of the lists, or not.
    """
    for name, rankings in baselines.items():
        rules = {rankings.exclude, model.exclude} - {None}
        if len(rules) > 1:
            raise EvaluationError(
                f"exclude={rankings.exclude} for baseline {name} and {model.exclude} for the model: rank "
                "both under one rule."
            )
        if not np.array_equal(rankings.targets, model.targets):
            raise EvaluationError(
                f"baseline {name} ranks other targets than the model: evaluate both on the same split."
            )
    rankers = [model, *baselines.values()]
    per_user = [user_metrics(rankings, ks) for rankings in rankers]
    keys = list(per_user[0])
    values = [np.stack(list(of_ranker.values()), axis=1) for of_ranker in per_user]
    differences = [values[0] - of_baseline for of_baseline in values[1:]]
    # One bootstrap for all: the same resampled users for every ranker and every difference.
    low, high, p = bootstrap_tests(
        np.concatenate([*values, *differences], axis=1),
        num_resamples=num_resamples,
        level=level,
        seed=seed,
    )
    # [R, metrics, 2]: first the model and the baselines, then the differences.
    bounds = np.stack([low, high], axis=1).reshape(-1, len(keys), 2)
    # [baselines, metrics].
    p = p.reshape(-1, len(keys))[len(rankers) :]
    p_values = np.stack([p, holm(p)], axis=2)
    evaluated = [
        _point_metrics(r, p, train_counts, ks) for r, p in zip(rankers, per_user, strict=True)
    ]
    for metrics, of_ranker in zip(evaluated, bounds, strict=False):
        metrics["intervals"] = dict(zip(keys, of_ranker.tolist(), strict=True))
    compared = {}
    for name, difference, of_difference in zip(
        baselines, differences, bounds[len(rankers) :], strict=True
    ):
        rows = np.column_stack([difference.mean(axis=0), of_difference]).tolist()
        compared[name] = dict(zip(keys, rows, strict=True))
    return evaluated[0] | {
        "baselines": dict(zip(baselines, evaluated[1:], strict=True)),
        "differences": compared,
        "p_values": {
            name: dict(zip(keys, of_baseline.tolist(), strict=True))
            for name, of_baseline in zip(baselines, p_values, strict=True)
        },
    }


def _point_metrics(
    rankings: Rankings,
    per_user: Mapping[str, np.ndarray],
    train_counts: np.ndarray,
    ks: Sequence[int],
) -> dict:
    """The dictionary of `evaluate_rankings` without its intervals."""
    if rankings.items.max(initial=0) >= len(train_counts):
        raise EvaluationError(
            f"a list holds item {rankings.items.max()}, and train_counts are of {len(train_counts)} items: "
            "count the interactions of the items that were ranked."
        )
    outside = ~inside_catalogue(rankings.targets, len(train_counts))
    metrics = {"users": len(rankings)}
    if rankings.seen is not None:
        metrics["targets_seen"] = int(rankings.seen.sum())
        metrics["targets_seen_share"] = float(rankings.seen.mean())
        if rankings.exclude is not None:
            metrics["targets_impossible"] = metrics["targets_seen"] if rankings.exclude else 0
    metrics["targets_outside"] = int(outside.sum())
    metrics |= {key: float(values.mean()) for key, values in per_user.items()}
    for k in ks:
        items = rankings.items[:, :k]
        metrics[f"coverage@{k}"] = coverage(items, len(train_counts))
        metrics[f"gini@{k}"] = gini(items, len(train_counts))
        metrics[f"novelty@{k}"] = novelty(items, train_counts)
    listed = rankings.candidates.sum()
    metrics["candidates"] = float(rankings.candidates.mean())
    metrics["duplicate_share"] = float(rankings.duplicates.sum() / max(listed, 1))
    target_slices = popularity_slices(train_counts)[np.where(outside, 0, rankings.targets)]
    for slice_id, name in enumerate(SLICE_NAMES):
        inside = ~outside & (target_slices == slice_id)
        metrics[f"{name}/users"] = int(inside.sum())
        if inside.any():
            for key in (f"{metric}@{k}" for metric in ("hit", "ndcg") for k in ks):
                metrics[f"{name}/{key}"] = float(per_user[key][inside].mean())
    return metrics


def _found(ranks: np.ndarray, k: int) -> np.ndarray:
    return (ranks >= 0) & (ranks < k)
