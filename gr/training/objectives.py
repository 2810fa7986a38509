"""What is minimised in supervised training: from a batch of item rows to a loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.losses import cross_entropy, token_log_probs
from gr.semantic_ids import PAD_TOKEN
from gr.training.errors import TrainingError
from gr.training.step import LossFn

LEVELS = (
    "target",
    "user",
)  # One target per example, or all positions of a user's sequence in one pass.


def supervised_loss(
    tokens: np.ndarray, *, level: str, targets_per_batch: float, loss: str = "ce"
) -> LossFn:
    """The supervised loss of batches of item rows.

    Args:
        tokens: tokens of every item `[N, L]`.
        level: "target": batches of `history [B, T]`, `target [B]`, `weight [B]` (interaction-level training);
            "user": batches of `items [B, T]`, `weight [B, T]` (user-level training).
        targets_per_batch: mean number of targets in a batch; the loss is divided by it, not by each batch's own
            number, so that every target counts the same.
        loss: "ce".

    Raises:
        TrainingError: for an unknown level or loss.
    """
    if level not in LEVELS:
        raise TrainingError(f"training level {level!r} is unknown; use one of {', '.join(LEVELS)}")
    if loss != "ce":
        raise TrainingError(f"loss {loss!r} is unknown; use 'ce'")
    table = item_token_table(tokens)

    def target_level(model: Any, batch: Any, key: jax.Array, loss_state: Any):
        target = table[batch["target"]]
        logits = model.target_logits(table[batch["history"]], target, key=key)
        value, metrics = cross_entropy(
            token_log_probs(logits, target), batch["weight"], targets_per_batch
        )
        return value, (metrics, loss_state)

    def user_level(model: Any, batch: Any, key: jax.Array, loss_state: Any):
        items = table[batch["items"]]
        logits = model.sequence_logits(items, key=key)
        value, metrics = cross_entropy(
            token_log_probs(logits, items[:, 1:]), batch["weight"][:, 1:], targets_per_batch
        )
        return value, (metrics, loss_state)

    return target_level if level == "target" else user_level


def item_token_table(tokens: np.ndarray) -> jax.Array:
    """Tokens of every item with a last row of padding `[N + 1, L]`, which item row -1 (`PAD_ITEM`) picks."""
    return jnp.asarray(np.pad(tokens, ((0, 1), (0, 0)), constant_values=PAD_TOKEN), jnp.int32)
