"""The dictionary of metrics and its tables, on four users that can be followed by eye."""

import json

import numpy as np
import pytest

from gr.evaluation import (
    EvaluationError,
    evaluate_rankings,
    evaluate_with_baselines,
    rankings_of_beams,
    rankings_of_lists,
)
from gr.reports import format_metrics, format_table, target_notes

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
    with pytest.raises(EvaluationError, match="holds item 4, and train_counts are of 3 items"):
        evaluate_rankings(MODEL, COUNTS[:3], **SETTINGS)
    with pytest.raises(EvaluationError, match="a truth value for each target"):
        ranked(True, seen=SEEN[:2])
    other = rankings_of_beams(BEAMS, TARGETS[::-1], depth=2)
    with pytest.raises(EvaluationError, match="baseline chain"):
        evaluate_with_baselines(MODEL, {"chain": other}, COUNTS, **SETTINGS)


SEEN = np.array([True, False, True, False])


def ranked(exclude, *, targets=TARGETS, seen=SEEN):
    return rankings_of_beams(BEAMS, targets, depth=2, seen=seen, exclude=exclude)


def test_targets_that_are_in_the_history_are_counted():
    for exclude, impossible in ((True, 2), (False, 0)):
        metrics = evaluate_rankings(ranked(exclude), COUNTS, **SETTINGS)
        assert (metrics["targets_seen"], metrics["targets_seen_share"]) == (2, 0.5)
        assert metrics["targets_impossible"] == impossible
    assert "targets_impossible" not in evaluate_rankings(ranked(None), COUNTS, **SETTINGS)
    assert "targets_seen" not in evaluate_rankings(MODEL, COUNTS, **SETTINGS)  # Not told.


def test_targets_outside_the_catalogue_are_counted_and_in_no_slice():
    targets = np.array([0, 6, -1, 4])
    metrics = evaluate_rankings(ranked(None, targets=targets), COUNTS, **SETTINGS)
    assert metrics["targets_outside"] == 2
    assert metrics["hit@2"] == 2 / 4
    assert [metrics[f"{part}/users"] for part in ("head", "torso", "tail")] == [1, 0, 1]
    (note,) = target_notes({"users": 4, "targets_outside": 2})
    assert "2 of 4 targets are no item of the catalogue" in note
    assert evaluate_rankings(MODEL, COUNTS, **SETTINGS)["targets_outside"] == 0


def test_rows_of_two_rules_are_not_compared():
    for one, other in ((True, False), (False, True)):
        with pytest.raises(EvaluationError, match="both under one rule"):
            evaluate_with_baselines(ranked(one), {"chain": ranked(other)}, COUNTS, **SETTINGS)
    evaluate_with_baselines(ranked(True), {"chain": ranked(True)}, COUNTS, **SETTINGS)


def test_notes_tell_what_can_never_be_hit_and_what_allows_it():
    removed = {"users": 4, "targets_seen": 1, "targets_impossible": 1}
    allowed = removed | {"targets_impossible": 0}
    assert target_notes({"users": 4}) == target_notes({"users": 4, "targets_seen": 0}) == []
    assert target_notes(removed | {"variants": {"all": allowed}}) == [
        "Warning: 1 of 4 targets (25.0%) are in the user's history and can never be hit while seen items are "
        "removed; --exclude_seen=false allows them."
    ]
    assert target_notes(allowed | {"variants": {"seen items removed": removed}}) == [
        "1 of 4 targets (25.0%) are in the user's history. With seen items removed they can never be hit."
    ]


def test_every_rule_has_a_table_of_model_and_baselines():
    by_rule = {
        exclude: evaluate_with_baselines(
            ranked(exclude), {"chain": ranked(exclude)}, COUNTS, **SETTINGS
        )
        for exclude in (True, False)
    }
    metrics = by_rule[True] | {"rule": "removed", "variants": {"allowed": by_rule[False]}}
    text = format_metrics(metrics, model_name="decoder", k=2)
    main, differences, other, note, users = text.split("\n\n")
    assert [block.split("\n")[0].split()[0] for block in (main, differences, other)] == [
        *("removed", "removed", "allowed")
    ]
    for block in (main, other):
        assert [line.split()[0] for line in block.split("\n")[2:]] == ["decoder", "chain"]
    assert "2 of 4 targets" in note and users.startswith("4 users")


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
    baselines = {"popularity": BASELINE, "chain": MODEL}
    metrics = evaluate_with_baselines(MODEL, baselines, COUNTS, **SETTINGS)
    lines = format_metrics(metrics, model_name="decoder", k=2).split("\n")
    assert lines[0].split()[:3] == ["Hit@2", "NDCG@2", "95%"]
    assert lines[2].split()[:3] == ["decoder", "0.7500", f"{(2 + LOG3) / 4:.4f}"]
    assert [lines[row].split()[0] for row in (3, 4)] == ["chain", "popularity"]  # The best first.
    assert lines[8].split()[:4] == ["decoder", "-", "chain", "+0.0000"]
    assert lines[9].split()[:4] == ["decoder", "-", "popularity", "+0.0000"]
    assert lines[-1].startswith("4 users")
    with pytest.raises(EvaluationError, match="ndcg@10"):
        format_metrics(metrics)
