"""Sampling and value-guided search with a prior: against dictionaries given the mixture, and the same noise."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import search_oracles
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import assert_same_ranking, rows

from gr.decoding import (
    DecodingError,
    ItemPrior,
    SearchConfig,
    VedConfig,
    beam_search,
    sample,
    sample_without_replacement,
    search,
    ved_search,
)
from gr.decoding import beam as beam_module
from gr.decoding import sampling as sampling_module
from gr.decoding import ved as ved_module
from gr.decoding.draws import gumbel
from gr.decoding.ved_config import BEST_FIRST
from gr.decoding.ved_step import prefix_noise
from gr.testing import TableModel, random_table_model, random_tokens
from gr.trie import EditableIndex, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS, SLOTS = 3, 9
HISTORY = jnp.zeros((USERS, 1))
EVERYTHING = 30  # More than there are items.
SHARES = np.array([0.2, 0.7, 0.95], np.float32)


def random_prior(rng, num_items, users=USERS):
    """Some items more than once, some unknown, some of padding; weights of different sizes."""
    items = rng.integers(-1, num_items + 5, (users, SLOTS))
    return ItemPrior(items, np.exp(rng.normal(size=items.shape) * 2).astype(np.float32))


def random_case(seed, kinds=tries.MIXES[3]):
    rng = np.random.default_rng(seed)
    tokens = random_tokens(rng, 24)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    return tokens, index, random_table_model(rng, 3, tries.VOCAB), random_prior(rng, 24)


def masses_of(prior, tokens, user, demands=(), **options):
    return oracles.prior_masses(tokens, prior.items[user], prior.weights[user], demands, **options)


# Without replacement.


def check_drawn(tokens, index, model, prior, seed, constraint=None, demands=((),) * USERS):
    key, by_sid = jax.random.key(seed), oracles.items_by_sid(tokens)
    widths = [level.fan_out for level in index.layout.levels]
    for count in (1, 4, EVERYTHING):
        found = sample_without_replacement(
            model,
            index,
            HISTORY,
            count,
            key=key,
            constraint=constraint,
            prior=prior,
            prior_weight=SHARES,
        )
        beams = [1]
        for width in widths:
            beams.append(min(count + 1, beams[-1] * width))
        for user in range(USERS):

            def noise(step, beams=beams, user=user):
                shape = (USERS, 1) if step == 0 else (USERS, beams[step - 1], widths[step - 1])
                drawn = np.asarray(gumbel(key, step, shape), np.float64)[user]
                return drawn[None] if step == 0 else drawn

            log_prob = oracles.mixed_log_prob(
                model.log_prob(user),
                masses_of(prior, tokens, user, demands[user]),
                float(SHARES[user]),
                oracles.live_children(tokens, demands[user], 0),
            )
            expected, threshold = search_oracles.stochastic_beam_search(
                tokens, log_prob, count, noise, index.layout, demands[user]
            )
            expected = [e[:2] for e in expected]
            got, n = rows(found, user), len(expected)
            ranking = [
                (s, sid, oracles.allowed_items(by_sid[sid], demands[user])) for s, sid in expected
            ]
            assert_same_ranking(got, ranking)
            np.testing.assert_allclose(found.draws.threshold[user], threshold, rtol=1e-3, atol=1e-3)
            scores = np.array([s for s, _ in expected])
            np.testing.assert_allclose(
                np.exp(found.draws.log_inclusion[user, :n]),
                -np.expm1(-np.exp(scores - threshold)),
                rtol=1e-2,
                atol=1e-5,
            )
            if count == EVERYTHING and n:
                np.testing.assert_allclose(np.exp(scores).sum(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
@settings(max_examples=2, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_without_replacement_it_is_the_slow_search_of_the_mixture(kinds, tokens, seed):
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    rng = np.random.default_rng(seed)
    model = random_table_model(rng, 3, tries.VOCAB)
    check_drawn(tokens, index, model, random_prior(rng, len(tokens)), seed)


@pytest.mark.parametrize("kind", ["mask", pytest.param("exclude", marks=pytest.mark.long)])
@settings(max_examples=2, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_without_replacement_under_constraints(kind, tokens, seed):
    rng = np.random.default_rng(seed)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(tries.MIXES[3]))
    attributes = np.ones((len(tokens), 1), bool)
    constraint, demands, _ = tries.random_constraint(kind, rng, index, attributes, USERS)
    model = random_table_model(rng, 3, tries.VOCAB)
    prior = random_prior(rng, len(tokens))
    check_drawn(tokens, index, model, prior, seed, constraint, demands)


def test_all_is_allowed_with_a_smaller_weight():
    tokens, index, model, prior = random_case(0)
    constraint, demands, _ = tries.random_constraint(
        "exclude", np.random.default_rng(1), index, np.ones((24, 1), bool), USERS
    )
    key = jax.random.key(0)
    shared = {"key": key, "constraint": constraint, "prior": prior}
    over_all = sample_without_replacement(
        model, index, HISTORY, 9, prior_weight=0.6, prior_over="all", **shared
    )
    smaller = []
    for user in range(USERS):
        mass = masses_of(prior, tokens, user, demands[user], over="all").get((), 0.0)
        assert mass < 1
        smaller.append(0.6 * mass / (1 - 0.6 + 0.6 * mass))
    allowed = sample_without_replacement(
        model, index, HISTORY, 9, prior_weight=np.array(smaller), **shared
    )
    np.testing.assert_array_equal(over_all.tokens, allowed.tokens)
    np.testing.assert_allclose(over_all.scores, allowed.scores, rtol=1e-4)


# Frequencies, by enumeration.

TOKENS = np.array([[0, 1], [0, 2], [1, 0], [1, 3], [2, 2], [0, 1]])
MANY = 4000
FEW_ITEMS, FEW_WEIGHTS, SHARE = [5, 3, 9, -1, 3], [2.0, 1.0, 5.0, 5.0, 0.5], 0.4


def repeated_case():
    """One user for many times; a prior; and the mixture's probabilities of the five semantic IDs."""
    model = random_table_model(np.random.default_rng(0), 2, 4, num_users=1)
    masses = oracles.prior_masses(TOKENS, FEW_ITEMS, FEW_WEIGHTS)
    of_model = search_oracles.all_probabilities(TOKENS, model.log_prob(0))
    chances = {
        sid: (1 - SHARE) * chance + SHARE * masses.get(sid, 0.0) for sid, chance in of_model.items()
    }
    np.testing.assert_allclose(sum(chances.values()), 1.0)
    prior = ItemPrior(np.tile(FEW_ITEMS, (MANY, 1)), np.tile(FEW_WEIGHTS, (MANY, 1)))
    model = TableModel(jnp.repeat(model.table, MANY, axis=0))
    return model, TrieIndex.build(TOKENS, 4), prior, chances


@pytest.mark.parametrize("count", [1, 2])
def test_semantic_ids_are_included_as_often_as_when_drawn_one_by_one(count):
    model, index, prior, chances = repeated_case()
    found = sample_without_replacement(
        model,
        index,
        jnp.zeros((MANY, 1)),
        count,
        key=jax.random.key(1),
        prior=prior,
        prior_weight=SHARE,
    )
    for sid, chance in search_oracles.inclusion_probabilities(chances, count).items():
        mine = (np.asarray(found.tokens) == sid).all(-1).any(1).mean()
        assert abs(mine - chance) < 5 * np.sqrt(chance * (1 - chance) / MANY) + 1e-3, sid


def test_with_replacement_semantic_ids_come_as_often_as_is_likely():
    model, index, prior, chances = repeated_case()
    found = sample(
        model,
        index,
        jnp.zeros((MANY, 1)),
        3,
        key=jax.random.key(1),
        prior=prior,
        prior_weight=SHARE,
    )
    assert found.valid.all()
    for sid, chance in chances.items():
        mine = (np.asarray(found.tokens) == sid).all(-1)
        assert abs(mine.mean() - chance) < 5 * np.sqrt(chance * (1 - chance) / MANY / 3), sid
        np.testing.assert_allclose(np.asarray(found.scores)[mine], np.log(chance), rtol=1e-4)


def test_an_edited_index_is_sampled_with_its_prior():
    tokens, _, model, prior = random_case(4)
    editable, _ = EditableIndex.build(tokens[:15], tries.VOCAB).add(tokens[15:])
    editable = editable.remove(np.array([0, 3, 20]))
    left = [item for item in range(24) if item not in (0, 3, 20)]
    draw = functools.partial(
        sample_without_replacement, key=jax.random.key(0), prior=prior, prior_weight=SHARES
    )
    found = draw(model, editable.index, HISTORY, EVERYTHING)
    for user in range(USERS):
        demands = [left.__contains__]
        of_model = search_oracles.all_probabilities(tokens, model.log_prob(user), demands)
        masses = masses_of(prior, tokens, user, demands)
        got = {sid: np.exp(score) for score, sid, _ in rows(found, user)}
        assert set(got) == set(of_model)
        for sid, chance in of_model.items():
            mixed = (1 - SHARES[user]) * chance + SHARES[user] * masses.get(sid, 0.0)
            np.testing.assert_allclose(got[sid], mixed, rtol=1e-3)


# Value-guided search.


@pytest.mark.parametrize("name", ["ved", pytest.param(BEST_FIRST, marks=pytest.mark.long)])
@pytest.mark.parametrize("over", [pytest.param("vocabulary", marks=pytest.mark.long), "children"])
@settings(max_examples=2, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_a_tree_search_is_the_slow_one_of_the_mixture(name, over, tokens, seed):
    layout = tries.roomy_layout(tries.MIXES[seed % len(tries.MIXES)])
    index, rng = TrieIndex.build(tokens, tries.VOCAB, layout=layout), np.random.default_rng(seed)
    model, prior = random_table_model(rng, 3, tries.VOCAB), random_prior(rng, len(tokens))
    config = VedConfig(name, 10, 11, 2, prior_weight=0.5, width=3, normalise_over=over)
    key, by_sid = jax.random.key(seed), oracles.items_by_sid(tokens)
    found = ved_search(
        model,
        None,
        index,
        HISTORY,
        config,
        key=key,
        prior=prior,
        prior_weight=SHARES,
        keep_tree=True,
    )
    children = oracles.live_children(tokens, (), 0) if over == "children" else None
    fan_out = max(level.fan_out for level in layout.levels)
    for user in range(USERS):
        log_prob = oracles.mixed_log_prob(
            model.log_prob(user), masses_of(prior, tokens, user), float(SHARES[user]), children
        )
        expected, tree = search_oracles.ved(
            tokens,
            log_prob,
            lambda prefix: 0.0,
            lambda number, user=user: np.asarray(prefix_noise(key, user, number, fan_out)),
            search_oracles.places(tokens, layout),
            budget=11,
            count=10,
            beams=2,
            width=3,
            name=name,
            prior_weight=0.5,
            lone_are_free=over == "children",
        )
        assert_same_ranking(rows(found, user), [(s, sid, by_sid[sid]) for s, sid in expected])
        assert int(found.tree.exist[user].sum()) == len(tree)
        for field, attribute in (("log_probs", "score"), ("entropies", "entropy")):
            np.testing.assert_allclose(
                np.asarray(getattr(found.tree, field))[user, : len(tree)],
                [getattr(node, attribute) for node in tree],
                rtol=1e-3,
                atol=1e-3,
            )


def test_a_tree_search_with_budget_for_everything_ranks_as_beam_search_does():
    _, index, model, prior = random_case(1)
    mixed = {"prior": prior, "prior_weight": SHARES}
    config = VedConfig(num_candidates=EVERYTHING, budget=200)
    found = ved_search(model, None, index, HISTORY, config, key=jax.random.key(0), **mixed)
    expected = beam_search(model, index, HISTORY, EVERYTHING, **mixed)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)


# All of them.

LONE = {"normalise_over": "children"}
CONFIGS = {
    "beam": SearchConfig("beam", 5),
    "sample": SearchConfig("sample", 5),
    "ved": SearchConfig("ved", 5, 12, 2),
    BEST_FIRST: SearchConfig(BEST_FIRST, 5, 12, 0, prior_weight=0.5, crowding=0.2, **LONE),
}
PROGRAMS = {
    "beam": beam_module._beam_search,
    "sample": sampling_module._sample_without_replacement,
    "ved": ved_module._ved_search,
    BEST_FIRST: ved_module._ved_search,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_each_search_by_its_config(name):
    _, index, model, prior = random_case(2)
    key = jax.random.key(0)
    run = functools.partial(search, CONFIGS[name], model, None, index, HISTORY, key=key)
    plain = run()
    # Without a weight, or a mass: bit for bit what it is without a prior.
    empty = ItemPrior(np.full_like(prior.items, -1), prior.weights)
    jax.tree.map(np.testing.assert_array_equal, run(prior=prior, prior_weight=0.0), plain)
    jax.tree.map(np.testing.assert_array_equal, run(prior=empty, prior_weight=0.9), plain)
    compiled = PROGRAMS[name]._cache_size()
    found = run(prior=prior, prior_weight=0.9)
    assert PROGRAMS[name]._cache_size() == compiled
    assert (found.tokens != plain.tokens).any()
    with pytest.raises(DecodingError, match="prior is for 1 users, the history for 3"):
        run(prior=ItemPrior(prior.items[:1], prior.weights[:1]))
    with pytest.raises(DecodingError, match=r"prior_weight must be in \[0, 1\], got 2"):
        run(prior=prior, prior_weight=2)


def test_independent_draws_without_a_weight_are_those_without_a_prior():
    _, index, model, prior = random_case(3)
    draw = functools.partial(sample, model, index, HISTORY, 6, key=jax.random.key(0))
    plain = draw()
    jax.tree.map(np.testing.assert_array_equal, draw(prior=prior, prior_weight=0), plain)
    assert (draw(prior=prior, prior_weight=1.0).tokens != plain.tokens).any()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChildTable(TableModel):
    """A table that scores the children it is asked for; its hidden states are its logits."""

    scores_children = True

    def prefill(self, history):
        logits, _, cache = super().prefill(history)
        return None, logits, cache

    def step(self, tokens, cache):
        logits, _, cache = super().step(tokens, cache)
        return None, logits, cache

    def score_children(self, hidden, tokens, rows):
        tokens = jnp.broadcast_to(tokens, (*hidden.shape[:-1], tokens.shape[-1]))
        return jnp.take_along_axis(hidden, tokens, axis=-1, mode="clip")


@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[3], tries.MIXES[5]], ids="-".join)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_scores_children_gets_the_same_mixture(name, kinds):
    _, index, model, prior = random_case(5, kinds)
    config = dataclasses.replace(CONFIGS[name], normalise_over="children")
    options = {"key": jax.random.key(0), "prior": prior, "prior_weight": SHARES}
    expected = search(config, model, None, index, HISTORY, **options)
    found = search(config, ChildTable(model.table), None, index, HISTORY, **options)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
