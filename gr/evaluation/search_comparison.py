"""Beam search, sampling and tree searches compared at equal budgets of token evaluations."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gr.decoding import PRESETS, SearchConfig
from gr.evaluation.bootstrap import bootstrap_intervals, paired_bootstrap
from gr.evaluation.metrics import coverage, hit, ndcg
from gr.evaluation.rankings import sid_ranks, top_items
from gr.evaluation.searches import Searched, equal_budget

_KNOWN = 16  # So many times its candidates are asked of a tree search, to see what it knows besides them.


def compare_searches(
    run: Callable[[SearchConfig], Searched],
    budgets: Sequence[int],
    *,
    code_length: int,
    targets: np.ndarray,
    num_items: int,
    k: int = 10,
    searches: Mapping[str, SearchConfig] = PRESETS,
) -> list[dict]:
    """The metrics of every search at every budget.

    Args:
        run: searches the same users as configured; see `search_targets`.
        budgets: in tokens a user.
        code_length: L.
        targets: the users' item rows `[n]`.
        num_items: N.
        k: cut-off.
        searches: what to compare, by name.

    Returns:
        A dictionary of JSON values for each search and budget: `decoder`, its name; `budget`; `candidates`, the most of
        a user; those of `search_metrics`; and, if there is a search "beam", `recall_minus_beam`, the difference to its
        recall at the same budget, paired by user, with its 95% interval `low`, `high`.

    Raises:
        EvaluationError: see `equal_budget`; before anything is searched.
    """
    configs = [
        (name, equal_budget(config, budget, code_length))
        for name, config in searches.items()
        for budget in budgets
    ]
    rows, found_by = [], {}
    for name, config in configs:
        count = config.num_candidates
        if config.is_tree_search:
            config = dataclasses.replace(config, num_candidates=_KNOWN * count)
        found = run(config)
        found_by[name, config.budget] = hit(sid_ranks(found.items, targets), count)
        row = {"decoder": name, "budget": config.budget, "candidates": count}
        rows.append(row | search_metrics(found, targets, num_items, k=k, candidates=count))
    for row in rows:
        name, budget = row["decoder"], row["budget"]
        if ("beam", budget) in found_by and name != "beam":
            pair = found_by[name, budget], found_by["beam", budget]
            row["recall_minus_beam"] = paired_bootstrap(*pair, seed=0)._asdict()
    return rows


def search_metrics(
    found: Searched,
    targets: np.ndarray,
    num_items: int,
    *,
    candidates: int | None = None,
    k: int = 10,
    seed: int = 0,
) -> dict:
    """Accuracy, diversity and cost of the candidates that a search ranks by score.

    A hit is the target's semantic ID. A search with fewer than k candidates is scored by those that it has.

    Args:
        found: what was found.
        targets: the users' item rows `[n]`.
        num_items: N.
        candidates: how many of what was found count as candidates; None: all.
        k: cut-off.
        seed: of the bootstrap.

    Returns:
        `users`; `hit@k`, `ndcg@k`, `recall` (Hit among all candidates) and `known_recall` (among all that was found),
        means over users, with their 95% `intervals`; `known`, mean number of semantic IDs found; `recall_at`, Hit among
        the first 8, 16, 32, ... found; `coverage@k`, share of the N items in any top k; `diversity@k`, see
        `pairwise_difference`; and `evaluations`, mean tokens a user.
    """
    ranks = sid_ranks(found.items, targets)
    count = found.items.shape[1] if candidates is None else candidates
    top = min(k, count)
    per_user = {
        f"hit@{k}": hit(ranks, top),
        f"ndcg@{k}": ndcg(ranks, top),
        "recall": hit(ranks, count),
        "known_recall": hit(ranks, found.items.shape[1]),
    }
    low, high = bootstrap_intervals(np.stack(list(per_user.values()), axis=1), seed=seed)
    valid = found.scores > -np.inf
    return {
        "users": len(targets),
        **{name: float(values.mean()) for name, values in per_user.items()},
        "known": float(valid.sum(axis=1).mean()),
        "recall_at": {
            str(8 * 2**i): float(hit(ranks, 8 * 2**i).mean())
            for i in range((found.items.shape[1] // 8).bit_length())
        },
        f"coverage@{k}": coverage(top_items(found.items[:, :count], k), num_items),
        f"diversity@{k}": pairwise_difference(found.tokens[:, :top], valid[:, :top]),
        "evaluations": float(found.evaluations.mean()),
        "intervals": dict(zip(per_user, np.stack([low, high], axis=1).tolist(), strict=True)),
    }


def pairwise_difference(tokens: np.ndarray, valid: np.ndarray) -> float | None:
    """Share of codes in which two candidates of a user differ: mean over pairs, then over users.

    Unlike the number of distinct codes it does not grow with the number of candidates. Tokens `[n, G, L]`, valid
    `[n, G]`; users with fewer than two candidates do not count, and if there are no others it is None.
    """
    differ = (tokens[:, :, None] != tokens[:, None, :]).mean(axis=-1)
    pairs = valid[:, :, None] & valid[:, None, :] & ~np.eye(tokens.shape[1], dtype=bool)
    counts = pairs.sum(axis=(1, 2))
    known = counts > 0
    if not known.any():
        return None
    sums = np.where(pairs, differ, 0.0).sum(axis=(1, 2))
    return float((sums[known] / counts[known]).mean())
