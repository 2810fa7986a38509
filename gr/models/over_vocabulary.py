"""`OverVocabulary`: a model that scores a trie's children, as one with logits over the vocabulary."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gr.models.backbone import (
    ModelError,
    check_no_tower,
    reads_items,
    score_children_below,
    scores_children,
)
from gr.trie import Nodes, TrieIndex, children, descend, node_rows, root


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlacedCache:
    """A model's cache, and the nodes of its beams."""

    cache: Any
    nodes: Nodes  # [B, M].
    depth: int = dataclasses.field(metadata={"static": True})  # Of the nodes.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OverVocabulary:
    """A `Backbone` whose logits are a `ChildScorer`'s log-probabilities; -inf for tokens that are no children.

    Searched with `normalise_over="vocabulary"` and no temperature, it gives each semantic ID the probability that the
    model gives it. Searching the model itself is faster: this is for what wants tokens, such as `MixedBackbone`.

    Raises:
        ModelError: for a model that does not score children.
    """

    model: Any
    index: TrieIndex  # In which the model was trained.

    def __post_init__(self) -> None:
        check_no_tower(self.model)
        if not scores_children(self.model):
            raise ModelError(
                f"{type(self.model).__name__} has logits over the vocabulary already: use it as it is"
            )

    @property
    def reads_items(self) -> bool:
        """Whether histories are `ItemHistory`."""
        return reads_items(self.model)

    def prefill(self, history: Any) -> tuple[jax.Array, jax.Array, PlacedCache]:
        """See `Backbone.prefill`."""
        _, hidden, cache = self.model.prefill(history)
        nodes = root(self.index, (len(hidden), 1))
        logits = self._log_probs(0, nodes, hidden[:, None])
        return logits[:, 0], hidden, PlacedCache(cache, nodes, 0)

    def step(
        self, tokens: jax.Array, cache: PlacedCache
    ) -> tuple[jax.Array, jax.Array, PlacedCache]:
        """See `Backbone.step`."""
        _, hidden, of_model = self.model.step(tokens, cache.cache)
        depth = cache.depth + 1
        nodes = descend(self.index, cache.depth, cache.nodes, tokens)
        return self._log_probs(depth, nodes, hidden), hidden, PlacedCache(of_model, nodes, depth)

    def reorder(self, cache: PlacedCache, parents: jax.Array) -> PlacedCache:
        """See `Backbone.reorder`."""
        nodes = jax.tree.map(lambda of: jnp.take_along_axis(of, parents, axis=1), cache.nodes)
        return PlacedCache(self.model.reorder(cache.cache, parents), nodes, cache.depth)

    def target_logits(
        self, history: Any, target: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Log-probabilities `[B, L, V]` before each code of one target `[B, L]` per history."""
        states = self.model.target_states(history, target, key=key)
        nodes, logits = root(self.index, (len(target),)), []
        for depth in range(self.index.length):
            logits.append(self._log_probs(depth, nodes, states[:, depth]))
            nodes = descend(self.index, depth, nodes, target[:, depth])
        return jnp.stack(logits, axis=1)

    def _log_probs(self, depth: int, nodes: Nodes, hidden: jax.Array) -> jax.Array:
        """Log-probabilities `[..., V]` behind nodes `[...]` of one depth with hidden states `[..., D]`."""
        if depth == 0:  # All users share the root's children.
            nodes = root(self.index, (1,) * nodes.exist.ndim)
        below, tokens = children(self.index, depth, nodes)
        rows = node_rows(self.index, depth + 1, below)
        scores = score_children_below(self.model, depth == 0, hidden, tokens, rows)
        scores = scores.astype(jnp.float32)
        exist = jnp.broadcast_to(below.exist, scores.shape)
        scores = jnp.where(exist, jax.nn.log_softmax(scores, axis=-1, where=exist), -jnp.inf)
        places = jnp.where(
            exist, tokens, self.index.vocab_size
        )  # Out of range where there is no child.
        nothing = jnp.full((*hidden.shape[:-1], self.index.vocab_size), -jnp.inf)
        return jnp.put_along_axis(nothing, places, scores, axis=-1, inplace=False, mode="drop")
