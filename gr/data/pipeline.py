"""Batches of item rows for training and evaluation, as Grain pipelines over the arrays in memory.

A batch is a pure function of the seed and its index, made by a few NumPy gathers. Hence Grain's
iterator state is one number, a resumed run sees what an uninterrupted one would have seen, and every
process can make its own rows of a batch without talking to the others.

Length bucketing: an epoch shuffles the examples, sorts them by bucket, longest first, cuts them into
batches and shuffles the batches. A batch is padded to the bucket of its longest example; what a
bucket lacks to fill its last batch is taken from the next shorter one, so that only the very last
batch of an epoch needs filler rows (weight 0, a repetition of its own rows). Shapes are static: one
for each bucket, and the number of batches does not depend on the seed.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gr.data.sequences import PAD_ITEM, DataError, Sequences, Targets

if TYPE_CHECKING:  # Importing Grain takes a second, which evaluation need not pay.
    import grain

Batch = dict[str, np.ndarray]

_PREFETCHED_BATCHES = 4


def bucket_lengths(lengths: np.ndarray, max_length: int, num_buckets: int) -> tuple[int, ...]:
    """Padded lengths that give the smallest padded area, exactly, by a dynamic program over the
    histogram of lengths.

    Args:
        lengths: lengths to be padded `[n]`, at least 1; longer ones than `max_length` are cut to it.
        max_length: the last bucket, so that it fits any cut length, whether it occurs or not.
        num_buckets: at most so many buckets; fewer where more would save nothing.

    Raises:
        DataError: no lengths, a length below 1, or a size below 1.
    """
    _at_least_one(max_length=max_length, num_buckets=num_buckets)
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


def train_batches_by_target(
    sequences: Sequences,
    targets: Targets,
    *,
    batch_size: int,
    max_history: int,
    buckets: int | Sequence[int],
    seed: int,
    num_epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> "TrainBatches":
    """Shuffled batches of one target per example ("interaction-level"), each target once an epoch.

    A batch holds `users [B]` int32, `history [B, T]` int32 (the last `max_history` items before the
    target, oldest first, right-padded with `PAD_ITEM`), `target [B]` int32 and `weight [B]` float32
    (1, or 0 for filler); T is one of the buckets.

    Args:
        sequences: the data.
        targets: what to predict.
        batch_size: rows of a global batch, over all processes.
        max_history: most recent items that the model sees.
        buckets: padded lengths T, rising and ending with `max_history`; or how many of them
            `bucket_lengths` shall choose.
        seed: of the shuffling; every epoch has an order of its own.
        num_epochs: None is endless.
        process_index: which contiguous part of each batch's rows this process gets.
        process_count: into how many parts they are split.

    Raises:
        DataError: no targets, a target without history, bad buckets, or sizes that do not fit.
    """
    examples = _target_examples(sequences, targets, max_history)
    _at_least_one(batch_size=batch_size, process_count=process_count)
    if batch_size % process_count:
        raise DataError(
            f"batch_size={batch_size} does not split over {process_count} processes; "
            "make it a multiple"
        )
    buckets = _resolve_buckets(buckets, examples.lengths, max_history)
    plan = BatchPlan(
        examples=examples,
        buckets=buckets,
        rows=(batch_size,) * len(buckets),
        seed=seed,
        num_epochs=num_epochs,
        process_index=process_index,
        process_count=process_count,
    )
    return TrainBatches(plan=plan, dataset=_grain_dataset(plan), targets_per_epoch=len(targets))


def train_batches_by_user(
    sequences: Sequences,
    targets: Targets,
    *,
    max_history: int,
    buckets: int | Sequence[int],
    items_per_batch: int,
    seed: int,
    stride: int | None = None,
    rows_multiple_of: int | None = None,
    num_epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> "TrainBatches":
    """Shuffled batches of users' sequences, whose positions are all targets ("user-level").

    A user's sequence is seen through windows of at most `max_history + 1` items, which start every
    `stride` items. A target counts in the first window that reaches it: in exactly one, where at
    least `max_history + 1 - stride` items (or all there are) and at most `max_history` precede it.
    A window ends with the last target that counts in it; windows in which none counts, and users
    without targets, are left out.

    A batch holds `users [B]` int32, `items [B, T]` int32 (oldest first, right-padded with
    `PAD_ITEM`) and `weight [B, T]` float32, 1 where `items[b, t]` is a target that counts in this
    window, else 0: always at t = 0, where nothing precedes, and at padding. T is a bucket plus 1,
    since the last item of a window is never history.

    Args:
        sequences: the data.
        targets: what to predict: any interactions but the first of a user.
        max_history: most items before a target that the model sees.
        buckets: padded lengths of the history, T - 1, rising and ending with `max_history`; or how
            many of them `bucket_lengths` shall choose.
        items_per_batch: item positions of a global batch: a batch has `items_per_batch // T` rows,
            rounded down to the multiple below but never to 0.
        seed: of the shuffling; every epoch has an order of its own.
        stride: 1 gives every target its full history and costs a window for each target beyond
            `max_history`; `max_history` makes the fewest windows. By default
            `max_history + 1 - max_history // 2`: at least half of the history.
        rows_multiple_of: the rows of every batch are a multiple of it and of `process_count`; say
            the number of devices that share a batch.
        num_epochs: None is endless.
        process_index: which contiguous part of each batch's rows this process gets.
        process_count: into how many parts they are split.

    Raises:
        DataError: no targets, a target twice or without history, bad buckets, or bad sizes.
    """
    _at_least_one(max_history=max_history, items_per_batch=items_per_batch)
    _at_least_one(process_count=process_count, rows_multiple_of=rows_multiple_of or 1)
    if stride is None:
        stride = max_history + 1 - max_history // 2
    if not 1 <= stride <= max_history:
        raise DataError(f"stride={stride} must lie between 1 and max_history={max_history}")
    examples = _window_examples(sequences, targets, max_history, stride)
    buckets = _resolve_buckets(buckets, examples.lengths, max_history)
    multiple = int(np.lcm(process_count, rows_multiple_of or 1))
    plan = BatchPlan(
        examples=examples,
        buckets=buckets,
        rows=tuple(max(1, items_per_batch // (b + 1) // multiple) * multiple for b in buckets),
        seed=seed,
        num_epochs=num_epochs,
        process_index=process_index,
        process_count=process_count,
    )
    return TrainBatches(plan=plan, dataset=_grain_dataset(plan), targets_per_epoch=len(targets))


def evaluation_batches(
    sequences: Sequences,
    targets: Targets,
    *,
    batch_size: int,
    max_history: int,
    buckets: int | Sequence[int],
) -> list[Batch]:
    """Batches of every target exactly once, longest histories first, always in the same order.

    As in `train_batches_by_target`, with `rows [B]` int32 besides: the index into `targets`, -1 for
    the filler rows of the last batch.

    Raises:
        DataError: no targets, a target without history, bad buckets, or bad sizes.
    """
    examples = _target_examples(sequences, targets, max_history)
    _at_least_one(batch_size=batch_size)
    buckets = _resolve_buckets(buckets, examples.lengths, max_history)
    bucket_of = _bucket_of(examples.lengths, buckets)
    order = _longest_first(bucket_of)
    batches = []
    for start, bucket in _cuts(bucket_of, (batch_size,) * len(buckets)):
        rows, real = _rows(order, start, batch_size)
        batch = examples.batch(rows, real, buckets[bucket])
        batches.append({"rows": np.where(real, rows, -1).astype(np.int32), **batch})
    return batches


def histories(
    sequences: Sequences, targets: Targets, max_length: int, *, width: int | None = None
) -> np.ndarray:
    """The last `max_length` items before each target, `[n, width]` int32, oldest first,
    right-padded with `PAD_ITEM`; by default as wide as the longest. A history may be empty.

    Raises:
        DataError: no targets, bad targets, or histories wider than `width`.
    """
    _at_least_one(max_length=max_length)
    lengths = np.minimum(_places(sequences, targets), max_length)
    longest = int(lengths.max())
    if width is not None and width < longest:
        raise DataError(
            f"width={width} does not hold a history of {longest} items; widen it or lower max_length"
        )
    return _slices(
        sequences.items, targets.positions - lengths, lengths, longest if width is None else width
    )


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """A training pipeline. Its iterators are Grain's: `get_state` and `set_state` resume them."""

    plan: "BatchPlan"
    dataset: "grain.IterDataset"  # Of this process's part of every batch.
    targets_per_epoch: int  # Over all processes.

    @property
    def batches_per_epoch(self) -> int:
        """Batches, that is steps, of an epoch; the same in every epoch."""
        return self.plan.batches_per_epoch

    @property
    def targets_per_batch(self) -> float:
        """Mean number of weighted targets in a global batch: what a loss is to be divided by, so
        that every target of an epoch counts the same.
        """
        return self.targets_per_epoch / self.batches_per_epoch

    def __iter__(self) -> "grain.DatasetIterator":
        return iter(self.dataset)


class _Examples(Protocol):
    """Slices of the sequences that become rows of batches."""

    lengths: np.ndarray  # [n] history lengths, by which they are bucketed.

    def batch(self, rows: np.ndarray, real: np.ndarray, bucket: int) -> Batch:
        """The batch of examples `rows [B]`, with weight where `real [B]`, padded to a bucket."""


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """Random access to the batches of all epochs: a source for `grain.MapDataset.source`.

    Batch `i` is batch `i % batches_per_epoch` of epoch `i // batches_per_epoch`.

    Raises:
        DataError: a negative seed, no epochs, or a process index out of range.
    """

    examples: _Examples
    buckets: tuple[int, ...]  # History lengths, rising.
    rows: tuple[int, ...]  # Of a global batch of each bucket.
    seed: int
    num_epochs: int | None
    process_index: int
    process_count: int

    def __post_init__(self):
        if self.seed < 0:
            raise DataError(f"seed={self.seed} is negative; seeds are 0 or more")
        if self.num_epochs is not None:
            _at_least_one(num_epochs=self.num_epochs)
        if not 0 <= self.process_index < self.process_count:
            raise DataError(
                f"process_index={self.process_index} must lie in [0, {self.process_count})"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch; the same in every epoch."""
        return len(self._cuts)

    def __len__(self) -> int:
        if self.num_epochs is None:
            return sys.maxsize  # What Grain, too, means by endless.
        return self.num_epochs * self.batches_per_epoch

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        epoch, number = divmod(int(index), self.batches_per_epoch)
        order, batch_order = self._orders(epoch)
        start, bucket = self._cuts[batch_order[number]]
        rows, real = _rows(order, start, self.rows[bucket])
        mine = len(rows) // self.process_count
        part = slice(self.process_index * mine, (self.process_index + 1) * mine)
        return self.examples.batch(rows[part], real[part], self.buckets[bucket])

    @functools.cached_property
    def _bucket_of(self) -> np.ndarray:
        return _bucket_of(self.examples.lengths, self.buckets)

    @functools.cached_property
    def _cuts(self) -> list[tuple[int, int]]:
        return _cuts(self._bucket_of, self.rows)

    @functools.cached_property
    def _orders(self):
        # Reading runs ahead into the next epoch, so the last two are kept.
        return functools.lru_cache(maxsize=2)(self._draw_orders)

    def _draw_orders(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's order of examples `[n]` and of batches `[batches_per_epoch]`."""
        rng = np.random.default_rng((self.seed, epoch))
        shuffled = rng.permutation(len(self._bucket_of))
        order = shuffled[_longest_first(self._bucket_of[shuffled])]
        return order, rng.permutation(self.batches_per_epoch)


@dataclasses.dataclass(frozen=True, eq=False)
class _TargetExamples:
    """Targets, each with the end of its history."""

    items: np.ndarray  # [E] int32, of the sequences.
    users: np.ndarray  # [n] int32.
    positions: np.ndarray  # [n] int64, of the targets.
    lengths: np.ndarray  # [n] int64, of the histories after cutting.

    def batch(self, rows: np.ndarray, real: np.ndarray, bucket: int) -> Batch:
        """See `_Examples`."""
        positions, lengths = self.positions[rows], self.lengths[rows]
        return {
            "users": self.users[rows],
            "history": _slices(self.items, positions - lengths, lengths, bucket),
            "target": self.items[positions],
            "weight": real.astype(np.float32),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class _WindowExamples:
    """Windows on users' sequences: `lengths + 1` items from `starts` on."""

    items: np.ndarray  # [E] int32, of the sequences.
    is_target: np.ndarray  # [E] bool.
    users: np.ndarray  # [n] int32.
    starts: np.ndarray  # [n] int64, flat positions.
    lengths: np.ndarray  # [n] int64, of the history of the last item.
    first: np.ndarray  # [n] int64, place in the window from which on targets count.

    def batch(self, rows: np.ndarray, real: np.ndarray, bucket: int) -> Batch:
        """See `_Examples`."""
        starts, lengths = self.starts[rows], self.lengths[rows] + 1
        place = np.arange(bucket + 1)
        counts = (place >= self.first[rows, None]) & (place < lengths[:, None]) & real[:, None]
        counts &= self.is_target.take(starts[:, None] + place, mode="clip")
        return {
            "users": self.users[rows],
            "items": _slices(self.items, starts, lengths, bucket + 1),
            "weight": counts.astype(np.float32),
        }


def _target_examples(sequences: Sequences, targets: Targets, max_history: int) -> _TargetExamples:
    _at_least_one(max_history=max_history)
    places = _places_with_history(sequences, targets)
    return _TargetExamples(
        items=sequences.items,
        users=targets.users.astype(np.int32),
        positions=targets.positions,
        lengths=np.minimum(places, max_history),
    )


def _window_examples(
    sequences: Sequences, targets: Targets, max_history: int, stride: int
) -> _WindowExamples:
    places = _places_with_history(sequences, targets)
    order = np.argsort(targets.positions, kind="stable")
    places, users, positions = places[order], targets.users[order], targets.positions[order]
    twice = np.flatnonzero(positions[1:] == positions[:-1])
    if len(twice):
        user = sequences.user_ids[users[twice[0]]]
        raise DataError(
            f"user {user!r}: interaction {places[twice[0]]} is a target twice; name it once"
        )
    # Window k covers places k * stride to k * stride + max_history of a user: the first to reach
    # a place is the least k for which that end is not before it.
    window = np.maximum(0, -((max_history - places) // stride))
    opens = np.flatnonzero((np.diff(users, prepend=-1) != 0) | (np.diff(window, prepend=-1) != 0))
    last = np.append(opens[1:], len(places)) - 1
    starts = positions[opens] - places[opens] + window[opens] * stride
    is_target = np.zeros(len(sequences.items), bool)
    is_target[positions] = True
    return _WindowExamples(
        items=sequences.items,
        is_target=is_target,
        users=users[opens].astype(np.int32),
        starts=starts,
        lengths=positions[last] - starts,
        first=np.where(window[opens] == 0, 1, max_history + 1 - stride),
    )


def _places(sequences: Sequences, targets: Targets) -> np.ndarray:
    """Each target's place in its user's sequence, `[n]`, after checking that it has one."""
    if not len(targets):
        raise DataError("there are no targets to make batches of; check the split")
    users, positions, offsets = targets.users, targets.positions, sequences.offsets
    if users.min() < 0 or users.max() >= sequences.num_users:
        raise DataError(
            f"targets name user rows {users.min()} to {users.max()}, but there are "
            f"{sequences.num_users} users; were they made from other sequences?"
        )
    outside = (positions < offsets[users]) | (positions >= offsets[users + 1])
    if outside.any():
        at = int(np.argmax(outside))
        raise DataError(
            f"user {sequences.user_ids[users[at]]!r}: target position {positions[at]} is not in "
            "the user's sequence; were the targets made from other sequences?"
        )
    return positions - offsets[users]


def _places_with_history(sequences: Sequences, targets: Targets) -> np.ndarray:
    places = _places(sequences, targets)
    if not places.all():
        user = sequences.user_ids[targets.users[int(np.argmin(places))]]
        raise DataError(
            f"user {user!r}: the first interaction is a target, but nothing precedes it; leave "
            "first interactions out of the targets"
        )
    return places


def _resolve_buckets(
    buckets: int | Sequence[int], lengths: np.ndarray, max_history: int
) -> tuple[int, ...]:
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


def _bucket_of(lengths: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """The bucket of each length, `[n]` uint16, for which NumPy's stable sort is linear."""
    return np.searchsorted(buckets, lengths).astype(np.uint16)


def _longest_first(bucket_of: np.ndarray) -> np.ndarray:
    return np.argsort(bucket_of.max() - bucket_of, kind="stable")


def _cuts(bucket_of: np.ndarray, rows: Sequence[int]) -> list[tuple[int, int]]:
    """Start and bucket of each batch in the examples sorted longest first.

    A batch that starts in a bucket has that bucket's rows, be the last of them shorter examples.
    """
    counts = np.bincount(bucket_of, minlength=len(rows))
    cuts, start, end = [], 0, 0
    for bucket in reversed(range(len(rows))):
        end += int(counts[bucket])
        while start < end:
            cuts.append((start, bucket))
            start += rows[bucket]
    return cuts


def _rows(order: np.ndarray, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The examples of a batch `[B]`, and which of them are no filler `[B]` bool."""
    slots = np.arange(count)
    left = len(order) - start
    return order[start + slots % left], slots < left


def _slices(items: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """`items[start:start + length]` of each row, `[B, width]`, right-padded with `PAD_ITEM`."""
    place = np.arange(width)
    taken = items.take(starts[:, None] + place, mode="clip")
    return np.where(place < lengths[:, None], taken, np.int32(PAD_ITEM))


def _grain_dataset(plan: BatchPlan) -> "grain.IterDataset":
    import grain

    # One thread: batches are made in order, so that an epoch is drawn once, and off the main thread.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED_BATCHES)
    return grain.MapDataset.source(plan).to_iter_dataset(options)


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"{name}={size} must be at least 1")
