"""The fingerprint of an index's nodes and items; the index and everything made for it carry it."""

import hashlib
from typing import Any

import jax
import numpy as np

from gr.trie.sorting import in_chunks

_FIELDS = ("children", "first_child", "first_slot", "item_of_slot", "node_counts", "item_count")


def fingerprint(fields: dict[str, Any]) -> np.ndarray:
    """64 bits, `[2]` uint32: equal for two indexes only if all nodes above the slots and the items of all slots agree.

    Equal sets of semantic IDs in one layout have the same fingerprint, whenever and wherever they were built.

    Args:
        fields: arrays of an index by name, on the host; see `TrieIndex`.
    """
    digest = hashlib.blake2b(digest_size=8)
    for array in jax.tree.leaves([fields[name] for name in _FIELDS]):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(_digest(np.ascontiguousarray(array).reshape(-1)))
    return np.frombuffer(digest.digest(), np.uint32)


def _digest(array: np.ndarray) -> bytes:
    """Digests of all pieces of an array `[n]`, one after another."""
    pieces: dict[int, bytes] = {}

    def hash_piece(part: slice) -> None:
        pieces[part.start] = hashlib.blake2b(array[part], digest_size=16).digest()

    in_chunks(hash_piece, len(array))
    return b"".join(pieces[start] for start in sorted(pieces))
