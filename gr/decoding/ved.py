"""VED, value-guided efficient decoding: a tree search with a budget (V-STAR; docs/methods.md, section 5).

The budget counts tokens given to the model; every prefix of 1..L - 1 codes in the tree is one token. The paper leaves
several details open. We decide them as follows.

* *Complete semantic IDs are free.* Evaluating a prefix of L - 1 codes gives the probabilities of all its completions.
  All of them are candidates, as in the last step of a beam search, and the prefix does not grow.
* *So are codes without an alternative.* If scores are normalised over a prefix's children, an only child has
  probability 1. A continuation with a single item behind it is therefore a candidate with a known score, and costs no
  token.
* *Where a descent ends.* From the root it goes to the child with the highest U below which something can grow, and
  ends at a prefix that may grow itself and whose own U no such child exceeds.
* *The gate.* A prefix may grow if it has untried codes, and if its G is at least the mean of all evaluated prefixes of
  its depth. If no prefix of a user passes, any prefix with untried codes may grow, so that the budget is not wasted. A
  user whose trie is exhausted stops early.
* *Visits.* N(s) is the number of prefixes evaluated below s, those of the beam search included: 0 when s is new.
* *Sampling.* Each prefix gets Gumbel noise for its codes when it is evaluated, and its codes are tried in the order of
  perturbed log-probability. This samples from the allowed codes without replacement. The noise depends only on the key,
  the user's place in the batch and the prefix's number. Without noise the most probable code is tried first.
* *Unfinished paths.* A new prefix has N = 0 and hence the largest bonus; it is not completed out of turn. The beam
  search's prefixes stay in the tree, so that its semantic IDs are candidates in any case.
* *Several at once.* W descents are made one after another before the model is called. Each uses the latest visit
  counts; only the merits G of the last few prefixes are not known yet. W = 1 is the sequential algorithm. If W
  is enough for the initial beams, the last step of their search is the first of these steps, and descents fill it up:
  near the leaves of a trie there are often fewer prefixes left than beams.

Besides the published descents ("ved") there is our best-first search ("best_first"). It has no gate. It also weighs the
probability of the prefix to be evaluated and the number of items that share it, which a descent ignores. See
`ved_selection.py`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.beam import ranked
from gr.decoding.beam_step import Beams
from gr.decoding.candidates import Candidates, DecodingError
from gr.decoding.checked import TREE_METHODS, Checked, check_methods, check_nodes, users_of
from gr.decoding.flaws import Flaws
from gr.decoding.prior import ALLOWED, PriorRequest, as_request, log_scores, with_prior
from gr.decoding.softmax import as_temperature, inverse_of
from gr.decoding.sources import Listing, emptied, source_of
from gr.decoding.top_k import split, top_k
from gr.decoding.ved_config import BEST_FIRST, VED, VedConfig
from gr.decoding.ved_selection import (
    MANY,
    Choice,
    beam,
    behind,
    best_first,
    descent,
    mark_tried,
)
from gr.decoding.ved_step import (
    Search,
    ValueHead,
    each_level,
    expanded,
    first_at_once,
    fitted,
    noise_of_prefixes,
)
from gr.decoding.ved_tree import Tree, append, can_grow, empty, numbers, public_view, rows, settled
from gr.memory import ItemPrior
from gr.models import TreeBackbone
from gr.trie import Constraint, OverlaidIndex, TrieIndex, check_search
from gr.trie.transitions import Depth

_SELECTIONS = {VED: descent, BEST_FIRST: best_first}


def ved_search(
    backbone: TreeBackbone,
    value_head: ValueHead | None,
    index: TrieIndex | OverlaidIndex,
    history: Any,
    config: VedConfig,
    *,
    key: jax.Array,
    constraint: Constraint | Sequence[Constraint] | None = None,
    temperature: float | None = None,
    prior: ItemPrior | None = None,
    prior_weight: float | jax.Array = 0.5,
    prior_over: str = ALLOWED,
    keep_tree: bool = False,
) -> Candidates:
    """The best semantic IDs found by a value-guided tree search of each user with a budget.

    A beam search begins the tree. Then, until the budget is spent, it grows where G(s) = V(s) + lambda H(s) is high and
    visits are few: U(s) = G(s) + beta sqrt(ln(N(root) + 1) / (N(s) + 1)). All users of the batch search in lockstep, W
    prefixes at a time.

    Args:
        backbone: see `beam_search`; also with `latest / assemble`.
        value_head: V of prefixes from the backbone's hidden states; None: V = 0, entropy alone guides.
        index: see `beam_search`.
        history: see `beam_search`.
        config: where the tree grows, and its budget.
        key: random key.
        constraint: see `beam_search`.
        temperature: see `beam_search`; of scores, entropies and sampling.
        prior: see `beam_search`. The mixture P takes the model's place: candidates are ranked by `log P`, and the
            probability of a code c behind a prefix s is `P(sc) / P(s)`, in the initial beams, in entropies, in sampling
            and in priorities. Values stay those of the value head. The tree's `log_probs` are `log P`.
        prior_weight: see `beam_search`; not the config's field of that name, which weighs log-probabilities.
        prior_over: see `beam_search`.
        keep_tree: whether to return the tree.

    Returns:
        Candidates with G beams: the best complete semantic IDs behind evaluated prefixes, ranked by `scores` as in
        `beam_search`. `evaluations` is at most the budget; `tree` is set if asked for.

    Raises:
        DecodingError: see `beam_search`; also for a config of another search, or a budget too small for the initial
            beams.
    """
    if config.name not in _SELECTIONS:
        raise DecodingError(
            f"search.name={config.name!r} is no tree search: use one of {', '.join(_SELECTIONS)}, or "
            "`gr.decoding.search`"
        )
    check_methods(backbone, TREE_METHODS)
    check_search(index, constraint)
    check_nodes(backbone, index)
    request = as_request(prior, prior_weight, prior_over)
    temperature = as_temperature(temperature)
    return _ved_search(
        backbone,
        value_head,
        index,
        history,
        constraint,
        key,
        temperature,
        request,
        config=config,
        keep_tree=keep_tree,
    )


@functools.partial(jax.jit, static_argnames=("config", "keep_tree"))
def _ved_search(
    backbone: TreeBackbone,
    value_head: ValueHead | None,
    index: TrieIndex | OverlaidIndex,
    history: Any,
    constraint: Any,
    key: jax.Array,
    temperature: jax.Array | None,
    prior: PriorRequest | None,
    *,
    config: VedConfig,
    keep_tree: bool,
) -> Candidates:
    model = Checked(backbone, index.vocab_size, with_hidden=True)
    first = model.prefill(history, constraint)
    config.check_budget(index.length)
    inverse = inverse_of(temperature)
    source = source_of(index, constraint)
    source, first = with_prior(source, prior, model, history, first, inverse)
    search = Search(model, value_head, source, first, key, inverse, config)
    search = dataclasses.replace(search, noise=noise_of_prefixes(search, users_of(first)))
    tree, limit = _root(search), config.max_prefixes
    if config.initial_beams:
        tree = _begun(search, tree)
    if search.longest:
        tree = _spent(search, tree)
    found = dataclasses.replace(
        _complete(search, tree),
        evaluations=tree.size - 1,
        tree=public_view(tree, limit) if keep_tree else None,
    )
    return _flaws(tree).told(found)


def _begun(search: Search, tree: Tree) -> Tree:
    """The initial tree: the prefixes of a beam search, but for a last step that is the first one of `_spent`."""
    steps = search.longest - search.config.beams_fit

    def longer(depth: Any, tree: Tree, levels: range) -> Tree:
        choice = beam(tree, depth, search.config.initial_beams, levels.stop)
        return _grown(search, mark_tried(tree, choice), choice, levels)

    if search.longest > MANY:
        # A step over all levels runs longer, but one step per level would take minutes to compile.
        levels = range(search.longest)
        return jax.lax.fori_loop(0, steps, lambda d, t: longer(d, t, levels), tree)
    for depth in range(steps):
        tree = longer(depth, tree, range(depth, depth + 1))
    return tree


def _spent(search: Search, tree: Tree) -> Tree:
    """The tree when the budget is spent, grown by W prefixes at a time."""
    config, longest = search.config, search.longest
    rule, limit = _SELECTIONS[config.name], config.max_prefixes

    def grow(tree: Tree, is_first: jax.Array) -> tuple[Tree, jax.Array]:
        begin, end = tree.size, jnp.minimum(tree.size + config.width, limit)
        if not config.beams_fit:
            tree, choice = rule(tree, config, begin, end)
        else:
            # In all steps, though used in the first: a branch would be given a copy of the tree.
            beams = beam(tree, longest - 1, config.initial_beams, longest)
            beams = dataclasses.replace(beams, exist=beams.exist & is_first)
            behind_beams = begin + beams.exist.sum(axis=1, dtype=jnp.int32)
            tree, others = rule(mark_tried(tree, beams), config, behind_beams, end)
            choice = behind(beams, others)
        return _grown(search, tree, choice, range(longest)), jnp.zeros((), bool)

    def goes_on(carry: tuple[Tree, jax.Array]) -> jax.Array:
        return can_grow(carry[0], limit).any()

    return jax.lax.while_loop(goes_on, lambda carry: grow(*carry), (tree, jnp.ones((), bool)))[0]


def _flaws(tree: Tree) -> Flaws:
    """Flaws of the model's outputs, the shortest prefix first."""
    prefixes, exist = tree.prefixes, tree.exist
    return Flaws.of(prefixes.flawed & exist, prefixes.nan & exist, prefixes.depths)


def _root(search: Search) -> Tree:
    """The tree of the empty prefix."""
    config, (logits, hidden, cache) = search.config, search.first
    none = jnp.zeros((len(hidden), 1, search.longest), jnp.int32)
    zero = jnp.zeros((len(hidden), 1), jnp.int32)
    states = search.source.root(len(hidden))
    block = expanded(
        search,
        range(1),
        None,
        depths=zero,
        parents=zero,
        paths=none,
        tokens=none,
        states=states,
        log_probs=log_scores(search.source, states, zero.astype(jnp.float32)),
        model_log_probs=zero.astype(jnp.float32) if search.has_prior else None,
        outputs=(
            None if logits is None else logits[:, None],
            hidden[:, None],
            search.backbone.latest(cache),
        ),
    )
    if config.initial_beams and search.longest:
        # The beam search takes the most probable children, so they must have a place.
        probable = jnp.where(block.priority > -jnp.inf, block.child_log_probs, -jnp.inf)[:, 0]
        best, places = top_k(probable, min(config.initial_beams, probable.shape[1]))
        user = jnp.arange(len(best))[:, None]
        first = jnp.where(best > -jnp.inf, jnp.inf, -jnp.inf)
        block = dataclasses.replace(block, priority=block.priority.at[user, 0, places].set(first))
    block = fitted(search, block)
    return append(empty(block, config.capacity, search.places), block, jnp.ones(zero.shape, bool))


def _grown(search: Search, tree: Tree, choice: Choice, levels: range) -> Tree:
    """The tree with the chosen children evaluated; static `levels`: the depths of their parents."""
    backbone, prefixes = search.backbone, tree.prefixes
    parents, exist, user = choice.parents, choice.exist, jnp.arange(len(tree.size))[:, None]
    tokens = jnp.where(exist, prefixes.child_tokens[user, parents, choice.places], 0)
    log_probs = prefixes.child_log_probs[user, parents, choice.places]
    model_log_probs = None
    if search.has_prior:
        of_model = prefixes.child_model_log_probs[user, parents, choice.places]
        model_log_probs = rows(prefixes.model_log_probs, parents) + of_model
    depths = rows(prefixes.depths, parents)
    states = jax.tree.map(lambda array: rows(array, parents), prefixes.states)
    paths = rows(prefixes.paths, parents)
    above = paths[..., : levels.stop]  # No prefix that grows here has more codes.
    cache = backbone.assemble(search.first[2], prefixes.stored, above, depths)
    logits, hidden, cache = backbone.step(tokens, cache)

    place, depth = jnp.arange(search.longest), depths[..., None]
    mine = numbers(tree, tokens.shape[1])[..., None]
    block = expanded(
        search,
        range(levels.start + 1, levels.stop + 1),
        tree,
        depths=depths + 1,
        parents=parents,
        paths=jnp.where(place == depth + 1, mine, paths),
        tokens=jnp.where(place == depth, tokens[..., None], rows(prefixes.tokens, parents)),
        states=settled(tree, _descended(search, levels, depths, emptied(states, exist), tokens)),
        log_probs=rows(prefixes.log_probs, parents) + log_probs,
        model_log_probs=model_log_probs,
        outputs=(logits, hidden, backbone.latest(cache)),
    )
    return append(tree, block, exist)


def _descended(
    search: Search, levels: range, depths: jax.Array, states: Any, tokens: jax.Array
) -> Any:
    """The child states of states of several depths, all in the static `levels`."""
    below = [
        search.source.descend(depth, emptied(states, here), tokens)
        for depth, here in each_level(search.source, levels, depths)
    ]
    return jax.tree.map(lambda *bounds: sum(bounds), *below)  # Only one of them is not empty.


def _complete(search: Search, tree: Tree) -> Candidates:
    """The best complete semantic IDs of the tree."""
    prefixes, source = tree.prefixes, search.source
    count = search.config.num_candidates
    scores = prefixes.log_probs[..., None] + prefixes.child_log_probs
    known = tree.exist[..., None] & prefixes.terminal & (prefixes.child_log_probs > -jnp.inf)
    scores = jax.lax.collapse(jnp.where(known, scores, -jnp.inf), 1)
    scores, order = top_k(scores, min(count, scores.shape[1]))
    node, place = split(order, search.places)
    depths = rows(prefixes.depths, node)
    tokens = prefixes.child_tokens[jnp.arange(len(node))[:, None], node, place]
    states = jax.tree.map(lambda array: rows(array, node), prefixes.states)
    states = emptied(states, scores > -jnp.inf)
    levels = range(0 if search.over_children else search.longest, source.length)
    states = _descended(search, levels, depths, states, tokens)
    known = rows(prefixes.tokens, node)
    steps = [jnp.where(depths == t, tokens, known[..., t]) for t in range(search.longest)]
    steps.append(tokens)
    if search.over_children:
        states, steps = _followed(source, depths, states, steps)
    beams = Beams(states, scores, scores, None, None)
    return ranked(source, beams, steps, [None] * source.length, count)[0]


def _followed(
    source: Listing, depths: jax.Array, states: Any, steps: list[jax.Array]
) -> tuple[Any, list[jax.Array]]:
    """States and tokens of complete semantic IDs, from those of prefixes of `depths` codes and a terminal child."""

    def follow(level: Depth, states: Any, known: jax.Array) -> tuple[Any, jax.Array]:
        on = depths < level
        here = emptied(states, on)
        tokens, exist = source.continuations(level, here)
        only = jnp.argmax(exist, axis=-1)[..., None]
        token = jnp.take_along_axis(tokens, only, axis=-1)[..., 0]
        below = source.descend(level, here, token)
        states = jax.tree.map(lambda new, old: jnp.where(on, new, old), below, states)
        return states, jnp.where(on, token, known)

    steps, first = list(steps), first_at_once(source, range(1, source.length))
    for level in range(1, first):
        states, steps[level] = follow(level, states, steps[level])
    if first < source.length:

        def next_one(states: Any, level_and_known: tuple) -> tuple[Any, jax.Array]:
            level, known = level_and_known
            return follow(jnp.broadcast_to(level, depths.shape), states, known)

        levels = jnp.arange(first, source.length)
        states, rest = jax.lax.scan(next_one, states, (levels, jnp.stack(steps[first:])))
        steps[first:] = list(rest)
    return states, steps
