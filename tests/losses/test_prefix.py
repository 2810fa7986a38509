"""Prefix losses and weights against hand-computed numbers, loops and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.losses import (
    init_prefix_weights,
    pairwise_prefix_losses,
    pointwise_prefix_losses,
    stateless_prefix_weights,
    uniform_prefix_weights,
    update_prefix_weights,
)
from gr.losses.prefix import distinct_negatives
from gr.testing import random_tokens
from gr.trie import TrieIndex, walk

LAYOUT = tries.roomy_layout(tries.MIXES[1])  # One for all sets, so that they share a program.


def test_pointwise_by_hand():
    token_logp = jnp.array([[-1.0, -2.0, -3.0], [-3.0, -1.0, -5.0]])
    # Means over the two targets: (1 + 3) / 2; (3 / 2 + 4 / 2) / 2; (6 / 3 + 9 / 3) / 2.
    np.testing.assert_allclose(pointwise_prefix_losses(token_logp), [2.0, 1.75, 2.5])


def test_padding_has_no_influence():
    token_logp = jnp.array([[-1.0, -2.0], [-jnp.inf, jnp.nan]])
    weight = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(pointwise_prefix_losses(token_logp, weight), [1.0, 1.5])
    gradient = jax.grad(lambda x: pointwise_prefix_losses(x, weight).sum())(token_logp)
    np.testing.assert_allclose(gradient, [[-1.5, -0.5], [0.0, 0.0]])
    halves = pointwise_prefix_losses(token_logp, weight, normaliser=2.0)
    np.testing.assert_allclose(halves, [0.5, 0.75])


def test_distinct_negatives_by_hand():
    # The target's prefixes are nodes 4 and 9. At depth 1 negatives 0 and 3 are the target's, 2 repeats 1.
    negatives = jnp.array([[4, 8], [5, 11], [5, 12], [4, 9], [6, 12]])
    counted = distinct_negatives(jnp.array([4, 9]), negatives)
    assert counted[:, 0].tolist() == [False, True, False, False, True]
    assert counted[:, 1].tolist() == [True, True, True, False, False]


def test_pairwise_by_hand():
    # One target, two negatives that share their first code with each other, L = 2, 5 and 7 nodes.
    target_logp = jnp.log(jnp.array([[0.5, 0.5]]))
    negative_logp = jnp.log(jnp.array([[[0.25, 0.5], [0.25, 0.25]]]))
    nodes, negatives = jnp.array([[1, 3]]), jnp.array([[[2, 4], [2, 5]]])
    found = pairwise_prefix_losses(target_logp, negative_logp, nodes, negatives, jnp.array([5, 7]))
    # Depth 1: one distinct negative, c = 4 / 2: 0.5 / (0.5 + 2 * 0.25).
    # Depth 2: two, c = 6 / 3: 0.25 / (0.25 + 2 * (0.125 + 0.0625)); a half of its logarithm.
    expected = [-np.log(0.5), -np.log(0.25 / 0.625) / 2]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def plain_pairwise(target_logp, negative_logp, targets, negatives, num_nodes, tau):
    """The formula with loops and prefixes as tuples, in float64."""
    losses = np.zeros(target_logp.shape[1])
    for logp, others, target, sids in zip(
        target_logp, negative_logp, targets, negatives, strict=True
    ):
        for depth in range(1, len(losses) + 1):
            seen, total = {tuple(target[:depth])}, 0.0
            for sid, other in zip(sids, others, strict=True):
                if tuple(sid[:depth]) not in seen:
                    seen.add(tuple(sid[:depth]))
                    total += np.exp(other[:depth].sum() / tau)
            own = np.exp(logp[:depth].sum() / tau)
            scale = (num_nodes[depth - 1] - 1) / len(seen)
            losses[depth - 1] -= np.log(own / (own + scale * total)) / depth / len(targets)
    return losses


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 2.0]))
def test_pairwise_equals_loops_over_prefixes(seed, tau):
    rng = np.random.default_rng(seed)
    tokens = random_tokens(rng, tries.MAX_ITEMS)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=LAYOUT)
    targets, negatives = (tokens[rng.integers(0, len(tokens), n)] for n in (4, (4, 9)))
    target_logp, negative_logp = -rng.exponential(size=(4, 3)), -rng.exponential(size=(4, 9, 3))
    found = pairwise_prefix_losses(
        jnp.asarray(target_logp),
        jnp.asarray(negative_logp),
        walk(index, jnp.asarray(targets)),
        walk(index, jnp.asarray(negatives)),
        index.node_counts[1:],
        tau=tau,
    )
    expected = plain_pairwise(
        target_logp, negative_logp, targets, negatives, index.num_nodes[1:], tau
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_pairwise_survives_very_small_probabilities():
    # 200 nats apart in both directions: probabilities underflow, their logarithms do not.
    nodes, negatives = jnp.array([[1], [1]]), jnp.array([[[2]], [[2]]])
    target_logp = jnp.array([[-200.0], [-400.0]])
    negative_logp = jnp.array([[[-400.0]], [[-200.0]]])
    losses = lambda x: pairwise_prefix_losses(x, negative_logp, nodes, negatives, jnp.array([3]))  # noqa: E731
    # c = 2 / 2 = 1: the first loses nothing, the second 200.
    np.testing.assert_allclose(losses(target_logp), [100.0])
    gradient = jax.grad(lambda x: losses(x).sum())(target_logp)
    np.testing.assert_allclose(gradient, [[0.0], [-0.5]], atol=1e-6)


def test_without_negatives_there_is_no_loss_and_no_gradient():
    nodes = jnp.array([[1, 2]])
    negatives = jnp.array([[[1, 2], [1, 2]]])
    logp = jnp.array([[-1.0, -2.0]])
    losses = lambda x: pairwise_prefix_losses(  # noqa: E731
        x, jnp.zeros((1, 2, 2)), nodes, negatives, jnp.array([4, 4])
    )
    np.testing.assert_array_equal(losses(logp), [0.0, 0.0])
    np.testing.assert_array_equal(jax.grad(lambda x: losses(x).sum())(logp), [[0.0, 0.0]])


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_equal_finite_differences(which):
    rng = np.random.default_rng(0)
    arrays = [-rng.exponential(size=(3, 2)), -rng.exponential(size=(3, 4, 2))]
    nodes = jnp.asarray(rng.integers(0, 3, (3, 2)))
    negatives = jnp.asarray(rng.integers(0, 3, (3, 4, 2)))

    def loss(values):
        both = [jnp.asarray(values if i == which else a) for i, a in enumerate(arrays)]
        return pairwise_prefix_losses(*both, nodes, negatives, jnp.array([6, 9])) @ jnp.ones(2)

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(arrays[which])))
    for place in np.ndindex(arrays[which].shape):
        step = np.zeros_like(arrays[which])
        step[place] = 1e-2
        slope = (loss(arrays[which] + step) - loss(arrays[which] - step)) / 2e-2
        np.testing.assert_allclose(gradient[place], slope, atol=2e-3)


# Weights.


def test_weights_begin_as_shares_of_the_losses_and_follow_the_worst():
    losses = jnp.array([1.0, 3.0])
    first = update_prefix_weights(init_prefix_weights(2), losses, 0.5)
    # Shares 1/4 and 3/4; times e^{0.5 / 4} and e^{0.5 * 3 / 4}, renormalised.
    raw = np.array([0.25 * np.exp(0.125), 0.75 * np.exp(0.375)])
    np.testing.assert_allclose(first, raw / raw.sum(), rtol=1e-6)
    second = update_prefix_weights(first, jnp.array([2.0, 2.0]), 0.5)
    np.testing.assert_allclose(second, first, rtol=1e-6)  # Equal losses change nothing.
    weights = first
    for _ in range(200):
        weights = update_prefix_weights(weights, losses, 0.5)
    assert weights[1] > 0.99


def test_stateless_weights_by_hand():
    found = stateless_prefix_weights(jnp.array([1.0, 3.0]), 0.1)
    raw = np.array([0.25 * np.exp(0.1), 0.75 * np.exp(0.3)])
    np.testing.assert_allclose(found, raw / raw.sum(), rtol=1e-6)


def test_weights_are_uniform_without_losses_and_carry_no_gradient():
    zeros = jnp.zeros(4)
    for weights in (
        uniform_prefix_weights(zeros),
        stateless_prefix_weights(zeros, 0.1),
        update_prefix_weights(init_prefix_weights(4), zeros, 0.1),
    ):
        np.testing.assert_allclose(weights, np.full(4, 0.25))
    for rule in (
        stateless_prefix_weights,
        lambda x, eta: update_prefix_weights(x * 0 + 0.5, x, eta),
    ):
        gradient = jax.grad(lambda x, rule=rule: rule(x, 0.1)[0])(jnp.array([1.0, 2.0]))
        np.testing.assert_array_equal(gradient, [0.0, 0.0])
