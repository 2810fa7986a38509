"""Exact trie-constrained beam search, compiled as one program over any backbone (docs/methods.md, section 2)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.decoding.beam_step import BeamOptions, Beams, choose, choose_listed, start
from gr.decoding.candidates import Candidates
from gr.decoding.checked import Checked, check_methods, check_nodes, users_of
from gr.decoding.child_scores import listed
from gr.decoding.flaws import Flaws
from gr.decoding.prior import ALLOWED, PriorRequest, as_request, log_scores, with_prior
from gr.decoding.softmax import CHILDREN, VOCABULARY, Softmax, as_temperature, inverse_of, softmax
from gr.decoding.sources import Source, source_of
from gr.decoding.top_k import take_along, top_k
from gr.memory import ItemPrior
from gr.models import Backbone
from gr.trie import NO_ITEM, Constraint, OverlaidIndex, TrieIndex, check_search

UNROLLED = 8  # Up to so many steps without a choice are unrolled; more of them become a loop.


def beam_search(
    backbone: Backbone,
    index: TrieIndex | OverlaidIndex,
    history: Any,
    num_beams: int,
    *,
    constraint: Constraint | Sequence[Constraint] | None = None,
    temperature: float | None = None,
    length_penalty: float = 0.0,
    num_groups: int = 1,
    diversity: float = 0.0,
    keep_beams: bool = False,
    normalise_over: str = VOCABULARY,
    prior: ItemPrior | None = None,
    prior_weight: float | jax.Array = 0.5,
    prior_over: str = ALLOWED,
) -> Candidates:
    """The `num_beams` best semantic IDs of each user by constrained beam search.

    A beam's score is the sum of its tokens' log-softmax values; no score is above 0. The trie only restricts which
    tokens are considered, so no path is lost to pruning inside a step: with M >= N all items are ranked exactly as by
    scoring each of them.

    A model with an item tower (`gr.models.item_share`) is searched for its whole distribution, which P_model is then.

    With a prior, beams are ranked by `log P`, `P(s) = (1 - a) P_model(s) + a mass(s)`, and final scores are `log P`.
    P_model is the probability without a prior, and mass(s) the share of the user's prior weight on items below s. All
    items that share a semantic ID count for it.

    Logits that are not finite:

    * -inf: the token is as good as impossible and ranks last. If all logits are -inf, all tokens are equally likely.
    * +inf: the token takes all of the probability.
    * NaN: the user's candidates have no ranking; see `Candidates`.

    Args:
        backbone: any pytree with `prefill / step / reorder`; it decodes semantic IDs of the index's length.
        index: the trie of valid semantic IDs, in the backbone's vocabulary; or one with recent changes.
        history: the input of the backbone's `prefill`, with leading axis B.
        num_beams: M; may exceed the number of items.
        constraint: the allowed items: `ExcludeItems`, `AttributeFilter`, `ItemMask` (on an `OverlaidIndex`: a mask made
            by its `mask`), or several of them, which must all hold. When nothing is left for a user, none of their
            candidates is valid.
        temperature: divides the logits; above 0 and finite. All numbers share one compiled program. None means 1 and
            has a program of its own, which is faster.
        length_penalty: scores are divided by `L ** length_penalty`: 1 gives the mean log-probability of a token.
        num_groups: number of equally large groups of beams (diverse beam search, arXiv 1610.02424, with Hamming
            diversity). At each step the groups are extended one after another, and each token that earlier groups took
            costs `diversity`. No semantic ID is in two groups. Scores do not include these costs.
        diversity: the cost of a repeated token; see `num_groups`.
        keep_beams: whether to return the nodes that were in the beam after each step.
        normalise_over: "vocabulary", for a model trained by cross-entropy; or "children": the softmax is over the
            tokens that the trie has behind a prefix, whatever the constraint allows. That is for a model trained by the
            masked softmax loss, whose other logits mean nothing. Not for an index with recent changes. A model that
            scores children is always normalised over them.
        prior: items with weights of each user. Items that the index does not have count for nothing. Not with groups.
        prior_weight: a in [0, 1]: a number, or one for each user `[B]`. Another value does not compile again. With 0,
            as for a user none of whose prior items may be decoded, it is the search without a prior, bit for bit.
        prior_over: what masses are shares of: "allowed", the weight on items that the constraint allows; or "all", the
            weight on all items of the index, so that what the constraint removes is lost to the prior.

    Returns:
        Candidates with M beams.

    Raises:
        DecodingError: if an option or the prior is out of range or of a wrong shape; the backbone lacks a method or
            violates the protocol, for example with logits narrower than the index's vocabulary; or the constraint or
            the prior is for another number of users.
        TrieError: for an `ItemMask` of another index, or a constraint of a wrong type or shape.
    """
    options = BeamOptions(
        num_beams, length_penalty, num_groups, diversity, keep_beams, normalise_over
    )
    check_methods(backbone)
    check_search(index, constraint)
    check_nodes(backbone, index)
    request = as_request(prior, prior_weight, prior_over)
    options.check_prior(request, backbone)
    temperature = as_temperature(temperature)
    return _beam_search(backbone, index, history, constraint, temperature, request, options=options)


@functools.partial(jax.jit, static_argnames="options")
def _beam_search(
    backbone: Backbone,
    index: TrieIndex | OverlaidIndex,
    history: Any,
    constraint: Any,
    temperature: jax.Array | None,
    prior: PriorRequest | None,
    *,
    options: BeamOptions,
) -> Candidates:
    model = Checked(backbone, index.vocab_size)
    first = model.prefill(history, constraint)
    source, inverse = source_of(index, constraint), inverse_of(temperature)
    source, first = with_prior(source, prior, model, history, first, inverse)
    return search(model, source, first, temperature, options)


def search(
    backbone: Checked,
    source: Source,
    first: tuple,
    temperature: jax.Array | None,
    options: BeamOptions,
) -> Candidates:
    """Beam search over any source of semantic IDs, to be compiled by the caller.

    Args:
        backbone: see `beam_search`.
        source: the source to search.
        first: the outputs of the backbone's `prefill`.
        temperature: made by `as_temperature`.
        options: how many beams, and how they are grouped and scored.
    """
    logits, hidden, cache = first
    inverse = inverse_of(temperature)
    beams = start(source, users_of(first))
    # `first` has no axis of beams.
    logits, hidden = jax.tree.map(lambda outputs: outputs[:, None], (logits, hidden))
    tokens, parents, names, seen = [], [], [], []

    # While there is a choice: the best continuations of all beams.
    for depth in range(source.unique_depth):
        if depth > 0:
            cache = backbone.reorder(cache, parents[-1])
            logits, hidden, cache = backbone.step(tokens[-1], cache)
        alive = beams.log_probs > -jnp.inf
        if backbone.scores_children:
            children = listed(backbone, source, depth, beams.states, hidden, inverse)
            distributions = children.softmax
            beams = choose_listed(source, depth, beams, children, options)
        else:
            logits = logits.astype(jnp.float32)
            if options.normalise_over == CHILDREN:
                distributions = source.softmax(depth, beams.states, logits, inverse)
            else:
                distributions = softmax(logits, inverse)
            beams = choose(source, depth, beams, logits, distributions, options)
        seen.append((distributions, alive, depth))
        tokens.append(beams.tokens)
        parents.append(beams.parents)
        if options.keep_beams:
            names.append(source.names(beams.states))

    # From `unique_depth` on each beam has one continuation, which is only scored; beams and cache stay in place.
    rest = None
    if source.unique_depth < source.length:
        states, rest = source.complete(beams.states)
        beams = dataclasses.replace(beams, states=states)
        if backbone.scores_children:  # An only child has probability 1.
            exist = source.exist(states)
            log_probs = jnp.where(exist, beams.log_probs, -jnp.inf)
            beams = dataclasses.replace(beams, log_probs=log_probs, scores=log_probs)
        else:
            if source.unique_depth > 0:
                cache = backbone.reorder(cache, parents[-1])
                logits, _, cache = backbone.step(tokens[-1], cache)
            over_children = options.normalise_over == CHILDREN
            beams, more = _follow(
                source, backbone, beams, cache, logits, rest, inverse, over_children
            )
            seen += more
        if options.keep_beams:
            names += [source.names(states)] * len(rest)

    scores = log_scores(source, beams.states, beams.log_probs)
    beams = dataclasses.replace(beams, log_probs=scores)
    found, _ = ranked(source, beams, tokens, parents, options.num_beams, rest)
    scores = found.scores
    if options.length_penalty:
        scores = scores / source.length**options.length_penalty
    flaws = Flaws.of_steps(*zip(*seen, strict=True)) if seen else Flaws.none(len(scores))
    return flaws.told(dataclasses.replace(found, scores=scores, beams=tuple(names)))


def _follow(
    source: Source,
    backbone: Checked,
    beams: Beams,
    cache: Any,
    logits: jax.Array,
    rest: jax.Array,
    inverse: jax.Array | None,
    over_children: bool,
) -> tuple[Beams, list[tuple[Softmax, jax.Array, Any]]]:
    """Scores beams along their only continuation `rest [n, B, M]`; `logits [B, M, V]` are those of the first step.

    Many such steps run as one loop if the backbone's cache keeps its shapes; unrolled, each step would be compiled
    separately. Also returns each step's distributions, the beams before it, and its number.
    """
    exist = source.exist(beams.states)

    def score(log_probs: jax.Array, logits: jax.Array, tokens: jax.Array) -> tuple:
        logits = logits.astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1, mode="promise_in_bounds")
        # A prefix with one continuation has one child.
        distributions = softmax(chosen if over_children else logits, inverse)
        alive = log_probs > -jnp.inf
        scores = log_probs + distributions.of(chosen[..., 0])
        return jnp.where(exist & alive, scores, -jnp.inf), (distributions, alive)

    def step(carry: tuple, tokens: tuple[jax.Array, jax.Array]) -> tuple:
        log_probs, cache = carry
        logits, _, cache = backbone.step(tokens[0], cache)
        log_probs, seen = score(log_probs, logits, tokens[1])
        return (log_probs, cache), seen

    first, count = source.unique_depth, len(rest)
    log_probs, seen = score(beams.log_probs, logits, rest[0])
    seen = [(*seen, first)]
    if count > UNROLLED and _keeps_shapes(backbone, rest[0], cache):
        carry = (log_probs, jax.tree.map(jnp.asarray, cache))
        (log_probs, _), more = jax.lax.scan(step, carry, (rest[:-1], rest[1:]))
        # Beams of all steps side by side, [n, B, M] -> [B, n * M].
        beside = [
            jax.lax.collapse(jnp.moveaxis(x, 0, 1), 1)
            for x in (more[0].largest, more[0].log_total, more[1])
        ]
        steps = np.repeat(np.arange(first + 1, first + count), rest.shape[-1])
        seen.append((Softmax(beside[0], beside[1], inverse), beside[2], steps))
    else:
        for place in range(1, count):
            (log_probs, cache), more = step((log_probs, cache), (rest[place - 1], rest[place]))
            seen.append((*more, first + place))
    return Beams(beams.states, log_probs, log_probs, None, None), seen


def _keeps_shapes(backbone: Checked, tokens: jax.Array, cache: Any) -> bool:
    """Whether a step can run in a compiled loop: its cache keeps its shapes, and the step reads none of its values."""
    try:
        before = jax.tree.map(jnp.asarray, cache)
        after = jax.eval_shape(lambda t, c: backbone.step(t, c)[2], tokens, before)
    except TypeError:  # From JAX, such as for a layer chosen by depth, or a cache without arrays.
        return False

    def shapes(tree: Any) -> tuple:
        leaves, structure = jax.tree.flatten(tree)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    return shapes(before) == shapes(after)


def ranked(
    source: Source,
    beams: Beams,
    tokens: list[jax.Array],
    parents: list[jax.Array | None],
    count: int,
    rest: jax.Array | None = None,
) -> tuple[Candidates, jax.Array]:
    """The best `count` complete beams by log-probability; invalid ones are blanked.

    Args:
        source: the searched source.
        beams: the last ones `[B, M]`.
        tokens: the tokens of each step, `[B, M_t]`.
        parents: the parents of each step, `[B, M_t]`, or None where beams kept their places.
        count: candidates per user; some may be invalid.
        rest: tokens of the steps behind those, in which beams stood still, `[n, B, M]`.

    Returns:
        The candidates, and the beam `[B, <= count]` that each of them was.
    """
    # A semantic ID none of whose items is allowed may have been let through where no level was scanned.
    items = source.items(beams.states)
    scores = jnp.where((items != NO_ITEM).any(-1), beams.log_probs, -jnp.inf)
    scores, order = top_k(scores, min(count, scores.shape[1]))
    valid = scores > -jnp.inf
    items = _columns_of(jnp.moveaxis(items, -1, 0), order)
    paths = _backtrack(tokens, parents, order, rest)
    missing = ((0, 0), (0, count - scores.shape[1]))
    candidates = Candidates(
        tokens=jnp.pad(
            jnp.where(valid[..., None], paths, -1), (*missing, (0, 0)), constant_values=-1
        ),
        items=jnp.pad(
            jnp.where(valid[..., None], items, -1), (*missing, (0, 0)), constant_values=-1
        ),
        scores=jnp.pad(scores, missing, constant_values=-jnp.inf),
        valid=jnp.pad(valid, missing),
    )
    return candidates, order


def _backtrack(
    tokens: list[jax.Array],
    parents: list[jax.Array | None],
    order: jax.Array,
    rest: jax.Array | None,
) -> jax.Array:
    """Tokens `[B, M, L]` of the last beams in `order [B, M]`, from each step's tokens and parents `[B, M_t]`."""
    beam = order
    path = []
    for token, parent in zip(reversed(tokens), reversed(parents), strict=True):
        path.append(take_along(token, beam)[..., None])
        if parent is not None:  # Else beams stood still.
            beam = take_along(parent, beam)
    path = path[::-1]
    if rest is not None and len(rest):
        path.append(_columns_of(rest, order))
    return _side_by_side(path)


def _columns_of(values: jax.Array, order: jax.Array) -> jax.Array:
    """Beams of `[n, B, M]` in another order `[B, M']`, `[B, M', n]`."""

    def one_by_one(values: jax.Array, order: jax.Array) -> jax.Array:
        """For a TPU, which compares places, and does so once for all."""
        return jnp.stack([take_along(level, order) for level in values], axis=-1)

    def at_once(values: jax.Array, order: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jnp.moveaxis(values, 0, -1), order[..., None], axis=1)

    return jax.lax.platform_dependent(values, order, tpu=one_by_one, default=at_once)


def _side_by_side(parts: list[jax.Array]) -> jax.Array:
    """Concatenates `[B, M, n]` along the last axis."""

    def as_sum(*parts: jax.Array) -> jax.Array:
        """For a TPU, which otherwise writes one part after the other."""
        columns = [part[..., i, None] for part in parts for i in range(part.shape[-1])]
        places = np.arange(len(columns))
        return sum(jnp.where(places == i, column, 0) for i, column in enumerate(columns))

    def concatenated(*parts: jax.Array) -> jax.Array:
        return jnp.concatenate(parts, axis=-1)

    return jax.lax.platform_dependent(*parts, tpu=as_sum, default=concatenated)
