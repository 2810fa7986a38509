"""What the config of reinforcement learning turns into: targets, rewards."""

import jax.numpy as jnp
import numpy as np
import pytest

from gr.data import Targets, leave_one_out, load_sequences
from gr.rl import Outcome
from gr.runs import Reinforcement, RewardConfig, build, build_rl
from gr.training import TrainingError

HERE = "test_build_rl:"


def constant(outcome):
    """A reward of one's own."""
    return jnp.full(outcome.valid.shape, 2.0)


@pytest.fixture(scope="module")
def splits():
    options = {"num_users": 40, "num_items": 30, "mean_length": 8.0, "seed": 0}
    return leave_one_out(load_sequences("synthetic", **options))


def test_the_latest_targets_of_each_user():
    targets = Targets(users=np.array([0, 0, 0, 1, 2, 2]), positions=np.array([1, 3, 2, 5, 8, 7]))
    kept = build_rl.latest_targets(targets, 2)
    pairs = set(zip(kept.users.tolist(), kept.positions.tolist(), strict=True))
    assert pairs == {(0, 3), (0, 2), (1, 5), (2, 8), (2, 7)}
    assert build_rl.latest_targets(targets, 0) is targets


def test_who_is_evaluated_is_not_learnt_from(splits):
    config = Reinforcement().override({"rl.eval_users": 10})
    assert build_rl.rewarded_targets(config, splits) is splits.train
    config = config.override({"rl.targets": "validation"})
    learnt = build_rl.rewarded_targets(config, splits)
    evaluated = build.spread_targets(splits.validation, 10)
    assert len(learnt) + len(evaluated) == len(splits.validation)
    assert not set(learnt.users.tolist()) & set(evaluated.users.tolist())
    with pytest.raises(TrainingError, match="lower eval_users"):
        build_rl.rewarded_targets(config.override({"rl.eval_users": 0}), splits)


def test_rewards_are_summed_by_name_and_weight():
    names = ("exact_match", HERE + "constant")
    config = Reinforcement(reward=RewardConfig(names, (3.0, 0.5)))
    outcome = Outcome(
        tokens=jnp.array([[[1, 2], [1, 3]]]),
        valid=jnp.ones((1, 2), bool),
        target=jnp.array([[1, 3]]),
    )
    np.testing.assert_allclose(build_rl.make_reward(config, None)(outcome), [[1.0, 4.0]])
    for wrong, said in {
        HERE + "none": "has no 'none'",
        "no_such_module:f": "there is no module 'no_such_module'",
        "no_module": "is unknown",
        ":f": "is unknown",
    }.items():
        config = config.override({"reward.names": ("exact_match", wrong)})
        with pytest.raises(TrainingError, match=f"reward '{wrong}'.* {said}"):
            build_rl.make_reward(config, None)
    config = config.override({"reward.names": ("exact_mach", "rank_aware")})
    with pytest.raises(TrainingError, match="'exact_mach' is unknown; did you mean exact_match"):
        build_rl.make_reward(config, None)


NO_FUNCTION = 3.0


def of_users(outcome):
    """No number for each candidate."""
    return outcome.valid[:, 0]


def on_the_host(outcome):
    """Runs when it is traced, but not on traced arrays."""
    return np.asarray(outcome.items) > 0


def test_rewards_and_weights_that_cannot_work_are_named_at_the_start():
    config = Reinforcement(reward=RewardConfig(("exact_match",), (float("nan"),)))
    with pytest.raises(TrainingError, match="the weight of reward 'exact_match' is nan"):
        build_rl.make_reward(config, None)
    config = Reinforcement(reward=RewardConfig(("exact_match",), (1.0,)))
    build_rl.try_reward(build_rl.make_reward(config, None), config, 3)
    config = config.override({"reward.names": (HERE + "NO_FUNCTION",)})
    with pytest.raises(
        TrainingError, match=f"reward '{HERE}NO_FUNCTION' is no function but a float"
    ):
        build_rl.make_reward(config, None)
    for name, said in (("of_users", r"returned bool\[64\]"), ("on_the_host", "cannot be compiled")):
        config = config.override({"reward.names": (HERE + name,)})
        reward = build_rl.make_reward(config, None)
        with pytest.raises(TrainingError, match=f"reward '{HERE}{name}' {said}"):
            build_rl.try_reward(reward, config, 3)
