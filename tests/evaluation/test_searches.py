"""Searches at equal budgets: the budgets, the numbers recomputed slowly, and the batches."""

import itertools
import math

import jax
import numpy as np
import pytest
import test_decode as small

from gr.decoding import PRESETS, SearchConfig
from gr.evaluation import (
    Decoded,
    EvaluationError,
    compare_searches,
    equal_budget,
    search_metrics,
)
from gr.reports import format_searches, searches_plot

pytestmark = pytest.mark.usefixtures("compile_in_haste")


def test_all_searches_of_a_budget_pay_for_as_many_beams():
    at = {name: equal_budget(config, 25, 4) for name, config in PRESETS.items()}
    counts = {name: config.num_candidates for name, config in at.items()}
    assert counts == {"beam": 8, "sample": 7, "ved": 8, "best_first": 8}
    assert (at["ved"].budget, at["ved"].initial_beams) == (25, 8)
    assert (at["best_first"].budget, at["best_first"].initial_beams) == (25, 0)
    guided = equal_budget(SearchConfig(exploration=0.5, width=2), 12, 3)
    assert (guided.exploration, guided.width, guided.initial_beams) == (0.5, 2, 6)
    assert [equal_budget(SearchConfig(width=8), budget, 3).width for budget in (5, 24, 90)] == [
        1,
        4,
        8,
    ]


@pytest.mark.parametrize(("budget", "length"), [(5, 4), (10, 1)])
def test_too_little_to_spend_is_refused(budget, length):
    with pytest.raises(EvaluationError, match="two beams"):
        equal_budget(PRESETS["beam"], budget, length)


def random_found(seed, users=6, count=5, length=3, shared=2, num_items=30):
    """Candidates without meaning, of which some are missing and some hold two items."""
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(num_items)[: count * shared] for _ in range(users)])
    items = items.reshape(users, count, shared)
    items[..., 1] = np.where(rng.random((users, count)) < 0.5, items[..., 1], -1)
    left = rng.integers(0, count + 1, users)
    left[:2] = 0, 1  # Users with no pair.
    missing = np.arange(count) >= left[:, None]
    items[missing] = -1
    scores = np.sort(rng.normal(size=(users, count)))[:, ::-1]
    found = Decoded(
        items=items,
        tokens=rng.integers(0, 3, (users, count, length)),
        scores=np.where(missing, -np.inf, scores),
        evaluations=rng.integers(5, 9, users),
    )
    targets = np.array([rng.choice(row[row >= 0]) if (row >= 0).any() else 0 for row in items])
    targets[-1] = next(item for item in range(num_items) if item not in items[-1])
    return found, targets


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [2, 10])
def test_metrics_are_those_of_a_slow_recomputation(seed, k):
    found, targets = random_found(seed)
    hits, gains, recalls, listed, differences = [], [], [], set(), []
    for items, tokens, scores, target in zip(
        found.items, found.tokens, found.scores, targets, strict=True
    ):
        beams = [set(row[row >= 0].tolist()) for row in items]
        ranks = [rank for rank, beam in enumerate(beams) if target in beam]
        recalls.append(len(ranks))
        hits.append(sum(rank < k for rank in ranks))
        gains.append(sum(1 / math.log2(rank + 2) for rank in ranks if rank < k))
        listed |= set([item for row in items.tolist() for item in row if item >= 0][:k])
        top = tokens[:k][np.isfinite(scores[:k])].tolist()
        pairs = [
            sum(a != b for a, b in zip(one, other, strict=True)) / len(one)
            for one, other in itertools.combinations(top, 2)
        ]
        if pairs:
            differences.append(sum(pairs) / len(pairs))
    metrics = search_metrics(found, targets, 30, k=k)
    assert metrics["known_recall"] == metrics["recall"]
    assert metrics["known"] == pytest.approx(np.isfinite(found.scores).sum() / len(targets))
    expected = {
        f"hit@{k}": np.mean(hits),
        f"ndcg@{k}": np.mean(gains),
        "recall": np.mean(recalls),
        f"coverage@{k}": len(listed) / 30,
        f"diversity@{k}": np.mean(differences) if differences else None,
        "evaluations": np.mean(found.evaluations),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value), name
    for name, (low, high) in metrics["intervals"].items():
        assert low <= metrics[name] <= high


def test_what_is_known_beyond_the_candidates_counts_apart():
    found, targets = random_found(0)
    few = Decoded(
        *(getattr(found, field)[:, :1] for field in ("items", "tokens", "scores")),
        found.evaluations,
    )
    alone, among = (search_metrics(x, targets, 30, candidates=1) for x in (few, found))
    known = search_metrics(found, targets, 30)
    assert among["known_recall"] == known["recall"] > among["recall"]
    different = {"known", "known_recall", "intervals"}
    assert {k: v for k, v in alone.items() if k not in different} == {
        k: v for k, v in among.items() if k not in different
    }


def test_recall_among_the_first_few_candidates():
    found, targets = random_found(0, users=20, count=17, num_items=60)
    metrics = search_metrics(found, targets, 60, candidates=4)
    assert list(metrics["recall_at"]) == ["8", "16"]
    for count, recall in metrics["recall_at"].items():
        assert recall == search_metrics(found, targets, 60, candidates=int(count))["recall"]
    assert search_metrics(random_found(0)[0], random_found(0)[1], 30)["recall_at"] == {}


def test_no_two_candidates_have_no_diversity():
    found, targets = random_found(0)
    assert search_metrics(found, targets, 30, k=1)["diversity@1"] is None


def searched(config, buckets=(small.MAX_HISTORY,)):
    return small.decode(
        small.make_sequences(),
        small.last_items(),
        config=config,
        key=jax.random.key(0),
        buckets=buckets,
        score_targets=False,
    )


def test_decoders_are_compared_within_their_budgets():
    targets = small.make_sequences().items[small.last_items().positions]
    rows = compare_searches(
        searched, [4, 6], code_length=small.LENGTH, targets=targets, num_items=small.ITEMS, k=5
    )
    assert [(row["decoder"], row["budget"]) for row in rows] == [
        (name, budget) for name in PRESETS for budget in (4, 6)
    ]
    for row in rows:
        assert 0 < row["evaluations"] <= row["budget"]
        assert 0 <= row["ndcg@5"] <= row["hit@5"] <= row["recall"] <= row["known_recall"] <= 1
    # With all roots paid for VED has seen all that a beam search of this width has.
    by = {(row["decoder"], row["budget"]): row for row in rows}
    assert by["ved", 6]["hit@5"] == by["beam", 6]["hit@5"]
    assert "recall_minus_beam" not in by["beam", 6]
    less = by["sample", 4]["recall_minus_beam"]
    assert less["difference"] == pytest.approx(by["sample", 4]["recall"] - by["beam", 4]["recall"])
    assert less["low"] <= less["difference"] <= less["high"]

    table = format_searches(rows, k=5).splitlines()
    assert [line.split()[:2] for line in table[2:]] == [
        [name, str(budget)] for budget in (4, 6) for name in PRESETS
    ]
    figure = searches_plot(rows, k=5)
    assert len(figure.axes) == 6
    for axes in figure.axes:
        assert [len(c.lines[0].get_xdata()) for c in axes.containers] == [2, 2, 2, 2]
    line = figure.axes[1].containers[2].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [by["ved", b]["ndcg@5"] for b in (4, 6)])
