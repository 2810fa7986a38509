"""One step of beam search: selects the next beams, jointly or group by group (diverse beam search)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import DecodingError
from gr.decoding.child_scores import Listed, best_listed
from gr.decoding.softmax import CHILDREN, VOCABULARY, Softmax
from gr.decoding.sources import Listing, Source
from gr.decoding.top_k import take_along, top_k
from gr.decoding.trie_step import Step
from gr.models import item_share
from gr.trie import NO_NODE


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """The options of `beam_search`; static under `jit`."""

    num_beams: int
    length_penalty: float = 0.0
    num_groups: int = 1
    diversity: float = 0.0
    keep_beams: bool = False
    normalise_over: str = VOCABULARY

    def __post_init__(
        self,
    ):  # Not by `check_fields`: this runs at every request, and that takes thirty times as long.
        if self.num_beams < 1:
            raise DecodingError(f"num_beams must be at least 1, got {self.num_beams}")
        if self.num_groups < 1 or self.num_beams % self.num_groups:
            raise DecodingError(
                f"num_groups={self.num_groups} must divide num_beams={self.num_beams}: groups are of one size"
            )
        if self.diversity < 0:
            raise DecodingError(f"diversity must not be negative, got {self.diversity}")
        for name in ("diversity", "length_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise DecodingError(f"{name} must be finite, got {getattr(self, name)}")
        if self.normalise_over not in (VOCABULARY, CHILDREN):
            raise DecodingError(
                f"normalise_over={self.normalise_over!r} is unknown: use {VOCABULARY} or {CHILDREN}"
            )

    def check_prior(self, prior: Any, backbone: Any) -> None:
        """Raises DecodingError for groups, whose costs are no probabilities, where something is mixed in."""
        mixed = [] if prior is None else ["a prior: use one group, or no prior"]
        if item_share(backbone):
            mixed.append("an item tower: use one group, or gr.models.codes_alone(backbone)")
        if mixed and self.num_groups > 1:
            raise DecodingError(f"num_groups={self.num_groups} cannot be combined with {mixed[0]}")


@dataclasses.dataclass(frozen=True)
class Beams:
    """The beams after a step, `[B, M']` each."""

    states: Any  # The source's.
    # Selection scores: log-probabilities minus the cost of repeated tokens.
    scores: jax.Array
    log_probs: jax.Array  # -inf where there is no beam.
    tokens: jax.Array | None  # The last ones; None before the first step.
    # The beam before the step that each comes from; None if beams kept their places.
    parents: jax.Array | None


def start(source: Source, batch: int) -> Beams:
    """The empty prefix of each user."""
    zeros = jnp.zeros((batch, 1), jnp.float32)
    return Beams(source.root(batch), zeros, zeros, None, None)


def choose(
    source: Source,
    depth: int,
    beams: Beams,
    logits: jax.Array,
    softmax: Softmax,
    options: BeamOptions,
) -> Beams:
    """The best continuations.

    Args:
        source: the source to search.
        depth: tokens of the beams so far; static.
        beams: `[B, M]`.
        logits: `[B, M, V]` float32.
        softmax: of the beams.
        options: how many beams, and in how many groups.
    """
    if options.num_groups == 1:
        step = source.best(depth, beams.states, beams.scores, logits, softmax, options.num_beams)
        return Beams(step.nodes, step.scores, step.scores, step.tokens, step.parents)
    of_tokens = softmax.of(logits)
    step = _by_groups(source, depth, beams, of_tokens, options)
    place = step.parents * of_tokens.shape[-1] + step.tokens
    of_token = take_along(jax.lax.collapse(of_tokens, 1), place)
    log_probs = take_along(beams.log_probs, step.parents) + of_token
    log_probs = jnp.where(step.scores > -jnp.inf, log_probs, -jnp.inf)
    return Beams(step.nodes, step.scores, log_probs, step.tokens, step.parents)


def choose_listed(
    source: Listing, depth: int, beams: Beams, children: Listed, options: BeamOptions
) -> Beams:
    """`choose` among listed children.

    Raises:
        DecodingError: for groups, whose costs are those of the vocabulary's tokens.
    """
    if options.num_groups > 1:
        raise DecodingError(
            f"num_groups={options.num_groups}: diverse groups are not offered for a model that scores children; use "
            "num_groups=1"
        )
    step = best_listed(source, depth, beams.states, beams.scores, children, options.num_beams)
    return Beams(step.nodes, step.scores, step.scores, step.tokens, step.parents)


def _by_groups(
    source: Source, depth: int, beams: Beams, log_probs: jax.Array, options: BeamOptions
) -> Step:
    """A step of diverse beam search by log-probabilities `log_probs [B, M, V]`.

    Groups are extended one after another; tokens that earlier groups took are penalised.
    """
    batch, _, vocab_size = log_probs.shape
    groups, size = options.num_groups, options.num_beams // options.num_groups
    unique = depth == source.unique_depth - 1  # From here on a state determines its semantic ID.
    user = jnp.arange(batch)[:, None]
    times_taken = jnp.zeros((batch, vocab_size), jnp.float32)
    names = jnp.full((batch, 0), NO_NODE)
    steps = []
    for group in range(groups):
        # At the root all groups continue the one beam.
        first, last = (0, 1) if depth == 0 else (group * size, (group + 1) * size)
        nothing = jnp.zeros((batch, last - first), jnp.float32)
        step = source.best(
            depth,
            jax.tree.map(lambda array, a=first, b=last: array[:, a:b], beams.states),
            beams.scores[:, first:last],
            log_probs[:, first:last] - options.diversity * times_taken[:, None, :],
            Softmax(nothing, nothing, jnp.float32(1.0)),  # They are log-probabilities as they are.
            # A group may repeat what earlier groups ended with, so it asks for as many more.
            size * (group + 1) if unique else size,
        )
        if unique:
            step = _without(source, step, names, size)
        step = _padded(step, size)
        names = jnp.concatenate([names, source.names(step.nodes)], axis=1)
        alive = (step.scores > -jnp.inf).astype(jnp.float32)
        times_taken = times_taken.at[user, step.tokens].add(alive)
        steps.append(dataclasses.replace(step, parents=step.parents + first))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *steps)


def _without(source: Source, step: Step, names: jax.Array, size: int) -> Step:
    """The best `size` beams of a step, without the nodes `names [B, n]`."""
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
