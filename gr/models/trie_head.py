"""The trie head: scores the children of a node, instead of all tokens of the vocabulary; what backbones share of it."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gr.models.backbone import ModelError
from gr.trie import NO_NODE, Nodes, TrieIndex, children, descend, node_rows, root

# Numbers in the children's vectors that are gathered at a time. On a CPU they should fit into a core's cache; elsewhere
# parts only bound the memory.
_GATHERED_ON_CPU = 1 << 17
_GATHERED = 1 << 26


class TrieHead(nnx.Module):
    """A child's logit is `state · (e_code + e_node)`: embeddings of its token, and of its node in the trie.

    A softmax over the children of a node spends no probability on codes that no item has, and the nodes' embeddings
    tell apart what one code means behind different prefixes. A node without an embedding is scored by its code alone:
    those of items that were added later, and, with `num_nodes` below the number of nodes, those of the depths beyond.
    So are nodes that were never trained on, whose embeddings stay 0.

    A first code stands for many unlike items, which one vector cannot be near to all at once. So the nodes of depth 1
    may have facets f besides, and log mean_f exp(state · f) is added to their logits: a mixture of softmaxes
    (arXiv 1711.03953) whose components are each near to a few of the items below.
    """

    def __init__(
        self,
        width: int,
        vocab_size: int,
        num_nodes: int,
        facets: tuple[int, int] = (0, 0),
        *,
        rngs: nnx.Rngs,
    ):
        """Initialises the head; `facets` are the number of facets, and of nodes of depth 1 that have them."""
        self.codes = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocab_size, width)))
        self.nodes = nnx.Param(jnp.zeros((num_nodes, width)))
        if min(facets) > 0:
            self.facets = nnx.Param(0.02 * jax.random.normal(rngs.params(), (*facets, width)))

    def score(
        self, hidden: jax.Array, tokens: jax.Array, rows: jax.Array, *, below_root: bool = False
    ) -> jax.Array:
        """Logits of children.

        Args:
            hidden: states of the prefixes `[..., D]`.
            tokens: their children's tokens `[..., K]`. With leading axes of size 1, all states share the children.
            rows: the children's `gr.trie.node_rows` `[..., K]`; `NO_NODE` for one without an embedding.
            below_root: whether none of them is a child of the root, so that none has facets.

        Returns:
            `[..., K]` float32; arbitrary where there is no child.
        """
        hidden, count = hidden.astype(jnp.float32), tokens.shape[-1]
        if tokens.size == count:
            tokens, rows = tokens.reshape(-1), rows.reshape(-1)
            logits = hidden @ self._vectors(tokens, rows).T
            return logits if below_root else logits + self._of_facets(hidden, rows)
        shape = (*hidden.shape[:-1], count)
        tokens, rows = (jnp.broadcast_to(x, shape).reshape(-1, count) for x in (tokens, rows))
        states = hidden.reshape(-1, hidden.shape[-1])
        logits = self._of_each(states, tokens, rows)
        if hasattr(self, "facets") and not below_root:
            logits = jax.lax.cond(
                self._has_facets(rows).any(),
                lambda logits: logits + self._of_facets(states, rows),
                lambda logits: logits,
                logits,
            )
        return logits.reshape(shape)

    def _has_facets(self, rows: jax.Array) -> jax.Array:
        return (rows >= 0) & (rows < self.facets.shape[1])

    def _of_facets(self, states: jax.Array, rows: jax.Array) -> jax.Array | float:
        """What facets add to the logits of children `[K]` of states `[..., D]`, or `[P, K]` of states `[P, D]`."""
        if not hasattr(self, "facets"):
            return 0.0
        known = self._has_facets(rows)
        rows = jnp.where(known, rows, 0)

        @jax.checkpoint  # Else a number of every facet and state is kept for the backward pass.
        def of_nodes(states: jax.Array, facets: jax.Array) -> jax.Array:
            count, first, width = facets.shape
            each = states @ facets.reshape(-1, width).T
            each = each.reshape(*states.shape[:-1], count, first)
            return jax.nn.logsumexp(each, axis=-2) - jnp.log(count)

        found = of_nodes(states, self.facets[...])
        found = found[..., rows] if rows.ndim == 1 else jnp.take_along_axis(found, rows, axis=-1)
        return jnp.where(known, found, 0.0)

    def _of_each(self, states: jax.Array, tokens: jax.Array, rows: jax.Array) -> jax.Array:
        """Logits `[P, K]` of the children `[P, K]` of each state `[P, D]`.

        Their vectors `[P, K, D]` are gathered for a part of the states at a time, again in the backward pass: so they
        stay in a CPU's cache, and the memory is bounded. A product with all nodes of a depth would need no gather, but
        is 3 to 5 times as slow, since a node has few children.
        """

        def one(state: jax.Array, tokens: jax.Array, rows: jax.Array) -> jax.Array:
            return self._vectors(tokens, rows) @ state

        def in_parts(numbers: int, *each: jax.Array) -> jax.Array:
            part = max(1, numbers // (tokens.shape[-1] * states.shape[-1]))
            if len(states) <= part:
                return jax.vmap(one)(*each)
            return jax.lax.map(lambda args: jax.checkpoint(one)(*args), each, batch_size=part)

        return jax.lax.platform_dependent(
            states,
            tokens,
            rows,
            cpu=functools.partial(in_parts, _GATHERED_ON_CPU),
            default=functools.partial(in_parts, _GATHERED),
        )

    def _vectors(self, tokens: jax.Array, rows: jax.Array) -> jax.Array:
        """The children's vectors `[..., K, D]`."""
        codes = self.codes[...].at[tokens].get(mode="clip")
        count = self.nodes.shape[0]
        if count == 0:
            return codes
        rows = jnp.where(rows == NO_NODE, count, rows)  # Out of range: 0.
        return codes + self.nodes[...].at[rows].get(mode="fill", fill_value=0.0)


class Headed:
    """What a backbone does with its `head`: a `TrieHead` if `config.head` is "trie", else logits over the vocabulary.

    The backbone offers `logits`, `target_states` and `sequence_states`.
    """

    @property
    def scores_children(self: Any) -> bool:
        """See `ChildScorer`."""
        return self.config.head == "trie"

    def score_children(
        self: Any,
        hidden: jax.Array,
        tokens: jax.Array,
        rows: jax.Array,
        *,
        below_root: bool = False,
    ) -> jax.Array:
        """See `ChildScorer.score_children` and `score_children_below`."""
        return self.head.score(hidden, tokens, rows, below_root=below_root)

    def target_logits(
        self: Any, history: Any, target: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """See `Trainable.target_logits`; not for the trie head."""
        return self.logits(self.target_states(history, target, key=key))

    def sequence_logits(self: Any, items: Any, *, key: jax.Array | None = None) -> jax.Array:
        """See `Trainable.sequence_logits`; not for the trie head."""
        return self.logits(self.sequence_states(items, key=key))

    def logits_or_none(self: Any, hidden: jax.Array) -> jax.Array | None:
        """Logits of hidden states, which a model that scores children does not have."""
        return None if self.scores_children else self.logits(hidden)


def check_head(config: Any, heads: tuple[str, ...] = ("vocabulary", "trie")) -> None:
    """Raises ModelError for a head that is unknown, or both tied and a trie head."""
    if config.head not in heads:
        raise ModelError(f"head={config.head!r} is unknown: use one of {', '.join(heads)}")
    if config.head == "trie" and getattr(config, "tied_head", False):
        raise ModelError(
            "tied_head=True is for head='vocabulary': the trie head has vectors of its own"
        )


def check_vocabulary_head(config: Any) -> None:
    """Raises ModelError unless there are logits over the vocabulary."""
    if config.head != "vocabulary":
        raise ModelError(
            f"head={config.head!r} has no logits over the vocabulary: use head='vocabulary'"
        )


def remap_nodes(model: Any, old: TrieIndex, new: TrieIndex) -> Any:
    """The model with the embeddings of its trie nodes moved to the rows of another trie, on the host.

    Needed when the trie is built anew, compacted or swapped, since rows are places in one trie. A prefix that both
    tries have keeps its embedding. Prefixes that are new get 0, so they are scored by their code alone.

    Args:
        model: a backbone with a trie head, and `num_nodes` in its config.
        old: the trie whose rows the model has now.
        new: the trie to be searched.

    Returns:
        A copy of the model; optimiser states are not moved.

    Raises:
        ModelError: for a model without a trie head, one whose rows are not those of `old`, or tries of different
            lengths.
    """
    if not isinstance(getattr(model, "head", None), TrieHead):
        raise ModelError(f"{type(model).__name__} has no trie head, whose nodes could be moved")
    if old.length != new.length:
        raise ModelError(
            f"the old trie has {old.length} codes, the new one {new.length}: train another model"
        )
    before = np.asarray(model.head.nodes[...])
    offsets = old.layout.node_offsets
    first = model.head.facets.shape[1] if hasattr(model.head, "facets") else 0
    if len(before) not in offsets or first not in offsets[:2]:
        raise ModelError(
            f"the model has {len(before)} node embeddings and facets of {first} first codes, and the depths of the old "
            f"trie end at rows {offsets}: pass the trie that it was trained on"
        )
    depth = offsets.index(len(before))
    moves = list(_rows_of_both(old, new, max(depth, 1)))

    def moved(before: np.ndarray, depth: int) -> np.ndarray:
        after = np.zeros((new.layout.node_offsets[depth], *before.shape[1:]), before.dtype)
        for old_rows, new_rows in moves[:depth]:
            after[new_rows] = before[old_rows]
        return after

    model, after = nnx.clone(model), moved(before, depth)
    sizes = {"num_nodes": len(after)}
    model.head.nodes = nnx.Param(jnp.asarray(after))
    if first:
        facets = moved(np.asarray(model.head.facets[...]).swapaxes(0, 1), 1).swapaxes(0, 1)
        model.head.facets = nnx.Param(jnp.asarray(facets))
        sizes["num_first"] = facets.shape[1]
    model.config = dataclasses.replace(model.config, **sizes)
    return model


def _rows_of_both(
    old: TrieIndex, new: TrieIndex, depth: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each of the first depths, the rows of the prefixes that both tries have."""
    in_old, in_new = root(old, (1,)), root(new, (1,))
    for level in range(depth):
        below, tokens = children(new, level, in_new)
        parents = jax.tree.map(lambda x, of=tokens: jnp.broadcast_to(x[:, None], of.shape), in_old)
        same = descend(old, level, parents, tokens)
        both = np.asarray(below.exist & same.exist)
        in_new, in_old = (Nodes(of.begin[both], of.end[both]) for of in (below, same))
        yield (
            np.asarray(node_rows(old, level + 1, in_old)),
            np.asarray(node_rows(new, level + 1, in_new)),
        )
