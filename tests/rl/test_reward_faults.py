"""A reward that is no usable number: it is named, and nothing of its step is applied."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_policy_step import (
    make_batch,
    make_model,
    make_state,
    make_step,
    rolled_out,
    rollout_config,
    same,
)

from gr.losses import PolicyConfig
from gr.rl import LearningConfig, actor_critic_optimizer, exact_match, weighted_sum
from gr.training import RewardFault, TrainingError, fit

pytestmark = pytest.mark.usefixtures("compile_in_haste")

# So slow that the search finds the same again.
SLOW = actor_critic_optimizer(optax.sgd(1e-5), None)
# What the filler row, who counts for nothing, wants in a batch: by that the reward below knows what to be.
ORDINARY, NAN, HUGE, CONSTANT = 0, 1, 2, 4


@functools.cache
def found_items():
    """The items of each user but the last, `[5, 6]`: those of a beam search, whichever the key."""
    rollouts, _ = rolled_out(rollout_config("beam"), make_model(), make_batch(), jax.random.key(0))
    return np.asarray(rollouts.items[:-1])


@functools.cache
def unscored_item():
    """One that the second user gets, but the first does not."""
    return int(next(item for item in found_items()[1] if item not in found_items()[0]))


def moody(outcome):
    """Scores by the first code, more or less."""
    mood = outcome.target_items[-1]
    scores = (outcome.tokens[..., 0] == outcome.target[:, None, 0]).astype(jnp.float32)
    scores = jnp.where((outcome.items == unscored_item()) & (mood == NAN), jnp.nan, scores)
    scores = jnp.where(mood == CONSTANT, 0.0, scores)
    return jnp.where(mood == HUGE, 1e30, 1.0) * scores


@functools.cache
def compiled_step():
    names = ("exact_match", "mine:moody")
    reward = weighted_sum([(exact_match, 0.0), (moody, 2.0)], names)
    learning = LearningConfig(num_epochs=1, learn_value=False)
    return make_step(rollout_config("beam"), PolicyConfig("grpo"), learning, reward, SLOW)


def batch_of(mood):
    unscored_item()
    batch = make_batch()
    batch["target"][-1] = mood
    return batch


def start():
    return make_state(make_model(), SLOW)


def test_the_reward_is_named_and_the_state_is_that_of_the_step_before():
    good, bad = batch_of(ORDINARY), batch_of(NAN)
    expected, _ = compiled_step()(start(), good)
    expected, _ = compiled_step()(expected, good)
    kept = jax.device_get((expected.model, expected.opt_state, expected.loss_state))

    state = start()
    for batch in (good, good, bad, good, bad):  # Noticed later only.
        state, _ = compiled_step()(state, batch)
    assert int(state.bad_step) == 2 == int(state.step)
    assert same((state.model, state.opt_state, state.loss_state), kept)

    where = found_items() == unscored_item()
    user = np.flatnonzero(where.any(axis=1))[0]
    said = (
        f"reward 'mine:moody' gave nan for {where.sum()} of 30 candidates at step 3 "
        rf"\(first: user row {user} of the batch, item row {unscored_item()}\), and the step was not applied; "
        "there is no checkpoint yet. A reward must be a finite number"
    )
    for every in (1, 5):
        with pytest.raises(TrainingError, match=said) as caught:
            fit(
                start(),
                compiled_step(),
                [good, good, bad, good, bad],
                total_steps=5,
                log_every=every,
                progress=False,
            )
        assert "learning rate" not in str(caught.value)


@pytest.mark.parametrize("mood", [HUGE, CONSTANT, ORDINARY])
def test_odd_rewards_are_learnt_from(mood):
    state, metrics = compiled_step()(start(), batch_of(mood))
    assert int(state.step) == 1 and all(np.isfinite(value) for value in metrics.values())
    # Advantages are in units of the group's spread: no spread, nothing to learn.
    assert (float(metrics["grad_norm"]) < 1e-6) == (mood == CONSTANT)
    if mood == HUGE:
        _, ordinary = compiled_step()(start(), batch_of(ORDINARY))
        assert float(metrics["grad_norm"]) == pytest.approx(float(ordinary["grad_norm"]), rel=1e-2)


def test_a_batch_without_any_candidate_changes_nothing():
    batch = batch_of(ORDINARY)
    batch["weight"][:] = 0.0
    state, metrics = compiled_step()(start(), batch)
    assert int(state.step) == 1 and same(state.model, make_model())
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_value_head_that_learns_alone_tells_it_too():
    learning = LearningConfig(num_epochs=1, learn_policy=False)
    step = make_step(
        rollout_config("beam"), learning=learning, reward=lambda o: o.valid * jnp.float32(jnp.inf)
    )
    state, _ = step(make_state(make_model()), make_batch())
    assert int(state.bad_step) == 0 and same(state.model, make_model())
    assert int(state.reward_fault.count) == int(state.reward_fault.valid) == 30
    assert step.reward_names == ("<lambda>",)


def test_a_gradient_that_overflows_shows_how_large_the_rewards_were():
    fault = dataclasses.replace(RewardFault.none(), valid=jnp.int32(30), value=jnp.float32(1e30))

    def step(state, batch):
        bad = dataclasses.replace(state, bad_step=jnp.int32(0), reward_fault=fault)
        return bad, {"loss": jnp.zeros(())}

    said = r"gradient was not finite at step 1.*\(the largest reward was 1e\+30: if that is much, lower its weight\)"
    with pytest.raises(TrainingError, match=said):
        fit(start(), step, [make_batch()], total_steps=1, progress=False)


def test_weights_that_are_no_numbers_are_refused():
    for field in ("sync_every", "supervised_weight"):
        with pytest.raises(TrainingError, match=f"rl.{field}=nan must not be negative or infinite"):
            LearningConfig(**{field: float("nan")})
