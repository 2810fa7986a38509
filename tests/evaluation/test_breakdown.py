"""The classes of targets beside loops over pairs, and metrics within them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data import Sequences, leave_one_out, training_interactions
from gr.evaluation import (
    EvaluationError,
    breakdown_by_class,
    popularity_slices,
    rankings_of_beams,
    target_classes,
)
from gr.evaluation.breakdown import PATHS
from gr.evaluation.popularity import SLICE_NAMES

N = 9
ROWS = st.lists(st.lists(st.integers(0, N - 1), min_size=2, max_size=9), min_size=1, max_size=6)


def splits_of(rows):
    return leave_one_out(
        Sequences(
            items=np.array([item for row in rows for item in row], dtype=np.int32),
            offsets=np.cumsum([0] + [len(row) for row in rows]),
            user_ids=np.arange(len(rows)).astype(str),
            item_ids=np.arange(N).astype(str),
        )
    )


def training_rows(splits):
    learnt, sequences = training_interactions(splits), splits.sequences
    parts = np.split(np.arange(len(learnt)), sequences.offsets[1:-1])
    return [sequences.items[part[learnt[part]]].tolist() for part in parts]


def class_by_loops(trained, history, target, window, recent):
    linked = {
        pair
        for row in trained
        for i, one in enumerate(row)
        for j, other in enumerate(row)
        if 0 < abs(i - j) <= window
        for pair in ((one, other), (other, one))
    }
    last = history[-recent:]
    if any((item, target) in linked for item in last):
        return "one_hop"
    if any((item, k) in linked and (k, target) in linked for item in last for k in range(N)):
        return "two_hops"
    return "no_path" if any(target in row for row in trained) else "cold"


@settings(deadline=None)
@given(ROWS, st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_classes_are_those_of_loops_over_pairs(rows, window, recent, small_chunks):
    splits = splits_of(rows)
    trained = training_rows(splits)
    with pytest.MonkeyPatch.context() as patch:
        if small_chunks:
            patch.setattr("gr.evaluation.breakdown._CHUNK", 1)
        classes = target_classes(splits, splits.test, window=window, recent=recent)
    counts = np.array([sum(row.count(item) for row in trained) for item in range(N)])
    slices = popularity_slices(counts)
    for place, row in enumerate(rows):
        of_target = [name for name in PATHS if classes.members[name][place]]
        assert of_target == [class_by_loops(trained, row[:-1], row[-1], window, recent)]
        part = [SLICE_NAMES[slices[row[-1]]]] if counts[row[-1]] else []
        assert [name for name in SLICE_NAMES if classes.members[name][place]] == part
    for name, (low, high) in classes.counts.items():
        inside = counts[(slices == SLICE_NAMES.index(name)) & (counts > 0)]
        assert (low, high) == (inside.min(), inside.max())
    assert set(classes.definitions()) == {*PATHS, *classes.counts}


def test_metrics_of_a_class_are_means_over_its_targets():
    splits = splits_of([[0, 1, 2, 3], [0, 1, 4, 2], [5, 6, 7, 8], [1, 0, 6, 7]])
    classes = target_classes(splits, splits.test)
    targets = splits.sequences.items[splits.test.positions]
    lists = np.array([[3, 1], [0, 2], [1, 0], [7, 0]])[:, :, None]
    found = breakdown_by_class(rankings_of_beams(lists, targets, depth=2), classes, k=2)
    gains = np.array([1.0, 1 / np.log2(3), 0.0, 1.0])
    for name, inside in classes.members.items():
        assert found[name]["targets"] == inside.sum()
        assert found[name]["share"] == inside.mean()
        if inside.any():
            assert found[name]["ndcg@2"] == pytest.approx(gains[inside].mean())
            assert found[name]["hit@2"] == (gains > 0)[inside].mean()
        else:
            assert "hit@2" not in found[name]
    assert sum(found[name]["targets"] for name in PATHS) == 4


def test_what_does_not_fit_is_refused():
    splits = splits_of([[0, 1, 2, 3], [0, 1, 4, 2]])
    with pytest.raises(EvaluationError, match="window=0, recent=10: expected 1 or more"):
        target_classes(splits, splits.test, window=0)
    classes = target_classes(splits, splits.test)
    rankings = rankings_of_beams(np.zeros((1, 2, 1), int), np.zeros(1, int), depth=2)
    with pytest.raises(EvaluationError, match="1 rankings of depth 2, classes of .2. targets"):
        breakdown_by_class(rankings, classes, k=2)
