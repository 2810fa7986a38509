"""Policies for items with equal codes; no item is lost. New items join without touching the IDs of old ones."""

from collections.abc import Sequence

import numpy as np

from gr.semantic_ids.semantic_ids import SemanticIdError, SemanticIds

EXTRA_CODE = "extra_code"
SHARE = "share"


def append_extra_code(
    codes: np.ndarray, codebook_sizes: tuple[int, ...], spare_codes: int = 0
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Adds a last level: the running number of each item, by row, among those of its codes.

    Makes all SIDs unique (TIGER, Rajput et al. 2023, section 3.1). Codes `[N, L]` become
    `[N, L + 1]`; the new codebook is as large as the largest group, 1 where nothing collides, and `spare_codes` more.
    """
    _, group = np.unique(codes, axis=0, return_inverse=True)
    numbers = _running_numbers(group.reshape(-1)).astype(codes.dtype)
    size = int(numbers.max()) + 1 + spare_codes
    return np.column_stack([codes, numbers]), (*codebook_sizes, size)


def resolve_collisions(
    codes: np.ndarray, codebook_sizes: tuple[int, ...], policy: str, spare_codes: int = 0
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Codes and codebook sizes under a policy.

    `extra_code` makes SIDs unique by one more level. `share` leaves codes unchanged; `SemanticIds.items_of` lists the
    items of a shared SID.
    """
    if policy == EXTRA_CODE:
        return append_extra_code(codes, codebook_sizes, spare_codes)
    if policy == SHARE:
        return codes, codebook_sizes
    raise SemanticIdError(f"collision={policy!r} is unknown; known are {EXTRA_CODE!r}, {SHARE!r}.")


def with_new_items(
    semantic_ids: SemanticIds,
    codes: np.ndarray,
    item_ids: Sequence[str] | np.ndarray,
    *,
    grow: bool = False,
) -> SemanticIds:
    """The SIDs of a catalogue and, after them, of new items; those of old items stay as they are.

    Args:
        semantic_ids: of the old items, `[N, L]`.
        codes: of the new items, `[n, L]`; or `[n, L - 1]` if the last level holds extra codes: each item then gets
            the one after the largest of its codes, old items first, new ones in their order.
        item_ids: the new items, `[n]`.
        grow: whether the level of extra codes becomes larger where needed. A model of the old vocabulary does not know
            these codes.

    Raises:
        SemanticIdError: for an item that has a SID, one that is named twice, codes of another catalogue, or if no extra
            code is left.
    """
    item_ids, sizes = np.asarray(item_ids).astype(np.str_), semantic_ids.codebook_sizes
    known = item_ids[np.isin(item_ids, semantic_ids.item_ids)]
    if len(known):
        raise SemanticIdError(
            f"item {known[0]} has a semantic ID already ({len(known)} such items); leave it out, IDs do not change"
        )
    codes = np.asarray(codes, dtype=np.int32)
    if codes.ndim == 2 and codes.shape[1] == semantic_ids.num_levels - 1:
        old = semantic_ids.codes
        _, group = np.unique(np.vstack([old[:, :-1], codes]), axis=0, return_inverse=True)
        group = group.reshape(-1)
        used = np.zeros(group.max() + 1, np.int64)  # The largest extra code of a group, and 1.
        np.maximum.at(used, group[: len(old)], old[:, -1] + 1)
        numbers = used[group[len(old) :]] + _running_numbers(group[len(old) :])
        if grow:
            sizes = (*sizes[:-1], max(sizes[-1], int(numbers.max(initial=0)) + 1))
        full = numbers >= sizes[-1]
        if full.any():
            row = int(np.argmax(full))
            raise SemanticIdError(
                f"no extra code is left for item {item_ids[row]}: with its codes {codes[row].tolist()} it needs number "
                f"{numbers[row]}, and the last level has {sizes[-1]} codes ({full.sum()} such items); leave them out, "
                "or make IDs and train anew with semantic_ids.spare_codes="
                f"{int(numbers.max()) + 1 - sizes[-1]} or more"
            )
        codes = np.column_stack([codes, numbers])
    elif codes.shape != (len(item_ids), semantic_ids.num_levels):
        raise SemanticIdError(
            f"codes of new items have shape {list(codes.shape)}, the catalogue has {semantic_ids.num_levels} levels"
        )
    return SemanticIds(
        np.vstack([semantic_ids.codes, codes]),
        sizes,
        np.concatenate([semantic_ids.item_ids, item_ids]),
    )


def _running_numbers(groups: np.ndarray) -> np.ndarray:
    """For each entry `[n]` how many entries before it are of its group, `[n]` int64."""
    order = np.argsort(groups, kind="stable")  # Stable: rows ascend within a group.
    sorted_groups = groups[order]
    numbers = np.empty(len(groups), dtype=np.int64)
    numbers[order] = np.arange(len(groups)) - np.searchsorted(sorted_groups, sorted_groups)
    return numbers
