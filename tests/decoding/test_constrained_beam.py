"""Beam search under constraints against dictionaries, with every kind of level."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import assert_searches_as_slow_ones

from gr.decoding import DecodingError, beam_search
from gr.testing import random_table_model, random_tokens
from gr.trie import AttributeFilter, ExcludeItems, ItemMask, TrieError, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS = 3
HISTORY = jnp.zeros((USERS, 1))
ITEM_NUMBERS = tries.MAX_ITEMS + 4  # The layouts leave room for a few more than there are items.


# Each maker returns a constraint, and for every user the demands that it stands for.


def exclude_items(rng, index, attributes):
    items = rng.integers(-1, len(attributes), (USERS, 8))
    items[1, 4:] = -1
    items[2, :2] = ITEM_NUMBERS - 1, 10**6  # Nobody's numbers.
    return ExcludeItems(jnp.asarray(items)), [oracles.excluding(set(row.tolist())) for row in items]


def attribute_filter(rng, index, attributes, fields=("any_of", "all_of", "none_of")):
    count = attributes.shape[1]
    few = rng.choice([0.0, 1 / count, 2 / count, 0.6], (USERS, 1))
    wanted = {field: rng.random((USERS, count)) < few for field in fields}
    if "all_of" in fields and "none_of" in fields:
        wanted["none_of"] &= ~wanted["all_of"]
    demands = []
    for user in range(USERS):
        mine = []
        any_of, all_of, none_of = (
            np.flatnonzero(wanted[field][user]) if field in wanted else ()
            for field in ("any_of", "all_of", "none_of")
        )
        if len(any_of):
            mine.append(functools.partial(_has_any, attributes, any_of))
        mine += [functools.partial(_has, attributes, a, True) for a in all_of]
        mine += [functools.partial(_has, attributes, a, False) for a in none_of]
        demands.append(mine)
    return AttributeFilter(**jax.tree.map(jnp.asarray, wanted)), demands


def _has_any(attributes, wanted, item):
    return attributes[item, wanted].any()


def _has(attributes, attribute, value, item):
    return attributes[item, attribute] == value


def mask_for_all(rng, index, attributes):
    allowed = rng.random(ITEM_NUMBERS) < rng.choice([0.2, 0.7])
    return ItemMask.build(index, jnp.asarray(allowed)), [[allowed.__getitem__]] * USERS


def mask_per_user(rng, index, attributes):
    allowed = rng.random((USERS, ITEM_NUMBERS)) < 0.5
    mask = ItemMask.build(index, jnp.asarray(allowed))
    return mask, [[row.__getitem__] for row in allowed]


def several(rng, index, attributes):
    makers = (exclude_items, attribute_filter, mask_for_all, mask_per_user)
    made = [maker(rng, index, attributes) for maker in makers]
    demands = [sum((of_users[user] for _, of_users in made), []) for user in range(USERS)]
    return tuple(constraint for constraint, _ in made), demands


ONE_BY_ONE = (exclude_items, attribute_filter, mask_for_all, mask_per_user)


def check(make, kinds, tokens, seed, num_attributes=5):
    rng = np.random.default_rng(seed)
    attributes = rng.random((len(tokens), num_attributes)) < rng.choice([0.2, 0.5, 0.8])
    layout = tries.roomy_layout(kinds, num_attributes)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    constraint, demands = make(rng, index, attributes)
    model = random_table_model(rng, 3, tries.VOCAB)
    exact = make not in (attribute_filter, several)
    scan_depth = 0 if exact else layout.scan_depth
    for num_beams in (3, tries.MAX_ITEMS):
        found = beam_search(model, index, HISTORY, num_beams, constraint=constraint)
        for user in range(USERS):
            assert_searches_as_slow_ones(
                found, user, tokens, model, num_beams, demands[user], scan_depth
            )


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        *((several, kinds) for kinds in tries.MIXES[:1] + tries.MIXES[2:]),
        *((make, tries.MIXES[3]) for make in ONE_BY_ONE),
        *(
            pytest.param(make, kinds, marks=pytest.mark.long)
            for make in ONE_BY_ONE
            for kinds in tries.MIXES[:1] + tries.MIXES[2:3] + tries.MIXES[4:]
        ),
    ],
)
@settings(max_examples=8, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_what_is_allowed_is_found_and_nothing_else(make, kinds, tokens, seed):
    check(make, kinds, tokens, seed)


@pytest.mark.parametrize(
    "num_attributes", [1, 33, 64, *(pytest.param(n, marks=pytest.mark.long) for n in (8, 16))]
)
@settings(max_examples=8, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_any_number_of_attributes(num_attributes, tokens, seed):
    check(attribute_filter, tries.MIXES[3], tokens, seed, num_attributes)


@pytest.mark.parametrize("field", ["any_of", "all_of", "none_of"])
def test_one_demand_alone(field):
    rng = np.random.default_rng(7)
    tokens = random_tokens(rng, 24)
    attributes = rng.random((24, 40)) < 0.5
    layout = tries.roomy_layout(tries.MIXES[3], 40)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    model = random_table_model(rng, 3, tries.VOCAB)
    for _ in range(5):
        constraint, demands = attribute_filter(rng, index, attributes, (field,))
        found = beam_search(model, index, HISTORY, 3, constraint=constraint)
        for user in range(USERS):
            assert_searches_as_slow_ones(found, user, tokens, model, 3, demands[user], 2)


@pytest.mark.parametrize("per_user", [False, True])
def test_lists_of_allowed_and_of_denied_items(per_user):
    rng = np.random.default_rng(8)
    tokens = random_tokens(rng, 24)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(tries.MIXES[3]))
    model = random_table_model(rng, 3, tries.VOCAB)
    items = rng.integers(-1, 24, (USERS, 9) if per_user else 9)
    allow, deny = (
        ItemMask.allow(index, jnp.asarray(items)),
        ItemMask.deny(index, jnp.asarray(items)),
    )
    for constraint, among in ((allow, True), (deny, False)):
        found = beam_search(model, index, HISTORY, 24, constraint=constraint)
        for user in range(USERS):
            mine = set(items[user].tolist() if per_user else items.tolist())
            demands = [lambda item, mine=mine, among=among: (item in mine) == among]
            assert_searches_as_slow_ones(found, user, tokens, model, 24, demands)


def test_a_tight_layout_whose_last_levels_hold_no_choice():
    rng = np.random.default_rng(9)
    pairs = np.unique(rng.integers(0, 40, (24, 2)), axis=0)
    tokens = np.concatenate([pairs, rng.integers(0, tries.VOCAB, (len(pairs), 3))], axis=1)
    attributes = rng.random((len(tokens), 3)) < 0.5
    layout = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes).layout
    mixes = (("dense", "dense", "scan"), ("sparse", "scan", "scan"), ("scan",) * 3)
    for first in mixes:
        index = TrieIndex.build(
            tokens,
            tries.VOCAB,
            attributes=attributes,
            layout=tries.with_kinds(layout, (*first, "scan", "scan")),
        )
        assert index.layout.unique_depth == 2
        model = random_table_model(rng, 5, tries.VOCAB)
        for make in (exclude_items, attribute_filter):
            constraint, demands = make(rng, index, attributes)
            scan_depth = 0 if make is exclude_items else index.layout.scan_depth
            found = beam_search(model, index, HISTORY, 4, constraint=constraint)
            for user in range(USERS):
                assert_searches_as_slow_ones(
                    found, user, tokens, model, 4, demands[user], scan_depth
                )


def small_case(kinds=tries.MIXES[3], num_attributes=3):
    rng = np.random.default_rng(10)
    tokens = random_tokens(rng, 20)
    index = TrieIndex.build(
        tokens,
        tries.VOCAB,
        attributes=rng.random((20, num_attributes)) < 0.5,
        layout=tries.roomy_layout(kinds, num_attributes),
    )
    return index, random_table_model(rng, 3, tries.VOCAB)


@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[4]], ids="-".join)
def test_when_nothing_is_allowed_no_candidate_is_valid(kinds):
    index, model = small_case(kinds)
    yes = jnp.ones((USERS, 3), bool)
    for constraint in (
        ExcludeItems(jnp.tile(jnp.arange(20), (USERS, 1))),
        AttributeFilter(all_of=yes, none_of=yes),
        ItemMask.build(index, jnp.zeros(20, bool)),
        (ItemMask.allow(index, jnp.array([3])), ItemMask.deny(index, jnp.array([3]))),
    ):
        found = beam_search(model, index, HISTORY, 4, constraint=constraint)
        assert not found.valid.any()
        assert (found.items == -1).all() and (found.tokens == -1).all()
        assert (found.scores == -jnp.inf).all()


def test_empty_demands_change_nothing():
    index, model = small_case()
    no = jnp.zeros((USERS, 3), bool)
    plain = beam_search(model, index, HISTORY, 4)
    for constraint in (
        (),
        ExcludeItems(jnp.zeros((USERS, 0), jnp.int32)),
        ExcludeItems(jnp.full((USERS, 3), -1)),
        (AttributeFilter(), AttributeFilter()),
        AttributeFilter(any_of=no, all_of=no, none_of=no),
        ItemMask.build(index, jnp.ones(20, bool)),
        ItemMask.deny(index, jnp.full((USERS, 2), -1)),
    ):
        found = beam_search(model, index, HISTORY, 4, constraint=constraint)
        np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-6)
        for field in ("tokens", "items", "valid"):
            np.testing.assert_array_equal(getattr(found, field), getattr(plain, field))


def test_bad_constraints_get_one_clear_error():
    index, model = small_case()

    def refused(constraint, message, error=TrieError, index=index):
        with pytest.raises(error, match=message):
            beam_search(model, index, HISTORY, 2, constraint=constraint)

    yes = jnp.ones((USERS, 3), bool)
    refused(ExcludeItems(jnp.zeros((2, 1), int)), "for 2 users, the history for 3", DecodingError)
    refused(AttributeFilter(any_of=yes[:1]), "for 1 users, the history for 3", DecodingError)
    mask = ItemMask.build(index, jnp.ones((4, 20), bool))
    refused((AttributeFilter(), mask), "for 4 users", DecodingError)
    refused(AttributeFilter(all_of=jnp.ones((USERS, 4), bool)), r"all_of must be \[3, 3\]")
    plain = TrieIndex.build(np.array([[2, 10, 45]]), tries.VOCAB)
    refused(AttributeFilter(any_of=yes), "the index has no attributes", index=plain)
    for allowed in (jnp.ones(3), jnp.ones((1, 1, 1), bool), jnp.ones((3, 0), bool)):
        with pytest.raises(TrieError, match="allowed must be truth values"):
            ItemMask.build(index, allowed)
