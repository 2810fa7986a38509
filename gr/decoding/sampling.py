"""Semantic IDs drawn from the model: with replacement, or without by stochastic beam search (arXiv 1903.06059).

Both draw from the model *on the trie*: behind each prefix the probabilities are normalised over the codes that are
allowed there. So the probabilities of all semantic IDs add up to 1, and differ from the scores of a beam search,
which are normalised over the whole vocabulary. A code without an alternative costs nothing and is not evaluated.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.beam import ranked
from gr.decoding.beam_step import Beams
from gr.decoding.candidates import Candidates, DecodingError, Draws
from gr.decoding.checked import Checked, check_methods, check_nodes, users_of
from gr.decoding.child_scores import score_listed
from gr.decoding.draws import gumbel
from gr.decoding.flaws import Flaws
from gr.decoding.prior import (
    ALLOWED,
    PriorRequest,
    as_request,
    log_conditionals,
    log_scores,
    log_scores_behind,
    with_prior,
)
from gr.decoding.softmax import Softmax, as_temperature, inverse_of, softmax
from gr.decoding.sources import Listing, source_of
from gr.decoding.top_k import split, take_along, top_k
from gr.memory import ItemPrior
from gr.models import Backbone
from gr.trie import Constraint, OverlaidIndex, TrieIndex, check_search


def sample_without_replacement(
    backbone: Backbone,
    index: TrieIndex | OverlaidIndex,
    history: Any,
    num_candidates: int,
    *,
    key: jax.Array,
    constraint: Constraint | Sequence[Constraint] | None = None,
    temperature: float | None = None,
    prior: ItemPrior | None = None,
    prior_weight: float | jax.Array = 0.5,
    prior_over: str = ALLOWED,
) -> Candidates:
    """`num_candidates` different semantic IDs of each user, drawn one after another without replacement.

    Stochastic beam search (Kool et al. 2019, arXiv 1903.06059, algorithm 1): a beam search for the largest
    Gumbel-perturbed log-probabilities, where those of a prefix's continuations are drawn so that the largest is the
    prefix's own. The root's value is drawn too, so that the perturbed values are independent and the threshold is
    valid.

    Args:
        backbone: see `beam_search`.
        index: see `beam_search`.
        history: see `beam_search`.
        num_candidates: G. One more beam is searched; it gives the threshold.
        key: random key; the same key gives the same candidates.
        constraint: see `beam_search`; probabilities are normalised over what it allows. An `AttributeFilter` may let
            through prefixes without an allowed item (see `Filter`). These keep their share of the probability and their
            beams, so a user may get fewer candidates than exist. An `ItemMask` never lets them through.
        temperature: see `beam_search`.
        prior: see `beam_search`. Semantic IDs are drawn from the mixture: behind a prefix s, code c has probability
            `P(sc) / P(s)`, where P_model in P is the model on the trie.
        prior_weight: see `beam_search`.
        prior_over: see `beam_search`. As probabilities add up to 1, "all" is "allowed" with a smaller weight: a is
            multiplied by the allowed share m of the prior, and divided by 1 - a + a m.

    Returns:
        Candidates with G beams. `scores` are log-probabilities, best first; `draws` holds their inclusion
        probabilities. A user with fewer than G semantic IDs gets all of them; the rest is not valid.

    Raises:
        DecodingError: see `beam_search`.
    """
    temperature = _checked(backbone, num_candidates, temperature)
    check_search(index, constraint)
    check_nodes(backbone, index)
    request = as_request(prior, prior_weight, prior_over)
    return _sample_without_replacement(
        backbone, index, history, constraint, key, temperature, request, count=num_candidates
    )


def sample(
    backbone: Backbone,
    index: TrieIndex | OverlaidIndex,
    history: Any,
    num_candidates: int,
    *,
    key: jax.Array,
    constraint: Constraint | Sequence[Constraint] | None = None,
    temperature: float | None = None,
    prior: ItemPrior | None = None,
    prior_weight: float | jax.Array = 0.5,
    prior_over: str = ALLOWED,
) -> Candidates:
    """`num_candidates` semantic IDs of each user, drawn independently: unlike other decoders', they may repeat.

    Args:
        backbone: see `beam_search`.
        index: see `beam_search`.
        history: see `beam_search`.
        num_candidates: G.
        key: random key.
        constraint: see `sample_without_replacement`; a draw that ends without an allowed item is not valid.
        temperature: see `beam_search`.
        prior: see `sample_without_replacement`.
        prior_weight: see `beam_search`.
        prior_over: see `sample_without_replacement`.

    Returns:
        Candidates with G beams. `scores` are log-probabilities, best first.

    Raises:
        DecodingError: see `beam_search`.
    """
    temperature = _checked(backbone, num_candidates, temperature)
    check_search(index, constraint)
    check_nodes(backbone, index)
    request = as_request(prior, prior_weight, prior_over)
    return _sample(
        backbone, index, history, constraint, key, temperature, request, count=num_candidates
    )


def _checked(backbone: Backbone, num_candidates: int, temperature: float | None) -> Any:
    """Checks the request and returns the temperature as an argument of the compiled program."""
    if num_candidates < 1:
        raise DecodingError(f"num_candidates must be at least 1, got {num_candidates}")
    check_methods(backbone)
    return as_temperature(temperature)


def logits_of(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The logits `[B, M, K]` of `tokens [B, M, K]` among `[B, M, V]`."""
    # A level's range may reach beyond the vocabulary, but not what exists there.
    return jnp.take_along_axis(logits.astype(jnp.float32), tokens, axis=-1, mode="clip")


def conditionals(
    logits: jax.Array, exist: jax.Array, inverse: jax.Array | None
) -> tuple[jax.Array, Softmax]:
    """Log-probabilities `[B, M, K]` among the codes that `exist`, by their logits, and the softmax; -inf for others."""
    among = softmax(jnp.where(exist, logits, -jnp.inf), inverse)
    return jnp.where(exist, among.of(logits), -jnp.inf), among


@functools.partial(jax.jit, static_argnames="count")
def _sample_without_replacement(
    backbone: Backbone,
    index: TrieIndex | OverlaidIndex,
    history: Any,
    constraint: Any,
    key: jax.Array,
    temperature: jax.Array | None,
    prior: PriorRequest | None,
    *,
    count: int,
) -> Candidates:
    model, inverse = Checked(backbone, index.vocab_size), inverse_of(temperature)
    first = model.prefill(history, constraint)
    batch = users_of(first)
    source = source_of(index, constraint)
    source, first = with_prior(source, prior, model, history, first, inverse, sums_to_one=True)
    logits, hidden, cache = first
    logits, hidden = jax.tree.map(lambda outputs: outputs[:, None], (logits, hidden))
    states, log_probs = source.root(batch), jnp.zeros((batch, 1))
    perturbed = gumbel(key, 0, (batch, 1))
    threshold = jnp.full(batch, -jnp.inf)
    tokens, parents, distributions, alive = [], [], [], []
    for depth in range(source.unique_depth):
        if depth > 0:
            logits, hidden, cache = model.step(tokens[-1], model.reorder(cache, parents[-1]))
        child_tokens, exist = source.continuations(depth, states)
        if model.scores_children:
            child_logits, _ = score_listed(model, source, depth, states, hidden, child_tokens)
        else:
            child_logits = logits_of(logits, child_tokens)
        child_log_probs, among = conditionals(child_logits, exist, inverse)
        distributions.append(among)
        alive.append(log_probs > -jnp.inf)
        longer = log_probs[..., None] + child_log_probs
        ranks = log_scores_behind(source, depth, states, child_tokens, longer)
        noisy = ranks + gumbel(key, depth + 1, longer.shape)
        noisy = jax.lax.collapse(_with_maximum(noisy, perturbed), 1)
        perturbed, places = top_k(noisy, min(count + 1, noisy.shape[1]))
        parent, _ = split(places, child_tokens.shape[-1])
        token = take_along(jax.lax.collapse(child_tokens, 1), places)
        log_probs = take_along(jax.lax.collapse(longer, 1), places)
        above = jax.tree.map(lambda array, p=parent: take_along(array, p), states)
        states = source.descend(depth, above, jnp.where(perturbed > -jnp.inf, token, -1))
        if perturbed.shape[1] > count:
            # Where a prefix had no continuation, an earlier threshold is higher.
            threshold = jnp.maximum(threshold, perturbed[:, count])
        tokens.append(token)
        parents.append(parent)

    states, rest = source.complete(states)
    log_probs = log_scores(source, states, log_probs)
    drawn = (perturbed > threshold[:, None]) & source.exist(states)
    beams = Beams(states, perturbed, jnp.where(drawn, log_probs, -jnp.inf), None, None)
    found, order = ranked(source, beams, tokens, parents, count, rest)
    missing = ((0, 0), (0, count - order.shape[1]))
    perturbed = jnp.pad(take_along(perturbed, order), missing)
    log_inclusion = _log1mexp(-jnp.exp(found.scores - threshold[:, None]))
    draws = Draws(
        threshold,
        perturbed=jnp.where(found.valid, perturbed, -jnp.inf),
        log_inclusion=jnp.where(found.valid, log_inclusion, -jnp.inf),
    )
    return _flaws(distributions, alive, batch).told(dataclasses.replace(found, draws=draws))


def _flaws(distributions: list[Softmax], alive: list[jax.Array], batch: int) -> Flaws:
    return Flaws.of_steps(distributions, alive) if alive else Flaws.none(batch)


def _with_maximum(noisy: jax.Array, maximum: jax.Array) -> jax.Array:
    """Gumbel variables `[B, M, K]`, conditioned on their maximum being `maximum [B, M]`; -inf stays.

    The numerically stable form of the paper's appendix B.3.
    """
    maximum = maximum[..., None]
    largest = noisy.max(axis=-1, keepdims=True)
    exist = noisy > -jnp.inf
    below = jnp.where(exist, noisy - largest, 0.0)
    v = maximum - jnp.where(exist, noisy, 0.0) + _log1mexp(below)
    moved = maximum - jnp.maximum(v, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(v)))
    return jnp.where(exist, moved, -jnp.inf)


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x <= 0."""
    return jnp.where(x > -0.693, jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


@functools.partial(jax.jit, static_argnames="count")
def _sample(
    backbone: Backbone,
    index: TrieIndex | OverlaidIndex,
    history: Any,
    constraint: Any,
    key: jax.Array,
    temperature: jax.Array | None,
    prior: PriorRequest | None,
    *,
    count: int,
) -> Candidates:
    model, inverse = Checked(backbone, index.vocab_size), inverse_of(temperature)
    first = model.prefill(history, constraint)
    batch = users_of(first)
    source = source_of(index, constraint)
    source, first = with_prior(source, prior, model, history, first, inverse, sums_to_one=True)
    logits, hidden, cache = first
    logits, hidden = jax.tree.map(lambda outputs: outputs[:, None], (logits, hidden))
    states, log_probs = source.root(batch), jnp.zeros((batch, 1))
    tokens, distributions, alive = [], [], []
    spread = functools.partial(jnp.broadcast_to, shape=(batch, count))
    for depth in range(source.unique_depth):
        if depth > 0:
            if depth == 1:
                cache = model.reorder(cache, jnp.zeros((batch, count), jnp.int32))
            logits, hidden, cache = model.step(tokens[-1], cache)
        child_tokens, exist = _each_alone(source, depth, states)
        if model.scores_children:
            child_logits, _ = score_listed(model, source, depth, states, hidden, child_tokens)
        else:
            child_logits = logits_of(logits, child_tokens)
        child_log_probs, among = conditionals(child_logits, exist, inverse)
        distributions.append(among)
        alive.append(log_probs > -jnp.inf)
        ranks = log_conditionals(source, depth, states, child_tokens, log_probs, child_log_probs)
        noise = gumbel(key, depth + 1, (batch, count, child_log_probs.shape[-1]))
        place = jnp.argmax(ranks + noise, axis=-1)[..., None]
        # At the root all draws share one distribution.
        child_tokens, child_log_probs = (
            jnp.broadcast_to(array, noise.shape) for array in (child_tokens, child_log_probs)
        )
        token = jnp.take_along_axis(child_tokens, place, axis=-1)[..., 0]
        log_probs = log_probs + jnp.take_along_axis(child_log_probs, place, axis=-1)[..., 0]
        states = jax.tree.map(spread, states)
        states = source.descend(depth, states, jnp.where(log_probs > -jnp.inf, token, -1))
        tokens.append(token)

    states, rest = source.complete(states)
    log_probs = log_scores(source, states, log_probs)
    log_probs = jnp.where(source.exist(states), log_probs, -jnp.inf)
    log_probs, rest = spread(log_probs), jax.vmap(spread)(rest)
    states = jax.tree.map(spread, states)
    beams = Beams(states, log_probs, log_probs, None, None)
    found, _ = ranked(source, beams, tokens, [None] * len(tokens), count, rest)
    return _flaws(distributions, alive, batch).told(found)


def _each_alone(source: Listing, depth: int, states: Any) -> tuple[jax.Array, jax.Array]:
    """`source.continuations` for states that may repeat, which filters do not expect."""
    alone = jax.tree.map(lambda array: array[:, :, None], states)
    child_tokens, exist = jax.vmap(
        lambda states: source.continuations(depth, states), in_axes=1, out_axes=1
    )(alone)
    return child_tokens[:, :, 0], exist[:, :, 0]
