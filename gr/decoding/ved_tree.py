"""The tree of a value-guided search, in arrays of fixed size."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import SearchTree
from gr.trie.traced import traced_once

EMPTY_PREFIX = 0  # Its number.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefixes:
    """The evaluated prefixes, `[B, C]` or `[B, C, ...]` each.

    Letters: L code depth, S = L - 1, the depth of the longest prefixes; K places for a prefix's children.
    """

    depths: jax.Array  # int32, 0..S.
    parents: jax.Array  # int32.
    # [B, C, S] int32: number of the prefix of t codes at place t; 0 beyond its own depth.
    paths: jax.Array
    tokens: jax.Array  # [B, C, S] int32; 0 beyond its depth.
    log_probs: jax.Array  # Of all its codes; with a prior, of the mixture.
    values: jax.Array  # V.
    entropies: jax.Array  # H.
    visits: jax.Array  # int32: N, evaluated prefixes below it.
    unexpanded: jax.Array  # int32: children that are neither terminal nor in the tree yet.
    child_tokens: jax.Array  # [B, C, K] int32: tokens that may follow.
    child_log_probs: jax.Array  # [B, C, K]: their log-probabilities; -inf where there is none.
    terminal: jax.Array  # [B, C, K] bool: children that lead to one semantic ID, at no cost.
    priority: (
        jax.Array
    )  # [B, C, K]: the child with the largest is tried next; -inf: tried, or not to be tried.
    states: Any  # The source's.
    of_value: Any  # What the value head keeps.
    stored: Any  # The backbone's.
    # With a prior, the model's own: of the prefix, and [B, C, K] of its children behind it. None without a prior.
    model_log_probs: jax.Array | None
    child_model_log_probs: jax.Array | None
    nan: jax.Array  # [B, C] bool: whether its logits or its value were NaN.
    flawed: jax.Array  # [B, C] bool: whether there was NaN, a logit of +inf, or an infinite value.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    """All prefixes of all users, each user's numbered as they were evaluated: a parent before its children."""

    prefixes: Prefixes
    size: jax.Array  # [B] int32: number of prefixes; later places are unused.

    @property
    def exist(self) -> jax.Array:
        """Which places hold a prefix, `[B, C]` bool."""
        return jnp.arange(self.prefixes.depths.shape[1]) < self.size[:, None]


def empty(block: Prefixes, capacity: int, places: int) -> Tree:
    """An empty tree with room for `capacity` prefixes like those of the block, and `places` children of each."""

    def room(part: jax.Array, fill: Any = 0) -> jax.Array:
        return jnp.full((len(part), capacity, *part.shape[2:]), fill, part.dtype)

    def room_for_children(part: jax.Array, fill: Any = 0) -> jax.Array:
        return jnp.full((len(part), capacity, places), fill, part.dtype)

    prefixes = dataclasses.replace(
        jax.tree.map(room, block),
        child_tokens=room_for_children(block.child_tokens),
        child_log_probs=room_for_children(block.child_log_probs, -jnp.inf),
        terminal=room_for_children(block.terminal),
        priority=room_for_children(block.priority, -jnp.inf),
        child_model_log_probs=jax.tree.map(
            lambda part: room_for_children(part, -jnp.inf), block.child_model_log_probs
        ),
    )
    return Tree(prefixes, jnp.zeros(len(block.depths), jnp.int32))


def append(tree: Tree, block: Prefixes, exist: jax.Array) -> Tree:
    """Appends a block of prefixes `[B, n]`; those that `exist [B, n]` come first. There must be room for n.

    The block may have fewer places for children than the tree.
    """

    prefixes = jax.tree.map(lambda whole, part: _put(whole, part, tree.size), tree.prefixes, block)
    return Tree(prefixes, tree.size + exist.sum(axis=1, dtype=jnp.int32))


def settled(tree: Tree, states: Any) -> Any:
    """The source's states `[B, n]` of the next prefixes, as they are.

    On a CPU they go by way of the tree. Else its compiler makes the search for a state part of whatever lists the
    children, and does it once for each child.
    """

    def through(tree: Tree, states: Any) -> Any:
        kept = jax.tree.map(lambda w, part: _put(w, part, tree.size), tree.prefixes.states, states)
        mine = numbers(tree, jax.tree.leaves(states)[0].shape[1])
        return jax.tree.map(lambda whole: rows(whole, mine), kept)

    return jax.lax.platform_dependent(
        tree, states, cpu=through, default=lambda tree, states: states
    )


@traced_once
def _put(whole: jax.Array, part: jax.Array, first: jax.Array) -> jax.Array:
    """`whole [B, C, ...]` with `part [B, n, ...]` from place `first [B]` on; its last axis may be shorter."""
    return jax.lax.platform_dependent(whole, part, first, tpu=_put_by_rows, default=_put_by_slices)


def _put_by_slices(whole: jax.Array, part: jax.Array, first: jax.Array) -> jax.Array:
    return jax.vmap(
        lambda w, p, first: jax.lax.dynamic_update_slice(w, p, (first, *[0] * (w.ndim - 1)))
    )(whole, part, first)


def _put_by_rows(whole: jax.Array, part: jax.Array, first: jax.Array) -> jax.Array:
    """For a TPU, which would write one user's slice after the other, and parts of rows too."""
    missing = [(0, size - mine) for size, mine in zip(whole.shape[2:], part.shape[2:], strict=True)]
    no_child = -jnp.inf if jnp.issubdtype(part.dtype, jnp.floating) else 0
    part = jnp.pad(part, [(0, 0), (0, 0), *missing], constant_values=no_child)
    user = jnp.arange(len(part))[:, None]
    places = first[:, None] + jnp.arange(part.shape[1], dtype=jnp.int32)
    return whole.at[user, places].set(
        part, mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True
    )


def numbers(tree: Tree, count: int) -> jax.Array:
    """The numbers `[B, count]` that the next prefixes will have."""
    return tree.size[:, None] + jnp.arange(count, dtype=jnp.int32)


def rows(array: jax.Array, places: jax.Array) -> jax.Array:
    """Rows of `[B, C, ...]` at `places [B, ...]`."""
    user = jnp.arange(len(places)).reshape(-1, *[1] * (places.ndim - 1))
    return array.at[user, places].get(mode="promise_in_bounds")


def can_grow(tree: Tree, limit: int) -> jax.Array:
    """Whether each user has prefixes left to evaluate, `[B]` bool, with at most `limit` in the tree."""
    return (tree.size < limit) & (tree.prefixes.unexpanded > 0).any(axis=1)


def public_view(tree: Tree, limit: int) -> SearchTree:
    """The public view of the tree."""
    prefixes, exist = tree.prefixes, tree.exist
    last = jnp.maximum(prefixes.depths - 1, 0)[..., None]
    tokens = jnp.zeros_like(prefixes.depths)
    if prefixes.tokens.shape[-1]:
        tokens = jnp.take_along_axis(prefixes.tokens, last, axis=-1)[..., 0]
    fields = {
        "parents": prefixes.parents,
        "tokens": tokens,
        "depths": prefixes.depths,
        "log_probs": prefixes.log_probs,
        "values": prefixes.values,
        "entropies": prefixes.entropies,
        "visits": prefixes.visits,
    }
    fields = {name: jnp.where(exist, array, 0)[:, :limit] for name, array in fields.items()}
    return SearchTree(exist=exist[:, :limit], **fields)
