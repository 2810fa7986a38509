"""The tree of a value-guided search: storage of a fixed size, and the choice of where it grows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import SearchTree

ROOT = 0  # The number of the empty prefix.
_SLACK = (
    1e-6  # By so much a prefix may be worse than the mean of its depth: rounding decides nothing.
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefixes:
    """What is kept of each prefix that was evaluated, `[B, C]` or `[B, C, ...]`.

    Letters: L code depth, S = L - 1, the depth of the longest prefixes; K places for the codes that may follow.
    """

    depths: jax.Array  # int32, 0..S.
    parents: jax.Array  # int32.
    paths: (
        jax.Array
    )  # [B, C, S] int32: number of the prefix of t codes at place t, 0 beyond its own depth.
    codes: jax.Array  # [B, C, S] int32: its tokens; 0 beyond its depth.
    log_probs: jax.Array  # Of all its codes, over the whole vocabulary.
    values: jax.Array  # V.
    entropies: jax.Array  # H.
    visits: jax.Array  # int32: N, prefixes below it.
    unexpanded: jax.Array  # int32: codes that may follow and were not tried; 0 at depth S.
    ways: jax.Array  # [B, C, K] int32: tokens that may follow.
    gains: (
        jax.Array
    )  # [B, C, K] their log-probabilities over the whole vocabulary; -inf where there is none.
    turns: (
        jax.Array
    )  # [B, C, K] the largest is tried next; -inf where there is none, or none any more.
    states: Any  # The source's.
    hidden: jax.Array  # [B, C, D].
    stored: Any  # The backbone's.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    """All prefixes of all users, each user's numbered as they were evaluated: a parent before its children."""

    prefixes: Prefixes
    size: jax.Array  # [B] int32: how many there are; places behind hold nothing of use.

    @property
    def exist(self) -> jax.Array:
        """Which places hold a prefix, `[B, C]` bool."""
        return jnp.arange(self.prefixes.depths.shape[1]) < self.size[:, None]


def empty(block: Prefixes, capacity: int) -> Tree:
    """A tree without prefixes, with room for `capacity` like those of the block."""
    batch = len(block.depths)
    prefixes = jax.tree.map(
        lambda part: jnp.zeros((batch, capacity, *part.shape[2:]), part.dtype), block
    )
    return Tree(prefixes, jnp.zeros(batch, jnp.int32))


def append(tree: Tree, block: Prefixes, exist: jax.Array) -> Tree:
    """The tree with a block of prefixes `[B, n]`, those that `exist [B, n]` coming first; there must be room for n."""

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        return jax.vmap(
            lambda w, p, start: jax.lax.dynamic_update_slice_in_dim(w, p, start, axis=0)
        )(whole, part, tree.size)

    prefixes = jax.tree.map(put, tree.prefixes, block)
    return Tree(prefixes, tree.size + exist.sum(axis=1, dtype=jnp.int32))


def numbers(tree: Tree, count: int) -> jax.Array:
    """The numbers `[B, count]` that the next prefixes will have."""
    return tree.size[:, None] + jnp.arange(count, dtype=jnp.int32)


def rows(array: jax.Array, places: jax.Array) -> jax.Array:
    """Rows of `[B, C, ...]` at `places [B, ...]`."""
    user = jnp.arange(len(places)).reshape(-1, *[1] * (places.ndim - 1))
    return array.at[user, places].get(mode="promise_in_bounds")


def counted(tree: Tree) -> Tree:
    """The tree with visits as if each prefix had been reached by its path."""
    prefixes = tree.prefixes
    above = jnp.arange(prefixes.paths.shape[-1]) < prefixes.depths[..., None]
    user = jnp.arange(len(tree.size))[:, None, None]
    visits = jnp.zeros_like(prefixes.visits)
    visits = visits.at[user, prefixes.paths].add((above & tree.exist[..., None]).astype(jnp.int32))
    return dataclasses.replace(tree, prefixes=dataclasses.replace(prefixes, visits=visits))


def can_grow(tree: Tree, limit: int) -> jax.Array:
    """Whether each user has prefixes left to evaluate, `[B]` bool, with at most `limit` in the tree."""
    return (tree.size < limit) & (tree.prefixes.unexpanded > 0).any(axis=1)


def select(
    tree: Tree,
    limit: int,
    width: int,
    *,
    entropy_weight: float,
    prior_weight: float,
    exploration: float,
) -> tuple[Tree, jax.Array, jax.Array, jax.Array]:
    """Chooses which prefixes grow by which codes.

    `width` choices a user one after another, each of which sees the visits of those before and tries another code.

    Args:
        tree: the tree, in which the codes will be marked as tried, and the visits counted.
        limit: most prefixes in a tree, those to come included.
        width: W.
        entropy_weight: lambda.
        prior_weight: of a prefix's log-probability.
        exploration: beta.

    Returns:
        The tree; numbers of the prefixes `[B, W]`, places of their codes `[B, W]`, and which of these choices there
        are, `[B, W]` bool, those that are coming first.
    """
    prefixes = tree.prefixes
    merit = prefixes.values + entropy_weight * prefixes.entropies
    merit = merit + prior_weight * prefixes.log_probs
    gate = merit >= _means(tree, merit) - _SLACK
    user = jnp.arange(len(merit))
    levels = prefixes.paths.shape[-1]

    def choose(carry: tuple, _: None) -> tuple[tuple, tuple]:
        turns, unexpanded, visits, size = carry
        # Where growth is allowed; where no prefix is good enough, the budget is not wasted.
        fit = (unexpanded > 0) & gate
        fit = jnp.where(fit.any(axis=1, keepdims=True), fit, unexpanded > 0)
        # Prefixes with such a one at or below them. Places of a path beyond its depth name the root, which is above.
        below = jnp.zeros_like(fit).at[user[:, None, None], prefixes.paths].max(fit[..., None])
        spread = jnp.sqrt(jnp.log(visits[:, :1] + 1.0) / (visits + 1.0))
        priority = merit + exploration * spread

        node = jnp.full(len(user), ROOT, jnp.int32)
        for _ in range(levels - 1):
            onward = (prefixes.parents == node[:, None]) & below
            onward = onward.at[:, ROOT].set(False)  # It is nobody's child.
            among = jnp.where(onward, priority, -jnp.inf)
            child = jnp.argmax(among, axis=1).astype(jnp.int32)
            stays = fit[user, node] & (priority[user, node] >= among[user, child])
            node = jnp.where(stays | ~onward.any(axis=1), node, child)

        there = (size < limit) & below[:, ROOT]
        place = jnp.argmax(turns[user, node], axis=1).astype(jnp.int32)
        turn = jnp.where(there, -jnp.inf, turns[user, node, place])
        more = there.astype(jnp.int32)
        path = jnp.where(
            jnp.arange(levels) <= prefixes.depths[user, node][:, None],
            prefixes.paths[user, node],
            -1,
        )
        on_path = (path[:, None, :] == jnp.arange(visits.shape[1])[:, None]).any(-1)
        carry = (
            turns.at[user, node, place].set(turn),
            unexpanded.at[user, node].add(-more),
            visits + on_path * more[:, None],
            size + more,
        )
        return carry, (node, place, there)

    carry = (prefixes.turns, prefixes.unexpanded, prefixes.visits, tree.size)
    carry, chosen = jax.lax.scan(choose, carry, None, length=width)
    turns, unexpanded, visits, _ = carry
    prefixes = dataclasses.replace(prefixes, turns=turns, unexpanded=unexpanded, visits=visits)
    return (dataclasses.replace(tree, prefixes=prefixes), *(x.T for x in chosen))


def _means(tree: Tree, merit: jax.Array) -> jax.Array:
    """For each prefix the mean merit of all of its user's prefixes of its depth, `[B, C]`."""
    means = jnp.zeros_like(merit)
    for depth in range(tree.prefixes.paths.shape[-1]):
        here = tree.exist & (tree.prefixes.depths == depth)
        total = jnp.where(here, merit, 0.0).sum(axis=1, keepdims=True)
        count = here.sum(axis=1, keepdims=True)
        means = jnp.where(here, total / jnp.maximum(count, 1), means)
    return means


def published(tree: Tree, limit: int) -> SearchTree:
    """What is of interest to others."""
    prefixes, exist = tree.prefixes, tree.exist
    last = jnp.maximum(prefixes.depths - 1, 0)[..., None]
    tokens = jnp.zeros_like(prefixes.depths)
    if prefixes.codes.shape[-1]:
        tokens = jnp.take_along_axis(prefixes.codes, last, axis=-1)[..., 0]
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
