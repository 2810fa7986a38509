"""The contents and size of an index by level, compared with the information-theoretic minimum."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from gr.trie.index import TrieIndex
from gr.trie.layout import SCAN, TrieError
from gr.trie.packed import GROUP, PackedInts


@dataclasses.dataclass(frozen=True)
class LevelStatistics:
    """Step t of decoding: from the nodes of depth t to those of depth t + 1."""

    kind: str  # How it is stored: DENSE, SPARSE or SCAN.
    nodes: int  # Of depth t + 1.
    mean_branching: float  # Children of a node of depth t.
    largest_branching: int
    most_items: int  # Below one node of depth t + 1.
    nbytes: int  # For a scanned level: its share of the table of semantic IDs.


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The contents of an index; the layout's spare room counts in bytes only."""

    levels: tuple[LevelStatistics, ...]
    items: int  # N.
    distinct_sids: int
    colliding_items: int  # Items that share their semantic ID.
    largest_group: int  # Most items that share one; 1 where all are unique.
    attribute_bytes: int
    nbytes: int  # Everything: levels, attributes, and the numbers of slots and items.
    bytes_per_item: float
    floor_bytes_per_item: (
        float  # log2 of the number of possible sets of so many semantic IDs, shared among N.
    )


def statistics(index: TrieIndex, level_sizes: Sequence[int] | None = None) -> Statistics:
    """Counts what is in an index, on the host.

    Args:
        index: the trie.
        level_sizes: possible codes of each level, for the minimum; None: the codes that the layout covers.

    Raises:
        TrieError: if `level_sizes` do not match the number of levels, or are too small.
    """
    layout = index.layout
    sizes = [level.span for level in layout.levels] if level_sizes is None else list(level_sizes)
    if len(sizes) != layout.length or min(sizes) < 1:
        raise TrieError(
            f"level_sizes must be {layout.length} positive numbers, one a level, got {sizes}"
        )
    starts = _first_slots(index)
    num_items = index.num_items
    levels = []
    for depth, level in enumerate(layout.levels):
        above, here = starts[depth], starts[depth + 1]
        branching = np.diff(np.searchsorted(here, above), append=len(here))
        levels.append(
            LevelStatistics(
                kind=level.kind,
                nodes=len(here),
                mean_branching=len(here) / len(above),
                largest_branching=int(branching.max()),
                most_items=int(np.diff(here, append=num_items).max()),
                nbytes=_level_bytes(index, depth),
            )
        )
    groups = np.diff(starts[-1], append=num_items)
    if math.prod(sizes) < len(groups):
        raise TrieError(f"levels of {sizes} codes cannot hold {len(groups)} semantic IDs")
    attributes = index.attributes
    return Statistics(
        levels=tuple(levels),
        items=num_items,
        distinct_sids=len(groups),
        colliding_items=int(groups[groups > 1].sum()),
        largest_group=int(groups.max()),
        attribute_bytes=0
        if attributes is None
        else sum(array.nbytes for array in (attributes.slots, *attributes.nodes)),
        nbytes=index.nbytes,
        bytes_per_item=index.nbytes / num_items,
        floor_bytes_per_item=log2_binomial(math.prod(sizes), len(groups)) / num_items / 8,
    )


def _first_slots(index: TrieIndex) -> list[np.ndarray]:
    """The first slot of each node, for each depth 0..L, ascending."""
    layout, counts = index.layout, index.num_nodes
    starts = [_elements(index.first_slot, counts[layout.scan_depth])]
    for depth in reversed(range(layout.scan_depth)):
        starts.append(starts[-1][_elements(index.first_child[depth], counts[depth])])
    starts.reverse()

    slots = jnp.arange(index.num_items, dtype=jnp.int32)
    begins = np.zeros(index.num_items, bool)
    begins[starts[-1]] = True
    for depth in range(layout.scan_depth, layout.length):
        bits = layout.levels[depth].bits
        tokens = np.asarray(index.table.part(slots, layout.place_in_table(depth), bits))
        begins[1:] |= tokens[1:] != tokens[:-1]
        starts.append(np.flatnonzero(begins))
    return starts


def _elements(packed: PackedInts, count: int) -> np.ndarray:
    return np.asarray(packed[jnp.arange(count, dtype=jnp.int32)])


def _level_bytes(index: TrieIndex, depth: int) -> int:
    level = index.layout.levels[depth]
    if level.kind == SCAN:
        return 4 * level.bits * -(-index.layout.max_items // GROUP)
    return index.children[depth].nbytes + index.first_child[depth].nbytes


def log2_binomial(n: int, k: int) -> float:
    """log2 of the number of sets of k out of n semantic IDs: a lower bound on the bits of any index of such a set.

    For large n the difference of log-gammas would lose all digits: C(n, k) is taken as n**k / k! times the product of
    (1 - i/n) for i < k, whose logarithm Stirling's formula gives without large numbers. If k > n, items share
    semantic IDs; the set is then that of all of them, and 0 bits say so.
    """
    if k >= n:
        return 0.0
    if n < 1 << 20:
        log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return log / math.log(2)
    share = k / n  # Division of Python integers: n may exceed the range of floats.
    log_product = 0.0
    if k * share > 1e-9:  # Else it is negligible beside the other terms.
        # Up to terms of 1 / (n - k)**3.
        log_product = -(n - k) * math.log1p(-share) - k - math.log1p(-share) / 2
        log_product += (1 / n - 1 / (n - k)) / 12
    log = k * math.log(n) - math.lgamma(k + 1) + log_product
    return log / math.log(2)
