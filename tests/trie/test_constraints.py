"""What constraints are made of: live and dead nodes, and attributes of nodes, against dictionaries."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.testing import random_tokens
from gr.trie import NO_NODE, ExcludeItems, ItemMask, TrieIndex
from gr.trie.attributes import pack_attributes
from gr.trie.bit_rows import expand
from gr.trie.layout import DENSE
from gr.trie.live import has_bit, live_nodes, pack_bits

pytestmark = pytest.mark.usefixtures("compile_in_haste")

of_each_mix = pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)


def build(tokens, kinds, **options):
    num_attributes = options["attributes"].shape[1] if options else 0
    layout = tries.roomy_layout(kinds, num_attributes)
    return TrieIndex.build(tokens, tries.VOCAB, layout=layout, **options)


def items_below(tokens, depth):
    """The items below each prefix of a depth, in the order of the prefixes."""
    found = [[] for _ in oracles.prefixes(tokens.tolist())[depth]]
    place = {prefix: n for n, prefix in enumerate(oracles.prefixes(tokens.tolist())[depth])}
    for item, row in enumerate(tokens.tolist()):
        found[place[tuple(row[:depth])]].append(item)
    return found


@of_each_mix
@settings(max_examples=15, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_live_nodes_have_an_allowed_item_below(kinds, tokens, seed):
    index = build(tokens, kinds)
    rng = np.random.default_rng(seed)
    allowed = rng.random(tries.MAX_ITEMS - 4) < rng.choice([0.0, 0.1, 0.5, 1.0])
    live = live_nodes(index, jnp.asarray(allowed))

    def is_allowed(item):
        return item < len(allowed) and bool(allowed[item])

    order = sorted(range(len(tokens)), key=lambda row: (tokens[row].tolist(), row))
    expected = [is_allowed(item) for item in order] + [False] * (tries.MAX_ITEMS - len(order))
    assert has_bit(live.slots, jnp.arange(tries.MAX_ITEMS)).tolist() == expected
    assert len(live.levels) == index.layout.scan_depth
    for depth, level in enumerate(index.layout.levels[: index.layout.scan_depth]):
        below = items_below(tokens, depth + 1)
        expected = [any(map(is_allowed, items)) for items in below]
        if level.kind == DENSE:
            prefixes = oracles.prefixes(tokens.tolist())
            bits = np.zeros((index.layout.max_nodes(depth), level.span), bool)
            for prefix, alive in zip(prefixes[depth + 1], expected, strict=True):
                bits[prefixes[depth].index(prefix[:-1]), prefix[-1] - level.base] = alive
            np.testing.assert_array_equal(expand(live.levels[depth]), bits)
        else:
            found = has_bit(live.levels[depth], jnp.arange(tries.MAX_ITEMS)).tolist()
            assert found == expected + [False] * (tries.MAX_ITEMS - len(expected))


def test_a_mask_per_user_is_several_masks():
    tokens = random_tokens(np.random.default_rng(0), 24)
    index = build(tokens, tries.MIXES[3])
    allowed = np.random.default_rng(1).random((3, 24)) < 0.4
    together = ItemMask.build(index, jnp.asarray(allowed))
    assert together.num_users == 3
    for user in range(3):
        alone = ItemMask.build(index, jnp.asarray(allowed[user]))
        assert alone.num_users is None
        of_user = jax.tree.map(lambda leaf, user=user: leaf[user], together.live)
        jax.tree.map(np.testing.assert_array_equal, of_user, alone.live)


@of_each_mix
@settings(max_examples=15, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_dead_nodes_are_those_with_everything_excluded(kinds, tokens, seed):
    index = build(tokens, kinds)
    rng = np.random.default_rng(seed)
    excluded = rng.integers(-1, len(tokens), (2, 12))
    excluded[1] = rng.integers(-1, 2 * tries.MAX_ITEMS, 12)
    dead = prepare_jit(ExcludeItems(jnp.asarray(excluded)), index)
    for user in range(2):
        gone = set(excluded[user].tolist())
        for depth in range(1, index.layout.scan_depth + 1):
            below = items_below(tokens, depth)
            expected = [n for n, items in enumerate(below) if gone.issuperset(items)]
            parents = dead.parents[depth - 1][user]
            numbers = dead.numbers[depth - 1][user][parents != NO_NODE]
            assert numbers.tolist() == expected
            shorter = oracles.prefixes(tokens.tolist())[depth - 1]
            longer = oracles.prefixes(tokens.tolist())[depth]
            above = [shorter.index(longer[n][:-1]) for n in expected]
            assert parents[parents != NO_NODE].tolist() == above


prepare_jit = jax.jit(lambda constraint, index: constraint.prepare(index))


@pytest.mark.parametrize("num_attributes", [1, 8, 9, 16, 17, 32, 33, 64])
def test_attributes_of_slots_and_nodes(num_attributes):
    rng = np.random.default_rng(num_attributes)
    tokens = random_tokens(rng, 20)
    attributes = rng.random((20, num_attributes)) < 0.5
    index = build(tokens, (DENSE, "sparse", "scan"), attributes=attributes)
    of_slots, (of_bits, of_list) = index.attributes.slots, index.attributes.nodes
    width = 8 if num_attributes <= 8 else 16 if num_attributes <= 16 else 32
    assert of_slots.dtype == f"uint{width}"
    assert of_slots.shape == (tries.MAX_ITEMS, 2 if num_attributes > 32 else 1)

    def flags(words):
        """[..., A] of words [..., w]."""
        bits = np.asarray(words)[..., None] >> np.arange(width, dtype=words.dtype) & 1
        return bits.reshape(*words.shape[:-1], -1)[..., :num_attributes] != 0

    order = sorted(range(20), key=lambda row: (tokens[row].tolist(), row))
    np.testing.assert_array_equal(flags(of_slots[:20]), attributes[order])
    np.testing.assert_array_equal(
        pack_attributes(attributes[order], of_slots.dtype, of_slots.shape[1]), of_slots[:20]
    )
    present, absent = np.split(np.asarray(of_list), 2, axis=-1)
    for node, items in enumerate(items_below(tokens, 2)):
        np.testing.assert_array_equal(flags(present[node]), attributes[items].any(0))
        np.testing.assert_array_equal(flags(absent[node]), (~attributes[items]).any(0))
    bits = np.asarray(expand(of_bits))[0]  # [2A, span]
    base = index.layout.levels[0].base
    for prefix, items in zip(
        oracles.prefixes(tokens.tolist())[1], items_below(tokens, 1), strict=True
    ):
        column = bits[:, prefix[0] - base]
        np.testing.assert_array_equal(column[:num_attributes], attributes[items].any(0))
        np.testing.assert_array_equal(column[num_attributes:], (~attributes[items]).any(0))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_truth_values_of_any_type(dtype):
    tokens = random_tokens(np.random.default_rng(2), 20)
    flags = np.random.default_rng(3).random((20, 3)) < 0.5
    index = build(tokens, tries.MIXES[3], attributes=flags)
    other = build(tokens, tries.MIXES[3], attributes=flags.astype(dtype))
    jax.tree.map(np.testing.assert_array_equal, index, other)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 100])
def test_packed_flags(size):
    flags = np.random.default_rng(size).random(size) < 0.5
    words = pack_bits(jnp.asarray(flags))
    assert words.shape == (-(-size // 32) + 1,) and int(words[-1]) == 0
    assert has_bit(words, jnp.arange(size)).tolist() == flags.tolist()
