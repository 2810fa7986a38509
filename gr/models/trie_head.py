"""The trie head: scores the children of a node, instead of all tokens of the vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx

from gr.trie import NO_NODE


class TrieHead(nnx.Module):
    """A child's logit is `state · (e_code + e_node)`: embeddings of its token, and of its node in the trie.

    A softmax over the children of a node spends no probability on codes that no item has, and the nodes' embeddings
    tell apart what one code means behind different prefixes. A node without an embedding is scored by its code alone:
    those of items that were added later, and, with `num_nodes` below the number of nodes, those of the depths beyond.
    So are nodes that were never trained on, whose embeddings stay 0.
    """

    def __init__(self, width: int, vocab_size: int, num_nodes: int, *, rngs: nnx.Rngs):
        self.codes = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocab_size, width)))
        self.nodes = nnx.Param(jnp.zeros((num_nodes, width)))

    def score(self, hidden: jax.Array, tokens: jax.Array, rows: jax.Array) -> jax.Array:
        """Logits of children.

        Args:
            hidden: states of the prefixes `[..., D]`.
            tokens: their children's tokens `[..., K]`. With leading axes of size 1, all states share the children.
            rows: the children's `gr.trie.node_rows` `[..., K]`; `NO_NODE` for one without an embedding.

        Returns:
            `[..., K]` float32; arbitrary where there is no child.
        """
        hidden = hidden.astype(jnp.float32)
        if tokens.size == tokens.shape[-1]:
            return hidden @ self._vectors(tokens.reshape(-1), rows.reshape(-1)).T
        return (self._vectors(tokens, rows) * hidden[..., None, :]).sum(-1)

    def _vectors(self, tokens: jax.Array, rows: jax.Array) -> jax.Array:
        """The children's vectors `[..., K, D]`."""
        codes = self.codes[...].at[tokens].get(mode="clip")
        count = self.nodes.shape[0]
        if count == 0:
            return codes
        known = (rows != NO_NODE) & (rows < count)
        nodes = self.nodes[...].at[jnp.where(known, rows, 0)].get(mode="promise_in_bounds")
        return codes + jnp.where(known[..., None], nodes, 0.0)
