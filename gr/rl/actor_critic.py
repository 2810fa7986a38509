"""Policy and value head as one model, each with an optimiser of its own."""

import dataclasses
from typing import Any

import jax
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ActorCritic:
    """The model of reinforcement learning: a backbone, which is the policy, and the value head on its states."""

    backbone: Any  # A `Trainable` that searches too, such as `EncoderDecoder`.
    value_head: Any  # A `ValueHead`.


def actor_critic_optimizer(
    policy: optax.GradientTransformation | None, value: optax.GradientTransformation | None
) -> optax.GradientTransformation:
    """An optimiser of an `ActorCritic` made of one for each part; None leaves that part unchanged."""
    parts = {"policy": policy or optax.set_to_zero(), "value": value or optax.set_to_zero()}
    return optax.multi_transform(parts, ActorCritic("policy", "value"))
