"""Exact trie-constrained beam search, compiled as one program over any backbone (methods, section 2)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import Candidates, DecodingError
from gr.decoding.expand import LOWEST, Step
from gr.decoding.sources import OneTrie, Source
from gr.decoding.top_k import take_along, top_k
from gr.models import Backbone
from gr.trie import NO_ITEM, Constraint, TrieIndex, prepare
from gr.trie.constraints import constraints_of


@dataclasses.dataclass(frozen=True)
class Options:
    """What a search may be asked for besides its width; static under `jit`."""

    num_beams: int
    temperature: float = 1.0
    length_penalty: float = 0.0
    num_groups: int = 1
    diversity: float = 0.0

    def __post_init__(self):
        if self.num_beams < 1:
            raise DecodingError(f"num_beams must be at least 1, got {self.num_beams}")
        if not self.temperature > 0:
            raise DecodingError(f"temperature must be above 0, got {self.temperature}")
        if self.num_groups < 1 or self.num_beams % self.num_groups:
            raise DecodingError(
                f"num_groups={self.num_groups} must divide num_beams={self.num_beams}: groups are of one size"
            )
        if self.diversity < 0:
            raise DecodingError(f"diversity must not be negative, got {self.diversity}")


def beam_search(
    backbone: Backbone,
    index: TrieIndex,
    history: Any,
    num_beams: int,
    *,
    constraint: Constraint | Sequence[Constraint] | None = None,
    temperature: float = 1.0,
    length_penalty: float = 0.0,
    num_groups: int = 1,
    diversity: float = 0.0,
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
        constraint: what is allowed: `ExcludeItems`, `AttributeFilter`, `ItemMask`, or several of them, which must
            all hold. When nothing is left for a user, none of his candidates is valid.
        temperature: logits are divided by it.
        length_penalty: scores are divided by `L ** length_penalty`: 1 gives the mean log-probability of a token.
        num_groups: beams are searched in so many groups of one size, one after another at each step, and each token
            that earlier groups took at this step costs `diversity` (diverse beam search, arXiv 1610.02424, with
            Hamming diversity). No semantic ID is in two groups. Scores are without these costs.
        diversity: see `num_groups`.

    Returns:
        Candidates with M beams.

    Raises:
        DecodingError: if an option is out of range, the logits are narrower than the index's vocabulary, or the
            constraint is for another number of users.
    """
    options = Options(num_beams, temperature, length_penalty, num_groups, diversity)
    return _beam_search(backbone, index, history, constraint, options=options)


@functools.partial(jax.jit, static_argnames="options")
def _beam_search(
    backbone: Backbone, index: TrieIndex, history: Any, constraint: Any, *, options: Options
) -> Candidates:
    first = backbone.prefill(history)
    check_request(index.vocab_size, first[0], constraint)
    return search(backbone, OneTrie(index, prepare(constraint, index)), first, options)


def check_request(vocab_size: int, logits: jax.Array, constraint: Any) -> None:
    """Raises DecodingError unless the first logits `[B, V]` suit the index's vocabulary and the constraint."""
    if logits.shape[-1] < vocab_size:
        raise DecodingError(
            f"the backbone's logits cover {logits.shape[-1]} tokens, the index {vocab_size}: "
            "build the index with the model's vocab_size"
        )
    for part in constraints_of(constraint):
        if part.num_users not in (None, len(logits)):
            raise DecodingError(
                f"the constraint is for {part.num_users} users, the history for {len(logits)}: "
                "pass one row per user"
            )


def search(backbone: Backbone, source: Source, first: tuple, options: Options) -> Candidates:
    """Beam search over any source of semantic IDs, to be compiled by the caller.

    Args:
        backbone: see `beam_search`.
        source: what to search.
        first: what the backbone's `prefill` returned.
        options: how.
    """
    logits, _, cache = first
    logits = logits[:, None, :]
    batch = len(logits)
    states = source.root(batch)
    scores = jnp.zeros(
        (batch, 1), jnp.float32
    )  # By which beams are chosen: with the costs of groups.
    log_probs = scores
    tokens, parents, names = [], [], []

    # While there is a choice: the best continuations of all beams.
    for depth in range(source.settled):
        if depth > 0:
            cache = backbone.reorder(cache, parents[-1])
            logits, _, cache = backbone.step(tokens[-1], cache)
        last = depth == source.settled - 1
        logits, normaliser = _scaled(logits, options.temperature)
        if options.num_groups == 1:
            step = source.best(depth, states, scores - normaliser, logits, options.num_beams)
            log_probs = step.scores
        else:
            step = _step_of_groups(source, depth, states, scores, normaliser, logits, options, last)
            chosen = take_along(
                logits.reshape(batch, -1), step.parents * logits.shape[-1] + step.tokens
            )
            gain = chosen.astype(jnp.float32) - take_along(normaliser, step.parents)
            log_probs = jnp.maximum(take_along(log_probs, step.parents) + gain, LOWEST)
            log_probs = jnp.where(step.scores > -jnp.inf, log_probs, -jnp.inf)
        states, scores = step.nodes, step.scores
        tokens.append(step.tokens)
        parents.append(step.parents)
        names.append(source.names(states))

    # Where each beam has one way left: it is only scored. No beam is moved, so no cache either.
    if source.settled < source.length:
        states, rest = source.settle(states)
        log_probs = jnp.where(source.exist(states), log_probs, -jnp.inf)
        for depth, token in enumerate(rest, start=source.settled):
            if depth > 0:
                if depth == source.settled:
                    cache = backbone.reorder(cache, parents[-1])
                logits, _, cache = backbone.step(tokens[-1], cache)
            logits, normaliser = _scaled(logits, options.temperature)
            chosen = jnp.take_along_axis(
                logits, token[..., None], axis=-1, mode="promise_in_bounds"
            )
            gain = chosen[..., 0].astype(jnp.float32) - normaliser
            log_probs = jnp.where(
                log_probs > -jnp.inf, jnp.maximum(log_probs + gain, LOWEST), -jnp.inf
            )
            tokens.append(token)
            parents.append(None)
            names.append(source.names(states))

    items = source.items(states)
    if source.settled == source.length:
        # Where no level was scanned, a semantic ID may have been let through none of whose items is allowed.
        log_probs = jnp.where((items != NO_ITEM).any(-1), log_probs, -jnp.inf)
    log_probs, order = top_k(log_probs, log_probs.shape[1])
    items = jnp.take_along_axis(items, order[..., None], axis=1)
    codes = _backtrack(tokens, parents, order)
    scores = (
        log_probs / source.length**options.length_penalty if options.length_penalty else log_probs
    )
    return _finish(codes, items, scores, tuple(names), options.num_beams)


def _scaled(logits: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Logits `[B, M, V]` at a temperature, and their log-sum-exps `[B, M]`; the softmax is never written out."""
    if temperature != 1.0:
        logits = logits.astype(jnp.float32) / temperature
    return logits, jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)


def _step_of_groups(
    source: Source,
    depth: int,
    states: Any,
    scores: jax.Array,
    normaliser: jax.Array,
    logits: jax.Array,
    options: Options,
    last: bool,
) -> Step:
    """A step of diverse beam search: group after group, tokens of earlier groups at a price."""
    batch, beams, vocab_size = logits.shape
    size = options.num_beams // options.num_groups
    before = beams // options.num_groups if depth > 0 else 1
    taken = jnp.zeros(
        (batch, vocab_size), jnp.float32
    )  # How many earlier groups' beams took each token.
    user = jnp.arange(batch)[:, None]
    steps, ends = [], None
    for group in range(options.num_groups):
        first = group * before if depth > 0 else 0  # At the root there is one beam for all groups.

        def mine(array: jax.Array, first: int = first) -> jax.Array:
            return array[:, first : first + before]

        # What earlier groups have ended with may be repeated, so that as much more is asked for.
        width = size * (group + 1) if last else size
        step = source.best(
            depth,
            jax.tree.map(mine, states),
            mine(scores - normaliser),
            mine(logits) - options.diversity * taken[:, None, :],
            width,
        )
        if last:
            name = source.names(step.nodes)
            if ends is not None:
                repeated = (name[:, :, None] == ends[:, None, :]).any(-1)
                kept, chosen = top_k(
                    jnp.where(repeated, -jnp.inf, step.scores), min(size, name.shape[1])
                )
                step = jax.tree.map(lambda a, c=chosen: take_along(a, c), step)
                step = dataclasses.replace(step, scores=kept)
                name = take_along(name, chosen)
            step = _padded(step, size)
            name = jnp.where(step.scores > -jnp.inf, _pad(name, size), -1)
            ends = name if ends is None else jnp.concatenate([ends, name], axis=1)
            ends = jnp.where(ends < 0, -2, ends)  # No beam is no repetition of another.
        else:
            step = _padded(step, size)
        alive = (step.scores > -jnp.inf).astype(jnp.float32)
        taken = taken.at[user, step.tokens].add(alive)
        steps.append(dataclasses.replace(step, parents=step.parents + first))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *steps)


def _pad(array: jax.Array, size: int, value: float = 0) -> jax.Array:
    return jnp.pad(array, ((0, 0), (0, size - array.shape[1])), constant_values=value)


def _padded(step: Step, size: int) -> Step:
    """A step of exactly `size` beams a user: groups must be of one size."""
    scores = _pad(step.scores, size, -jnp.inf)
    return dataclasses.replace(jax.tree.map(lambda a: _pad(a, size), step), scores=scores)


def _backtrack(
    tokens: list[jax.Array], parents: list[jax.Array | None], order: jax.Array
) -> jax.Array:
    """Codes `[B, M, L]` of the last beams in `order [B, M]`, from each step's tokens and parents `[B, M_t]`."""
    beam = order
    codes = []
    for token, parent in zip(reversed(tokens), reversed(parents), strict=True):
        codes.append(take_along(token, beam))
        if parent is not None:  # Else beams stood still.
            beam = take_along(parent, beam)
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
