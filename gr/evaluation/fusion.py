"""Fusion of ranked lists: one list a user from several, such as those of several models."""

import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from gr.data.ranked_lists import RankedLists
from gr.evaluation.rankings import EvaluationError

OWN = ("rrf", "sum", "mnz")
RRF_K = 60.0  # Of the paper.


def fuse_lists(
    lists: Sequence[RankedLists],
    method: str = "rrf",
    *,
    weights: Sequence[float] | None = None,
    k: float = RRF_K,
    params: Mapping[str, Any] = MappingProxyType({}),
) -> RankedLists:
    """One list for each user that some of the lists have.

    * `rrf`: the sum of `weight / (k + rank)` (Cormack et al., "Reciprocal rank fusion outperforms Condorcet and
      individual rank learning methods", SIGIR 2009).
    * `sum`: of `weight * score`, scores scaled to 0 to 1 within each list (CombSUM of Fox and Shaw, "Combination of
      multiple searches", TREC-2, 1994).
    * `mnz`: that sum times the number of lists that hold the item (CombMNZ).
    * `ranx:NAME`: any method of the library ranx, such as `ranx:isr` (extra `ranx`), scores scaled in the same way.

    A list that lacks an item adds nothing for it. Of an item that a list names twice its first place counts.

    Args:
        lists: two or more.
        method: one of those above.
        weights: of each, not negative; None: 1 each.
        k: of `rrf`; more makes ranks more alike.
        params: of a method of ranx.

    Returns:
        All items that some list has, best first, with their scores.

    Raises:
        EvaluationError: for fewer than two lists, an unknown method, wrong weights, scores that are missing, or a
            library that is not installed.
    """
    weights = [1.0] * len(lists) if weights is None else list(weights)
    if len(lists) < 2 or len(weights) != len(lists):
        raise EvaluationError(
            f"{len(lists)} lists and {len(weights)} weights: give two lists or more, and a weight for each"
        )
    if not (np.isfinite(weights).all() and min(weights) >= 0 and max(weights) > 0):
        raise EvaluationError(f"weights={weights}: none may be negative, and one must be above 0")
    own, _, theirs = method.partition(":")
    if (method not in OWN and not (own == "ranx" and theirs)) or not k > 0:
        raise EvaluationError(
            f"method={method!r}, k={k}: use one of {', '.join(OWN)}, ranx:NAME, and k > 0"
        )
    if method != "rrf" and any(of.scores is None for of in lists):
        raise EvaluationError(
            f"method={method!r} needs scores, and some lists have ranks only: use 'rrf'"
        )
    firsts = [_first_places(of) for of in lists]
    if theirs:
        return _by_ranx(lists, firsts, theirs, dict(params))
    users = np.concatenate([_owners(of)[first] for of, first in zip(lists, firsts, strict=True)])
    items = np.concatenate(
        [of.item_ids[of.items[first]] for of, first in zip(lists, firsts, strict=True)]
    )
    values = np.concatenate(
        [
            weight * (1 / (k + _ranks(of)) if method == "rrf" else _scaled(of))[first]
            for of, first, weight in zip(lists, firsts, weights, strict=True)
        ]
    )
    user_ids, user = np.unique(users, return_inverse=True)
    item_ids, item = np.unique(items, return_inverse=True)
    keys, places = np.unique(user.astype(np.int64) * len(item_ids) + item, return_inverse=True)
    scores = np.bincount(places, values)
    if method == "mnz":
        scores *= np.bincount(places)
    rows = {"user": user_ids[keys // len(item_ids)], "item": item_ids[keys % len(item_ids)]}
    return RankedLists.from_table(pa.table(rows | {"score": scores}), method)


def _owners(lists: RankedLists) -> np.ndarray:
    """The user id of each item, `[E]`."""
    return np.repeat(lists.users, lists.lengths)


def _ranks(lists: RankedLists) -> np.ndarray:
    """The rank of each item, from 1, `[E]`."""
    return np.arange(1, len(lists.items) + 1) - np.repeat(lists.offsets[:-1], lists.lengths)


def _scaled(lists: RankedLists) -> np.ndarray:
    """Scores from 0, the lowest of the user's list, to 1, the highest, `[E]`; 0 where all are equal."""
    starts, lengths = lists.offsets[:-1], lists.lengths
    low = np.repeat(np.minimum.reduceat(lists.scores, starts), lengths)
    high = np.repeat(np.maximum.reduceat(lists.scores, starts), lengths)
    return (lists.scores - low) / np.maximum(high - low, 1e-9)


def _first_places(lists: RankedLists) -> np.ndarray:
    """The places `[e]` at which an item stands in its list for the first time, ascending."""
    number = np.repeat(np.arange(len(lists)), lists.lengths)
    keys = number * np.int64(max(len(lists.item_ids), 1)) + lists.items
    return np.sort(np.unique(keys, return_index=True)[1])


def _by_ranx(
    lists: Sequence[RankedLists],
    firsts: Sequence[np.ndarray],
    method: str,
    params: dict[str, Any],
) -> RankedLists:
    """Fusion by ranx, whose `Run` has a dictionary of scores for each user."""
    try:
        ranx = importlib.import_module("ranx")
    except ImportError as error:
        raise EvaluationError(
            f"method='ranx:{method}' needs ranx ({error}): pip install 'gr-constrained[ranx]'"
        ) from error
    users = np.unique(np.concatenate([of.users for of in lists])).tolist()
    runs = []
    for of, first in zip(lists, firsts, strict=True):
        scores: dict[str, dict[str, float]] = {user: {} for user in users}
        rows = (_owners(of)[first], of.item_ids[of.items[first]], of.scores[first])
        for user, item, score in zip(*(column.tolist() for column in rows), strict=True):
            scores[user][item] = score
        runs.append(ranx.Run(scores))
    try:
        fused = ranx.fuse(runs, norm="min-max", method=method, params=params or None)
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise EvaluationError(f"method='ranx:{method}', params={params}: {error}") from error
    found = fused.to_dict()
    rows = [(user, item, score) for user, of in found.items() for item, score in of.items()]
    columns = dict(zip(("user", "item", "score"), zip(*rows, strict=True), strict=True))
    return RankedLists.from_table(
        pa.table({name: list(of) for name, of in columns.items()}), method
    )
