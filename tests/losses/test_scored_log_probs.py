"""Log-probabilities of a model that scores children: by dictionaries, at padding, and their slopes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from scorers import TableScorer, over_siblings, random_scorer

from gr.losses import scored_log_probs
from gr.losses.token import scored_children
from gr.testing import random_tokens
from gr.trie import TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS = 3


def hidden_states(scorer, sids):
    """The states before each code of `sids [B, n, L]`: the rows of the scorer's table."""
    before = jnp.pad(sids[..., :-1], ((0, 0), (0, 0), (1, 0)))
    return scorer.table[jnp.arange(len(sids))[:, None, None], jnp.arange(sids.shape[-1]), before]


@jax.jit
def found_by(scorer, sids, index, temperature):
    return scored_log_probs(scorer, hidden_states(scorer, sids), sids, index, temperature)


def test_by_hand():
    # Two first codes, 0 and 1; behind 0 three codes, behind 1 a single one.
    index = TrieIndex.build(np.array([[0, 0], [0, 1], [0, 2], [1, 2]]), 3)
    zero = jnp.zeros((1, 2, 3, 3))
    scorer = TableScorer(zero.at[0, 0, 0, 1].set(jnp.log(3.0)), jnp.zeros(1))
    sids = jnp.array([[[0, 1], [1, 2]]])
    found = found_by(scorer, sids, index, None)
    np.testing.assert_allclose(np.exp(found), [[[1 / 4, 1 / 3], [3 / 4, 1]]], rtol=1e-6)
    # The node 0-1 is the second of depth 2: row 2 + 1, or by its first slot.
    row = index.layout.node_offsets[1] + 1
    raised = dataclasses.replace(scorer, nodes=jnp.zeros(row + 1).at[row].set(jnp.log(2.0)))
    found = found_by(raised, sids, index, None)
    np.testing.assert_allclose(np.exp(found), [[[1 / 4, 2 / 4], [3 / 4, 1]]], rtol=1e-6)
    # At temperature 2 of odds 1 : 3, those of the roots.
    found = found_by(scorer, sids, index, 2.0)
    np.testing.assert_allclose(np.exp(found[0, 0, 0]), 1 / (1 + 3**0.5), rtol=1e-6)


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
@settings(max_examples=8, deadline=None)
@given(
    tokens=tries.token_sets(),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from((None, 0.5, 2.0)),
)
def test_they_are_those_over_dictionaries(kinds, tokens, seed, temperature):
    rng = np.random.default_rng(seed)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[2])
    sids = tokens[rng.integers(0, len(tokens), (USERS, 4))]
    sids[:, 0] = 0  # Padding: the trie has no such prefix.
    found = np.asarray(found_by(scorer, sids, index, temperature))
    assert (found[:, 0] == 0).all()
    for user, place in np.ndindex(USERS, 4):
        if place:
            log_prob = over_siblings(scorer, user, tokens, index.layout, temperature or 1.0)
            sid = sids[user, place].tolist()
            expected = [log_prob(sid[:depth])[token] for depth, token in enumerate(sid)]
            np.testing.assert_allclose(found[user, place], expected, rtol=1e-4, atol=1e-5)


def test_where_a_path_leaves_the_trie_the_rest_is_0():
    rng = np.random.default_rng(1)
    tokens = random_tokens(rng, 12)
    index = TrieIndex.build(tokens, tries.VOCAB)
    scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[-1])
    sids = np.repeat(tokens[None, :1], USERS, axis=0)
    inside = np.asarray(found_by(scorer, sids, index, None))
    left = sids.copy()
    left[:, 0, 1] = 49  # No code of that level.
    found = np.asarray(found_by(scorer, left, index, None))
    np.testing.assert_array_equal(found[..., 0], inside[..., 0])
    assert (found[..., 1:] == 0).all()


def test_the_gradient_is_the_slope_and_padding_has_none():
    rng = np.random.default_rng(2)
    tokens = random_tokens(rng, 16)
    for kinds in (tries.MIXES[0], tries.MIXES[3]):
        index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
        scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[-1])
        sids = np.concatenate(
            [tokens[rng.integers(0, 16, (USERS, 4))], np.zeros((USERS, 1, 3), int)], 1
        )
        weights = jnp.asarray(rng.normal(size=sids.shape), jnp.float32)

        @jax.jit
        def total(scorer, index=index, sids=sids, weights=weights):
            return (found_by.__wrapped__(scorer, sids, index, 1.5) * weights).sum()

        grads = jax.grad(total)(scorer)
        direction = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), scorer
        )
        moved = [
            total(jax.tree.map(lambda x, d, step=step: x + step * d, scorer, direction))
            for step in (1e-2, -1e-2)
        ]
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
        assert float(slope) == pytest.approx(float(moved[0] - moved[1]) / 2e-2, rel=5e-3)
        # Nothing but children of the paths' prefixes has a gradient.
        only_padding = jax.grad(functools.partial(total, sids=sids[:, -1:], weights=1.0))(scorer)
        assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(only_padding))


def test_what_is_no_child_may_be_nan():
    rng = np.random.default_rng(3)
    tokens = random_tokens(rng, 12)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(tries.MIXES[0]))
    scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[-1])
    sids = tokens[rng.integers(0, 12, (USERS, 4))]
    plain, slopes = jax.value_and_grad(lambda s: found_by(s, sids, index, None).sum())(scorer)
    for depth in range(3):
        others = np.setdiff1d(np.arange(tries.VOCAB), tokens[:, depth])
        broken = scorer.table.at[:, depth, :, others].set(jnp.nan)
        scorer = dataclasses.replace(scorer, table=broken)
    found, again = jax.value_and_grad(lambda s: found_by(s, sids, index, None).sum())(scorer)
    assert float(found) == pytest.approx(float(plain), rel=1e-6)
    np.testing.assert_allclose(again.nodes, slopes.nodes, rtol=1e-5)
    assert np.isfinite(np.asarray(again.table)).all()


def test_listed_children_are_all_children_and_one_is_the_token():
    rng = np.random.default_rng(4)
    tokens = random_tokens(rng, 12)
    index = TrieIndex.build(tokens, tries.VOCAB)
    scorer = random_scorer(rng, 3, tries.VOCAB, index.layout.node_offsets[-1])
    sids = jnp.asarray(tokens[rng.integers(0, 12, (USERS, 4))])
    for depth, (logits, is_token) in enumerate(
        scored_children(scorer, hidden_states(scorer, sids), sids, index)
    ):
        for user, place in np.ndindex(USERS, 4):
            prefix = tuple(sids[user, place, :depth].tolist())
            children = {sid[depth] for sid in map(tuple, tokens.tolist()) if sid[:depth] == prefix}
            count = np.asarray(jnp.broadcast_to(logits, (USERS, 4, logits.shape[-1])) > -np.inf)
            assert count[user, place].sum() == len(children)
            assert np.asarray(is_token)[user, place].sum() == 1
