"""Advantages against hand-computed tables and loops over the tree of candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import policy_oracles as oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.losses import (
    distinct_candidates,
    grpo_advantages,
    sibling_advantages,
    sibling_weights,
    tempo_advantages,
)

pytestmark = pytest.mark.usefixtures("compile_in_haste")

# A tree of one user: the root has children 0 (two candidates, one of them twice) and 1; only 0 branches again.
#   0 - 0   reward 1
#     - 1   reward 0, twice
#   1 - 2   reward 0.5
CODES = jnp.array([[[0, 0], [0, 1], [0, 1], [1, 2]]])
REWARDS = jnp.array([[1.0, 0.0, 0.0, 0.5]])


def test_grpo_by_hand():
    # Mean 1 / 4, sample variance (9 + 1 + 1 + 1) / 16 / 3 = 1 / 4.
    rewards = jnp.array([[1.0, 0.0, 0.0, 0.0], [7.0, 1.0, 0.0, jnp.nan]])
    valid = jnp.array([[True] * 4, [False, True, True, False]])
    # Of the second user two are left: mean 1 / 2, sample standard deviation sqrt(1 / 2).
    expected = [[1.5, -0.5, -0.5, -0.5], [0.0, np.sqrt(0.5), -np.sqrt(0.5), 0.0]]
    np.testing.assert_allclose(grpo_advantages(rewards, valid), expected, rtol=3e-4)


def test_siblings_by_hand():
    # Children of the root: means 1 / 3 and 1 / 2; of 0: 1 and 0 (once, though two candidates have it); of 1: one.
    expected = [[[-1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0], [1.0, 0.0]]]
    np.testing.assert_allclose(sibling_advantages(CODES, REWARDS), expected, atol=2e-3)
    # Three candidates share child 0, two of them 0-1.
    weights = [[[1 / 3, 1.0], [1 / 3, 0.5], [1 / 3, 0.5], [1.0, 0.0]]]
    np.testing.assert_allclose(sibling_weights(CODES), weights, rtol=1e-6)


def test_tempo_by_hand():
    # V: root 3 / 8; 0: 1 / 3; 1: 1 / 2; below 0: 1 and 0; below 1 nothing changes.
    changes = np.array([[-1 / 24, 2 / 3], [-1 / 24, -1 / 3], [-1 / 24, -1 / 3], [1 / 8, 0.0]])
    found = tempo_advantages(CODES, REWARDS)[0] - grpo_advantages(REWARDS)[0][:, None]
    np.testing.assert_allclose(found, changes, atol=1e-6)


def test_distinct_candidates_by_hand():
    valid = jnp.array([[True, True, True, True], [False, True, True, False], [False] * 4])
    assert distinct_candidates(jnp.tile(CODES, (3, 1, 1)), valid).tolist() == [3, 1, 0]


def by_user(oracle, *arrays):
    return np.stack([oracle(*group) for group in zip(*arrays, strict=True)])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]))
def test_advantages_equal_loops_over_the_tree(seed, values):
    rng = np.random.default_rng(seed)
    groups = oracles.random_groups(rng, users=4, candidates=7, length=3, values=values)
    codes, rewards, valid = map(jnp.asarray, groups)
    np.testing.assert_allclose(
        grpo_advantages(rewards, valid), by_user(oracles.grpo, *groups[1:]), atol=1e-4
    )
    np.testing.assert_allclose(
        sibling_advantages(codes, rewards, valid),
        by_user(lambda *g: oracles.spread(oracles.siblings(*g), g[0], g[2]), *groups),
        atol=2e-3,  # The scores of equal siblings may differ in the last bit, which 1e-4 divides.
    )
    np.testing.assert_allclose(
        sibling_weights(codes, valid), by_user(oracles.sibling_weights, *groups), atol=1e-6
    )
    np.testing.assert_allclose(
        tempo_advantages(codes, rewards, valid), by_user(oracles.tempo, *groups), atol=1e-4
    )
    distinct = by_user(lambda c, v: len({tuple(row) for row in c[v]}), groups[0], groups[2])
    np.testing.assert_allclose(distinct_candidates(codes, valid), distinct, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_weights_count_each_node_with_siblings_once(seed):
    rng = np.random.default_rng(seed)
    codes, rewards, valid = oracles.random_groups(rng, users=4, candidates=7, length=3)
    nodes = by_user(lambda *g: len(oracles.siblings(*g)), codes, rewards, valid)
    found = sibling_weights(jnp.asarray(codes), jnp.asarray(valid)).sum(axis=(1, 2))
    np.testing.assert_allclose(found, nodes, atol=1e-5)


ALL = (
    lambda codes, rewards, valid: grpo_advantages(rewards, valid),
    sibling_advantages,
    lambda codes, rewards, valid: sibling_weights(codes, valid),
    tempo_advantages,
)


@pytest.mark.parametrize("rule", ALL)
def test_the_order_of_candidates_does_not_matter(rule):
    rng = np.random.default_rng(1)
    codes, rewards, valid = map(jnp.asarray, oracles.random_groups(rng, 3, 8, 3))
    order = rng.permutation(8)
    moved = rule(codes[:, order], rewards[:, order], valid[:, order])
    np.testing.assert_allclose(moved, rule(codes, rewards, valid)[:, order], atol=1e-3)


@pytest.mark.parametrize("rule", ALL)
def test_users_and_invalid_candidates_do_not_meddle(rule):
    rng = np.random.default_rng(2)
    codes, rewards, valid = map(jnp.asarray, oracles.random_groups(rng, 3, 6, 3))
    found = rule(codes, rewards, valid)
    alone = rule(codes[1:2], rewards[1:2], valid[1:2])
    np.testing.assert_array_equal(found[1:2], alone)
    # Whatever stands at invalid candidates, and though its codes are those of a valid one.
    changed = jnp.where(valid[..., None], codes, codes[:, :1])
    np.testing.assert_array_equal(rule(changed, jnp.where(valid, rewards, jnp.nan), valid), found)
    spread = found if found.ndim == 3 else found[..., None]
    assert not jnp.where(valid[..., None], 0.0, spread).any()


def test_equal_rewards_give_no_advantage_at_all():
    rng = np.random.default_rng(3)
    codes, _, valid = map(jnp.asarray, oracles.random_groups(rng, 3, 7, 3))
    for reward in (0.0, 0.1, -0.7):  # A mean of equal numbers need not be that number.
        rewards = jnp.full((3, 7), reward)
        for found in (
            grpo_advantages(rewards, valid),
            sibling_advantages(codes, rewards, valid),
            tempo_advantages(codes, rewards, valid),
        ):
            np.testing.assert_array_equal(found, jnp.zeros_like(found))


@pytest.mark.parametrize("valid", [True, False])
def test_groups_of_one_and_of_none(valid):
    codes, rewards, mask = jnp.zeros((2, 1, 3), int), jnp.ones((2, 1)), jnp.full((2, 1), valid)
    for rule in ALL:
        found = rule(codes, rewards, mask)
        np.testing.assert_array_equal(found, jnp.zeros_like(found))


def test_no_gradient_flows_into_rewards():
    valid = jnp.ones(REWARDS.shape, bool)
    for rule in (ALL[0], ALL[1], ALL[3]):
        gradient = jax.grad(lambda r, rule=rule: (rule(CODES, r, valid) ** 2).sum())(REWARDS)
        np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))
