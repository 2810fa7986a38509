"""Collision policies: unique SIDs, and no lost items."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from gr.semantic_ids import SemanticIdError, SemanticIds, append_extra_code, resolve_collisions

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
