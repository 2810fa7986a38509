"""What is minimised in supervised training: from a batch of item rows to a loss."""

import dataclasses
import math
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
from gr.losses.token import Metrics
from gr.semantic_ids import PAD_TOKEN
from gr.training.state import TrainingError
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
            if not 0 < getattr(self, field) < math.inf:
                raise TrainingError(
                    f"loss.{field}={getattr(self, field)} must be above 0 and finite"
                )
        if not 0 <= self.eta < math.inf:
            raise TrainingError(f"loss.eta={self.eta} must not be negative or infinite")
        if self.num_negatives < 1:
            raise TrainingError(f"loss.num_negatives={self.num_negatives} must be at least 1")
        if not 0 < self.pairwise_share <= 1:
            raise TrainingError(f"loss.pairwise_share={self.pairwise_share} must lie in (0, 1]")

    @property
    def has_prefixes(self) -> bool:
        """Whether prefixes have losses and weights of their own."""
        return self.name.startswith("apao_")

    @property
    def needs_trie(self) -> bool:
        """Whether the trie has a part in it."""
        return self.name in ("msl", "apao_pairwise")


def init_loss_state(loss: LossConfig, length: int) -> Any:
    """What the loss carries across steps, before the first: the prefix weights `[L]`, or nothing."""
    return init_prefix_weights(length) if loss.has_prefixes else ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SupervisedLoss:
    """The loss of batches of item rows, with the arrays that it needs; see `supervised_loss`.

    A pytree: `make_train_step` hands its arrays to the compiled program.
    """

    table: jax.Array  # [N + 1, L] int32, of `item_token_table`.
    index: TrieIndex | None  # None for a loss that needs no trie.
    level: str = dataclasses.field(metadata={"static": True})
    targets_per_batch: float = dataclasses.field(metadata={"static": True})
    config: LossConfig = dataclasses.field(metadata={"static": True})

    def __call__(
        self, model: Any, batch: Any, key: jax.Array, loss_state: Any
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        """The loss `[]`, metrics, and the prefix weights of this step, if there are any."""
        of_batch = self._of_pairs if self.config.name == "apao_pairwise" else self._of_targets
        return of_batch(model, batch, key, loss_state)

    def _of_targets(self, model: Any, batch: Any, key: jax.Array, loss_state: Any):
        """Losses of the targets alone."""
        loss = self.config
        if self.level == "target":
            targets, weight = self.table[batch["target"]], batch["weight"]
            logits = model.target_logits(self.table[batch["history"]], targets, key=key)
        else:
            items, weight = self.table[batch["items"]], batch["weight"][:, 1:]
            targets, logits = items[:, 1:], model.sequence_logits(items, key=key)
        if loss.name == "msl":
            token_logp = masked_token_log_probs(logits, targets, self.index, loss.tau)
        else:
            token_logp = token_log_probs(logits, targets)
        losses = None
        if loss.name == "apao_pointwise":
            losses = pointwise_prefix_losses(token_logp, weight, self.targets_per_batch) / loss.tau
        return self._total(token_logp, weight, losses, loss_state)

    def _of_pairs(self, model: Any, batch: Any, key: jax.Array, loss_state: Any):
        """Cross-entropy of all targets, and the pairwise prefix losses at those Q places that have negatives."""
        loss = self.config
        dropout_key, draw_key, place_key = jax.random.split(key, 3)
        weight = batch["weight"] if self.level == "target" else batch["weight"][:, 1:]
        of_places = weight[:, None] if self.level == "target" else weight
        rows, columns, place_weight = draw_places(place_key, of_places, loss.pairwise_share)
        drawn = jax.random.randint(
            draw_key, (len(rows), loss.num_negatives), 0, len(self.table) - 1
        )
        negatives = self.table[drawn]
        if self.level == "target":
            targets, places = self.table[batch["target"]], (rows,)
            states, later = model.target_and_group_states(
                self.table[batch["history"]], targets, rows, negatives[..., :-1], key=dropout_key
            )
        else:
            items, places = self.table[batch["items"]], (rows, columns)
            targets = items[:, 1:]
            states, later = model.sequence_and_group_states(
                items, rows, columns + 1, negatives[..., :-1], key=dropout_key
            )
        logits, later = model.logits(states), model.logits(later)

        token_logp = token_log_probs(logits, targets)
        losses = pairwise_prefix_losses(
            token_logp[places],
            group_token_log_probs(logits[..., 0, :][places], later, negatives),
            walk(self.index, targets[places]),
            walk(self.index, negatives),
            self.index.node_counts[1:],
            tau=loss.tau,
            weight=place_weight,
            normaliser=self.targets_per_batch,
        )
        if loss.all_first_codes:
            # The first prediction has them all, so this costs nothing and is taken at every target.
            exact = masked_token_log_probs(
                logits[..., :1, :], targets[..., :1], self.index, loss.tau
            )
            first = pointwise_prefix_losses(exact, weight, self.targets_per_batch)
            losses = losses.at[0].set(first[0])
        return self._total(token_logp, weight, losses, loss_state)

    def _total(
        self, token_logp: jax.Array, weight: jax.Array, losses: jax.Array | None, state: Any
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        """Cross-entropy and weighted prefix losses `[L]`, if there are any."""
        loss = self.config
        value, metrics = cross_entropy(token_logp, weight, self.targets_per_batch)
        if losses is None:
            return value, (metrics, state)
        weights = _prefix_weights(loss, losses, state)
        weighted = jnp.where(weights > 0, weights * losses, 0.0)  # Since 0 * inf is not a number.
        value = loss.beta * weighted.sum() + (value if loss.with_ce else 0.0)
        for depth in range(len(losses)):
            metrics[f"prefix_{depth + 1}/loss"] = losses[depth]
            metrics[f"prefix_{depth + 1}/weight"] = weights[depth]
        return value, (metrics, weights)


def supervised_loss(
    tokens: np.ndarray,
    *,
    level: str,
    targets_per_batch: float,
    loss: LossConfig | None = None,
    index: TrieIndex | None = None,
) -> SupervisedLoss:
    """The supervised loss of batches of item rows, for `make_train_step`.

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
    if loss.needs_trie and index is None:
        raise TrainingError(f"loss {loss.name!r} needs the trie: give its `index`")
    if loss.name == "apao_pairwise" and tokens.shape[1] < 2:
        raise TrainingError(
            "loss 'apao_pairwise' needs semantic IDs of two codes or more; use 'ce'"
        )
    return SupervisedLoss(
        item_token_table(tokens),
        index if loss.needs_trie else None,
        level=level,
        targets_per_batch=float(targets_per_batch),
        config=loss,
    )


def draw_places(
    key: jax.Array, weight: jax.Array, share: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws Q places of a batch, so that a weighted sum over them has the mean of the sum over all.

    Stratified: the real places, row by row, are cut into Q equal strata, and one is drawn uniformly in each.

    Args:
        key: of the draw.
        weight: `[B, S]`, 1 at real places, 0 elsewhere.
        share: Q over B x S; Q is at least 1; static.

    Returns:
        Rows and columns of the places, `[Q]` int32 each, and the weight `[Q]` of each: the weights' sum is the number
        of real places.
    """
    num = max(1, round(share * weight.size))
    real = weight.reshape(-1) > 0
    count = real.sum()
    strata = (jnp.arange(num) + jax.random.uniform(key, (num,))) / num
    wanted = jnp.minimum((strata * count).astype(jnp.int32), jnp.maximum(count - 1, 0))
    # The r-th real place is the first at which r + 1 of them have been met.
    places = jnp.searchsorted(jnp.cumsum(real), wanted, side="right")
    places = jnp.minimum(places, real.size - 1).astype(jnp.int32)
    rows, columns = jnp.divmod(places, weight.shape[1])
    return rows, columns, jnp.full(num, count / num, jnp.float32)


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
