"""Beam search with a prior: against dictionaries that rank by the mixture, and against scoring every item."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import assert_same_ranking, rows

from gr.decoding import DecodingError, ItemPrior, beam_search
from gr.decoding import beam as beam_module
from gr.decoding.prior import SortedPrior, as_request
from gr.decoding.sources import OneTrie
from gr.testing import random_table_model, random_tokens
from gr.trie import EditableIndex, ExcludeItems, ItemMask, SwappableIndex, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS, SLOTS = 3, 9
HISTORY = jnp.zeros((USERS, 1))
EVERYTHING = 30  # More than there are items.
SHARES = np.array([0.2, 0.7, 0.95], np.float32)


def random_prior(rng, num_items, users=USERS):
    """Some items more than once, some unknown, some of padding, some without weight; weights of all sizes."""
    items = rng.integers(-1, num_items + 5, (users, SLOTS))
    weights = np.exp(rng.normal(size=items.shape) * 3) * (rng.random(items.shape) < 0.9)
    return ItemPrior(items, weights.astype(np.float32))


def check(found, tokens, model, num_beams, prior, share, demands=None, scan_depth=0, **masses_of):
    by_sid = oracles.items_by_sid(tokens)
    for user in range(USERS):
        wanted = () if demands is None else demands[user]
        masses = oracles.prior_masses(
            tokens, prior.items[user], prior.weights[user], wanted, **masses_of
        )
        log_prob, a = model.log_prob(user), float(np.broadcast_to(share, USERS)[user])
        beams = oracles.mixed_beam_search(
            tokens, log_prob, num_beams, masses, a, wanted, scan_depth
        )
        expected = [(s, sid, oracles.allowed_items(by_sid[sid], wanted)) for s, sid in beams]
        assert_same_ranking(rows(found, user), expected)
        if num_beams >= len(tokens):
            ranking = oracles.mixed_ranking(tokens, log_prob, masses, a, wanted)
            assert_same_ranking(rows(found, user), ranking)


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
@settings(max_examples=2, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_beams_are_ranked_by_the_mixture_and_with_enough_of_them_all_items_are(kinds, tokens, seed):
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    rng = np.random.default_rng(seed)
    model, prior = random_table_model(rng, 3, tries.VOCAB), random_prior(rng, len(tokens))
    for num_beams in (1, 4, tries.MAX_ITEMS):
        found = beam_search(model, index, HISTORY, num_beams, prior=prior, prior_weight=SHARES)
        check(found, tokens, model, num_beams, prior, SHARES)


@pytest.mark.parametrize(
    ("num_items", "length"),
    [
        *((1, 1), (9, 2), (1, 4), (30, 4), (12, 6)),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((15, 1), (30, 2), (20, 3))),
    ],
)
def test_tight_layouts_of_all_lengths(num_items, length):
    rng = np.random.default_rng(num_items)
    tokens = rng.integers(0, 7, (num_items, length))
    index = TrieIndex.build(tokens, 7)
    model, prior = random_table_model(rng, length, 7, USERS), random_prior(rng, num_items)
    for num_beams in (2, 30):
        found = beam_search(model, index, HISTORY, num_beams, prior=prior, prior_weight=0.6)
        check(found, tokens, model, num_beams, prior, np.float32(0.6))


@pytest.mark.parametrize("length", [5, 14])
def test_where_one_way_is_left_masses_stay(length):
    rng = np.random.default_rng(4)
    pairs = np.unique(rng.integers(0, 7, (25, 2)), axis=0)
    tokens = np.concatenate([pairs, rng.integers(0, 7, (len(pairs), length - 2))], axis=1)
    index = TrieIndex.build(tokens, 7)
    assert index.layout.unique_depth == 2
    model, prior = random_table_model(rng, length, 7), random_prior(rng, len(tokens))
    found = beam_search(model, index, HISTORY, 5, prior=prior, prior_weight=SHARES)
    check(found, tokens, model, 5, prior, SHARES)


# Constraints and indexes.


@pytest.mark.parametrize("over", ["allowed", "all"])
@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[2], tries.MIXES[3]], ids="-".join)
@pytest.mark.parametrize("kind", tries.CONSTRAINTS)
@settings(max_examples=2, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_what_is_not_allowed_has_no_mass(kind, kinds, over, tokens, seed):
    rng = np.random.default_rng(seed)
    attributes = rng.random((len(tokens), 5)) < 0.6
    layout = tries.roomy_layout(kinds, 5)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    constraint, demands, scan_depth = tries.random_constraint(kind, rng, index, attributes, USERS)
    model, prior = random_table_model(rng, 3, tries.VOCAB), random_prior(rng, len(tokens))
    mixed = {"prior": prior, "prior_weight": SHARES, "prior_over": over}
    for num_beams in (3, tries.MAX_ITEMS):
        found = beam_search(model, index, HISTORY, num_beams, constraint=constraint, **mixed)
        check(found, tokens, model, num_beams, prior, SHARES, demands, scan_depth, over=over)


def edited(seed):
    """An index with changes; and all tokens, which items are left, a model, a prior, and items not to be decoded."""
    rng = np.random.default_rng(seed)
    tokens = random_tokens(rng, 18)
    editable, _ = EditableIndex.build(tokens[:12], tries.VOCAB).add(tokens[12:])
    removed = rng.choice(18, 5, replace=False)
    left = [item for item in range(18) if item not in removed]
    prior, excluded = random_prior(rng, 18), rng.integers(-1, 18, (USERS, 3))
    model = random_table_model(rng, 3, tries.VOCAB)
    return editable.remove(removed), tokens, left, model, prior, excluded


@pytest.mark.parametrize("over", ["allowed", pytest.param("all", marks=pytest.mark.long)])
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_an_edited_index_knows_added_items_and_no_removed_ones(over, seed):
    editable, tokens, left, model, prior, excluded = edited(seed)
    demands = [
        [left.__contains__, *oracles.excluding(set(excluded[user].tolist()))]
        for user in range(USERS)
    ]
    mixed = {"prior": prior, "prior_weight": SHARES, "prior_over": over}
    for index in (editable.index, editable.compact().index):
        for num_beams in (3, EVERYTHING):
            found = beam_search(
                model, index, HISTORY, num_beams, constraint=ExcludeItems(excluded), **mixed
            )
            check(found, tokens, model, num_beams, prior, SHARES, demands, over=over, left=left)


def test_a_swapped_index_takes_the_same_prior_without_another_compilation():
    rng = np.random.default_rng(0)
    sets, layout = [random_tokens(rng, n) for n in (20, 24)], tries.roomy_layout(tries.MIXES[4])
    model, prior = random_table_model(rng, 3, tries.VOCAB), random_prior(rng, 24)
    server = SwappableIndex(TrieIndex.build(sets[0], tries.VOCAB, layout=layout))
    for tokens in sets:
        server.swap(TrieIndex.build(tokens, tries.VOCAB, layout=layout))
        found = beam_search(model, server.get(), HISTORY, 5, prior=prior, prior_weight=SHARES)
        check(found, tokens, model, 5, prior, SHARES)
        if tokens is sets[0]:
            compiled = beam_module._beam_search._cache_size()
    assert beam_module._beam_search._cache_size() == compiled


# Options.


def case(seed=1, kinds=tries.MIXES[3]):
    rng = np.random.default_rng(seed)
    tokens = random_tokens(rng, 24)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    return tokens, index, random_table_model(rng, 3, tries.VOCAB), random_prior(rng, 24)


@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[3], tries.MIXES[5]], ids="-".join)
@pytest.mark.parametrize("options", [{}, {"normalise_over": "children", "temperature": 0.7}])
def test_without_weight_or_mass_it_is_the_search_without_a_prior_bit_for_bit(kinds, options):
    _, index, model, prior = case(2, kinds)
    options = options | {
        "keep_beams": True,
        "constraint": ExcludeItems(np.arange(6).reshape(USERS, 2)),
    }
    plain = beam_search(model, index, HISTORY, 4, **options)
    empty = ItemPrior(np.full((USERS, SLOTS), -1), prior.weights)
    unknown = ItemPrior(np.full((USERS, SLOTS), 900), prior.weights)
    excluded = ItemPrior(np.tile(np.arange(6).reshape(USERS, 2), 5)[:, :SLOTS], prior.weights)
    weightless = ItemPrior(prior.items, 0 * prior.weights)
    for mixed, share in (
        (prior, 0),
        (prior, np.zeros(USERS)),
        *[(each, 0.8) for each in (empty, unknown, excluded, weightless)],
    ):
        found = beam_search(model, index, HISTORY, 4, prior=mixed, prior_weight=share, **options)
        jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_a_prior_without_places():
    _, index, model, _ = case()
    nothing = ItemPrior(np.zeros((USERS, 0), int), np.zeros((USERS, 0)))
    plain = beam_search(model, index, HISTORY, 4)
    found = beam_search(model, index, HISTORY, 4, prior=nothing)
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_a_user_with_weight_changes_no_other_user():
    tokens, index, model, prior = case(3)
    plain = beam_search(model, index, HISTORY, 4)
    share = np.array([0.0, 0.9, 0.0], np.float32)
    found = beam_search(model, index, HISTORY, 4, prior=prior, prior_weight=share)
    check(found, tokens, model, 4, prior, share)
    for user in (0, 2):
        np.testing.assert_array_equal(found.scores[user], plain.scores[user])


def test_at_full_weight_prior_items_come_in_the_order_of_their_mass_and_the_others_behind():
    tokens, index, model, prior = case(4)
    found = beam_search(model, index, HISTORY, EVERYTHING, prior=prior, prior_weight=1)
    for user in range(USERS):
        masses = oracles.prior_masses(tokens, prior.items[user], prior.weights[user])
        ranking = oracles.mixed_ranking(tokens, model.log_prob(user), masses, 1.0)
        got, of_prior = rows(found, user), sum(len(sid) == 3 for sid in masses)
        assert_same_ranking(got[:of_prior], ranking[:of_prior])
        assert {sid for _, sid, _ in got} == set(oracles.items_by_sid(tokens))
        assert all(score <= -1e29 for score, _, _ in got[of_prior:])


@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[3]], ids="-".join)
def test_over_children_and_with_temperature(kinds):
    tokens, index, model, prior = case(5, kinds)
    children = oracles.live_children(tokens, (), 0)

    class OverChildren:
        def log_prob(self, user):
            log_prob = model.log_prob(user)

            def of(prefix):
                return oracles.log_chances(log_prob(prefix), 0.5, among=children[prefix])

            return of

    options = {"normalise_over": "children", "temperature": 0.5}
    for num_beams in (3, EVERYTHING):
        found = beam_search(
            model, index, HISTORY, num_beams, prior=prior, prior_weight=SHARES, **options
        )
        check(found, tokens, OverChildren(), num_beams, prior, SHARES)
    np.testing.assert_allclose(jnp.exp(found.scores).sum(1), 1.0, rtol=1e-4)


def test_a_length_penalty_divides_the_mixture_s_scores():
    _, index, model, prior = case(6)
    plain = beam_search(model, index, HISTORY, 5, prior=prior)
    found = beam_search(model, index, HISTORY, 5, prior=prior, length_penalty=1.0)
    np.testing.assert_allclose(found.scores, plain.scores / 3, rtol=1e-6)
    np.testing.assert_array_equal(found.items, plain.items)


def test_impossible_codes_are_found_by_the_prior_alone():
    tokens, index, model, _ = case(7)
    model = jax.tree.map(lambda table: table.at[:, 0, :, tokens[5, 0]].set(-jnp.inf), model)
    prior = ItemPrior(np.full((USERS, 1), 5), np.ones((USERS, 1)))
    found = beam_search(model, index, HISTORY, 3, prior=prior, prior_weight=0.5)
    assert (found.tokens[:, 0] == tokens[5]).all()
    np.testing.assert_allclose(found.scores[:, 0], np.log(0.5), rtol=1e-6)


def test_a_model_s_nan_is_told_of():
    _, index, model, prior = case(8)
    model = jax.tree.map(lambda table: table.at[1].set(jnp.nan), model)
    found = beam_search(model, index, HISTORY, 3, prior=prior)
    assert found.finite.tolist() == [True, False, True]
    assert not found.valid[1].any() and found.valid[0].all()


def test_a_mixture_is_exact_from_certain_to_hardly_possible():
    rng = np.random.default_rng(10)
    log_probs = -(10 ** rng.uniform(-8, 2.5, (USERS, 5000))).astype(np.float32)
    masses = (10 ** rng.uniform(-30, 0, log_probs.shape)).astype(np.float32)
    masses[:, ::7] = 0.0
    share = np.array([[1e-6], [0.5], [0.999]], np.float32)
    _, index, _, prior = case(10)
    sorted_prior = SortedPrior.of(OneTrie(index, None), as_request(prior, 0.5))
    sorted_prior = dataclasses.replace(sorted_prior, share=jnp.asarray(share[:, 0]))
    found = jax.jit(lambda *args: sorted_prior.log_mixture(*args))(log_probs, masses)
    of_prior = np.log(
        share.astype(np.float64) * masses,
        where=masses > 0,
        out=np.full_like(log_probs, -np.inf, float),
    )
    expected = np.logaddexp(log_probs + np.log1p(-share.astype(np.float64)), of_prior)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_masses_are_as_exact_as_sums_of_the_few_weights_below():
    rng = np.random.default_rng(9)
    tokens = rng.integers(0, 40, (3000, 3))
    index = TrieIndex.build(tokens, 40)
    items = rng.permutation(3000)[None, :1000]
    weights = np.exp(rng.normal(size=items.shape) * 4).astype(np.float32)
    request = as_request(ItemPrior(items, weights), 0.5)
    prior = jax.jit(lambda i, r: SortedPrior.of(OneTrie(i, None), r))(index, request)
    masses = oracles.prior_masses(tokens, items[0], weights[0])
    assert min(masses.values()) < 1e-6
    for depth in range(3):
        prefixes = [prefix for prefix in masses if len(prefix) == depth + 1]
        taken = jnp.asarray(prefixes)[None]
        begin, end = jnp.zeros((1, 1), jnp.int32), prior.count[:, None]
        for level in range(depth + 1):
            begin, end = prior.below(level, begin, end, taken[..., level])
        np.testing.assert_allclose(
            prior.mass(begin, end)[0], [masses[p] for p in prefixes], rtol=1e-5, atol=1e-13
        )
    none = prior.below(0, jnp.zeros((1, 1), jnp.int32), prior.count[:, None], jnp.array([[40, -1]]))
    assert (prior.mass(*none) == 0).all()


def test_another_weight_or_prior_does_not_compile_again():
    _, index, model, prior = case(10)
    beam_search(model, index, HISTORY, 4, prior=prior, prior_weight=0.5)
    compiled = beam_module._beam_search._cache_size()
    for share in (0, 1, 0.25, np.float64(0.3), np.float32(0.7)):
        beam_search(model, index, HISTORY, 4, prior=prior, prior_weight=share)
    other = ItemPrior(prior.items[::-1].astype(np.int16), prior.weights.astype(np.float64))
    beam_search(model, index, HISTORY, 4, prior=other, prior_weight=0.5)
    assert beam_module._beam_search._cache_size() == compiled


def test_works_inside_jit_and_with_large_weights():
    tokens, index, model, prior = case(11)
    largest = jnp.float32(3e38 / prior.weights.max())
    large = ItemPrior(jnp.asarray(prior.items), prior.weights * largest)
    outer = jax.jit(
        lambda m, i, p, a: beam_search(m, i, HISTORY, num_beams=5, prior=p, prior_weight=a)
    )
    found = outer(model, index, large, jnp.asarray(SHARES))
    check(found, tokens, model, 5, large, SHARES)


# What is refused.

SOME = ItemPrior(np.zeros((USERS, 2), int), np.ones((USERS, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": (SOME.items, SOME.weights)}, "prior must be an ItemPrior.*got tuple"),
        (
            {"prior": ItemPrior(SOME.items, SOME.weights[:, :1])},
            r"got shapes \[3, 2\] and \[3, 1\]",
        ),
        ({"prior": ItemPrior(SOME.items[0], SOME.weights[0])}, r"must both be \[B, S\]"),
        (
            {"prior": ItemPrior(SOME.weights, SOME.weights)},
            "prior.items must be integers .*float64",
        ),
        ({"prior": ItemPrior(SOME.items, SOME.items > 0)}, "prior.weights must be numbers.*bool"),
        ({"prior": ItemPrior([[1], [1, 2]], [[1]])}, "prior.items must be .*rows differ in length"),
        (
            {"prior": ItemPrior(SOME.items, -SOME.weights)},
            "prior.weights must be .*negative, got -1",
        ),
        ({"prior": ItemPrior(SOME.items, SOME.weights * jnp.nan)}, "must be finite.*got nan"),
        ({"prior": ItemPrior(SOME.items, SOME.weights * 1e300)}, "must be finite.*got inf"),
        ({"prior": ItemPrior(SOME.items[:2], SOME.weights[:2])}, "prior is for 2 users.*for 3"),
        ({"prior_weight": 1.5}, r"prior_weight must be in \[0, 1\], got 1.5"),
        (
            {"prior_weight": np.array([0.1, -0.5, 0.1])},
            r"prior_weight must be in \[0, 1\], got -0.5",
        ),
        ({"prior_weight": float("nan")}, "prior_weight must be in .*got nan"),
        ({"prior_weight": np.ones(2)}, r"one for each of the prior's 3 users, got shape \[2\]"),
        ({"prior_weight": "half"}, "prior_weight must be a number"),
        ({"prior_over": "some"}, "prior_over='some' is unknown: use allowed or all"),
        ({"num_groups": 2}, "num_groups=2 cannot be combined with a prior"),
    ],
)
def test_bad_requests_get_one_clear_error(options, message):
    _, index, model, _ = case()
    with pytest.raises(DecodingError, match=message):
        beam_search(model, index, HISTORY, **{"num_beams": 4, "prior": SOME} | options)


def test_a_prior_for_fewer_users_than_a_constraint_is_refused():
    _, index, model, _ = case()
    mask = ItemMask.allow(index, [[1], [2], [3]])
    few = ItemPrior(SOME.items[:1], SOME.weights[:1])
    with pytest.raises(DecodingError, match="prior is for 1 users"):
        beam_search(model, index, HISTORY, 2, prior=few, constraint=mask)
