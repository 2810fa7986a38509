import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gr.trie import (
    NO_NODE,
    TrieError,
    TrieIndex,
    ancestors,
    children,
    items_of_leaves,
    slots_of,
    walk,
)

VOCAB = 6


def token_tables():
    """Small tables with many shared prefixes and duplicates."""
    shapes = st.tuples(st.integers(1, 12), st.integers(1, 4))
    return shapes.flatmap(
        lambda shape: hnp.arrays(np.int64, shape, elements=st.integers(0, VOCAB - 1))
    )


def test_numbers_by_hand():
    # Item rows:        0       1       2       3
    tokens = np.array([[3, 1], [2, 5], [3, 1], [3, 0]])
    index = TrieIndex.build(tokens, vocab_size=VOCAB)
    # Depth 1 in order: (2), (3). Depth 2 in order: (2, 5), (3, 0), (3, 1).
    assert index.num_nodes == (1, 2, 3)
    assert index.branching == (2, 2)
    assert [level.tolist() for level in index.tokens] == [[2, 3], [5, 0, 1]]
    assert [first.tolist() for first in index.first_child] == [[0, 2], [0, 1, 3]]
    assert index.item_of_slot.tolist() == [1, 3, 0, 2]
    assert index.first_slot.tolist() == [0, 1, 2, 4]
    assert index.max_items_per_leaf == 2
    assert items_of_leaves(index, jnp.arange(3)).tolist() == [[1, -1], [3, -1], [0, 2]]
    assert index.num_items == 4
    assert index.nbytes == 4 * (2 + 3 + 2 + 3 + 4 + 4 + 4)


@settings(max_examples=15, deadline=None)
@given(token_tables())
def test_nodes_are_the_sorted_prefixes(tokens):
    index = TrieIndex.build(tokens, VOCAB)
    levels = oracles.prefixes(tokens.tolist())
    assert index.num_nodes == tuple(len(level) for level in levels)
    for depth in range(index.length):
        child, token, exists = children(index, depth, jnp.arange(index.num_nodes[depth]))
        for node, prefix in enumerate(levels[depth]):
            found = [
                (int(c), (*prefix, int(t)))
                for c, t, e in zip(child[node], token[node], exists[node], strict=True)
                if e
            ]
            expected = [
                (number, longer)
                for number, longer in enumerate(levels[depth + 1])
                if longer[:-1] == prefix
            ]
            assert found == expected


@settings(max_examples=15, deadline=None)
@given(token_tables(), st.data())
def test_walk_finds_exactly_the_prefixes_in_the_trie(tokens, data):
    index = TrieIndex.build(tokens, VOCAB)
    levels = oracles.prefixes(tokens.tolist())
    query = data.draw(hnp.arrays(np.int64, (5, index.length), elements=st.integers(0, VOCAB - 1)))
    query = np.concatenate([query, tokens])
    nodes = np.asarray(walk(index, jnp.asarray(query)))
    for row, found in zip(query.tolist(), nodes.tolist(), strict=True):
        for depth in range(1, index.length + 1):
            prefix = tuple(row[:depth])
            known = levels[depth].index(prefix) if prefix in levels[depth] else NO_NODE
            assert found[depth - 1] == known


@settings(max_examples=15, deadline=None)
@given(token_tables())
def test_items_slots_and_ancestors(tokens):
    index = TrieIndex.build(tokens, VOCAB)
    levels = oracles.prefixes(tokens.tolist())
    by_sid = oracles.items_by_sid(tokens)
    items = np.asarray(items_of_leaves(index, jnp.arange(index.num_nodes[-1])))
    for leaf, sid in enumerate(levels[-1]):
        assert [item for item in items[leaf] if item >= 0] == by_sid[sid]
    slots = np.asarray(index.slot_of_item)
    assert sorted(slots) == list(range(len(tokens)))
    above = ancestors(index, jnp.arange(len(tokens)))
    for depth in range(1, index.length + 1):
        begin, end = slots_of(index, depth, jnp.arange(index.num_nodes[depth]))
        for node, prefix in enumerate(levels[depth]):
            below = {i for i, row in enumerate(tokens.tolist()) if tuple(row[:depth]) == prefix}
            assert {i for i in range(len(tokens)) if begin[node] <= slots[i] < end[node]} == below
            assert all(above[depth - 1][slots[i]] == node for i in below)


def test_any_order_gives_the_same_trie():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, (300, 3))
    shuffled = rng.permutation(300)
    index, other = TrieIndex.build(tokens, 50), TrieIndex.build(tokens[shuffled], 50)
    for mine, theirs in zip(index.tokens, other.tokens, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(
        np.sort(shuffled[np.asarray(other.item_of_slot)]), np.sort(index.item_of_slot)
    )


def test_long_ids_over_large_vocabularies_need_several_sort_keys():
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 2**20, (200, 16))
    tokens[50:100, :12] = tokens[0, :12]  # Long shared prefixes: the last key decides.
    index = TrieIndex.build(tokens, 2**20)
    leaves = np.stack([tokens[np.asarray(index.item_of_slot)[i]] for i in range(200)])
    assert leaves.tolist() == sorted(tokens.tolist())


def test_one_item_and_integer_types():
    for dtype in (np.uint8, np.int16, np.uint64):
        index = TrieIndex.build(np.array([[4, 2, 4]], dtype), 5)
        assert index.num_nodes == (1, 1, 1, 1)
        assert walk(index, jnp.array([4, 2, 4])).tolist() == [0, 0, 0]


def test_the_index_is_a_pytree_with_static_sizes():
    index = TrieIndex.build(np.array([[0, 1], [1, 0]]), 2)
    same = jax.jit(lambda x: x)(index)
    assert same.branching == index.branching
    assert jax.tree.structure(same) == jax.tree.structure(index)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([[0, 7]]), r"token 7 of item row 0, level 1 is outside \[0, 6\)"),
        (np.array([[0, 1], [-1, 1]]), r"token -1 of item row 1, level 0"),
        (np.zeros((0, 3), int), r"shape \(0, 3\)"),
        (np.zeros(3, int), r"\[N, L\]"),
        (np.zeros((2, 2)), "integers"),
    ],
)
def test_bad_tokens_get_one_clear_error(tokens, message):
    with pytest.raises(TrieError, match=message):
        TrieIndex.build(tokens, VOCAB)
