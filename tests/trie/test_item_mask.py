"""A mask belongs to its index: on any other one it is refused, or lets nothing through."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.decoding import VedConfig, beam_search, sample, sample_without_replacement, ved_search
from gr.testing import random_table_model, random_tokens
from gr.trie import EditableIndex, ExcludeItems, ItemMask, SwappableIndex, TrieError, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS = 2
MODEL = random_table_model(np.random.default_rng(0), 3, tries.VOCAB, USERS)
HISTORY = jnp.zeros((USERS, 1))
TOKENS = np.unique(random_tokens(np.random.default_rng(1), 20), axis=0)
MIX = tries.MIXES[3]


def build(tokens, kinds=MIX, **options):
    return TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds), **options)


def items_of(found):
    return set(np.asarray(found.items).ravel().tolist()) - {-1}


def decode(index, mask):
    return items_of(beam_search(MODEL, index, HISTORY, tries.MAX_ITEMS, constraint=mask))


decode_in_a_jit = jax.jit(
    lambda index, mask: beam_search(MODEL, index, HISTORY, tries.MAX_ITEMS, constraint=mask)
)
INDEX, OTHER = build(TOKENS), build(TOKENS[::-1])  # The same IDs belong to other items.
MASK = ItemMask.allow(INDEX, [0, 3])


def test_a_mask_of_another_index_is_refused_by_every_search():
    key = jax.random.key(0)
    searches = [
        lambda index: beam_search(MODEL, index, HISTORY, 4, constraint=MASK),
        lambda index: beam_search(MODEL, index, HISTORY, 4, constraint=(ExcludeItems([[], []]), MASK)),
        lambda index: sample(MODEL, index, HISTORY, 4, key=key, constraint=MASK),
        lambda index: sample_without_replacement(MODEL, index, HISTORY, 4, key=key, constraint=MASK),
        lambda index: ved_search(
            MODEL, None, index, HISTORY, VedConfig(budget=20, initial_beams=2), key=key, constraint=MASK
        ),
    ]  # fmt: skip
    for search in searches:
        with pytest.raises(TrieError, match=r"made for another index.*ItemMask\.allow\(index"):
            search(OTHER)
    for search in searches[:1] + searches[2:3]:
        assert items_of(search(INDEX)) == {0, 3}


@pytest.mark.parametrize("kinds", [MIX, tries.MIXES[1]], ids="-".join)
@settings(max_examples=20, deadline=None)
@given(tries.token_sets(), tries.token_sets(), st.integers(0, 10**6))
def test_no_mask_lets_a_forbidden_item_through_on_any_index(kinds, tokens, others, seed):
    # Inside a `jit` of the caller's own, where nothing can be refused.
    rng = np.random.default_rng(seed)
    index, other = build(tokens, kinds), build(others, kinds)
    allowed = rng.random(tries.MAX_ITEMS) < 0.5
    mask = ItemMask.build(index, allowed)
    allowed = set(np.flatnonzero(allowed).tolist())
    assert items_of(decode_in_a_jit(index, mask)) == allowed & set(range(len(tokens)))
    found = items_of(decode_in_a_jit(other, mask))
    # What is let through is right: there is nothing, unless all that a mask depends on is equal.
    assert found in (set(), allowed & set(range(len(others))))
    try:
        assert decode(other, mask) == allowed & set(range(len(others)))
    except TrieError:
        assert found == set()


def test_indexes_known_inside_a_jit_are_compared_there():
    with pytest.raises(TrieError, match="another index"):
        jax.jit(lambda history: beam_search(MODEL, OTHER, history, 4, constraint=MASK))(HISTORY)


def test_a_mask_works_on_every_equal_index(tmp_path):
    INDEX.save(tmp_path / "index.gr")
    equal = [
        build(TOKENS),
        TrieIndex.load(tmp_path / "index.gr"),
        pickle.loads(pickle.dumps(INDEX)),
        jax.jit(lambda index: index)(INDEX),
    ]
    for index in equal:
        assert decode(index, MASK) == {0, 3}
    kept = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, MASK)))
    assert decode(INDEX, kept) == {0, 3}
    with pytest.raises(TrieError, match="another index"):
        decode(OTHER, kept)


def test_an_index_of_another_layout_is_another_one():
    roomy, tight = TrieIndex.build(TOKENS, tries.VOCAB, headroom=0.5), TrieIndex.build(TOKENS, tries.VOCAB)  # fmt: skip
    mask = ItemMask.allow(roomy, [1])
    assert decode(roomy, mask) == {1}
    for refused in (lambda: decode(tight, mask), lambda: decode_in_a_jit(tight, mask)):
        with pytest.raises(TrieError, match="another index"):
            refused()


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"item_count": np.int32(3)}, True),
        ({"item_of_slot": np.uint32(1)}, True),
        ({"first_slot": np.uint32(1)}, True),
        ({"slot_of_item": np.uint32(1), "attributes": np.ones(3), "table": None}, False),
    ],
)
def test_a_fingerprint_is_of_all_that_a_mask_depends_on(change, differs):
    from gr.trie.identity import fingerprint

    fields = jax.tree.map(np.asarray, vars(INDEX) | {"layout": None})
    assert fingerprint(fields).tolist() == INDEX.fingerprint.tolist()
    assert (fingerprint(fields | change).tolist() != INDEX.fingerprint.tolist()) == differs


def test_numbers_of_items_in_every_form():
    tokens = np.arange(400).reshape(200, 2)
    index = TrieIndex.build(tokens, 400)
    slots = jnp.broadcast_to(jnp.arange(200), (3, 200))
    read = jax.jit(lambda mask: mask.slots(index, slots))
    allowed = lambda mask: [np.flatnonzero(row).tolist() for row in read(mask)]  # noqa: E731
    forms = [[5, 9, 5], [9, -7, 5], (5, 9, 9), np.uint8([5, 9, 9]), jnp.int8([5, 9, -1])]
    forms.append(np.uint64([9, 5, 5]))
    for items in forms:
        assert allowed(ItemMask.allow(index, items)) == [[5, 9]] * 3
    assert allowed(ItemMask.deny(index, forms[0])) == [sorted(set(range(200)) - {5, 9})] * 3
    assert allowed(ItemMask.allow(index, [])) == [[]] * 3
    ragged = ItemMask.allow(index, [[5], [], [9, 5, 9]])
    assert ragged.num_users == 3
    assert allowed(ragged) == [[5], [], [5, 9]]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([10**9], "item 1000000000 is beyond 27, the largest number"),
        (np.array([2**40]), "is beyond 27"),
        ([0.0], "items must be integers"),
        ([True, False], "items must be integers"),
        ([True, 2], "numbers and truth values mixed"),
        (["0"], "items must be integers"),
        (3, r"\[S\] or \[users, S\]"),
        (np.zeros((2, 2, 2), int), r"\[S\] or \[users, S\]"),
        ({1, 2}, "items must be integers"),
    ],
)
def test_what_is_no_item_is_refused(items, message):
    for make in (ItemMask.allow, ItemMask.deny):
        with pytest.raises(TrieError, match=message):
            make(INDEX, items)


def test_masks_of_what_is_no_trie_are_refused():
    editable = EditableIndex.build(TOKENS, tries.VOCAB)
    for index in (editable, editable.index, SwappableIndex(INDEX)):
        with pytest.raises(TrieError, match=r"belongs to a TrieIndex.*OverlaidIndex\.mask"):
            ItemMask.allow(index, [0])
    for index in (editable, SwappableIndex(INDEX)):
        with pytest.raises(TrieError, match="index"):
            beam_search(MODEL, index, HISTORY, 2)


@pytest.mark.parametrize("constraint", [3, [1, 2], np.arange(3), {"items": 3}, "seen"])
def test_what_is_no_constraint_is_refused(constraint):
    with pytest.raises(TrieError, match="a constraint must be ExcludeItems"):
        beam_search(MODEL, INDEX, HISTORY, 2, constraint=constraint)


def test_what_is_shown_of_objects_is_short():
    editable = EditableIndex.build(TOKENS, tries.VOCAB).add(TOKENS[:2])[0].remove([0])
    mask = ItemMask.build(INDEX, np.ones((2, 20), bool))
    shown = [INDEX, MASK, mask, editable, editable.index, ExcludeItems([[1], [2, 3]])]
    assert max(len(repr(thing)) for thing in shown) < 200
    assert "array" not in "".join(map(repr, shown)).lower()
    assert repr(INDEX) == f"TrieIndex({len(TOKENS)} items, L=3, V=50, dense+sparse+scan)"
    assert repr(ExcludeItems([[1], [2, 3]])) == "ExcludeItems(int32[2, 2])"
    assert "1 removed" in repr(editable)
    traced = []
    jax.jit(lambda index: traced.append(repr(index)) or index.item_count)(INDEX)
    assert traced == ["TrieIndex(at most 24 items, L=3, V=50, dense+sparse+scan)"]
    assert "TrieIndex" in repr(dataclasses.replace(INDEX, item_count=None))
