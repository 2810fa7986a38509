"""Boolean attributes of items: by slot, and ORed over all items below by node."""

import dataclasses

import jax
import numpy as np

from gr.trie.bit_rows import make_rows
from gr.trie.layout import DENSE, Layout, TrieError
from gr.trie.sorting import SortedIds

MAX_ATTRIBUTES = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attributes:
    """The A attributes of each item; for each node, which attributes occur and which are missing somewhere below.

    Bit a of word `a // 32` stands for attribute a. Nodes of scanned depths store nothing: there the slots decide.
    """

    slots: (
        jax.Array
    )  # [N, w] unsigned, of 8, 16 or 32 bits: as narrow as A allows; w = 1, or 2 if A > 32.
    # [D]: DENSE [n_t, 2A, words], for each attribute the row of the children with, then without it somewhere below;
    # SPARSE [n_{t+1}, 2w], the words of those with, then without.
    nodes: tuple[jax.Array, ...]


def check_attributes(attributes: np.ndarray, num_items: int) -> np.ndarray:
    """Attributes `[N, A]` as bool.

    Raises:
        TrieError: for a wrong shape, or values that are not boolean.
    """
    try:
        attributes = np.asarray(attributes)
    except (ValueError, TypeError) as error:
        raise TrieError("attributes must be [N, A] truth values: rows differ in length") from error
    if attributes.ndim != 2 or len(attributes) != num_items:
        raise TrieError(
            f"attributes must be [N, A] with N = {num_items}, got shape {attributes.shape}: "
            "pass one row of truth values per item"
        )
    if not 1 <= attributes.shape[1] <= MAX_ATTRIBUTES:
        raise TrieError(
            f"items may have 1 to {MAX_ATTRIBUTES} attributes, got {attributes.shape[1]}"
        )
    numbers = attributes.dtype.kind in "biuf"
    if not numbers or not (attributes.dtype == bool or np.isin(attributes, (0, 1)).all()):
        raise TrieError(
            "attributes must be truth values, 0 or 1: one column per category or bucket"
        )
    return attributes.astype(bool)


def make_attributes(
    attributes: np.ndarray, ids: SortedIds, starts: list[np.ndarray], layout: Layout
) -> Attributes:
    """Attributes of slots and nodes, on the host.

    Args:
        attributes: `[N, A]` bool, by row.
        ids: the sorted semantic IDs of the rows.
        starts: `starts[t]` the first slot of each node of depth t, for t = 0..D.
        layout: the index's.
    """
    count = attributes.shape[1]
    present = _words(attributes)[ids.order]
    absent = _words(~attributes)[ids.order]
    nodes = []
    for depth, level in enumerate(layout.levels[: layout.scan_depth]):
        parents, here = starts[depth], starts[depth + 1]
        with_it = np.bitwise_or.reduceat(present, here, axis=0)
        without = np.bitwise_or.reduceat(absent, here, axis=0)
        if level.kind != DENSE:
            words = np.concatenate([with_it, without], axis=1)
            nodes.append(_padded(words, level.max_nodes))
            continue
        parent = np.searchsorted(parents, here, side="right") - 1
        offsets = ids.columns[depth][here].astype(np.int32) - level.base
        rows = np.zeros((layout.max_nodes(depth), 2 * count, level.words), np.uint32)
        for place in range(2 * count):
            words = with_it if place < count else without
            bit = words[:, place % count // 32] >> (place % count % 32) & 1
            chosen = np.flatnonzero(bit)
            rows[:, place] = make_rows(parent[chosen], offsets[chosen], len(rows), level.span)
        nodes.append(rows)
    return Attributes(slots=_padded(present, layout.max_items), nodes=tuple(nodes))


def pack_attributes(flags: jax.Array, dtype: np.dtype, num_words: int) -> jax.Array:
    """Words `[..., w]` of truth values `[..., A]`, on the device, in the form of `Attributes.slots`."""
    flags = jax.numpy.asarray(flags, bool)
    words = []
    for word in range(num_words):
        part = flags[..., 32 * word : 32 * (word + 1)]
        bits = part.astype(dtype) << np.arange(part.shape[-1], dtype=dtype)
        words.append(bits.sum(-1, dtype=dtype))
    return jax.numpy.stack(words, axis=-1)


def _words(flags: np.ndarray) -> np.ndarray:
    """Words `[N, w]` of flags `[N, A]` in the narrowest type."""
    count = flags.shape[1]
    dtype = np.uint8 if count <= 8 else np.uint16 if count <= 16 else np.uint32
    words = np.zeros((len(flags), 1 if count <= 32 else 2), dtype)
    for attribute in range(count):
        word, bit = divmod(attribute, 32)
        words[:, word] |= flags[:, attribute].astype(dtype) << dtype(bit)
    return words


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    result = np.zeros((size, *values.shape[1:]), values.dtype)
    result[: len(values)] = values
    return result
