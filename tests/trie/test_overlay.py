"""Edited indexes against full rebuilds, over random sequences of operations."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_model import TableModel, assert_same_ranking, rows

from gr.decoding import beam_search
from gr.trie import AttributeFilter, EditableIndex, ExcludeItems, ItemMask, TrieError, TrieIndex

VOCAB, LENGTH, USERS, ATTRIBUTES = 5, 3, 2, 3

pytestmark = pytest.mark.usefixtures("compile_in_haste")


def random_model(rng):
    table = rng.normal(size=(USERS, LENGTH, VOCAB, VOCAB)) * 2
    return TableModel(jnp.asarray(table, jnp.float32))


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


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), operations)
def test_any_sequence_of_operations_equals_a_rebuild(seed, sequence):
    rng = np.random.default_rng(seed)
    model = random_model(rng)
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
    return editable.remove(np.array(gone)), plain, random_model(rng)


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


def test_when_everything_is_removed_nothing_is_valid():
    rng = np.random.default_rng(0)
    editable = EditableIndex.build(rng.integers(0, VOCAB, (6, LENGTH)), VOCAB)
    editable, _ = editable.add(rng.integers(0, VOCAB, (2, LENGTH)))
    editable = editable.remove(np.arange(8))
    found = beam_search(random_model(rng), editable.index, jnp.zeros((USERS, 1)), 4)
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


def test_item_numbers_that_are_given_are_those_returned():
    tokens = np.array([[0, 1, 2], [0, 1, 2], [4, 0, 0]])
    index = TrieIndex.build(tokens, VOCAB, items=np.array([7, 2, 30]))
    found = beam_search(random_model(np.random.default_rng(0)), index, jnp.zeros((USERS, 1)), 3)
    lists = {tuple(items) for items in np.asarray(found.items[0]).tolist()}
    assert lists == {(7, 2), (30, -1), (-1, -1)}
