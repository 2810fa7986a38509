"""The value head's objective: what counts, where gradients go, and that a head learns what lies below a prefix."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.losses import monte_carlo_returns, prefix_means
from gr.models import ValueHead, ValueHeadConfig
from gr.rl import ValueConfig, value_loss, value_objective
from gr.training import TrainingError, TrainState, make_optimizer, make_train_step

pytestmark = pytest.mark.usefixtures("compile_in_haste")

WIDTH, LENGTH = 8, 2
GAMMA = 0.5


def lookup_head(states, key=None):
    """The value stands in the state itself, so that numbers can be computed by hand."""
    return states[..., 0]


# One user: candidates 0-0, 0-1 and 1-0, and a place that is not filled.
TOKENS = jnp.array([[[0, 0], [0, 1], [1, 0], [0, 0]]])
VALUES = jnp.array([[[1.0, 2.0, 4.0], [1.0, 2.0, 6.0], [1.0, 3.0, 8.0], [jnp.nan] * 3]])
REWARDS = jnp.array([[[0.5, 1.0], [0.5, 2.0], [1.0, 3.0], [jnp.inf] * 2]])
WEIGHT = jnp.array([[1.0, 1.0, 1.0, 0.0]])


def loss_of(config, tokens=None, values=VALUES):
    return value_loss(lookup_head, values[..., None], REWARDS, WEIGHT, config, tokens=tokens)


def test_each_candidate_for_itself_by_hand():
    # Depth 1: targets 0.5 + 4 / 2, 0.5 + 6 / 2, 1 + 8 / 2; depth 2: the rewards.
    squares = {1: [0.25, 2.25, 4.0], 2: [9.0, 16.0, 25.0]}
    loss, metrics = loss_of(ValueConfig(GAMMA, with_root=False))
    np.testing.assert_allclose(loss, sum(map(sum, squares.values())) / 6)
    np.testing.assert_allclose(metrics["value_1/loss"], np.mean(squares[1]), rtol=1e-6)
    assert "value_0/loss" not in metrics
    # The root: targets 2 / 2, 2 / 2 and 3 / 2, against a value of 1.
    loss, metrics = loss_of(ValueConfig(GAMMA))
    np.testing.assert_allclose(loss, (sum(map(sum, squares.values())) + 0.25) / 9)
    np.testing.assert_allclose(metrics["value_0/target"], 3.5 / 3, rtol=1e-6)


def test_each_distinct_prefix_once_by_hand():
    # The root's target is the mean 3.5 / 3; prefix 0 has (2.5 + 3.5) / 2 = 3, prefix 1 has 5.
    loss, metrics = loss_of(ValueConfig(GAMMA), TOKENS)
    total = (3.5 / 3 - 1) ** 2 + (1.0 + 4.0) + (9.0 + 16.0 + 25.0)
    np.testing.assert_allclose(loss, total / 6, rtol=1e-6)
    np.testing.assert_allclose(metrics["value_1/target"], 4.0)
    np.testing.assert_allclose(metrics["value_1/mean"], 2.5)


def test_what_is_not_valid_has_no_influence_not_even_on_gradients():
    for tokens in (None, TOKENS):
        gradient = jax.grad(
            lambda values, tokens=tokens: loss_of(ValueConfig(stop_gradient=False), tokens, values)[
                0
            ]
        )(VALUES)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[0, 3], 0.0)
        assert np.abs(gradient[0, 2, 1:]).min() > 0  # The root counts as the first candidate's.


def random_head(seed=0):
    config = ValueHeadConfig(WIDTH, LENGTH, num_heads=2, d_ff=16, dropout=0.0)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32),
        jax.eval_shape(lambda: ValueHead(config, rngs=nnx.Rngs(0))),
    )


def random_batch(seed=0):
    """States are functions of the prefix, as a backbone's are."""
    rng = np.random.default_rng(seed)
    table = {
        p: rng.normal(size=WIDTH) for n in range(3) for p in itertools.product(range(3), repeat=n)
    }
    tokens = rng.integers(0, 3, (2, 6, LENGTH))
    states = [[[table[tuple(c[:t])] for t in range(3)] for c in group] for group in tokens]
    return {
        "states": jnp.asarray(states, jnp.float32),
        "rewards": jnp.asarray(rng.normal(size=(2, 6, LENGTH)), jnp.float32),
        "weight": jnp.ones((2, 6)),
        "tokens": jnp.asarray(tokens),
    }


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_states_of_padding_may_be_anything(stop_gradient):
    """Neither the head's gradient nor that of the other states hears of them."""
    batch, config = random_batch(), ValueConfig(stop_gradient=stop_gradient)
    weight = batch["weight"].at[1].set(0.0)

    @jax.jit
    def gradients(head, states):
        def loss(head, states):
            return value_loss(
                head, states, batch["rewards"], weight, config, tokens=batch["tokens"]
            )[0]

        return jax.value_and_grad(loss, argnums=(0, 1))(head, states)

    wanted = gradients(random_head(), batch["states"])
    for padding in (jnp.nan, jnp.inf):
        found = gradients(random_head(), batch["states"].at[1].set(padding))
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_gradients_reach_the_states_only_if_asked_for(stop_gradient):
    batch = random_batch()

    def loss(head, states):
        config = ValueConfig(stop_gradient=stop_gradient)
        return value_loss(head, states, batch["rewards"], batch["weight"], config)[0]

    of_head, of_states = jax.jit(jax.grad(loss, argnums=(0, 1)))(random_head(), batch["states"])
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(of_head)) > 1e-3
    assert (np.abs(of_states).max() > 1e-4) == (not stop_gradient)


def test_once_and_per_candidate_agree_where_no_prefix_is_shared_but_the_root():
    batch = random_batch()
    batch["tokens"] = jnp.tile(jnp.arange(6)[None, :, None], (2, 1, LENGTH))
    losses = [
        value_loss(
            random_head(), batch["states"], batch["rewards"], batch["weight"],
            ValueConfig(with_root=False), tokens=tokens,
        )[0]
        for tokens in (None, batch["tokens"])
    ]  # fmt: skip
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_head_learns_what_lies_below_each_prefix_on_a_frozen_backbone(lam):
    batch = random_batch()
    # One user, whose rewards are functions of the prefix: what is to be learnt are the means of the returns.
    batch = jax.tree.map(lambda x: x[:1], batch)
    batch["rewards"] = prefix_means(batch["tokens"], batch["rewards"])
    optimizer, _ = make_optimizer(
        learning_rate=0.01, schedule="constant", total_steps=400, weight_decay=0.0
    )
    config = ValueConfig(GAMMA, lam)
    create = functools.partial(ValueHeadConfig, WIDTH, LENGTH, num_heads=2, d_ff=16)
    head = ValueHead(create(dropout=0.0), rngs=nnx.Rngs(0))
    state = TrainState.create(head, optimizer, jax.random.key(0))
    step = make_train_step(value_objective(config), optimizer)
    for _ in range(300):
        state, metrics = step(state, batch)
    assert step.program._cache_size() == 1
    rewards = jnp.pad(batch["rewards"], ((0, 0), (0, 0), (1, 0)))
    expected = prefix_means(batch["tokens"], monte_carlo_returns(rewards, GAMMA))
    np.testing.assert_allclose(state.model(batch["states"]), expected, atol=0.05)
    assert metrics["loss"] < 1e-3


def test_numbers_that_cannot_work_are_refused():
    with pytest.raises(TrainingError, match=r"value.gamma=1.5: use a number from 0 to 1"):
        ValueConfig(gamma=1.5)
    with pytest.raises(TrainingError, match="value.lam=-1"):
        ValueConfig(lam=-1)
