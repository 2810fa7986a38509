"""Length buckets: padded lengths, and the order in which examples fill batches."""

from collections.abc import Sequence

import numpy as np

from gr.data.sequences import DataError


def bucket_lengths(lengths: np.ndarray, max_length: int, num_buckets: int) -> tuple[int, ...]:
    """Padded lengths with the smallest padded area, by an exact dynamic program over the histogram.

    Args:
        lengths: lengths to be padded `[n]`, at least 1; those above `max_length` are cut to it.
        max_length: the last bucket, even if no history is that long.
        num_buckets: maximum number of buckets; fewer if more would save nothing.

    Raises:
        DataError: no lengths, a length below 1, or a size below 1.
    """
    require_positive(max_length=max_length, num_buckets=num_buckets)
    lengths = np.asarray(lengths)
    if not lengths.size:
        raise DataError("there are no lengths to choose buckets for; is the split empty?")
    if lengths.min() < 1:
        raise DataError("a length below 1 needs no bucket; leave out targets without a history")
    counts = np.bincount(np.minimum(lengths, max_length), minlength=max_length + 1)
    ends = np.union1d(np.flatnonzero(counts), [max_length])  # [M] where a bucket may end.
    below = np.concatenate(([0], np.cumsum(counts)[ends]))  # [M + 1] lengths up to each end.
    # area[i, j]: of one bucket that ends at ends[j] and holds the lengths above ends[i - 1].
    area = ends * (below[None, 1:] - below[:-1, None]).astype(np.float64)
    area[np.tril_indices(len(ends), -1)] = np.inf
    best = area[0]  # [M] least area of the lengths up to ends[j], with the buckets so far.
    choices = []
    for _ in range(min(num_buckets, len(ends)) - 1):
        totals = best[:-1, None] + area[1:]  # The bucket before ends at i, the last one at j.
        choice = np.argmin(totals, axis=0)
        better = totals[choice, np.arange(len(ends))] < best
        best = np.where(better, totals[choice, np.arange(len(ends))], best)
        choices.append(np.where(better, choice, -1))  # -1: no further bucket, the same as before.
    end = len(ends) - 1
    buckets = [int(ends[end])]
    for choice in reversed(choices):
        if choice[end] >= 0:
            end = choice[end]
            buckets.append(int(ends[end]))
    return tuple(reversed(buckets))


def resolve_buckets(
    buckets: int | Sequence[int], lengths: np.ndarray, max_history: int
) -> tuple[int, ...]:
    """Checks given buckets, which must hold any history up to `max_history`, or chooses a given number.

    Raises:
        DataError: lengths that do not rise, or do not end with `max_history`.
    """
    if isinstance(buckets, int | np.integer):
        return bucket_lengths(lengths, max_history, int(buckets))
    buckets = tuple(int(bucket) for bucket in buckets)
    if (
        not buckets
        or buckets[0] < 1
        or buckets[-1] != max_history
        or min(np.diff(buckets), default=1) < 1
    ):
        raise DataError(
            f"buckets={buckets} must be lengths that rise from at least 1 to "
            f"max_history={max_history}; or say how many of them to choose"
        )
    return buckets


def assign_buckets(lengths: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """The bucket of each length, `[n]` uint16, for which NumPy's stable sort is linear."""
    return np.searchsorted(buckets, lengths).astype(np.uint16)


def longest_first(bucket_of: np.ndarray) -> np.ndarray:
    """The order `[n]` of examples from the longest bucket to the shortest, else as they stood."""
    return np.argsort(bucket_of.max() - bucket_of, kind="stable")


def cut_batches(bucket_of: np.ndarray, rows: Sequence[int]) -> list[tuple[int, int]]:
    """Start and bucket of each batch in the examples sorted longest first.

    A batch that starts in a bucket has that bucket's number of rows, even if its last examples are shorter.
    """
    counts = np.bincount(bucket_of, minlength=len(rows))
    cuts, start, end = [], 0, 0
    for bucket in reversed(range(len(rows))):
        end += int(counts[bucket])
        while start < end:
            cuts.append((start, bucket))
            start += rows[bucket]
    return cuts


def batch_rows(order: np.ndarray, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The examples of a batch `[B]`, and which of them are real rather than filler, `[B]` bool."""
    slots = np.arange(count)
    left = len(order) - start
    return order[start + slots % left], slots < left


def require_positive(**sizes: int) -> None:
    """Raises a DataError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"{name}={size} must be at least 1")
