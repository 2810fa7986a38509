"""Searches with a model that scores children: against dictionaries, whatever the layout, constraint or search."""

import dataclasses

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
from scorers import over_siblings, random_scorer

from gr.decoding import (
    DecodingError,
    ItemPrior,
    beam_search,
    sample,
    sample_without_replacement,
)
from gr.testing import random_tokens
from gr.trie import EditableIndex, ExcludeItems, TrieIndex, walk
from tests.decoding import test_sampling, test_ved

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS = 3
HISTORY = jnp.zeros((USERS, 1))
EVERYTHING = tries.MAX_ITEMS + 3


@dataclasses.dataclass(frozen=True)
class Known:
    """A scorer with the `log_prob` that tests of other searches ask a model for."""

    scorer: object
    tokens: np.ndarray
    layout: object

    def log_prob(self, user, temperature=1.0):
        return over_siblings(self.scorer, user, self.tokens, self.layout, temperature)


def check(tokens, index, scorer, *, num_beams, demands=((),) * USERS, scan_depth=0, **options):
    found = beam_search(scorer, index, HISTORY, num_beams, **options)
    temperature = options.get("temperature") or 1.0
    by_sid = oracles.items_by_sid(tokens)
    for user in range(USERS):
        log_prob = over_siblings(scorer, user, tokens, index.layout, temperature)
        beams = oracles.beam_search(tokens, log_prob, num_beams, demands[user], scan_depth)
        expected = [(s, sid, oracles.allowed_items(by_sid[sid], demands[user])) for s, sid in beams]
        assert_same_ranking(rows(found, user), expected)
        if num_beams >= len(tokens):
            # What is excluded still counts among the siblings over which is normalised.
            ranking = oracles.brute_force_ranking(tokens, log_prob, demands[user])
            assert_same_ranking(rows(found, user), ranking)
    return found


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
@settings(max_examples=2, deadline=None)
@given(
    tokens=tries.token_sets(), seed=st.integers(0, 10**6), temperature=st.sampled_from((None, 2))
)
def test_beam_search_is_that_over_dictionaries(kinds, tokens, seed, temperature):
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    num_rows = index.layout.node_offsets[2]  # Nodes of the last depth have none.
    scorer = random_scorer(np.random.default_rng(seed), 3, tries.VOCAB, num_rows)
    for num_beams in (3, EVERYTHING):
        check(tokens, index, scorer, num_beams=num_beams, temperature=temperature)


@pytest.mark.parametrize("kinds", [tries.MIXES[2], tries.MIXES[3]], ids="-".join)
@pytest.mark.parametrize("kind", tries.CONSTRAINTS)
@settings(max_examples=2, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_under_constraints(kind, kinds, tokens, seed):
    rng = np.random.default_rng(seed)
    attributes = rng.random((len(tokens), 5)) < 0.6
    layout = tries.roomy_layout(kinds, 5)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    constraint, demands, scan_depth = tries.random_constraint(kind, rng, index, attributes, USERS)
    scorer = random_scorer(rng, 3, tries.VOCAB, layout.node_offsets[-1])
    for num_beams in (3, EVERYTHING):
        check(
            tokens,
            index,
            scorer,
            num_beams=num_beams,
            demands=demands,
            scan_depth=scan_depth,
            constraint=constraint,
        )


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    ("count", "length", "codes"), [(1, 1, 4), (1, 3, 4), (30, 1, 40), (300, 3, 70), (90, 5, 3)]
)
def test_tight_layouts(count, length, codes, listed):
    rng = np.random.default_rng(count + length)
    tokens = rng.integers(0, codes, (count, length))
    index = TrieIndex.build(tokens, codes, listed=listed)
    assert not (listed and "dense" in [level.kind for level in index.layout.levels[1:]])
    scorer = random_scorer(rng, length, codes, index.layout.node_offsets[-1])
    for num_beams in (4, count):
        check(tokens, index, scorer, num_beams=num_beams)


def test_listed_indexes_give_the_same_whatever_they_hold():
    rng = np.random.default_rng(4)
    tokens = rng.integers(0, [70, 70, 30], (20_000, 3))
    plain, listed = (TrieIndex.build(tokens, 70, listed=way) for way in (False, True))
    kinds = [[level.kind for level in index.layout.levels[:2]] for index in (plain, listed)]
    assert kinds == [["dense", "dense"], ["dense", "sparse"]]
    assert plain.layout.node_offsets == listed.layout.node_offsets
    scorer = random_scorer(rng, 3, 70, plain.layout.node_offsets[-1])
    out = ExcludeItems(jnp.asarray(rng.integers(0, 20_000, (USERS, 9000))))
    for constraint in (None, out):
        found = [beam_search(scorer, i, HISTORY, 9, constraint=constraint) for i in (plain, listed)]
        np.testing.assert_allclose(found[0].scores, found[1].scores, rtol=1e-5)
        np.testing.assert_array_equal(found[0].items, found[1].items)


def test_all_semantic_ids_together_have_probability_1():
    rng = np.random.default_rng(5)
    tokens = random_tokens(rng, 20)
    index = TrieIndex.build(tokens, tries.VOCAB)
    scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[-1])
    found = beam_search(scorer, index, HISTORY, EVERYTHING)
    np.testing.assert_allclose(np.exp(found.scores).sum(axis=1), 1.0, rtol=1e-5)


def test_kept_beams_are_the_nodes_of_the_prefixes():
    rng = np.random.default_rng(6)
    tokens = random_tokens(rng, 20)
    for layout in (None, tries.roomy_layout(tries.MIXES[0])):
        index = TrieIndex.build(tokens, tries.VOCAB, layout=layout)
        scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[-1])
        found = beam_search(scorer, index, HISTORY, 4, keep_beams=True)
        names = np.asarray(walk(index, found.tokens))
        assert len(found.beams) == 3
        for user in range(USERS):
            for depth, alive in enumerate(found.beams):
                assert set(names[user, :, depth].tolist()) <= set(alive[user].tolist())
            # Of the last step all are candidates.
            assert set(found.beams[-1][user].tolist()) == set(names[user, :, -1].tolist())


@pytest.mark.parametrize(("depth", "bad_step"), [(0, 0), (1, 1), (2, 2)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_told(depth, bad_step, value):
    rng = np.random.default_rng(7)
    tokens = random_tokens(rng, 20)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(tries.MIXES[0]))
    scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[-1])
    broken = dataclasses.replace(scorer, table=scorer.table.at[1, depth].set(value))
    found = beam_search(broken, index, HISTORY, 4)
    assert found.bad_step.tolist() == [-1, bad_step, -1]
    assert found.valid[0].any() and found.valid[1].any() == (value == np.inf)
    # What is no child does not count.
    others = np.setdiff1d(np.arange(tries.VOCAB), tokens[:, depth])
    broken = dataclasses.replace(scorer, table=scorer.table.at[1, depth, :, others].set(value))
    assert beam_search(broken, index, HISTORY, 4).bad_step.tolist() == [-1, -1, -1]


def test_a_second_search_compiles_nothing():
    rng = np.random.default_rng(8)
    index = TrieIndex.build(random_tokens(rng, 9), tries.VOCAB)
    count = index.layout.node_offsets[-1]
    search = jax.jit(lambda model: beam_search(model, index, HISTORY, 4))
    for _ in range(2):
        search(random_scorer(rng, 3, tries.VOCAB, count))
    assert search._cache_size() == 1


# With a prior.

SHARES = np.array([0.2, 0.7, 0.95], np.float32)


def random_prior(rng, num_items):
    """Some items more than once, some unknown, some of padding."""
    items = rng.integers(-1, num_items + 5, (USERS, 9))
    return ItemPrior(items, np.exp(rng.normal(size=items.shape) * 3).astype(np.float32))


def check_mixed(found, user, tokens, log_prob, num_beams, prior, demands=(), left=None):
    of_user = prior.items[user], prior.weights[user]
    masses = oracles.prior_masses(tokens, *of_user, demands, left=left)
    share, by_sid = float(SHARES[user]), oracles.items_by_sid(tokens)
    beams = oracles.mixed_beam_search(tokens, log_prob, num_beams, masses, share, demands)
    expected = [(s, sid, oracles.allowed_items(by_sid[sid], demands)) for s, sid in beams]
    assert_same_ranking(rows(found, user), expected)
    if num_beams >= len(tokens):
        ranking = oracles.mixed_ranking(tokens, log_prob, masses, share, demands)
        assert_same_ranking(rows(found, user), ranking)


@pytest.mark.parametrize(
    ("count", "length", "codes", "listed"),
    [
        (60, 3, 30, True),
        (40, 5, 3, False),
        pytest.param(30, 1, 40, False, marks=pytest.mark.long),
        pytest.param(30, 1, 40, True, marks=pytest.mark.long),
        pytest.param(60, 3, 30, False, marks=pytest.mark.long),
        pytest.param(40, 5, 3, True, marks=pytest.mark.long),
    ],
)
def test_beams_are_ranked_by_the_mixture_with_a_prior(count, length, codes, listed):
    rng = np.random.default_rng(count + length)
    tokens = rng.integers(0, codes, (count, length))
    index = TrieIndex.build(tokens, codes, listed=listed)
    scorer = random_scorer(rng, length, codes, index.layout.node_offsets[-1])
    prior, out = random_prior(rng, count), rng.integers(0, count, (USERS, 2))
    mixed = {"prior": prior, "prior_weight": SHARES}
    for num_beams in (4, count):
        free = beam_search(scorer, index, HISTORY, num_beams, **mixed)
        excluding = ExcludeItems(out)
        found = beam_search(scorer, index, HISTORY, num_beams, constraint=excluding, **mixed)
        for user in range(USERS):
            log_prob = over_siblings(scorer, user, tokens, index.layout)
            check_mixed(free, user, tokens, log_prob, num_beams, prior)
            demands = oracles.excluding(set(out[user].tolist()))
            check_mixed(found, user, tokens, log_prob, num_beams, prior, demands)


@pytest.mark.parametrize("seed", range(2))
def test_a_prior_may_hold_items_that_were_added_and_removed(seed):
    rng = np.random.default_rng(seed)
    tokens, more = random_tokens(rng, 14), random_tokens(rng, 8)
    editable, _ = EditableIndex.build(tokens, tries.VOCAB).add(more)
    layout, both = editable.index.base.layout, np.concatenate([tokens, more])
    scorer = random_scorer(rng, 3, tries.VOCAB, layout.node_offsets[-1])
    gone = set(rng.integers(0, len(both), 4).tolist())
    index, prior = editable.remove(np.array(sorted(gone))).index, random_prior(rng, len(both))
    for num_beams in (3, EVERYTHING):
        found = beam_search(scorer, index, HISTORY, num_beams, prior=prior, prior_weight=SHARES)
        for user in range(USERS):
            log_prob = over_siblings(scorer, user, tokens, layout, siblings=both)
            left = [item for item in range(len(both)) if item not in gone]
            demands = oracles.excluding(gone)
            check_mixed(found, user, both, log_prob, num_beams, prior, demands, left)


# Indexes with recent changes.


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.long) for s in (1, 2))])
def test_added_items_have_no_row_and_removed_ones_keep_their_probability(seed):
    rng = np.random.default_rng(seed)
    tokens, more = random_tokens(rng, 14), random_tokens(rng, 8)
    editable, _ = EditableIndex.build(tokens, tries.VOCAB).add(more)
    layout = editable.index.base.layout
    both = np.concatenate([tokens, more])
    scorer = random_scorer(rng, 3, tries.VOCAB, layout.node_offsets[-1])
    removed = rng.integers(0, len(both), 4)
    by_sid = oracles.items_by_sid(both)
    for gone in ((), removed):
        index = editable.remove(np.array(gone, int)).index
        out = rng.integers(0, len(both), (USERS, 2))
        for num_beams in (3, EVERYTHING):
            found = beam_search(scorer, index, HISTORY, num_beams, constraint=ExcludeItems(out))
            for user in range(USERS):
                demands = oracles.excluding({*gone, *out[user].tolist()})
                log_prob = over_siblings(scorer, user, tokens, layout, siblings=both)
                beams = oracles.beam_search(both, log_prob, num_beams, demands)
                expected = [(s, i, oracles.allowed_items(by_sid[i], demands)) for s, i in beams]
                assert_same_ranking(rows(found, user), expected)


def test_tree_search_over_an_index_with_changes():
    rng = np.random.default_rng(9)
    base, added = random_tokens(rng, 14), random_tokens(rng, 8)
    both, removed = np.concatenate([base, added]), [0, 3, 5, 15]
    editable, _ = EditableIndex.build(base, tries.VOCAB).add(added)
    index = editable.remove(np.array(removed)).index
    layouts = index.base.layout, index.added.layout
    levels = zip(*(layout.levels for layout in layouts), strict=True)
    demands = oracles.excluding(set(removed))
    scorer = random_scorer(rng, 3, tries.VOCAB, layouts[0].node_offsets[-1])
    test_ved.check(
        both,
        index,
        scorer,
        tree_head(rng),
        9,
        demands=[demands] * USERS,
        log_prob=lambda user: over_siblings(scorer, user, base, layouts[0], siblings=both),
        place=search_oracles.overlaid_places(base, layouts[0], added, layouts[1], demands),
        fan_out=max(sum(level.fan_out for level in pair) for pair in levels),
        normalise_over="children",
        budget=14,
        num_candidates=12,
        initial_beams=3,
        width=4,
        crowding=0.3,
    )


# Searches that draw.


def tree_head(rng):
    return test_ved.SumHead(jnp.asarray(rng.normal(size=tries.VOCAB) * 0.1, jnp.float32))


@pytest.mark.parametrize(
    ("kinds", "name"),
    [(tries.MIXES[2], "ved"), (tries.MIXES[3], "best_first"), (tries.MIXES[4], "ved")],
)
@settings(max_examples=2, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_tree_search_is_the_slow_one_given_the_same_noise(kinds, tokens, seed, name):
    rng = np.random.default_rng(seed)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[2])
    options = {"name": name, "prior_weight": 0.5, "crowding": 0.3} if name == "best_first" else {}
    test_ved.check(
        tokens,
        index,
        scorer,
        tree_head(rng),
        seed,
        log_prob=lambda user: over_siblings(scorer, user, tokens, index.layout),
        normalise_over="children",  # As it is whatever the config says: see below.
        budget=12,
        num_candidates=10,
        initial_beams=2 * (name == "ved"),
        width=3,
        **options,
    )


@pytest.mark.parametrize("kind", tries.CONSTRAINTS)
@settings(max_examples=2, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_tree_search_under_constraints(kind, tokens, seed):
    rng = np.random.default_rng(seed)
    attributes = rng.random((len(tokens), 5)) < 0.6
    layout = tries.roomy_layout(tries.MIXES[3], 5)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    constraint, demands, scan_depth = tries.random_constraint(kind, rng, index, attributes, USERS)
    scorer = random_scorer(rng, 3, tries.VOCAB, layout.node_offsets[-1])
    test_ved.check(
        tokens,
        index,
        scorer,
        tree_head(rng),
        seed,
        log_prob=lambda user: over_siblings(scorer, user, tokens, layout),
        demands=demands,
        scan_depth=scan_depth,
        constraint=constraint,
        normalise_over="children",
        budget=12,
        num_candidates=10,
        initial_beams=2,
        width=4,
    )


def test_options_of_normalisation_change_nothing():
    rng = np.random.default_rng(10)
    tokens = random_tokens(rng, 20)
    index = TrieIndex.build(tokens, tries.VOCAB)
    scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[-1])
    ways = ("vocabulary", "children")
    one, other = (beam_search(scorer, index, HISTORY, 4, normalise_over=way) for way in ways)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    options = {"key": jax.random.key(0), "budget": 12, "num_candidates": 10, "initial_beams": 2}
    one, other = (
        test_ved.ved(scorer, None, index, HISTORY, normalise_over=way, **options) for way in ways
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("kinds", "kind"),
    [(tries.MIXES[2], None), (tries.MIXES[3], "exclude"), (tries.MIXES[4], "attributes")],
)
@settings(max_examples=2, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_draws_are_the_slow_ones_given_the_same_noise(kinds, kind, tokens, seed):
    rng = np.random.default_rng(seed)
    attributes = rng.random((len(tokens), 5)) < 0.6
    layout = tries.roomy_layout(kinds, 5)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    scorer = random_scorer(rng, 3, tries.VOCAB, layout.node_offsets[-1])
    constraint, demands, scan_depth = None, ((),) * USERS, 0
    if kind:
        constraint, demands, scan_depth = tries.random_constraint(
            kind, rng, index, attributes, USERS
        )
    known, key, by_sid = (
        Known(scorer, tokens, layout),
        jax.random.key(seed),
        oracles.items_by_sid(tokens),
    )
    for count in (4, test_sampling.EVERYTHING):
        found = sample_without_replacement(
            scorer, index, HISTORY, count, key=key, constraint=constraint
        )
        for user in range(USERS):
            noise = test_sampling.noise_of(key, index, count, user)
            expected, threshold = search_oracles.stochastic_beam_search(
                tokens, known.log_prob(user), count, noise, layout, demands[user], scan_depth
            )
            got = rows(found, user)
            assert [sid for _, sid, _ in got] == [sid for _, sid, _ in expected]
            scores = [e[0] for e in expected]
            np.testing.assert_allclose([g[0] for g in got], scores, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found.draws.threshold[user], threshold, rtol=1e-3, atol=1e-3)
    found = sample(scorer, index, HISTORY, 9, key=key, constraint=constraint)
    for user in range(USERS):
        chances = search_oracles.all_probabilities(
            tokens, known.log_prob(user), demands[user], scan_depth
        )
        got = rows(found, user)
        assert scan_depth or len(got) == (9 if chances else 0)
        for score, sid, items in got:
            np.testing.assert_allclose(np.exp(score), chances[sid], rtol=1e-3, atol=1e-6)
            assert items == oracles.allowed_items(by_sid[sid], demands[user])


# What is refused.


@dataclasses.dataclass(frozen=True)
class Faulty:
    """A scorer with one method replaced."""

    scorer: object
    method: str
    result: object

    scores_children = True

    def __getattr__(self, name):
        if name == self.method:
            return lambda *inputs: self.result
        return getattr(self.scorer, name)


jax.tree_util.register_dataclass(Faulty, ["scorer", "result"], ["method"])


def test_bad_requests_get_one_clear_error():
    rng = np.random.default_rng(11)
    tokens = random_tokens(rng, 20)
    index = TrieIndex.build(tokens, tries.VOCAB)
    scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[-1])
    hidden = jnp.zeros((USERS, tries.VOCAB))
    for method, result, message in (
        (
            "score_children",
            jnp.zeros((USERS, 2)),
            r"score_children returned .* hidden states \[3, 1, 50\]",
        ),
        ("score_children", jnp.zeros((USERS, 1, 3), int), "floating numbers"),
        ("prefill", (hidden, hidden, ()), "None instead of logits"),
        ("step", (None, hidden, ()), r"B = 3, M = 4|None instead of logits"),
    ):
        with pytest.raises(DecodingError, match=message):
            beam_search(Faulty(scorer, method, result), index, HISTORY, 4)
