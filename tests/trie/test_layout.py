"""The choice of how each level is stored: whatever is chosen, the trie is the same."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gr.trie import NO_NODE, Nodes, TrieError, TrieIndex, walk
from gr.trie.build import count_prefixes
from gr.trie.layout import (
    DENSE,
    MAX_ITEMS,
    SCAN,
    SPARSE,
    Shape,
    check_capacity,
    choose_layout,
    joined_shape,
    layout_of_shards,
)
from gr.trie.transitions import _find_listed

pytestmark = pytest.mark.usefixtures("compile_in_haste")


def uniform(rng):
    return rng.integers(0, 64, (3000, 4)) + 64 * np.arange(4), 256


def one_long_stem(rng):
    tokens = rng.integers(0, 30, (200, 6)) + 7
    tokens[:, :4] = 9, 8, 7, 36
    return tokens, 37


def many_items_of_one_id(rng):
    tokens = rng.integers(0, 5, (300, 2))
    tokens[:200] = 3, 3
    return tokens, 5


def skewed_below_many_nodes(rng):
    tokens = rng.integers(0, 20_000, (20_000, 3))
    tokens[:3000, 1] = 5
    tokens[:3000, 0] = 11
    return tokens, 20_000


CASES = {
    uniform: (DENSE, DENSE, SCAN, SCAN),
    one_long_stem: (DENSE, DENSE, DENSE, DENSE, DENSE, SCAN),
    many_items_of_one_id: (DENSE, DENSE),
    skewed_below_many_nodes: (DENSE, SPARSE, SCAN),
}


def assert_same_prefixes(index, tokens, query):
    """Walks `query` through the trie and through a set of prefixes."""
    names = np.asarray(jax.jit(walk)(index, jnp.asarray(query)))
    for depth in range(1, tokens.shape[1] + 1):
        known = {tuple(row) for row in tokens[:, :depth].tolist()}
        rows = [tuple(row) for row in query[:, :depth].tolist()]
        assert (names[:, depth - 1] != NO_NODE).tolist() == [row in known for row in rows]
        # A name for each prefix, and a prefix for each name.
        found = [
            (row, name) for row, name in zip(rows, names[:, depth - 1], strict=True) if name >= 0
        ]
        assert len(set(found)) == len({row for row, _ in found}) == len({n for _, n in found})


@pytest.mark.parametrize("case", CASES)
def test_sets_of_all_sorts(case):
    rng = np.random.default_rng(0)
    tokens, vocab_size = case(rng)
    index = TrieIndex.build(tokens, vocab_size)
    layout = index.layout
    assert tuple(level.kind for level in layout.levels) == CASES[case]
    assert layout.scan_depth == sum(kind != SCAN for kind in CASES[case])
    for level in layout.levels:
        assert level.kind != DENSE or level.span % 32 == 0
    query = tokens[rng.integers(0, len(tokens), 200)].copy()
    query[100:, -1] = rng.integers(0, vocab_size, 100)
    query[150:, 1] = rng.integers(0, vocab_size, 50)
    assert_same_prefixes(index, tokens, query)


@pytest.mark.parametrize("headroom", [0.1, 1.0])
def test_headroom_is_room_for_everything(headroom):
    tokens, vocab_size = uniform(np.random.default_rng(1))
    tight = TrieIndex.build(tokens, vocab_size).layout
    roomy = TrieIndex.build(tokens, vocab_size, headroom=headroom).layout
    assert roomy.max_items == -(-3000 * (1 + headroom) // 1)
    assert roomy.max_item >= 2999 * (1 + headroom)
    for mine, theirs in zip(roomy.levels, tight.levels, strict=True):
        assert mine.kind == theirs.kind
        assert mine.max_slots >= theirs.max_slots * (1 + headroom)
        assert mine.max_nodes >= theirs.max_nodes * (1 + headroom)


def test_parts_of_a_set_are_stored_as_the_whole_and_have_its_counts():
    rng = np.random.default_rng(2)
    sets = [
        rng.integers(0, 64, (2000, 3)) + [0, 64, 128],
        rng.integers(0, 10, (40, 3)) + [64, 64, 150],
        np.array([[80, 100, 190]]),
    ]
    index = TrieIndex.build(np.concatenate(sets), 192)
    shapes = [count_prefixes(tokens, 192) for tokens in sets]
    shape = joined_shape(shapes)
    assert shape == count_prefixes(np.concatenate(sets), 192)
    assert choose_layout(shape, 192) == index.layout
    layout = layout_of_shards(index.layout, shapes)
    alone = [TrieIndex.build(tokens, 192).layout for tokens in sets]
    kinds = {tuple(level.kind for level in one.levels) for one in (layout, *alone)}
    assert len(kinds) > 1 and layout.scan_depth == index.layout.scan_depth
    indexes = [TrieIndex.build(tokens, 192, layout=layout) for tokens in sets]
    assert len({jax.tree.structure(index) for index in indexes}) == 1
    for index, tokens in zip(indexes, sets, strict=True):
        query = np.concatenate([tokens[rng.integers(0, len(tokens), 60)], sets[0][:60]])
        assert_same_prefixes(index, tokens, query)
        assert index.num_nodes == tuple(len(p) for p in oracles.prefixes(tokens.tolist()))


def shape_of(num_items, length=8, high=2047, max_slots=1):
    """Of so many items below all of 2048 first tokens, each alone from the second on."""
    return Shape(
        lows=(0,) * length,
        highs=(high,) * length,
        num_nodes=(1, 2048, *(num_items,) * (length - 1)),
        max_children=(2048, num_items // 2048 + 1, *(1,) * (length - 2)),
        max_slots=(num_items, num_items // 2048 + 1, *(max_slots,) * (length - 1)),
        num_items=num_items,
        max_item=num_items - 1,
    )


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (shape_of(100_000_000), {}, None),
        (shape_of(1_000_000_000), {}, None),  # 66 bits an item: 2.06 billion words.
        (shape_of(1_000_000_000), {"headroom": 0.25}, "words in the table"),
        (shape_of(1_500_000_000), {}, "words in the table"),
        (shape_of(110_000_000, 64), {}, "words in the table"),
        (shape_of(2_000_000_000, 2), {"headroom": 0.1}, "item numbers"),
        (shape_of(MAX_ITEMS, 2, max_slots=2**17), {}, "places"),
    ],
)
def test_what_int32_cannot_count_is_refused_before_it_is_built(shape, options, message):
    layout = choose_layout(shape, 2048, **options)
    words = -(-layout.max_items // 32) * layout.table_bits + 1
    if message is None:
        assert words < 2**31
        check_capacity(layout)
        return
    with pytest.raises(TrieError, match=f"{message}.* exceed the int32 numbers .*ShardedIndex"):
        check_capacity(layout)


def test_a_layout_that_is_too_large_builds_no_index():
    layout = TrieIndex.build(np.array([[0, 1]]), 2).layout
    with pytest.raises(TrieError, match="exceed the int32 numbers"):
        TrieIndex.build(np.array([[0, 1]]), 2, headroom=1e10)
    with pytest.raises(TrieError, match="exceed the int32 numbers"):
        TrieIndex.build(np.array([[0, 1]]), 2, layout=dataclasses.replace(layout, max_item=2**31))


def test_a_search_among_the_last_children_that_int32_can_number():
    first = MAX_ITEMS - 1000
    level = types.SimpleNamespace(max_children=1000, max_nodes=MAX_ITEMS, base=0)
    index = types.SimpleNamespace(
        layout=types.SimpleNamespace(levels=[level]),
        first_child=[types.SimpleNamespace(interval=lambda begin: (begin * 0 + first, begin * 0 + MAX_ITEMS))],
        children=[Offsets(first)],
    )  # fmt: skip
    tokens = jnp.array([0, 1, 998, 999, 1000])
    nodes = Nodes(jnp.zeros(5, jnp.int32), jnp.ones(5, jnp.int32))
    found, exists = _find_listed(index, 0, nodes, tokens)
    assert exists.tolist() == [True, True, True, True, False]
    assert (found - first).tolist()[:4] == [0, 1, 998, 999]


class Offsets:
    """Child number n has token n - first."""

    def __init__(self, first):
        self.first = first

    def __getitem__(self, number):
        return number - self.first
