"""The protocols that a model implements for decoding and losses."""

import dataclasses
import inspect
from typing import Any, NamedTuple, Protocol

import jax

from gr.errors import GrError


class ModelError(GrError):
    """Raised for invalid model settings or inputs; the message names the field and the remedy."""


_MAY_BE_ZERO = ("num_nodes", "num_first", "num_facets", "num_text_tokens", "start_token")


def check_sizes(config: Any) -> None:
    """Checks the fields that both backbones' configs share.

    Raises:
        ModelError: naming the first invalid field.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        least = 0 if field.name in _MAY_BE_ZERO else 1
        if field.type in (int, "int") and value < least:
            raise ModelError(f"{field.name}={value} must be at least {least}")
        if field.name.endswith("dropout") and not 0 <= value < 1:
            raise ModelError(f"{field.name}={value} must lie in [0, 1)")
    if config.dtype == "float16":
        raise ModelError(
            "dtype='float16' is not offered: its gradients vanish below 6e-8 and overflow above 65504, and losses are "
            "not scaled here; use bfloat16"
        )
    if config.dtype not in ("float32", "bfloat16"):
        raise ModelError(f"dtype={config.dtype!r} is unknown: use float32 or bfloat16")


class Backbone(Protocol):
    """A model that generates semantic IDs code by code; the whole interface between a decoder and a model.

    Must be a pytree (every `nnx.Module` is), so that it passes through `jit`. `history` and `cache` are opaque to the
    decoder. Letters: B users, M beams, V vocabulary, D width.

    Outputs are checked when a search is traced: a tuple of three, with floating-point logits that cover at least the
    index's vocabulary. A logit of -inf means that a token is impossible; NaN and +inf are reported in
    `Candidates.bad_step`.
    """

    def prefill(self, history: Any) -> tuple[jax.Array, jax.Array, Any]:
        """Encodes each user's history once: logits of the first code `[B, V]`, hidden `[B, D]`, cache."""
        ...

    def step(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
        """Appends `tokens [B, M]`: logits of the next code `[B, M, V]`, hidden `[B, M, D]`, cache."""
        ...

    def reorder(self, cache: Any, parents: jax.Array) -> Any:
        """The cache of the beams `parents [B, M']` (indices into the beams of the last step, 0 after `prefill`)."""
        ...


class ChildScorer(Protocol):
    """A backbone that scores the children it is asked for, instead of all tokens of the vocabulary.

    It says so by `scores_children`. Its `prefill` and `step` are those of `Backbone`, with None in place of logits; a
    search lists the children of its prefixes in the trie, asks for their logits, and normalises over them. So the model
    needs no output of the vocabulary's width, and may know the trie's nodes apart. Losses ask in the same way.

    Letters: see `Backbone`; K children of a prefix.
    """

    scores_children: bool  # True.

    def prefill(self, history: Any) -> tuple[None, jax.Array, Any]:
        """Encodes each user's history once: None, hidden `[B, D]`, cache."""
        ...

    def step(self, tokens: jax.Array, cache: Any) -> tuple[None, jax.Array, Any]:
        """Appends `tokens [B, M]`: None, hidden `[B, M, D]`, cache."""
        ...

    def reorder(self, cache: Any, parents: jax.Array) -> Any:
        """See `Backbone.reorder`."""
        ...

    def score_children(self, hidden: jax.Array, tokens: jax.Array, rows: jax.Array) -> jax.Array:
        """Logits `[..., K]` of children of the prefixes with these hidden states.

        Args:
            hidden: `[..., D]`.
            tokens: the children's tokens `[..., K]`; leading axes may be 1 where all prefixes have the same children.
            rows: their `gr.trie.node_rows` in the trie that the model was trained on; `gr.trie.NO_NODE` (-1) where
                there is no child, or one that was added to the trie since.
        """
        ...

    # For losses, in place of the logits of `Trainable`; its groups' states are used as they are.

    def target_states(
        self, history: Any, target: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The states `[B, L, D]` before each token of one target `[B, L]` per history."""
        ...

    def sequence_states(self, items: Any, *, key: jax.Array | None = None) -> jax.Array:
        """The states `[B, T - 1, L, D]` before each token of items 1..T-1 of each sequence."""
        ...


def scores_children(model: Any) -> bool:
    """Whether a model is a `ChildScorer`."""
    return bool(getattr(model, "scores_children", False))


def score_children_below(
    model: Any, root: bool, hidden: jax.Array, tokens: jax.Array, rows: jax.Array
) -> jax.Array:
    """`score_children` of a model, where it is known whether any of the children may be one of the root's.

    If not, a model whose `score_children` takes `below_root` is told so: what only the root's children have, such as
    facets, then costs nothing.
    """
    if root or "below_root" not in inspect.signature(model.score_children).parameters:
        return model.score_children(hidden, tokens, rows)
    return model.score_children(hidden, tokens, rows, below_root=True)


def scores_items(model: Any) -> bool:
    """Whether a model scores whole items: `last_state(history) [B, D]`, `item_logits(states) [..., N]`."""
    return bool(getattr(model, "scores_items", False))


def item_share(model: Any) -> float:
    """The share of a softmax over whole items in a model's distribution; 0 for most models.

    Such a model gives an item `(1 - share) P_codes + share P_items`. Its `tower` scores whole items from the same
    histories, see `scores_items`. Searches mix the two; losses and log-probabilities of codes are those of P_codes.
    """
    return getattr(model, "item_share", 0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodesAlone:
    """A model without its item tower: what its searches find is ranked by P_codes."""

    model: Any
    item_share = 0.0

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # While a copy is made.
            raise AttributeError(name)
        return getattr(self.model, name)


def check_no_tower(model: Any) -> None:
    """Raises ModelError for a model with an item tower, where only codes are looked at."""
    if item_share(model):
        raise ModelError(
            f"{type(model).__name__} has an item tower of share {item_share(model)}, which would be left out here: "
            "give gr.models.codes_alone(model)"
        )


def codes_alone(model: Any) -> Any:
    """The model without its item tower, if it has one; see `item_share`."""
    return CodesAlone(model) if item_share(model) else model


class ItemHistory(NamedTuple):
    """Histories for a backbone that knows items, which says so by `reads_items`: item rows beside their tokens."""

    rows: jax.Array  # [B, T] int32, oldest first, right-padded with -1.
    tokens: jax.Array  # [B, T, L] int32, 0 at padding.


def reads_items(model: Any) -> bool:
    """Whether a model's histories are `ItemHistory`, instead of tokens alone."""
    return bool(getattr(model, "reads_items", False))


class TreeBackbone(Backbone, Protocol):
    """A backbone that can also continue prefixes of different depths at once, as a tree search does.

    For every prefix of its tree the search stores what its step added (`latest`). From that, `assemble` makes a cache
    for the prefixes to continue, of any depths. Letters: C prefixes of a user in the tree, W of them continued.
    """

    def latest(self, cache: Any) -> Any:
        """What the last step, or `prefill`, added for each beam: a pytree of arrays `[B, M, ...]`."""
        ...

    def assemble(self, cache: Any, stored: Any, paths: jax.Array, depths: jax.Array) -> Any:
        """The cache of W beams a user whose prefixes have different depths, for one `step`.

        Args:
            cache: any cache of these users, such as that of `prefill`; only its parts per user are used.
            stored: results of `latest`, `[B, C, ...]`.
            paths: `[B, W, S]` int32: `paths[..., t]` is the place in `stored` of the prefix of t codes; anything in
                range for t > depth.
            depths: `[B, W]` int32: codes of each prefix, 0..S-1.
        """
        ...


class Trainable(Protocol):
    """A model that losses can train. `key` is for dropout, None for none; `logits` turns states into logits.

    Histories are tokens `[B, T, L]`, oldest first, right-padded with 0. In a *group* n candidates continue one
    history, which is encoded once (Prefix Grouper, arXiv 2506.05433). The first S tokens of each candidate are given; S
    = L - 1 is enough to score all L. The state behind each of them is returned. The state that predicts the first code
    is the same for the whole group.
    """

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[..., V]` float32 of hidden states `[..., D]`."""
        ...

    def target_logits(
        self, history: jax.Array, target: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Teacher-forced logits `[B, L, V]` of one target `[B, L]` per history (interaction-level training)."""
        ...

    def sequence_logits(self, items: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Teacher-forced logits `[B, T - 1, L, V]` of items 1..T-1 of each `[B, T, L]` (user-level training)."""
        ...

    def group_states(
        self, history: jax.Array, codes: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """A group `codes [B, n, S]` for each history: its first state `[B, D]`, the others `[B, n, S, D]`."""
        ...

    def target_and_group_states(
        self,
        history: jax.Array,
        target: jax.Array,
        rows: jax.Array,
        codes: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """States of one target per history, and of candidates in place of Q of the targets.

        Args:
            history: see the class.
            target: tokens `[B, L]`.
            rows: histories that have candidates `[Q]`.
            codes: the candidates `[Q, n, S]`.
            key: see the class.

        Returns:
            `[B, L, D]`, of which `logits` makes `target_logits`, and `[Q, n, S, D]`; the group's first state is the
            target's own.
        """
        ...

    def sequence_and_group_states(
        self,
        items: jax.Array,
        rows: jax.Array,
        places: jax.Array,
        codes: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """States of the items of each sequence, and of candidates that might have stood at Q places of the batch.

        Args:
            items: sequences `[B, T, L]`, padded as histories are.
            rows: sequences of the places `[Q]`, 0..B-1.
            places: their indices `[Q]` into these sequences, 1..T-1.
            codes: the candidates `[Q, n, S]`.
            key: see the class.

        Returns:
            `[B, T - 1, L, D]`, of which `logits` makes `sequence_logits`, and `[Q, n, S, D]`; the group's first state
            is that of the item at its place.
        """
        ...
