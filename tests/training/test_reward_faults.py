"""A reward that is no usable number: it is named, and nothing of its step is applied."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr.losses import PolicyConfig, exact_match, weighted_sum
from gr.training import LearningConfig, TrainingError, fit
from tests.training.test_policy_step import (
    make_batch,
    make_model,
    make_state,
    make_step,
    rolled_out,
    rollout_config,
    same,
)

pytestmark = pytest.mark.usefixtures("compile_in_haste")

LEARNING = LearningConfig(num_epochs=1, learn_value=False)


@functools.cache
def rollouts():
    """What a beam search finds, whichever the key."""
    return rolled_out(rollout_config("beam"), make_model(), make_batch(), jax.random.key(0))[0]


def the_unscored_item():
    """One that the second user gets, but the first does not."""
    first, second = np.asarray(rollouts().items[:2])
    return int(next(item for item in second if item not in first))


def unscored_is_nan(outcome):
    """Scores by the first code, but has no score for one item in batches in which somebody wants that."""
    scores = (outcome.codes[..., 0] == outcome.target[:, None, 0]).astype(jnp.float32)
    wanted = (outcome.target_items == the_unscored_item()).any()
    return jnp.where((outcome.items == the_unscored_item()) & wanted, jnp.nan, scores)


@functools.cache
def compiled_step():
    reward = weighted_sum(
        [(exact_match, 1.0), (unscored_is_nan, 2.0)], ("exact_match", "mine:unscored_is_nan")
    )
    return make_step(rollout_config("beam"), PolicyConfig("grpo"), LEARNING, reward)


def batch_with(target):
    """A batch in which the filler row, who counts for nothing, wants an item."""
    batch = make_batch()
    batch["target"] = np.where(batch["target"] == the_unscored_item(), 0, batch["target"])
    batch["target"][-1] = target
    return batch


def test_the_reward_is_named_and_the_state_is_that_of_the_step_before():
    bad, good = batch_with(the_unscored_item()), batch_with(0)
    expected, _ = compiled_step()(make_state(make_model()), good)
    expected, _ = compiled_step()(expected, good)
    kept = jax.device_get((expected.model, expected.opt_state, expected.loss_state))

    state = make_state(make_model())
    for batch in (good, good, bad, good, bad):  # Noticed later only.
        state, _ = compiled_step()(state, batch)
    assert int(state.bad_step) == 2 == int(state.step)
    assert same((state.model, state.opt_state, state.loss_state), kept)

    where = np.asarray(rollouts().items[:-1]) == the_unscored_item()
    place = [int(x) for x in np.argwhere(where)[0]]
    said = (
        f"reward 'mine:unscored_is_nan' gave nan for {where.sum()} of 30 candidates at step 3 "
        rf"\(first: user row {place[0]} of the batch, item row {the_unscored_item()}\), and the step was not applied; "
        "there is no checkpoint yet. A reward must be a finite number"
    )
    batches = itertools.chain([good, good, bad], itertools.repeat(good))
    for every in (1, 5):
        with pytest.raises(TrainingError, match=said) as caught:
            fit(
                make_state(make_model()),
                compiled_step(),
                itertools.islice(batches, 6) if every == 1 else [good, good, bad, good, good],
                total_steps=5,
                log_every=every,
                progress=False,
            )
        assert "learning rate" not in str(caught.value)


def test_a_value_head_that_learns_alone_tells_it_too():
    learning = LearningConfig(num_epochs=1, learn_policy=False)
    step = make_step(
        rollout_config("beam"), learning=learning, reward=lambda o: o.valid * jnp.float32(jnp.inf)
    )
    state, _ = step(make_state(make_model()), make_batch())
    assert int(state.bad_step) == 0 and same(state.model, make_model())
    assert int(state.reward_fault.count) == int(state.reward_fault.valid) == 30
    assert step.reward_names == ("<lambda>",)


@pytest.mark.parametrize(("name", "works"), [("sibling_grpo", True), ("tempo", False)])
def test_rewards_of_1e30_are_learnt_from_or_shown(name, works):
    def huge(outcome):
        return 1e30 * unscored_is_nan(outcome)

    step = make_step(rollout_config("beam"), PolicyConfig(name), LEARNING, reward=huge)
    if works:  # Its advantages are in units of the group's spread.
        state, metrics = step(make_state(make_model()), batch_with(0))
        assert int(state.step) == 1 and not same(state.model, make_model())
        assert all(np.isfinite(value) for value in metrics.values())
        return
    with pytest.raises(TrainingError, match=r"the largest reward was 1e\+30: if that is much"):
        fit(make_state(make_model()), step, [batch_with(0)], total_steps=1, progress=False)


def test_constant_rewards_and_users_without_candidates_leave_the_policy_alone():
    step = make_step(
        rollout_config("beam"),
        PolicyConfig("sibling_grpo", kl_weight=1.0),
        LEARNING,
        reward=lambda o: jnp.full(o.valid.shape, 7),
    )
    batch = make_batch()
    batch["weight"][:] = 0.0
    for rows in (make_batch(), batch):
        state, metrics = step(make_state(make_model()), rows)
        assert int(state.step) == 1 and float(metrics["grad_norm"]) < 1e-6
        assert all(np.isfinite(value) for value in metrics.values())
