"""The trie of all valid semantic IDs as flat arrays: `TrieIndex`, built on the host, used inside `jit`."""

import dataclasses
from typing import Any

import jax
import numpy as np

ROOT = 0  # The one node of depth 0.
NO_NODE = -1  # "This prefix is not in the trie."
NO_ITEM = -1  # Fills the item lists of semantic IDs that fewer items share.


class TrieError(ValueError):
    """Raised for tokens that cannot be indexed; the message names the row and level and the remedy."""


def _array() -> Any:
    return dataclasses.field(metadata={"static": False})


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrieIndex:
    """All prefixes of all semantic IDs (arXiv 2602.22647), numbered level by level in sorted order.

    A node of depth t is a distinct prefix of t tokens; the nodes of one depth are numbered 0.. in the
    lexicographic order of their prefixes. The children of a node are therefore consecutive nodes of the next
    depth, sorted by token, and "next state" need not be stored: child `first_child[t][node] + j` *is* its number.
    A node of depth L (a *leaf*) is a distinct semantic ID; `slots` order items by leaf, so that every node owns
    one interval of slots, and the items that share a semantic ID stand side by side.

    Letters: L code depth, n_t nodes of depth t (n_0 = 1), N items.
    """

    tokens: tuple[jax.Array, ...] = (
        _array()
    )  # tokens[t] [n_{t+1}] int32: last token of each node of depth t + 1.
    first_child: tuple[jax.Array, ...] = (
        _array()
    )  # first_child[t] [n_t + 1] int32, into the nodes of depth t + 1.
    first_slot: jax.Array = _array()  # [n_L + 1] int32: leaf -> its slots.
    item_of_slot: jax.Array = _array()  # [N] int32 item rows, ordered by leaf, then by row.
    slot_of_item: jax.Array = _array()  # [N] int32, the inverse.
    vocab_size: int = _static()
    branching: tuple[int, ...] = _static()  # branching[t]: most children of any node of depth t.
    max_items_per_leaf: int = _static()

    @staticmethod
    def build(tokens: np.ndarray, vocab_size: int) -> "TrieIndex":
        """Indexes semantic IDs, in any order, duplicates allowed (items that share a semantic ID).

        Args:
            tokens: vocabulary tokens `[N, L]` of any integer type; row i is item i.
            vocab_size: V; tokens lie in `[0, V)`.

        Raises:
            TrieError: if there is no item, the shape is not `[N, L]`, or a token is out of range.
        """
        return TrieIndex(**_build_arrays(_checked(tokens, vocab_size), vocab_size))

    @property
    def length(self) -> int:
        """L, tokens of a semantic ID."""
        return len(self.tokens)

    @property
    def num_items(self) -> int:
        """N, items; several may share a leaf."""
        return self.item_of_slot.shape[0]

    @property
    def num_nodes(self) -> tuple[int, ...]:
        """Nodes of depth 0, 1, .., L."""
        return (1, *(level.shape[0] for level in self.tokens))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def _checked(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise TrieError(
            f"tokens must be [N, L] with N, L >= 1, got shape {tokens.shape}: "
            "pass one row of tokens per item"
        )
    if not np.issubdtype(tokens.dtype, np.integer):
        raise TrieError(f"tokens must be integers, got {tokens.dtype}: cast them first")
    if tokens.size > np.iinfo(np.int32).max:
        raise TrieError(f"{tokens.size} tokens exceed int32 node numbers: shard the corpus")
    if vocab_size < 1:
        raise TrieError(f"vocab_size must be at least 1, got {vocab_size}")
    bad = (tokens < 0) | (tokens >= vocab_size)
    if bad.any():
        row, level = np.argwhere(bad)[0]
        raise TrieError(
            f"token {tokens[row, level]} of item row {row}, level {level} is outside [0, {vocab_size}): "
            "pass vocabulary tokens (SemanticIds.tokens), not level codes, and the model's vocab_size"
        )
    return tokens


def _build_arrays(tokens: np.ndarray, vocab_size: int) -> dict[str, Any]:
    num_items, length = tokens.shape
    order = _sort_rows(tokens, vocab_size)
    ordered = np.ascontiguousarray(tokens[order].astype(np.int32).T)  # [L, N], one row a level.

    # starts[t]: slots at which a new prefix of t + 1 tokens begins; a prefix once new stays new below.
    is_new = np.zeros(num_items, bool)
    is_new[0] = True
    starts = []
    for level in ordered:
        is_new[1:] |= level[1:] != level[:-1]
        starts.append(np.flatnonzero(is_new))

    level_tokens = [level[start] for level, start in zip(ordered, starts, strict=True)]
    parents_starts = [np.zeros(1, np.int64), *starts[:-1]]
    first_child = [
        np.append(np.searchsorted(children, parents), len(children)).astype(np.int32)
        for parents, children in zip(parents_starts, starts, strict=True)
    ]
    first_slot = np.append(starts[-1], num_items).astype(np.int32)
    slot_of_item = np.empty(num_items, np.int32)
    slot_of_item[order] = np.arange(num_items, dtype=np.int32)
    return {
        "tokens": tuple(jax.device_put(level_tokens)),
        "first_child": tuple(jax.device_put(first_child)),
        "first_slot": jax.device_put(first_slot),
        "item_of_slot": jax.device_put(order.astype(np.int32)),
        "slot_of_item": jax.device_put(slot_of_item),
        "vocab_size": int(vocab_size),
        "branching": tuple(int(np.diff(rows).max()) for rows in first_child),
        "max_items_per_leaf": int(np.diff(first_slot).max()),
    }


def _sort_rows(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Stable lexicographic order of the rows, on as few 64-bit keys as hold them."""
    bits = max(int(vocab_size - 1).bit_length(), 1)
    per_key = max(63 // bits, 1)
    keys = []
    for first in range(0, tokens.shape[1], per_key):
        key = np.zeros(len(tokens), np.int64)
        for column in range(first, min(first + per_key, tokens.shape[1])):
            key = (key << bits) | tokens[:, column].astype(np.int64)
        keys.append(key)
    # lexsort's last key is the primary one.
    return np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort(keys[::-1])
