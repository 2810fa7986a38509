"""Moves on the trie, on the device: the children of nodes, the nodes of prefixes, the items of leaves."""

import jax
import jax.numpy as jnp

from gr.trie.index import NO_ITEM, NO_NODE, ROOT, TrieIndex


def children(
    index: TrieIndex, depth: int, nodes: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """All children of nodes of one depth, in token order.

    Args:
        index: the trie.
        depth: depth t of `nodes`, 0..L-1; static.
        nodes: `[...]` int32; `NO_NODE` has no children.

    Returns:
        Their node numbers at depth t + 1, their tokens, and which of the K = `branching[t]` places are children,
        each `[..., K]`; where there is no child, number and token are those of some other node.
    """
    first = index.first_child[depth]
    node = jnp.maximum(nodes, ROOT)
    begin, end = first[node], jnp.where(nodes == NO_NODE, 0, first[node + 1])
    child = begin[..., None] + jnp.arange(index.branching[depth], dtype=jnp.int32)
    exists = child < end[..., None]
    child = jnp.minimum(child, index.tokens[depth].shape[0] - 1)
    return child, index.tokens[depth][child], exists


def walk(index: TrieIndex, tokens: jax.Array) -> jax.Array:
    """The node of every prefix of semantic IDs, found by binary search among each node's sorted children.

    Args:
        index: the trie.
        tokens: `[..., t]` with t <= L.

    Returns:
        `[..., t]` int32: the node of depth 1..t of each prefix, `NO_NODE` where the trie has no such prefix.
    """
    node = jnp.full(tokens.shape[:-1], ROOT, jnp.int32)
    exists = jnp.ones(tokens.shape[:-1], bool)
    nodes = []
    for depth in range(tokens.shape[-1]):
        first, level = index.first_child[depth], index.tokens[depth]
        token = tokens[..., depth]
        low, end = first[node], first[node + 1]
        high = end
        for _ in range(index.branching[depth].bit_length()):
            middle = (low + high) // 2
            below = (level[jnp.minimum(middle, level.shape[0] - 1)] < token) & (low < high)
            low, high = jnp.where(below, middle + 1, low), jnp.where(below, high, middle)
        found = jnp.minimum(low, level.shape[0] - 1)
        exists = exists & (low < end) & (level[found] == token)
        node = jnp.where(exists, found, ROOT)
        nodes.append(jnp.where(exists, found, NO_NODE))
    return jnp.stack(nodes, axis=-1)


def slots_of(index: TrieIndex, depth: int, nodes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The interval `[begin, end)` of slots, and so of items, below each node of `depth` (0..L), `[...]` each."""
    begin, end = nodes, nodes + 1
    for first in (*index.first_child[depth:], index.first_slot):
        begin, end = first[begin], first[end]
    return begin, end


def ancestors(index: TrieIndex, slots: jax.Array) -> list[jax.Array]:
    """The nodes of depth 1..L above each slot, `[...]` int32 each."""
    node = _owner(index.first_slot, slots)
    nodes = [node]
    for first in reversed(index.first_child[1:]):
        node = _owner(first, node)
        nodes.append(node)
    return nodes[::-1]


def items_of_leaves(index: TrieIndex, leaves: jax.Array) -> jax.Array:
    """Item rows `[..., C]` of leaves `[...]`, C = `max_items_per_leaf`, `NO_ITEM`-padded, in row order."""
    slot = index.first_slot[leaves][..., None] + jnp.arange(index.max_items_per_leaf)
    shares = slot < index.first_slot[leaves + 1][..., None]
    return jnp.where(shares, index.item_of_slot[jnp.minimum(slot, index.num_items - 1)], NO_ITEM)


def _owner(first: jax.Array, position: jax.Array) -> jax.Array:
    """Which of the consecutive intervals that start at `first` holds `position`."""
    return (jnp.searchsorted(first, position, side="right") - 1).astype(jnp.int32)
