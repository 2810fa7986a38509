"""Builds the objects of reinforcement learning: rewards, rollouts, model, optimiser, step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from gr.data import Splits, Targets, TrainBatches, train_batches_by_target
from gr.fields import load_own
from gr.models import ValueHead, ValueHeadConfig, freeze, item_share
from gr.rl import (
    ActorCritic,
    LearningConfig,
    Reward,
    RolloutConfig,
    WeightedSum,
    actor_critic_optimizer,
    make_policy_step,
)
from gr.rl import rewards as known_rewards
from gr.runs import build, keys
from gr.runs.experiment import BACKBONES, ReinforcedExperiment
from gr.semantic_ids import SemanticIds, catalogue_vectors
from gr.training import TrainingError, TrainStep, make_optimizer
from gr.trie import Catalogue

REWARDS = ("exact_match", "rank_aware", "prefix_depth", "semantic")


def policy_of(model: nnx.Module) -> nnx.Module:
    """The model as reinforcement learning trains it: an item tower, which is no part of the policy, stays as it is."""
    return freeze(model, nnx.PathContains("tower")) if item_share(model) else model


def with_vectors(catalogue: Catalogue, splits: Splits) -> Catalogue:
    """The items with vectors for semantic rewards."""
    return catalogue.with_vectors(catalogue_vectors(splits))


def make_reward(config: ReinforcedExperiment, catalogue: Catalogue) -> WeightedSum:
    """The weighted sum of the config's rewards.

    Raises:
        TrainingError: for an unknown name or one that is not a function, a number of weights that differs from the
            number of names, or a weight that is not a finite number.
    """
    names, weights = config.reward.names, config.reward.weights
    if len(names) != len(weights) or not names:
        raise TrainingError(
            f"reward.names={tuple(names)} and reward.weights={tuple(weights)}: give at least one, and as many of both"
        )
    rewards = [_reward(name, catalogue) for name in names]
    return known_rewards.weighted_sum(list(zip(rewards, weights, strict=True)), names)


def try_reward(reward: Reward, config: ReinforcedExperiment, length: int) -> None:
    """Traces a reward on the shapes of a batch, so that a wrong one is refused before training.

    Raises:
        TrainingError: if it does not return `[B, G]` numbers.
    """
    users, candidates = config.rl.batch_size, config.search.num_candidates
    integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    outcome = known_rewards.Outcome(
        tokens=integers((users, candidates, length)),
        valid=jax.ShapeDtypeStruct((users, candidates), bool),
        target=integers((users, length)),
        items=integers((users, candidates)),
        target_items=integers((users,)),
    )
    jax.eval_shape(reward, outcome)


def _reward(name: str, catalogue: Catalogue) -> Reward:
    if name == "semantic":
        return known_rewards.semantic(catalogue.item_vectors)
    if name in REWARDS:
        return getattr(known_rewards, name)
    return load_own(name, "reward", REWARDS, TrainingError)


def rollout_config(config: ReinforcedExperiment) -> RolloutConfig:
    """How candidates are found; the policy has the same distribution as in decoding."""
    return RolloutConfig(
        search=config.search,
        exclude_seen=config.decoding.exclude_seen,
        importance=config.policy.importance,
        prefix_vectors=config.value.prefix_vectors,
        **build.distribution(config),
    )


def _width(config: ReinforcedExperiment, backbone: Any) -> int:
    """D of the backbone's hidden states."""
    told = getattr(getattr(backbone, "config", None), "d_model", None)
    if told is not None:
        return told
    if config.backbone in BACKBONES:
        return getattr(config, config.backbone).d_model
    if "d_model" not in config.backbone_options:
        raise TrainingError(
            f"a value head has to know the width of {config.backbone}'s hidden states: set backbone_options.d_model"
        )
    return config.backbone_options["d_model"]


def make_value_head(
    config: ReinforcedExperiment, code_length: int, backbone: Any = None
) -> ValueHead:
    """A freshly initialised value head for the config's backbone, or for this one, whose `config` says its width."""
    value = config.value
    return ValueHead(
        ValueHeadConfig(
            d_model=_width(config, backbone),
            code_length=code_length,
            num_heads=value.num_heads,
            d_ff=value.d_ff,
            dropout=value.dropout,
            block=value.block,
        ),
        rngs=nnx.Rngs(keys.make_key(config.seed, keys.VALUE_HEAD)),
    )


def make_batches(
    config: ReinforcedExperiment, splits: Splits, mesh: Mesh | None = None
) -> TrainBatches:
    """The endless pipeline of batches of users for rollouts, for a mesh; None: one device."""
    batches = train_batches_by_target(
        splits.sequences,
        rewarded_targets(config, splits),
        batch_size=config.rl.batch_size,
        max_history=config.data.max_history,
        buckets=config.rl.num_buckets,
        seed=config.seed,
        time_jitter=config.data.time_jitter,
        place_jitter=config.data.place_jitter,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return build.filled(batches, mesh, config.rl.num_minibatches)


def rewarded_targets(config: ReinforcedExperiment, splits: Splits) -> Targets:
    """The targets for which candidates are rewarded.

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
    config: ReinforcedExperiment,
    catalogue: Catalogue,
    num_steps: int,
    mesh: Mesh,
    *,
    learn_policy: bool,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """The optimiser of policy and value head, and the compiled step.

    Args:
        config: the experiment.
        catalogue: the items.
        num_steps: train steps, for the schedules.
        mesh: the devices.
        learn_policy: False trains the value head only.
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
    shared = build.optimizer_options(rl, updates)
    shared["master_copy"] = build.has_master_copy(config)
    policy, schedule = make_optimizer(learning_rate=rl.learning_rate, **shared)
    value, value_schedule = make_optimizer(learning_rate=config.value.learning_rate, **shared)
    optimizer = actor_critic_optimizer(
        policy if learn_policy else None, value if learning.learn_value else None
    )
    reward = make_reward(config, catalogue)
    try_reward(reward, config, catalogue.tokens.shape[1])
    step = make_policy_step(
        rollout_config(config),
        config.policy,
        config.value,
        learning,
        catalogue,
        reward,
        optimizer,
        schedule=schedule if learn_policy else value_schedule,
        mesh=mesh,
        precision=rl.precision,
    )
    return optimizer, step


def make_model(config: ReinforcedExperiment, semantic_ids: SemanticIds) -> ActorCritic:
    """Freshly initialised policy and value head."""
    backbone = build.make_model(config, semantic_ids)
    return ActorCritic(backbone, make_value_head(config, semantic_ids.num_levels, backbone))
