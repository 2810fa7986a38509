"""Builds a `TrieIndex` on the host: check, sort, count, choose the layout, fill the arrays."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gr.trie.attributes import check_attributes, make_attributes
from gr.trie.bit_rows import make_rows
from gr.trie.identity import fingerprint
from gr.trie.inputs import host_integers
from gr.trie.layout import (
    DENSE,
    MAX_ITEMS,
    Layout,
    Level,
    Shape,
    TrieError,
    check_capacity,
    check_fits,
    choose_layout,
)
from gr.trie.packed import PackedInts, pack, pack_columns
from gr.trie.sorting import SortedIds, in_chunks, sort_ids

MAX_LENGTH = 255  # Shared prefix lengths are counted in a byte.


def build_arrays(
    tokens: np.ndarray,
    vocab_size: int,
    *,
    attributes: np.ndarray | None = None,
    items: np.ndarray | None = None,
    headroom: float = 0.0,
    level_ranges: Sequence[tuple[int, int]] | None = None,
    layout: Layout | None = None,
    listed: bool = False,
) -> dict[str, Any]:
    """The fields of an index as NumPy arrays; see `TrieIndex.build`."""
    tokens, lows, highs = check_tokens(tokens, vocab_size)
    vocab_size = int(vocab_size)
    level_ranges = _check_ranges(lows, highs, level_ranges, vocab_size)
    items = _check_items(items, len(tokens))
    if not isinstance(headroom, int | float | np.number) or not 0 <= headroom < math.inf:
        raise TrieError(
            f"headroom must not be negative, got {headroom!r}: 0.25 leaves a quarter more"
        )
    if attributes is not None:
        attributes = check_attributes(attributes, len(tokens))

    ids = sort_ids(tokens, highs)
    num_attributes = 0 if attributes is None else attributes.shape[1]
    shape = _count(ids, lows, highs, int(items.max()))
    if layout is not None and not isinstance(layout, Layout):
        raise TrieError(f"layout must be an index's `layout`, got {type(layout).__name__}")
    if layout is None:
        layout = choose_layout(
            shape,
            vocab_size,
            headroom=headroom,
            level_ranges=level_ranges,
            num_attributes=num_attributes,
            listed=listed,
        )
    elif (layout.vocab_size, layout.num_attributes) != (vocab_size, num_attributes):
        raise TrieError(
            f"the layout is for {layout.vocab_size} tokens and {layout.num_attributes} attributes, not for "
            f"{vocab_size} and {num_attributes}: build without `layout`"
        )
    else:
        check_fits(shape, layout)
    check_capacity(layout)
    return _fill(ids, items, attributes, shape, layout)


def count_prefixes(tokens: np.ndarray, vocab_size: int) -> Shape:
    """The counts of semantic IDs `[N, L]`, of which `choose_layout` makes a layout; see `check_tokens`."""
    tokens, lows, highs = check_tokens(tokens, vocab_size)
    return _count(sort_ids(tokens, highs), lows, highs, len(tokens) - 1)


def _fill(
    ids: SortedIds,
    items: np.ndarray,
    attributes: np.ndarray | None,
    shape: Shape,
    layout: Layout,
) -> dict[str, Any]:
    """The arrays of a layout."""
    scan_depth = layout.scan_depth
    starts = [ids.starts(depth) for depth in range(scan_depth + 1)]
    children, first_child = [], []
    for depth, level in enumerate(layout.levels[:scan_depth]):
        parents, nodes = starts[depth], starts[depth + 1]
        first = np.searchsorted(nodes, parents)
        offsets = ids.columns[depth][nodes].astype(np.int32) - level.base
        children.append(_children(level, first, offsets, layout.max_nodes(depth)))
        size = layout.max_nodes(depth) + 1
        first_child.append(pack(first, level.max_nodes, size, fill=len(nodes)))
    size = layout.max_nodes(scan_depth) + 1
    first_slot = pack(starts[scan_depth], layout.max_items, size, fill=ids.num_items)
    columns = []
    for level, column in zip(layout.levels[scan_depth:], ids.columns[scan_depth:], strict=True):
        columns.append(column - column.dtype.type(level.base) if level.base else column)
    bits = [level.bits for level in layout.levels[scan_depth:]]

    # Filled in slot order, so that only one side is accessed at random.
    item_of_slot = np.empty(ids.num_items, np.int32)
    slot_of_item = np.full(shape.max_item + 1, layout.max_items, np.int32)

    def number(slots: slice) -> None:
        found = items[ids.order[slots]]
        item_of_slot[slots] = found
        slot_of_item[found] = np.arange(slots.start, slots.stop, dtype=np.int32)

    in_chunks(number, ids.num_items)
    made = None
    if attributes is not None:
        made = make_attributes(attributes, ids, starts, layout)
    fields = {
        "children": tuple(children),
        "first_child": tuple(first_child),
        "first_slot": first_slot,
        "table": pack_columns(columns, bits, layout.max_items) if columns else None,
        "item_of_slot": pack(item_of_slot, layout.max_item, layout.max_items),
        "slot_of_item": pack(
            slot_of_item, layout.max_items, layout.max_item + 1, fill=layout.max_items
        ),
        "node_counts": np.asarray(shape.num_nodes, np.int32),
        "item_count": np.int32(ids.num_items),
        "attributes": made,
        "layout": layout,
    }
    return fields | {"fingerprint": fingerprint(fields)}


def _children(
    level: Level, first: np.ndarray, offsets: np.ndarray, max_parents: int
) -> np.ndarray | PackedInts:
    if level.kind == DENSE:
        counts = np.diff(first, append=len(offsets))
        parents = np.repeat(np.arange(len(first), dtype=np.int32), counts)
        return make_rows(parents, offsets, max_parents, level.span)
    return pack(offsets, level.span - 1, level.max_nodes)


def _count(ids: SortedIds, lows: np.ndarray, highs: np.ndarray, max_item: int) -> Shape:
    length = len(ids.columns)
    num_nodes = [1] + [
        1 + np.count_nonzero(ids.shared[1:] < depth) for depth in range(1, length + 1)
    ]
    max_slots = [ids.num_items]
    for depth in range(1, length + 1):
        # Once every prefix is unique, all longer ones are unique too.
        max_slots.append(1 if max_slots[-1] == 1 else ids.longest_run(depth))
    return Shape(
        lows=tuple(map(int, lows)),
        highs=tuple(map(int, highs)),
        num_nodes=tuple(map(int, num_nodes)),
        max_children=tuple(_max_children(ids, depth, max_slots[depth]) for depth in range(length)),
        max_slots=tuple(max_slots),
        num_items=ids.num_items,
        max_item=max_item,
    )


def _max_children(ids: SortedIds, depth: int, max_slots: int) -> int:
    """K_t: the most distinct prefixes of `depth + 1` tokens below one of `depth`."""
    if max_slots == 1:
        return 1
    parents, nodes = ids.starts(depth), ids.starts(depth + 1)
    return int(np.diff(np.searchsorted(nodes, parents), append=len(nodes)).max())


def check_tokens(tokens: Any, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens as an array `[N, L]`, and the smallest and largest of each level, `[L]` each.

    Raises:
        TrieError: unless they are integers of that shape, all in `[0, vocab_size)`.
    """
    tokens = host_integers(tokens, "tokens", "[N, L]")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise TrieError(
            f"tokens must be [N, L] with N, L >= 1, got shape {tokens.shape}: "
            "pass one row of tokens per item"
        )
    if len(tokens) > MAX_ITEMS:
        raise TrieError(f"{len(tokens)} items exceed int32 slot numbers: shard the corpus")
    if tokens.shape[1] > MAX_LENGTH:
        raise TrieError(f"semantic IDs of {tokens.shape[1]} tokens; at most {MAX_LENGTH} can be")
    if not isinstance(vocab_size, int | np.integer) or isinstance(vocab_size, bool):
        raise TrieError(f"vocab_size must be an integer, got {vocab_size!r}")
    if not 1 <= vocab_size < 2**31:
        raise TrieError(f"vocab_size must lie in [1, 2**31), got {vocab_size}")
    bounds = []

    def measure(rows: slice) -> None:
        bounds.append((tokens[rows].min(axis=0), tokens[rows].max(axis=0)))

    in_chunks(measure, len(tokens))
    lows, highs = (np.stack(column) for column in zip(*bounds, strict=True))
    lows, highs = lows.min(axis=0), highs.max(axis=0)
    if lows.min() < 0 or highs.max() >= vocab_size:
        row, level = np.argwhere((tokens < 0) | (tokens >= vocab_size))[0]
        raise TrieError(
            f"token {tokens[row, level]} of item row {row}, level {level} is outside [0, {vocab_size}): "
            "pass vocabulary tokens (SemanticIds.tokens), not level codes, and the model's vocab_size"
        )
    return tokens, lows, highs


def _check_ranges(
    lows: np.ndarray,
    highs: np.ndarray,
    level_ranges: Sequence[tuple[int, int]] | None,
    vocab_size: int,
) -> list[list[int]] | None:
    if level_ranges is None:
        return None
    level_ranges = host_integers(level_ranges, "level_ranges", "[L, 2]").tolist()
    if any(np.shape(pair) != (2,) for pair in level_ranges):
        raise TrieError("level_ranges must be pairs (low, high), one a level")
    if len(level_ranges) != len(lows):
        raise TrieError(f"level_ranges has {len(level_ranges)} entries for {len(lows)} levels")
    for level, (low, high) in enumerate(level_ranges):
        if not 0 <= low <= lows[level] <= highs[level] < high <= vocab_size:
            raise TrieError(
                f"level_ranges[{level}] is [{low}, {high}), but tokens of that level lie in "
                f"[{lows[level]}, {highs[level]}] and the vocabulary in [0, {vocab_size})"
            )
    return level_ranges


def _check_items(items: np.ndarray | None, num_rows: int) -> np.ndarray:
    if items is None:
        return np.arange(num_rows, dtype=np.int32)
    items = host_integers(items, "items", f"[{num_rows}]")
    if items.shape != (num_rows,):
        raise TrieError(f"items must be {num_rows} integers, got shape {items.shape}")
    if items.min() < 0 or items.max() > MAX_ITEMS:
        raise TrieError(
            f"item numbers must lie in [0, {MAX_ITEMS}], got {items.min()}..{items.max()}"
        )
    if np.bincount(items).max() > 1:
        raise TrieError(f"item number {np.bincount(items).argmax()} has more than one row")
    return items.astype(np.int32)
