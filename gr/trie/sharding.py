"""An index split by first token over the devices of a mesh axis, for corpora larger than one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gr.trie.attributes import check_attributes
from gr.trie.build import build_arrays, check_tokens, count_prefixes
from gr.trie.exclusion import DeadNodes, ExcludeItems
from gr.trie.identity import fingerprint
from gr.trie.index import NO_NODE, TrieIndex
from gr.trie.inputs import known_items
from gr.trie.layout import (
    Layout,
    Shape,
    TrieError,
    check_fits,
    choose_layout,
    joined_shape,
    layout_of_shards,
)
from gr.trie.packed import PackedInts, pack


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class ShardedIndex:
    """S indexes of one layout, stacked: every array has a leading axis S, which is split over a mesh axis.

    Each shard holds all items of some first tokens. Its slots hold the items' numbers in the whole corpus. The places
    of items are split over the shards: shard s holds those of the s-th part of the item numbers.
    """

    shards: TrieIndex  # `slot_of_item` is not used: see `places`.
    # [S, ceil(N / S)]: items s * ceil(N / S) + i -> shard * max_items + slot; S * max_items where there is none.
    places: PackedInts
    # [S, L] int32: the row of a shard's first node of depth 1..L among those of the whole trie, see `node_rows`;
    # `NO_NODE` where rows exceed int32, so that no array has them.
    first_rows: jax.Array
    num_shards: int = dataclasses.field(metadata={"static": True})
    layout: Layout = dataclasses.field(metadata={"static": True})  # Of one index of all items.

    @staticmethod
    def build(
        tokens: np.ndarray,
        vocab_size: int,
        mesh: Mesh,
        *,
        axis: str = "model",
        attributes: np.ndarray | None = None,
        listed: bool = False,
        layout: Layout | None = None,
    ) -> "ShardedIndex":
        """Splits, builds and places the shards.

        A model with vectors of trie nodes knows them by their rows in one index of all items. That is the one which
        `TrieIndex.build` makes with the same arguments.

        Args:
            tokens: vocabulary tokens `[N, L]`; row i is item i.
            vocab_size: V.
            mesh: the devices.
            axis: the mesh axis over which the index is split; on other axes it is replicated.
            attributes: `[N, A]`, see `TrieIndex.build`.
            listed: see `TrieIndex.build`.
            layout: of the index that the model was trained with, if that was built with room or ranges of its own.

        Raises:
            TrieError: see `TrieIndex.build`; also if there are fewer first tokens than shards.
        """
        tokens, _, _ = check_tokens(tokens, vocab_size)
        if attributes is not None:
            attributes = check_attributes(attributes, len(tokens))
        num_shards = mesh.shape[axis]
        owner = _split_by_first_token(tokens, num_shards)
        rows = [np.flatnonzero(owner == shard) for shard in range(num_shards)]
        shapes = [count_prefixes(tokens[mine], vocab_size) for mine in rows]
        shape = joined_shape(shapes)
        if layout is None:
            number = 0 if attributes is None else attributes.shape[1]
            layout = choose_layout(shape, int(vocab_size), num_attributes=number, listed=listed)
        check_fits(shape, layout)
        of_shards = layout_of_shards(layout, shapes)
        shards, places = [], np.full(len(tokens), num_shards * of_shards.max_items, np.int64)
        for shard, mine in enumerate(rows):
            part = None if attributes is None else attributes[mine]
            fields = build_arrays(tokens[mine], vocab_size, attributes=part, layout=of_shards)
            index = jax.tree.map(np.asarray, TrieIndex(**fields))
            slots = np.arange(len(mine))
            found = mine[np.asarray(jax.device_put(index.item_of_slot)[slots])]
            places[found] = shard * of_shards.max_items + slots
            items = pack(found, len(tokens) - 1, of_shards.max_items)
            nothing = pack(np.zeros(1, np.int32), 1, 1)
            index = dataclasses.replace(index, item_of_slot=items, slot_of_item=nothing)
            shards.append(dataclasses.replace(index, fingerprint=fingerprint(vars(index))))
        host = ShardedIndex(
            jax.tree.map(lambda *arrays: np.stack(arrays), *shards),
            _stacked_places(places, num_shards, of_shards),
            _first_rows(shapes, layout),
            num_shards,
            layout,
        )
        return jax.device_put(host, NamedSharding(mesh, PartitionSpec(axis)))

    @property
    def node_counts(self) -> jax.Array:
        """See `TrieIndex.node_counts`: of all shards together, which share the root alone."""
        return self.shards.node_counts.sum(axis=0).at[0].set(1)

    @property
    def length(self) -> int:
        """L, tokens of a semantic ID."""
        return self.shards.length

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.shards.vocab_size

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays on all shards."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def __repr__(self) -> str:
        return f"ShardedIndex({self.num_shards} shards of {self.shards})"


def local_shard(sharded: ShardedIndex) -> tuple[TrieIndex, PackedInts, jax.Array]:
    """Inside `shard_map`: this device's index, its part of the places, and the rows of its first nodes `[L]`."""
    parts = sharded.shards, sharded.places, sharded.first_rows
    return jax.tree.map(lambda array: array[0], parts)


def exclude_on_shard(
    excluded: ExcludeItems, index: TrieIndex, places: PackedInts, axis: str
) -> DeadNodes:
    """Inside `shard_map`: an exclusion as seen by this device's shard.

    Args:
        excluded: item numbers of the whole corpus.
        index: this device's shard.
        places: this device's part of the places.
        axis: name of the mesh axis.
    """
    shard, none = jax.lax.axis_index(axis), index.layout.max_items
    place = places_on_shards(excluded.numbers, places, axis)
    mine = (place >= 0) & (place // none == shard)
    return DeadNodes.of_slots(index, jnp.where(mine, place % none, none))


def places_on_shards(items: jax.Array, places: PackedInts, axis: str) -> jax.Array:
    """Inside `shard_map`: shard times `max_items` plus slot, of items `[B, S]` of the whole corpus.

    Numbers beyond the corpus may get -1, or, like places of padding, a shard that no device has.
    """
    items, known = known_items(items, 2**31 - 2)
    local = items - jax.lax.axis_index(axis) * places.size
    known &= (local >= 0) & (local < places.size)
    # One device knows each item's place: the sum over devices shares it.
    found = jnp.where(known, places[jnp.where(known, local, 0)] + 1, 0)
    return jax.lax.psum(found, axis) - 1


def _split_by_first_token(tokens: np.ndarray, num_shards: int) -> np.ndarray:
    """The shard of each row `[N]`: consecutive first tokens, about as many items in each shard."""
    first, code, counts = np.unique(tokens[:, 0], return_inverse=True, return_counts=True)
    if len(first) < num_shards:
        raise TrieError(
            f"{len(first)} different first tokens cannot be split over {num_shards} shards: use fewer devices"
        )
    # By the middle of each token's items; then every shard gets at least one token.
    middle = np.cumsum(counts) - counts / 2
    shard = (middle * num_shards / len(tokens)).astype(np.int64)
    shard = np.maximum.accumulate(np.maximum(shard, 0))
    for number in range(len(first)):
        least = num_shards - (len(first) - number)
        before = shard[number - 1] if number else -1
        shard[number] = min(max(shard[number], least, before), before + 1)
    return shard[code]


def _first_rows(shapes: list[Shape], whole: Layout) -> np.ndarray:
    """`ShardedIndex.first_rows`: first tokens are in order, so those of a shard follow those of the shards before."""
    counts = [
        [
            shape.num_nodes[depth] if depth < whole.scan_depth else shape.num_items
            for depth in range(1, whole.length + 1)
        ]
        for shape in shapes
    ]
    ends = np.cumsum(counts, axis=0, dtype=np.int64) + np.array(whole.node_offsets[:-1], np.int64)
    return np.where(ends < 2**31, ends - counts, NO_NODE).astype(np.int32)


def _stacked_places(places: np.ndarray, num_shards: int, layout: Layout) -> PackedInts:
    # Names of nodes over all shards stay below this too: per depth, a shard has at most as many nodes as items.
    none = num_shards * layout.max_items
    if none >= 2**31 - 1:
        raise TrieError(f"{num_shards} shards of {layout.max_items} items exceed int32 places")
    size = -(-len(places) // num_shards)
    parts = [
        pack(places[shard * size : (shard + 1) * size], none, size, fill=none)
        for shard in range(num_shards)
    ]
    return PackedInts(np.stack([part.words for part in parts]), parts[0].width, size)
