"""Statistics of tries small enough to be counted by hand, and of others against dictionaries."""

import collections
import math

import numpy as np
import oracles
import pytest
import tries

from gr.testing import random_tokens
from gr.trie import TrieError, TrieIndex
from gr.trie.statistics import LevelStatistics, log2_binomial, statistics

pytestmark = pytest.mark.usefixtures("compile_in_haste")

# Depth 1: (2), (3). Depth 2: (2, 5), (3, 0), (3, 1), the last of two items.
HAND = np.array([[3, 1], [2, 5], [3, 1], [3, 0]])


def test_a_trie_by_hand():
    layout = TrieIndex.build(HAND, 6).layout
    index = TrieIndex.build(HAND, 6, layout=tries.with_kinds(layout, ("dense", "scan")))
    found = statistics(index, level_sizes=(2, 6))
    # Bits of a word and pointers of two elements of two bits, then three bits an item.
    assert found.levels == (
        LevelStatistics("dense", 2, 2.0, 2, 3, 4 + 4 * (2 + 1)),
        LevelStatistics("scan", 3, 1.5, 2, 2, 4 * 3),
    )
    assert (found.items, found.distinct_sids) == (4, 3)
    assert (found.colliding_items, found.largest_group) == (2, 2)
    # Besides: first_slot 3 + 1 words, a word behind the table, item_of_slot 2 + 1, slot_of_item 3 + 1,
    # node_counts 3, item_count 1, fingerprint 2.
    assert found.nbytes == index.nbytes == 16 + 12 + 4 * (4 + 1 + 3 + 4 + 3 + 1 + 2)
    assert found.bytes_per_item == found.nbytes / 4
    assert found.floor_bytes_per_item == pytest.approx(math.log2(math.comb(12, 3)) / 4 / 8)
    assert found.attribute_bytes == 0


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
def test_against_dictionaries(kinds):
    rng = np.random.default_rng(0)
    for count in (1, 10, 24):
        tokens = random_tokens(rng, count)
        layout = tries.roomy_layout(kinds, 3)
        attributes = rng.random((count, 3)) < 0.5
        index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
        found = statistics(index)
        prefixes = oracles.prefixes(tokens.tolist())
        for depth, level in enumerate(found.levels):
            children = collections.Counter(p[:-1] for p in prefixes[depth + 1])
            below = collections.Counter(tuple(row[: depth + 1]) for row in tokens.tolist())
            assert level.kind == kinds[depth]
            assert level.nodes == len(prefixes[depth + 1])
            assert level.mean_branching == len(prefixes[depth + 1]) / len(prefixes[depth])
            assert level.largest_branching == max(children.values())
            assert level.most_items == max(below.values())
        groups = [len(items) for items in oracles.items_by_sid(tokens).values()]
        assert found.items == count
        assert found.distinct_sids == len(groups)
        assert found.colliding_items == sum(size for size in groups if size > 1)
        assert found.largest_group == max(groups)
        assert found.attribute_bytes >= tries.MAX_ITEMS
        assert found.nbytes == index.nbytes > sum(level.nbytes for level in found.levels)


@pytest.mark.parametrize(
    ("sizes", "count"), [((2, 6), 3), ((1,), 1), ((4, 4), 16), ((256,) * 4, 2415), ((10,), 9)]
)
def test_the_floor_is_that_of_whole_numbers(sizes, count):
    exact = math.comb(math.prod(sizes), count)
    assert log2_binomial(math.prod(sizes), count) == pytest.approx(math.log2(exact), abs=1e-6)


def test_the_floor_where_the_product_is_beyond_floating_point():
    # Almost no two of so few are alike.
    expected = 100 * 64 * 20 - math.lgamma(101) / math.log(2)
    assert log2_binomial(2 ** (20 * 64), 100) == pytest.approx(expected)


@pytest.mark.parametrize("sizes", [(2,), (2, 0), (1, 2)])
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(TrieError, match="level_sizes must be 2|cannot hold 3 semantic IDs"):
        statistics(TrieIndex.build(HAND, 6), level_sizes=sizes)
