"""Searches with a model that scores the children it is asked for (`gr.models.ChildScorer`).

The children of all beams are listed, scored, and normalised over: what a prefix's probabilities are over does not
depend on the constraint.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.checked import Checked
from gr.decoding.prior import log_scores_behind
from gr.decoding.softmax import Softmax, softmax
from gr.decoding.sources import Listing, of_devices
from gr.decoding.top_k import split, take_along, top_k
from gr.decoding.trie_step import Step


@dataclasses.dataclass(frozen=True)
class Listed:
    """The children of beams `[B, M]`, in K places each."""

    tokens: jax.Array  # [B, M, K] int32.
    allowed: jax.Array  # [B, M, K] bool: those that the constraint allows.
    logits: jax.Array  # [B, M, K] float32; arbitrary where there is no child.
    softmax: Softmax  # Over all children, allowed or not, on all devices of the source's axis.


def listed(
    model: Checked,
    source: Listing,
    depth: int,
    states: Any,
    hidden: jax.Array,
    inverse: jax.Array | None,
) -> Listed:
    """Lists and scores the children of beams with states `[B, M]` and hidden states `[B, M, D]`."""
    tokens, allowed = source.continuations(depth, states)
    if depth == 0:
        logits, exist = score_listed(model, source, depth, states, hidden, tokens)
    else:
        rows, exist = source.child_rows(depth, states)
        most = source.most_children(depth)
        if most < tokens.shape[-1]:  # Scores cost more than to bring children together.
            # As floats, whose top-k is not a full sort on a CPU.
            _, first = jax.lax.top_k((exist | allowed).astype(jnp.float32), most)
            tokens, allowed, rows, exist = (
                jnp.take_along_axis(x, first, axis=-1) for x in (tokens, allowed, rows, exist)
            )
        logits = model.score_children(hidden, tokens, rows, root=False)
    distributions = softmax(jnp.where(exist, logits, -jnp.inf), inverse, source.axis)
    return Listed(tokens, allowed, logits, distributions)


def score_listed(
    model: Checked,
    source: Listing,
    depth: int,
    states: Any,
    hidden: jax.Array,
    tokens: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Logits `[B, M, K]` of the children `tokens` that `source.continuations` lists, and where `child_rows` has one."""
    if depth == 0:  # All users share the root's children.
        states, tokens = source.root(1), tokens[:1]
    rows, exist = source.child_rows(depth, states)
    return model.score_children(hidden, tokens, rows, root=depth == 0), exist


def best_listed(
    source: Listing, depth: int, states: Any, before: jax.Array, children: Listed, width: int
) -> Step:
    """The best children of all beams of each user, as `best_children` finds them.

    Args:
        source: the searched source.
        depth: depth of `states`; static.
        states: the source's `[B, M]`.
        before: their scores `[B, M]` float32; -inf where there is no beam.
        children: of these states.
        width: maximum number of children per user.
    """
    scores = before[..., None] + children.softmax.of(children.logits)
    scores = jnp.where(children.allowed & (before > -jnp.inf)[..., None], scores, -jnp.inf)
    ranks = log_scores_behind(source, depth, states, children.tokens, scores)
    ranks, places = top_k(jax.lax.collapse(ranks, 1), min(width, scores[0].size))
    scores = take_along(jax.lax.collapse(scores, 1), places)
    parents, _ = split(places, children.tokens.shape[-1])
    tokens = take_along(
        jax.lax.collapse(jnp.broadcast_to(children.tokens, children.allowed.shape), 1), places
    )
    if source.axis is not None:
        mine = (scores, parents, tokens)
        _, _, (scores, parents, tokens) = of_devices(source.axis, ranks, mine, width)
    above = jax.tree.map(lambda array: take_along(array, parents), states)
    nodes = source.descend(depth, above, jnp.where(scores > -jnp.inf, tokens, -1))
    return Step(scores, parents, tokens, nodes)
