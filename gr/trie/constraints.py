"""Per-request constraints on what may be decoded, applied without rebuilding the index.

Three kinds, which may be combined in a tuple: `ExcludeItems` (a few items per user), `AttributeFilter` (any / all /
none of boolean attributes, per user) and `ItemMask` (any set of items, for the batch or per user). `prepare` turns a
constraint into a `Filter`, with one method for each kind of level.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from gr.trie.attributes import pack_attributes
from gr.trie.index import TrieIndex
from gr.trie.inputs import is_list_of_lists, shown, truth_values
from gr.trie.layout import TrieError
from gr.trie.packed import take
from gr.trie.transitions import Nodes


class Filter(Protocol):
    """The allowed part of the trie for each of B users; made for one request, used at every step.

    A filter must keep everything that is allowed, and `slots` must be exact. Above the slots it may let through a
    prefix without an allowed item below: that prefix takes a place in the beam and yields no candidate.
    """

    def rows(self, index: TrieIndex, depth: int, nodes: Nodes, rows: jax.Array) -> jax.Array:
        """Clears bits in `rows [B, M, words]` of the nodes `[B, M]` at a DENSE level."""
        ...

    def children(
        self, index: TrieIndex, depth: int, nodes: Nodes, numbers: jax.Array, exist: jax.Array
    ) -> jax.Array:
        """Clears `exist [B, M, K]` of children with these numbers at a SPARSE level."""
        ...

    def slots(self, index: TrieIndex, slots: jax.Array) -> jax.Array:
        """Whether the items in `slots [B, ...]` are allowed, bool."""
        ...


class Constraint(Protocol):
    """The interface of a constraint."""

    @property
    def num_users(self) -> int | None:
        """B, the number of its users; None if it fits any number. Raises TrieError for wrong types or shapes."""
        ...

    def prepare(self, index: TrieIndex) -> Filter:
        """The filter of this request."""
        ...


def prepare(
    constraint: Constraint | Sequence[Constraint] | None, index: TrieIndex
) -> Filter | None:
    """The filter of one constraint or of several that must all hold; None without any."""
    return all_of(tuple(part.prepare(index) for part in constraints_of(constraint)))


def all_of(filters: tuple[Filter, ...]) -> Filter | None:
    """The filter that lets through what all of these let through; None without any."""
    return filters[0] if len(filters) == 1 else _All(filters) if filters else None


def constraints_of(constraint: Constraint | Sequence[Constraint] | None) -> list[Constraint]:
    """The single constraints of a request."""
    if constraint is None:
        return []
    return list(constraint) if isinstance(constraint, tuple | list) else [constraint]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _All:
    """Several filters, all of which must let an item through."""

    parts: tuple[Any, ...]

    def rows(self, index: TrieIndex, depth: int, nodes: Nodes, rows: jax.Array) -> jax.Array:
        """See `Filter.rows`."""
        for part in self.parts:
            rows = part.rows(index, depth, nodes, rows)
        return rows

    def children(
        self, index: TrieIndex, depth: int, nodes: Nodes, numbers: jax.Array, exist: jax.Array
    ) -> jax.Array:
        """See `Filter.children`."""
        for part in self.parts:
            exist = part.children(index, depth, nodes, numbers, exist)
        return exist

    def slots(self, index: TrieIndex, slots: jax.Array) -> jax.Array:
        """See `Filter.slots`."""
        allowed = jnp.ones(slots.shape, bool)
        for part in self.parts:
            allowed &= part.slots(index, slots)
        return allowed


def check_constraint(constraint: Constraint | Sequence[Constraint] | None, index: Any) -> None:
    """Checks a constraint before anything is compiled.

    Args:
        constraint: one, several, or None.
        index: the index to be searched.

    Raises:
        TrieError: for an object that is no constraint, a wrong type or shape, or a constraint made for another index.
    """
    for part in constraints_of(constraint):
        if not hasattr(part, "num_users"):
            raise TrieError(
                "a constraint must be ExcludeItems, ItemMask, AttributeFilter, or several of them, got "
                f"{type(part).__name__}"
            )
        _ = part.num_users  # Checks types and shapes.
        if hasattr(part, "check"):  # Masks, which belong to an index.
            part.check(index)


# Attributes.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class AttributeFilter:
    """Which attributes an item must have, for each user; the index must have been built with attributes.

    Each field is `[B, A]` bool, or None for no condition. An empty set of attributes is no condition for that user. The
    slots decide exactly. A node above them is skipped unless each single condition is met by some item below it, not
    necessarily all by the same item.
    """

    any_of: jax.Array | None = None  # The item has at least one of these.
    all_of: jax.Array | None = None  # The item has all of these.
    none_of: jax.Array | None = None  # The item has none of these.

    def __post_init__(self):
        for name in _DEMANDS:  # As in `ExcludeItems`, lists become arrays at once.
            wanted = getattr(self, name)
            if isinstance(wanted, list) or is_list_of_lists(wanted):
                object.__setattr__(self, name, truth_values(wanted, name, _PER_USER))

    @property
    def num_users(self) -> int | None:
        """See `Constraint.num_users`."""
        for name in _DEMANDS:
            wanted = getattr(self, name)
            if wanted is None:
                continue
            wanted = truth_values(wanted, name, _PER_USER)
            if wanted.ndim != 2:
                raise TrieError(f"{name} must be {_PER_USER}, got shape {list(wanted.shape)}")
            return len(wanted)
        return None

    def prepare(self, index: TrieIndex) -> "AttributeFilter":
        """An attribute filter is its own filter, once checked against the index.

        Raises:
            TrieError: if the index has no attributes, or another number of them.
        """
        if index.attributes is None:
            raise TrieError(
                "the index has no attributes to filter by: give `attributes` to `TrieIndex.build`"
            )
        expected = (self.num_users, index.layout.num_attributes)
        demands = {}
        for name in _DEMANDS:
            wanted = getattr(self, name)
            if wanted is None:
                continue
            demands[name] = jnp.asarray(truth_values(wanted, name, _PER_USER))
            if demands[name].shape != expected:
                raise TrieError(
                    f"{name} must be {list(expected)}, {_PER_USER}, got {list(demands[name].shape)}"
                )
        return AttributeFilter(**demands)

    def rows(self, index: TrieIndex, depth: int, nodes: Nodes, rows: jax.Array) -> jax.Array:
        """See `Filter.rows`."""
        table, count = index.attributes.nodes[depth], index.layout.num_attributes

        def met(attribute: jax.Array) -> jax.Array:
            """Rows `[B, M, words]` of the children that meet one condition of each user, `attribute [B]`."""
            return table.at[nodes.begin, attribute[:, None]].get(mode="promise_in_bounds")

        if self.any_of is not None:
            some = _reduce(self.any_of, met, jnp.bitwise_or, jnp.zeros_like(rows))
            rows &= jnp.where(self.any_of.any(-1)[:, None, None], some, ~jnp.uint32(0))
        if self.all_of is not None:
            rows = _reduce(self.all_of, met, jnp.bitwise_and, rows)
        if self.none_of is not None:
            rows = _reduce(self.none_of, lambda a: met(a + count), jnp.bitwise_and, rows)
        return rows

    def children(
        self, index: TrieIndex, depth: int, nodes: Nodes, numbers: jax.Array, exist: jax.Array
    ) -> jax.Array:
        """See `Filter.children`."""
        del nodes
        present, absent = jnp.split(take(index.attributes.nodes[depth], numbers), 2, axis=-1)
        return exist & self._meets(present, absent)

    def slots(self, index: TrieIndex, slots: jax.Array) -> jax.Array:
        """See `Filter.slots`."""
        present = take(index.attributes.slots, slots)
        return self._meets(present, ~present)

    def _meets(self, present: jax.Array, absent: jax.Array) -> jax.Array:
        """Whether words `[B, ..., w]` of occurring and of missing attributes meet every condition."""

        def words(wanted: jax.Array) -> jax.Array:
            packed = pack_attributes(wanted, present.dtype, present.shape[-1])
            return packed.reshape(len(wanted), *[1] * (present.ndim - 2), present.shape[-1])

        met = jnp.ones(present.shape[:-1], bool)
        if self.any_of is not None:
            wanted = words(self.any_of)
            met &= ((present & wanted) != 0).any(-1) | (wanted == 0).all(-1)
        if self.all_of is not None:
            wanted = words(self.all_of)
            met &= ((present & wanted) == wanted).all(-1)
        if self.none_of is not None:
            wanted = words(self.none_of)
            met &= ((absent & wanted) == wanted).all(-1)
        return met

    def __repr__(self) -> str:
        made = [(name, getattr(self, name)) for name in _DEMANDS]
        demands = ", ".join(f"{name}={shown(d)}" for name, d in made if d is not None)
        return f"AttributeFilter({demands})"


_DEMANDS = ("any_of", "all_of", "none_of")
_PER_USER = "[users, attributes of the index]"


def _reduce(wanted: jax.Array, met: Any, combine: Any, start: jax.Array) -> jax.Array:
    """Combines `met(attribute [B])` over a user's set `wanted [B, A]`, one step per element of the largest set."""
    order = jnp.argsort(~wanted, axis=-1, stable=True).astype(jnp.int32)  # Those in the set first.
    counts = wanted.sum(-1)

    def turn(place: jax.Array, rows: jax.Array) -> jax.Array:
        more = combine(rows, met(order[:, place]))
        return jnp.where((place < counts)[:, None, None], more, rows)

    return jax.lax.fori_loop(0, counts.max(initial=0), turn, start)
