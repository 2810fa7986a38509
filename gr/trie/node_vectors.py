"""`NodeVectors`: the mean item vector below any node of the trie, in two gathers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gr.trie.index import TrieIndex
from gr.trie.layout import TrieError
from gr.trie.transitions import Nodes, check_prefixes, descend, root, slots_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NodeVectors:
    """Running sums of item vectors over the slots of an index; they give the sum below any node.

    The items below a node have consecutive slots, so their sum is a difference of two running sums. In float32 that
    difference would be lost at scale: after 10 million slots a running sum of unit vectors has an error of about 1, as
    large as one item's whole vector. So each running sum is computed in float64 and stored as two float32 numbers,
    `high + low`. The difference of the high parts is the more exact, the smaller a node's sum is, and the low parts are
    small. Only float32's rounding of the result remains.
    """

    high: jax.Array  # [max_items + 1, E] float32.
    low: jax.Array  # [max_items + 1, E] float32: what `high` lacks.
    fingerprint: jax.Array  # That of the index.

    @staticmethod
    def build(index: TrieIndex, vectors: np.ndarray) -> "NodeVectors":
        """Sums item vectors in the order of the slots, on the host.

        Args:
            index: the trie.
            vectors: `[N, E]`, row i for item i of the index; with rows of length 1, `mean` is a mean of directions.

        Raises:
            TrieError: if an item has no row, or there are numbers that are not finite.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise TrieError(f"vectors must be finite numbers [N, E], got shape {vectors.shape}")
        items = np.asarray(index.item_of_slot[jnp.arange(index.num_items)])
        if items.max() >= len(vectors):
            raise TrieError(
                f"vectors has {len(vectors)} rows, but the index holds item {items.max()}: "
                "give one row an item"
            )
        high = np.zeros((index.layout.max_items + 1, vectors.shape[1]), np.float32)
        low = np.zeros_like(high)
        for column in range(vectors.shape[1]):  # One column at a time, to save memory in float64.
            sums = np.cumsum(vectors[items, column], dtype=np.float64)
            high[1 : len(items) + 1, column] = sums
            low[1 : len(items) + 1, column] = sums - high[1 : len(items) + 1, column]
        return jax.device_put(NodeVectors(high, low, index.fingerprint))

    def mean(self, index: TrieIndex, depth: int, nodes: Nodes) -> jax.Array:
        """Mean vectors `[..., E]` float32 of the items below nodes `[...]` of `depth` 0..L; 0 where there is no node.

        Each item counts once, also those that share a semantic ID. On another index of the same size, all are NaN.

        Raises:
            TrieError: on an index of another size.
        """
        if len(self.high) != index.layout.max_items + 1:
            raise TrieError("the NodeVectors were made for another index: build them for this one")
        begin, end = slots_of(index, depth, nodes)
        begin, end = (jnp.where(nodes.exist, slots, 0) for slots in (begin, end))
        total = (self.high[end] - self.high[begin]) + (self.low[end] - self.low[begin])
        belongs = (self.fingerprint == index.fingerprint).all()
        return jnp.where(belongs, total / jnp.maximum(end - begin, 1)[..., None], jnp.nan)

    def of_prefixes(self, index: TrieIndex, tokens: jax.Array) -> jax.Array:
        """Mean vectors of the items below every prefix of semantic IDs.

        Args:
            index: the trie.
            tokens: `[..., t]` with t <= L.

        Returns:
            `[..., t, E]` float32 for prefixes of 1..t tokens, 0 where the trie has no such prefix.
        """
        tokens = check_prefixes(index, tokens)
        nodes = root(index, tokens.shape[:-1])
        means = []
        for depth in range(tokens.shape[-1]):
            nodes = descend(index, depth, nodes, tokens[..., depth])
            means.append(self.mean(index, depth + 1, nodes))
        if not means:
            return jnp.zeros((*tokens.shape, self.high.shape[1]), jnp.float32)
        return jnp.stack(means, axis=-2)
