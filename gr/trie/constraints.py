"""Per-request constraints on what may be decoded, applied without rebuilding the index."""

import dataclasses

import jax
import jax.numpy as jnp

from gr.trie.index import NO_ITEM, NO_NODE, TrieIndex
from gr.trie.transitions import ancestors, slots_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExcludeItems:
    """Items that must not be decoded for each user, for example those already seen.

    A semantic ID shared by several items stays allowed while one of them is; the excluded ones are then left out
    of its item list. A prefix below which everything is excluded is a dead end and is not entered, so that beam
    search stays exact: with M >= N it ranks all allowed items. When nothing is left, no candidate is valid.
    """

    items: jax.Array  # [B, S] int32 item rows, `NO_ITEM`-padded; repeats do no harm.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeadNodes:
    """What an exclusion closes, made once per request by `dead_nodes` and used at every step."""

    slots: (
        jax.Array
    )  # [B, S] int32: distinct excluded slots, ascending; N (no slot) fills the rest.
    nodes: tuple[
        jax.Array, ...
    ]  # nodes[t] [B, S] int32: dead nodes of depth t + 1, `NO_NODE`-padded.


def dead_nodes(index: TrieIndex, constraint: ExcludeItems) -> DeadNodes:
    """The nodes below which every item is excluded: those whose slot interval the excluded slots fill."""
    none = index.num_items
    items = jnp.pad(constraint.items, ((0, 0), (0, 1)), constant_values=NO_ITEM)  # So that S >= 1.
    known = (items >= 0) & (items < none)
    slots = jnp.where(known, index.slot_of_item[jnp.where(known, items, 0)], none)
    slots = jnp.sort(slots, axis=-1)
    repeats = jnp.pad(slots[:, 1:] == slots[:, :-1], ((0, 0), (1, 0)))
    slots = jnp.sort(jnp.where(repeats, none, slots), axis=-1)
    dead = []
    for depth, nodes in enumerate(ancestors(index, jnp.minimum(slots, none - 1)), start=1):
        begin, end = slots_of(index, depth, nodes)
        search = jax.vmap(jnp.searchsorted)
        excluded = search(slots, end) - search(slots, begin)
        dead.append(jnp.where((slots < none) & (excluded == end - begin), nodes, NO_NODE))
    return DeadNodes(slots=slots, nodes=tuple(dead))


def close_children(
    index: TrieIndex, depth: int, nodes: jax.Array, scores: jax.Array, dead: DeadNodes
) -> jax.Array:
    """Sets the scores of dead children to minus infinity.

    Only the few dead nodes are looked at, not the many children: each finds the beam that holds its parent.

    Args:
        index: the trie.
        depth: depth t of `nodes`; static.
        nodes: `[B, M]`, distinct within a user, `NO_NODE` where there is no beam.
        scores: `[B, M, K]` of their children.
        dead: from `dead_nodes`.
    """
    closed = dead.nodes[depth]  # [B, S], at depth t + 1.
    first = index.first_child[depth]
    parent = (jnp.searchsorted(first, closed, side="right") - 1).astype(jnp.int32)
    holds = (nodes[:, :, None] == parent[:, None, :]) & (closed != NO_NODE)[:, None, :]
    user = jnp.arange(nodes.shape[0])[:, None]
    beam = jnp.where(holds.any(1), holds.argmax(1), nodes.shape[1])  # Out of range: dropped.
    return scores.at[user, beam, closed - first[parent]].set(-jnp.inf, mode="drop")


def remove_excluded(index: TrieIndex, items: jax.Array, dead: DeadNodes) -> jax.Array:
    """Replaces excluded items in the lists `[B, M, C]` by `NO_ITEM` and moves the rest to the front."""
    slots = jnp.where(
        items == NO_ITEM, NO_ITEM, index.slot_of_item[items]
    )  # Never among dead.slots.
    batch = items.shape[0]
    flat = slots.reshape(batch, -1)
    place = jax.vmap(jnp.searchsorted)(dead.slots, flat)
    place = jnp.minimum(place, dead.slots.shape[1] - 1)
    excluded = jnp.take_along_axis(dead.slots, place, axis=1) == flat
    items = jnp.where(excluded.reshape(items.shape), NO_ITEM, items)
    order = jnp.argsort(items == NO_ITEM, axis=-1, stable=True)
    return jnp.take_along_axis(items, order, axis=-1)
