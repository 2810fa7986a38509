"""VED, value-guided efficient decoding: a tree search with a budget (V-STAR, arXiv 2602.10699; methods, section 5).

What costs is giving the model a token: the budget counts that, and every prefix of 1..L - 1 codes in the tree is one.
The paper leaves several things open; here they are decided as follows.

* *Complete semantic IDs are free.* A prefix of L - 1 codes, once evaluated, knows the probabilities of all that
  complete it, so all of them are candidates, as in the last step of a beam search, and such a prefix does not grow.
* *Where a descent ends.* From the root it goes to the child with the highest U below which something can grow, and
  ends at a prefix that may grow itself and whose own U no such child exceeds.
* *The gate.* A prefix may grow if codes are left that it was not continued by, and if its G is at least the mean of
  all evaluated prefixes of its depth. When that leaves a user nothing, any prefix with codes left may grow, so that
  the budget is not wasted. A user whose trie is exhausted stops early.
* *Visits.* N(s) is the number of prefixes evaluated below s, those of the beam search included: 0 when s is new.
* *Sampling.* Each prefix gets Gumbel noise for its codes when it is evaluated, and its codes are tried in the order
  of perturbed log-probability: that is drawing from the allowed codes that are left. The noise depends on the key,
  the user's place in the batch and the prefix's number only.
* *Unfinished paths.* A new prefix has N = 0 and hence the largest bonus; it is not completed out of turn. The beam
  search's prefixes stay in the tree, so that its semantic IDs are candidates in any case.
* *Several at once.* W descents are made one after another before the model is asked, on the latest visits; only
  the merits of the last few prefixes are not known yet. W = 1 is the sequential algorithm.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.beam import check_request, ranked, scaled
from gr.decoding.candidates import Candidates, DecodingError
from gr.decoding.choose import CHILDREN, VOCABULARY, Beams, choose, start
from gr.decoding.choose import Options as BeamOptions
from gr.decoding.evaluate import Options, Search, ValueHead, evaluated, fitted
from gr.decoding.expand import LOWEST
from gr.decoding.sources import emptied, source_of
from gr.decoding.top_k import split, take_along, top_k
from gr.decoding.tree import (
    Prefixes,
    Tree,
    append,
    can_grow,
    counted,
    empty,
    numbers,
    published,
    rows,
    select,
)
from gr.models import TreeBackbone
from gr.trie import Constraint, OverlaidIndex, TrieIndex


def ved_search(
    backbone: TreeBackbone,
    value_head: ValueHead | None,
    index: TrieIndex | OverlaidIndex,
    history: Any,
    *,
    key: jax.Array,
    budget: int,
    num_candidates: int,
    initial_beams: int = 8,
    entropy_weight: float = 0.1,
    prior_weight: float = 0.0,
    exploration: float = 1.0,
    width: int = 8,
    constraint: Constraint | Sequence[Constraint] | None = None,
    temperature: float = 1.0,
    normalise_over: str = VOCABULARY,
    keep_tree: bool = False,
) -> Candidates:
    """The best semantic IDs found by a value-guided tree search of each user with a budget.

    A beam search builds the tree. Then, until the budget is spent, it grows where G(s) = V(s) + lambda H(s) is high
    and few visits were made: U(s) = G(s) + beta sqrt(ln(N(root) + 1) / (N(s) + 1)). All users of the batch search in
    lockstep, W prefixes at a time.

    Args:
        backbone: see `beam_search`; also with `latest / assemble`.
        value_head: V of prefixes from the backbone's hidden states; None: V = 0, entropy alone guides.
        index: see `beam_search`.
        history: see `beam_search`.
        key: of the random numbers.
        budget: most tokens that the model is given for a user, besides the history.
        num_candidates: G.
        initial_beams: beams of the search that builds the tree.
        entropy_weight: lambda, of H in nats.
        prior_weight: of a prefix's log-probability, which the paper does not have in G: as in a best-first search.
        exploration: beta.
        width: W; 1 is the sequential algorithm, more make better use of the device.
        constraint: see `beam_search`.
        temperature: logits are divided by it, for scores, entropies and sampling.
        normalise_over: what scores are normalised over; see `beam_search`. Entropies and sampling are always among
            the allowed children.
        keep_tree: whether to return the tree.

    Returns:
        Candidates with G beams, the best complete semantic IDs below evaluated prefixes, by `scores` as those of
        `beam_search`; `evaluations`, at most the budget; the `tree` if asked for.

    Raises:
        DecodingError: see `beam_search`; also if a number is too small, such as the budget for the beam search.
    """
    if initial_beams < 1:
        raise DecodingError(f"initial_beams must be at least 1, got {initial_beams}")
    options = Options(
        budget=budget,
        num_candidates=num_candidates,
        beams=BeamOptions(initial_beams, temperature, normalise_over=normalise_over),
        entropy_weight=entropy_weight,
        prior_weight=prior_weight,
        exploration=exploration,
        width=width,
        keep_tree=keep_tree,
    )
    return _ved_search(backbone, value_head, index, history, constraint, key, options=options)


@functools.partial(jax.jit, static_argnames="options")
def _ved_search(
    backbone: TreeBackbone,
    value_head: ValueHead | None,
    index: TrieIndex | OverlaidIndex,
    history: Any,
    constraint: Any,
    key: jax.Array,
    *,
    options: Options,
) -> Candidates:
    first = backbone.prefill(history)
    check_request(index.vocab_size, first[0], constraint)
    options.check_budget(index.length)
    search = Search(backbone, value_head, source_of(index, constraint), first, key, options)
    tree = _build(search)
    if search.source.length > 1:
        tree = jax.lax.while_loop(
            lambda tree: can_grow(tree, options.limit).any(),
            functools.partial(_grow, search),
            tree,
        )
    found = _complete(search, tree)
    return dataclasses.replace(
        found,
        evaluations=tree.size - 1,
        tree=published(tree, options.limit) if options.keep_tree else None,
    )


def _build(search: Search) -> Tree:
    """The tree of all prefixes that a beam search evaluates."""
    backbone, source, options = search.backbone, search.source, search.options
    logits, hidden, cache = search.first
    logits, hidden = logits[:, None], hidden[:, None]
    beams = start(source, len(logits))
    none = jnp.zeros((len(logits), 1, search.longest), jnp.int32)
    parents, paths, codes = none[..., :0].sum(-1), none, none
    tree = None
    for depth in range(source.length):
        block = evaluated(
            search,
            range(depth, depth + 1),
            tree,
            depths=jnp.full(parents.shape, depth, jnp.int32),
            parents=parents,
            paths=paths,
            codes=codes,
            states=beams.states,
            log_probs=beams.log_probs,
            outputs=(logits, hidden, backbone.latest(cache)),
        )
        if tree is None:
            capacity = options.limit + max(options.width, options.beams.num_beams)
            tree = empty(fitted(block, search.places), capacity)
        exist = beams.log_probs > -jnp.inf
        if depth == search.longest:
            return counted(append(tree, fitted(block, search.places), exist))

        # The beam search's next step.
        logits, normaliser = scaled(logits, options.beams.temperature)
        if options.beams.normalise_over == CHILDREN:
            normaliser = source.log_sum_exp(depth, beams.states, logits)
        beams = choose(source, depth, beams, logits, normaliser, options.beams)
        block = fitted(_without(block, beams), search.places)
        place = take_along(numbers(tree, exist.shape[1]), beams.parents)
        tree = append(tree, block, exist)
        parents = place
        paths, codes = _longer(tree, place, beams.tokens, depth + 1)
        cache = backbone.reorder(cache, beams.parents)
        logits, hidden, cache = backbone.step(beams.tokens, cache)
    raise AssertionError("unreachable: the last depth returns")


def _without(block: Prefixes, beams: Beams) -> Prefixes:
    """The prefixes before a step, without the turns of the codes that the beams took."""
    # [B, M, K, M']: whether code K of prefix M is what beam M' took.
    from_here = jnp.arange(block.depths.shape[1])[:, None, None] == beams.parents[:, None, None, :]
    same = block.ways[..., None] == beams.tokens[:, None, None, :]
    alive = (beams.log_probs > -jnp.inf)[:, None, None, :]
    turns = jnp.where((from_here & same & alive).any(-1), -jnp.inf, block.turns)
    unexpanded = (turns > -jnp.inf).sum(-1, dtype=jnp.int32)
    return dataclasses.replace(block, turns=turns, unexpanded=unexpanded)


def _longer(
    tree: Tree, parents: jax.Array, tokens: jax.Array, depths: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Paths and codes `[B, W, S]` of the next prefixes, `parents [B, W]` continued by `tokens [B, W]`."""
    prefixes = tree.prefixes
    place = jnp.arange(prefixes.paths.shape[-1])
    depth = jnp.broadcast_to(depths, tokens.shape)[..., None]
    mine = numbers(tree, tokens.shape[1])[..., None]
    paths = jnp.where(place == depth, mine, rows(prefixes.paths, parents))
    codes = jnp.where(place == depth - 1, tokens[..., None], rows(prefixes.codes, parents))
    return paths, codes


def _grow(search: Search, tree: Tree) -> Tree:
    """One more evaluation of up to W prefixes a user."""
    backbone, source, options = search.backbone, search.source, search.options
    tree, parents, place, exist = select(
        tree,
        options.limit,
        options.width,
        entropy_weight=options.entropy_weight,
        prior_weight=options.prior_weight,
        exploration=options.exploration,
    )
    prefixes = tree.prefixes
    user = jnp.arange(len(parents))[:, None]
    tokens = jnp.where(exist, prefixes.ways[user, parents, place], 0)
    gains = prefixes.gains[user, parents, place]
    log_probs = jnp.maximum(prefixes.log_probs[user, parents] + gains, LOWEST)
    depths = prefixes.depths[user, parents]
    states = jax.tree.map(lambda array: array[user, parents], prefixes.states)
    below = [
        source.descend(depth, emptied(states, exist & (depths == depth)), tokens)
        for depth in range(search.longest)
    ]
    states = jax.tree.map(lambda *bounds: sum(bounds), *below)  # None but one is not empty.

    paths = rows(prefixes.paths, parents)
    cache = backbone.assemble(search.first[2], prefixes.stored, paths, depths)
    logits, hidden, cache = backbone.step(tokens, cache)
    paths, codes = _longer(tree, parents, tokens, depths + 1)
    block = evaluated(
        search,
        range(1, source.length),
        tree,
        depths=depths + 1,
        parents=parents,
        paths=paths,
        codes=codes,
        states=states,
        log_probs=log_probs,
        outputs=(logits, hidden, backbone.latest(cache)),
    )
    return append(tree, fitted(block, search.places), exist)


def _complete(search: Search, tree: Tree) -> Candidates:
    """The best semantic IDs that complete the longest prefixes."""
    prefixes, count, length = tree.prefixes, search.options.num_candidates, search.source.length
    scores = jnp.maximum(prefixes.log_probs[..., None] + prefixes.gains, LOWEST)
    longest = tree.exist & (prefixes.depths == search.longest)
    scores = jnp.where(longest[..., None] & (prefixes.gains > -jnp.inf), scores, -jnp.inf)
    scores = scores.reshape(len(scores), -1)
    scores, order = top_k(scores, min(count, scores.shape[1]))
    node, place = split(order, search.places)
    user = jnp.arange(len(node))[:, None]
    tokens = prefixes.ways[user, node, place]
    states = jax.tree.map(lambda array: array[user, node], prefixes.states)
    states = emptied(states, scores > -jnp.inf)
    states = search.source.descend(search.longest, states, tokens)
    codes = rows(prefixes.codes, node)
    steps = [*(codes[..., depth] for depth in range(search.longest)), tokens]
    beams = Beams(states, scores, scores, None, None)
    return ranked(search.source, beams, steps, [None] * length, count)[0]
