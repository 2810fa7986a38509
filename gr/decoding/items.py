"""Ranks items with a model that scores whole items, without codes (SASRec, arXiv 1808.09781)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import Candidates, DecodingError
from gr.decoding.prior import PriorRequest, as_request, moderate
from gr.decoding.softmax import LOWEST, as_temperature, inverse_of, softmax
from gr.decoding.top_k import take_along, top_k
from gr.memory import ItemPrior
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
    prior: ItemPrior | None = None,
    prior_weight: float | jax.Array = 0.5,
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
        prior: see `beam_search`.
        prior_weight: see `beam_search`.

    Returns:
        Candidates with M items, one each (C = 1); `scores` are log-probabilities of items.

    Raises:
        DecodingError: if `num_candidates` is not positive, the index is an edited one, or constraint or prior are for
            another number of users.
    """
    if num_candidates < 1:
        raise DecodingError(f"num_candidates must be at least 1, got {num_candidates}")
    if not isinstance(index, TrieIndex):
        raise DecodingError(
            f"an edited index ({type(index).__name__}) does not fit a model that scores the items it was trained on: "
            "give the TrieIndex of these, and leave removed ones out by an ItemMask"
        )
    check_search(index, constraint)
    temperature = as_temperature(temperature)
    request = as_request(prior, prior_weight)
    return _rank_items(
        model, index, tokens, history, constraint, temperature, request, count=num_candidates
    )


@functools.partial(jax.jit, static_argnames="count")
def _rank_items(
    model: Any,
    index: TrieIndex,
    tokens: jax.Array,
    history: Any,
    constraint: Any,
    temperature: jax.Array | None,
    prior: PriorRequest | None,
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
    log_probs = among.of(logits[:, None])[:, 0]
    if prior is not None:
        log_probs = _mixed(log_probs, allowed, prior)
    log_probs = jnp.where(allowed, log_probs, -jnp.inf)
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


def _mixed(log_probs: jax.Array, allowed: jax.Array, prior: PriorRequest) -> jax.Array:
    """`log P [B, N]` of the mixture of the model's `log_probs` with a prior's weights on the allowed items."""
    batch, num_items = log_probs.shape
    if len(prior.items) != batch:
        raise DecodingError(
            f"the prior is for {len(prior.items)} users, the history for {batch}: pass one row per user"
        )
    items = jnp.where(prior.items < 0, num_items, prior.items)  # Written out of range.
    known = take_along(allowed, jnp.minimum(items, num_items - 1)) & (items < num_items)
    weights = moderate(jnp.where(known, prior.weights, 0.0))
    mass = jnp.zeros_like(log_probs).at[jnp.arange(batch)[:, None], items].add(weights, mode="drop")
    total = mass.sum(axis=1, keepdims=True)
    share = jnp.where(total > 0, jnp.reshape(jnp.asarray(prior.prior_weight), (-1, 1)), 0.0)
    of_prior = jnp.log(share * mass / jnp.where(total > 0, total, 1.0))
    return jnp.logaddexp(log_probs + jnp.maximum(jnp.log1p(-share), LOWEST), of_prior)
