"""Ranks against hand-computed lists and against loops over random ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr.evaluation.rankings import (
    NOT_FOUND,
    EvaluationError,
    item_ranks,
    item_ranks_of_lists,
    rankings_of_beams,
    rankings_of_lists,
    sid_depth,
    sid_ranks,
    sid_ranks_of_lists,
    top_items,
)

# One user; beams: {4}, invalid, {2, 7}, {5}, {2, 7} again.
BEAMS = np.array([[[4, -1], [-1, -1], [2, 7], [5, -1], [2, 7]]], dtype=np.int32)


@pytest.mark.parametrize(
    ("target", "sid_rank", "item_rank"),
    [(4, 0, 0), (2, 1, 1), (7, 1, 2), (5, 2, 3), (9, NOT_FOUND, NOT_FOUND)],
)
def test_ranks_of_beams_skip_invalid_beams_and_padding(target, sid_rank, item_rank):
    assert sid_ranks(BEAMS, np.array([target])).tolist() == [sid_rank]
    assert item_ranks(BEAMS, np.array([target])).tolist() == [item_rank]


def test_top_items_reads_beam_by_beam_and_pads():
    assert top_items(BEAMS, 3).tolist() == [[4, 2, 7]]
    assert top_items(BEAMS, 8).tolist() == [[4, 2, 7, 5, 2, 7, -1, -1]]
    assert top_items(BEAMS, 12).shape == (1, 12)


def test_sid_rank_of_a_list_counts_each_sid_once():
    sid_of_item = np.array([0, 0, 1, 2, 2, 3])  # Items 0 and 1 share a SID, so do 3 and 4.
    items = np.array([[0, 1, 2, 3, 4, -1]] * 5)
    targets = np.array([1, 2, 4, 3, 5])
    # Item 4 stands fifth, but its SID came with item 3, below the two SIDs of items 0, 1, 2.
    assert sid_ranks_of_lists(items, targets, sid_of_item).tolist() == [0, 1, 2, 2, NOT_FOUND]
    assert item_ranks_of_lists(items, targets).tolist() == [1, 2, 4, 3, NOT_FOUND]


def test_lists_must_be_deep_enough_for_distinct_sids():
    sid_of_item = np.array([0, 0, 0, 1, 1, 2, 3])
    assert [sid_depth(sid_of_item, k) for k in (1, 2, 3, 9)] == [3, 5, 6, 9]
    items = np.arange(4)[None]
    with pytest.raises(EvaluationError, match="rank 5 items"):
        rankings_of_lists(items, np.array([0]), sid_of_item, depth=2)


def test_fewer_beams_than_the_depth_are_refused():
    with pytest.raises(EvaluationError, match="5 beams.*at least 20 beams"):
        rankings_of_beams(BEAMS, np.array([4]), depth=20)


@pytest.mark.parametrize(
    ("items", "targets"),
    [(BEAMS, [4, 5]), (BEAMS[0], [4]), (BEAMS, [4.0]), (BEAMS.astype(float), [4])],
)
def test_shapes_and_types_that_do_not_fit_are_refused(items, targets):
    with pytest.raises(EvaluationError):
        sid_ranks(items, np.array(targets))


# A target outside the catalogue. Item 3 is the last one, and both lists end with padding.
OUTSIDE = (-5, -1, 4, 99, 2**40)
LISTS = np.array([[2, 0, 3, 1, -1]] * len(OUTSIDE))


@pytest.mark.parametrize("sid_of_item", [[0, 1, 2, 3], [7, -1, 10**12, 7]])
def test_a_target_outside_the_catalogue_is_a_miss_in_lists_and_beams(sid_of_item):
    targets, misses = np.array(OUTSIDE), [NOT_FOUND] * len(OUTSIDE)
    of_lists = rankings_of_lists(LISTS, targets, np.array(sid_of_item), depth=2)
    of_beams = rankings_of_beams(LISTS[:, :, None], targets, depth=5)
    for rankings in (of_lists, of_beams):
        assert rankings.sid_ranks.tolist() == rankings.item_ranks.tolist() == misses
        assert rankings.candidates.tolist() == [4] * len(OUTSIDE)


def test_numbers_of_sids_may_be_any_and_padding_has_none():
    # Items 0 and 3 share a SID; that of item 1 has the number that pads lists.
    sid_of_item = np.array([7, -1, 10**12, 7])
    lists = np.array([[2, 3, 1, -1], [2, -1, -1, -1], [3, 1, -1, -1]])
    assert sid_ranks_of_lists(lists, np.array([0, 1, 1]), sid_of_item).tolist() == [1, NOT_FOUND, 1]


def test_an_item_that_the_sid_numbers_lack_is_refused():
    with pytest.raises(EvaluationError, match="holds item 6, .* of 6 items"):
        sid_ranks_of_lists(np.array([[1, 6]]), np.array([1]), np.arange(6))


def test_without_users_or_candidates_there_are_rankings_and_no_hits():
    no_targets = np.zeros(0, int)
    for rankings in (
        rankings_of_lists(np.zeros((0, 3)), no_targets, np.arange(3), depth=2),
        rankings_of_beams(np.zeros((0, 3, 1)), no_targets, depth=2),
        rankings_of_beams(np.zeros((0, 3, 0), int), [], depth=2),
    ):
        assert (len(rankings), rankings.depth) == (0, 2)
    nothing = rankings_of_lists(np.full((2, 3), -1), np.array([-1, 0]), np.arange(3), depth=2)
    assert nothing.sid_ranks.tolist() == [NOT_FOUND] * 2
    assert nothing.candidates.tolist() == nothing.duplicates.tolist() == [0, 0]


def test_a_depth_beyond_the_catalogue_is_padded():
    lists = np.array([[2, 0, 1]])
    rankings = rankings_of_lists(lists, np.array([1]), np.arange(3), depth=9)
    assert (rankings.items.shape, rankings.sid_ranks.tolist()) == ((1, 9), [2])
    with pytest.raises(EvaluationError, match="depth=0"):
        rankings_of_lists(lists, np.array([1]), np.arange(3), depth=0)


def test_unsigned_items_are_padded_like_others():
    assert rankings_of_lists(
        np.array([[1, 0]], np.uint8), np.array([0], np.uint8), np.arange(2), depth=3
    ).items.tolist() == [[1, 0, -1]]


def test_rankings_of_beams_count_candidates_and_repeated_sids():
    rankings = rankings_of_beams(BEAMS, np.array([7]), depth=5)
    assert rankings.candidates.tolist() == [4]  # The second beam is invalid.
    assert rankings.duplicates.tolist() == [1]  # The fifth repeats the third.
    assert rankings.items.tolist() == [[4, 2, 7, 5, 2]]
    assert (rankings.depth, len(rankings)) == (5, 1)


def _loop_beams(beams, target):
    """(SID rank, item rank), counted one by one."""
    sid_rank, item_rank, above_beams, above_items = NOT_FOUND, NOT_FOUND, 0, 0
    for beam in beams:
        items = [item for item in beam if item >= 0]
        for item in items:
            if item == target and item_rank == NOT_FOUND:
                item_rank = above_items
            above_items += 1
        if target in items and sid_rank == NOT_FOUND:
            sid_rank = above_beams
        above_beams += bool(items)
    return sid_rank, item_rank


@st.composite
def beams_and_targets(draw):
    n, m, c = draw(st.integers(0, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(-1, 6, (n, m, c)).astype(np.int32), rng.integers(0, 6, n)


@given(beams_and_targets())
def test_ranks_of_beams_equal_the_loop(case):
    beams, targets = case
    expected = [_loop_beams(b.tolist(), t) for b, t in zip(beams, targets, strict=True)]
    assert sid_ranks(beams, targets).tolist() == [sid for sid, _ in expected]
    assert item_ranks(beams, targets).tolist() == [item for _, item in expected]
    flat = [[item for item in b.ravel().tolist() if item >= 0] for b in beams]
    assert [row[:4] for row in flat] == [
        [item for item in row if item >= 0] for row in top_items(beams, 4).tolist()
    ]


@given(beams_and_targets(), st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_sid_ranks_of_lists_equal_the_loop(case, sid_of_item):
    beams, targets = case
    lists = beams.reshape(len(beams), beams.shape[1] * beams.shape[2])
    expected = []
    for row, target in zip(lists.tolist(), targets, strict=True):
        sids = list(dict.fromkeys(sid_of_item[item] for item in row if item >= 0))
        wanted = sid_of_item[target]
        expected.append(sids.index(wanted) if wanted in sids else NOT_FOUND)
    assert sid_ranks_of_lists(lists, targets, np.array(sid_of_item)).tolist() == expected
