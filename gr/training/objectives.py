"""What is minimised in supervised training: from a batch of item rows to a loss."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.losses import (
    cross_entropy,
    group_token_log_probs,
    init_prefix_weights,
    masked_token_log_probs,
    pairwise_prefix_losses,
    pointwise_prefix_losses,
    stateless_prefix_weights,
    token_log_probs,
    uniform_prefix_weights,
    update_prefix_weights,
)
from gr.semantic_ids import PAD_TOKEN
from gr.training.errors import TrainingError
from gr.training.places import draw_places
from gr.training.step import LossFn
from gr.trie import TrieIndex, walk

LEVELS = (
    "target",
    "user",
)  # One target per example, or all positions of a user's sequence in one pass.


LOSSES = ("ce", "msl", "apao_pointwise", "apao_pairwise")
WEIGHTS = ("adaptive", "stateless", "uniform")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised, and how.

    Raises `TrainingError` for a name that is unknown or a number that cannot work.
    """

    name: str = "ce"  # "ce", "msl" (masked softmax), or CE and prefix losses: see `LOSSES`.
    tau: float = 1.0  # Temperature: of MSL's logits, or of the prefix losses.
    beta: float = 0.3  # Weight of the prefix losses.
    eta: float = 1e-4  # Step size of their adaptive weights.
    weights: str = "adaptive"  # Of the prefixes; or "stateless", as published; or "uniform".
    with_ce: bool = True  # False: the prefix losses alone.
    num_negatives: int = 100  # Pairwise: items drawn uniformly for each target, anew at each step.
    all_first_codes: bool = False  # Pairwise: at depth 1 every first code is a negative, exactly.
    # Pairwise: share of a batch's targets that have negatives, drawn anew at each step; 1: all, as published.
    pairwise_share: float = 0.0625

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
        if self.num_negatives < 1:
            raise TrainingError(f"loss.num_negatives={self.num_negatives} must be at least 1")
        if not 0 < self.pairwise_share <= 1:
            raise TrainingError(f"loss.pairwise_share={self.pairwise_share} must lie in (0, 1]")

    @property
    def has_prefixes(self) -> bool:
        """Whether prefixes have losses and weights of their own."""
        return self.name.startswith("apao_")


def init_loss_state(loss: LossConfig, length: int) -> Any:
    """What the loss carries across steps, before the first: the prefix weights `[L]`, or nothing."""
    return init_prefix_weights(length) if loss.has_prefixes else ()


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
        index: the trie of the items, which MSL and the pairwise losses need.

    Raises:
        TrainingError: for an unknown level, a loss without the trie that it needs, or pairwise losses of semantic IDs
            of one code, whose prefixes are the items themselves.
    """
    if level not in LEVELS:
        raise TrainingError(f"training level {level!r} is unknown; use one of {', '.join(LEVELS)}")
    loss = loss or LossConfig()
    if loss.name in ("msl", "apao_pairwise") and index is None:
        raise TrainingError(f"loss {loss.name!r} needs the trie: give its `index`")
    if loss.name == "apao_pairwise" and tokens.shape[1] < 2:
        raise TrainingError(
            "loss 'apao_pairwise' needs semantic IDs of two codes or more; use 'ce'"
        )
    table = item_token_table(tokens)

    def prefixes_of(token_logp: jax.Array, weight: jax.Array) -> jax.Array | None:
        if loss.name != "apao_pointwise":
            return None
        return pointwise_prefix_losses(token_logp, weight, targets_per_batch) / loss.tau

    def log_probs(logits: jax.Array, target: jax.Array) -> jax.Array:
        if loss.name == "msl":
            return masked_token_log_probs(logits, target, index, loss.tau)
        return token_log_probs(logits, target)

    def total(token_logp: jax.Array, weight: jax.Array, losses: jax.Array | None, state: Any):
        """Cross-entropy and weighted prefix losses `[L]`, if there are any."""
        value, metrics = cross_entropy(token_logp, weight, targets_per_batch)
        if losses is None:
            return value, (metrics, state)
        weights = _prefix_weights(loss, losses, state)
        value = loss.beta * (weights * losses).sum() + (value if loss.with_ce else 0.0)
        for depth in range(len(losses)):
            metrics[f"prefix_{depth + 1}/loss"] = losses[depth]
            metrics[f"prefix_{depth + 1}/weight"] = weights[depth]
        return value, (metrics, weights)

    def target_level(model: Any, batch: Any, key: jax.Array, loss_state: Any):
        target, weight = table[batch["target"]], batch["weight"]
        logits = model.target_logits(table[batch["history"]], target, key=key)
        token_logp = log_probs(logits, target)
        return total(token_logp, weight, prefixes_of(token_logp, weight), loss_state)

    def user_level(model: Any, batch: Any, key: jax.Array, loss_state: Any):
        items, weight = table[batch["items"]], batch["weight"][:, 1:]
        token_logp = log_probs(model.sequence_logits(items, key=key), items[:, 1:])
        return total(token_logp, weight, prefixes_of(token_logp, weight), loss_state)

    if loss.name == "apao_pairwise":
        levels = _pairwise_levels(loss, table, index, targets_per_batch, total)
    else:
        levels = {"target": target_level, "user": user_level}
    return levels[level]


def _pairwise_levels(
    loss: LossConfig,
    table: jax.Array,
    index: TrieIndex,
    targets_per_batch: float,
    total: Callable,
) -> dict[str, LossFn]:
    """The pairwise losses of both levels; `total` adds the cross-entropy."""
    num_items = len(table) - 1

    def draw(key: jax.Array, *shape: int) -> jax.Array:
        return table[jax.random.randint(key, (*shape, loss.num_negatives), 0, num_items)]

    def combined(
        targets: jax.Array,
        logits: jax.Array,
        negatives: jax.Array,
        later: jax.Array,
        weight: jax.Array,
        places: tuple[jax.Array, ...],
        place_weight: jax.Array,
        loss_state: Any,
    ):
        """Cross-entropy of `targets [..., L]`, and the prefix losses at those `places [Q]` that have negatives."""
        token_logp = token_log_probs(logits, targets)
        negative_logp = group_token_log_probs(logits[..., 0, :][places], later, negatives)
        losses = pairwise_prefix_losses(
            token_logp[places],
            negative_logp,
            walk(index, targets[places]),
            walk(index, negatives),
            index.node_counts[1:],
            tau=loss.tau,
            weight=place_weight,
            normaliser=targets_per_batch,
        )
        if loss.all_first_codes:
            # The first prediction has them all, so this costs nothing and is taken at every target.
            exact = masked_token_log_probs(logits[..., :1, :], targets[..., :1], index, loss.tau)
            first = pointwise_prefix_losses(exact, weight, targets_per_batch)
            losses = losses.at[0].set(first[0])
        return total(token_logp, weight, losses, loss_state)

    def target_level(model: Any, batch: Any, key: jax.Array, loss_state: Any):
        target, weight = table[batch["target"]], batch["weight"]
        dropout_key, draw_key, place_key = jax.random.split(key, 3)
        rows, _, place_weight = draw_places(place_key, weight[:, None], loss.pairwise_share)
        negatives = draw(draw_key, len(rows))
        states, later = model.target_and_group_states(
            table[batch["history"]], target, rows, negatives[..., :-1], key=dropout_key
        )
        logits, later = model.logits(states), model.logits(later)
        return combined(target, logits, negatives, later, weight, (rows,), place_weight, loss_state)

    def user_level(model: Any, batch: Any, key: jax.Array, loss_state: Any):
        items, weight = table[batch["items"]], batch["weight"][:, 1:]
        dropout_key, draw_key, place_key = jax.random.split(key, 3)
        *places, place_weight = draw_places(place_key, weight, loss.pairwise_share)
        rows, columns = places
        negatives = draw(draw_key, len(rows))
        states, later = model.sequence_and_group_states(
            items, rows, columns + 1, negatives[..., :-1], key=dropout_key
        )
        logits, later = model.logits(states), model.logits(later)
        return combined(
            items[:, 1:], logits, negatives, later, weight, tuple(places), place_weight, loss_state
        )

    return {"target": target_level, "user": user_level}


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
