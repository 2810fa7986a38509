"""Edited indexes against full rebuilds, over random sequences of operations."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import assert_same_ranking, rows

from gr.decoding import beam_search
from gr.decoding.sources import OneTrie, TwoTries
from gr.testing import TableModel
from gr.trie import (
    AttributeFilter,
    EditableIndex,
    ExcludeItems,
    ItemMask,
    Nodes,
    TrieError,
    TrieIndex,
    walk,
)
from gr.trie.layout import MAX_ITEMS

VOCAB, LENGTH, USERS, ATTRIBUTES = 5, 3, 2, 3

pytestmark = pytest.mark.usefixtures("compile_in_haste")


def random_table_model(rng):
    table = rng.normal(size=(USERS, LENGTH, VOCAB, VOCAB)) * 2
    return TableModel(jnp.asarray(table, jnp.float32))


walk_jit = jax.jit(walk)


class Catalogue:
    """The plain version of `EditableIndex`: a dictionary from item number to tokens and attributes."""

    def __init__(self, tokens, attributes):
        self.tokens = dict(enumerate(tokens.tolist()))
        self.attributes = dict(enumerate(attributes.tolist()))
        self.next = len(tokens)

    def add(self, tokens, attributes):
        numbers = list(range(self.next, self.next + len(tokens)))
        self.tokens.update(zip(numbers, tokens.tolist(), strict=True))
        self.attributes.update(zip(numbers, attributes.tolist(), strict=True))
        self.next += len(tokens)
        return numbers

    def remove(self, items):
        for item in items:
            self.tokens.pop(item, None)

    def ranking(self, model, user, num_beams, allowed=lambda item: True):
        numbers = [item for item in self.tokens if allowed(item)]
        if not numbers:
            return []
        table = np.array([self.tokens[item] for item in numbers])
        by_sid = oracles.items_by_sid(table)
        beams = oracles.beam_search(table, model.log_prob(user), num_beams)
        return [(score, sid, sorted(numbers[row] for row in by_sid[sid])) for score, sid in beams]


def assert_searches_equal(
    model, editable, plain, constraint=None, allowed=lambda user: lambda item: True
):
    for num_beams in (2, 32):
        found = beam_search(
            model, editable.index, jnp.zeros((USERS, 1)), num_beams, constraint=constraint
        )
        for user in range(USERS):
            expected = plain.ranking(model, user, num_beams, allowed(user))
            assert_same_ranking(rows(found, user), expected)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 4)),
        st.tuples(st.just("remove"), st.integers(1, 6)),
        st.just(("compact", 0)),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), operations)
def test_any_sequence_of_operations_equals_a_rebuild(seed, sequence):
    rng = np.random.default_rng(seed)
    model = random_table_model(rng)
    draw = lambda n: (rng.integers(0, VOCAB, (n, LENGTH)), rng.random((n, ATTRIBUTES)) < 0.5)  # noqa: E731
    tokens, attributes = draw(12)
    editable = EditableIndex.build(tokens, VOCAB, attributes=attributes)
    plain = Catalogue(tokens, attributes)
    for name, count in sequence:
        if name == "add":
            tokens, attributes = draw(count)
            editable, numbers = editable.add(tokens, attributes=attributes)
            assert numbers.tolist() == plain.add(tokens, attributes)
        elif name == "remove":
            items = rng.integers(0, plain.next, count)
            editable = editable.remove(items)
            plain.remove(items.tolist())
        elif plain.tokens:
            editable = editable.compact()
            assert editable.index.added is None and editable.index.base_live is None
    assert editable.num_items == len(plain.tokens)
    assert_searches_equal(model, editable, plain)


@pytest.fixture(scope="module")
def edited():
    """An index with additions and removals on both sides, and its plain version."""
    rng = np.random.default_rng(4)
    tokens, attributes = rng.integers(0, VOCAB, (40, LENGTH)), rng.random((40, ATTRIBUTES)) < 0.5
    editable, plain = (
        EditableIndex.build(tokens, VOCAB, attributes=attributes),
        Catalogue(tokens, attributes),
    )
    tokens, attributes = rng.integers(0, VOCAB, (9, LENGTH)), rng.random((9, ATTRIBUTES)) < 0.5
    editable, _ = editable.add(tokens, attributes=attributes)
    plain.add(tokens, attributes)
    gone = [3, 4, 17, 41, 45]
    plain.remove(gone)
    return editable.remove(np.array(gone)), plain, random_table_model(rng)


def test_exclusion_on_an_edited_index(edited):
    editable, plain, model = edited
    excluded = np.array([[0, 8, 40, 42, 3, -1], [48, 47, 46, 5, 6, 7]])
    assert_searches_equal(
        model,
        editable,
        plain,
        ExcludeItems(jnp.asarray(excluded)),
        lambda user: lambda item: item not in excluded[user],
    )


def test_item_mask_on_an_edited_index(edited):
    editable, plain, model = edited
    rng = np.random.default_rng(0)
    for shape in ((49,), (USERS, 49), (30,)):  # The last: numbers from 30 on are not allowed.
        allowed = rng.random(shape) < 0.5
        per_user = np.broadcast_to(allowed, (USERS, shape[-1]))
        assert_searches_equal(
            model,
            editable,
            plain,
            editable.index.mask(jnp.asarray(allowed)),
            lambda user, a=per_user: lambda item: item < a.shape[1] and a[user, item],
        )


def test_attributes_on_an_edited_index(edited):
    editable, plain, model = edited
    wanted = np.array([[1, 0, 0], [0, 1, 0]], bool)
    # One demand, so that a prefix is open exactly if some item below it meets it: the oracle's own rule.
    assert_searches_equal(
        model,
        editable,
        plain,
        AttributeFilter(any_of=jnp.asarray(wanted)),
        lambda user: lambda item: plain.attributes[item][user],
    )


def test_a_mask_of_one_index_is_refused(edited):
    editable, _, model = edited
    mask = ItemMask.build(editable.index.base, jnp.ones(40, bool))
    with pytest.raises(TrieError, match=r"OverlaidIndex\.mask"):
        beam_search(model, editable.index, jnp.zeros((USERS, 1)), 2, constraint=mask)


def test_items_allowed_and_denied_on_an_edited_index(edited):
    editable, plain, model = edited
    items = [[0, 8, 40, 42, 3, -1], [48, 47, 5]]
    index = editable.index
    for mask, kept in (
        (index.allow(items), lambda user: lambda item: item in items[user]),
        (index.deny(items), lambda user: lambda item: item not in items[user]),
        (index.allow([7, 44]), lambda user: lambda item: item in (7, 44)),
    ):
        assert_searches_equal(model, editable, plain, mask, kept)
    made_inside = jax.jit(lambda index, items: index.allow(items))(index, jnp.array([7, 44, 10**6]))
    assert_searches_equal(model, editable, plain, made_inside, lambda user: lambda i: i in (7, 44))
    for make in (index.allow, index.deny):
        with pytest.raises(TrieError, match="item 1000000 is beyond"):
            make([3, 10**6])
        with pytest.raises(TrieError, match="integers"):
            make([3.0])


def test_the_mask_of_an_edited_index_outlives_removals_and_nothing_else():
    rng = np.random.default_rng(3)
    tokens, more = rng.integers(0, VOCAB, (12, LENGTH)), rng.integers(0, VOCAB, (4, LENGTH))
    model = random_table_model(rng)

    def decoded(editable, mask):
        found = beam_search(model, editable.index, jnp.zeros((USERS, 1)), 16, constraint=mask)
        return set(np.asarray(found.items).ravel().tolist()) - {-1}

    editable = EditableIndex.build(tokens, VOCAB)
    mask = editable.index.allow([1, 2])
    longer, _ = editable.add(more)
    with pytest.raises(TrieError, match="before items were added"):
        decoded(longer, mask)  # New items are not let through as if nobody had asked.
    mask = longer.index.allow([1, 13])
    assert decoded(longer, mask) == {1, 13}
    assert decoded(longer.remove([13, 2]), mask) == {1}
    for other in (longer.add(more)[0], longer.compact(), longer.remove(0).compact(), editable):
        with pytest.raises(TrieError, match="made for another index"):
            decoded(other, mask)
    with pytest.raises(TrieError, match="edited index, not for TrieIndex"):
        beam_search(model, longer.index.base, jnp.zeros((USERS, 1)), 4, constraint=mask)
    # A compacted index may have no room for numbers of items that are gone.
    compact = longer.remove(15).compact()
    assert decoded(compact, compact.index.allow([15, 3])) == {3}


def test_when_everything_is_removed_nothing_is_valid():
    rng = np.random.default_rng(0)
    editable = EditableIndex.build(rng.integers(0, VOCAB, (6, LENGTH)), VOCAB)
    editable, _ = editable.add(rng.integers(0, VOCAB, (2, LENGTH)))
    editable = editable.remove(np.arange(8))
    found = beam_search(random_table_model(rng), editable.index, jnp.zeros((USERS, 1)), 4)
    assert not found.valid.any() and (found.items == -1).all()
    with pytest.raises(TrieError, match="no item is left"):
        editable.compact()


def test_editing_leaves_the_earlier_index_as_it_was():
    tokens = np.array([[0, 1, 2], [3, 4, 0]])
    first = EditableIndex.build(tokens, VOCAB)
    second, _ = first.add(np.array([[1, 1, 1]]))
    third = second.remove(np.array([0]))
    assert (first.num_items, second.num_items, third.num_items) == (2, 3, 2)
    assert first.index.added is None and second.index.base_live is None


def test_adding_a_few_more_items_keeps_the_layout():
    rng = np.random.default_rng(1)
    editable = EditableIndex.build(rng.integers(0, VOCAB, (20, LENGTH)), VOCAB)
    tokens = np.array([[0, 0, 0], [0, 1, 0], [2, 2, 1], [2, 3, 4]])
    before, _ = editable.add(tokens)
    after, _ = before.add(np.array([[2, 2, 2]]))
    assert jax.tree.structure(before.index) == jax.tree.structure(after.index)
    assert after.index.added.num_items == 5


def test_bad_edits_get_one_clear_error():
    editable = EditableIndex.build(np.array([[0, 1, 2]]), VOCAB)
    with pytest.raises(TrieError, match=r"new tokens must be \[n, 3\]"):
        editable.add(np.array([[0, 1]]))
    with pytest.raises(TrieError, match="outside"):
        editable.add(np.array([[0, 1, VOCAB]]))
    with pytest.raises(TrieError, match="item 7 cannot be removed"):
        editable.remove(np.array([0, 7]))
    with pytest.raises(TrieError, match="attributes"):
        editable.add(np.array([[0, 1, 2]]), attributes=np.ones((1, 2), bool))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint64, None])
def test_added_tokens_are_kept_whatever_the_type_of_the_first(dtype):
    first = [[1, 2], [3, 4]] if dtype is None else np.array([[1, 2], [3, 4]], dtype)
    editable = EditableIndex.build(first, 70_000)
    if dtype is not None:
        first[:] = 0  # The caller's own array.
    for new in ([[3, 260]], np.uint16([[3, 40_000]]), np.int64([[69_999, 4]])):
        editable, numbers = editable.add(new)
        assert editable.tokens[numbers].tolist() == np.asarray(new).tolist()
    assert editable.tokens[:2].tolist() == [[1, 2], [3, 4]]
    index = editable.compact().index.base
    kept = [[1, 2], [3, 4], [3, 260], [3, 40_000], [69_999, 4]]
    assert (np.asarray(walk_jit(index, np.array(kept))) >= 0).all()
    assert index.num_nodes == (1, 3, 5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[3.0, 4.9, 1.0]], "new tokens must be integers"),
        (np.ones((1, 3), bool), "new tokens must be integers"),
        ([[0, True, 2]], "numbers and truth values mixed"),
        ([["a", "b", "c"]], "new tokens must be integers"),
        ([[0, 1, 2], [1]], "equally long"),
        ([[0, 1, -1]], "token -1 of item row 0, level 2 is outside"),
        ([[0, 1, 2**40]], "token 1099511627776 of item row 0, level 2 is outside"),
        (np.array([[0, 1, 2**63]], np.uint64), "token 9223372036854775808"),
        (np.array([[0, 1, 2]], "m8[s]"), "new tokens must be integers"),
        ([0, 1, 2], r"\[n, 3\], got shape \(3,\)"),
        (3, r"\[n, 3\], got shape \(\)"),
        ([[]], r"\[n, 3\], got shape \(1, 0\)"),
        (np.zeros((0, 2), int), r"\[n, 3\], got shape \(0, 2\)"),
        (None, "new tokens must be integers"),
    ],
)
def test_tokens_are_never_reinterpreted(tokens, message):
    editable = EditableIndex.build(np.array([[0, 1, 2]]), VOCAB)
    with pytest.raises(TrieError, match=message):
        editable.add(tokens)


@pytest.mark.parametrize("tokens", [[], np.zeros((0, 3), int)])
def test_no_new_items_change_nothing(tokens):
    editable = EditableIndex.build(np.array([[0, 1, 2]]), VOCAB)
    same, numbers = editable.add(tokens)
    assert same is editable and numbers.tolist() == []


@pytest.mark.parametrize(
    ("items", "left"),
    [(1, [0, 2]), (np.int64(1), [0, 2]), ([1, 1], [0, 2]), ([], [0, 1, 2]), (jnp.array([2]), [0, 1]),
     (np.array([0, 2], np.uint64), [1]), ((0,), [1, 2])],
)  # fmt: skip
def test_removing_in_every_form(items, left):
    editable = EditableIndex.build(np.array([[0, 1, 2], [1, 1, 2], [2, 1, 2]]), VOCAB)
    fewer = editable.remove(items).remove(items)
    assert np.flatnonzero(~fewer.removed).tolist() == left
    assert not editable.removed.any()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([1.0], "integers"),
        ([1.7], "integers"),
        (np.array([True, False, True]), "integers"),
        ([True, 1], "mixed"),
        (["1"], "integers"),
        (None, "integers"),
        ([[1], [0]], r"integers \[n\], got shape \(2, 1\)"),
        (-1, "item -1 cannot be removed"),
        (np.array([2**63], np.uint64), "item 9223372036854775808 cannot be removed"),
    ],
)
def test_what_is_no_item_number_is_not_removed(items, message):
    editable = EditableIndex.build(np.array([[0, 1, 2], [1, 1, 2], [2, 1, 2]]), VOCAB)
    with pytest.raises(TrieError, match=message):
        editable.remove(items)


@pytest.mark.parametrize(
    "attributes", [[[2, 0]], [["yes", "no"]], [[0.5, 1]], [[np.nan, 1]], [[1], [1, 0]], [[1, 0, 1]]]
)
def test_attributes_of_new_items_are_never_reinterpreted(attributes):
    flags = np.array([[True, False]])
    editable = EditableIndex.build(np.array([[0, 1, 2]]), VOCAB, attributes=flags)
    flags[:] = False  # The caller's own array.
    with pytest.raises(TrieError, match="attributes"):
        editable.add([[0, 1, 1]], attributes=attributes)
    longer, _ = editable.add([[0, 1, 1]], attributes=[[0, 1]])
    assert longer.attributes.tolist() == [[True, False], [False, True]]


def test_names_of_old_and_new_nodes_differ_up_to_the_end_of_int32():
    layout = types.SimpleNamespace(num_names=2**30 + 7)
    tries = [OneTrie(types.SimpleNamespace(layout=layout), None)] * 2
    states = Nodes(jnp.array([2**30 + 6, 0]), jnp.array([2**30 + 7, 0]))
    added = Nodes(jnp.array([0, 5]), jnp.array([0, 6]))
    assert TwoTries(*tries, jnp.int32(0)).names((states, added)).tolist() == [
        2**30 + 6,
        2**30 + 7 + 5,
    ]
    editable = EditableIndex.build(np.array([[0, 1, 2]]), VOCAB)
    layout = dataclasses.replace(editable.index.base.layout, max_items=MAX_ITEMS)
    base = dataclasses.replace(editable.index.base, layout=layout)
    full = dataclasses.replace(editable, index=dataclasses.replace(editable.index, base=base))
    with pytest.raises(TrieError, match="more nodes than int32 can name: compact first"):
        full.add([[0, 1, 1]])


def test_item_numbers_that_are_given_are_those_returned():
    tokens = np.array([[0, 1, 2], [0, 1, 2], [4, 0, 0]])
    index = TrieIndex.build(tokens, VOCAB, items=np.array([7, 2, 30]))
    found = beam_search(
        random_table_model(np.random.default_rng(0)), index, jnp.zeros((USERS, 1)), 3
    )
    lists = {tuple(items) for items in np.asarray(found.items[0]).tolist()}
    assert lists == {(7, 2), (30, -1), (-1, -1)}
