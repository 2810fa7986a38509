"""Rows of bits against sets of numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from gr.trie.bit_rows import collapse, expand, locate, make_rows, octets_of, rank, select

pytestmark = pytest.mark.usefixtures("compile_in_haste")

SPANS = [32, 64, 96, 256, 2048]


def sets_and_rows(span, seed=0):
    """Sets of offsets, the empty and the full one among them, and their rows."""
    rng = np.random.default_rng(seed)
    sets = [set(), set(range(span)), {0}, {span - 1}]
    sets += [set(np.flatnonzero(rng.random(span) < p).tolist()) for p in (0.03, 0.2, 0.5, 0.9)]
    pairs = [(row, offset) for row, members in enumerate(sets) for offset in members]
    parents, offsets = np.array(pairs, np.int32).T
    mixed = rng.permutation(len(pairs))
    return sets, make_rows(parents[mixed], offsets[mixed], len(sets), span)


def test_a_row_by_hand():
    # 32 tokens are four octets: token v is bit v // 4 of octet v % 4.
    rows = make_rows(np.array([0, 0, 2]), np.array([0, 5, 31]), 3, 32)
    assert rows.dtype == np.uint32
    assert rows.tolist() == [[1 | 1 << 9], [0], [1 << 31]]
    assert octets_of(jnp.asarray(rows)).tolist() == [[1, 2, 0, 0], [0] * 4, [0, 0, 0, 128]]


@pytest.mark.parametrize("span", SPANS)
def test_expand_and_collapse(span):
    sets, rows = sets_and_rows(span)
    assert rows.shape == (len(sets), span // 32)
    bits = expand(jnp.asarray(rows))
    assert bits.dtype == bool
    assert [set(np.flatnonzero(row).tolist()) for row in np.asarray(bits)] == sets
    np.testing.assert_array_equal(collapse(bits), rows)
    np.testing.assert_array_equal(expand(jnp.asarray(rows)[None, :, None])[0, :, 0], bits)


@pytest.mark.parametrize("span", SPANS)
def test_locate(span):
    sets, rows = sets_and_rows(span)
    word, bit = locate(jnp.arange(span), span)
    found = (rows[:, np.asarray(word)] & np.asarray(bit)) != 0
    assert [set(np.flatnonzero(row).tolist()) for row in found] == sets


@pytest.mark.parametrize("span", SPANS)
def test_rank_counts_the_bits_before(span):
    sets, rows = sets_and_rows(span)
    offsets = np.broadcast_to(np.arange(span), (len(sets), span))
    found = rank(jnp.asarray(rows)[:, None], jnp.asarray(offsets))
    expected = [[len([m for m in members if m < o]) for o in range(span)] for members in sets]
    assert found.dtype == jnp.int32
    assert found.tolist() == expected


@pytest.mark.parametrize("span", SPANS)
def test_select_finds_the_bit_of_a_number(span):
    sets, rows = sets_and_rows(span)
    pairs = [
        (row, number, offset)
        for row, members in enumerate(sets)
        for number, offset in enumerate(sorted(members))
    ]
    row, number, offset = np.array(pairs).T
    found = select(jnp.asarray(rows[row]), jnp.asarray(number, jnp.int32))
    np.testing.assert_array_equal(found, offset)
