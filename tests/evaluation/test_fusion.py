"""Fusion beside sums over dictionaries; what is refused; ranx where it is installed."""

import importlib.util

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data.ranked_lists import RankedLists
from gr.evaluation import EvaluationError
from gr.evaluation.fusion import fuse_lists

ROWS = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcde"), st.integers(-4, 4)),
    min_size=1,
    max_size=20,
)


def make_lists(rows, rank=False):
    columns = dict(zip(("user", "item", "score"), map(list, zip(*rows, strict=True)), strict=True))
    if rank:
        columns["rank"] = columns.pop("score")
    return RankedLists.from_table(pa.table(columns), "a table")


def slow_fusion(runs, method, weights, k):
    """User -> item -> score."""
    found = {}
    for rows, weight in zip(runs, weights, strict=True):
        for user in {row[0] for row in rows}:
            of_user = [(item, score) for other, item, score in rows if other == user]
            of_user.sort(key=lambda pair: (pair[1], pair[0]), reverse=True)
            low, high = of_user[-1][1], of_user[0][1]
            done = set()
            for rank, (item, score) in enumerate(of_user, start=1):
                if item in done:
                    continue
                done.add(item)
                value = 1 / (k + rank) if method == "rrf" else (score - low) / max(high - low, 1e-9)
                total, count = found.setdefault(user, {}).get(item, (0.0, 0))
                found[user][item] = (total + weight * value, count + 1)
    return {
        user: {i: total * (count if method == "mnz" else 1) for i, (total, count) in of.items()}
        for user, of in found.items()
    }


def scores_of(lists):
    found = {}
    for row, user in enumerate(lists.users.tolist()):
        part = slice(*lists.offsets[row : row + 2])
        items, scores = lists.item_ids[lists.items[part]], lists.scores[part]
        assert (scores[1:] <= scores[:-1]).all()
        found[user] = dict(zip(items.tolist(), scores.tolist(), strict=True))
    return found


@settings(max_examples=80, deadline=None)
@given(
    st.lists(ROWS, min_size=2, max_size=3),
    st.sampled_from(["rrf", "sum", "mnz"]),
    st.sampled_from([1.0, 60.0]),
)
def test_fused_scores_are_those_of_sums(runs, method, k):
    weights = [1.0, 0.5, 2.0][: len(runs)]
    fused = fuse_lists([make_lists(rows) for rows in runs], method, weights=weights, k=k)
    expected = slow_fusion(runs, method, weights, k)
    found = scores_of(fused)
    assert found.keys() == expected.keys()
    for user, of in expected.items():
        assert found[user] == pytest.approx(of, abs=1e-12)


def test_what_cannot_be_fused_is_told():
    lists = make_lists([("u", "a", 1)])
    for several, options, told in [
        ([lists], {}, "1 lists and 1 weights: give two lists or more"),
        ([lists] * 2, {"weights": [1.0]}, "2 lists and 1 weights: give two"),
        ([lists] * 2, {"weights": [1.0, -1.0]}, r"weights=\[1.0, -1.0\]: none may be negative"),
        ([lists] * 2, {"weights": [0.0, 0.0]}, "one must be above 0"),
        ([lists] * 2, {"method": "rff"}, "method='rff', k=60.0: use one of rrf, sum, mnz, ranx:"),
        ([lists] * 2, {"k": 0.0}, "and k > 0"),
        ([lists, make_lists([("u", "a", 1)], rank=True)], {"method": "sum"}, "have ranks only"),
    ]:
        with pytest.raises(EvaluationError, match=told):
            fuse_lists(several, **options)


RUNS = [[("u", "a", 3.0), ("u", "b", 1.0), ("v", "c", 2.0)], [("u", "b", 0.9), ("u", "c", 0.1)]]


@pytest.mark.skipif(importlib.util.find_spec("ranx") is None, reason="ranx is not installed")
@pytest.mark.parametrize("method", ["rrf", "sum", "mnz"])
def test_ranx_gives_the_same(method):
    runs = [make_lists(rows) for rows in RUNS]
    found, theirs = fuse_lists(runs, method), fuse_lists(runs, f"ranx:{method}")
    for user, of in scores_of(found).items():
        assert scores_of(theirs)[user] == pytest.approx(of, abs=1e-9)
    with pytest.raises(EvaluationError, match="method='ranx:nothing'"):
        fuse_lists(runs, "ranx:nothing")


def test_without_ranx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ranx", None)
    with pytest.raises(EvaluationError, match=r"needs ranx .*gr-constrained\[ranx\]"):
        fuse_lists([make_lists(rows) for rows in RUNS], "ranx:isr")
