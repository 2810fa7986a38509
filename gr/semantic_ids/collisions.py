"""Policies for items with equal codes; no item is lost."""

import numpy as np

from gr.semantic_ids.semantic_ids import SemanticIdError

EXTRA_CODE = "extra_code"
SHARE = "share"


def append_extra_code(
    codes: np.ndarray, codebook_sizes: tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Adds a last level: the running number of each item, by row, among those of its codes.

    Makes all SIDs unique (TIGER, Rajput et al. 2023, section 3.1). Codes `[N, L]` become
    `[N, L + 1]`; the new codebook is as large as the largest group, 1 where nothing collides.
    """
    _, group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")  # Stable: rows ascend within a group.
    starts = np.cumsum(counts) - counts
    numbers = np.empty(len(codes), dtype=codes.dtype)
    numbers[order] = np.arange(len(codes)) - np.repeat(starts, counts)
    return np.column_stack([codes, numbers]), (*codebook_sizes, int(counts.max()))


def resolve_collisions(
    codes: np.ndarray, codebook_sizes: tuple[int, ...], policy: str
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Codes and codebook sizes under a policy.

    `extra_code` makes SIDs unique by one more level. `share` leaves codes unchanged; `SemanticIds.items_of` lists the
    items of a shared SID.
    """
    if policy == EXTRA_CODE:
        return append_extra_code(codes, codebook_sizes)
    if policy == SHARE:
        return codes, codebook_sizes
    raise SemanticIdError(f"collision={policy!r} is unknown; known are {EXTRA_CODE!r}, {SHARE!r}.")
