"""Sorts semantic IDs on the host: from tokens `[N, L]` in any order to sorted columns and shared prefix lengths."""

import dataclasses
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_CHUNK = 1 << 15  # Rows processed at once, so that they stay in the cache.


@dataclasses.dataclass(frozen=True)
class SortedIds:
    """Semantic IDs in lexicographic order; equal ones in the order of their rows."""

    order: np.ndarray  # [N] int32: the row of each place.
    columns: list[np.ndarray]  # L times [N], tokens in order, in the narrowest unsigned type.
    shared: (
        np.ndarray
    )  # [N] uint8: leading tokens that a place shares with the one before; 0 at the first.

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.order)

    def starts(self, depth: int) -> np.ndarray:
        """Places at which a new prefix of `depth` tokens begins, ascending."""
        is_start = self.shared < depth
        is_start[0] = True  # Also at depth 0: the root.
        return np.flatnonzero(is_start)

    def longest_run(self, depth: int) -> int:
        """The most places that share one prefix of `depth` tokens."""
        num_joined = np.count_nonzero(self.shared[1:] >= depth)
        if num_joined == 0:
            return 1
        if num_joined > self.num_items // 2:
            return int(np.diff(self.starts(depth), append=self.num_items).max())
        # Few places continue a prefix, so the longest run of these is counted instead of the many starts.
        joined = np.flatnonzero(self.shared[1:] >= depth)
        breaks = np.flatnonzero(np.diff(joined) > 1)
        ends = np.append(breaks, num_joined - 1)
        begins = np.append(-1, breaks)
        return int((ends - begins).max()) + 1


def sort_ids(tokens: np.ndarray, highs: np.ndarray) -> SortedIds:
    """Sorts tokens `[N, L]` that lie in `[0, highs[l]]`."""
    order = _lexicographic_order(tokens, [int(high).bit_length() for high in highs])
    num_items, length = tokens.shape
    columns = [np.empty(num_items, np.min_scalar_type(int(high))) for high in highs]
    shared = np.zeros(num_items, np.uint8)

    def fill(rows: slice) -> None:
        # One more row for the comparison; `take` reads whole rows, which are contiguous in memory.
        first = max(rows.start - 1, 0)
        chunk = np.ascontiguousarray(tokens.take(order[first : rows.stop], axis=0).T)
        for column, values in zip(columns, chunk, strict=True):
            column[rows] = values[rows.start - first :]
        equal = np.logical_and.accumulate(chunk[:, 1:] == chunk[:, :-1], axis=0)
        shared[first + 1 : rows.stop] = equal.sum(axis=0)

    in_chunks(fill, num_items)
    return SortedIds(order, columns, shared)


def in_chunks(work: Callable[[slice], None], size: int) -> None:
    """Calls `work` on consecutive slices of `range(size)`, on all cores: NumPy releases the GIL."""
    slices = [slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]
    if len(slices) == 1:
        work(slices[0])
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, slices):
            pass


def _lexicographic_order(tokens: np.ndarray, bits: list[int]) -> np.ndarray:
    """The row of each place, int32 `[N]`; sorts by as many columns at a time as fit a 64-bit key.

    The first key includes the row number, so that a plain sort, several times faster than an argsort, yields the order.
    Rows that are tied under a key are sorted by the next columns.
    """
    num_items, length = tokens.shape
    row_bits = max(int(num_items - 1).bit_length(), 1)
    done = _columns_that_fit(bits, 0, 64 - row_bits)
    order, tied = _order_by_first_columns(tokens, bits, done, row_bits)
    while done < length and tied.any():
        places = np.flatnonzero(tied | np.append(tied[1:], False))
        group = np.cumsum(~tied[places]).astype(np.uint64)  # Numbers of the tied groups, ascending.
        group_bits = int(group[-1]).bit_length()
        upto = _columns_that_fit(bits, done, 64 - group_bits)
        rows = order[places]
        width = sum(bits[done:upto])
        key = (group << np.uint64(width)) | _key(tokens[rows], bits, done, upto)
        by_key = np.argsort(key, kind="stable")
        order[places] = rows[by_key]
        key = key[by_key]
        tied[places] = np.append(False, key[1:] == key[:-1])
        done = upto
    return order


def _order_by_first_columns(
    tokens: np.ndarray, bits: list[int], count: int, row_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """The order `[N]` by the first `count` columns, then by row; and which places tie with the one before."""
    keys = np.empty(len(tokens), np.uint64)

    def fill(rows: slice) -> None:
        key = _key(tokens[rows], bits, 0, count)
        numbers = np.arange(rows.start, rows.stop, dtype=np.uint64)
        keys[rows] = (key << np.uint64(row_bits)) | numbers

    in_chunks(fill, len(tokens))
    keys.sort()
    order = np.empty(len(tokens), np.int32)
    tied = np.zeros(len(tokens), bool)

    def read(rows: slice) -> None:
        first = max(rows.start - 1, 0)
        order[rows] = keys[rows] & np.uint64((1 << row_bits) - 1)
        key = keys[first : rows.stop] >> np.uint64(row_bits)
        tied[first + 1 : rows.stop] = key[1:] == key[:-1]

    in_chunks(read, len(tokens))
    return order, tied


def _columns_that_fit(bits: list[int], first: int, room: int) -> int:
    """How far columns from `first` on fit into `room` bits; at least one column further."""
    totals = itertools.accumulate(bits[first:])
    return first + max(1, sum(total <= room for total in totals))


def _key(tokens: np.ndarray, bits: list[int], first: int, last: int) -> np.ndarray:
    """Columns `first..last` of tokens as one number per row, uint64."""
    key = np.zeros(len(tokens), np.uint64)
    for column in range(first, last):
        key = (key << np.uint64(bits[column])) | tokens[:, column].astype(np.uint64)
    return key
