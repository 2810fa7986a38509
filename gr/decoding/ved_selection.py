"""Selection rules of a value-guided search: which prefixes grow, and which of their children are tried."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.top_k import first_largest, split, take_along, top_k
from gr.decoding.ved_config import VedConfig
from gr.decoding.ved_tree import EMPTY_PREFIX, Prefixes, Tree, rows

MANY = 8  # More levels run in a loop or all at once, to keep the program small.
# Tolerance below the mean of a depth, so that rounding decides nothing.
_SLACK = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """Children to be tried, `[B, n]` each; existing ones come first."""

    parents: jax.Array  # int32: numbers of the prefixes that grow.
    places: jax.Array  # int32: which of their children.
    exist: jax.Array  # bool.


def mark_tried(tree: Tree, choice: Choice) -> Tree:
    """Marks these children as tried; each counts as a visit of every prefix above it."""
    prefixes, user = tree.prefixes, jnp.arange(len(tree.size))[:, None]
    # Children that do not exist are written out of range.
    parents = jnp.where(choice.exist, choice.parents, prefixes.depths.shape[1])
    more = choice.exist.astype(jnp.int32)
    levels = jnp.arange(prefixes.paths.shape[-1])
    above = levels <= rows(prefixes.depths, choice.parents)[..., None]
    visits = prefixes.visits.at[user[..., None], rows(prefixes.paths, choice.parents)].add(
        more[..., None] * above
    )
    return dataclasses.replace(
        tree,
        prefixes=dataclasses.replace(
            prefixes,
            priority=prefixes.priority.at[user, parents, choice.places].set(-jnp.inf, mode="drop"),
            unexpanded=prefixes.unexpanded.at[user, parents].add(-more, mode="drop"),
            visits=visits,
        ),
    )


def beam(tree: Tree, depth: int | jax.Array, count: int, levels: int) -> Choice:
    """A step of a beam search: the `count` most probable children of the prefixes of one of the first `levels` depths.

    The tree holds nothing but the prefixes of the steps before, at most `count` of each depth behind the root.
    """
    first = slice(1 + count * (levels - 1))
    prefixes = tree.prefixes
    scores = prefixes.log_probs[:, first, None] + prefixes.child_log_probs[:, first]
    here = (tree.exist & (prefixes.depths == depth))[:, first, None]
    here &= prefixes.priority[:, first] > -jnp.inf
    return _largest(jnp.where(here, scores, -jnp.inf), count)


def behind(first: Choice, then: Choice) -> Choice:
    """The children of one choice, then those of another `[B, W]`; both together are at most W."""
    taken = first.exist.sum(axis=1, keepdims=True, dtype=jnp.int32)
    place = jnp.arange(then.exist.shape[1], dtype=jnp.int32)
    source = jnp.where(place < taken, place, first.exist.shape[1] + place - taken)
    return jax.tree.map(
        lambda *parts: take_along(jnp.concatenate(parts, axis=1), source), first, then
    )


def best_first(
    tree: Tree, config: VedConfig, begin: jax.Array, end: jax.Array
) -> tuple[Tree, Choice]:
    """The children `a` of all prefixes `s` with the highest V(s) + lambda H(s) + beta bonus(s) + rho log pi(s, a).

    The child's priority stands for its log-probability: it includes noise and crowding, if there are any. With V = 0
    and lambda = beta = 0 this searches the most probable prefixes. A user's children are chosen at once, at most W, and
    as many as take the tree from `begin [B]` prefixes to `end [B]`.
    """
    prefixes = tree.prefixes
    merit = _merits(tree, config.entropy_weight)
    if config.exploration:
        merit = merit + config.exploration * _bonus(prefixes.visits)
    priority = jnp.where(tree.exist[..., None], prefixes.priority, -jnp.inf)
    log_probs = prefixes.log_probs[..., None] + priority
    choice = _largest(merit[..., None] + config.prior_weight * log_probs, config.width)
    there = jnp.arange(choice.exist.shape[1]) < (end - begin)[:, None]
    choice = dataclasses.replace(choice, exist=choice.exist & there)
    return mark_tried(tree, choice), choice


def _largest(priority: jax.Array, count: int) -> Choice:
    """The `count` children of the highest priority `[B, C, K]`, which is -inf where there is none."""
    flat = jax.lax.collapse(priority, 1)
    best, chosen = top_k(flat, min(count, flat.shape[1]))
    return Choice(*split(chosen, priority.shape[-1]), best > -jnp.inf)


def descent(tree: Tree, config: VedConfig, begin: jax.Array, end: jax.Array) -> tuple[Tree, Choice]:
    """Descents from the root by U(s) = G(s) + beta sqrt(ln(N(root) + 1) / (N(s) + 1)), as published.

    Each user gets at most W choices one after another, and as many as take the tree from `begin [B]` prefixes to
    `end [B]`. Each sees the visits of those before and tries another child.

    Returns:
        The tree in which the children are marked as tried, and the visits counted; and the choice.
    """
    prefixes = tree.prefixes
    merit = _merits(tree, config.entropy_weight, config.prior_weight)
    gate = merit >= _means(tree, merit) - _SLACK
    step = functools.partial(_descend, tree, config, end, merit, gate, _lines(prefixes))
    none = jnp.zeros((config.width, len(begin)), jnp.int32)
    chosen = Choice(none, none, none > 0)
    carry = (prefixes.priority, prefixes.unexpanded, prefixes.visits, begin, chosen)
    # No more steps than some user needs.
    carry = jax.lax.fori_loop(0, (end - begin).max(), step, carry)
    priority, unexpanded, visits, _, chosen = carry
    prefixes = dataclasses.replace(
        prefixes, priority=priority, unexpanded=unexpanded, visits=visits
    )
    return dataclasses.replace(tree, prefixes=prefixes), jax.tree.map(jnp.transpose, chosen)


def _descend(
    tree: Tree,
    config: VedConfig,
    end: jax.Array,
    merit: jax.Array,
    gate: jax.Array,
    lines: tuple[jax.Array, ...],
    turn: jax.Array,
    carry: tuple,
) -> tuple:
    """One descent of each user. A step is made of few operations: on a TPU they take as long as there are many."""
    prefixes, user = tree.prefixes, jnp.arange(len(merit))
    priority, unexpanded, visits, size, chosen = carry
    # Where growth is allowed. If no prefix is good enough, any may grow, so that the budget is not wasted.
    fit = (unexpanded > 0) & gate
    fit = jnp.where(fit.any(axis=1, keepdims=True), fit, unexpanded > 0)
    below = _at_or_below(lines, fit)
    upper = merit + config.exploration * _bonus(visits)  # U, which is finite.
    mine = jnp.where(fit, upper, -jnp.inf)  # Where a descent may end.
    onward = jnp.where(below, upper, -jnp.inf)  # Where it may go through.
    number = jnp.arange(merit.shape[1], dtype=jnp.int32)
    parents = jnp.where(number == EMPTY_PREFIX, -1, prefixes.parents)  # The root is no child.

    def down(_: int, node: jax.Array) -> jax.Array:
        among = jnp.where(parents == node[:, None], onward, -jnp.inf)
        most, child = first_largest(among)
        stays = take_along(mine, node[:, None])[:, 0] >= most
        return jnp.where(stays, node, child)

    levels = prefixes.paths.shape[-1]
    node = repeated(down, levels - 1, jnp.full(len(user), EMPTY_PREFIX, jnp.int32))
    there = (size < end) & below[:, EMPTY_PREFIX]
    _, place = first_largest(rows(priority, node))
    more = there.astype(jnp.int32)
    on_path = _any(rows(line, node[:, None]) == number for line in lines)
    at_node = (number == node[:, None]).astype(jnp.int32)
    # A choice that is not there is written out of range.
    tried = jnp.where(there, node, merit.shape[1])
    choice = Choice(node, place, there)
    return (
        priority.at[user, tried, place].set(-jnp.inf, mode="drop"),
        unexpanded - at_node * more[:, None],
        visits + on_path * more[:, None],
        size + more,
        jax.tree.map(
            lambda turns, this: jax.lax.dynamic_update_index_in_dim(turns, this, turn, 0),
            chosen,
            choice,
        ),
    )


def _lines(prefixes: Prefixes) -> tuple[jax.Array, ...]:
    """Numbers of each prefix and of all above it, S of `[B, C]`; -1 where there are no more."""
    places = range(prefixes.paths.shape[-1])
    return tuple(
        jnp.where(place <= prefixes.depths, prefixes.paths[..., place], -1) for place in places
    )


def _at_or_below(lines: tuple[jax.Array, ...], fit: jax.Array) -> jax.Array:
    """Which prefixes have one that is `fit [B, C]` at or below them, by their `_lines`."""

    def by_writing(lines: tuple[jax.Array, ...], fit: jax.Array) -> jax.Array:
        user = jnp.arange(len(fit))[:, None]
        found = jnp.zeros_like(fit)
        for line in lines:
            named = jnp.where(line < 0, EMPTY_PREFIX, line)  # The root is above all.
            found = found.at[user, named].max(fit)
        return found

    def by_comparison(lines: tuple[jax.Array, ...], fit: jax.Array) -> jax.Array:
        """For a TPU, which writes one number after the other."""
        number = jnp.arange(fit.shape[1], dtype=jnp.int32)[:, None]
        return _any(jnp.where(fit, line, -1)[:, None] == number for line in lines).any(-1)

    return jax.lax.platform_dependent(lines, fit, tpu=by_comparison, default=by_writing)


def _any(masks: Iterable[jax.Array]) -> jax.Array:
    """Where any of some masks holds."""
    return functools.reduce(jnp.logical_or, masks)


def _merits(tree: Tree, entropy_weight: float, prior_weight: float = 0.0) -> jax.Array:
    """The merits G of all prefixes, `[B, C]`."""
    prefixes = tree.prefixes
    merit = prefixes.values + entropy_weight * prefixes.entropies
    return merit + prior_weight * prefixes.log_probs if prior_weight else merit


def _bonus(visits: jax.Array) -> jax.Array:
    """The exploration bonus of prefixes by their visits, `[B, C]`."""
    return jnp.sqrt(jnp.log(visits[:, :1] + 1.0) / (visits + 1.0))


def _means(tree: Tree, merit: jax.Array) -> jax.Array:
    """For each prefix, the mean merit of its user's prefixes at its depth, `[B, C]`."""

    def with_depth(depth: int | jax.Array, means: jax.Array) -> jax.Array:
        here = tree.exist & (tree.prefixes.depths == depth)
        total = jnp.where(here, merit, 0.0).sum(axis=1, keepdims=True)
        count = here.sum(axis=1, keepdims=True)
        return jnp.where(here, total / jnp.maximum(count, 1), means)

    return repeated(with_depth, tree.prefixes.paths.shape[-1], jnp.zeros_like(merit))


def repeated(step: Callable[[Any, Any], Any], count: int, carry: Any) -> Any:
    """`carry = step(i, carry)` for i = 0, 1, ..., `count` - 1; few steps are unrolled, many run in a loop."""
    if count > MANY:
        return jax.lax.fori_loop(0, count, step, carry)
    for place in range(count):
        carry = step(place, carry)
    return carry
