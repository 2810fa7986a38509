"""Whole histories as stretches of the data: against loops, and that nothing is held twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr.data import DataError, Histories, Sequences, Targets, histories


def make(rows):
    return Sequences(
        items=np.array([item for row in rows for item in row], np.int32),
        offsets=np.cumsum([0, *map(len, rows)]),
        user_ids=np.array([f"u{u}" for u in range(len(rows))]),
        item_ids=np.arange(9).astype(str),
    )


def targets_of(pairs):
    users, positions = np.array(pairs, np.int64).reshape(-1, 2).T
    return Targets(users.astype(np.int32), positions)


def test_by_hand():
    sequences, targets = make([[4, 5, 4], [7, 8]]), targets_of([(0, 2), (1, 4), (0, 0)])
    found = Histories.of(sequences, targets)
    assert (len(found), found.shape, found.lengths.tolist()) == (3, (3, 2), [2, 1, 0])
    assert np.asarray(found).tolist() == [[4, 5], [7, -1], [-1, -1]]
    assert found[1:].padded().tolist() == [[7], [-1]]  # As wide as these need.
    assert found[np.array([1, 0])].padded().tolist() == [[7, -1], [4, 5]]
    assert found.hold(np.array([4, 8, 4])).tolist() == [True, False, False]
    assert (found == np.array([[4], [7], [0]])).tolist() == [
        [True, False],
        [True, False],
        [False] * 2,
    ]
    assert found.items is sequences.items


@st.composite
def histories_and_wanted(draw):
    item = st.integers(0, 5)
    rows = draw(st.lists(st.lists(item, min_size=1, max_size=6), min_size=1, max_size=5))
    sequences = make(rows)
    users = draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
    places = [draw(st.integers(0, len(rows[user]) - 1)) for user in users]
    targets = targets_of(
        [(u, sequences.offsets[u] + p) for u, p in zip(users, places, strict=True)]
    )
    wanted = st.sampled_from([-(2**62), -1, *range(7), 99, 2**31, 2**62])
    return sequences, targets, draw(st.lists(wanted, min_size=len(users), max_size=len(users)))


@given(histories_and_wanted())
def test_they_hold_what_a_loop_finds(case):
    sequences, targets, wanted = case
    found = Histories.of(sequences, targets)
    whole = [
        sequences.items[sequences.offsets[user] : position].tolist()
        for user, position in zip(targets.users, targets.positions, strict=True)
    ]
    assert [row[row >= 0].tolist() for row in found.padded()] == whole
    if len(targets):
        np.testing.assert_array_equal(found, histories(sequences, targets, 9))
    expected = [item in row for item, row in zip(wanted, whole, strict=True)]
    assert found.hold(np.array(wanted, np.int64)).tolist() == expected
    again = Histories.of_rows(found.padded()[:, ::-1])  # Padding on the other side.
    assert [row[row >= 0].tolist() for row in again.padded()] == [row[::-1] for row in whole]
    assert again.hold(np.array(wanted, np.int64)).tolist() == expected


def test_one_long_history_costs_what_it_holds():
    sequences = make([[0] * 20_000, *([1] * 6 for _ in range(2000))])
    found = Histories.of(
        sequences, Targets(np.arange(2001, dtype=np.int32), sequences.offsets[1:] - 1)
    )
    assert found.shape == (2001, 19_999)
    assert found.nbytes == 4 * len(sequences.items) + 16 * 2001


def test_targets_of_other_sequences_are_refused():
    with pytest.raises(DataError, match="target position 3 is not in"):
        Histories.of(make([[1, 2], [3, 4]]), targets_of([(0, 3)]))
    assert len(Histories.of(make([[1]]), targets_of([]))) == 0
