"""Rewards against hand-computed numbers and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import policy_oracles as oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.rl import Outcome, exact_match, prefix_depth, rank_aware, semantic, weighted_sum
from gr.training import NO_REWARD, RewardFault, TrainingError

pytestmark = pytest.mark.usefixtures("compile_in_haste")

# Two users: the first's target is its second candidate, the second's target is none, or only an invalid one.
OUTCOME = Outcome(
    tokens=jnp.array([[[1, 2], [1, 3], [4, 3]], [[5, 5], [5, 6], [0, 0]]]),
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
    unknown = Outcome(OUTCOME.tokens, OUTCOME.valid, OUTCOME.target)
    with pytest.raises(TrainingError, match="items and target_items"):
        semantic(vectors)(unknown)


def test_a_missing_target_item_earns_nothing():
    outcome = Outcome(
        OUTCOME.tokens, OUTCOME.valid, OUTCOME.target, OUTCOME.items, -jnp.ones(2, int)
    )
    assert not semantic(jnp.ones((4, 2)))(outcome).any()


def test_weighted_sum_takes_rewards_of_ones_own():
    def first_place(outcome):
        return jnp.broadcast_to(jnp.arange(outcome.valid.shape[1]) == 0, outcome.valid.shape)

    total = jax.jit(weighted_sum({exact_match: 2.0, first_place: 0.5}))(OUTCOME)
    assert total.tolist() == [[0.5, 2.0, 0.0], [0.5, 0.0, 0.0]]
    # Sums are rewards themselves.
    nested = weighted_sum({weighted_sum({exact_match: 2.0}): 3.0})
    assert nested(OUTCOME).tolist() == [[0, 6, 0], [0, 0, 0]]
    with pytest.raises(TrainingError, match="at least one"):
        weighted_sum({})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_rank_aware_equals_loops(seed):
    rng = np.random.default_rng(seed)
    tokens, _, valid = oracles.random_groups(rng, users=4, candidates=5, length=2)
    target = rng.integers(0, 2, (4, 2))
    outcome = Outcome(jnp.asarray(tokens), jnp.asarray(valid), jnp.asarray(target))
    expected = [oracles.rank_aware(*group) for group in zip(tokens, valid, target, strict=True)]
    np.testing.assert_allclose(rank_aware(outcome), expected, atol=1e-6)
    hits = (tokens == target[:, None]).all(-1) & valid
    np.testing.assert_array_equal(exact_match(outcome), hits)
    assert ((prefix_depth(outcome) == 1) == hits).all()


def test_one_candidate():
    one = Outcome(OUTCOME.tokens[:, :1], OUTCOME.valid[:, :1], OUTCOME.tokens[:, 0])
    assert exact_match(one).tolist() == [[1], [1]]
    assert rank_aware(one).tolist() == [[0], [0]]


# Rewards of one's own that cannot work.


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda o: o.valid[:, 0], r"returned bool\[2\]"),
        (lambda o: o.valid[0], r"returned bool\[3\]"),
        (lambda o: o.valid[..., None], r"returned bool\[2, 3, 1\]"),
        (lambda o: o.valid.T, r"returned bool\[3, 2\]"),
        (lambda o: 1.0, "returned a float"),
        (lambda o: None, "returned None"),
        (lambda o: o, "returned a Outcome"),
        (lambda o: np.array([["a"] * 3] * 2), r"returned <U1\[2, 3\]"),
        (lambda o: np.full((2, 3), None), r"returned object\[2, 3\]"),
        (lambda o: o.valid * 1j, r"returned complex64\[2, 3\]"),
        (lambda o: np.asarray(o.items) > 0, "cannot be compiled .*: write it with jax.numpy"),
        (lambda o: float(o.items[0, 0]), "cannot be compiled .*: write it with jax.numpy"),
        (lambda o: o.valid if o.valid.any() else ~o.valid, "cannot be compiled .*jnp.where"),
        (lambda o: o.items[o.valid], "cannot be compiled"),
        (lambda o: o.titles, "raised AttributeError: .*titles"),
        (lambda: 1.0, "raised TypeError: "),
        (lambda o: o.valid + jnp.ones(4), "raised ValueError: "),
    ],
)
def test_a_reward_that_does_not_score_each_candidate_is_named(reward, said):
    total = weighted_sum([(exact_match, 1.0), (reward, 2.0)], ("exact_match", "mine:it"))
    with pytest.raises(TrainingError, match=f"^reward 'mine:it' {said}") as caught:
        jax.eval_shape(total, OUTCOME)
    assert "Outcome -> [B, G]" in str(caught.value) or "jnp.where" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([("exact_match", 1.0)], "reward 'str' is no function but a str"),
        ([(exact_match, float("nan"))], "the weight of reward 'exact_match' is nan"),
        ({exact_match: float("inf")}, "the weight of reward 'exact_match' is inf"),
        ({exact_match: "1"}, "the weight of reward 'exact_match' is 1: use a finite number"),
        ({exact_match: -1e39}, "the weight of reward 'exact_match' is -1e\\+39"),
        ({exact_match: None}, "the weight of reward 'exact_match' is None"),
    ],
)
def test_what_is_no_reward_or_no_weight_is_named(rewards, said):
    with pytest.raises(TrainingError, match=said):
        weighted_sum(rewards)


@pytest.mark.parametrize("dtype", [bool, jnp.int8, jnp.uint8, jnp.bfloat16, jnp.float32])
def test_rewards_of_any_type_of_number_are_float32(dtype):
    total = weighted_sum({lambda o: jnp.ones(o.valid.shape, dtype): 1000.0})(OUTCOME)
    assert total.dtype == jnp.float32 and (total == 1000.0).all()


def test_one_function_under_two_names_counts_twice():
    both = weighted_sum([(exact_match, 1.0), (exact_match, 0.5)], ("one", "two"))
    assert both(OUTCOME).tolist() == [[0, 1.5, 0], [0, 0, 0]]
    assert both.apart(OUTCOME).shape == (2, 3, 2)


def test_the_arrays_of_rewards_are_no_constants():
    prices = jnp.arange(1000.0)
    priced = jax.tree_util.Partial(lambda prices, o: prices[o.items], prices)
    total = weighted_sum([(semantic(jnp.ones((1000, 2))), 1.0), (priced, 1.0)])
    assert len(jax.tree.leaves(total)) == 2
    assert not jax.make_jaxpr(lambda reward, outcome: reward(outcome))(total, OUTCOME).consts
    np.testing.assert_allclose(total(OUTCOME)[0], [1.0, 2.0, 3.0], rtol=1e-6)


def test_item_vectors_of_any_length_have_a_cosine():
    vectors = jnp.array([[3e30, 0.0], [1e30, 1e30], [0.0, 1e-30], [0.0, 0.0]])
    half = np.sqrt(0.5)
    found = semantic(vectors)(OUTCOME)
    np.testing.assert_allclose(found, [[half, 1.0, half], [0.0, 0.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1e37])
def test_the_reward_at_fault_is_found(value):
    apart = np.zeros((2, 3, 2), np.float32)
    apart[1, 2] = value  # Of an invalid candidate, whatever it is.
    fault = RewardFault.of(jnp.asarray(apart), OUTCOME.valid, OUTCOME.items)
    assert int(fault.reward) == NO_REWARD and int(fault.count) == 0 and float(fault.value) == 0
    apart[0, 2, 1] = apart[1, 0, 1] = value
    fault = RewardFault.of(jnp.asarray(apart), OUTCOME.valid, OUTCOME.items)
    found = [int(x) for x in (fault.reward, fault.count, fault.valid, fault.user, fault.item)]
    assert found == [1, 2, 5, 0, 2]
    np.testing.assert_array_equal(fault.value, np.float32(value))
