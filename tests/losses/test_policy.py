"""Policy losses and masks against hand-computed numbers, loops and finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import policy_oracles as oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.losses import (
    LossError,
    PolicyConfig,
    cppo_mask,
    grpo_advantages,
    policy_loss,
    policy_objective,
    sibling_advantages,
    sibling_loss,
    sibling_weights,
    tempo_advantages,
)

pytestmark = pytest.mark.usefixtures("compile_in_haste")

SIZES = (3, 5, 3)  # B, G, L.


def random_batch(seed):
    """Three arrays of log-probabilities, those of equal prefixes being equal; codes, rewards, valid."""
    rng = np.random.default_rng(seed)
    codes, rewards, valid = oracles.random_groups(rng, *SIZES)
    logp = -rng.exponential(size=(3, SIZES[0], 2, 2, 2))  # By the three codes of a candidate.
    users = np.arange(SIZES[0])[:, None]
    first, second, third = np.moveaxis(codes, -1, 0)
    by_depth = [logp[:, users, first, 0, 0]]
    by_depth += [logp[:, users, first, second, 1], logp[:, users, first, second, third] - 0.1]
    return *np.stack(by_depth, axis=-1), codes, rewards, valid


def as_arrays(*arrays):
    return [jnp.asarray(array) for array in arrays]


def weight_of(valid):
    return jnp.broadcast_to(jnp.asarray(valid)[..., None], SIZES).astype(jnp.float32)


def test_policy_loss_by_hand():
    # Ratios 2, 1 / 2, 1.1: A = 1 clips the first, A = -1 the second; the last two lie where clipping does not.
    ratios = jnp.array([[[2.0, 0.5, 1.1]], [[2.0, 0.5, 1.1]]])
    old = jnp.full((2, 1, 3), -1.0)
    logp = old + jnp.log(ratios)
    advantages = jnp.array([[1.0], [-1.0]])
    weight = jnp.ones((2, 1, 3))
    loss, metrics = policy_loss(logp, old, logp, advantages, weight)
    # Terms 1.2, 0.5, 1.1; -2, -0.8, -1.1.
    np.testing.assert_allclose(loss, -(2.8 - 3.9) / 6, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_share"], 2 / 6, rtol=1e-6)
    assert metrics["kl"] == 0
    # An upper bound of its own: 1.3 instead of 1.2.
    loss, _ = policy_loss(logp, old, logp, advantages, weight, clip_high=0.3)
    np.testing.assert_allclose(loss, -(2.9 - 3.9) / 6, rtol=1e-6)
    # KL: log-ratios log 2, log 1/2, log 1.1 to the reference have inverses 1/2, 2, 1/1.1.
    _, metrics = policy_loss(logp, old, old, advantages, weight)
    inverse = 1 / np.array([2.0, 0.5, 1.1])
    np.testing.assert_allclose(metrics["kl"], (inverse - np.log(inverse) - 1).mean(), rtol=1e-6)


def test_aggregation_by_hand():
    # Two users; the first has one valid candidate with loss 1, the second two with -1 and 3.
    advantages = -jnp.array([[1.0, 9.0], [-1.0, 3.0]])
    weight = jnp.array([[1.0, 0.0], [1.0, 1.0]])[..., None] * jnp.ones((2, 2, 4))
    zeros = jnp.zeros((2, 2, 4))

    def loss(**settings):
        return policy_loss(zeros, zeros, zeros, advantages, weight, **settings)[0]

    np.testing.assert_allclose(loss(), (1 + (-1 + 3) / 2) / 2)
    np.testing.assert_allclose(loss(aggregation="token"), (1 - 1 + 3) / 3)
    # The last candidate weighs thrice as much: (-1 + 9) / 4 = 2.
    importance = jnp.array([[5.0, 1.0], [1.0, 3.0]])
    np.testing.assert_allclose(loss(importance=importance), (1 + 2) / 2)
    found = loss(importance=importance, aggregation="token")
    np.testing.assert_allclose(found, (5 - 1 + 9) / 9, rtol=1e-6)
    with pytest.raises(LossError, match="'tokens' is unknown; use one of group, token"):
        loss(aggregation="tokens")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["group", "token"]))
def test_policy_loss_equals_loops(seed, aggregation):
    logp, old, reference, _, _, valid = random_batch(seed)
    rng = np.random.default_rng(seed)
    advantages, importance = rng.normal(size=SIZES), rng.random(SIZES[:2]) + 0.1
    valid[0, 0] = True
    found, _ = policy_loss(
        *as_arrays(logp, old, reference, advantages),
        weight_of(valid),
        importance=jnp.asarray(importance),
        clip_low=0.1,
        clip_high=0.3,
        kl_weight=0.5,
        aggregation=aggregation,
    )
    expected = oracles.policy_loss(
        logp, old, reference, advantages, valid, 0.1, 0.3, 0.5, aggregation, importance
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_sibling_loss_counts_each_node_once(seed):
    logp, old, _, codes, rewards, valid = random_batch(seed)
    valid[0, 0] = True
    group = as_arrays(codes, rewards, valid)
    found = sibling_loss(
        *as_arrays(logp, old),
        sibling_advantages(*group),
        sibling_weights(group[0], group[2]),
        group[2],
    )
    expected = oracles.sibling_loss(logp, old, codes, rewards, valid, 0.2, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_cppo_by_hand():
    # Weights 1, 0.9, 0.8; all A > 0. Changes 0.1, 0.15, 0.15, weighted 0.1, 0.135, 0.12.
    old = jnp.log(jnp.array([[[0.2, 0.3, 0.3], [0.2, 0.3, 0.3]]]))
    logp = jnp.log(jnp.array([[[0.3, 0.45, 0.45], [0.1, 0.45, 0.45]]]))
    advantages = jnp.ones((1, 2, 3))
    settings = {"threshold": 0.15, "floor": 0.8}
    # Limits 0.15; 0.15 + 0.05 - 0.1 = 0.1; 0.15 + 0.05 * 1.9 - 0.235 = 0.01.
    found = cppo_mask(logp, old, advantages, budget=0.05, **settings)
    assert found[0, 0].tolist() == [True, False, False]
    # With more to spend: 0.15; 0.15; 0.15 + 0.1 * 1.9 - 0.235 = 0.105.
    found = cppo_mask(logp, old, advantages, budget=0.1, **settings)
    assert found[0, 0].tolist() == [True, True, False]
    # With A < 0 only the fall of the other candidate's first code moves away from the old policy, by 0.1.
    assert cppo_mask(logp, old, -advantages, budget=0.05, **settings).all()
    assert not cppo_mask(logp, old, -advantages, budget=0.05, threshold=0.05, floor=0.8)[0, 1, 0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 6]))
def test_cppo_equals_the_algorithm(seed, length):
    rng = np.random.default_rng(seed)
    logp, old = -rng.exponential(size=(2, 6, length)) - 0.5
    advantages = rng.normal(size=(6, length))
    found = cppo_mask(
        *as_arrays(logp[None], old[None], advantages[None]), threshold=0.2, budget=0.1, floor=0.5
    )[0]
    expected = [
        oracles.cppo_mask(*group, 0.2, 0.1, 0.5)
        for group in zip(logp, old, advantages, strict=True)
    ]
    assert found.tolist() == expected


def test_a_mask_replaces_clipping():
    logp = jnp.log(jnp.array([[[0.8, 0.4]]]))
    old, weight = jnp.log(jnp.full((1, 1, 2), 0.2)), jnp.ones((1, 1, 2))
    keep = jnp.array([[[False, True]]])
    arguments = (old, logp, jnp.ones((1, 1)), weight)
    loss, metrics = policy_loss(logp, *arguments, keep=keep)
    np.testing.assert_allclose(loss, -2.0 / 2, rtol=1e-5)  # Not 1.2 / 2.
    assert metrics["clip_share"] == 0.5
    gradient = jax.grad(lambda x: policy_loss(x, *arguments, keep=keep, kl_weight=0.0)[0])(logp)
    np.testing.assert_allclose(gradient, [[[0.0, -1.0]]], rtol=1e-5)


CONFIGS = [
    PolicyConfig(name=name, kl_weight=0.3, clip_high=0.28, cppo=cppo)
    for name in ("grpo", "sibling_grpo", "tempo")
    for cppo in (False, True)
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}{'-cppo' * c.cppo}")
def test_the_objective_is_made_of_its_parts(config):
    logp, old, reference, codes, rewards, valid = as_arrays(*random_batch(5))
    plain = tempo_advantages if config.name == "tempo" else lambda _, *g: grpo_advantages(*g)
    advantages = plain(codes, rewards, valid)
    advantages = advantages if advantages.ndim == 3 else jnp.tile(advantages[..., None], 3)
    keep = lambda a: cppo_mask(logp, old, a) if config.cppo else None  # noqa: E731
    expected, parts = policy_loss(
        logp,
        old,
        reference,
        advantages,
        weight_of(valid),
        keep=keep(advantages),
        clip_high=0.28,
        kl_weight=0.3,
    )
    loss, metrics = policy_objective(config, logp, old, reference, codes, rewards, valid)
    np.testing.assert_allclose(metrics["policy/loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["policy/clip_share"], parts["clip_share"], rtol=1e-6)
    if config.name == "sibling_grpo":
        own = sibling_advantages(codes, rewards, valid)
        once = sibling_weights(codes, valid)
        sibling = sibling_loss(logp, old, own, once, valid, keep=keep(own), clip_high=0.28)
        np.testing.assert_allclose(metrics["policy/sibling_loss"], sibling, rtol=1e-6)
        expected = expected + sibling
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS[::2], ids=lambda c: c.name)
def test_gradients_equal_finite_differences(config):
    logp, old, *rest = random_batch(7)
    # Away from the edges of clips, where there is no slope; masks of CPPO may jump anywhere.
    logp = old + np.random.default_rng(7).choice([-0.5, -0.1, 0.1, 0.5], SIZES)

    @jax.jit
    def loss(values):
        return policy_objective(config, *as_arrays(values, old), *as_arrays(*rest))[0]

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(logp)))
    assert np.abs(gradient).max() > 0.01
    for place in np.ndindex(SIZES):
        step = np.zeros(SIZES)
        step[place] = 1e-2
        slope = (loss(logp + step) - loss(logp - step)) / 2e-2
        np.testing.assert_allclose(gradient[place], slope, atol=2e-3)


def test_only_the_policy_gets_a_gradient():
    arrays = as_arrays(*random_batch(8))
    logp, old, reference, codes, rewards, valid = arrays
    importance = jnp.ones(SIZES[:2])

    @jax.jit
    def loss(old, reference, rewards, importance):
        return policy_objective(
            CONFIGS[2], logp, old, reference, codes, rewards, valid, importance=importance
        )[0]

    for gradient in jax.grad(loss, range(4))(old, reference, rewards, importance):
        np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}{'-cppo' * c.cppo}")
def test_extreme_log_probabilities_and_rubbish_at_invalid_candidates(config):
    _, _, _, codes, rewards, valid = as_arrays(*random_batch(9))
    rng = np.random.default_rng(9)
    three = [jnp.asarray(rng.choice([-200.0, -1e-6], SIZES)) for _ in range(3)]
    gradient_of = jax.jit(
        jax.value_and_grad(
            lambda x, *rest: policy_objective(config, x, *rest, codes, rewards, valid)[0]
        )
    )
    loss, gradient = gradient_of(*three)
    assert jnp.isfinite(loss) and jnp.isfinite(gradient).all()
    rubbish = [jnp.where(valid[..., None], x, jnp.nan) for x in three]
    found = gradient_of(*rubbish)
    np.testing.assert_array_equal(found[0], loss)
    np.testing.assert_array_equal(found[1], gradient)
    assert not jnp.where(valid[..., None], 0.0, gradient).any()


def test_metrics_of_groups_by_hand():
    # Users: unequal rewards; equal ones and a duplicate; nobody valid, who is left out of all means.
    codes = jnp.array([[[0, 0], [0, 1], [1, 1]], [[0, 0], [0, 0], [1, 1]], [[0, 0]] * 3])
    rewards = jnp.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [9.0, 9.0, 9.0]])
    valid = jnp.array([[True, True, False], [True, True, True], [False] * 3])
    zeros = jnp.zeros((3, 3, 2))
    config = PolicyConfig(name="sibling_grpo")
    loss, metrics = jax.jit(policy_objective, static_argnums=0)(
        config, zeros, zeros, zeros, codes, rewards, valid, entropy=zeros + 2.0
    )
    expected = {
        "reward/mean": 0.5,
        "reward/std": 0.25,
        "reward/spread_share": 0.5,
        "candidates/distinct": 2.0,
        # Advantages +-sqrt(1 / 2) at four of ten codes.
        "advantage/std": np.sqrt(0.2),
        # Nodes with siblings: 0-0 and 0-1 of the first user with +-1, 0 and 1 of the second with 0.
        "advantage/sibling_std": np.sqrt(0.5),
        "policy/kl": 0.0,
        "policy/clip_share": 0.0,
        "policy/loss": 0.0,
        "policy/sibling_loss": 0.0,
        "policy/entropy": 2.0,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
    assert loss == 0


def test_nothing_to_learn_from():
    """Equal rewards, groups of one, nobody valid: no loss and no gradient but KL's."""
    logp, old, _, codes, _, valid = as_arrays(*random_batch(10))
    config = PolicyConfig(name="sibling_grpo", kl_weight=0.0)

    @jax.jit
    def gradient(logp, old, codes, rewards, valid):
        return jax.value_and_grad(
            lambda x: policy_objective(config, x, old, old, codes, rewards, valid)[0]
        )(logp)

    none = jnp.zeros_like(valid)
    one = lambda x: x[:, :1]  # noqa: E731
    for group in (
        (logp, old, codes, jnp.full(SIZES[:2], 0.3), valid),
        (one(logp), one(old), one(codes), jnp.ones((SIZES[0], 1)), one(valid)),
        (logp, old, codes, jnp.ones(SIZES[:2]), none),
    ):
        loss, slope = gradient(*group)
        assert loss == 0
        np.testing.assert_array_equal(slope, jnp.zeros_like(slope))


def test_the_order_of_candidates_does_not_matter():
    arrays = as_arrays(*random_batch(11))
    order = np.random.default_rng(11).permutation(SIZES[1])
    for config in CONFIGS:
        loss, _ = policy_objective(config, *arrays)
        moved, _ = policy_objective(config, *[x[:, order] for x in arrays])
        np.testing.assert_allclose(moved, loss, rtol=1e-4, atol=1e-4)


def test_a_second_batch_compiles_nothing():
    # A function of its own: what else was compiled of `policy_objective` does not count.
    step = jax.jit(lambda config, *batch: policy_objective(config, *batch), static_argnums=0)
    for seed in (1, 2):
        step(PolicyConfig(name="sibling_grpo"), *as_arrays(*random_batch(seed)))
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("name", "ppo", "policy.name='ppo' is unknown; use one of grpo, sibling_grpo, tempo"),
        ("aggregation", "sum", "'sum' is unknown; use one of group, token"),
        ("clip_low", 1.5, "policy.clip_low=1.5: use a number above 0 and at most 1"),
        ("clip_high", 0.0, "policy.clip_high=0.0: use a number above 0"),
        ("clip_high", float("inf"), "policy.clip_high=inf: use a number above 0, and finite"),
        ("kl_weight", -1.0, "policy.kl_weight=-1.0: use 0 or more"),
        ("kl_weight", float("inf"), "policy.kl_weight=inf: use 0 or more, and finite"),
        ("sibling_weight", float("nan"), "policy.sibling_weight=nan: use 0 or more, and finite"),
        ("cppo_floor", 0.0, "policy.cppo_floor=0.0: use a number above 0 and at most 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(field, value, message):
    with pytest.raises(LossError, match=message):
        dataclasses.replace(PolicyConfig(), **{field: value})
