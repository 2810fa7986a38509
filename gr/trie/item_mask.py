"""`ItemMask`: any set of items that may be decoded, for the batch or per user."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.trie.index import TrieIndex
from gr.trie.inputs import is_known, item_lists, known_items, shown, truth_values
from gr.trie.layout import Layout, TrieError
from gr.trie.live import LiveNodes, has_bit, live_nodes
from gr.trie.packed import take
from gr.trie.transitions import Nodes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class ItemMask:
    """The items that are allowed, for the whole batch or per user, and the nodes above them.

    It is made in one pass over the index, and then searched as fast as the index itself. It is exact: no prefix without
    an allowed item below is entered.

    A mask belongs to the index that it was made for, or to an equal one, such as that index loaded from its file.
    Searching another index with it is a TrieError. Inside the caller's own `jit`, where the two cannot be compared
    beforehand, nothing is allowed instead.
    """

    live: LiveNodes
    fingerprint: jax.Array  # That of the index.
    layout: Layout = dataclasses.field(metadata={"static": True})  # That of the index.
    per_user: bool = dataclasses.field(metadata={"static": True})

    @staticmethod
    def build(index: TrieIndex, allowed: jax.Array) -> "ItemMask":
        """The mask of `allowed [n]`, or `[B, n]` for a mask per user: bool by item number; items from n on are not.

        Raises:
            TrieError: for a wrong shape or type, or an index that is not a `TrieIndex`.
        """
        _check_maskable(index)
        allowed = check_allowed(allowed)
        per_user = allowed.ndim == 2
        live = _live_nodes_per_user(index, allowed) if per_user else live_nodes(index, allowed)
        return ItemMask(live, index.fingerprint, index.layout, per_user)

    @staticmethod
    def allow(index: TrieIndex, items: jax.Array | np.ndarray) -> "ItemMask":
        """Only these items are allowed.

        Args:
            index: the index to be searched.
            items: `[S]`, or `[B, S]` for a mask per user, `NO_ITEM`-padded; or lists, of any length for each user.

        Raises:
            TrieError: for a wrong shape or type, or a number that no item of the index's layout can have.
        """
        _check_maskable(index)
        return ItemMask.build(index, _membership(index, items))

    @staticmethod
    def deny(index: TrieIndex, items: jax.Array | np.ndarray) -> "ItemMask":
        """All but these items are allowed; see `allow`."""
        _check_maskable(index)
        return ItemMask.build(index, ~_membership(index, items))

    @property
    def num_users(self) -> int | None:
        """See `Constraint.num_users`."""
        return len(self.live.slots) if self.per_user else None

    def check(self, index: TrieIndex) -> None:
        """Raises TrieError unless the mask was made for this index; traced fingerprints are not compared."""
        _check_maskable(index)
        if not of_one_index(self, index):
            raise TrieError(
                "the ItemMask was made for another index than the one that is searched: take the index once "
                "(`index = server.get()`), and make the mask for it, `ItemMask.allow(index, items)`"
            )

    def prepare(self, index: TrieIndex) -> "ItemMask":
        """A mask is its own filter, once checked against the index.

        Raises:
            TrieError: see `check`.
        """
        self.check(index)
        return self

    def rows(self, index: TrieIndex, depth: int, nodes: Nodes, rows: jax.Array) -> jax.Array:
        """See `Filter.rows`."""
        del index
        live = self.live.levels[depth]
        if self.per_user:
            return rows & jax.vmap(take)(live, nodes.begin)
        return rows & take(live, nodes.begin)

    def children(
        self, index: TrieIndex, depth: int, nodes: Nodes, numbers: jax.Array, exist: jax.Array
    ) -> jax.Array:
        """See `Filter.children`."""
        del index, nodes
        return exist & self._bit(self.live.levels[depth], numbers)

    def slots(self, index: TrieIndex, slots: jax.Array) -> jax.Array:
        """See `Filter.slots`. On another index, which `check` cannot detect while tracing, no slot is allowed."""
        belongs = (self.fingerprint == index.fingerprint).all()
        return self._bit(self.live.slots, slots) & belongs

    def _bit(self, words: jax.Array, places: jax.Array) -> jax.Array:
        return jax.vmap(has_bit)(words, places) if self.per_user else has_bit(words, places)

    def __repr__(self) -> str:
        users = (
            f"{shown(self.live.slots)} bits, a row per user" if self.per_user else "for all users"
        )
        return f"ItemMask({users}, at most {self.layout.max_items} items)"


def of_one_index(mask: ItemMask, index: TrieIndex) -> bool:
    """Whether a mask belongs to an index; if a fingerprint is traced, whether it may belong."""
    mine, its = mask.fingerprint, index.fingerprint
    if mask.layout != index.layout or mine.shape != its.shape:
        return False
    if mine is its or not (is_known(mine) and is_known(its)):
        return True
    with jax.transfer_guard_device_to_host(
        "allow"
    ):  # Eight bytes, which JAX then keeps on the host.
        return np.array_equal(np.asarray(mine), np.asarray(its))


def _check_maskable(index: Any) -> None:
    if not isinstance(index, TrieIndex):
        raise TrieError(
            f"an ItemMask belongs to a TrieIndex, not to {type(index).__name__}: {_OTHER_INDEXES}"
        )


_OTHER_INDEXES = (
    "masks of an edited index are made by `OverlaidIndex.mask`, `.allow` and `.deny` (of an EditableIndex's `index`), "
    "those of a sharded one by `sharded_mask`, and a SwappableIndex's for what its `get` returns"
)


def check_allowed(allowed: Any) -> jax.Array:
    """Booleans `[items]` or `[users, items]`; a TrieError for anything else."""
    wanted = "[items] or [users, items]"
    allowed = truth_values(allowed, "allowed", wanted)
    if allowed.ndim not in (1, 2) or allowed.shape[-1] == 0:
        raise TrieError(f"allowed must be truth values {wanted}, got shape {list(allowed.shape)}")
    return jnp.asarray(allowed)


_live_nodes_per_user = jax.jit(jax.vmap(live_nodes, in_axes=(None, 0)))


def item_numbers(items: Any, largest: int) -> np.ndarray | jax.Array:
    """Item numbers `[S]` or `[B, S]` of any type, or lists of them, as int32.

    Raises:
        TrieError: for a wrong type or shape, or a number above `largest`, which is not checked for traced ones.
    """
    wanted = "[S] or [users, S], or a list of lists"
    items = item_lists(items, "items", wanted)
    if items.ndim not in (1, 2):
        raise TrieError(f"items must be integers {wanted}, got shape {list(items.shape)}")
    if items.size and is_known(items) and (found := np.asarray(items).max()) > largest:
        raise TrieError(
            f"item {found} is beyond {largest}, the largest number that the index has room for: pass item numbers, "
            "which are rows of the tokens that it was built of, not ids of your own"
        )
    return items


def _membership(index: TrieIndex, items: Any) -> jax.Array:
    """Which item numbers are among `items [S]` or `[B, S]`: `[max_item + 1]` or `[B, max_item + 1]` bool."""
    size = index.layout.max_item + 1
    place, known = known_items(item_numbers(items, size - 1), size - 1)
    place = jnp.where(known, place, size)  # Out of range, so dropped.

    def mark(places: jax.Array) -> jax.Array:
        return jnp.zeros(size, bool).at[places].set(True, mode="drop")

    return mark(place) if place.ndim == 1 else jax.vmap(mark)(place)
