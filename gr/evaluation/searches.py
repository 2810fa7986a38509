"""Beam search, sampling and tree searches compared at equal budgets of token evaluations."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gr.decoding import PRESETS, SearchConfig
from gr.evaluation.bootstrap import bootstrap_intervals, paired_bootstrap
from gr.evaluation.decode import Decoded
from gr.evaluation.metrics import coverage, hit, ndcg
from gr.evaluation.rankings import EvaluationError, sid_ranks, top_items

_ROUNDS = 6  # VED chooses prefixes by those already evaluated, so it needs several rounds.
_KNOWN = 16  # VED returns so many times the counted candidates, to measure what else it found.


def equal_budget(search: SearchConfig, budget: int, code_length: int) -> SearchConfig:
    """The search with at most `budget` tokens a user to spend on semantic IDs of L codes.

    A beam search evaluates L - 1 tokens per beam, so it has M = budget // (L - 1) beams. Sampling draws M as well; one
    of them gives the threshold instead of a candidate. VED returns M candidates and evaluates at most a sixth of its
    budget at once.

    Args:
        search: the other settings, such as one of `PRESETS`.
        budget: tokens per user.
        code_length: L.

    Raises:
        EvaluationError: if L = 1, where no token is evaluated, or if the budget does not pay for two beams.
    """
    if code_length < 2 or budget < 2 * (code_length - 1):
        raise EvaluationError(
            f"a budget of {budget} tokens does not pay for two beams over {code_length} codes: give at least "
            "2 (L - 1), and L > 1"
        )
    beams = budget // (code_length - 1)
    return dataclasses.replace(
        search,
        budget=budget,
        width=max(1, min(search.width, budget // _ROUNDS)),
        num_candidates=beams - (search.name == "sample"),
        initial_beams=min(search.initial_beams, beams),
    )


def compare_searches(
    run: Callable[[SearchConfig], Decoded],
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
        run: a function that decodes the targets with the given search; see `decode_targets`.
        budgets: tokens per user.
        code_length: L.
        targets: the users' item rows `[n]`.
        num_items: N.
        k: cut-off.
        searches: the searches to compare, by name.

    Returns:
        A dictionary of JSON values for each search and budget:
        `decoder`, its name; `budget`; `candidates`, the number per user; the metrics of `search_metrics`;
        and, if there is a search "beam", `recall_minus_beam`: recall minus beam search's recall at the same budget,
        paired by user, with its 95% interval `low`, `high`.

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
    found: Decoded,
    targets: np.ndarray,
    num_items: int,
    *,
    candidates: int | None = None,
    k: int = 10,
    seed: int = 0,
) -> dict:
    """Accuracy, diversity and cost of the candidates that a search ranks by score.

    A hit is the target's semantic ID. A search with fewer than k candidates is evaluated at their number.

    Args:
        found: the candidates.
        targets: the users' item rows `[n]`.
        num_items: N.
        candidates: number of semantic IDs that count as candidates, best first; None: all.
        k: cut-off.
        seed: random seed of the bootstrap.

    Returns:
        `users`; `hit@k`, `ndcg@k`, `recall` (Hit among all candidates) and `known_recall` (Hit among all semantic IDs
        found), means over users, with their 95% `intervals`; `known`, mean number of semantic IDs found; `recall_at`,
        Hit among the first 8, 16, 32, ... found; `coverage@k`, share of the N items in any top k; `diversity@k`, see
        `pairwise_difference`; and `evaluations`, mean tokens per user.
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
    `[n, G]`; users with fewer than two candidates do not count. None if there are no other users.
    """
    differ = (tokens[:, :, None] != tokens[:, None, :]).mean(axis=-1)
    pairs = valid[:, :, None] & valid[:, None, :] & ~np.eye(tokens.shape[1], dtype=bool)
    counts = pairs.sum(axis=(1, 2))
    known = counts > 0
    if not known.any():
        return None
    sums = np.where(pairs, differ, 0.0).sum(axis=(1, 2))
    return float((sums[known] / counts[known]).mean())
