"""Dense rewards, targets and loss of the value head against tables, loops and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.losses import (
    LossError,
    depth_weights,
    distinct_prefixes,
    group_prefix_vectors,
    monte_carlo_returns,
    prefix_means,
    semantic_rewards,
    td_loss,
    td_targets,
)
from gr.trie import NodeVectors, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

# One user: two candidates share prefix 0, one of them is there twice, and the last is not valid.
CODES = jnp.array([[[0, 0], [0, 1], [0, 1], [1, 2], [0, 0]]])
VALID = jnp.array([[True, True, True, True, False]])
A, B, C = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]  # Vectors of items 00, 01 and 12.
VECTORS = jnp.array([[A, B, B, C, [jnp.nan, 9.0]]])

jitted_rewards = jax.jit(semantic_rewards)
jitted_vectors = jax.jit(group_prefix_vectors)
jitted_of_prefixes = jax.jit(NodeVectors.of_prefixes)


# Rewards.


@pytest.mark.parametrize(
    "length, expected",
    [
        (1, [1.0]),
        (2, [0.3, 1.0]),
        (3, [0.3, 0.5, 1.0]),  # As in public code.
        (4, [0.3, 0.5, 0.7, 1.0]),
        (5, [0.3, 0.475, 0.65, 0.825, 1.0]),
        (8, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    ],
)
def test_depth_weights(length, expected):
    np.testing.assert_allclose(depth_weights(length), expected, rtol=1e-6)


def test_group_prefix_vectors_by_hand():
    found = group_prefix_vectors(CODES, VECTORS, VALID)
    shared = [0.5, 0.5]  # Below 0 there are items 00 and 01, each once.
    np.testing.assert_allclose(
        found, [[[shared, A], [shared, B], [shared, B], [C, C], [[0, 0], [0, 0]]]]
    )


def test_semantic_rewards_by_hand():
    # The target is item 00; the weights are (0.3, 1).
    found = semantic_rewards(
        CODES,
        jnp.array([[0, 0]]),
        group_prefix_vectors(CODES, VECTORS, VALID),
        jnp.array([A]),
        valid=VALID,
    )
    # Item 01 is at a right angle to the target, item 12 opposite.
    np.testing.assert_allclose(
        found, [[[0.3, 1.0], [0.3, -1.0], [0.3, -1.0], [-0.6, -2.0], [0.0, 0.0]]], rtol=1e-6
    )
    # A right code behind a wrong one is not the target's prefix; the mean's direction counts, not its length.
    found = semantic_rewards(
        CODES[:, :1],
        jnp.array([[1, 0]]),
        jnp.array([[[[0.1, 0.1], A]]]),
        jnp.array([[5.0, 0.0]]),
        jnp.array([0.5, 2.0]),
    )
    np.testing.assert_allclose(found, [[[-0.5 * (1 - np.sqrt(0.5)), 0.0]]], rtol=1e-6)


def test_an_unknown_vector_counts_as_unrelated():
    for prefix, target in ((jnp.zeros(2), jnp.array(A)), (jnp.array(A), jnp.zeros(2))):
        found = semantic_rewards(
            jnp.array([[[3]]]), jnp.array([[4]]), prefix[None, None, None], target[None]
        )
        np.testing.assert_allclose(found, [[[-1.0]]])


def test_as_many_weights_as_codes():
    with pytest.raises(LossError, match=r"depth weights of shape \(3,\) for 2 codes"):
        semantic_rewards(CODES, CODES[:, 0], jnp.ones((1, 5, 2, 2)), jnp.ones((1, 2)), jnp.ones(3))


def unit_rows(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def plain_reward(prefix, target, mean, wanted, weight):
    if prefix == target[: len(prefix)]:
        return weight
    lengths = np.linalg.norm(mean) * np.linalg.norm(wanted)
    return -weight * (1 - (mean @ wanted / lengths if lengths > 1e-6 else 0.0))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_group_rewards_equal_loops_over_the_candidates(seed):
    rng = np.random.default_rng(seed)
    codes, target = rng.integers(0, 3, (2, 9, 3)), rng.integers(0, 3, (2, 3))
    vectors = unit_rows(rng, 3, 3, 3, 4)  # One for each of the 27 items.
    valid = rng.random((2, 9)) < 0.8
    means = jitted_vectors(
        jnp.asarray(codes), jnp.asarray(vectors[tuple(codes.T)].swapaxes(0, 1)), valid
    )
    found = jitted_rewards(
        jnp.asarray(codes),
        jnp.asarray(target),
        means,
        jnp.asarray(vectors[tuple(target.T)]),
        valid=valid,
    )
    for user in range(2):
        items = {
            tuple(sid) for sid, real in zip(codes[user].tolist(), valid[user], strict=True) if real
        }
        for place in range(9):
            for depth in range(1, 4):
                prefix = tuple(codes[user, place, :depth])
                below = [vectors[sid] for sid in items if sid[:depth] == prefix]
                expected = 0.0
                if valid[user, place]:
                    wanted = tuple(target[user])
                    expected = plain_reward(
                        prefix,
                        wanted,
                        np.mean(below, axis=0),
                        vectors[wanted],
                        (0.3, 0.5, 1.0)[depth - 1],
                    )
                np.testing.assert_allclose(found[user, place, depth - 1], expected, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(tries.token_sets(), st.integers(0, 10**6))
def test_rewards_by_trie_node_equal_loops_over_the_catalogue(tokens, seed):
    rng = np.random.default_rng(seed)
    layout = tries.roomy_layout((tries.DENSE, tries.SPARSE, tries.SCAN))
    index = TrieIndex.build(tokens, tries.VOCAB, layout=layout)
    vectors = unit_rows(rng, len(tokens), 4)
    codes, wanted = tokens[rng.integers(0, len(tokens), (2, 5))], rng.integers(0, len(tokens), 2)
    node_vectors = NodeVectors.build(index, vectors)
    found = jitted_rewards(
        jnp.asarray(codes),
        jnp.asarray(tokens[wanted]),
        jitted_of_prefixes(node_vectors, index, jnp.asarray(codes)),
        jnp.asarray(vectors[wanted]),
    )
    for user, place, t in np.ndindex(2, 5, 3):
        prefix = tuple(codes[user, place, : t + 1])
        below = [vectors[i] for i, sid in enumerate(tokens) if tuple(sid[: t + 1]) == prefix]
        target = tuple(tokens[wanted[user]])
        expected = plain_reward(
            prefix, target, np.mean(below, axis=0), vectors[wanted[user]], (0.3, 0.5, 1.0)[t]
        )
        np.testing.assert_allclose(found[user, place, t], expected, atol=1e-5)


# Prefixes of a group.


def test_distinct_prefixes_by_hand():
    found = distinct_prefixes(CODES, VALID)[0]
    assert found[:, 0].tolist() == [True, False, False, False, False]  # The root.
    assert found[:, 1].tolist() == [True, False, False, True, False]
    assert found[:, 2].tolist() == [True, True, False, True, False]
    # The first of a prefix is the first that is valid.
    without = distinct_prefixes(CODES, VALID.at[0, 0].set(False))[0]
    assert without[:, 0].tolist() == [False, True, False, False, False]
    assert without[:, 1].tolist() == [False, True, False, True, False]


def test_prefix_means_by_hand():
    values = jnp.array([[[0.0, 6.0], [3.0, 1.0], [6.0, 3.0], [8.0, 9.0], [jnp.nan, 7.0]]])
    found = prefix_means(CODES, values, VALID)
    np.testing.assert_allclose(found, [[[3, 6], [3, 2], [3, 2], [8, 9], [0, 0]]])
    # With the root's value in front: the mean over all valid candidates.
    roots = jnp.array([[[1.0], [2.0], [3.0], [6.0], [jnp.inf]]])
    with_root = prefix_means(CODES, jnp.concatenate([roots, values], axis=-1), VALID)
    np.testing.assert_allclose(with_root[..., 1:], found)
    np.testing.assert_allclose(with_root[0, :, 0], [3, 3, 3, 3, 0])


# Targets.


def test_targets_by_hand():
    rewards, values = jnp.array([0.3, -0.5, 1.0]), jnp.array([10.0, 20.0, 40.0])
    # r_1 + V(s_2) / 2, r_2 + V(s_3) / 2, r_3.
    np.testing.assert_allclose(td_targets(rewards, values, 0.5), [10.3, 19.5, 1.0])
    np.testing.assert_allclose(td_targets(rewards, values), [20.1, 39.1, 1.0], rtol=1e-6)
    # 1; -0.5 + 1 / 2; 0.3 + 0 / 2.
    np.testing.assert_allclose(monte_carlo_returns(rewards, 0.5), [0.3, 0.0, 1.0], atol=1e-7)
    # Half of what the next value says, half of what came: -0.5 + (40 + 1) / 4 = 9.75, 0.3 + (20 + 9.75) / 4.
    np.testing.assert_allclose(td_targets(rewards, values, 0.5, 0.5), [7.7375, 9.75, 1.0])


def test_monte_carlo_returns_equal_loops():
    rewards = np.random.default_rng(0).normal(size=(2, 3, 5))
    found = monte_carlo_returns(jnp.asarray(rewards), 0.9)
    for place in np.ndindex(2, 3, 5):
        tail = rewards[place[:2]][place[2] :]
        expected = sum(reward * 0.9**k for k, reward in enumerate(tail))
        np.testing.assert_allclose(found[place], expected, rtol=1e-5)


def test_true_values_are_their_own_targets():
    rewards = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    returns = monte_carlo_returns(rewards)
    for lam in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(td_targets(rewards, returns, lam=lam), returns, rtol=1e-5)


# The loss.


def test_loss_by_hand():
    values = jnp.array([[1.0, 2.0], [3.0, jnp.nan]])
    targets = jnp.array([[0.0, 5.0], [1.0, 0.0]])
    weight = jnp.array([[1.0, 1.0], [2.0, 0.0]])
    loss, metrics = td_loss(values, targets, weight)
    # Squares 1, 9 and twice 4, over a weight of 4.
    np.testing.assert_allclose(loss, 4.5)
    expected = {"1/loss": 3.0, "1/mean": 7 / 3, "1/target": 2 / 3}
    expected |= {"2/loss": 9.0, "2/mean": 2.0, "2/target": 5.0}
    assert metrics == {f"value_{k}": pytest.approx(v) for k, v in expected.items()}
    np.testing.assert_allclose(td_loss(values, targets, weight, normaliser=2.0)[0], 9.0)
    _, named = td_loss(values, targets, weight, first_depth=0)
    assert "value_0/loss" in named and "value_2/loss" not in named


def test_nothing_to_learn_from_is_no_loss():
    nothing = jnp.full((2, 3), jnp.nan)
    loss = lambda values: td_loss(values, nothing, jnp.zeros((2, 3)))[0]  # noqa: E731
    assert loss(nothing) == 0.0
    np.testing.assert_array_equal(jax.grad(loss)(nothing), np.zeros((2, 3)))


def test_gradient_is_that_of_fixed_targets():
    rng = np.random.default_rng(0)
    rewards, values = jnp.asarray(rng.normal(size=(3, 4))), rng.normal(size=(3, 4))
    weight = jnp.asarray(rng.random((3, 4)).round(1))

    def bootstrapped(values):
        return td_loss(values, td_targets(rewards, values, 0.9), weight)[0]

    fixed = td_targets(rewards, jnp.asarray(values), 0.9)
    gradient = jax.jit(jax.grad(bootstrapped))(jnp.asarray(values))
    loss = jax.jit(lambda values: td_loss(values, fixed, weight)[0])
    for place in np.ndindex(values.shape):
        step = np.zeros_like(values)
        step[place] = 1e-2
        slope = (loss(values + step) - loss(values - step)) / 2e-2
        np.testing.assert_allclose(gradient[place], slope, atol=2e-3)
    # A step that let the targets move would differ: they do depend on the values.
    assert np.abs(td_targets(rewards, jnp.asarray(values + 1.0), 0.9) - fixed).max() > 0.5


def test_rewards_and_targets_carry_no_gradient():
    def total(vectors, rewards, values):
        dense = semantic_rewards(CODES[:, :4], CODES[:, 0], vectors, jnp.array([A]))
        return dense.sum() + td_targets(rewards, values, lam=0.5).sum()

    vectors = group_prefix_vectors(CODES[:, :4], VECTORS[:, :4])
    for gradient in jax.grad(total, argnums=(0, 1, 2))(vectors, jnp.ones((2, 3)), jnp.ones((2, 3))):
        np.testing.assert_array_equal(gradient, 0.0)
