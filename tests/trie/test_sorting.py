"""Sorted semantic IDs against Python's `sorted`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gr.trie.sorting import in_chunks, sort_ids


def check(tokens):
    """Compares everything that `sort_ids` returns with loops over Python lists."""
    ids = sort_ids(tokens, tokens.max(axis=0))
    rows = tokens.tolist()
    order = sorted(range(len(rows)), key=lambda row: (rows[row], row))
    assert ids.order.tolist() == order
    assert ids.num_items == len(rows)
    ordered = [rows[row] for row in order]
    assert np.stack(ids.columns, axis=1).tolist() == ordered
    for column, high in zip(ids.columns, tokens.max(axis=0).tolist(), strict=True):
        assert column.dtype == np.min_scalar_type(high)
    length = len(rows[0])
    shared = [0]
    for before, here in zip(ordered, ordered[1:], strict=False):
        shared.append(next((d for d in range(length) if before[d] != here[d]), length))
    assert ids.shared.tolist() == shared
    for depth in range(length + 1):
        starts, runs, last = [], [], None
        for place, row in enumerate(ordered):
            if row[:depth] != last:
                starts.append(place)
                runs.append(0)
                last = row[:depth]
            runs[-1] += 1
        assert ids.starts(depth).tolist() == starts
        assert ids.longest_run(depth) == max(runs)


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 5)).flatmap(
        lambda shape: hnp.arrays(np.int64, shape, elements=st.integers(0, 3))
    )
)
def test_small_tables_with_many_ties(tokens):
    check(tokens)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 16))
def test_several_keys_are_needed_for_long_ids_over_large_vocabularies(seed, num_items, changed):
    # 16 levels of 20 bits: five keys or more. Rows share prefixes of all lengths with one of a few.
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 2**20, (4, 16))[rng.integers(0, 4, num_items)]
    places = rng.integers(16 - changed, 17, num_items)
    for row, place in enumerate(places):
        tokens[row, place:] = rng.integers(0, 2, 16 - place) * (2**20 - 1)
    tokens[0] = 2**20 - 1
    check(tokens)


def test_long_ids():
    rng = np.random.default_rng(0)
    tokens = np.repeat(rng.integers(0, 2**31 - 1, (20, 64)), 10, axis=0)
    tokens[::3, 63] += 1
    tokens[::7, 40] = 0
    check(tokens[rng.permutation(200)])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.uint64])
def test_any_integer_type(dtype):
    check(np.random.default_rng(0).integers(0, 120, (40, 3)).astype(dtype))


def test_all_alike_and_one_alone():
    check(np.full((9, 3), 5))
    check(np.array([[0]]))
    check(np.zeros((3, 2), int))


def test_chunks_meet_without_a_seam(monkeypatch):
    monkeypatch.setattr("gr.trie.sorting._CHUNK", 7)
    rng = np.random.default_rng(1)
    for num_items in (7, 8, 14, 50):
        check(rng.integers(0, 3, (num_items, 4)))
        check(rng.integers(0, 2**31, (num_items, 6)))
    seen = []
    in_chunks(lambda rows: seen.extend(range(rows.start, rows.stop)), 50)
    assert sorted(seen) == list(range(50))


def test_a_large_table_of_several_chunks():
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 40, (70_000, 3))
    ids = sort_ids(tokens, tokens.max(axis=0))
    np.testing.assert_array_equal(ids.order, np.lexsort(tokens.T[::-1]))
    np.testing.assert_array_equal(np.stack(ids.columns, axis=1), tokens[ids.order])
    counts = np.unique(tokens[:, 0], return_counts=True)[1]
    assert ids.longest_run(1) == counts.max()
    np.testing.assert_array_equal(ids.starts(1), np.cumsum(counts) - counts)
