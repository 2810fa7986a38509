"""`Layout`: the static sizes of an index, and how each level is stored."""

import dataclasses
import math
from collections.abc import Sequence

from gr.errors import GrError
from gr.trie.packed import bits_for, num_words

DENSE = "dense"  # One bit for every token of the level: whether the node has that child.
SPARSE = "sparse"  # Tokens of all children in a list.
SCAN = "scan"  # Only the sorted table of semantic IDs: children are found by scanning the node's slots.

# Nodes with up to so many slots are always scanned.
_SCAN_ALWAYS = 32
# How many times faster a row of bits is searched than a list of candidates.
_FEW = 16
# A level of at most so many bytes of bits is dense; a larger one only if it takes at most a byte per item.
_SMALL_BITS = 1 << 20
_WORD = 32


# Slots, nodes and words are counted in int32, with a margin for sums such as a slot plus an offset.
MAX_ITEMS = 2**31 - 2**16


class TrieError(GrError):
    """Raised for tokens that cannot be indexed; the message names the row and level and the remedy."""


@dataclasses.dataclass(frozen=True)
class Level:
    """Step t of decoding: from the nodes of depth t to those of depth t + 1."""

    kind: str  # DENSE, SPARSE or SCAN; never a SCAN above another kind.
    base: int  # Tokens of this level lie in [base, base + span).
    span: int  # A multiple of 32 for DENSE.
    max_children: (
        int  # K_t: no node of depth t has more children (of a SCAN level: bounded by `max_slots`).
    )
    max_slots: int  # W_t: no node of depth t has more slots, that is items, below it.
    max_nodes: int  # Maximum number of nodes of depth t + 1.

    @property
    def fan_out(self) -> int:
        """K, the number of places for a node's children where all are listed."""
        return {DENSE: self.span, SPARSE: self.max_children, SCAN: self.max_slots}[self.kind]

    @property
    def words(self) -> int:
        """Words of a node's bits, if DENSE."""
        return self.span // _WORD

    @property
    def bits(self) -> int:
        """Bits of a token, less the base."""
        return bits_for(self.span - 1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static part of an index: two indexes of one layout share their compiled programs."""

    vocab_size: int
    max_items: int  # Capacity for items.
    max_item: int  # The largest item number that fits.
    max_items_per_sid: int  # C.
    levels: tuple[Level, ...]
    num_attributes: int = 0

    @property
    def length(self) -> int:
        """L, tokens of a semantic ID."""
        return len(self.levels)

    @property
    def scan_depth(self) -> int:
        """D, the first level kept as a sorted table: from this depth on nodes are intervals of slots."""
        return sum(level.kind != SCAN for level in self.levels)

    @property
    def unique_depth(self) -> int:
        """From this depth on every node has a single item below it; L if there is no such depth."""
        return sum(level.kind != SCAN or level.max_slots > 1 for level in self.levels)

    def place_in_table(self, depth: int) -> int:
        """The first bit of a SCAN level's token in the table's elements."""
        return sum(level.bits for level in self.levels[self.scan_depth : depth])

    @property
    def table_bits(self) -> int:
        """Bits of an element of the table of semantic IDs."""
        return self.place_in_table(self.length)

    @property
    def num_names(self) -> int:
        """Upper bound (exclusive) of the names of nodes of any depth."""
        return max(self.max_items, *(level.max_nodes for level in self.levels))

    @property
    def node_offsets(self) -> tuple[int, ...]:
        """For arrays with a row for every node: the first row of each depth 1..L, and the number of rows, `[L + 1]`."""
        offsets = [0]
        for depth in range(1, self.length + 1):
            named = self.max_nodes(depth) if depth < self.scan_depth else self.max_items
            offsets.append(offsets[-1] + named)
        return tuple(offsets)

    def max_nodes(self, depth: int) -> int:
        """Maximum number of nodes of `depth` 0..L."""
        return 1 if depth == 0 else self.levels[depth - 1].max_nodes


@dataclasses.dataclass(frozen=True)
class Shape:
    """Counts of a set of semantic IDs, from which a layout is chosen."""

    lows: tuple[int, ...]  # [L] smallest token of each level.
    highs: tuple[int, ...]  # [L] largest.
    num_nodes: tuple[int, ...]  # [L + 1] distinct prefixes of each depth.
    max_children: tuple[int, ...]  # [L].
    max_slots: tuple[int, ...]  # [L + 1].
    num_items: int
    max_item: int


def choose_layout(
    shape: Shape,
    vocab_size: int,
    *,
    headroom: float = 0.0,
    level_ranges: Sequence[tuple[int, int]] | None = None,
    num_attributes: int = 0,
    listed: bool = False,
) -> Layout:
    """The smallest layout of these semantic IDs that does not slow down the search.

    Near the root nodes are few and have many children: one bit for every token is both smallest and fastest to search.
    Deep down a node has a handful of items below it, mostly one: there the sorted table itself serves as the trie. Only
    skewed sets need lists of children in between.

    Args:
        shape: the counts.
        vocab_size: V.
        headroom: room to grow: 0.25 leaves a quarter more of everything; 0 fits tightly.
        level_ranges: token range `[low, high)` of each level; None: the tokens that occur.
        num_attributes: boolean attributes of an item.
        listed: whether only the root's level may be DENSE, so that all children of a node can be listed in few places.
    """

    def grown(count: int) -> int:
        return count if headroom == 0 else max(count + 1, math.ceil(count * (1 + headroom)))

    levels, scanning = [], False
    for depth in range(len(shape.lows)):
        low, high = shape.lows[depth], shape.highs[depth] + 1
        if level_ranges is not None:
            low, high = level_ranges[depth]
        slots, nodes = shape.max_slots[depth], shape.num_nodes[depth]
        aligned = -(-(high - low) // _WORD) * _WORD
        bits = nodes * aligned // 8
        few = (high - low) // _FEW  # So many candidates cost about as much as a row of bits.
        scanning = scanning or slots <= max(_SCAN_ALWAYS, few)
        kind, span = SPARSE, high - low
        wide = shape.max_children[depth] > few and bits <= max(_SMALL_BITS, shape.num_items)
        if not scanning and wide and not (listed and depth > 0):
            kind, span = DENSE, aligned
            # A level at the end of the vocabulary is aligned downwards, so that its logits are one slice.
            low = max(0, min(low, vocab_size - span))
        elif scanning or slots <= 1.5 * shape.max_children[depth]:
            kind, scanning = SCAN, True
        levels.append(
            Level(
                kind=kind,
                base=low,
                span=span,
                max_children=min(grown(shape.max_children[depth]), span),
                max_slots=grown(slots),
                max_nodes=grown(shape.num_nodes[depth + 1]),
            )
        )
    per_sid = shape.max_slots[-1]
    return Layout(
        vocab_size=vocab_size,
        max_items=grown(shape.num_items),
        max_item=grown(shape.max_item),
        max_items_per_sid=1 if per_sid == 1 else grown(per_sid),
        levels=tuple(levels),
        num_attributes=num_attributes,
    )


def joined_shape(shapes: Sequence[Shape]) -> Shape:
    """The counts of all items together, of sets that share no first token; items are numbered from 0 on."""
    num_items = sum(shape.num_items for shape in shapes)

    def of_all(counts: list[tuple[int, ...]], first: int) -> tuple[int, ...]:
        """The largest of each depth; `first` of the root, which is the only node that they share."""
        return (first, *(max(column) for column in zip(*counts, strict=True)))

    num_nodes = [sum(column) for column in zip(*(shape.num_nodes for shape in shapes), strict=True)]
    return Shape(
        lows=tuple(map(min, zip(*(shape.lows for shape in shapes), strict=True))),
        highs=tuple(map(max, zip(*(shape.highs for shape in shapes), strict=True))),
        num_nodes=(1, *num_nodes[1:]),
        max_children=of_all([shape.max_children[1:] for shape in shapes], num_nodes[1]),
        max_slots=of_all([shape.max_slots[1:] for shape in shapes], num_items),
        num_items=num_items,
        max_item=num_items - 1,
    )


def layout_of_shards(whole: Layout, shapes: Sequence[Shape]) -> Layout:
    """One layout for indexes of parts of the items, such that each part fits: levels are stored as those of `whole`.

    So a node's depth alone says whether it is named by its number or by its first slot, in the parts as in the whole.
    """
    levels = [
        dataclasses.replace(
            level,
            max_children=max(shape.max_children[depth] for shape in shapes),
            max_slots=max(shape.max_slots[depth] for shape in shapes),
            max_nodes=max(shape.num_nodes[depth + 1] for shape in shapes),
        )
        for depth, level in enumerate(whole.levels)
    ]
    return dataclasses.replace(
        whole,
        max_items=max(shape.num_items for shape in shapes),
        max_item=max(shape.max_item for shape in shapes),
        max_items_per_sid=max(shape.max_slots[-1] for shape in shapes),
        levels=tuple(levels),
    )


_SPARE = (
    2**15
)  # Half of the margin above `MAX_ITEMS`; the other half is for `PackedInts.first_above`.


def check_capacity(layout: Layout) -> None:
    """Raises TrieError for a layout whose numbers or words exceed the device's int32 arithmetic."""
    bounds = [
        ("item numbers", layout.max_item),
        ("items", layout.max_items),
        ("words in the table of semantic IDs", num_words(layout.max_items, layout.table_bits)),
    ]
    for depth, level in enumerate(layout.levels):
        # Offsets from a node's first slot or child are counted whether or not they exist.
        behind = {SPARSE: level.max_children, SCAN: level.max_slots}.get(level.kind, 0)
        bounds.append((f"nodes of depth {depth + 1}", level.max_nodes))
        bounds.append((f"places at level {depth}", layout.num_names + behind - _SPARE))
    bounds.append(("places of items", layout.max_items + layout.max_items_per_sid - _SPARE))
    for what, count in bounds:
        if count > MAX_ITEMS:
            raise TrieError(
                f"{count} {what} exceed the int32 numbers of an index, {MAX_ITEMS}: split the corpus with "
                "`ShardedIndex`, leave less `headroom`, or shorten the semantic IDs"
            )


def check_fits(shape: Shape, layout: Layout) -> None:
    """Raises TrieError where semantic IDs exceed a layout."""
    if len(shape.lows) != layout.length:
        raise TrieError(
            f"semantic IDs of {len(shape.lows)} levels, but the layout is for {layout.length}: "
            "build without `layout`"
        )
    bounds = [
        ("items", shape.num_items, layout.max_items),
        ("item numbers up to", shape.max_item, layout.max_item),
        ("items of one semantic ID", shape.max_slots[-1], layout.max_items_per_sid),
    ]
    for depth, level in enumerate(layout.levels):
        at = f"at level {depth}"
        bounds += [
            (f"tokens {at} up to", shape.highs[depth], level.base + level.span - 1),
            (f"nodes of depth {depth + 1}", shape.num_nodes[depth + 1], level.max_nodes),
            (f"children of one node {at}", shape.max_children[depth], level.max_children),
            (f"items below one node {at}", shape.max_slots[depth], level.max_slots),
        ]
        if shape.lows[depth] < level.base:
            raise TrieError(
                f"token {shape.lows[depth]} {at} lies below the layout's {level.base}: build without `layout`, "
                "or give `level_ranges` when building the first index"
            )
    for what, count, room in bounds:
        if count > room:
            raise TrieError(
                f"{count} {what}, but the layout has room for {room}: build without `layout`, and with more "
                "`headroom` if later indexes are to fit"
            )
