"""Rewards against hand-computed numbers and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import policy_oracles as oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.losses import (
    LossError,
    Outcome,
    exact_match,
    prefix_depth,
    rank_aware,
    semantic,
    weighted_sum,
)

pytestmark = pytest.mark.usefixtures("compile_in_haste")

# Two users: the first's target is its second candidate, the second's target is none, or only an invalid one.
OUTCOME = Outcome(
    codes=jnp.array([[[1, 2], [1, 3], [4, 3]], [[5, 5], [5, 6], [0, 0]]]),
    valid=jnp.array([[True, True, True], [True, True, False]]),
    target=jnp.array([[1, 3], [0, 0]]),
    items=jnp.array([[0, 1, 2], [3, 2, -1]]),
    target_items=jnp.array([1, 0]),
)


def test_exact_match_by_hand():
    assert exact_match(OUTCOME).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_rank_aware_by_hand():
    # Discounts 1, 1 / log2(3) = 0.63093, 1 / 2; of sum 2.13093.
    expected = [[-0.46928, 0.0, -0.23464], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(rank_aware(OUTCOME), expected, atol=1e-5)


def test_prefix_depth_by_hand():
    # The third candidate has the target's second code, but not its first.
    assert prefix_depth(OUTCOME).tolist() == [[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_semantic_by_hand():
    vectors = jnp.array([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [0.0, 0.0]])
    half = np.sqrt(0.5)
    found = semantic(vectors)(OUTCOME)
    # The second user's first item has no direction, its last candidate is none.
    np.testing.assert_allclose(found, [[half, 1.0, half], [0.0, 0.0, 0.0]], atol=1e-6)
    unknown = Outcome(OUTCOME.codes, OUTCOME.valid, OUTCOME.target)
    with pytest.raises(LossError, match="items and target_items"):
        semantic(vectors)(unknown)


def test_a_missing_target_item_earns_nothing():
    outcome = Outcome(
        OUTCOME.codes, OUTCOME.valid, OUTCOME.target, OUTCOME.items, -jnp.ones(2, int)
    )
    assert not semantic(jnp.ones((4, 2)))(outcome).any()


def test_weighted_sum_takes_rewards_of_ones_own():
    def first_place(outcome):
        return jnp.arange(outcome.valid.shape[1]) == 0

    total = jax.jit(weighted_sum({exact_match: 2.0, first_place: 0.5}))(OUTCOME)
    assert total.tolist() == [[0.5, 2.0, 0.0], [0.5, 0.0, 0.0]]
    # Sums are rewards themselves.
    nested = weighted_sum({weighted_sum({exact_match: 2.0}): 3.0})
    assert nested(OUTCOME).tolist() == [[0, 6, 0], [0, 0, 0]]
    with pytest.raises(LossError, match="at least one"):
        weighted_sum({})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_rank_aware_equals_loops(seed):
    rng = np.random.default_rng(seed)
    codes, _, valid = oracles.random_groups(rng, users=4, candidates=5, length=2)
    target = rng.integers(0, 2, (4, 2))
    outcome = Outcome(jnp.asarray(codes), jnp.asarray(valid), jnp.asarray(target))
    expected = [oracles.rank_aware(*group) for group in zip(codes, valid, target, strict=True)]
    np.testing.assert_allclose(rank_aware(outcome), expected, atol=1e-6)
    hits = (codes == target[:, None]).all(-1) & valid
    np.testing.assert_array_equal(exact_match(outcome), hits)
    assert ((prefix_depth(outcome) == 1) == hits).all()


def test_one_candidate():
    one = Outcome(OUTCOME.codes[:, :1], OUTCOME.valid[:, :1], OUTCOME.codes[:, 0])
    assert exact_match(one).tolist() == [[1], [1]]
    assert rank_aware(one).tolist() == [[0], [0]]
