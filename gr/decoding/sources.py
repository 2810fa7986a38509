"""What a search runs on: one trie, one with recent changes, or one shard of many, behind one interface."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gr.decoding.candidates import DecodingError
from gr.decoding.softmax import Softmax, softmax
from gr.decoding.top_k import split, take_along, top_k
from gr.decoding.trie_step import Step, allowed_tokens, best_children
from gr.trie import NO_ITEM, NO_NODE, Filter, Nodes, OverlaidIndex, TrieIndex, prepare, root
from gr.trie.inputs import known_items
from gr.trie.packed import PackedInts, take
from gr.trie.sharding import places_on_shards
from gr.trie.transitions import (
    Depth,
    child_logits,
    child_sizes,
    child_tokens,
    children,
    descend,
    item_slots,
    node_rows,
    paths_of,
)

_MANY = 8  # Up to so many levels without a choice are read one by one.


@dataclasses.dataclass(frozen=True)
class Located:
    """Where a source has items `[B, S]`; numbers of items that it does not know mean nothing."""

    keys: tuple[jax.Array, ...]  # [B, S] each: in their order items are sorted by semantic ID.
    tokens: tuple[jax.Array, ...]  # L of [B, S] int32.
    known: jax.Array  # [B, S] bool: neither unknown nor removed.
    allowed: jax.Array  # [B, S] bool: known, and allowed by the constraint.
    below: int | None = (
        None  # Upper bound (exclusive) of a single key that is not negative; None if unknown.
    )


class Source(Protocol):
    """A set of semantic IDs to be searched. Its states are pytrees of arrays `[B, M, ...]`."""

    length: int  # L.
    # From this depth on every state has a single continuation; L if unknown.
    unique_depth: int

    def root(self, batch: int) -> Any:
        """The state of the empty prefix, `[B, 1]`."""
        ...

    def best(
        self,
        depth: int,
        states: Any,
        before: jax.Array,
        logits: jax.Array,
        softmax: Softmax,
        width: int,
    ) -> Step:
        """The best continuations; see `best_children`."""
        ...

    def complete(self, states: Any) -> tuple[Any, jax.Array]:
        """At `unique_depth`: states, emptied where not allowed, and tokens `[n, B, M]` of the n levels left."""
        ...

    def exist(self, states: Any) -> jax.Array:
        """Which states exist, `[B, M]` bool."""
        ...

    def items(self, states: Any) -> jax.Array:
        """Item numbers `[B, M, C]` of complete semantic IDs, `NO_ITEM`-padded."""
        ...

    def softmax(
        self, depth: Depth, states: Any, logits: jax.Array, inverse: jax.Array | None
    ) -> Softmax:
        """The distributions over all continuations, allowed or not, from logits `[B, M, V]`."""
        ...

    def names(self, states: Any) -> jax.Array:
        """A number `[B, M]` for each state, unique within its depth; `NO_NODE` where there is none."""
        ...

    def descend(self, depth: Depth, states: Any, tokens: jax.Array) -> Any:
        """The states `[B, M]` behind `tokens [B, M]`, each a continuation of its state; -1 for no state."""
        ...

    def locate(self, items: jax.Array) -> Located:
        """Where item numbers `[B, S]` are, for the B users of the search; negative ones are unknown."""
        ...


class Listing(Source, Protocol):
    """A source that also lists all continuations, for searches that draw among them.

    Depths are static; from `scan_depth` on, where one program serves all levels, they may be an array `[B, M]`.
    """

    axis: str | None  # Mesh axis over whose devices children are spread; None: all are here.
    scan_depth: int  # First level kept as a sorted table; L if there is none.
    scanned_fan_out: int  # K of `continuations` where the depths are an array.

    def fan_out(self, depth: int) -> int:
        """K, the number of places that `continuations` returns."""
        ...

    def most_children(self, depth: int) -> int:
        """Most children of one state, which may be fewer than there are places."""
        ...

    def continuations(self, depth: Depth, states: Any) -> tuple[jax.Array, jax.Array]:
        """Tokens `[B, M, K]` that may follow a user's distinct states, each token once, and which of them exist."""
        ...

    def child_rows(self, depth: Depth, states: Any) -> tuple[jax.Array, jax.Array]:
        """All children, allowed or not, in the places of `continuations`, for a model that scores them.

        Returns:
            Their `node_rows` `[B, M, K]` in the trie that the model was trained on, `NO_NODE` where that has none; and
            which of the places hold a child, each child once.
        """
        ...

    def sizes(self, depth: Depth, states: Any) -> jax.Array:
        """Number of items behind each continuation, allowed or not, `[B, M, K]`."""
        ...


@dataclasses.dataclass(frozen=True)
class OneTrie:
    """One trie, with or without a constraint."""

    index: TrieIndex
    only: Filter | None  # What may be decoded: what is left of the index, and allowed.
    left: Filter | None = None  # What is left of an index from which items were removed.

    axis = None

    @property
    def length(self) -> int:
        """See `Source`."""
        return self.index.length

    @property
    def unique_depth(self) -> int:
        """See `Source`."""
        return self.index.layout.unique_depth

    @property
    def scan_depth(self) -> int:
        """See `Listing`."""
        return self.index.layout.scan_depth

    def root(self, batch: int) -> Nodes:
        """See `Source.root`."""
        return root(self.index, (batch, 1))

    def best(
        self,
        depth: int,
        states: Nodes,
        before: jax.Array,
        logits: jax.Array,
        softmax: Softmax,
        width: int,
    ) -> Step:
        """See `Source.best`."""
        return best_children(self.index, depth, states, before, logits, softmax, width, self.only)

    def fan_out(self, depth: int) -> int:
        """See `Listing.fan_out`."""
        return self.index.layout.levels[depth].fan_out

    def most_children(self, depth: int) -> int:
        """See `Listing.most_children`."""
        return self.index.layout.levels[depth].max_children

    @property
    def scanned_fan_out(self) -> int:
        """See `Listing`."""
        levels = self.index.layout.levels[self.scan_depth :]
        return levels[0].fan_out if levels else 0

    def continuations(self, depth: Depth, states: Nodes) -> tuple[jax.Array, jax.Array]:
        """See `Listing.continuations`."""
        return allowed_tokens(self.index, depth, states, self.only)

    def child_rows(self, depth: Depth, states: Nodes) -> tuple[jax.Array, jax.Array]:
        """See `Listing.child_rows`."""
        below, _ = children(self.index, depth, states)
        return node_rows(self.index, depth + 1, below), below.exist

    def sizes(self, depth: Depth, states: Nodes) -> jax.Array:
        """See `Listing.sizes`."""
        return child_sizes(self.index, depth, states)

    def descend(self, depth: Depth, states: Nodes, tokens: jax.Array) -> Nodes:
        """See `Source.descend`."""
        return descend(self.index, depth, states, tokens)

    def complete(self, states: Nodes) -> tuple[Nodes, jax.Array]:
        """See `Source.complete`."""
        layout = self.index.layout
        if layout.unique_depth == layout.length:
            return states, _no_levels(states)
        slots = jnp.minimum(states.begin, layout.max_items - 1)
        levels = range(layout.unique_depth, layout.length)
        firsts = [layout.place_in_table(depth) for depth in levels]
        bits = [layout.levels[depth].bits for depth in levels]
        if len(levels) > _MANY:  # Read all at once: one part per level would make a long program.
            firsts, bits = np.array(firsts, np.int32), np.array(bits, np.int32)
            tokens = jnp.moveaxis(self.index.table.part(slots[..., None], firsts, bits), -1, 0)
        else:
            tokens = jnp.stack(self.index.table.parts(slots, firsts, bits))
        tokens += np.array([[[layout.levels[depth].base]] for depth in levels], np.int32)
        if self.only is not None and layout.unique_depth == layout.scan_depth:
            # A filter may let through nodes above the slots with nothing below; a scanned level decides exactly.
            states = emptied(states, self.only.slots(self.index, slots))
        return states, tokens

    def exist(self, states: Nodes) -> jax.Array:
        """See `Source.exist`."""
        return states.exist

    def items(self, states: Nodes) -> jax.Array:
        """See `Source.items`."""
        slots, inside = item_slots(self.index, states)
        if self.only is not None:
            inside &= self.only.slots(self.index, slots)
        items = jnp.where(inside, self.index.item_of_slot[slots], NO_ITEM)
        if items.shape[-1] == 1 or self.only is None:
            return items
        return _allowed_first(items)

    def softmax(
        self, depth: Depth, states: Nodes, logits: jax.Array, inverse: jax.Array | None
    ) -> Softmax:
        """See `Source.softmax`."""
        return softmax(child_logits(self.index, depth, states, logits), inverse)

    def names(self, states: Nodes) -> jax.Array:
        """See `Source.names`."""
        return states.names

    def locate(self, items: jax.Array) -> Located:
        """See `Source.locate`."""
        layout = self.index.layout
        items, known = known_items(items, layout.max_item)
        slots = self.index.slot_of_item[items]
        return self.of_slots(slots, known & (slots < layout.max_items))

    def of_slots(self, slots: jax.Array, known: jax.Array) -> Located:
        """The items in `slots [B, S]` where they are `known [B, S]`; see `Source.locate`."""
        slots = jnp.where(known, slots, 0)
        if self.left is not None:
            known &= self.left.slots(self.index, slots)
        allowed = known if self.only is None else known & self.only.slots(self.index, slots)
        count = self.index.layout.max_items
        if slots.size > count:  # All paths once, rather than most of them many times.
            every = paths_of(self.index, jnp.arange(count, dtype=jnp.int32))
            tokens = tuple(take(level, slots) for level in every)
        else:
            tokens = paths_of(self.index, slots)
        return Located((slots,), tokens, known, allowed, count)


def _no_levels(states: Nodes) -> jax.Array:
    """Empty tokens `[0, B, M]`, for no levels."""
    return jnp.zeros((0, *states.begin.shape), jnp.int32)


def _allowed_first(items: jax.Array) -> jax.Array:
    """Moves `NO_ITEM` to the end of each list `[..., C]`."""
    order = jnp.argsort(items == NO_ITEM, axis=-1, stable=True)
    return jnp.take_along_axis(items, order, axis=-1)


def emptied(states: Any, keep: jax.Array) -> Any:
    """The states where `keep` holds; empty elsewhere."""
    return jax.tree.map(lambda bound: jnp.where(keep, bound, 0), states)


@dataclasses.dataclass(frozen=True)
class TwoTries:
    """A trie from which items may have been removed, and a small one of items that were added since.

    A prefix that both know is one beam: its state is the pair of its nodes.
    """

    base: OneTrie
    added: OneTrie
    first_added: jax.Array  # [] int32: item number of the small trie's item 0.

    axis = None

    @property
    def length(self) -> int:
        """See `Source`."""
        return self.base.length

    @property
    def unique_depth(self) -> int:
        """See `Source`."""
        return self.length

    @property
    def scan_depth(self) -> int:
        """See `Listing`."""
        return max(self.base.scan_depth, self.added.scan_depth)

    def root(self, batch: int) -> tuple[Nodes, Nodes]:
        """See `Source.root`."""
        return self.base.root(batch), self.added.root(batch)

    def best(
        self,
        depth: int,
        states: tuple[Nodes, Nodes],
        before: jax.Array,
        logits: jax.Array,
        softmax: Softmax,
        width: int,
    ) -> Step:
        """See `Source.best`. Merges the best of both tries; what both propose counts once."""
        base = self.base.best(depth, states[0], before, logits, softmax, width)
        added = self.added.best(depth, states[1], before, logits, softmax, width)
        same = (base.parents[:, :, None] == added.parents[:, None, :]) & (
            base.tokens[:, :, None] == added.tokens[:, None, :]
        )
        repeated = (same & (base.scores > -jnp.inf)[:, :, None]).any(axis=1)
        both = jnp.concatenate([base.scores, jnp.where(repeated, -jnp.inf, added.scores)], axis=1)
        scores, chosen = top_k(both, min(width, both.shape[1]))

        def pick(of_base: jax.Array, of_added: jax.Array) -> jax.Array:
            return take_along(jnp.concatenate([of_base, of_added], axis=1), chosen)

        parents = pick(base.parents, added.parents)
        tokens = pick(base.tokens, added.tokens)
        exist = scores > -jnp.inf
        nothing = jnp.zeros_like(added.parents)
        in_base = jax.tree.map(lambda bound: pick(bound, nothing), base.nodes)
        above = jax.tree.map(lambda bound: take_along(bound, parents), states[1])
        in_added = descend(self.added.index, depth, above, tokens)
        return Step(scores, parents, tokens, (emptied(in_base, exist), emptied(in_added, exist)))

    def fan_out(self, depth: int) -> int:
        """See `Listing.fan_out`."""
        return self.base.fan_out(depth) + self.added.fan_out(depth)

    def most_children(self, depth: int) -> int:
        """See `Listing.most_children`."""
        return self.base.most_children(depth) + self.added.most_children(depth)

    @property
    def scanned_fan_out(self) -> int:
        """See `Listing`."""
        return self.base.scanned_fan_out + self.added.scanned_fan_out

    def continuations(
        self, depth: Depth, states: tuple[Nodes, Nodes]
    ) -> tuple[jax.Array, jax.Array]:
        """See `Listing.continuations`. A token that both tries have is listed by the large one."""
        base, in_base = self.base.continuations(depth, states[0])
        added, in_added = self.added.continuations(depth, states[1])
        known = (base[..., None, :] == added[..., :, None]) & in_base[..., None, :]
        tokens = jnp.concatenate([base, added], axis=-1)
        return tokens, jnp.concatenate([in_base, in_added & ~known.any(-1)], axis=-1)

    def child_rows(self, depth: Depth, states: tuple[Nodes, Nodes]) -> tuple[jax.Array, jax.Array]:
        """See `Listing.child_rows`. Prefixes that only the small trie has were not there when the model was trained."""
        rows, in_base = self.base.child_rows(depth, states[0])
        base, _ = child_tokens(self.base.index, depth, states[0])
        added, in_added = child_tokens(self.added.index, depth, states[1])
        same = (added[..., :, None] == base[..., None, :]) & in_base[..., None, :]
        # Of what both have, the large trie's place counts; but if its items are removed, the other is the one allowed.
        of_added = jnp.where(same, rows[..., None, :], NO_NODE).max(-1)
        both = jnp.concatenate([rows, of_added], axis=-1)
        return both, jnp.concatenate([in_base, in_added & ~same.any(-1)], axis=-1)

    def descend(
        self, depth: Depth, states: tuple[Nodes, Nodes], tokens: jax.Array
    ) -> tuple[Nodes, Nodes]:
        """See `Source.descend`."""
        return (
            self.base.descend(depth, states[0], tokens),
            self.added.descend(depth, states[1], tokens),
        )

    def complete(self, states: tuple[Nodes, Nodes]) -> tuple[tuple[Nodes, Nodes], jax.Array]:
        """See `Source.complete`."""
        return states, _no_levels(states[0])

    def exist(self, states: tuple[Nodes, Nodes]) -> jax.Array:
        """See `Source.exist`."""
        return states[0].exist | states[1].exist

    def items(self, states: tuple[Nodes, Nodes]) -> jax.Array:
        """See `Source.items`."""
        added = self.added.items(states[1])
        added = jnp.where(added == NO_ITEM, NO_ITEM, added + self.first_added)
        items = jnp.concatenate([self.base.items(states[0]), added], axis=-1)
        return _allowed_first(items)

    def softmax(
        self,
        depth: Depth,
        states: tuple[Nodes, Nodes],
        logits: jax.Array,
        inverse: jax.Array | None,
    ) -> Softmax:
        """See `Source.softmax`."""
        raise DecodingError(
            "normalise_over='children' needs one trie, and this index has changes: compact it first"
        )

    def sizes(self, depth: Depth, states: tuple[Nodes, Nodes]) -> jax.Array:
        """See `Listing.sizes`. What both tries have counts the items of both, in either place."""
        base, in_base = child_tokens(self.base.index, depth, states[0])
        added, in_added = child_tokens(self.added.index, depth, states[1])
        of_base, of_added = self.base.sizes(depth, states[0]), self.added.sizes(depth, states[1])
        same = (added[..., :, None] == base[..., None, :]) & in_base[..., None, :]
        same &= in_added[..., :, None]  # [B, M, K of added, K of base].
        of_both = of_base + jnp.where(same, of_added[..., :, None], 0).sum(-2)
        return jnp.concatenate(
            [of_both, of_added + jnp.where(same, of_base[..., None, :], 0).sum(-1)], axis=-1
        )

    def names(self, states: tuple[Nodes, Nodes]) -> jax.Array:
        """See `Source.names`."""
        base, added = states[0].names, states[1].names
        first = self.base.index.layout.num_names  # Offset of nodes that only `added` has.
        return jnp.where(base != NO_NODE, base, jnp.where(added != NO_NODE, added + first, NO_NODE))

    def locate(self, items: jax.Array) -> Located:
        """See `Source.locate`."""
        # The large trie may have room for numbers that it does not hold, those of added items among them.
        old = items < self.first_added
        base = self.base.locate(jnp.where(old, items, NO_ITEM))
        added = self.added.locate(jnp.where(old, NO_ITEM, items - self.first_added))
        tokens = tuple(
            jnp.where(old, *both) for both in zip(base.tokens, added.tokens, strict=True)
        )
        known = jnp.where(old, base.known, added.known)
        # Slots of two tries have no common order, so it is that of the tokens.
        return Located(tokens, tokens, known, jnp.where(old, base.allowed, added.allowed))


def source_of(index: TrieIndex | OverlaidIndex, constraint: Any) -> "OneTrie | TwoTries":
    """An index to be searched under a constraint (one, several, or None)."""
    if isinstance(index, TrieIndex):
        return OneTrie(index, prepare(constraint, index))
    for_base, for_added = index.constraints(constraint)
    base = OneTrie(index.base, prepare(for_base, index.base), index.base_live)
    if index.added is None:
        return base
    added = OneTrie(index.added, prepare(for_added, index.added), index.added_live)
    return TwoTries(base, added, index.first_added)


def of_devices(
    axis: str, ranks: jax.Array, proposals: tuple[jax.Array, ...], width: int
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Inside `shard_map`: the best of what the devices along an axis propose, the same on all of them.

    Args:
        axis: name of the mesh axis.
        ranks: of this device's proposals `[B, n]`, best first.
        proposals: arrays `[B, n]`.
        width: of how many, at most.

    Returns:
        The best ranks `[B, M]`; which they are among those of all devices side by side; and their proposals `[B, M]`.
    """
    ranks, *proposals = jax.lax.all_gather((ranks, *proposals), axis, axis=1, tiled=True)
    best, chosen = top_k(ranks, min(width, ranks.shape[1]))
    return best, chosen, tuple(take_along(part, chosen) for part in proposals)


@dataclasses.dataclass(frozen=True)
class OneShard:
    """One of several tries that share no first token, each on a device of its own along a mesh axis.

    Every device runs the same search. Only the states differ: a beam's node exists on one device only. Each trie
    proposes its best children, and the devices agree on the best of all.
    """

    local: OneTrie
    axis: str  # Name of the mesh axis.
    places: PackedInts  # This device's part of the items' places; see `ShardedIndex`.
    first_rows: jax.Array  # [L] int32: see `ShardedIndex`.

    @property
    def length(self) -> int:
        """See `Source`."""
        return self.local.length

    @property
    def unique_depth(self) -> int:
        """See `Source`."""
        return self.local.unique_depth

    def root(self, batch: int) -> Nodes:
        """See `Source.root`."""
        return self.local.root(batch)

    def best(
        self,
        depth: int,
        states: Nodes,
        before: jax.Array,
        logits: jax.Array,
        softmax: Softmax,
        width: int,
    ) -> Step:
        """See `Source.best`."""
        mine = self.local.best(depth, states, before, logits, softmax, width)
        proposals = (mine.parents, mine.tokens)
        best, chosen, (parents, tokens) = of_devices(self.axis, mine.scores, proposals, width)
        each = mine.scores.shape[1]
        is_mine = (chosen // each == jax.lax.axis_index(self.axis)) & (best > -jnp.inf)
        nodes = jax.tree.map(lambda bound: take_along(bound, chosen % each), mine.nodes)
        return Step(best, parents, tokens, emptied(nodes, is_mine))

    def most_children(self, depth: int) -> int:
        """See `Listing.most_children`."""
        return self.local.most_children(depth)

    def continuations(self, depth: int, states: Nodes) -> tuple[jax.Array, jax.Array]:
        """See `Listing.continuations`; those of this device."""
        return self.local.continuations(depth, states)

    def child_rows(self, depth: int, states: Nodes) -> tuple[jax.Array, jax.Array]:
        """See `Listing.child_rows`; those of this device."""
        below, _ = children(self.local.index, depth, states)
        first = self.first_rows[depth]
        there = below.exist & (first != NO_NODE)
        return jnp.where(there, below.begin + first, NO_NODE), below.exist

    def complete(self, states: Nodes) -> tuple[Nodes, jax.Array]:
        """See `Source.complete`."""
        states, tokens = self.local.complete(states)
        return states, jax.lax.psum(jnp.where(states.exist, tokens, 0), self.axis)

    def exist(self, states: Nodes) -> jax.Array:
        """See `Source.exist`."""
        return jax.lax.pmax(states.exist, self.axis)

    def items(self, states: Nodes) -> jax.Array:
        """See `Source.items`."""
        return jax.lax.pmax(self.local.items(states), self.axis)

    def softmax(
        self, depth: Depth, states: Nodes, logits: jax.Array, inverse: jax.Array | None
    ) -> Softmax:
        """See `Source.softmax`; children of a state are on the one device that has it, those of the root on all."""
        mine = child_logits(self.local.index, depth, states, logits)
        return softmax(mine, inverse, self.axis)

    def names(self, states: Nodes) -> jax.Array:
        """See `Source.names`."""
        first = jax.lax.axis_index(self.axis) * self.local.index.layout.max_items
        return jax.lax.pmax(jnp.where(states.exist, states.begin + first, NO_NODE), self.axis)

    def descend(self, depth: Depth, states: Nodes, tokens: jax.Array) -> Nodes:
        """See `Source.descend`."""
        return self.local.descend(depth, states, tokens)

    def locate(self, items: jax.Array) -> Located:
        """See `Source.locate`. Shards hold consecutive first tokens, so places are in the order of semantic IDs."""
        places = places_on_shards(items, self.places, self.axis)
        room = self.local.index.layout.max_items
        shard, slots = split(jnp.maximum(places, 0), room)
        mine = (places >= 0) & (shard == jax.lax.axis_index(self.axis))
        found = self.local.of_slots(slots, mine)
        known, allowed = (jax.lax.pmax(part, self.axis) for part in (found.known, found.allowed))
        tokens = jax.lax.psum(tuple(jnp.where(mine, level, 0) for level in found.tokens), self.axis)
        return Located((places,), tokens, known, allowed)
