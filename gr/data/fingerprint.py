"""Fingerprints of data: counts, and checksums that do not depend on path, machine or library versions."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from gr.data.sequences import Splits

# The parts of the data that have a checksum.
PARTS = {
    "item_ids": "the item ids (or their order)",
    "user_ids": "the user ids (or their order)",
    "sequences": "what users took, or when in their histories",
    "splits": "which interactions are targets",
    "times": "the times",
    "texts": "the items' text fields",
}


def fingerprint(splits: Splits) -> dict[str, Any]:
    """Counts and checksums of data as JSON values; equal data give equal fingerprints."""
    sequences = splits.sequences
    targets = (splits.train, splits.validation, splits.test)
    roles = np.zeros(len(sequences.items), np.uint8)  # One bit per split for each interaction.
    for bit, part in enumerate(targets):
        roles[part.positions] |= 1 << bit
    fields = sorted(sequences.item_fields)
    times = [] if sequences.times is None else [sequences.times.astype("<f8", copy=False)]
    return {
        "users": sequences.num_users,
        "items": sequences.num_items,
        "interactions": len(sequences.items),
        "train targets": len(splits.train),
        "validation targets": len(splits.validation),
        "test targets": len(splits.test),
        "checksums": {
            "item_ids": checksum(_texts(sequences.item_ids)),
            "user_ids": checksum(_texts(sequences.user_ids)),
            "sequences": checksum(
                [
                    sequences.items.astype("<i4", copy=False),
                    sequences.offsets.astype("<i8", copy=False),
                ]
            ),
            "splits": checksum([roles]),
            "times": checksum(times),
            "texts": checksum(
                [
                    array
                    for name in fields
                    for values in ([name], sequences.item_fields[name])
                    for array in _texts(values)
                ]
            ),
        },
    }


def fingerprint_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignore: Collection[str] = ()
) -> list[str]:
    """Differences between two fingerprints, in words; contents are compared only if the counts agree.

    Args:
        before: fingerprint of the data used before.
        now: fingerprint of the current data.
        ignore: names of `PARTS` that may differ.
    """
    counts = [name for name in before if name != "checksums" and before[name] != now.get(name)]
    if counts:
        return [f"{name} were {before[name]:,} and are {now.get(name, 0):,}" for name in counts]
    parts = [
        words
        for name, words in PARTS.items()
        if name not in ignore and before["checksums"].get(name) != now["checksums"].get(name)
    ]
    return [f"the counts agree, but not {', '.join(parts)}"] if parts else []


def _texts(values: Collection[str]) -> list[np.ndarray]:
    """Strings as bytes, and their lengths, so that different lists give different arrays."""
    values = values.tolist() if isinstance(values, np.ndarray) else list(values)
    lengths = np.fromiter(map(len, values), "<i8", len(values))
    joined = "".join(values).encode("utf-8", "surrogatepass")
    return [lengths, np.frombuffer(joined, np.uint8)]


def checksum(arrays: Iterable[np.ndarray]) -> str:
    """A checksum of the bytes and lengths of arrays, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        array = np.atleast_1d(array)
        digest.update(len(array).to_bytes(8, "little"))
        # As bytes, since `hashlib` does not know bfloat16.
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
