"""Ranks items with a model that scores whole items, without codes (SASRec, arXiv 1808.09781)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import Candidates, DecodingError
from gr.decoding.softmax import as_temperature, inverse_of, softmax
from gr.decoding.top_k import take_along, top_k
from gr.trie import NO_ITEM, Constraint, TrieIndex, check_search, prepare


def rank_items(
    model: Any,
    index: TrieIndex,
    tokens: jax.Array,
    history: Any,
    num_candidates: int,
    *,
    constraint: Constraint | Sequence[Constraint] | None = None,
    temperature: float | None = None,
) -> Candidates:
    """The best items of each user by a softmax over all items; the counterpart of `beam_search`.

    Items that share a semantic ID are candidates of their own.

    Args:
        model: offers `last_state` and `item_logits`, see `gr.models.scores_items`.
        index: the trie of the items, by which constraints are applied.
        tokens: of every item `[N, L]`, or with a row of padding, see `gr.trie.item_token_table`.
        history: the input of `last_state`, with leading axis B.
        num_candidates: M.
        constraint: see `beam_search`.
        temperature: see `beam_search`.

    Returns:
        Candidates with M items, one each (C = 1); `scores` are log-probabilities of items.

    Raises:
        DecodingError: if `num_candidates` is not positive, or the constraint is for another number of users.
    """
    if num_candidates < 1:
        raise DecodingError(f"num_candidates must be at least 1, got {num_candidates}")
    check_search(index, constraint)
    temperature = as_temperature(temperature)
    return _rank_items(model, index, tokens, history, constraint, temperature, count=num_candidates)


@functools.partial(jax.jit, static_argnames="count")
def _rank_items(
    model: Any,
    index: TrieIndex,
    tokens: jax.Array,
    history: Any,
    constraint: Any,
    temperature: jax.Array | None,
    *,
    count: int,
) -> Candidates:
    logits = model.item_logits(model.last_state(history)).astype(jnp.float32)
    batch, num_items = logits.shape
    slots = index.slot_of_item[jnp.minimum(jnp.arange(num_items), index.layout.max_item)]
    allowed = jnp.broadcast_to(slots < index.layout.max_items, logits.shape)
    only = prepare(constraint, index)
    if only is not None:
        slots = jnp.minimum(slots, index.layout.max_items - 1)
        allowed &= only.slots(index, jnp.broadcast_to(slots, logits.shape))
    among = softmax(logits[:, None], inverse_of(temperature))
    log_probs = jnp.where(allowed, among.of(logits[:, None])[:, 0], -jnp.inf)
    scores, items = top_k(log_probs, min(count, num_items))
    missing = ((0, 0), (0, count - scores.shape[1]))
    scores = jnp.pad(scores, missing, constant_values=-jnp.inf)
    nan = jnp.isnan(take_along(logits, jnp.argmax(jnp.isnan(logits), axis=1)[:, None]))
    valid = (scores > -jnp.inf) & ~nan
    items = jnp.where(valid, jnp.pad(items, missing), NO_ITEM)
    return Candidates(
        tokens=jnp.where(valid[..., None], tokens[items], -1),
        items=items[..., None],
        scores=jnp.where(nan, jnp.nan, scores),
        valid=valid,
        evaluations=jnp.zeros(batch, jnp.int32),
        bad_step=jnp.where(among.flawed[:, 0], 0, -1),
    )
