"""What is minimised in supervised training: from a batch of item rows to a loss."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.losses import (
    cross_entropy,
    init_prefix_weights,
    masked_token_log_probs,
    pointwise_prefix_losses,
    stateless_prefix_weights,
    token_log_probs,
    uniform_prefix_weights,
    update_prefix_weights,
)
from gr.semantic_ids import PAD_TOKEN
from gr.training.errors import TrainingError
from gr.training.step import LossFn
from gr.trie import TrieIndex

LEVELS = (
    "target",
    "user",
)  # One target per example, or all positions of a user's sequence in one pass.


LOSSES = ("ce", "msl", "apao_pointwise")
WEIGHTS = ("adaptive", "stateless", "uniform")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised, and how.

    Raises `TrainingError` for a name that is unknown or a number that cannot work.
    """

    name: str = "ce"  # "ce", "msl" (masked softmax), or "apao_pointwise": CE and prefix losses.
    tau: float = 1.0  # Temperature: of MSL's logits, or of the prefix losses.
    beta: float = 0.3  # Weight of the prefix losses.
    eta: float = 1e-4  # Step size of their adaptive weights.
    weights: str = "adaptive"  # Of the prefixes; or "stateless", as published; or "uniform".
    with_ce: bool = True  # False: the prefix losses alone.

    def __post_init__(self):
        if self.name not in LOSSES:
            raise TrainingError(f"loss {self.name!r} is unknown; use one of {', '.join(LOSSES)}")
        if self.weights not in WEIGHTS:
            raise TrainingError(
                f"loss.weights={self.weights!r} is unknown; use one of {', '.join(WEIGHTS)}"
            )
        for field in ("tau", "beta"):
            if not getattr(self, field) > 0:
                raise TrainingError(f"loss.{field}={getattr(self, field)} must be above 0")
        if self.eta < 0:
            raise TrainingError(f"loss.eta={self.eta} must not be negative")


def init_loss_state(loss: LossConfig, length: int) -> Any:
    """What the loss carries across steps, before the first: the prefix weights `[L]`, or nothing."""
    return init_prefix_weights(length) if loss.name == "apao_pointwise" else ()


def supervised_loss(
    tokens: np.ndarray,
    *,
    level: str,
    targets_per_batch: float,
    loss: LossConfig | None = None,
    index: TrieIndex | None = None,
) -> LossFn:
    """The supervised loss of batches of item rows.

    Args:
        tokens: tokens of every item `[N, L]`.
        level: "target": batches of `history [B, T]`, `target [B]`, `weight [B]` (interaction-level training);
            "user": batches of `items [B, T]`, `weight [B, T]` (user-level training).
        targets_per_batch: mean number of targets in a batch; the loss is divided by it, not by each batch's own
            number, so that every target counts the same.
        loss: which; None for cross-entropy.
        index: the trie of the items, which MSL needs.

    Raises:
        TrainingError: for an unknown level, or MSL without a trie.
    """
    if level not in LEVELS:
        raise TrainingError(f"training level {level!r} is unknown; use one of {', '.join(LEVELS)}")
    loss = loss or LossConfig()
    if loss.name == "msl" and index is None:
        raise TrainingError("loss 'msl' masks by the trie: give its `index`")
    table = item_token_table(tokens)

    def of_logits(logits: jax.Array, target: jax.Array, weight: jax.Array, loss_state: Any):
        if loss.name == "msl":
            token_logp = masked_token_log_probs(logits, target, index, loss.tau)
        else:
            token_logp = token_log_probs(logits, target)
        value, metrics = cross_entropy(token_logp, weight, targets_per_batch)
        if loss.name != "apao_pointwise":
            return value, (metrics, loss_state)
        losses = pointwise_prefix_losses(token_logp, weight, targets_per_batch) / loss.tau
        weights = _prefix_weights(loss, losses, loss_state)
        value = loss.beta * (weights * losses).sum() + (value if loss.with_ce else 0.0)
        for depth in range(len(losses)):
            metrics[f"prefix_{depth + 1}/loss"] = losses[depth]
            metrics[f"prefix_{depth + 1}/weight"] = weights[depth]
        return value, (metrics, weights)

    def target_level(model: Any, batch: Any, key: jax.Array, loss_state: Any):
        target = table[batch["target"]]
        logits = model.target_logits(table[batch["history"]], target, key=key)
        return of_logits(logits, target, batch["weight"], loss_state)

    def user_level(model: Any, batch: Any, key: jax.Array, loss_state: Any):
        items = table[batch["items"]]
        logits = model.sequence_logits(items, key=key)
        return of_logits(logits, items[:, 1:], batch["weight"][:, 1:], loss_state)

    return target_level if level == "target" else user_level


def _prefix_weights(loss: LossConfig, losses: jax.Array, before: jax.Array) -> jax.Array:
    """Weights of the prefixes `[L]` at this step."""
    if loss.weights == "uniform":
        return uniform_prefix_weights(losses)
    if loss.weights == "stateless":
        return stateless_prefix_weights(losses, loss.eta)
    return update_prefix_weights(before, losses, loss.eta)


def item_token_table(tokens: np.ndarray) -> jax.Array:
    """Tokens of every item with a last row of padding `[N + 1, L]`, which item row -1 (`PAD_ITEM`) picks."""
    return jnp.asarray(np.pad(tokens, ((0, 1), (0, 0)), constant_values=PAD_TOKEN), jnp.int32)
