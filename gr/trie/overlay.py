"""Items added to and removed from an index without rebuilding it: `EditableIndex` and what a search sees of it.

editable = EditableIndex.build(tokens, vocab_size)
editable, items = editable.add(new_tokens)      # Their item numbers; a small index of the new items is built.
editable = editable.remove(items[:1])           # One pass over the live nodes on the device.
beam_search(model, editable.index, history, num_beams=20)
editable = editable.compact()                   # One index again; item numbers stay as they are.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gr.trie.constraints import (
    AttributeFilter,
    Constraint,
    ItemMask,
    constraints_of,
)
from gr.trie.exclusion import ExcludeItems
from gr.trie.index import TrieIndex
from gr.trie.layout import TrieError

# The small index leaves room for so much more, so that adding items seldom makes a search compile anew.
_HEADROOM = 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OverlaidIndex:
    """An index, a small one of items added since, and what was removed from each; a search treats it as one trie.

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
        """The mask of `allowed [n]` or `[B, n]`, bool by item number; see `ItemMask.build`."""
        allowed = jnp.asarray(allowed)
        base = ItemMask.build(self.base, allowed)
        if self.added is None:
            return OverlaidMask(base, None)
        first = int(self.first_added)
        if allowed.shape[-1] <= first:  # Nothing of the small index is allowed.
            return OverlaidMask(base, ItemMask.build(self.added, jnp.zeros_like(allowed)))
        return OverlaidMask(base, ItemMask.build(self.added, allowed[..., first:]))

    def constraints(
        self, constraint: "Constraint | OverlaidMask | Sequence[Constraint | OverlaidMask] | None"
    ) -> tuple[tuple[Constraint, ...], tuple[Constraint, ...]]:
        """What a request's constraint and the removals mean for the large and for the small index.

        Raises:
            TrieError: for an `ItemMask`, which belongs to one index.
        """
        base = [] if self.base_live is None else [self.base_live]
        added = [] if self.added_live is None else [self.added_live]
        for part in constraints_of(constraint):
            if isinstance(part, OverlaidMask):
                base.append(part.base)
                if part.added is not None:
                    added.append(part.added)
            elif isinstance(part, ExcludeItems):
                base.append(part)
                added.append(ExcludeItems(jnp.asarray(part.items) - self.first_added))
            elif isinstance(part, AttributeFilter):
                base.append(part)
                added.append(part)
            else:
                raise TrieError(
                    f"{type(part).__name__} belongs to one index and cannot be used on an edited one: "
                    "make the mask with `OverlaidIndex.mask`"
                )
        return tuple(base), tuple(added)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OverlaidMask:
    """An item mask on an edited index."""

    base: ItemMask
    added: ItemMask | None

    @property
    def num_users(self) -> int | None:
        """See `Constraint.num_users`."""
        return self.base.num_users


@dataclasses.dataclass(frozen=True, eq=False)
class EditableIndex:
    """Items on the host and the index of them; editing returns a new one and leaves this one as it is.

    Item numbers are never reused: an item keeps its number for good, and a removed number stays empty. Removing,
    adding and compacting give what a full rebuild from the remaining items would give.
    """

    index: OverlaidIndex
    tokens: np.ndarray  # [n, L] of every item number so far, removed ones included.
    attributes: np.ndarray | None  # [n, A] bool.
    removed: np.ndarray  # [n] bool.

    @staticmethod
    def build(
        tokens: np.ndarray, vocab_size: int, *, attributes: np.ndarray | None = None
    ) -> "EditableIndex":
        """An index of items 0..N-1 that can be edited; see `TrieIndex.build`."""
        tokens = np.asarray(tokens)
        index = TrieIndex.build(tokens, vocab_size, attributes=attributes)
        removed = np.zeros(len(tokens), bool)
        overlaid = OverlaidIndex(index, None, None, None, jnp.int32(len(tokens)))
        if attributes is not None:
            attributes = np.asarray(attributes, bool)
        return EditableIndex(overlaid, tokens, attributes, removed)

    @property
    def num_items(self) -> int:
        """Items that are left."""
        return int((~self.removed).sum())

    def add(
        self, tokens: np.ndarray, *, attributes: np.ndarray | None = None
    ) -> tuple["EditableIndex", np.ndarray]:
        """Adds items with tokens `[n, L]`, and attributes `[n, A]` if the index has them.

        Returns:
            The new index, and the numbers of the new items `[n]`.

        Raises:
            TrieError: if tokens or attributes do not fit the index.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.shape[1] != self.tokens.shape[1] or len(tokens) == 0:
            raise TrieError(
                f"new tokens must be [n, {self.tokens.shape[1]}] with n >= 1, got shape {tokens.shape}"
            )
        if (attributes is None) != (self.attributes is None):
            raise TrieError(
                "give attributes of the new items if, and only if, the index was built with attributes"
            )
        first = int(self.index.first_added)
        every = np.concatenate([self.tokens, tokens.astype(self.tokens.dtype)])
        removed = np.append(self.removed, np.zeros(len(tokens), bool))
        all_attributes = None
        if attributes is not None:
            attributes = np.asarray(attributes, bool)
            if attributes.shape != (len(tokens), self.attributes.shape[1]):
                raise TrieError(
                    f"attributes must be [{len(tokens)}, {self.attributes.shape[1]}], got {attributes.shape}"
                )
            all_attributes = np.concatenate([self.attributes, attributes])
        added = _small_index(
            every[first:],
            self.index.vocab_size,
            None if all_attributes is None else all_attributes[first:],
            self.index.added,
        )
        live = ItemMask.build(added, ~removed[first:]) if removed[first:].any() else None
        index = dataclasses.replace(self.index, added=added, added_live=live)
        numbers = np.arange(len(self.tokens), len(every))
        return EditableIndex(index, every, all_attributes, removed), numbers

    def remove(self, items: np.ndarray) -> "EditableIndex":
        """Removes items by number; what is removed already stays so.

        Raises:
            TrieError: for a number that no item ever had.
        """
        items = np.asarray(items, np.int64).reshape(-1)
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
        """Builds one index of the remaining items; their numbers stay as they are.

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
            pass  # Outgrown; anything else that is wrong is said by the build below.
    return TrieIndex.build(tokens, vocab_size, attributes=attributes, headroom=_HEADROOM)
