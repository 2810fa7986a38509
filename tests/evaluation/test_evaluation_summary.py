"""The dictionary of metrics and its tables, on four users that can be followed by eye."""

import json

import numpy as np
import pytest

from gr.evaluation import (
    EvaluationError,
    evaluate_rankings,
    evaluate_with_baselines,
    format_metrics,
    format_table,
    rankings_of_beams,
    rankings_of_lists,
)

# Popularity of items 0..5; slices: 0 head, 1 and 2 torso, 3, 4 and 5 tail.
COUNTS = np.array([5, 2, 1, 1, 1, 0])
TARGETS = np.array([0, 1, 2, 4])
BEAMS = np.array(
    [
        [[0, -1], [1, 2]],  # Target 0: SID 0, item 0.
        [[0, -1], [2, 1]],  # Target 1: SID 1, item 2.
        [[3, -1], [0, -1]],  # Target 2: not found.
        [[-1, -1], [4, -1]],  # Target 4: SID 0, item 0, below an invalid beam.
    ]
)
MODEL = rankings_of_beams(BEAMS, TARGETS, depth=2)
BASELINE = rankings_of_lists(
    np.array([[0, 1, 2]] * 4), TARGETS, np.array([0, 1, 1, 2, 3, 4]), depth=2
)
SETTINGS = {"ks": (1, 2), "num_resamples": 200}
LOG3 = 1 / np.log2(3)


def test_means_over_users():
    metrics = evaluate_rankings(MODEL, COUNTS, **SETTINGS)
    expected = {
        "users": 4,
        "hit@1": 2 / 4,
        "hit@2": 3 / 4,
        "ndcg@1": 2 / 4,
        "ndcg@2": (2 + LOG3) / 4,
        "mrr@2": (1 + 1 / 2 + 0 + 1) / 4,
        "item_hit@1": 2 / 4,
        "item_hit@2": 2 / 4,
        "item_ndcg@2": 2 / 4,
        "item_mrr@2": 2 / 4,
        "coverage@1": 3 / 6,
        "coverage@2": 5 / 6,
        "candidates": 7 / 4,
        "duplicate_share": 0,
        "head/users": 1,
        "head/hit@1": 1,
        "torso/users": 2,
        "torso/hit@2": 1 / 2,
        "torso/ndcg@2": LOG3 / 2,
        "tail/users": 1,
        "tail/ndcg@1": 1,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    # Top items at 1: 0, 0, 3, 4. Counts upwards 0, 0, 0, 1, 1, 2 with weights -5 ... 5.
    assert metrics["gini@1"] == pytest.approx((1 * 1 + 3 * 1 + 5 * 2) / (6 * 4))
    # Shares (5 + 1) / 16 twice, and 2 / 16 twice.
    assert metrics["novelty@1"] == pytest.approx((2 * np.log2(16 / 6) + 2 * 3) / 4)


def test_every_mean_has_an_interval_around_it():
    metrics = evaluate_rankings(MODEL, COUNTS, **SETTINGS)
    assert len(metrics["intervals"]) == 12  # Three metrics, two levels, two ks.
    for key, (low, high) in metrics["intervals"].items():
        assert low <= metrics[key] <= high
        assert low < high


def test_baselines_and_paired_differences():
    metrics = evaluate_with_baselines(MODEL, {"popularity": BASELINE}, COUNTS, **SETTINGS)
    baseline = metrics["baselines"]["popularity"]
    alone = evaluate_rankings(BASELINE, COUNTS, **SETTINGS)
    intervals, alone_intervals = baseline.pop("intervals"), alone.pop("intervals")
    assert baseline == pytest.approx(alone)
    assert intervals["ndcg@2"] == pytest.approx(alone_intervals["ndcg@2"])
    # The list 0 1 2 hits target 0 at SID rank 0, targets 1 and 2 at 1, and misses 4.
    assert baseline["hit@2"] == 3 / 4
    assert baseline["item_hit@2"] == 2 / 4
    difference = metrics["differences"]["popularity"]
    # Users' differences in hit@1: 0, 0, 0, 1.
    assert difference["hit@1"][0] == 1 / 4
    assert difference["hit@1"][1] == 0 < difference["hit@1"][2]
    assert difference["hit@2"][0] == 0
    assert difference["hit@2"][1] < 0 < difference["hit@2"][2]


def test_the_dictionary_is_json_and_repeatable():
    first = evaluate_with_baselines(MODEL, {"popularity": BASELINE}, COUNTS, **SETTINGS)
    again = evaluate_with_baselines(MODEL, {"popularity": BASELINE}, COUNTS, **SETTINGS)
    assert json.dumps(first, allow_nan=False) == json.dumps(again, allow_nan=False)


def test_a_slice_without_users_has_no_means():
    rankings = rankings_of_beams(BEAMS[:1], TARGETS[:1], depth=2)
    metrics = evaluate_rankings(rankings, COUNTS, **SETTINGS)
    assert metrics["tail/users"] == 0
    assert "tail/hit@1" not in metrics


def test_bad_settings_are_refused():
    with pytest.raises(EvaluationError, match="depth 2"):
        evaluate_rankings(MODEL, COUNTS, ks=(1, 5))
    with pytest.raises(EvaluationError, match="no users"):
        evaluate_rankings(rankings_of_beams(BEAMS[:0], TARGETS[:0], depth=2), COUNTS, ks=(1,))
    other = rankings_of_beams(BEAMS, TARGETS[::-1], depth=2)
    with pytest.raises(EvaluationError, match="baseline chain"):
        evaluate_with_baselines(MODEL, {"chain": other}, COUNTS, **SETTINGS)


def test_format_table_aligns():
    rows = [["", "a", "long"], ["first", "1", "2"], ["x", "10", "3"]]
    assert format_table(rows).split("\n") == [
        "        a  long",
        "---------------",
        "first   1     2",
        "x      10     3",
    ]
    with pytest.raises(EvaluationError, match=r"\[1, 2\] cells"):
        format_table([["a", "b"], ["c"]])


def test_format_metrics_shows_every_ranker_and_difference():
    metrics = evaluate_with_baselines(MODEL, {"popularity": BASELINE}, COUNTS, **SETTINGS)
    lines = format_metrics(metrics, model_name="decoder", k=2).split("\n")
    assert lines[0].split()[:3] == ["Hit@2", "NDCG@2", "95%"]
    assert lines[2].split()[:3] == ["decoder", "0.7500", f"{(2 + LOG3) / 4:.4f}"]
    assert lines[3].split()[0] == "popularity"
    assert lines[7].split()[:4] == ["decoder", "-", "popularity", "+0.0000"]
    assert lines[-1].startswith("4 users")
    with pytest.raises(EvaluationError, match="ndcg@10"):
        format_metrics(metrics)
