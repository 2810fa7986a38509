"""Metrics of targets that training never saw, apart from those of the others."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr.evaluation.bootstrap import bootstrap_intervals
from gr.evaluation.metrics import hit, ndcg
from gr.evaluation.rankings import EvaluationError, Rankings

KS = (1, 5, 10, 20)


def select_rankings(rankings: Rankings, rows: np.ndarray) -> Rankings:
    """The rankings of some of the targets, by row or as a mask `[n]`."""
    picked = {
        field.name: value[rows]
        for field in dataclasses.fields(rankings)
        if isinstance(value := getattr(rankings, field.name), np.ndarray)
    }
    return dataclasses.replace(rankings, **picked)


def recall_table(
    rankings: Mapping[str, Rankings],
    *,
    ks: Sequence[int] = KS,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Recall@k and NDCG@k of several rankers on the same targets, at item level.

    A user has one target, so that Recall@k is the share of targets among the first k items.

    Args:
        rankings: ranker -> its rankings; the first is what the others are compared with.
        ks: cut-offs.
        num_resamples: resamples of users for the intervals.
        level: confidence level of the intervals.
        seed: of the resampling.

    Returns:
        Ranker -> `users`, `recall@k`, `ndcg@k`, `intervals` (metric -> `[low, high]`) and, but for the first ranker,
        `first_minus_this` (metric -> `[difference, low, high]`, paired by user).

    Raises:
        EvaluationError: without targets, for other targets of a ranker, or a k beyond the depth.
    """
    rankers = list(rankings.values())
    first = rankers[0]
    for name, ranker in rankings.items():
        if len(ranker) == 0 or not np.array_equal(ranker.targets, first.targets):
            raise EvaluationError(
                f"{name} ranks {len(ranker)} targets, the first ranker {len(first)}: rank the same ones, at least one."
            )
        if max(ks) > ranker.depth:
            raise EvaluationError(
                f"k={max(ks)} is beyond the depth {ranker.depth} of {name}: rank deeper."
            )
    metrics = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in ks]
    values = np.stack(
        [np.column_stack([of(r.item_ranks, k) for of in (hit, ndcg) for k in ks]) for r in rankers]
    )  # [R, n, metrics].
    both = np.concatenate([*values, *(values[0] - values[1:])], axis=1)
    low, high = bootstrap_intervals(both, num_resamples=num_resamples, level=level, seed=seed)
    bounds = np.stack([low, high], axis=1).reshape(-1, len(metrics), 2)
    table: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(rankings):
        means = values[place].mean(axis=0)
        table[name] = {"users": len(first), **dict(zip(metrics, means.tolist(), strict=True))}
        table[name]["intervals"] = dict(zip(metrics, bounds[place].tolist(), strict=True))
        if place:
            of_difference = bounds[len(rankers) + place - 1]
            difference = (values[0] - values[place]).mean(axis=0)
            rows = np.column_stack([difference, of_difference]).tolist()
            table[name]["first_minus_this"] = dict(zip(metrics, rows, strict=True))
    return table


def random_recall(sizes: np.ndarray, *, ks: Sequence[int] = KS) -> dict[str, float]:
    """Expected Recall@k and NDCG@k of lists in random order.

    Args:
        sizes: `[n]`: how many items each target is drawn among, itself included; 0 if it cannot be listed.
        ks: cut-offs.
    """
    gains = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(max(ks)) + 2.0))])
    values: dict[str, float] = {}
    share = np.where(sizes > 0, 1.0 / np.maximum(sizes, 1), 0.0)
    for name, of in (("recall", lambda k: k), ("ndcg", lambda k: gains[k])):
        for k in ks:
            values[f"{name}@{k}"] = float((of(np.minimum(k, sizes)) * share).mean())
    return values
