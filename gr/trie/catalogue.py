"""`Catalogue`: everything that decoding and reinforcement learning need of the items, as one pytree."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gr.data.prompts import TitledPieces
from gr.semantic_ids.semantic_ids import PAD_TOKEN
from gr.trie.index import TrieIndex
from gr.trie.node_vectors import NodeVectors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Catalogue:
    """N items: their trie, their tokens and, for semantic rewards, their vectors; for prompts, their titles."""

    index: TrieIndex
    tokens: jax.Array  # [N + 1, L] int32, see `item_token_table`.
    item_vectors: jax.Array | None = None  # [N, E] float32, each of length 1 or 0.
    node_vectors: NodeVectors | None = None  # Means of the item vectors below each node.
    pieces: TitledPieces | None = None  # Of a template that writes titles.

    @staticmethod
    def build(
        index: TrieIndex,
        tokens: np.ndarray,
        item_vectors: np.ndarray | None = None,
        pieces: TitledPieces | None = None,
    ) -> Catalogue:
        """The catalogue of items with these tokens.

        Args:
            index: the trie of the items.
            tokens: of every item `[N, L]`.
            item_vectors: `[N, E]`, of length 1 or 0; None: no vectors.
            pieces: of a template that writes titles, of these items; None: there is none.
        """
        pieces = jax.tree.map(jnp.asarray, pieces)
        catalogue = Catalogue(index, item_token_table(tokens), pieces=pieces)
        return catalogue if item_vectors is None else catalogue.with_vectors(item_vectors)

    def with_vectors(self, item_vectors: np.ndarray) -> Catalogue:
        """The same items with vectors `[N, E]` of length 1 or 0.

        Raises:
            TrieError: if an item has no vector, or a number is not finite.
        """
        return dataclasses.replace(
            self,
            item_vectors=jnp.asarray(item_vectors, jnp.float32),
            node_vectors=NodeVectors.build(self.index, item_vectors),
        )


def item_token_table(tokens: np.ndarray) -> jax.Array:
    """Tokens `[N, L]` of every item plus a last row of padding, `[N + 1, L]`, which item row -1 (`NO_ITEM`) selects."""
    return jnp.asarray(np.pad(tokens, ((0, 1), (0, 0)), constant_values=PAD_TOKEN), jnp.int32)
