"""Value-guided search: against dictionaries given the same noise, and its invariants."""

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

from gr.decoding import DecodingError, VedConfig, beam_search, ved_search
from gr.decoding import ved as ved_module
from gr.decoding.ved_step import prefix_noise
from gr.testing import TableModel, random_tokens
from gr.trie import EditableIndex, ItemMask, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS = 3
HISTORY = jnp.zeros((USERS, 1))
WIDTH = 4  # Of hidden states.
SHARED = {
    "name",
    "entropy_weight",
    "prior_weight",
    "exploration",
    "sampling_temperature",
    "crowding",
}  # Options that the oracle has too.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StateModel(TableModel):
    """A table whose hidden states depend on the depth and the last token."""

    states: jax.Array  # [B, L, V, D].

    def prefill(self, history):
        logits, _, cache = super().prefill(history)
        return logits, self.states[:, 0, 0], cache

    def step(self, tokens, cache):
        logits, _, cache = super().step(tokens, cache)
        user = jnp.arange(len(tokens))[:, None]
        return logits, self.states[user, cache[0], tokens], cache

    def value(self, user, head):
        states = np.asarray(self.states[user], np.float64)

        def of(prefix):
            path = [states[0, 0], *(states[i + 1, token] for i, token in enumerate(prefix))]
            return sum(np.tanh(s @ np.asarray(head.weights)) * (i + 1) for i, s in enumerate(path))

        return of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SumHead:
    """A prefix's value is a sum over its positions, each with a weight of its own."""

    weights: jax.Array  # [D].

    def step(self, hidden, depths, before):
        mine = jnp.tanh(hidden @ self.weights) * (depths + 1)
        if before is None:
            return mine, mine
        above = jnp.arange(before.shape[-1]) < depths[..., None]
        return mine + jnp.where(above, before, 0.0).sum(-1), mine


def ved(
    model, head, index, history, *, key, constraint=None, temperature=1.0, keep_tree=True, **options
):
    """`ved_search` by the fields of its config."""
    return ved_search(
        model,
        head,
        index,
        history,
        VedConfig(**options),
        key=key,
        constraint=constraint,
        temperature=temperature,
        keep_tree=keep_tree,
    )


def random_case(seed, length=3, vocab_size=tries.VOCAB, num_users=USERS):
    rng = np.random.default_rng(seed)
    shape = (num_users, length, vocab_size)
    model = StateModel(
        jnp.asarray(rng.normal(size=(*shape, vocab_size)) * 2, jnp.float32),
        jnp.asarray(rng.normal(size=(*shape, WIDTH)), jnp.float32),
    )
    return model, SumHead(jnp.asarray(rng.normal(size=WIDTH) * 0.3, jnp.float32))


def check(
    tokens,
    index,
    model,
    head,
    seed,
    *,
    demands=((),) * USERS,
    scan_depth=0,
    log_prob=None,
    place=None,
    fan_out=None,
    **options,
):
    """`log_prob`, `place` and `fan_out`: where they are not those of the model, and of the index as it is."""
    key = jax.random.key(seed)
    found = ved(model, head, index, HISTORY, key=key, **options)
    log_prob = log_prob or model.log_prob
    place = place or search_oracles.places(tokens, index.layout)
    fan_out = fan_out or max(level.fan_out for level in index.layout.levels)
    by_sid = oracles.items_by_sid(tokens)
    for user in range(USERS):

        def noise(number, user=user):
            return np.asarray(prefix_noise(key, user, number, fan_out), np.float64)

        expected, tree = search_oracles.ved(
            tokens,
            log_prob(user),
            model.value(user, head) if head else lambda prefix: 0.0,
            noise,
            place,
            budget=options["budget"],
            count=options["num_candidates"],
            beams=options.get("initial_beams", 8),
            width=options.get("width", 8),
            lone_are_free=options.get("normalise_over") == "children",
            **{name: options[name] for name in SHARED & set(options)},
            demands=demands[user],
            scan_depth=scan_depth,
        )
        assert_same_tree(found.tree, user, tree)
        assert int(found.evaluations[user]) == len(tree) - 1 <= options["budget"]
        allowed = {sid: oracles.allowed_items(by_sid[sid], demands[user]) for sid in by_sid}
        ranking = [(score, sid, allowed[sid]) for score, sid in expected]
        assert_same_ranking(rows(found, user), ranking)
    return found


def assert_same_tree(tree, user, expected):
    count = int(tree.exist[user].sum())
    assert tree.exist[user, :count].all() and count == len(expected)
    prefixes = [()]
    for number in range(1, count):
        parent = int(tree.parents[user, number])
        prefixes.append((*prefixes[parent], int(tree.tokens[user, number])))
    assert prefixes == [node.tokens for node in expected]
    assert tree.depths[user, :count].tolist() == [len(node.tokens) for node in expected]
    assert tree.visits[user, :count].tolist() == [node.visits for node in expected]
    for field, name in (("values", "value"), ("entropies", "entropy"), ("log_probs", "score")):
        mine = np.asarray(getattr(tree, field)[user, :count])
        np.testing.assert_allclose(mine, [getattr(n, name) for n in expected], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
@settings(max_examples=4, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_it_is_the_slow_search_given_the_same_noise(kinds, tokens, seed):
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    model, head = random_case(seed)
    for width, budget in ((1, 9), (3, 17)):
        check(
            tokens,
            index,
            model,
            head,
            seed,
            budget=budget,
            num_candidates=10,
            initial_beams=2,
            width=width,
        )


@pytest.mark.parametrize(
    ("length", "budget"),
    [(1, 0), (1, 5), (2, 3), pytest.param(4, 30, marks=pytest.mark.long), (5, 26)],
)
def test_all_lengths(length, budget):
    rng = np.random.default_rng(length)
    tokens = rng.integers(0, 7, (40, length))
    model, head = random_case(length, length, 7)
    for width in (1, 4):
        check(
            tokens,
            TrieIndex.build(tokens, 7),
            model,
            head,
            length,
            budget=budget,
            num_candidates=12,
            initial_beams=3,
            width=width,
        )


def test_weights_of_what_guides_it():
    tokens = np.random.default_rng(7).integers(0, 7, (40, 3))
    model, head = random_case(7, 3, 7)
    index = TrieIndex.build(tokens, 7)
    for weights in ({"prior_weight": 0.5, "exploration": 0.2}, {"entropy_weight": 0.8}):
        check(
            tokens,
            index,
            model,
            head,
            7,
            budget=16,
            num_candidates=12,
            initial_beams=2,
            width=3,
            **weights,
        )


def check_under_constraint(kind, kinds, tokens, seed, *, log_prob_of=None, **options):
    """`log_prob_of(model, user, tokens)`: where log-probabilities are not those of the model."""
    rng = np.random.default_rng(seed)
    attributes = rng.random((len(tokens), 5)) < 0.6
    layout = tries.roomy_layout(kinds, 5)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    constraint, demands, scan_depth = tries.random_constraint(kind, rng, index, attributes, USERS)
    model, head = random_case(seed)
    check(
        tokens,
        index,
        model,
        head,
        seed,
        log_prob=log_prob_of and (lambda user: log_prob_of(model, user, tokens)),
        demands=demands,
        scan_depth=scan_depth,
        constraint=constraint,
        num_candidates=10,
        width=4,
        **options,
    )


@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[2], tries.MIXES[3]], ids="-".join)
@pytest.mark.parametrize("kind", tries.CONSTRAINTS)
@settings(max_examples=4, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_under_constraints(kind, kinds, tokens, seed):
    check_under_constraint(kind, kinds, tokens, seed, budget=14, initial_beams=3)


def test_an_index_with_changes_is_searched_as_one_trie():
    rng = np.random.default_rng(8)
    base, added = random_tokens(rng, 14), random_tokens(rng, 8)
    removed = [0, 3, 5, 15]
    editable, _ = EditableIndex.build(base, tries.VOCAB).add(added)
    index = editable.remove(np.array(removed)).index
    layouts = index.base.layout, index.added.layout
    levels = zip(*(layout.levels for layout in layouts), strict=True)
    demands = oracles.excluding(set(removed))
    model, head = random_case(8)
    check(
        np.concatenate([base, added]),
        index,
        model,
        head,
        8,
        demands=[demands] * USERS,
        place=search_oracles.overlaid_places(base, layouts[0], added, layouts[1], demands),
        fan_out=max(sum(level.fan_out for level in pair) for pair in levels),
        budget=14,
        num_candidates=12,
        initial_beams=3,
        width=4,
    )


# Invariants.

OPTIONS = {
    "budget": 12,
    "num_candidates": tries.MAX_ITEMS,
    "initial_beams": 3,
    "width": 4,
}


def case(seed, num_items=20):
    tokens = random_tokens(np.random.default_rng(seed), num_items)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(tries.MIXES[3]))
    return tokens, index, *random_case(seed)


def test_a_budget_for_the_first_beams_alone_gives_a_beam_search():
    _, index, model, head = case(0)
    options = {**OPTIONS, "budget": 3 * 2, "num_candidates": 3}
    found = ved(model, head, index, HISTORY, key=jax.random.key(0), **options)
    assert found.evaluations.tolist() == [6] * USERS
    plain = beam_search(model, index, HISTORY, 3)
    np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-6)
    for field in ("tokens", "items", "valid"):
        np.testing.assert_array_equal(getattr(found, field), getattr(plain, field))


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, -100.0])
def test_what_the_first_beams_find_is_found_whatever_the_values(scale):
    _, index, model, head = case(1)
    head = SumHead(head.weights * scale)
    found = ved(model, head, index, HISTORY, key=jax.random.key(0), **OPTIONS)
    plain = beam_search(model, index, HISTORY, 3)
    for user in range(USERS):
        mine = {sid: score for score, sid, _ in rows(found, user)}
        assert len(mine) == int(found.valid[user].sum()) > 3  # All distinct.
        for score, sid, _ in rows(plain, user):
            np.testing.assert_allclose(mine[sid], score, rtol=1e-5)


def test_a_small_trie_is_exhausted_before_the_budget():
    tokens, index, model, head = case(2, 4)
    prefixes = {tuple(row[:depth]) for row in tokens.tolist() for depth in (1, 2)}
    found = ved(model, head, index, HISTORY, key=jax.random.key(0), **OPTIONS)
    assert found.evaluations.tolist() == [len(prefixes)] * USERS
    assert len(prefixes) < OPTIONS["budget"]
    assert (found.tree.visits[:, 0] == len(prefixes)).all()
    for user in range(USERS):
        ranking = oracles.brute_force_ranking(tokens, model.log_prob(user))
        assert_same_ranking(rows(found, user), ranking)


def test_a_key_decides_and_another_one_does_not_compile_again():
    _, index, model, head = case(3)
    search = functools.partial(ved, model, head, index, **OPTIONS)
    first = search(HISTORY, key=jax.random.key(0))
    compiled = ved_module._ved_search._cache_size()
    again = search(HISTORY + 1, key=jax.random.key(0))
    other = search(HISTORY, key=jax.random.key(1))
    assert ved_module._ved_search._cache_size() == compiled
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.tree.tokens != other.tree.tokens).any()


def test_a_constraint_that_leaves_nothing_leaves_no_candidates():
    _, index, model, head = case(4)
    nothing = jnp.ones((USERS, index.num_items), bool).at[1].set(False)
    found = ved(
        model,
        head,
        index,
        HISTORY,
        key=jax.random.key(0),
        constraint=ItemMask.build(index, nothing),
        **OPTIONS,
    )
    assert found.valid.any(axis=1).tolist() == [True, False, True]
    assert found.evaluations.tolist() == [12, 0, 12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": 5},
            "budget=5 must be at least 6, what a beam search with 3 beams over 3 codes",
        ),
        ({"num_candidates": 0}, "search.num_candidates=0: use 1 or more"),
        ({"initial_beams": -1}, "search.initial_beams=-1: use 0 or more"),
        ({"sampling_temperature": -0.5}, "search.sampling_temperature=-0.5: use 0 or more"),
        ({"crowding": -0.5}, "search.crowding=-0.5: use 0 or more"),
        ({"name": "beam"}, "search.name='beam' is unknown; use one of ved, best_first"),
        ({"name": "best_first"}, "set search.prior_weight above 0"),
        ({"width": 0}, "search.width=0: use 1 or more"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
        ({"normalise_over": "items"}, "normalise_over='items' is unknown"),
    ],
)
def test_bad_requests_get_one_clear_error(options, message):
    _, index, model, head = case(5)
    with pytest.raises(DecodingError, match=message):
        ved(model, head, index, HISTORY, key=jax.random.key(0), **OPTIONS | options)
