"""`ExcludeItems`: a few items per user that must not be decoded, such as those already seen."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gr.trie.bit_rows import locate, select
from gr.trie.index import NO_NODE, TrieIndex
from gr.trie.inputs import integers, is_list_of_lists, item_lists, known_items, shown
from gr.trie.layout import TrieError
from gr.trie.packed import take
from gr.trie.transitions import Nodes, ancestors, enter, slots_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class ExcludeItems:
    """Items that must not be decoded for each user, for example those already seen.

    A semantic ID shared by several items stays allowed while one of them is allowed; excluded ones are left out of its
    item list. A prefix whose items are all excluded is not entered, so beam search stays exact: with M >= N it ranks
    all allowed items. When no item is left, no candidate is valid. Items that the index does not have are ignored.
    """

    # [B, S] item numbers of any integer type, `NO_ITEM`-padded; repeats do no harm. Or a list of items for each user,
    # of any length.
    items: jax.Array | np.ndarray | Sequence[Sequence[int]]

    def __post_init__(self):
        # Lists become an array at once: `jit` would take them apart. Types and shapes are checked where items are used,
        # since JAX puts other objects into a pytree's leaves.
        items = self.items
        whole = (
            isinstance(items, np.ndarray) and items.dtype.kind in "iu"
        )  # May be wider than JAX's integers.
        if whole or isinstance(items, list) or is_list_of_lists(items):
            no_users = isinstance(items, list) and not items
            items = item_lists(items, "ExcludeItems", _WANTED)
            object.__setattr__(self, "items", items.reshape(0, 0) if no_users else items)

    @property
    def numbers(self) -> jax.Array:
        """The items as an array `[B, S]`.

        Raises:
            TrieError: unless they are integers of that shape.
        """
        items = integers(self.items, "ExcludeItems", _WANTED)
        if items.ndim != 2:
            raise TrieError(f"ExcludeItems wants {_WANTED}, got shape {list(items.shape)}")
        return items

    @property
    def num_users(self) -> int | None:
        """See `Constraint.num_users`."""
        return len(self.numbers)

    def prepare(self, index: TrieIndex) -> "DeadNodes":
        """The nodes below which every item is excluded.

        Raises:
            TrieError: unless the items are integers `[B, S]`.
        """
        items, known = known_items(self.numbers, index.layout.max_item)
        slots = index.slot_of_item[items]
        return DeadNodes.of_slots(index, jnp.where(known, slots, index.layout.max_items))

    def __repr__(self) -> str:
        return f"ExcludeItems({shown(self.items)})"


_WANTED = "[B, S], for each user a row of item numbers, filled up with NO_ITEM"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeadNodes:
    """The excluded slots, and the few nodes without an allowed item below."""

    excluded: (
        jax.Array
    )  # [B, S] int32, ascending; the layout's `max_items` (no slot) fills the rest.
    parents: tuple[
        jax.Array, ...
    ]  # [D]: [B, S] numbers of the parents of dead nodes of depth 1..D, or `NO_NODE`.
    numbers: tuple[jax.Array, ...]  # [D]: [B, S] the dead nodes' own numbers.

    @staticmethod
    def of_slots(index: TrieIndex, slots: jax.Array) -> "DeadNodes":
        """The dead nodes of excluded `slots [B, S]`; the layout's `max_items` stands for no slot, repeats are fine."""
        none = index.layout.max_items
        slots = jnp.sort(jnp.pad(slots, ((0, 0), (0, 1)), constant_values=none), axis=-1)  # S >= 1.
        repeats = jnp.pad(slots[:, 1:] == slots[:, :-1], ((0, 0), (1, 0)))
        slots = jnp.sort(jnp.where(repeats, none, slots), axis=-1)
        above = ancestors(index, jnp.minimum(slots, index.item_count - 1))
        parents, numbers = [], []
        for depth in range(1, index.layout.scan_depth + 1):
            node = enter(index, depth, above[depth], slots < none)
            begin, end = slots_of(index, depth, node)
            excluded = _count_below(slots, end) - _count_below(slots, begin)
            # A node is dead if all its slots are excluded. It counts once, though several excluded slots lie below it.
            other = above[depth][:, 1:] != above[depth][:, :-1]
            first = jnp.pad(other, ((0, 0), (1, 0)), constant_values=True)
            dead = node.exist & (excluded == end - begin) & first
            parents.append(jnp.where(dead, above[depth - 1], NO_NODE))
            numbers.append(jnp.where(dead, above[depth], 0))
        return DeadNodes(slots, tuple(parents), tuple(numbers))

    def rows(self, index: TrieIndex, depth: int, nodes: Nodes, rows: jax.Array) -> jax.Array:
        """See `Filter.rows`. Each dead node finds the beam that holds its parent, and clears its own bit there."""
        parents, numbers = self.parents[depth], self.numbers[depth]
        parent = jnp.maximum(parents, 0)
        ordinal = numbers - index.first_child[depth][parent]
        offset = select(take(index.children[depth], parent), ordinal)
        word, bit = locate(offset, index.layout.levels[depth].span)
        # The bits of one word are distinct, so that subtracting clears them.
        user = jnp.arange(len(parents))[:, None]
        at = (user, self._beams(nodes, parents), word)
        filled = jnp.zeros_like(rows).at[at].add(bit, mode="drop")
        return rows & ~filled

    def children(
        self, index: TrieIndex, depth: int, nodes: Nodes, numbers: jax.Array, exist: jax.Array
    ) -> jax.Array:
        """See `Filter.children`."""
        del numbers
        parents, dead = self.parents[depth], self.numbers[depth]
        ordinal = dead - index.first_child[depth][jnp.maximum(parents, 0)]
        user = jnp.arange(len(parents))[:, None]
        return exist.at[user, self._beams(nodes, parents), ordinal].set(False, mode="drop")

    def slots(self, index: TrieIndex, slots: jax.Array) -> jax.Array:
        """See `Filter.slots`."""
        del index
        flat = slots.reshape(len(slots), math.prod(slots.shape[1:]))
        if self.excluded.shape[1] <= _FEW:
            found = (flat[:, :, None] == self.excluded[:, None, :]).any(-1)
        else:
            place = jax.vmap(jnp.searchsorted)(self.excluded, flat)
            place = jnp.minimum(place, self.excluded.shape[1] - 1)
            found = jnp.take_along_axis(self.excluded, place, axis=1) == flat
        return ~found.reshape(slots.shape)

    def _beams(self, nodes: Nodes, parents: jax.Array) -> jax.Array:
        """The beam `[B, S]` that holds each parent; M, which is out of range, if none does."""
        count = nodes.begin.shape[1]
        holds = (
            nodes.names[:, :, None]
            == jnp.where(parents == NO_NODE, NO_NODE - 1, parents)[:, None, :]
        )
        return jnp.where(holds, jnp.arange(count)[:, None], count).min(axis=1)


_FEW = 128  # Up to so many excluded items are compared one by one; more are searched.


def _count_below(ascending: jax.Array, bounds: jax.Array) -> jax.Array:
    """How many of `ascending [B, S]` are below each of `bounds [B, S]`."""
    if ascending.shape[1] <= _FEW:
        return (ascending[:, None, :] < bounds[:, :, None]).sum(-1, dtype=jnp.int32)
    return jax.vmap(jnp.searchsorted)(ascending, bounds).astype(jnp.int32)
