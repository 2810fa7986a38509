"""From a config to the objects of reinforcement learning: rewards, rollouts, model, optimiser, step."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gr.runs import build, keys
from gr.rl import rewards as known_rewards
from gr.fields import load_own
from gr.data import Splits, Targets, TrainBatches, train_batches_by_target
from gr.decoding import SearchConfig
from gr.losses import PolicyConfig
from gr.rl import Reward, WeightedSum
from gr.models import ValueHead, ValueHeadConfig
from gr.semantic_ids import catalogue_vectors
from gr.rl import ActorCritic, Environment, LearningConfig, RolloutConfig, ValueConfig, actor_critic_optimizer, make_policy_step
from gr.training import TrainingError, TrainStep, make_optimizer

REWARDS = ("exact_match", "rank_aware", "prefix_depth", "semantic")
FIELDS = (
    "name",
    "seed",
    "init_from",
    "init_from_other_data",
    "search",
    "reward",
    "policy",
    "value",
    "rl",
)


def is_rl(config: Mapping[str, Any]) -> bool:
    """Whether a config is of reinforcement learning."""
    return "init_from" in config


def make_environment(catalogue: build.Catalogue, splits: Splits) -> Environment:
    """The items, with vectors that say what they are about."""
    return Environment.build(
        catalogue.index, catalogue.semantic_ids.tokens, catalogue_vectors(splits)
    )


def make_reward(config: ConfigDict, environment: Environment) -> WeightedSum:
    """The weighted sum of the config's rewards.

    Raises:
        TrainingError: for a name that is unknown, or not that of a function, or as many weights as there are not names.
        LossError: for a weight that is no finite number.
    """
    names, weights = config.reward.names, config.reward.weights
    if len(names) != len(weights) or not names:
        raise TrainingError(
            f"reward.names={tuple(names)} and reward.weights={tuple(weights)}: give at least one, and as many of both"
        )
    rewards = [_reward(name, environment) for name in names]
    return known_rewards.weighted_sum(list(zip(rewards, weights, strict=True)), names)


def try_reward(reward: Reward, config: ConfigDict, length: int) -> None:
    """Traces a reward on the shapes of a batch, so that a wrong one is told before anything is trained.

    Raises:
        LossError: if it does not make `[B, G]` numbers.
    """
    users, candidates = config.rl.batch_size, config.search.num_candidates
    integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    outcome = known_rewards.Outcome(
        codes=integers((users, candidates, length)),
        valid=jax.ShapeDtypeStruct((users, candidates), bool),
        target=integers((users, length)),
        items=integers((users, candidates)),
        target_items=integers((users,)),
    )
    jax.eval_shape(reward, outcome)


def _reward(name: str, environment: Environment) -> Reward:
    if name == "semantic":
        return known_rewards.semantic(environment.item_vectors)
    if name in REWARDS:
        return getattr(known_rewards, name)
    return load_own(name, "reward", REWARDS, TrainingError)


def rollout_config(config: ConfigDict) -> RolloutConfig:
    """How candidates are found; the policy's distribution is the one that is decoded."""
    return RolloutConfig(
        search=SearchConfig(**config.search),
        exclude_seen=config.decoding.exclude_seen,
        importance=config.policy.importance,
        prefix_vectors=config.value.prefix_vectors,
        **build.distribution(config),
    )


def policy_config(config: ConfigDict) -> PolicyConfig:
    """The policy's loss."""
    names = {field.name for field in dataclasses.fields(PolicyConfig)}
    return PolicyConfig(**{name: config.policy[name] for name in names})


def value_config(config: ConfigDict) -> ValueConfig:
    """The value head's loss."""
    names = {field.name for field in dataclasses.fields(ValueConfig)}
    return ValueConfig(**{name: config.value[name] for name in names})


def make_value_head(config: ConfigDict, code_length: int) -> ValueHead:
    """A freshly initialised value head for the config's backbone."""
    value = config.value
    return ValueHead(
        ValueHeadConfig(
            d_model=config[config.backbone].d_model,
            code_length=code_length,
            num_heads=value.num_heads,
            d_ff=value.d_ff,
            dropout=value.dropout,
        ),
        rngs=nnx.Rngs(keys.make_key(config.seed, keys.VALUE_HEAD)),
    )


def make_batches(config: ConfigDict, splits: Splits) -> TrainBatches:
    """The endless pipeline of users whose candidates are searched."""
    return train_batches_by_target(
        splits.sequences,
        rewarded_targets(config, splits),
        batch_size=config.rl.batch_size,
        max_history=config.data.max_history,
        buckets=config.rl.num_buckets,
        seed=config.seed,
        time_jitter=config.data.time_jitter,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def rewarded_targets(config: ConfigDict, splits: Splits) -> Targets:
    """The targets that candidates are rewarded for.

    Raises:
        TrainingError: for an unknown kind, or if evaluations leave no validation targets to learn from.
    """
    rl = config.rl
    if rl.targets == "train":
        return latest_targets(splits.train, rl.recent_targets)
    if rl.targets != "validation":
        raise TrainingError(f"rl.targets={rl.targets!r} is unknown: use train or validation")
    targets = splits.validation
    kept = ~np.isin(targets.users, build.spread_targets(targets, rl.eval_users).users)
    if not kept.any():
        raise TrainingError(
            f"rl.targets='validation' with rl.eval_users={rl.eval_users}: evaluations take all {len(targets):,} users; "
            "lower eval_users"
        )
    return Targets(users=targets.users[kept], positions=targets.positions[kept])


def latest_targets(targets: Targets, count: int) -> Targets:
    """The `count` latest targets of each user; 0: all."""
    if count == 0:
        return targets
    order = np.lexsort((-targets.positions, targets.users))
    users = targets.users[order]
    first = np.searchsorted(users, users)
    kept = np.sort(order[np.arange(len(users)) - first < count])
    return Targets(users=targets.users[kept], positions=targets.positions[kept])


def make_optimisation(
    config: ConfigDict,
    environment: Environment,
    num_steps: int,
    mesh: Mesh,
    *,
    learn_policy: bool,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """The optimiser of policy and value head, and the compiled step.

    Args:
        config: the experiment.
        environment: the items.
        num_steps: for the schedules.
        mesh: the devices.
        learn_policy: False to train the value head alone.
    """
    rl = config.rl
    learning = LearningConfig(
        num_epochs=rl.num_epochs,
        num_minibatches=rl.num_minibatches,
        sync_every=rl.sync_every,
        supervised_weight=rl.supervised_weight,
        learn_policy=learn_policy,
        learn_value=config.value.learn,
    )
    updates = num_steps * learning.num_epochs * learning.num_minibatches
    shared = {
        "total_steps": updates,
        "warmup_steps": round(rl.warmup_share * updates),
        "weight_decay": rl.weight_decay,
        "clip_norm": rl.clip_norm,
        "b2": rl.b2,
        "schedule": rl.schedule,
    }
    policy, schedule = make_optimizer(learning_rate=rl.learning_rate, **shared)
    value, value_schedule = make_optimizer(learning_rate=config.value.learning_rate, **shared)
    optimizer = actor_critic_optimizer(
        policy if learn_policy else None, value if learning.learn_value else None
    )
    reward = make_reward(config, environment)
    try_reward(reward, config, environment.tokens.shape[1])
    step = make_policy_step(
        rollout_config(config),
        policy_config(config),
        value_config(config),
        learning,
        environment,
        reward,
        optimizer,
        schedule=schedule if learn_policy else value_schedule,
        mesh=mesh,
    )
    return optimizer, step


def make_model(config: ConfigDict, catalogue: build.Catalogue) -> ActorCritic:
    """Freshly initialised policy and value head."""
    return ActorCritic(
        build.make_model(config, catalogue.semantic_ids),
        make_value_head(config, catalogue.semantic_ids.num_levels),
    )
