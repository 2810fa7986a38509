import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data import (
    DataError,
    Sequences,
    Splits,
    Targets,
    by_time,
    learn_from,
    leave_one_out,
    time_quantiles,
    training_interactions,
)


def make(histories, times=None):
    """Sequences of the given users; items are their flat positions."""
    lengths = [len(history) for history in histories]
    total = sum(lengths)
    return Sequences(
        items=np.arange(total, dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        user_ids=np.arange(len(lengths)).astype(str),
        item_ids=np.arange(total).astype(str),
        times=None if times is None else np.array(times, dtype=np.float64),
    )


def pairs(targets):
    return list(zip(targets.users.tolist(), targets.positions.tolist(), strict=True))


def test_held_out_targets_can_be_learnt_from():
    splits = leave_one_out(make(["abcde", "ab", "a", "abc"]))
    assert learn_from(splits, "train") is splits
    more = learn_from(splits, "validation")
    assert pairs(more.train) == [(0, 1), (0, 2), (0, 3), (3, 9)]
    assert not len(more.validation) and pairs(more.test) == pairs(splits.test)
    every = learn_from(splits, "all")
    assert pairs(every.train) == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 6), (3, 9), (3, 10)]
    assert not len(every.validation) and not len(every.test)
    for targets in (more.train, more.validation, every.train, every.test):
        assert (targets.users.dtype, targets.positions.dtype) == (np.int32, np.int64)
    assert training_interactions(more).tolist() == [
        *[True] * 4,
        False,
        *[False] * 3,
        True,
        True,
        False,
    ]
    assert training_interactions(every).tolist() == [*[True] * 7, False, True, True, True]
    with pytest.raises(DataError, match="learn_from='tests' is unknown"):
        learn_from(splits, "tests")
    cold = dataclasses.replace(splits, cold=np.zeros(11, bool))
    with pytest.raises(DataError, match="cold-start"):
        learn_from(cold, "all")


def test_leave_one_out_by_hand():
    splits = leave_one_out(make(["abcde", "ab", "a", "abc"]))  # Positions 0-4, 5-6, 7, 8-10.
    assert pairs(splits.train) == [(0, 1), (0, 2)]
    assert pairs(splits.validation) == [(0, 3), (3, 9)]
    assert pairs(splits.test) == [(0, 4), (1, 6), (3, 10)]
    assert splits.train.users.dtype == np.int32
    assert splits.train.positions.dtype == np.int64


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=10))
def test_leave_one_out_is_what_a_loop_gives(lengths):
    sequences = make(["x" * length for length in lengths])
    train, validation, test = [], [], []
    for user, length in enumerate(lengths):
        start = int(sequences.offsets[user])
        if length >= 2:
            test.append((user, start + length - 1))
        if length >= 3:
            validation.append((user, start + length - 2))
        train += [(user, start + place) for place in range(1, length - 2)]
    splits = leave_one_out(sequences)
    assert pairs(splits.train) == train
    assert pairs(splits.validation) == validation
    assert pairs(splits.test) == test


def test_by_time_by_hand():
    # User 0 at 1, 5, 9; user 1 at 5, 7.
    splits = by_time(make(["abc", "ab"], [1, 5, 9, 5, 7]), validation_from=7, test_from=9)
    assert pairs(splits.train) == [(0, 1)]
    assert pairs(splits.validation) == [(1, 4)]
    assert pairs(splits.test) == [(0, 2)]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_by_time_is_what_a_loop_gives(user_times, first, second):
    user_times = [sorted(times) for times in user_times]
    cut, test_cut = sorted((first, second))
    expected = {"train": [], "validation": [], "test": []}
    position = 0
    for user, times in enumerate(user_times):
        for place, time in enumerate(times):
            if place:
                split = "train" if time < cut else "validation" if time < test_cut else "test"
                expected[split].append((user, position))
            position += 1
    sequences = make(user_times, sum(user_times, []))
    if not expected["train"] or not expected["test"]:
        with pytest.raises(DataError):
            by_time(sequences, cut, test_cut)
        return
    splits = by_time(sequences, cut, test_cut)
    assert pairs(splits.train) == expected["train"]
    assert pairs(splits.validation) == expected["validation"]
    assert pairs(splits.test) == expected["test"]


def test_time_quantiles_cut_off_the_wanted_share():
    sequences = make(["x" * 10], np.arange(100.0, 110.0))
    cuts = time_quantiles(sequences, 0.5, 0.8)
    assert [int((sequences.times < cut).sum()) for cut in cuts] == [5, 8]
    splits = by_time(sequences, *cuts)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [4, 3, 2]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("count", [7, 10, 33])
def test_time_quantiles_are_right_to_one_interaction(count, share):
    sequences = make(["x" * count], np.arange(float(count)))
    (cut,) = time_quantiles(sequences, share)
    assert abs((sequences.times < cut).sum() - share * count) < 1


def test_errors():
    timeless, timed = make(["abc"]), make(["abc"], [1, 2, 3])
    with pytest.raises(DataError, match="needs times"):
        by_time(timeless, 1, 2)
    with pytest.raises(DataError, match="needs times"):
        time_quantiles(timeless, 0.5)
    with pytest.raises(DataError, match="swap them"):
        by_time(timed, 3, 2)
    with pytest.raises(DataError, match="times run from 1.0 to 3.0"):
        by_time(timed, 10, 11)
    with pytest.raises(DataError, match="between 0 and 1"):
        time_quantiles(timed, 1.5)


def test_training_interactions_by_hand():
    # User 0 trains up to position 2 of 0..4, user 1 has no training target, user 2 all but one.
    def targets(*pairs):
        users, positions = np.array(pairs).T
        return Targets(users=users, positions=positions)

    splits = Splits(
        make(["abcde", "ab", "abc"]),
        train=targets((0, 2), (0, 1), (2, 8)),
        validation=targets((0, 3), (1, 5)),
        test=targets((0, 4), (1, 6), (2, 9)),
    )
    assert training_interactions(splits).tolist() == [
        *[True, True, True, False, False],
        *[False, False],
        *[True, True, False],
    ]
