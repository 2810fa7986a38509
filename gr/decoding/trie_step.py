"""One step of a search on one trie: the best children of all beams, with one algorithm per kind of level."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.decoding.softmax import Softmax, centred
from gr.decoding.top_k import best_of_blocks, first_of_sorted, split, take_along, top_k
from gr.trie import Filter, Nodes, TrieIndex
from gr.trie.bit_rows import PLANES, expand, octets_by_product, octets_of, rank
from gr.trie.layout import DENSE, SPARSE
from gr.trie.packed import take
from gr.trie.transitions import (
    Depth,
    child_numbers,
    child_tokens,
    enter,
    kind_of,
    listed_tokens,
    scanned_slots,
    slot_tokens,
)

_OCTETS = 16  # Octets of one beam whose maximum is taken before anything is sorted.
_FEW_TOKENS = 4096
_MANY_OCTETS = 4096  # Fewer than these are sorted as they are.
_NARROW = 256  # Up to so many tokens of a level are compared by a TPU, rather than gathered from.
_FEW_SLOTS = 8  # Up to so many slots of a child are compared one by one.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """The beams after a step, best first, `[B, M']` each."""

    scores: jax.Array  # float32; -inf where there is no beam.
    parents: jax.Array  # int32: the beam before the step that each comes from.
    tokens: jax.Array  # int32.
    nodes: Any  # `Nodes`, or another source's states.


def best_children(
    index: TrieIndex,
    depth: int,
    nodes: Nodes,
    before: jax.Array,
    logits: jax.Array,
    softmax: Softmax,
    width: int,
    only: Filter | None = None,
) -> Step:
    """The best children of all beams of each user, by the score of the parent plus the log-probability of the token.

    Within a beam this is the order of the logits, so only few log-probabilities are computed.

    Args:
        index: the trie.
        depth: depth of `nodes`; static.
        nodes: `[B, M]`.
        before: their scores `[B, M]` float32.
        logits: `[B, M, V]` float32.
        softmax: of the beams.
        width: maximum number of children per user; fewer if there cannot be as many.
        only: the filter of a constraint; None allows everything.
    """
    # The part of a token's score that does not depend on the token.
    offset = jnp.where(nodes.exist, before - softmax.log_total, -jnp.inf)
    width = min(width, index.layout.max_nodes(depth + 1))
    kind = index.layout.levels[depth].kind
    if kind == DENSE:
        return _best_of_bits(index, depth, nodes, offset, logits, softmax, width, only)
    if kind == SPARSE:
        return _best_of_list(index, depth, nodes, offset, logits, softmax, width, only)
    return _best_of_slots(index, depth, nodes, offset, logits, softmax, width, only)


def allowed_tokens(
    index: TrieIndex, depth: Depth, nodes: Nodes, only: Filter | None = None
) -> tuple[jax.Array, jax.Array]:
    """All tokens that may follow the nodes of each user, and which of them do; `child_tokens` under a filter.

    Args:
        index: the trie.
        depth: depth of `nodes`; static, or `[B, M]` at SCAN levels.
        nodes: `[B, M]`; a user's nodes are distinct; filters rely on it.
        only: the filter of a constraint; None allows everything.

    Returns:
        Tokens `[B, M, K]` int32, in token order, and which exist `[B, M, K]`: each allowed token once.
    """
    tokens, exist = child_tokens(index, depth, nodes)
    if only is None:
        return tokens, exist
    kind = kind_of(index, depth)
    if kind == DENSE:
        rows = only.rows(index, depth, nodes, take(index.children[depth], nodes.begin))
        return tokens, exist & expand(rows)
    if kind == SPARSE:
        numbers, _ = child_numbers(index, depth, nodes)
        return tokens, only.children(index, depth, nodes, numbers, exist)
    slots, inside = scanned_slots(index, depth, nodes)
    allowed = inside & only.slots(index, slots)
    same = tokens[..., :, None] == tokens[..., None, :]
    return tokens, exist & (same & allowed[..., None, :]).any(-1)


# DENSE levels: all logits of a beam lie under its row of bits.


def _best_of_bits(
    index: TrieIndex,
    depth: int,
    nodes: Nodes,
    offset: jax.Array,
    logits: jax.Array,
    softmax: Softmax,
    width: int,
    only: Filter | None,
) -> Step:
    level = index.layout.levels[depth]
    all_rows = take(index.children[depth], nodes.begin)
    rows = all_rows if only is None else only.rows(index, depth, nodes, all_rows)
    logits = _slice(logits, level.base, level.span)
    scores, parents, token = jax.lax.platform_dependent(
        rows,
        offset,
        logits,
        softmax,
        tpu=functools.partial(_best_by_sorting, width),
        default=functools.partial(_best_by_octets, width),
    )
    exist = scores > -jnp.inf
    if depth == 0:  # The root's children are numbered from 0 on.
        number = rank(jnp.broadcast_to(index.children[0], (*token.shape, level.words)), token)
    else:
        row = jnp.take_along_axis(all_rows, parents[..., None], axis=1, mode="promise_in_bounds")
        number = rank(row, token) + take_along(index.first_child[depth][nodes.begin], parents)
    number = jnp.where(exist, number, 0)
    return Step(scores, parents, token + level.base, enter(index, depth + 1, number, exist))


def _best_by_octets(
    width: int, rows: jax.Array, offset: jax.Array, logits: jax.Array, softmax: Softmax
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores, parents and tokens (less the level's base), of logits `[B, M, S]` under rows `[B, M, S / 32]`."""
    beams, span = logits.shape[1:]
    num_octets = span // PLANES
    octets = octets_of(rows)

    def plane(bit: int) -> jax.Array:
        under = logits[..., bit * num_octets : (bit + 1) * num_octets]
        there = (octets & np.uint8(1 << bit)) != 0
        return jnp.where(there, under, -jnp.inf)

    # The best of the eight tokens of each octet, and the octets with the best ones.
    highest = functools.reduce(jnp.maximum, map(plane, range(PLANES)))
    highest = centred(highest, softmax.largest[..., None], softmax.inverse)
    peaks = jnp.where(octets != 0, highest + offset[..., None], -jnp.inf)
    peak, place = _best_octets(peaks, min(width, beams * num_octets))
    beam, octet = split(place, num_octets)
    bits = take_along(jax.lax.collapse(octets, 1), place)[..., None]
    at = (beam * span + octet)[..., None] + num_octets * jnp.arange(PLANES)
    scored = take_along(jax.lax.collapse(logits, 1), at)
    scored = centred(scored, take_along(softmax.largest, beam)[..., None], softmax.inverse)
    scored += take_along(offset, beam)[..., None]
    there = (bits >> jnp.arange(PLANES, dtype=jnp.uint8)) & 1
    scored = jnp.where(there != 0, scored, -jnp.inf)
    width = min(width, scored.shape[1] * PLANES)
    scores, column, bit = best_of_blocks(peak, scored, width)
    parents, octet = split(take_along(place, column), num_octets)
    return scores, parents, octet + bit * num_octets


def _best_by_sorting(
    width: int, rows: jax.Array, offset: jax.Array, logits: jax.Array, softmax: Softmax
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same for a TPU, by costs (negative scores), which are sorted together with their places."""
    beams, span = logits.shape[1:]
    if beams * span <= _FEW_TOKENS:
        costs = _costs(expand(rows), offset, logits, softmax.largest, softmax.inverse)
        costs = jax.lax.collapse(costs, 1)
        at = jax.lax.broadcasted_iota(jnp.int32, costs.shape, 1)
        costs, at = first_of_sorted(costs, width, at)
    else:
        costs, at = _first_of_many(width, rows, offset, logits, softmax)
    return -costs, *split(at, span)


def _costs(
    there: jax.Array,
    offset: jax.Array,
    logits: jax.Array,
    largest: jax.Array,
    inverse: jax.Array | None,
) -> jax.Array:
    """Negative scores of `logits [..., K]`, infinite except where they are `there [..., K]`."""
    costs = -(centred(logits, largest[..., None], inverse) + offset[..., None])
    # A beam that is no more may still hold NaN, which must not meet the others.
    return jnp.where(there & (offset > -jnp.inf)[..., None], costs, jnp.inf)


def _first_of_many(
    count: int, rows: jax.Array, offset: jax.Array, logits: jax.Array, softmax: Softmax
) -> tuple[jax.Array, jax.Array]:
    """The `count` smallest costs, ascending, and their places in the flattened `[M * S]`.

    The smallest of each group of beams and of the eight tokens of an octet are sorted first, then those of each beam,
    at last tokens. Arrays have the beams first, as they lie in a TPU's memory.
    """
    rows, offset, logits, largest = (
        array.swapaxes(0, 1) for array in (rows, offset, logits, softmax.largest)
    )
    beams, _, span = logits.shape
    size = span // PLANES
    octets = octets_by_product(rows)

    def costs_of(plane: int) -> jax.Array:
        there = (octets & (1 << plane)) != 0
        under = logits[..., plane * size : (plane + 1) * size]
        return _costs(there, offset, under, largest, softmax.inverse)

    planes = list(map(costs_of, range(PLANES)))
    least = functools.reduce(jnp.minimum, planes)  # [M, B, O].
    groups = -(-beams // _OCTETS)
    each = -(-beams // groups)
    missing = groups * each - beams
    # Every `groups`-th beam forms a group.
    padded = jnp.pad(least, ((0, missing), (0, 0), (0, 0)), constant_values=jnp.inf)
    parts = [padded[first : first + groups] for first in range(0, len(padded), groups)]
    minima = jax.lax.collapse(functools.reduce(jnp.minimum, parts).swapaxes(0, 1), 1)

    def costs_at(costs: jax.Array, beam: jax.Array, octet: jax.Array) -> jax.Array:
        user = jax.lax.broadcasted_iota(jnp.int32, beam.shape, 0)
        # Beams behind the last one, which fill the last group, have no tokens.
        mode = "fill" if missing else "promise_in_bounds"
        return costs.at[beam, user, octet].get(mode=mode, fill_value=jnp.inf)

    def first_of(costs: jax.Array, places: jax.Array) -> list[jax.Array]:
        return first_of_sorted(jax.lax.collapse(costs, 1), count, jax.lax.collapse(places, 1))

    _, place = first_of(minima, jax.lax.broadcasted_iota(jnp.int32, minima.shape, 1))
    shape = (len(place), each, place.shape[1])
    places = place[:, None] + groups * size * jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    _, place = first_of(costs_at(least, *split(places, size)), places)
    beam, octet = split(place, size)
    found = jnp.stack([costs_at(costs, beam, octet) for costs in planes], axis=1)
    plane = jax.lax.broadcasted_iota(jnp.int32, found.shape, 1)
    return first_of(found, (beam * span + octet)[:, None] + size * plane)


def _slice(logits: jax.Array, base: int, span: int) -> jax.Array:
    """Logits of one level's tokens `[..., span]`; a level may reach beyond a small vocabulary."""
    missing = base + span - logits.shape[-1]
    if missing > 0:
        widths = [(0, 0)] * (logits.ndim - 1) + [(0, missing)]
        logits = jnp.pad(logits, widths, constant_values=-jnp.inf)
    return logits[..., base : base + span]


def _best_octets(peaks: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest of `peaks [B, M, O]`, and their places in the flattened `[M * O]`."""
    batch, beams, octets = peaks.shape
    groups = octets // _OCTETS
    if beams * octets < _MANY_OCTETS or octets % _OCTETS or beams * groups < count:
        return top_k(jax.lax.collapse(peaks, 1), count)
    # Every `groups`-th octet of one beam forms a group: maxima are then taken between rows of numbers.
    maxima = peaks.reshape(batch, beams, _OCTETS, groups).max(axis=2)
    maxima, group = top_k(jax.lax.collapse(maxima, 1), count)
    beam, group = split(group, groups)
    first = beam * octets + group
    places = first[..., None] + groups * jnp.arange(_OCTETS)
    best, block, within = best_of_blocks(
        maxima, take_along(jax.lax.collapse(peaks, 1), places), count
    )
    return best, take_along(first, block) + groups * within


# SPARSE and SCAN levels: a few candidates of each beam.


def _best_of_list(
    index: TrieIndex,
    depth: int,
    nodes: Nodes,
    offset: jax.Array,
    logits: jax.Array,
    softmax: Softmax,
    width: int,
    only: Filter | None,
) -> Step:
    numbers, exist = child_numbers(index, depth, nodes)
    if only is not None:
        exist = only.children(index, depth, nodes, numbers, exist)
    numbers = numbers.swapaxes(1, 2)
    tokens = listed_tokens(index, depth, numbers)
    scores, chosen = _best_of_few(offset, logits, softmax, tokens, exist.swapaxes(1, 2), width)
    _, parents = split(chosen, offset.shape[1])
    exist = scores > -jnp.inf
    number = jnp.where(exist, _pick(numbers, chosen), 0)
    nodes = enter(index, depth + 1, number, exist)
    return Step(scores, parents, _pick(tokens, chosen), nodes)


def _best_of_slots(
    index: TrieIndex,
    depth: int,
    nodes: Nodes,
    offset: jax.Array,
    logits: jax.Array,
    softmax: Softmax,
    width: int,
    only: Filter | None,
) -> Step:
    return jax.lax.platform_dependent(
        nodes,
        offset,
        logits,
        softmax,
        tpu=functools.partial(_slots_by_sorting, index, depth, width, only),
        default=functools.partial(_slots_by_beams, index, depth, width, only),
    )


def _slots_by_beams(
    index: TrieIndex,
    depth: int,
    width: int,
    only: Filter | None,
    nodes: Nodes,
    offset: jax.Array,
    logits: jax.Array,
    softmax: Softmax,
) -> Step:
    slots, inside = scanned_slots(index, depth, nodes)
    slots, inside = slots.swapaxes(1, 2), inside.swapaxes(1, 2)
    tokens = slot_tokens(index, depth, slots)
    # Slots are sorted: where the token differs from the one before, another child begins.
    differs = tokens[:, 1:] != tokens[:, :-1]
    exist = inside & jnp.pad(differs, ((0, 0), (1, 0), (0, 0)), constant_values=True)
    if only is not None:
        # A child is there if any of its slots is allowed.
        allowed = inside & only.slots(index, slots)
        same = tokens[:, :, None] == tokens[:, None]
        exist &= (same & allowed[:, None]).any(2)
    scores, chosen = _best_of_few(offset, logits, softmax, tokens, exist, width)
    place, parents = split(chosen, offset.shape[1])
    exist = scores > -jnp.inf
    token = _pick(tokens, chosen)
    # Its slots are those of the parent with its token.
    siblings = jnp.where(inside, tokens, -1)
    siblings = jnp.take_along_axis(siblings, parents[:, None], axis=2, mode="promise_in_bounds")
    begin = take_along(nodes.begin, parents) + place
    end = begin + (siblings == token[:, None]).sum(1, dtype=jnp.int32)
    return Step(scores, parents, token, Nodes(jnp.where(exist, begin, 0), jnp.where(exist, end, 0)))


def _slots_by_sorting(
    index: TrieIndex,
    depth: int,
    width: int,
    only: Filter | None,
    nodes: Nodes,
    offset: jax.Array,
    logits: jax.Array,
    softmax: Softmax,
) -> Step:
    """The same for a TPU: places `[W, B, M]` are whole rows of numbers, and what is known of each is sorted with it."""
    (batch, beams), layout = offset.shape, index.layout
    level, below = layout.levels[depth], layout.levels[depth + 1 :]
    count = level.max_slots
    most = below[0].max_slots if below else layout.max_items_per_sid  # Of a child.
    begin = nodes.begin + np.arange(count, dtype=np.int32)[:, None, None]
    inside = begin < nodes.end
    slots = jnp.minimum(begin, layout.max_items - 1)
    tokens = slot_tokens(index, depth, slots)

    def ahead(values: jax.Array, steps: int) -> jax.Array:
        """The values so many places further on; 0 where there is no place."""
        kept = values[max(steps, 0) : count + min(steps, 0)]
        return jnp.pad(kept, ((max(-steps, 0), max(steps, 0)), (0, 0), (0, 0)))

    # Slots are sorted: those of a child follow each other, and it is met at the first of them.
    mine = jnp.where(inside, tokens + 1, 0)
    exist = inside & (mine != ahead(mine, -1))
    allowed = inside
    if only is not None:
        allowed &= jnp.moveaxis(only.slots(index, jnp.moveaxis(slots, 0, 1)), 1, 0)
    if most <= _FEW_SLOTS:
        same = [mine == ahead(mine, steps) for steps in range(1, min(most, count))]
        end = begin + sum((more.astype(jnp.int32) for more in same), 1)
        if only is not None:
            later = [more & ahead(allowed, steps) for steps, more in enumerate(same, 1)]
            exist &= functools.reduce(jnp.logical_or, later, allowed)
    else:
        following = functools.partial(jax.lax.cummin, axis=0, reverse=True)
        begins = jnp.where(exist, begin, nodes.end)
        end = jnp.where(begin + 1 < nodes.end, ahead(following(begins), 1), nodes.end)
        exist &= following(jnp.where(allowed, begin, nodes.end)) < end
    user, beam = (np.arange(n, dtype=np.int32) for n in (batch, beams))
    if level.span <= _NARROW:
        scored = _by_comparison(_slice(logits, level.base, level.span), tokens - level.base)
    else:
        scored = logits.at[user[:, None], beam, tokens].get(mode="promise_in_bounds")
    costs = -(centred(scored, softmax.largest, softmax.inverse) + offset)
    costs = jnp.where(exist, costs, jnp.inf)

    def in_rows(values: jax.Array) -> jax.Array:
        return jax.lax.collapse(values.swapaxes(0, 1), 1)

    place = jax.lax.broadcasted_iota(jnp.int32, (batch, count * beams), 1)
    found = first_of_sorted(in_rows(costs), width, place, *map(in_rows, (tokens, begin, end)))
    costs, place, tokens, begin, end = found
    exist = costs < jnp.inf
    nodes = Nodes(jnp.where(exist, begin, 0), jnp.where(exist, end, 0))
    return Step(-costs, place % beams, tokens, nodes)


def _best_of_few(
    offset: jax.Array,
    logits: jax.Array,
    softmax: Softmax,
    tokens: jax.Array,
    exist: jax.Array,
    width: int,
) -> tuple[jax.Array, jax.Array]:
    """Scores of the best of candidates `tokens [B, K, M]`, and their places in `[K * M]`, `[B, width]` each.

    Candidates stand place by place rather than beam by beam: most beams have one child, and it is faster to meet
    those first.
    """
    batch, count, beams = tokens.shape
    at = tokens + logits.shape[-1] * jnp.arange(beams, dtype=jnp.int32)
    scored = take_along(jax.lax.collapse(logits, 1), at)
    scored = centred(scored, softmax.largest[:, None], softmax.inverse) + offset[:, None]
    scored = jnp.where(exist, scored, -jnp.inf)
    return top_k(jax.lax.collapse(scored, 1), min(width, count * beams))


def _by_comparison(logits: jax.Array, places: jax.Array) -> jax.Array:
    """Logits `[..., S]` at `places [...]`, for a TPU, which compares with few tokens sooner than it gathers."""
    here = places[..., None] == jnp.arange(logits.shape[-1], dtype=places.dtype)
    return jnp.where(here, logits, 0.0).sum(-1)


def _pick(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Elements of `[B, K, M]` at places in `[K * M]`."""
    return take_along(jax.lax.collapse(values, 1), chosen)
