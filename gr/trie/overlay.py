"""`EditableIndex`: adds items to an index and removes them without a rebuild; `OverlaidIndex` is what a search uses.

editable = EditableIndex.build(tokens, vocab_size)
editable, items = editable.add(new_tokens)      # A new object, and the item numbers; a small index is built of them.
editable = editable.remove(items[:1])           # One pass over the live nodes on the device.
beam_search(model, editable.index, history, num_beams=20)
editable = editable.compact()                   # One index again; item numbers stay as they are.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.trie.attributes import check_attributes
from gr.trie.build import check_tokens
from gr.trie.constraints import AttributeFilter, Constraint, check_constraint, constraints_of
from gr.trie.exclusion import ExcludeItems
from gr.trie.index import TrieIndex
from gr.trie.inputs import NO_ITEM, as_int32, host_integers, is_known, shown
from gr.trie.item_mask import ItemMask, check_allowed, item_numbers, of_one_index
from gr.trie.layout import MAX_ITEMS, Layout, TrieError

# Spare room of the small index, so that adding items rarely makes a search compile anew.
_HEADROOM = 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class OverlaidIndex:
    """An index, a small one of items added since, and the removals from each; a search treats them as one trie.

    Items of the small index follow those of the large one: its item 0 is number `first_added`.
    """

    base: TrieIndex
    base_live: ItemMask | None  # None: nothing was removed.
    added: TrieIndex | None  # None: nothing was added.
    added_live: ItemMask | None
    first_added: jax.Array  # [] int32.

    @property
    def length(self) -> int:
        """L, tokens of a semantic ID."""
        return self.base.length

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.base.vocab_size

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def mask(self, allowed: jax.Array) -> "OverlaidMask":
        """The mask of `allowed [n]` or `[B, n]`, bool by item number; see `ItemMask.build`.

        It stays valid when items are removed; after items are added, or the index is compacted, it is refused.
        """
        allowed = check_allowed(allowed)
        base = ItemMask.build(self.base, allowed)
        if self.added is None:
            return OverlaidMask(base, None)
        numbers = self.first_added + np.arange(self.added.layout.max_item + 1, dtype=np.int32)
        of_added = allowed.at[..., numbers].get(mode="fill", fill_value=False)
        return OverlaidMask(base, ItemMask.build(self.added, of_added))

    def allow(self, items: jax.Array) -> "OverlaidMask":
        """Only these items are allowed; see `ItemMask.allow`, and `mask`."""
        in_base, in_added = self._split(items)
        added = None if self.added is None else ItemMask.allow(self.added, in_added)
        return OverlaidMask(ItemMask.allow(self.base, in_base), added)

    def deny(self, items: jax.Array) -> "OverlaidMask":
        """All but these items are allowed; see `ItemMask.deny`, and `mask`."""
        in_base, in_added = self._split(items)
        added = None if self.added is None else ItemMask.deny(self.added, in_added)
        return OverlaidMask(ItemMask.deny(self.base, in_base), added)

    def _split(self, items: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Item numbers split into those of the large and of the small index, `NO_ITEM` in place of the other's.

        A compacted index may have no room for the numbers of removed items, which are never reused.
        """
        first = self.first_added
        room = 0 if self.added is None else self.added.layout.max_item + 1
        # If `first` is traced, nothing can be refused here; too large numbers are ignored below.
        largest = int(first) + room - 1 if is_known(first) else MAX_ITEMS
        items = item_numbers(items, largest)
        in_base = (items < first) & (items <= self.base.layout.max_item)
        in_added = (items >= first) & (items - first < room)
        return jnp.where(in_base, items, NO_ITEM), jnp.where(in_added, items - first, NO_ITEM)

    def constraints(
        self, constraint: "Constraint | OverlaidMask | Sequence[Constraint | OverlaidMask] | None"
    ) -> tuple[tuple[Constraint, ...], tuple[Constraint, ...]]:
        """A request's constraint and the removals, as constraints of the large and of the small index.

        Raises:
            TrieError: for an `ItemMask`, which belongs to one index, or the mask of another one.
        """
        base = [] if self.base_live is None else [self.base_live]
        added = [] if self.added_live is None else [self.added_live]
        for part in constraints_of(constraint):
            if isinstance(part, OverlaidMask):
                part.check(self)
                base.append(part.base)
                if part.added is not None:
                    added.append(part.added)
            elif isinstance(part, ExcludeItems):
                base.append(part)
                added.append(ExcludeItems(as_int32(jnp.asarray(part.numbers)) - self.first_added))
            elif isinstance(part, AttributeFilter):
                base.append(part)
                added.append(part)
            else:
                raise TrieError(
                    f"{type(part).__name__} belongs to one index and cannot be used on an edited one: "
                    "make the mask with `OverlaidIndex.mask`"
                )
        return tuple(base), tuple(added)

    def __repr__(self) -> str:
        return f"OverlaidIndex(base={self.base}, added={self.added})"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OverlaidMask:
    """An item mask on an edited index, and on no other."""

    base: ItemMask
    added: ItemMask | None

    @property
    def num_users(self) -> int | None:
        """See `Constraint.num_users`."""
        return self.base.num_users

    def check(self, index: OverlaidIndex) -> None:
        """Raises TrieError unless the mask was made for this index, or for it before items were removed."""
        if not isinstance(index, OverlaidIndex):
            raise TrieError(
                f"the mask was made for an edited index, not for {type(index).__name__}: use `ItemMask.allow`"
            )
        same = (self.added is None) == (index.added is None) and of_one_index(self.base, index.base)
        if not same or (self.added is not None and not of_one_index(self.added, index.added)):
            raise TrieError(
                "the mask was made for another index, or before items were added, or the index compacted: make it "
                "anew with `mask`, `allow` or `deny` of the OverlaidIndex that is searched"
            )

    def prepare(self, index: TrieIndex) -> ItemMask:
        """Always a TrieError: a single trie has masks of its own, and an `OverlaidIndex` splits this one."""
        self.check(index)
        raise TrieError("the mask of an edited index cannot be prepared for one trie")


def check_search(
    index: Any, constraint: "Constraint | OverlaidMask | Sequence[Constraint | OverlaidMask] | None"
) -> None:
    """Checks an index and a request's constraint before `jit`; every search calls it on what its caller passed.

    Raises:
        TrieError: for an index of an unknown type; also see `check_constraint`.
    """
    if isinstance(index, EditableIndex):
        raise TrieError("an EditableIndex is searched by its `index`: pass `editable.index`")
    if not isinstance(index, TrieIndex | OverlaidIndex):
        raise TrieError(
            f"the index must be a TrieIndex or an OverlaidIndex, got {type(index).__name__}: of a SwappableIndex "
            "pass what `get` returns; a ShardedIndex has a search of its own, `sharded_beam_search`"
        )
    check_constraint(constraint, index)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EditableIndex:
    """Items on the host, and their index.

    `add`, `remove` and `compact` leave this object unchanged and return a new one: `editable = editable.remove(items)`.

    Item numbers are never reused: an item keeps its number, and a removed number stays empty. Removing, adding and
    compacting give the same results as a full rebuild from the remaining items.
    """

    index: OverlaidIndex
    tokens: np.ndarray  # [n, L] int32, of every item number so far, removed ones included.
    attributes: np.ndarray | None  # [n, A] bool.
    removed: np.ndarray  # [n] bool.

    @staticmethod
    def build(
        tokens: np.ndarray,
        vocab_size: int,
        *,
        attributes: np.ndarray | None = None,
        layout: Layout | None = None,
    ) -> "EditableIndex":
        """An index of items 0..N-1 that can be edited; see `TrieIndex.build`.

        For a model that scores children give the layout of the index that it was trained with.
        """
        index = TrieIndex.build(tokens, vocab_size, attributes=attributes, layout=layout)
        # Copies, so that the caller cannot change them; int32 holds every token below 2**31.
        tokens = np.array(tokens).astype(np.int32)
        if attributes is not None:
            attributes = check_attributes(attributes, len(tokens)).copy()
        overlaid = OverlaidIndex(index, None, None, None, jnp.int32(len(tokens)))
        return EditableIndex(overlaid, tokens, attributes, np.zeros(len(tokens), bool))

    @property
    def num_items(self) -> int:
        """Items that are left."""
        return int((~self.removed).sum())

    def add(
        self, tokens: np.ndarray, *, attributes: np.ndarray | None = None
    ) -> tuple["EditableIndex", np.ndarray]:
        """A new index with more items; this one stays as it is.

        Args:
            tokens: `[n, L]` of any integer type.
            attributes: `[n, A]`, if the index has them.

        Returns:
            The new index, and the numbers of the new items `[n]`.

        Raises:
            TrieError: if tokens or attributes are not what `TrieIndex.build` takes, or do not fit the index.
        """
        length, vocab_size = self.index.length, self.index.vocab_size
        tokens = host_integers(tokens, "new tokens", f"[n, {length}]")
        if tokens.size == 0 and tokens.shape in ((0,), (0, length)):
            return self, np.arange(0)
        if tokens.ndim != 2 or tokens.shape[1] != length:
            raise TrieError(f"new tokens must be [n, {length}], got shape {tokens.shape}")
        tokens, _, _ = check_tokens(tokens, vocab_size)
        if len(self.tokens) + len(tokens) > MAX_ITEMS:
            raise TrieError(
                f"item numbers end at {MAX_ITEMS}, and {len(tokens)} more would exceed it"
            )
        if (attributes is None) != (self.attributes is None):
            raise TrieError(
                "give attributes of the new items if, and only if, the index was built with attributes"
            )
        first = int(self.index.first_added)
        every = np.concatenate([self.tokens, tokens.astype(np.int32)])
        removed = np.append(self.removed, np.zeros(len(tokens), bool))
        all_attributes = None
        if attributes is not None:
            attributes = check_attributes(attributes, len(tokens))
            if attributes.shape != (len(tokens), self.attributes.shape[1]):
                raise TrieError(
                    f"attributes must be [{len(tokens)}, {self.attributes.shape[1]}], got {attributes.shape}"
                )
            all_attributes = np.concatenate([self.attributes, attributes])
        added = _small_index(
            every[first:],
            vocab_size,
            None if all_attributes is None else all_attributes[first:],
            self.index.added,
        )
        if self.index.base.layout.num_names + added.layout.num_names > MAX_ITEMS:
            raise TrieError("old and new items have more nodes than int32 can name: compact first")
        live = ItemMask.build(added, ~removed[first:]) if removed[first:].any() else None
        index = dataclasses.replace(self.index, added=added, added_live=live)
        numbers = np.arange(len(self.tokens), len(every))
        return EditableIndex(index, every, all_attributes, removed), numbers

    def remove(self, items: np.ndarray) -> "EditableIndex":
        """A new index without some items; this one stays as it is.

        Args:
            items: a number, or `[n]` of any integer type; items that are removed already stay removed.

        Raises:
            TrieError: if they are no integers, or for a number that no item ever had.
        """
        items = host_integers(items, "items", "[n]")
        if items.ndim > 1:
            raise TrieError(f"items must be integers [n], got shape {items.shape}")
        items = items.reshape(-1)
        if items.size and (items.min() < 0 or items.max() >= len(self.tokens)):
            wrong = items[(items < 0) | (items >= len(self.tokens))][0]
            raise TrieError(
                f"item {wrong} cannot be removed: numbers are 0..{len(self.tokens) - 1}"
            )
        removed = self.removed.copy()
        removed[items] = True
        first = int(self.index.first_added)
        base_live, added_live = self.index.base_live, self.index.added_live
        if (removed[:first] != self.removed[:first]).any():
            base_live = ItemMask.build(self.index.base, ~removed[:first])
        if (removed[first:] != self.removed[first:]).any():
            added_live = ItemMask.build(self.index.added, ~removed[first:])
        index = dataclasses.replace(self.index, base_live=base_live, added_live=added_live)
        return dataclasses.replace(self, index=index, removed=removed)

    def compact(self) -> "EditableIndex":
        """A new index of the remaining items in one trie; their numbers stay as they are, and so does this index.

        Raises:
            TrieError: if no item is left.
        """
        left = np.flatnonzero(~self.removed)
        if left.size == 0:
            raise TrieError("no item is left to be indexed: add items before compacting")
        attributes = None if self.attributes is None else self.attributes[left]
        base = TrieIndex.build(
            self.tokens[left], self.index.vocab_size, attributes=attributes, items=left
        )
        index = OverlaidIndex(base, None, None, None, jnp.int32(len(self.tokens)))
        return dataclasses.replace(self, index=index)

    def __repr__(self) -> str:
        return (
            f"EditableIndex({self.num_items} items, {int(self.removed.sum())} removed, "
            f"tokens={shown(self.tokens)}, V={self.index.vocab_size})"
        )


def _small_index(
    tokens: np.ndarray,
    vocab_size: int,
    attributes: np.ndarray | None,
    previous: TrieIndex | None,
) -> TrieIndex:
    """The index of added items, in the layout of the previous one if they still fit it."""
    if previous is not None:
        try:
            return TrieIndex.build(
                tokens, vocab_size, attributes=attributes, layout=previous.layout
            )
        except TrieError:
            pass  # Outgrown; the build below reports any other fault.
    return TrieIndex.build(tokens, vocab_size, attributes=attributes, headroom=_HEADROOM)
