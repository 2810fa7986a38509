"""Collision policies: unique SIDs, and no lost items."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from gr.semantic_ids import (
    SemanticIdError,
    SemanticIds,
    append_extra_code,
    resolve_collisions,
    with_new_items,
)

CODES = hnp.arrays(
    np.int32, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.integers(0, 2)
)


def test_extra_code_by_hand():
    codes, sizes = append_extra_code(np.array([[5, 1], [0, 0], [5, 1], [0, 2], [5, 1]]), (8, 4))
    assert codes.tolist() == [[5, 1, 0], [0, 0, 0], [5, 1, 1], [0, 2, 0], [5, 1, 2]]
    assert sizes == (8, 4, 3)


def test_extra_code_without_collisions_is_one_constant_level():
    codes, sizes = append_extra_code(np.array([[1], [0]]), (2,))
    assert codes.tolist() == [[1, 0], [0, 0]]
    assert sizes == (2, 1)


@hypothesis.given(CODES)
@hypothesis.settings(max_examples=60, deadline=None)
def test_extra_code_is_always_unique(codes):
    before = SemanticIds(codes, (3,) * codes.shape[1], np.arange(len(codes)))
    extra, sizes = append_extra_code(codes, before.codebook_sizes)
    after = SemanticIds(extra, sizes, before.item_ids)
    np.testing.assert_array_equal(extra[:, :-1], codes)
    assert after.num_distinct == after.num_items == len(codes)
    assert after.largest_group == 1
    assert sizes[-1] == before.largest_group
    for row, code in enumerate(extra):
        assert after.items_of(code).tolist() == [row]


@hypothesis.given(CODES)
@hypothesis.settings(max_examples=60, deadline=None)
def test_share_loses_no_item(codes):
    sizes = (3,) * codes.shape[1]
    ids = SemanticIds(*resolve_collisions(codes, sizes, "share"), np.arange(len(codes)))
    np.testing.assert_array_equal(ids.codes, codes)
    distinct = np.unique(codes, axis=0)
    found = np.concatenate([ids.items_of(code) for code in distinct])
    assert sorted(found.tolist()) == list(range(len(codes)))


def test_unknown_policy():
    with pytest.raises(SemanticIdError, match="collision='drop' is unknown"):
        resolve_collisions(np.array([[0]]), (1,), "drop")


NEW = hnp.arrays(np.int32, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 2))
OLD = hnp.arrays(np.int32, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(0, 2))


@hypothesis.given(OLD, NEW, st.integers(0, 4))
@hypothesis.settings(max_examples=100, deadline=None)
def test_new_items_go_on_counting_and_old_ones_stay(old, new, spare):
    codes, sizes = resolve_collisions(old, (3, 3), "extra_code", spare)
    before = SemanticIds(codes, sizes, [f"i{row}" for row in range(len(old))])
    names = [f"n{row}" for row in range(len(new))]
    largest, expected = {}, []
    for *group, extra in codes.tolist():
        largest[tuple(group)] = max(extra, largest.get(tuple(group), -1))
    for group in map(tuple, new.tolist()):
        largest[group] = largest.get(group, -1) + 1
        expected.append([*group, largest[group]])
    needed = max(row[-1] for row in expected) + 1
    grown = with_new_items(before, new, names, grow=True)
    assert grown.codebook_sizes == (3, 3, max(sizes[-1], needed))
    assert grown.codes[: len(old)].tolist() == codes.tolist()
    assert grown.codes[len(old) :].tolist() == expected
    assert grown.num_distinct == grown.num_items
    if needed <= sizes[-1]:
        after = with_new_items(before, new, names)
        assert after.codebook_sizes == sizes and after.vocab_size == before.vocab_size
        np.testing.assert_array_equal(after.codes, grown.codes)
        np.testing.assert_array_equal(after.tokens[: len(old)], before.tokens)
    else:
        missing = needed - sizes[-1]
        with pytest.raises(
            SemanticIdError, match=rf"no extra code is left.*spare_codes={missing} "
        ):
            with_new_items(before, new, names)


def test_a_code_of_a_removed_item_is_not_given_again():
    left = SemanticIds(np.array([[1, 0], [1, 2]]), (2, 4), ["a", "c"])
    assert with_new_items(left, np.array([[1]]), ["d"]).codes.tolist()[-1] == [1, 3]


def test_new_items_that_share_and_items_that_cannot_be_added():
    shared = SemanticIds(np.array([[1, 0], [1, 0]]), (2, 4), ["a", "b"])
    assert with_new_items(shared, np.array([[1, 0]]), ["c"]).items_of([1, 0]).tolist() == [0, 1, 2]
    with pytest.raises(SemanticIdError, match="item b has a semantic ID already"):
        with_new_items(shared, np.array([[1, 0]]), ["b"])
    with pytest.raises(SemanticIdError, match="item id c has more than one row"):
        with_new_items(shared, np.array([[1, 0], [0, 0]]), ["c", "c"])
    with pytest.raises(SemanticIdError, match="2 levels"):
        with_new_items(shared, np.array([[1, 0, 0]]), ["c"])
