"""Ranking whole items, with and without a prior, against sorting the probabilities of all items."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.decoding import DecodingError, ItemPrior, rank_items
from gr.trie import EditableIndex, ExcludeItems, ItemMask, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS, SLOTS = 3, 9
HISTORY = jnp.zeros((USERS, 1))
SHARES = np.array([0.0, 0.3, 0.95], np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemTable:
    """A model that scores whole items by a table of logits `[B, N]`."""

    table: jax.Array

    def last_state(self, history):
        return self.table

    def item_logits(self, hidden):
        return hidden


def random_table(rng, num_items):
    return ItemTable(jnp.asarray(3 * rng.normal(size=(USERS, num_items)), jnp.float32))


def random_prior(rng, num_items):
    """Some items more than once, some unknown, some of padding, some without weight."""
    items = rng.integers(-1, num_items + 5, (USERS, SLOTS))
    weights = np.exp(rng.normal(size=items.shape) * 3) * (rng.random(items.shape) < 0.9)
    return ItemPrior(items.astype(np.int32), weights.astype(np.float32))


def probabilities(logits, allowed, prior, share, temperature=1.0):
    """Item -> its probability in the mixture of a softmax over all items with the prior on the allowed ones."""
    logits = np.asarray(logits, np.float64) / temperature
    model = np.exp(logits - logits.max())
    model /= model.sum()
    masses = dict.fromkeys(allowed, 0.0)
    for item, weight in () if prior is None else zip(*map(np.ravel, prior), strict=True):
        if item in masses:
            masses[item] += float(weight)
    total = sum(masses.values())
    share = float(share) if total else 0.0
    return {
        item: (1 - share) * model[item] + share * mass / (total or 1)
        for item, mass in masses.items()
    }


def check(
    found, tokens, model, count, demands=None, prior=None, share=0.5, temperature=1.0, left=None
):
    share = np.broadcast_to(share, USERS)
    for user in range(USERS):
        wanted = () if demands is None else demands[user]
        allowed = oracles.allowed_items(range(len(tokens)), wanted)
        of_user = None if prior is None else (prior.items[user], prior.weights[user])
        expected = probabilities(model.table[user], allowed, of_user, share[user], temperature)
        listed = sorted(expected.values(), reverse=True)[:count]
        size = len(listed)
        valid = np.asarray(found.valid[user])
        assert valid.tolist() == [True] * size + [False] * (count - size)
        items = np.asarray(found.items[user, :, 0])
        assert len(set(items[:size].tolist())) == size and (items[size:] == -1).all()
        np.testing.assert_allclose(np.exp(found.scores[user, :size]), listed, rtol=1e-4)
        assert (np.asarray(found.scores[user, size:]) == -np.inf).all()
        for item, sid, p in zip(items, np.asarray(found.tokens[user]), listed, strict=False):
            assert expected[int(item)] == pytest.approx(p, rel=1e-4)
            assert sid.tolist() == tokens[item].tolist()
        assert (np.asarray(found.tokens[user, size:]) == -1).all()


@pytest.mark.parametrize(
    ("kind", "with_prior"),
    [
        (None, False),
        ("exclude", True),
        ("mask", True),
        pytest.param(None, True, marks=pytest.mark.long),
        pytest.param("exclude", False, marks=pytest.mark.long),
        pytest.param("mask", False, marks=pytest.mark.long),
    ],
)
@settings(max_examples=5, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_items_are_ranked_as_by_sorting_all_of_them(kind, with_prior, tokens, seed):
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(tries.MIXES[0]))
    rng = np.random.default_rng(seed)
    constraint, demands = None, None
    if kind:
        attributes = np.zeros((len(tokens), 1), bool)
        constraint, demands, _ = tries.random_constraint(kind, rng, index, attributes, USERS)
    model = random_table(rng, len(tokens))
    prior = random_prior(rng, len(tokens)) if with_prior else None
    for count in (1, 4, tries.MAX_ITEMS):
        found = rank_items(
            *(model, index, jnp.asarray(tokens), HISTORY, count),
            constraint=constraint,
            prior=prior,
            prior_weight=SHARES,
        )
        check(found, tokens, model, count, demands, prior, SHARES)


def small(seed=0, num_items=12):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 6, (num_items, 2))
    return rng, tokens, TrieIndex.build(tokens, 6), random_table(rng, num_items)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_is_the_models_alone(temperature):
    rng, tokens, index, model = small()
    prior = random_prior(rng, 12)
    options = {"temperature": temperature, "prior": prior, "prior_weight": 0.4}
    found = rank_items(model, index, jnp.asarray(tokens), HISTORY, 12, **options)
    check(found, tokens, model, 12, None, prior, 0.4, temperature)


def test_items_without_mass_come_last_where_only_the_prior_counts():
    _, tokens, index, model = small(1)
    prior = ItemPrior(np.array([[3, 5, -1]] * USERS), np.array([[1.0, 3.0, 9.0]] * USERS))
    options = {"prior": prior, "prior_weight": 1.0}
    found = rank_items(model, index, jnp.asarray(tokens), HISTORY, 12, **options)
    for user in range(USERS):
        assert found.items[user, :2, 0].tolist() == [5, 3] and found.valid[user].all()
        np.testing.assert_allclose(np.exp(found.scores[user]), [0.75, 0.25] + [0] * 10, rtol=1e-4)


def test_weights_of_any_size_keep_their_proportions():
    rng, tokens, index, model = small(3)
    prior = random_prior(rng, 12)
    options = {"constraint": ExcludeItems([[0], [1, 2], []]), "prior_weight": 0.5}
    expected = rank_items(model, index, jnp.asarray(tokens), HISTORY, 12, prior=prior, **options)
    for factor in (1e-30, 1e36):
        scaled = ItemPrior(prior.items, np.float32(factor) * np.asarray(prior.weights, np.float32))
        found = rank_items(model, index, jnp.asarray(tokens), HISTORY, 12, prior=scaled, **options)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_constraints_hold_together():
    rng, tokens, index, model = small(2)
    allowed = np.arange(12) % 3 > 0
    mask = ItemMask.allow(index, np.flatnonzero(allowed).astype(np.int32))
    seen = [[1, 4], [2], []]
    demands = [[allowed.__getitem__, *oracles.excluding(row)] for row in seen]
    prior = random_prior(rng, 12)
    both = (mask, ExcludeItems(seen))
    options = {"constraint": both, "prior": prior, "prior_weight": 0.9}
    found = rank_items(model, index, jnp.asarray(tokens), HISTORY, 12, **options)
    check(found, tokens, model, 12, demands, prior, 0.9)


def test_numbers_that_are_not_finite_are_told():
    _, tokens, index, model = small()
    bad = ItemTable(model.table.at[1, 3].set(jnp.nan))
    found = rank_items(bad, index, jnp.asarray(tokens), HISTORY, 5)
    assert found.bad_step.tolist() == [-1, 0, -1]
    assert not found.valid[1].any() and np.isnan(found.scores[1]).all() and found.valid[0].all()


def test_bad_requests_get_one_clear_error():
    rng, tokens, index, model = small()
    prior = random_prior(rng, 12)
    few = ItemPrior(prior.items[:2], prior.weights[:2])
    edited = EditableIndex.build(tokens, 6).remove([2]).index
    with pytest.raises(DecodingError, match="an edited index.*OverlaidIndex.*ItemMask"):
        rank_items(model, edited, jnp.asarray(tokens), HISTORY, 3)
    for options, told in (
        ({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
        ({"prior": few}, "the prior is for 2 users, the history for 3"),
        ({"prior": prior, "prior_weight": 1.5}, r"prior_weight .*in \[0, 1\]"),
        ({"prior": "popular"}, "prior must be an ItemPrior"),
    ):
        with pytest.raises(DecodingError, match=told):
            rank_items(
                model, index, jnp.asarray(tokens), HISTORY, **{"num_candidates": 3} | options
            )
