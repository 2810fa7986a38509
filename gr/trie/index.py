"""The trie of all valid semantic IDs as flat arrays: `TrieIndex`, built on the host, used inside `jit`."""

import dataclasses
import os
from collections.abc import Sequence

import jax
import numpy as np

from gr.trie.attributes import Attributes
from gr.trie.build import build_arrays
from gr.trie.files import read_index, write_index
from gr.trie.inputs import is_known
from gr.trie.layout import Layout
from gr.trie.packed import PackedInts

ROOT = 0  # The one node of depth 0.
NO_NODE = -1  # "This prefix is not in the trie."


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class TrieIndex:
    """All prefixes of all semantic IDs (arXiv 2602.22647), numbered level by level in sorted order.

    Items are ordered by semantic ID and numbered by their place in that order: their *slots*. The items below a
    prefix have consecutive slots, and the slots of items that share a semantic ID stand side by side.

    Depth 0 is the root. Down to the *scan depth* D the nodes of each depth are numbered 0.. in the order of their
    prefixes; the children of a node are therefore consecutive nodes of the next depth, sorted by token, and the next
    state need not be stored: child j of a node has number `first_child[node] + j`. A level's tokens are rows of bits
    (DENSE) or a list (SPARSE). From depth D on, where few items are left below a node, only the sorted and bit-packed
    table of semantic IDs is stored (SCAN). There a node is an interval of slots, named by the first of them, and its
    children are found by scanning the interval.

    Letters: L code depth, N items, D scan depth, n_t nodes of depth t (n_0 = 1). Numbers are those of the layout,
    which may leave room for more.
    """

    children: tuple[
        jax.Array | PackedInts, ...
    ]  # [D]: level t's DENSE rows [n_t, words] or tokens [n_{t+1}].
    first_child: tuple[PackedInts, ...]  # [D]: [n_t + 1] each, into the nodes of depth t + 1.
    first_slot: PackedInts  # [n_D + 1]: depth-D node -> its slots.
    table: (
        PackedInts | None
    )  # [N]: by slot, tokens of levels D.. side by side, less each level's base.
    item_of_slot: PackedInts  # [N].
    slot_of_item: (
        PackedInts  # [largest item + 1]; the layout's `max_items` where there is no such item.
    )
    node_counts: jax.Array  # [L + 1] int32: nodes of each depth.
    item_count: jax.Array  # [] int32: N.
    attributes: Attributes | None
    fingerprint: jax.Array  # [2] uint32: identifies this index; masks made for it carry the same.
    layout: Layout = dataclasses.field(metadata={"static": True})

    @staticmethod
    def build(
        tokens: np.ndarray,
        vocab_size: int,
        *,
        attributes: np.ndarray | None = None,
        items: np.ndarray | None = None,
        headroom: float = 0.0,
        level_ranges: Sequence[tuple[int, int]] | None = None,
        layout: Layout | None = None,
        listed: bool = False,
    ) -> "TrieIndex":
        """Indexes semantic IDs, in any order, duplicates allowed (items that share a semantic ID).

        Args:
            tokens: vocabulary tokens `[N, L]` of any integer type; row i is item i.
            vocab_size: V; tokens lie in `[0, V)`.
            attributes: boolean attributes of the items `[N, A]`, A <= 64, for `AttributeFilter`.
            items: item numbers of the rows `[N]`, all different; 0..N-1 if not given.
            headroom: spare room for later indexes of the same layout, as a share of all sizes: 0.25 is a quarter more.
            level_ranges: token range `[low, high)` of each level; None: the tokens that occur.
            layout: the layout of another index, so that programs compiled for that one are reused.
            listed: whether children are kept so that few places list all of a node's, which a model that scores
                children (`gr.models.ChildScorer`) is faster on.

        Raises:
            TrieError: if there is no item, shapes do not fit, a token is out of range, or the layout is too small.
        """
        fields = build_arrays(
            tokens,
            vocab_size,
            attributes=attributes,
            items=items,
            headroom=headroom,
            level_ranges=level_ranges,
            layout=layout,
            listed=listed,
        )
        return jax.device_put(TrieIndex(**fields))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index into one file, atomically; see `gr.trie.files` for its form."""
        write_index(
            path, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        )

    @staticmethod
    def load(path: str | os.PathLike[str], mmap: bool = True) -> "TrieIndex":
        """Reads what `save` wrote.

        Args:
            path: the file.
            mmap: whether to map the file into memory instead of reading it; on a CPU the arrays then use the file's
                pages.

        Raises:
            TrieError: if the file is missing, truncated, corrupt, or of a newer version.
        """
        return jax.device_put(TrieIndex(**read_index(path, mmap=mmap)))

    @property
    def length(self) -> int:
        """L, tokens of a semantic ID."""
        return self.layout.length

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.layout.vocab_size

    @property
    def max_items_per_sid(self) -> int:
        """C, the most items that share a semantic ID: 1 where all are unique."""
        return self.layout.max_items_per_sid

    @property
    def num_items(self) -> int:
        """N, items; several may share a semantic ID. Waits for the device; inside `jit` use `item_count`."""
        return int(self.item_count)

    @property
    def num_nodes(self) -> tuple[int, ...]:
        """Nodes of depth 0, 1, .., L. Waits for the device; inside `jit` use `node_counts`."""
        return tuple(np.asarray(self.node_counts).tolist())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def __repr__(self) -> str:
        count = self.item_count
        known = hasattr(count, "dtype") and np.shape(count) == () and is_known(count)
        items = f"{int(count)} items" if known else f"at most {self.layout.max_items} items"
        kinds = "+".join(level.kind for level in self.layout.levels)
        attributes = f", {self.layout.num_attributes} attributes" if self.attributes else ""
        return f"TrieIndex({items}, L={self.length}, V={self.vocab_size}, {kinds}{attributes})"
