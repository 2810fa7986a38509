"""`ExcludeItems` in every form it may be given, and constraints of no users."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries

from gr.decoding import beam_search
from gr.decoding.trie_step import allowed_tokens
from gr.testing import random_table_model, random_tokens
from gr.trie import (
    AttributeFilter,
    ExcludeItems,
    ItemMask,
    NodeVectors,
    TrieError,
    TrieIndex,
    descend,
    items_of,
    prepare,
    root,
    walk,
)

pytestmark = pytest.mark.usefixtures("compile_in_haste")

ITEMS = 200
INDEX = TrieIndex.build(np.arange(2 * ITEMS).reshape(ITEMS, 2), 2 * ITEMS)


@jax.jit
def allowed_slots(constraint):
    slots = jnp.broadcast_to(jnp.arange(ITEMS), (constraint.num_users, ITEMS))
    return prepare(constraint, INDEX).slots(INDEX, slots)


def left(constraint):
    """The items that each user's exclusion leaves."""
    return [set(np.flatnonzero(row).tolist()) for row in allowed_slots(constraint)]


@pytest.mark.parametrize(
    "items",
    [
        [[5], [9, 150, 5]],
        ([5], (9, 150, 5)),
        [np.array([5]), np.array([9, 150, 5])],
        [jnp.array([5, 5]), jnp.array([9, 5, 150])],
        np.array([[5, -1, -1], [9, 150, 5]]),
        np.array(
            [[5, 255, 5], [9, 150, 5]], np.uint8
        ),  # Of items that are not there nothing is said.
        jnp.array([[5, 5, 5], [9, 150, 5]], jnp.uint8),
        np.array([[5, 2**32 + 7, 2**40], [9, 150, 5]]),
        np.array([[5, 2**32 - 1, 2**31], [9, 150, 5]], np.uint32),
        np.array([[5, 2**63, 5], [9, 150, 5]], np.uint64),
    ],
)
def test_the_same_items_in_every_form(items):
    everything = set(range(ITEMS))
    assert left(ExcludeItems(items)) == [everything - {5}, everything - {5, 9, 150}]


def test_a_narrow_type_cannot_hold_larger_numbers_and_need_not():
    assert left(ExcludeItems(jnp.array([[100], [-3]], jnp.int8)))[0] == set(range(ITEMS)) - {100}


@pytest.mark.parametrize("items", [[[], []], [[]] * 2, np.zeros((2, 0), int), jnp.zeros((2, 0), int)])  # fmt: skip
def test_nothing_is_excluded(items):
    assert left(ExcludeItems(items)) == [set(range(ITEMS))] * 2


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([0, 1], r"ExcludeItems wants \[B, S\].*got shape \[2\]"),
        (jnp.array([0, 1]), r"ExcludeItems wants \[B, S\].*got shape \[2\]"),
        (np.zeros((2, 2, 2), int), r"ExcludeItems wants \[B, S\].*got shape \[2, 2, 2\]"),
        (3, r"ExcludeItems wants \[B, S\].*got shape \[\]"),
        ([[0], 1], "each row a list"),
        ([[0.5], [1]], "each row of ExcludeItems must be integers"),
        ([[True], [1]], "each row of ExcludeItems must be integers"),
        ([[True, 2], [1]], "numbers and truth values mixed"),
        ([["a"], ["b"]], "each row of ExcludeItems must be integers"),
        ([[2**70], [1]], "each row of ExcludeItems must be integers"),
        ([{1}, {2}], "ExcludeItems must be integers"),
        (np.zeros((2, 1)), "ExcludeItems must be integers .* got float64"),
        (jnp.zeros((2, 1), bool), "ExcludeItems must be integers .* got bool"),
        (np.array([["a"], ["b"]]), "ExcludeItems must be integers"),
        (None, "ExcludeItems must be integers"),
    ],
)
def test_what_is_no_item_of_each_user_is_refused(items, message):
    model = random_table_model(np.random.default_rng(0), 2, 2, 2)
    index = TrieIndex.build(np.array([[0, 1], [1, 0]]), 2)
    with pytest.raises(TrieError, match=message) as caught:
        beam_search(model, index, jnp.zeros((2, 1)), 2, constraint=ExcludeItems(items))
    assert "\n" not in str(caught.value)


def test_it_is_a_pytree_of_one_array():
    excluded = jax.jit(lambda constraint: prepare(constraint, INDEX).excluded)
    assert excluded(ExcludeItems([[1], [2, 3]])).tolist() == [[1, 200, 200], [2, 3, 200]]
    several = ExcludeItems(np.arange(12).reshape(3, 2, 2))
    expected = [[[0, 1, 200], [2, 3, 200]], [[4, 5, 200], [6, 7, 200]], [[8, 9, 200], [10, 11, 200]]]  # fmt: skip
    assert jax.vmap(excluded)(several).tolist() == expected
    shapes = jax.eval_shape(lambda constraint: constraint, several)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes.items) == (3, 2, 2)
    assert jax.grad(lambda w, c: w * c.items.sum())(2.0, several) == 66.0


# Of no users.


@pytest.mark.parametrize("kinds", tries.MIXES[1:5], ids="-".join)
def test_no_users_are_as_good_as_some(kinds):
    rng = np.random.default_rng(0)
    tokens, attributes = random_tokens(rng, 20), rng.random((20, 3)) < 0.5
    layout = tries.roomy_layout(kinds, 3)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    nobody = jnp.zeros((0, 3), bool)
    constraints = [
        ExcludeItems([]),
        ExcludeItems(jnp.zeros((0, 200), int)),
        ItemMask.build(index, nobody),
        ItemMask.allow(index, np.zeros((0, 2), int)),
        AttributeFilter(any_of=nobody, all_of=nobody, none_of=nobody),
    ]

    def searched(index, constraint):
        assert constraint.num_users == 0
        only, nodes, shapes = prepare(constraint, index), root(index, (0, 4)), []
        for depth in range(3):
            shapes += allowed_tokens(index, depth, nodes, only)
            nodes = descend(index, depth, nodes, jnp.zeros((0, 4), int))
        return shapes, items_of(index, nodes), only.slots(index, jnp.zeros((0, 4), int))

    for constraint in constraints:
        per_level, items, slots = jax.eval_shape(searched, index, constraint)
        expected = [(0, 4, level.fan_out) for level in layout.levels for _ in range(2)]
        assert [level.shape for level in per_level] == expected
        assert (items.shape, slots.shape) == ((0, 4, tries.MAX_ITEMS), (0, 4))
    vectors = NodeVectors.build(index, rng.normal(size=(20, 5)))
    for shape in ((0, 3), (0, 0), (2, 0), (4, 0, 2)):
        asked = np.zeros(shape, int)
        assert jax.eval_shape(walk, index, asked).shape == shape
        assert jax.eval_shape(vectors.of_prefixes, index, asked).shape == (*shape, 5)
