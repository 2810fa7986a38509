"""Exact trie-constrained beam search, compiled as one program over any backbone (methods, section 2)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import Candidates, DecodingError
from gr.models import Backbone
from gr.trie import NO_NODE, ROOT, ExcludeItems, TrieIndex, children, items_of_leaves
from gr.trie.constraints import close_children, dead_nodes, remove_excluded

LOWEST = (
    -1e30
)  # Stands for log 0 in the score of a valid path: still above -inf, which means "no path".


def beam_search(
    backbone: Backbone,
    index: TrieIndex,
    history: Any,
    num_beams: int,
    *,
    constraint: ExcludeItems | None = None,
) -> Candidates:
    """The `num_beams` best semantic IDs of each user by constrained beam search.

    A beam's score is the sum of log-softmax values over the whole vocabulary; the trie only restricts which
    tokens are considered, so no path is lost to pruning inside a step, and with M >= N all items are ranked
    exactly as by scoring each of them.

    Args:
        backbone: any pytree with `prefill / step / reorder`; it decodes semantic IDs of the index's length.
        index: the trie of valid semantic IDs, in the backbone's vocabulary.
        history: what the backbone's `prefill` takes, leading axis B.
        num_beams: M; may exceed the number of items.
        constraint: items that are not allowed, per user.

    Returns:
        Candidates with M beams.

    Raises:
        DecodingError: if `num_beams` is not positive, the logits are narrower than the index's vocabulary, or the
            constraint is for another number of users.
    """
    if num_beams < 1:
        raise DecodingError(f"num_beams must be at least 1, got {num_beams}")
    return _beam_search(backbone, index, history, constraint, num_beams=num_beams)


@functools.partial(jax.jit, static_argnames="num_beams")
def _beam_search(
    backbone: Backbone,
    index: TrieIndex,
    history: Any,
    constraint: ExcludeItems | None,
    *,
    num_beams: int,
) -> Candidates:
    logits, _, cache = backbone.prefill(history)
    batch, vocab_size = logits.shape
    _check(index, vocab_size, batch, constraint)
    dead = None if constraint is None else dead_nodes(index, constraint)

    logits = logits[:, None, :]
    nodes = jnp.full((batch, 1), ROOT, jnp.int32)
    scores = jnp.zeros((batch, 1), jnp.float32)
    tokens, parents, beams = [], [], []
    for depth in range(index.length):
        if depth > 0:
            cache = backbone.reorder(cache, parents[-1])
            logits, _, cache = backbone.step(tokens[-1], cache)
        scored, child, token = _score_children(index, depth, nodes, scores, logits)
        if dead is not None:
            scored = close_children(index, depth, nodes, scored, dead)
        # No more beams than the trie has prefixes of this depth: shapes stay static, nothing can be lost.
        width = min(num_beams, index.num_nodes[depth + 1], scored[0].size)
        scores, place = jax.lax.top_k(scored.reshape(batch, -1), width)
        parents.append(place // scored.shape[-1])
        tokens.append(jnp.take_along_axis(token.reshape(batch, -1), place, axis=1))
        nodes = jnp.take_along_axis(child.reshape(batch, -1), place, axis=1)
        nodes = jnp.where(scores > -jnp.inf, nodes, NO_NODE)
        beams.append(nodes)

    items = items_of_leaves(index, jnp.maximum(nodes, ROOT))
    if dead is not None:
        items = remove_excluded(index, items, dead)
    return _finish(_backtrack(tokens, parents), items, scores, tuple(beams), num_beams)


def _score_children(
    index: TrieIndex, depth: int, nodes: jax.Array, scores: jax.Array, logits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores, node numbers and tokens `[B, M, K]` of the children of the beams `nodes [B, M]`.

    One log-sum-exp over the logits and one gather; the log-softmax itself is never written out.
    """
    child, token, exists = children(index, depth, nodes)
    logits = logits.astype(jnp.float32)
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    log_prob = jnp.take_along_axis(logits, token, axis=-1) - log_normaliser[..., None]
    scored = jnp.maximum(scores[..., None] + log_prob, LOWEST)
    return jnp.where(exists, scored, -jnp.inf), child, token


def _backtrack(tokens: list[jax.Array], parents: list[jax.Array]) -> jax.Array:
    """Codes `[B, M, L]` of the last beams, from each step's tokens and parent pointers `[B, M_t]`."""
    beam = jnp.broadcast_to(jnp.arange(tokens[-1].shape[1]), tokens[-1].shape)
    codes = []
    for token, parent in zip(reversed(tokens), reversed(parents), strict=True):
        codes.append(jnp.take_along_axis(token, beam, axis=1))
        beam = jnp.take_along_axis(parent, beam, axis=1)
    return jnp.stack(codes[::-1], axis=-1)


def _finish(
    codes: jax.Array,
    items: jax.Array,
    scores: jax.Array,
    beams: tuple[jax.Array, ...],
    num_beams: int,
) -> Candidates:
    """Pads to M beams and blanks whatever is not valid."""
    valid = scores > -jnp.inf
    missing = num_beams - scores.shape[1]
    pad = functools.partial(jnp.pad, constant_values=-1)
    return Candidates(
        codes=pad(jnp.where(valid[..., None], codes, -1), ((0, 0), (0, missing), (0, 0))),
        items=pad(jnp.where(valid[..., None], items, -1), ((0, 0), (0, missing), (0, 0))),
        scores=jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-jnp.inf),
        valid=jnp.pad(valid, ((0, 0), (0, missing))),
        beams=beams,
    )


def _check(index: TrieIndex, vocab_size: int, batch: int, constraint: ExcludeItems | None) -> None:
    if vocab_size < index.vocab_size:
        raise DecodingError(
            f"the backbone's logits cover {vocab_size} tokens, the index {index.vocab_size}: "
            "build the index with the model's vocab_size"
        )
    if constraint is not None and constraint.items.shape[0] != batch:
        raise DecodingError(
            f"the constraint is for {constraint.items.shape[0]} users, the history for {batch}: "
            "pass one row of excluded items per user"
        )
