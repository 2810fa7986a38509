"""Which beams go on: all together, or group after group so that they differ (diverse beam search)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import DecodingError
from gr.decoding.expand import LOWEST, Step
from gr.decoding.sources import Source
from gr.decoding.top_k import take_along, top_k
from gr.trie import NO_NODE

VOCABULARY = "vocabulary"
CHILDREN = "children"


def check_distribution(temperature: float, normalise_over: str) -> None:
    """Raises DecodingError unless logits can be made probabilities this way."""
    if not temperature > 0:
        raise DecodingError(f"temperature must be above 0, got {temperature}")
    if normalise_over not in (VOCABULARY, CHILDREN):
        raise DecodingError(
            f"normalise_over={normalise_over!r} is unknown: use {VOCABULARY} or {CHILDREN}"
        )


@dataclasses.dataclass(frozen=True)
class Options:
    """What a search may be asked for besides its width; static under `jit`."""

    num_beams: int
    temperature: float = 1.0
    length_penalty: float = 0.0
    num_groups: int = 1
    diversity: float = 0.0
    keep_beams: bool = False
    normalise_over: str = VOCABULARY

    def __post_init__(self):
        if self.num_beams < 1:
            raise DecodingError(f"num_beams must be at least 1, got {self.num_beams}")
        check_distribution(self.temperature, self.normalise_over)
        if self.num_groups < 1 or self.num_beams % self.num_groups:
            raise DecodingError(
                f"num_groups={self.num_groups} must divide num_beams={self.num_beams}: groups are of one size"
            )
        if self.diversity < 0:
            raise DecodingError(f"diversity must not be negative, got {self.diversity}")


@dataclasses.dataclass(frozen=True)
class Beams:
    """The beams after a step, `[B, M']` each."""

    states: Any  # The source's.
    scores: (
        jax.Array
    )  # By which they were chosen: log-probabilities, less what repeated tokens cost.
    log_probs: jax.Array  # -inf where there is no beam.
    tokens: jax.Array | None  # The last ones; None before the first step.
    parents: (
        jax.Array | None
    )  # The beam before the step that each comes from; None if they stood still.


def start(source: Source, batch: int) -> Beams:
    """The empty prefix of each user."""
    zeros = jnp.zeros((batch, 1), jnp.float32)
    return Beams(source.root(batch), zeros, zeros, None, None)


def choose(
    source: Source,
    depth: int,
    beams: Beams,
    logits: jax.Array,
    normaliser: jax.Array,
    options: Options,
) -> Beams:
    """The best continuations.

    Args:
        source: what is searched.
        depth: tokens of the beams so far; static.
        beams: `[B, M]`.
        logits: `[B, M, V]` float32.
        normaliser: their log-sum-exps `[B, M]`.
        options: how many, and in how many groups.
    """
    offset = beams.scores - normaliser
    if options.num_groups == 1:
        step = source.best(depth, beams.states, offset, logits, options.num_beams)
        return Beams(step.nodes, step.scores, step.scores, step.tokens, step.parents)
    step = _by_groups(source, depth, beams, offset, logits, options)
    place = step.parents * logits.shape[-1] + step.tokens
    gain = take_along(logits.reshape(len(logits), -1), place) - take_along(normaliser, step.parents)
    log_probs = jnp.maximum(take_along(beams.log_probs, step.parents) + gain, LOWEST)
    log_probs = jnp.where(step.scores > -jnp.inf, log_probs, -jnp.inf)
    return Beams(step.nodes, step.scores, log_probs, step.tokens, step.parents)


def _by_groups(
    source: Source,
    depth: int,
    beams: Beams,
    offset: jax.Array,
    logits: jax.Array,
    options: Options,
) -> Step:
    """A step of diverse beam search: group after group, tokens that earlier groups took at a price."""
    batch, count, vocab_size = logits.shape
    groups, size = options.num_groups, options.num_beams // options.num_groups
    ends = depth == source.settled - 1  # From here on a state is as good as its semantic ID.
    user = jnp.arange(batch)[:, None]
    times_taken = jnp.zeros((batch, vocab_size), jnp.float32)
    names = jnp.full((batch, 0), NO_NODE)
    steps = []
    for group in range(groups):
        # At the root all groups continue the one beam.
        first, last = (0, 1) if depth == 0 else (group * size, (group + 1) * size)
        price = options.diversity * times_taken[:, None, :]
        step = source.best(
            depth,
            jax.tree.map(lambda array, a=first, b=last: array[:, a:b], beams.states),
            offset[:, first:last],
            logits[:, first:last] - price,
            # What earlier groups ended with may be repeated: as many more are asked for.
            size * (group + 1) if ends else size,
        )
        if ends:
            step = _without(source, step, names, size)
        step = _padded(step, size)
        names = jnp.concatenate([names, source.names(step.nodes)], axis=1)
        alive = (step.scores > -jnp.inf).astype(jnp.float32)
        times_taken = times_taken.at[user, step.tokens].add(alive)
        steps.append(dataclasses.replace(step, parents=step.parents + first))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *steps)


def _without(source: Source, step: Step, names: jax.Array, size: int) -> Step:
    """The best `size` beams of a step that are none of `names [B, n]`."""
    mine = source.names(step.nodes)
    repeated = ((mine[:, :, None] == names[:, None, :]) & (mine != NO_NODE)[:, :, None]).any(-1)
    scores = jnp.where(repeated, -jnp.inf, step.scores)
    scores, chosen = top_k(scores, min(size, scores.shape[1]))
    step = jax.tree.map(lambda array: take_along(array, chosen), step)
    return dataclasses.replace(step, scores=scores)


def _padded(step: Step, size: int) -> Step:
    """A step of exactly `size` beams a user: groups must be of one size."""

    def pad(array: jax.Array, value: float = 0) -> jax.Array:
        return jnp.pad(array, ((0, 0), (0, size - array.shape[1])), constant_values=value)

    return dataclasses.replace(jax.tree.map(pad, step), scores=pad(step.scores, -jnp.inf))
