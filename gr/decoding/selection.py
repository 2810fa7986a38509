"""Where the tree of a value-guided search grows: rules that choose prefixes, and the codes they grow by."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import DecodingError
from gr.decoding.top_k import split, top_k
from gr.decoding.tree import ROOT, Tree, rows

DESCENT = "descent"
BEST_FIRST = "best_first"
SELECTIONS = (DESCENT, BEST_FIRST)

MANY = 8  # More levels than these are handled in a loop, or all at once, lest the program grow with them.
_SLACK = (
    1e-6  # By so much a prefix may be worse than the mean of its depth: rounding decides nothing.
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """What counts beside V; static under `jit`."""

    entropy: float  # lambda, of H in nats.
    prior: float  # rho, of log-probabilities.
    exploration: float  # beta, of the bonus for few visits.


def check_selection(selection: str, weights: Weights) -> None:
    """Raises DecodingError unless there is such a rule, and the weights are numbers that suit it."""
    for name in ("entropy", "exploration", "prior"):
        if not math.isfinite(getattr(weights, name)):
            raise DecodingError(f"weights must be finite, got {weights}")
    if selection not in SELECTIONS:
        raise DecodingError(
            f"selection={selection!r} is unknown: use one of {', '.join(SELECTIONS)}"
        )
    if selection == BEST_FIRST and not weights.prior > 0:
        raise DecodingError(
            f"selection={BEST_FIRST!r} tries codes in the order of their log-probabilities: prior_weight "
            f"must be above 0, got {weights.prior}"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """Codes to be tried, `[B, n]` each, those that exist coming first."""

    parents: jax.Array  # int32: numbers of the prefixes that grow.
    places: jax.Array  # int32: which of their codes.
    exist: jax.Array  # bool.


def taken(tree: Tree, choice: Choice) -> Tree:
    """The tree in which these codes were tried, each of them a visit of every prefix above it."""
    prefixes, user = tree.prefixes, jnp.arange(len(tree.size))[:, None]
    # What does not exist is written beside the tree.
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
            turns=prefixes.turns.at[user, parents, choice.places].set(-jnp.inf, mode="drop"),
            unexpanded=prefixes.unexpanded.at[user, parents].add(-more, mode="drop"),
            visits=visits,
        ),
    )


def beam(tree: Tree, depth: int | jax.Array, count: int) -> tuple[Tree, Choice]:
    """A step of a beam search: the `count` most probable codes that may follow the prefixes of one depth."""
    prefixes = tree.prefixes
    scores = prefixes.log_probs[..., None] + prefixes.gains
    here = (tree.exist & (prefixes.depths == depth))[..., None] & (prefixes.turns > -jnp.inf)
    choice = _largest(jnp.where(here, scores, -jnp.inf), count)
    return taken(tree, choice), choice


def best_first(tree: Tree, limit: int, count: int, weights: Weights) -> tuple[Tree, Choice]:
    """The codes `a` of all prefixes `s` with the highest V(s) + lambda H(s) + beta spread(s) + rho log pi(s, a).

    For the probability of the code itself its turn is taken, with noise and crowding if there are any. V = 0, lambda =
    beta = 0 leave the search of the most probable prefixes.

    Args:
        tree: see `descent`, also for the arguments below.
        limit: most prefixes in a tree.
        count: W, codes a user. They are chosen at once.
        weights: rho > 0, so that the codes of one prefix come in their turns.
    """
    prefixes = tree.prefixes
    worth = _merits(tree, dataclasses.replace(weights, prior=0.0))
    if weights.exploration:
        worth = worth + weights.exploration * _spread(prefixes.visits)
    turns = jnp.where(tree.exist[..., None], prefixes.turns, -jnp.inf)
    log_probs = prefixes.log_probs[..., None] + turns
    choice = _largest(worth[..., None] + weights.prior * log_probs, count)
    there = jnp.arange(choice.exist.shape[1]) < (limit - tree.size)[:, None]
    choice = dataclasses.replace(choice, exist=choice.exist & there)
    return taken(tree, choice), choice


def _largest(worth: jax.Array, count: int) -> Choice:
    """The `count` best of codes worth `[B, C, K]`, -inf where there is none."""
    flat = jax.lax.collapse(worth, 1)
    best, chosen = top_k(flat, min(count, flat.shape[1]))
    return Choice(*split(chosen, worth.shape[-1]), best > -jnp.inf)


def descent(tree: Tree, limit: int, count: int, weights: Weights) -> tuple[Tree, Choice]:
    """Descents from the root by U(s) = G(s) + beta sqrt(ln(N(root) + 1) / (N(s) + 1)), as published.

    `count` choices a user one after another, each of which sees the visits of those before and tries another code.

    Args:
        tree: the tree.
        limit: most prefixes in a tree, those to come included.
        count: W.
        weights: of what G is.

    Returns:
        The tree in which the codes are marked as tried, and the visits counted; and the choice.
    """
    prefixes = tree.prefixes
    merit = _merits(tree, weights)
    gate = merit >= _means(tree, merit) - _SLACK
    step = functools.partial(_descend, tree, limit, merit, gate, weights.exploration)
    carry = (prefixes.turns, prefixes.unexpanded, prefixes.visits, tree.size)
    carry, chosen = jax.lax.scan(step, carry, None, length=count)
    turns, unexpanded, visits, _ = carry
    prefixes = dataclasses.replace(prefixes, turns=turns, unexpanded=unexpanded, visits=visits)
    return dataclasses.replace(tree, prefixes=prefixes), Choice(*(x.T for x in chosen))


def _descend(
    tree: Tree,
    limit: int,
    merit: jax.Array,
    gate: jax.Array,
    exploration: float,
    carry: tuple[jax.Array, ...],
    _: None,
) -> tuple[tuple, tuple]:
    """One descent of each user."""
    prefixes, user = tree.prefixes, jnp.arange(len(merit))
    levels = prefixes.paths.shape[-1]
    turns, unexpanded, visits, size = carry
    # Where growth is allowed; where no prefix is good enough, the budget is not wasted.
    fit = (unexpanded > 0) & gate
    fit = jnp.where(fit.any(axis=1, keepdims=True), fit, unexpanded > 0)
    # Prefixes with such a one at or below them. Places of a path beyond its depth name the root, which is above.
    below = jnp.zeros_like(fit).at[user[:, None, None], prefixes.paths].max(fit[..., None])
    priority = merit + exploration * _spread(visits)

    def down(_: int, node: jax.Array) -> jax.Array:
        onward = (prefixes.parents == node[:, None]) & below
        onward = onward.at[:, ROOT].set(False)  # It is nobody's child.
        among = jnp.where(onward, priority, -jnp.inf)
        child = jnp.argmax(among, axis=1).astype(jnp.int32)
        stays = fit[user, node] & (priority[user, node] >= among[user, child])
        return jnp.where(stays | ~onward.any(axis=1), node, child)

    node = repeated(down, levels - 1, jnp.full(len(user), ROOT, jnp.int32))
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


def _merits(tree: Tree, weights: Weights) -> jax.Array:
    """G `[B, C]`."""
    prefixes = tree.prefixes
    merit = prefixes.values + weights.entropy * prefixes.entropies
    return merit + weights.prior * prefixes.log_probs if weights.prior else merit


def _spread(visits: jax.Array) -> jax.Array:
    """How much there is to explore below prefixes visited so often, `[B, C]`."""
    return jnp.sqrt(jnp.log(visits[:, :1] + 1.0) / (visits + 1.0))


def _means(tree: Tree, merit: jax.Array) -> jax.Array:
    """For each prefix the mean merit of all of its user's prefixes of its depth, `[B, C]`."""

    def with_depth(depth: int | jax.Array, means: jax.Array) -> jax.Array:
        here = tree.exist & (tree.prefixes.depths == depth)
        total = jnp.where(here, merit, 0.0).sum(axis=1, keepdims=True)
        count = here.sum(axis=1, keepdims=True)
        return jnp.where(here, total / jnp.maximum(count, 1), means)

    return repeated(with_depth, tree.prefixes.paths.shape[-1], jnp.zeros_like(merit))


def repeated(step: Callable[[Any, Any], Any], count: int, carry: Any) -> Any:
    """`carry = step(i, carry)` for i = 0, 1, ..., `count` - 1; a few steps one after another, many in a loop."""
    if count > MANY:
        return jax.lax.fori_loop(0, count, step, carry)
    for place in range(count):
        carry = step(place, carry)
    return carry
