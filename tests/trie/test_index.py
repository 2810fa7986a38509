"""The trie against dictionaries of prefixes, with every level stored in every way."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tries
from hypothesis import given, settings

from gr.testing import random_tokens
from gr.trie import (
    NO_NODE,
    Nodes,
    TrieError,
    TrieIndex,
    ancestors,
    child_sizes,
    children,
    descend,
    items_of,
    root,
    slots_of,
    walk,
)
from gr.trie.layout import DENSE, SCAN, SPARSE

pytestmark = pytest.mark.usefixtures("compile_in_haste")

of_each_mix = pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)

# Compiled once for each mix: all sets of `token_sets` share a layout.
walk_jit = jax.jit(walk)
children_jit = jax.jit(children, static_argnums=1)
slots_jit = jax.jit(slots_of, static_argnums=1)
items_jit = jax.jit(items_of)
ancestors_jit = jax.jit(ancestors)


def build(tokens, kinds, **options):
    return TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds), **options)


def all_nodes(index, depth, tokens):
    """The prefixes of a depth, sorted, and `MAX_ITEMS` nodes: theirs, and empty ones behind."""
    prefixes = oracles.prefixes(tokens.tolist())[depth]
    names = np.full(tries.MAX_ITEMS, NO_NODE)
    names[: len(prefixes)] = oracles.names(tokens.tolist(), depth, index.layout.scan_depth)
    begin = np.maximum(names, 0)
    end = np.where(names == NO_NODE, 0, begin + 1)
    if depth >= index.layout.scan_depth:
        sizes = [sum(tuple(row[:depth]) == p for row in tokens.tolist()) for p in prefixes]
        end[: len(prefixes)] = begin[: len(prefixes)] + sizes
    return prefixes, Nodes(jnp.asarray(begin, jnp.int32), jnp.asarray(end, jnp.int32))


@of_each_mix
@settings(max_examples=15, deadline=None)
@given(tokens=tries.token_sets())
def test_children_are_the_longer_prefixes_in_order(kinds, tokens):
    index = build(tokens, kinds)
    assert index.num_nodes == tuple(len(level) for level in oracles.prefixes(tokens.tolist()))
    for depth in range(3):
        prefixes, nodes = all_nodes(index, depth, tokens)
        longer, below = all_nodes(index, depth + 1, tokens)
        found, token = children_jit(index, depth, nodes)
        sizes = np.asarray(child_sizes(index, depth, nodes))
        exist = np.asarray(found.exist)
        assert not exist[len(prefixes) :].any()
        got = [
            (int(found.begin[place]), int(found.end[place]), (*prefixes[place[0]], int(t)))
            for place, t in np.ndenumerate(token)
            if exist[place]
        ]
        expected = list(zip(below.begin.tolist(), below.end.tolist(), longer, strict=False))
        assert got == expected
        rows = [tuple(row) for row in tokens.tolist()]
        assert sizes[exist].tolist() == [
            sum(row[: depth + 1] == prefix for row in rows) for prefix in longer
        ]
        assert not sizes[~exist].any()


@of_each_mix
@settings(max_examples=20, deadline=None)
@given(tokens=tries.token_sets(), others=tries.token_sets())
def test_walk_finds_exactly_the_prefixes_in_the_trie(kinds, tokens, others):
    index = build(tokens, kinds)
    query = np.resize(np.concatenate([tokens, others]), (2 * tries.MAX_ITEMS, 3))
    query[-1] = [0, 49, 49]  # Tokens of no range, and of another level's.
    query[-2, 1:] = -1, 10**6
    names = np.asarray(walk_jit(index, jnp.asarray(query)))
    assert names.dtype == np.int32
    for depth in range(1, 4):
        prefixes, nodes = all_nodes(index, depth, tokens)
        known = dict(zip(prefixes, nodes.names.tolist(), strict=False))
        expected = [known.get(tuple(row[:depth]), NO_NODE) for row in query.tolist()]
        assert names[:, depth - 1].tolist() == expected


@of_each_mix
@settings(max_examples=15, deadline=None)
@given(tokens=tries.token_sets())
def test_slots_items_and_ancestors(kinds, tokens):
    index = build(tokens, kinds)
    order = sorted(range(len(tokens)), key=lambda row: (tokens[row].tolist(), row))
    item_of_slot = index.item_of_slot[jnp.arange(len(tokens))].tolist()
    assert item_of_slot == order
    above = ancestors_jit(index, jnp.minimum(jnp.arange(tries.MAX_ITEMS), len(tokens) - 1))
    assert len(above) == index.layout.scan_depth + 1
    for depth in range(4):
        prefixes, nodes = all_nodes(index, depth, tokens)
        begin, end = slots_jit(index, depth, nodes)
        for place, prefix in enumerate(prefixes):
            below = {row for row in order if tuple(tokens[row, :depth].tolist()) == prefix}
            assert set(order[int(begin[place]) : int(end[place])]) == below
        if depth <= index.layout.scan_depth:
            rank = {prefix: place for place, prefix in enumerate(prefixes)}
            expected = [rank[tuple(tokens[row, :depth].tolist())] for row in order]
            assert above[depth][: len(tokens)].tolist() == expected
    sids, leaves = all_nodes(index, 3, tokens)
    items = np.asarray(items_jit(index, leaves))
    by_sid = oracles.items_by_sid(tokens)
    for place, sid in enumerate(sids):
        assert items[place, : len(by_sid[sid])].tolist() == by_sid[sid]
        assert (items[place, len(by_sid[sid]) :] == -1).all()
    assert (items[len(sids) :] == -1).all()


@pytest.mark.parametrize("kinds", tries.MIXES[1:4], ids="-".join)
def test_descend_is_a_step_of_walk_and_leaves_nothing_for_ever(kinds):
    tokens = random_tokens(np.random.default_rng(0), 12)
    index = build(tokens, kinds)
    nodes = root(index, (12,))
    for depth in range(3):
        gone = descend(index, depth, nodes, jnp.full(12, 1))
        assert not gone.exist.any() and (gone.names == NO_NODE).all()
        nodes = descend(index, depth, nodes, jnp.asarray(tokens[:, depth]))
        np.testing.assert_array_equal(nodes.names, walk_jit(index, jnp.asarray(tokens))[..., depth])
        if depth < 2:
            again = descend(index, depth + 1, gone, jnp.asarray(tokens[:, depth + 1]))
            assert not again.exist.any()


# By hand.

HAND = np.array([[3, 1], [2, 5], [3, 1], [3, 0]])  # Depth 1: (2), (3). Depth 2: (2,5) (3,0) (3,1).


def test_a_scanned_trie_by_hand():
    index = TrieIndex.build(HAND, vocab_size=6)
    layout = index.layout
    assert [level.kind for level in layout.levels] == [SCAN, SCAN]
    assert [(level.base, level.span) for level in layout.levels] == [(2, 2), (0, 6)]
    assert [level.max_children for level in layout.levels] == [2, 2]
    assert [level.max_slots for level in layout.levels] == [4, 3]
    assert [level.max_nodes for level in layout.levels] == [2, 3]
    assert (layout.scan_depth, layout.unique_depth, index.length) == (0, 2, 2)
    assert index.num_nodes == (1, 2, 3)
    assert (index.num_items, index.max_items_per_sid, index.vocab_size) == (4, 2, 6)
    assert (index.children, index.first_child) == ((), ())
    assert index.item_of_slot[jnp.arange(4)].tolist() == [1, 3, 0, 2]
    assert index.slot_of_item[jnp.arange(4)].tolist() == [2, 0, 3, 1]
    assert index.first_slot[jnp.arange(2)].tolist() == [0, 4]
    # An element is a token of level 0, less 2, in one bit, and one of level 1 in three.
    assert index.table.width == 4
    assert index.table[jnp.arange(4)].tolist() == [0 | 5 << 1, 1 | 0 << 1, 1 | 1 << 1, 1 | 1 << 1]
    assert walk(index, jnp.array([[3, 1], [2, 1], [2, 5], [3, 0]])).tolist() == [
        [1, 2],  # Nodes are called by their first slots.
        [0, -1],
        [0, 0],
        [1, 1],
    ]
    leaves = Nodes(jnp.array([0, 1, 2]), jnp.array([1, 2, 4]))
    assert items_of(index, leaves).tolist() == [[1, -1], [3, -1], [0, 2]]


def test_a_trie_of_bits_by_hand():
    layout = tries.with_kinds(TrieIndex.build(HAND, 6).layout, (DENSE, DENSE))
    assert [(level.base, level.span) for level in layout.levels] == [(0, 32), (0, 32)]
    index = TrieIndex.build(HAND, 6, layout=layout)
    # Token v is bit v // 4 of octet v % 4.
    assert [row.tolist() for row in index.children] == [
        [[1 << 16 | 1 << 24]],
        [[1 << 9], [1 | 1 << 8]],
    ]
    assert index.first_child[0][jnp.arange(2)].tolist() == [0, 2]
    assert index.first_child[1][jnp.arange(3)].tolist() == [0, 1, 3]
    assert index.first_slot[jnp.arange(4)].tolist() == [0, 1, 2, 4]
    assert index.table is None
    assert walk(index, jnp.array([[3, 1], [2, 5]])).tolist() == [[1, 2], [0, 0]]
    # Words of: children 1 + 2; first_child 2 + 1, 2 + 1; first_slot 3 + 1; item_of_slot 2 + 1;
    # slot_of_item 3 + 1; node_counts 3; item_count 1; fingerprint 2.
    assert index.nbytes == 4 * (3 + 3 + 3 + 4 + 3 + 4 + 3 + 1 + 2)


def test_a_trie_of_lists_by_hand():
    layout = tries.with_kinds(TrieIndex.build(HAND, 6).layout, (SPARSE, SPARSE))
    index = TrieIndex.build(HAND, 6, layout=layout)
    assert index.children[0][jnp.arange(2)].tolist() == [0, 1]  # Less the base 2.
    assert index.children[1][jnp.arange(3)].tolist() == [5, 0, 1]
    assert walk(index, jnp.array([[3, 0], [3, 5]])).tolist() == [[1, 1], [1, -1]]


def test_the_layout_that_a_large_set_gets():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (20_000, 4)) + 64 * np.arange(4)
    index = TrieIndex.build(tokens, 256)
    assert [level.kind for level in index.layout.levels] == [DENSE, DENSE, SCAN, SCAN]
    assert index.layout.levels[2].max_slots <= 16
    skewed = tokens.copy()
    skewed[:, 1:3] = skewed[:, :1] % 7
    skewed[:2000, :3] = 0, 0, 0
    kinds = [level.kind for level in TrieIndex.build(skewed, 256).layout.levels]
    assert kinds == [DENSE, DENSE, DENSE, DENSE]


# What may be given, and what not.


def test_any_order_of_rows_gives_the_same_trie():
    rng = np.random.default_rng(0)
    tokens = np.unique(random_tokens(rng, 24), axis=0)
    shuffled = rng.permutation(len(tokens))
    for kinds in tries.MIXES:
        index, other = build(tokens, kinds), build(tokens[shuffled], kinds, items=shuffled)
        assert jax.tree.structure(index) == jax.tree.structure(other)
        jax.tree.map(np.testing.assert_array_equal, index, other)


def test_item_numbers_of_ones_own():
    tokens = np.array([[2, 10, 45], [3, 10, 45], [2, 10, 45]])
    for kinds in tries.MIXES[::2]:
        index = build(tokens, kinds, items=np.array([20, 3, 5]))
        leaves = all_nodes(index, 3, tokens)[1]
        items = items_jit(index, leaves)
        assert items[0, :3].tolist() == [20, 5, -1]  # In the order of their rows.
        assert items[1, :2].tolist() == [3, -1]
        assert index.slot_of_item[jnp.array([3, 4])].tolist() == [2, tries.MAX_ITEMS]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.uint64])
def test_one_item_and_integer_types(dtype):
    index = TrieIndex.build(np.array([[4, 2, 4]], dtype), 5)
    assert index.num_nodes == (1, 1, 1, 1)
    assert index.layout.unique_depth == 0
    assert walk(index, jnp.array([[4, 2, 4], [4, 3, 4]])).tolist() == [[0, 0, 0], [0, -1, -1]]


def test_one_item_in_every_kind_of_level():
    layout = TrieIndex.build(np.array([[4, 2, 4]]), 5).layout
    for kinds in tries.MIXES:
        index = TrieIndex.build(np.array([[4, 2, 4]]), 5, layout=tries.with_kinds(layout, kinds))
        assert walk(index, jnp.array([[4, 2, 4], [4, 3, 4]])).tolist() == [[0, 0, 0], [0, -1, -1]]


def test_long_ids_over_a_large_vocabulary():
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 2**20, (60, 64))
    tokens[20:40, :60] = tokens[0, :60]  # Long shared prefixes.
    tokens[40:50] = tokens[0]
    tokens[59] = 2**20 - 1
    plain = TrieIndex.build(tokens, 2**20)
    assert plain.num_nodes[-1] == len(np.unique(tokens, axis=0))
    listed = tries.with_kinds(plain.layout, (SPARSE,) * 40 + (SCAN,) * 24)
    prefixes = oracles.prefixes(tokens.tolist())
    for index in (plain, TrieIndex.build(tokens, 2**20, layout=listed)):
        query = np.concatenate([tokens, tokens[::-1]])
        query[60:, 50] += 1
        names = np.asarray(walk(index, jnp.asarray(query)))  # 64 levels compile slowly.
        assert (names[:60] != NO_NODE).all()
        for depth in (1, 40, 41, 64):
            known = oracles.names(tokens.tolist(), depth, index.layout.scan_depth)
            known = dict(zip(prefixes[depth], known, strict=True))
            expected = [known.get(tuple(row[:depth]), NO_NODE) for row in query.tolist()]
            assert names[:, depth - 1].tolist() == expected


def test_ranges_of_levels_decide_bases_and_spans():
    tokens = np.array([[4, 20], [5, 30]])
    index = TrieIndex.build(tokens, 40, level_ranges=[(2, 10), (10, 40)])
    assert [(level.base, level.span) for level in index.layout.levels] == [(2, 8), (10, 30)]
    assert walk(index, jnp.array([[4, 20], [3, 20]])).tolist() == [[0, 0], [-1, -1]]


def test_a_layout_with_headroom_serves_other_sets():
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 8, (200, 3))
    index = TrieIndex.build(tokens, 8, headroom=0.5, level_ranges=[(0, 8)] * 3)
    assert index.layout.max_items == 300
    more = np.concatenate([tokens[:150], rng.integers(0, 8, (60, 3))])
    other = TrieIndex.build(more, 8, layout=index.layout)
    assert jax.tree.structure(index) == jax.tree.structure(other)
    assert jax.tree.map(jnp.shape, index) == jax.tree.map(jnp.shape, other)
    compiled = jax.jit(lambda *arguments: walk(*arguments))
    compiled(index, jnp.asarray(tokens[:50]))
    names = np.asarray(compiled(other, jnp.asarray(more[:50])))
    assert compiled._cache_size() == 1
    known = oracles.names(more.tolist(), 3, other.layout.scan_depth)
    known = dict(zip(oracles.prefixes(more.tolist())[3], known, strict=True))
    assert names[:, 2].tolist() == [known[tuple(row)] for row in more[:50].tolist()]


def test_every_bound_of_a_layout_is_checked():
    tokens = random_tokens(np.random.default_rng(3), 20)
    layout = TrieIndex.build(tokens, tries.VOCAB).layout

    def refused(other, message, fixed=layout, vocab_size=tries.VOCAB, **options):
        with pytest.raises(TrieError, match=message):
            TrieIndex.build(other, vocab_size, layout=fixed, **options)

    refused(np.concatenate([tokens, tokens[:1]]), "21 items, but the layout has room for 20")
    refused(tokens, "20 item numbers up to, but", items=np.arange(1, 21))
    refused(np.tile(tokens[:1], (9, 1)), "items of one semantic ID")
    refused(np.unique(tokens[:, :2], axis=0), "of 2 levels, but the layout is for 3")
    refused(np.column_stack([tokens, tokens[:, :1]]), "of 4 levels, but the layout is for 3")
    refused(np.array([[1, 10, 45]]), r"token 1 at level 0 lies below the layout's 2")
    refused(np.array([[40, 10, 45]]), "tokens at level 0 up to")
    tight = dataclasses.replace(layout.levels[1], max_children=1)
    tight = dataclasses.replace(layout, levels=(layout.levels[0], tight, layout.levels[2]))
    refused(tokens, "children of one node at level 1", tight)
    tight = dataclasses.replace(layout.levels[1], max_nodes=2)
    tight = dataclasses.replace(layout, levels=(layout.levels[0], tight, layout.levels[2]))
    refused(tokens, "nodes of depth 2", tight)
    tight = dataclasses.replace(layout.levels[0], max_slots=3)
    tight = dataclasses.replace(layout, levels=(tight, *layout.levels[1:]))
    refused(tokens, "items below one node at level 0", tight)
    refused(tokens, "the layout is for 50 tokens and 0 attributes", vocab_size=51)
    refused(tokens, "0 attributes, not for 50 and 2", attributes=np.ones((20, 2), bool))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([[0, 7]]), r"token 7 of item row 0, level 1 is outside \[0, 6\)"),
        (np.array([[0, 1], [-1, 1]]), r"token -1 of item row 1, level 0"),
        (np.array([[0, 2**63]], np.uint64), r"token 9223372036854775808 of item row 0, level 1"),
        (np.zeros((0, 3), int), r"shape \(0, 3\)"),
        (np.zeros((3, 0), int), r"shape \(3, 0\)"),
        (np.zeros(3, int), r"\[N, L\]"),
        (np.zeros((2, 2)), "integers"),
        (np.zeros((2, 2), bool), "integers"),
        ([[0, 1], [True, 2]], "numbers and truth values mixed"),
        ([[0, 1], [2]], "equally long"),
        ([["a", "b"]], "integers"),
        (np.array([[0, 1]], "m8[D]"), "integers"),
        (np.ma.masked_equal([[0, 1]], 1), "a masked array"),
        ([], r"shape \(0,\)"),
        (3, r"shape \(\)"),
        (None, "integers"),
        ([[2**70, 1]], "integers"),
        (np.zeros((1, 300), int), "300 tokens; at most 255"),
    ],
)
def test_bad_tokens_get_one_clear_error(tokens, message):
    with pytest.raises(TrieError, match=message):
        TrieIndex.build(tokens, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, r"vocab_size must lie in \[1, 2\*\*31\), got 0"),
        ({"vocab_size": 2**31}, "vocab_size"),
        ({"vocab_size": 6.0}, "vocab_size must be an integer, got 6.0"),
        ({"vocab_size": True}, "vocab_size must be an integer, got True"),
        ({"vocab_size": "6"}, "vocab_size must be an integer, got '6'"),
        ({"headroom": -0.1}, "headroom must not be negative, got -0.1"),
        ({"headroom": math.nan}, "headroom must not be negative, got nan"),
        ({"headroom": "much"}, "headroom must not be negative, got 'much'"),
        ({"layout": 3}, "layout must be an index's `layout`, got int"),
        ({"level_ranges": [0, 6]}, r"level_ranges must be pairs \(low, high\)"),
        ({"level_ranges": [(0, 6), (0,)]}, "level_ranges must be integers"),
        ({"level_ranges": [(0, 6)]}, "level_ranges has 1 entries for 2 levels"),
        ({"level_ranges": [(0, 6), (0, 2)]}, r"level_ranges\[1\] is \[0, 2\)"),
        ({"level_ranges": [(0, 6), (0, 7)]}, r"vocabulary in \[0, 6\)"),
        ({"items": [0, 1]}, "items must be 4 integers"),
        ({"items": [True, 1, 2, 3]}, "numbers and truth values mixed"),
        ({"items": [0.0, 1, 2, 3]}, r"items must be integers \[4\], got float64"),
        ({"items": [0, 1, 2, 1]}, "item number 1 has more than one row"),
        ({"items": [0, 1, 2, -1]}, "item numbers must lie in"),
        ({"attributes": np.ones((3, 2), bool)}, r"attributes must be \[N, A\] with N = 4"),
        ({"attributes": np.ones(4, bool)}, r"attributes must be \[N, A\]"),
        ({"attributes": np.ones((4, 0), bool)}, "1 to 64 attributes, got 0"),
        ({"attributes": np.ones((4, 65), bool)}, "1 to 64 attributes, got 65"),
        ({"attributes": np.full((4, 2), 2)}, "truth values"),
    ],
)
def test_bad_options_get_one_clear_error(options, message):
    with pytest.raises(TrieError, match=message):
        TrieIndex.build(HAND, **{"vocab_size": 6} | options)


def test_prefixes_of_any_integer_type_and_length():
    index = TrieIndex.build(np.array([[260, 3], [5, 3]]), 300)
    for dtype in (np.uint8, np.int8, np.int64, np.uint64):
        asked = np.array([[5, 3], [4, 3]], dtype)  # 4 is 260 in eight bits.
        for tokens in (asked, jnp.asarray(asked)):
            assert walk(index, tokens).tolist() == [[0, 0], [NO_NODE, NO_NODE]]
    assert walk(index, np.array([[2**32 + 5, 3]])).tolist() == [[NO_NODE, NO_NODE]]
    assert walk(index, [[5], [260]]).tolist() == [[0], [1]]
    for wrong in (np.zeros((1, 2)), np.zeros((1, 2), bool), np.zeros((1, 3), int), 3):
        with pytest.raises(TrieError, match=r"\[..., t\] with t <= 2"):
            walk(index, wrong)


@of_each_mix
def test_the_index_is_a_pytree(kinds):
    tokens = random_tokens(np.random.default_rng(4), 20)
    index = build(tokens, kinds)
    for same in (jax.jit(lambda x: x)(index), jax.device_put(index, jax.devices()[0])):
        assert same.layout == index.layout
        assert jax.tree.structure(same) == jax.tree.structure(index)
        jax.tree.map(np.testing.assert_array_equal, same, index)
    assert index.nbytes == sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(index))
