"""The losses of supervised training: from a batch of item rows to a loss."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.data import TitledPieces
from gr.fields import Count, NotNegative, OneOf, Positive, ShareAboveZero, check_fields
from gr.losses import (
    cross_entropy,
    group_token_log_probs,
    init_prefix_weights,
    masked_token_log_probs,
    pairwise_prefix_losses,
    pointwise_prefix_losses,
    scored_log_probs,
    stateless_prefix_weights,
    token_log_probs,
    uniform_prefix_weights,
    update_prefix_weights,
)
from gr.losses.token import Metrics
from gr.models import histories_for, item_share, scores_children, scores_items
from gr.training.own_loss import load_loss
from gr.training.state import TrainingError
from gr.trie import TrieIndex, item_token_table, walk

LEVELS = (
    "target",
    "user",
)  # One target per example, or all positions of a user's sequence in one pass.


_OF_TOWER = 1  # What the key of an item tower's dropout is folded with.

LOSSES = ("ce", "msl", "apao_pointwise", "apao_pairwise")
WEIGHTS = ("adaptive", "stateless", "uniform")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The supervised loss and its settings. Raises `TrainingError` for a value out of range.

    Attributes:
        name: "ce" (cross-entropy over the vocabulary), "msl" (masked softmax: over a prefix's children in the trie),
            "apao_pointwise", "apao_pairwise" (cross-entropy and prefix losses), or your own "module:function". That
            ignores all other fields: `(logits [..., L, V], tokens [..., L], weight [...], normaliser, index) -> (loss
            [],
            metrics: name -> [])` of one batch. `weight` is 1 for a target and 0 for padding, whose logits and tokens
                are arbitrary. The loss is the weighted sum over targets divided by `normaliser`; `index` is the trie.
        tau: temperature of MSL's logits, or of the prefix losses; above 0.
        beta: weight of the prefix losses; above 0.
        eta: step size of their adaptive weights; 0 or more.
        weights: prefix weights: "adaptive", "stateless" (as published) or "uniform".
        with_ce: whether cross-entropy is added; False: the prefix losses alone.
        num_negatives: pairwise: number of items drawn uniformly for each target, anew at each step; 1 or more.
        all_first_codes: pairwise: whether at depth 1 every first code is a negative, instead of sampled ones.
        pairwise_share: pairwise: share of a batch's targets that have negatives, drawn anew at each step; in (0, 1],
            where 1 is as published.
    """

    name: Annotated[str, OneOf(LOSSES, or_own=True)] = "ce"
    tau: Positive = 1.0
    beta: Positive = 0.3
    eta: NotNegative = 1e-4
    weights: Annotated[str, OneOf(WEIGHTS)] = "adaptive"
    with_ce: bool = True
    num_negatives: Count = 100
    all_first_codes: bool = False
    pairwise_share: ShareAboveZero = 0.0625

    def __post_init__(self):
        check_fields(self, "loss.", TrainingError)

    @property
    def is_own(self) -> bool:
        """Whether it is the user's own loss."""
        return self.name not in LOSSES

    @property
    def has_prefixes(self) -> bool:
        """Whether it has prefix losses."""
        return self.name.startswith("apao_")

    @property
    def needs_trie(self) -> bool:
        """Whether it uses the trie."""
        return self.is_own or self.name in ("msl", "apao_pairwise")


def init_loss_state(loss: LossConfig, length: int) -> Any:
    """The initial state of the loss: the prefix weights `[L]`, or nothing."""
    return init_prefix_weights(length) if loss.has_prefixes else ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SupervisedLoss:
    """The loss of batches of item rows, with the arrays that it needs; see `supervised_loss`.

    A pytree: `make_train_step` passes its arrays to the compiled program.
    """

    table: jax.Array  # [N + 1, L] int32, of `item_token_table`.
    index: TrieIndex | None  # None only where neither loss nor model needs the trie.
    level: str = dataclasses.field(metadata={"static": True})
    targets_per_batch: float = dataclasses.field(metadata={"static": True})
    config: LossConfig = dataclasses.field(metadata={"static": True})
    own: Any = None  # The user's own loss, see `load_loss`; None for one of the library's.
    pieces: TitledPieces | None = None  # Of a template that writes titles.

    def __call__(
        self, model: Any, batch: Any, key: jax.Array, loss_state: Any
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        """The loss `[]`, metrics, and the prefix weights of this step, if there are any."""
        self._check(model)
        of_batch = self._of_pairs if self.config.name == "apao_pairwise" else self._of_targets
        value, (metrics, loss_state) = of_batch(model, batch, key, loss_state)
        if item_share(model):
            # The tower shares no parameter with the rest, so each is trained as if it were alone.
            # Searches divide the logits of both by one temperature, that of MSL.
            of_tower = self._of_items(
                model.tower,
                batch,
                jax.random.fold_in(key, _OF_TOWER),
                self.config.tau if self.config.name == "msl" else None,
            )
            more, _ = cross_entropy(of_tower, self._weight(batch), self.targets_per_batch)
            value, metrics = value + more, {**metrics, "items/loss": more}
        return value, (metrics, loss_state)

    def _check(self, model: Any) -> None:
        """Raises TrainingError for a model that the loss is not made for."""
        name = self.config.name
        if scores_items(model) and name != "ce":
            raise TrainingError(
                f"loss {name!r} is one of codes, and this model scores whole items: use loss.name='ce'"
            )
        if scores_children(model) and self.own is not None:
            raise TrainingError(
                f"your own loss {name!r} takes logits over the vocabulary, and this model scores the trie's children: "
                "use another head"
            )
        if scores_children(model) and self.index is None:
            raise TrainingError("this model scores the trie's children: give its `index`")

    def _of_targets(self, model: Any, batch: Any, key: jax.Array, loss_state: Any):
        """Losses of the targets alone."""
        loss, weight = self.config, self._weight(batch)
        if scores_items(model):
            token_logp = self._of_items(model, batch, key)
        elif scores_children(model):
            states, targets = self._outputs(model, batch, key, "states")
            temperature = loss.tau if loss.name == "msl" else None
            token_logp = scored_log_probs(model, states, targets, self.index, temperature)
        else:
            logits, targets = self._outputs(model, batch, key, "logits")
            if self.own is not None:
                given = (logits, targets, weight, self.targets_per_batch, self.index)
                value, metrics = self.own(*given)
                return value, (jax.tree.map(jnp.asarray, dict(metrics)), loss_state)
            if loss.name == "msl":
                token_logp = masked_token_log_probs(logits, targets, self.index, loss.tau)
            else:
                token_logp = token_log_probs(logits, targets)
        losses = None
        if loss.name == "apao_pointwise":
            losses = pointwise_prefix_losses(token_logp, weight, self.targets_per_batch) / loss.tau
        return self._total(token_logp, weight, losses, loss_state)

    def _weight(self, batch: Any) -> jax.Array:
        """1 at targets, `[B]` or `[B, T - 1]`."""
        return batch["weight"] if self.level == "target" else batch["weight"][:, 1:]

    def _histories(self, model: Any, rows: jax.Array) -> Any:
        return histories_for(model, self.table, rows, self.pieces)

    def _outputs(
        self, model: Any, batch: Any, key: jax.Array, kind: str
    ) -> tuple[jax.Array, jax.Array]:
        """The model's "logits" or "states" `[..., L, V or D]` of the targets, and the targets' tokens `[..., L]`."""
        of_targets, of_items = getattr(model, f"target_{kind}"), getattr(model, f"sequence_{kind}")
        if self.level == "target":
            history = self._histories(model, batch["history"])
            targets = self.table[batch["target"]]
            return of_targets(history, targets, key=key), targets
        items = self._histories(model, batch["items"])
        return of_items(items, key=key), self.table[batch["items"]][:, 1:]

    def _of_items(
        self, model: Any, batch: Any, key: jax.Array, temperature: float | None = None
    ) -> jax.Array:
        """Log-probabilities `[..., 1]` of the target items, of a model that scores whole items."""
        if self.level == "target":
            history = self._histories(model, batch["history"])
            rows, states = batch["target"], model.last_state(history, key=key)
        else:
            items = self._histories(model, batch["items"])
            rows, states = batch["items"][:, 1:], model.item_states(items, key=key)[:, :-1]
        logits, rows = model.item_logits(states), jnp.maximum(rows, 0)
        return token_log_probs(logits, rows, temperature)[..., None]

    def _of_pairs(self, model: Any, batch: Any, key: jax.Array, loss_state: Any):
        """Cross-entropy of all targets, and pairwise prefix losses at the Q places that have negatives."""
        loss, weight = self.config, self._weight(batch)
        dropout_key, draw_key, place_key = jax.random.split(key, 3)
        of_places = weight[:, None] if self.level == "target" else weight
        rows, columns, place_weight = draw_places(place_key, of_places, loss.pairwise_share)
        drawn = jax.random.randint(
            draw_key, (len(rows), loss.num_negatives), 0, len(self.table) - 1
        )
        negatives = self.table[drawn]
        if self.level == "target":
            history = self._histories(model, batch["history"])
            targets, places = self.table[batch["target"]], (rows,)
            states, later = model.target_and_group_states(
                history, targets, rows, negatives[..., :-1], key=dropout_key
            )
        else:
            items, places = self._histories(model, batch["items"]), (rows, columns)
            targets = self.table[batch["items"]][:, 1:]
            states, later = model.sequence_and_group_states(
                items, rows, columns + 1, negatives[..., :-1], key=dropout_key
            )
        if scores_children(model):
            token_logp = scored_log_probs(model, states, targets, self.index)
            first = states[..., 0, :][places][:, None, None]
            first = jnp.broadcast_to(first, (*later.shape[:2], 1, later.shape[-1]))
            of_group = jnp.concatenate([first, later], axis=2)
            negative_logp = scored_log_probs(model, of_group, negatives, self.index)
        else:
            logits, later = model.logits(states), model.logits(later)
            token_logp = token_log_probs(logits, targets)
            negative_logp = group_token_log_probs(logits[..., 0, :][places], later, negatives)
        losses = pairwise_prefix_losses(
            token_logp[places],
            negative_logp,
            walk(self.index, targets[places]),
            walk(self.index, negatives),
            self.index.node_counts[1:],
            tau=loss.tau,
            weight=place_weight,
            normaliser=self.targets_per_batch,
        )
        if loss.all_first_codes:
            # The first prediction has all of them, so this is free and used at every target.
            if scores_children(model):
                exact = scored_log_probs(
                    model, states[..., :1, :], targets[..., :1], self.index, loss.tau
                )
            else:
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
        weighted = jnp.where(weights > 0, weights * losses, 0.0)  # Since 0 * inf is NaN.
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
    pieces: TitledPieces | None = None,
) -> SupervisedLoss:
    """The supervised loss of batches of item rows, for `make_train_step`.

    Args:
        tokens: tokens of every item `[N, L]`.
        level: "target": batches of `history [B, T]`, `target [B]`, `weight [B]` (interaction-level training);
            "user": batches of `items [B, T]`, `weight [B, T]` (user-level training).
        targets_per_batch: mean number of targets in a batch. It divides the loss, rather than each batch's own number,
            so that every target counts the same.
        loss: the loss; None for cross-entropy.
        index: the trie of the items, needed by MSL, the pairwise losses, your own loss, and models that score children.
        pieces: of a template that writes titles, see `gr.data.titled_pieces`.

    Raises:
        TrainingError: for an unknown level, a loss without the trie that it needs, pairwise losses for semantic IDs of
            one code, whose prefixes are the items themselves, or your own loss if it cannot be imported, traced or
            differentiated.
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
        index,
        level=level,
        targets_per_batch=float(targets_per_batch),
        config=loss,
        own=load_loss(loss.name, LOSSES, index, leading=1 + (level == "user"))
        if loss.is_own
        else None,
        pieces=jax.tree.map(jnp.asarray, pieces),
    )


def draw_places(
    key: jax.Array, weight: jax.Array, share: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws Q places of a batch; a weighted sum over them is an unbiased estimate of the sum over all.

    The draw is stratified: the real places, row by row, are cut into Q equal strata, and one place is drawn uniformly
    from each.

    Args:
        key: random key.
        weight: `[B, S]`, 1 at real places, 0 elsewhere.
        share: Q over B x S; Q is at least 1; static.

    Returns:
        Rows and columns of the places, `[Q]` int32 each, and their weights `[Q]`, which add up to the number of real
        places.
    """
    num = max(1, round(share * weight.size))
    real = weight.reshape(-1) > 0
    count = real.sum()
    strata = (jnp.arange(num) + jax.random.uniform(key, (num,))) / num
    wanted = jnp.minimum((strata * count).astype(jnp.int32), jnp.maximum(count - 1, 0))
    # Real place r is the first at which r + 1 real places have been counted.
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
