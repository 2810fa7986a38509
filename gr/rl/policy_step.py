"""One step of reinforcement learning, compiled: search with the present policy and value head, reward, learn (V-STAR).

A step takes a batch of users. Candidates are searched with V frozen and rewarded; then policy and value head learn from
them in several epochs of mini-batches. The whole step is one program, so the loop of supervised training runs it too.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gr.losses import (
    PolicyConfig,
    cross_entropy,
    masked_token_log_probs,
    policy_objective,
    scored_log_probs,
    token_log_probs,
)
from gr.models import path_states, scores_children, trained_part, with_trained
from gr.rl.actor_critic import ActorCritic
from gr.rl.rewards import Reward, WeightedSum, weighted_sum
from gr.rl.rollouts import (
    RolloutConfig,
    Rollouts,
    log_probs_of_states,
    roll_out,
)
from gr.rl.value_objective import ValueConfig, value_loss
from gr.training import (
    NO_REWARD,
    CompiledStep,
    RewardFault,
    Schedule,
    TrainingError,
    TrainState,
)
from gr.training.mesh import gathered, pin_rows, pin_state
from gr.training.step import Metrics, advance, compile_step, gradient_norm, updated
from gr.trie import Catalogue, TrieIndex

LossOfRollouts = Callable[
    [ActorCritic, Rollouts, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
]


@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """How each batch of rollouts is used for learning.

    Raises `TrainingError` for invalid numbers.
    """

    num_epochs: int = 2  # Passes over a batch of rollouts.
    num_minibatches: int = 1  # Mini-batches of users in each pass.
    sync_every: int = 0  # Steps after which the policy becomes the reference; 0: never.
    learn_policy: bool = True  # False: only the value head learns, on a frozen backbone.
    learn_value: bool = True
    # Weight of the targets' cross-entropy beside the policy's loss, as demonstrations where exploration found nothing
    # (methods such as Prefix-RFT blend the two); 0: none, as published for V-STAR.
    supervised_weight: float = 0.0

    def __post_init__(self):
        for field in ("num_epochs", "num_minibatches"):
            if getattr(self, field) < 1:
                raise TrainingError(f"rl.{field}={getattr(self, field)} must be at least 1")
        for field in ("sync_every", "supervised_weight"):
            if not 0 <= getattr(self, field) < math.inf:
                raise TrainingError(
                    f"rl.{field}={getattr(self, field)} must not be negative or infinite"
                )
        if not (self.learn_policy or self.learn_value):
            raise TrainingError("rl: neither policy nor value head is to learn; switch one on")


def make_policy_step(
    rollout: RolloutConfig,
    policy: PolicyConfig,
    value: ValueConfig,
    learning: LearningConfig,
    catalogue: Catalogue,
    reward: Reward,
    optimizer: optax.GradientTransformation,
    *,
    schedule: Schedule | None = None,
    mesh: Mesh | None = None,
    precision: str | None = None,
) -> CompiledStep:
    """Returns the jitted `step(state, batch) -> (state, metrics)`; it donates the state, compiles once per shape.

    The state's model is an `ActorCritic`, its `loss_state` the reference policy: a backbone. Batches are those of
    `train_batches_by_target`, with as many rows as `num_minibatches` divides. As in supervised training, no update is
    applied if a loss, gradient or reward of the step is not finite; `TrainState.reward_fault` names a faulty reward.

    Args:
        rollout: how candidates are found and scored.
        policy: the policy's loss.
        value: the value head's loss.
        learning: how rollouts are used for learning.
        catalogue: the items, with vectors.
        reward: the reward of candidates; several are combined by `weighted_sum`, which names them.
        optimizer: made by `actor_critic_optimizer`.
        schedule: learning rate of the policy by updates; only logged.
        mesh: see `make_train_step`.
        precision: of search and learning, see `make_train_step`.

    Returns:
        The step. Metrics are those of `roll_out`, means over the step's updates of those of `policy_objective` and
        `value_loss` (`value/loss` in all), of `loss`, their sum, and of `grad_norm`; `learning_rate`.
    """
    updates = learning.num_epochs * learning.num_minibatches
    reward = reward if isinstance(reward, WeightedSum) else weighted_sum({reward: 1.0})

    def step(
        state: TrainState, batch: Any, fixed: tuple[Catalogue, WeightedSum]
    ) -> tuple[TrainState, Metrics]:
        catalogue, reward = fixed
        search_key, order_key, learn_key = jax.random.split(
            jax.random.fold_in(state.key, state.step), 3
        )
        rollouts, metrics = roll_out(
            rollout, catalogue, reward, state.model, state.loss_state, batch, search_key, mesh
        )
        fault = RewardFault.of(rollouts.rewards_apart, rollouts.valid, rollouts.items)
        loss_fn = _loss_of_rollouts(rollout, policy, value, learning, catalogue.index)
        parts = _minibatches(order_key, len(batch["weight"]), learning)

        def update(carry: tuple, xs: tuple) -> tuple[tuple, dict[str, jax.Array]]:
            model, opt_state = carry
            part, key = xs
            chosen = pin_rows(jax.tree.map(lambda x: x[part], rollouts), mesh)
            whole = gathered(model, mesh)
            (loss, found), grads = jax.value_and_grad(
                lambda trained: loss_fn(with_trained(whole, trained), chosen, key), has_aux=True
            )(trained_part(whole))
            grads = pin_state(grads, mesh)
            found |= {"loss": loss, "grad_norm": gradient_norm(grads)}
            return updated(optimizer, grads, opt_state, model), found

        carry = (state.model, state.opt_state)
        keys = jax.random.split(learn_key, updates)
        (model, opt_state), found = jax.lax.scan(update, carry, (parts, keys))
        finite = jnp.isfinite(found["loss"]).all() & jnp.isfinite(found["grad_norm"]).all()
        finite &= (
            fault.reward == NO_REWARD
        )  # Also checked while the value head learns alone, which does not use rewards.
        metrics |= {name: values.mean() for name, values in found.items()}
        if schedule is not None:
            metrics["learning_rate"] = schedule(state.step * updates)
        reference = _reference(learning, state, model.backbone)
        new_state = advance(state, model, opt_state, reference, finite, mesh, fault)
        return new_state, {name: value.astype(jnp.float32) for name, value in metrics.items()}

    return compile_step(step, (catalogue, reward), mesh, reward.names, precision)


def _loss_of_rollouts(
    rollout: RolloutConfig,
    policy: PolicyConfig,
    value: ValueConfig,
    learning: LearningConfig,
    index: TrieIndex,
) -> LossOfRollouts:
    """The sum of both losses; each trains its own part of the model, unless the value's gradient is let through."""

    def loss_fn(model: ActorCritic, rollouts: Rollouts, key: jax.Array):
        loss, metrics = jnp.zeros(()), {}
        value_key, supervised_key = jax.random.split(key)
        # The policy does not use the last code's state.
        tokens = rollouts.tokens if learning.learn_value else rollouts.tokens[..., :-1]
        states = path_states(model.backbone, rollouts.history, tokens)
        if learning.learn_policy:
            before = states[:, :, : rollouts.tokens.shape[-1]]
            logp = log_probs_of_states(rollout, index, model.backbone, before, rollouts.tokens)
            loss, metrics = policy_objective(
                policy,
                logp,
                rollouts.logp,
                rollouts.reference_logp,
                rollouts.tokens,
                rollouts.rewards,
                rollouts.valid,
                importance=rollouts.importance if rollout.importance else None,
                entropy=rollouts.entropy,
            )
        if learning.learn_policy and learning.supervised_weight:
            of_targets = _supervised_loss(rollout, index, model.backbone, rollouts, supervised_key)
            loss += learning.supervised_weight * of_targets
            metrics["policy/supervised_loss"] = of_targets
        if learning.learn_value:
            of_value, found = value_loss(
                model.value_head,
                states,
                rollouts.value_rewards,
                rollouts.valid.astype(jnp.float32),
                value,
                tokens=rollouts.tokens,
                key=value_key,
            )
            loss, metrics = loss + of_value, metrics | found | {"value/loss": of_value}
        return loss, metrics

    return loss_fn


def _supervised_loss(
    rollout: RolloutConfig, index: TrieIndex, backbone: Any, rollouts: Rollouts, key: jax.Array
) -> jax.Array:
    """Cross-entropy of the targets under the policy's distribution, with dropout."""
    if scores_children(backbone):
        states = backbone.target_states(rollouts.history, rollouts.target, key=key)
        logp = scored_log_probs(backbone, states, rollouts.target, index, rollout.temperature)
        return cross_entropy(logp, rollouts.weight, jnp.maximum(rollouts.weight.sum(), 1.0))[0]
    logits = backbone.target_logits(rollouts.history, rollouts.target, key=key)
    if rollout.normalise_over == "children":
        logp = masked_token_log_probs(logits, rollouts.target, index, rollout.temperature)
    else:
        logp = token_log_probs(logits, rollouts.target, rollout.temperature)
    normaliser = jnp.maximum(rollouts.weight.sum(), 1.0)
    return cross_entropy(logp, rollouts.weight, normaliser)[0]


def _minibatches(key: jax.Array, num_users: int, learning: LearningConfig) -> jax.Array:
    """Users of each update `[epochs * minibatches, B / minibatches]`, in a new order every epoch."""
    if num_users % learning.num_minibatches:
        raise TrainingError(
            f"rl.num_minibatches={learning.num_minibatches} does not divide rl.batch_size={num_users}"
        )
    if learning.num_minibatches == 1:
        return jnp.tile(jnp.arange(num_users), (learning.num_epochs, 1))
    keys = jax.random.split(key, learning.num_epochs)
    orders = jax.vmap(lambda key: jax.random.permutation(key, num_users))(keys)
    return orders.reshape(learning.num_epochs * learning.num_minibatches, -1)


def _reference(learning: LearningConfig, state: TrainState, backbone: Any) -> Any:
    """The reference policy of the next step."""
    if learning.sync_every == 0:
        return state.loss_state
    due = (state.step + 1) % learning.sync_every == 0
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), backbone, state.loss_state)
