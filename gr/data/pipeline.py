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
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gr.data.batch_plan import BatchPlan
from gr.data.buckets import (
    assign_buckets,
    batch_rows,
    bucket_lengths,
    cut_batches,
    require_positive,
    resolve_buckets,
)
from gr.data.epoch_order import make_epoch_order
from gr.data.examples import Batch, Histories, histories, target_examples, window_examples
from gr.data.sequences import DataError, Sequences, Targets

if TYPE_CHECKING:  # Importing Grain takes a second, so evaluation avoids it.
    import grain

__all__ = [
    "Histories",
    "TrainBatches",
    "bucket_lengths",
    "evaluation_batches",
    "histories",
    "train_batches_by_target",
    "train_batches_by_user",
]

_PREFETCHED_BATCHES = 4


def train_batches_by_target(
    sequences: Sequences,
    targets: Targets,
    *,
    batch_size: int,
    max_history: int,
    buckets: int | Sequence[int],
    seed: int,
    time_jitter: float | None = None,
    place_jitter: float = 0.0,
    reversed_share: float = 0.0,
    num_epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> "TrainBatches":
    """Shuffled batches of one target per example ("interaction-level"), each target once an epoch.

    A batch holds `users [B]` int32, `history [B, T]` int32 (the last `max_history` items before the
    target, oldest first, right-padded with `NO_ITEM`), `target [B]` int32 and `weight [B]` float32
    (1, or 0 for filler); T is one of the buckets.

    Args:
        sequences: the data.
        targets: what to predict.
        batch_size: rows of a global batch, over all processes.
        max_history: most recent items that the model sees.
        buckets: padded lengths T, rising and ending with `max_history`; or their number, for `bucket_lengths` to
            choose.
        seed: seed of the shuffling; every epoch has a new order.
        time_jitter: seconds; each epoch sorts a user's training interactions by time plus a random delay of up to this.
            0 only shuffles those of equal time, None keeps the order.
        place_jitter: the same by place, for data without times: a random delay of up to so many places; 0 keeps the
            order.
        reversed_share: share of the users whose training interactions an epoch reads backwards; others in each epoch.
        num_epochs: None is endless.
        process_index: which contiguous part of each batch's rows this process gets, filled up with filler if need be.
        process_count: number of such parts.

    Raises:
        DataError: no targets, a target without history, bad buckets, or sizes or shares that do not fit.
    """
    examples = target_examples(sequences, targets, max_history)
    require_positive(batch_size=batch_size, process_count=process_count)
    buckets = resolve_buckets(buckets, examples.lengths, max_history)
    plan = BatchPlan(
        examples=examples,
        buckets=buckets,
        rows=(batch_size,) * len(buckets),
        seed=seed,
        num_epochs=num_epochs,
        process_index=process_index,
        process_count=process_count,
        epoch_order=make_epoch_order(sequences, targets, time_jitter, place_jitter, reversed_share),
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
    time_jitter: float | None = None,
    place_jitter: float = 0.0,
    reversed_share: float = 0.0,
    stride: int | None = None,
    rows_multiple_of: int = 1,
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
    `NO_ITEM`) and `weight [B, T]` float32, 1 where `items[b, t]` is a target that counts in this
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
        time_jitter: each epoch a user's training interactions are sorted by time plus a random
            delay of up to so many seconds; 0 shuffles those of one time, None keeps the order.
        place_jitter: the same by place, for data without times: a random delay of up to so many
            places; 0 keeps the order.
        reversed_share: share of the users whose training interactions an epoch reads backwards;
            others in each epoch.
        stride: 1 gives every target its full history and costs a window for each target beyond
            `max_history`; `max_history` makes the fewest windows. By default
            `max_history + 1 - max(1, max_history // 2)`: at least half of the history.
        rows_multiple_of: the rows of every global batch are a multiple of it.
        num_epochs: None is endless.
        process_index: which contiguous part of each batch's rows this process gets, filled up with filler if need be.
        process_count: into how many parts they are split.

    Raises:
        DataError: no targets, a target twice or without history, bad buckets, sizes or shares.
    """
    require_positive(max_history=max_history, items_per_batch=items_per_batch)
    require_positive(process_count=process_count, rows_multiple_of=rows_multiple_of)
    if stride is None:
        stride = max_history + 1 - max(1, max_history // 2)
    if not 1 <= stride <= max_history:
        raise DataError(f"stride={stride} must lie between 1 and max_history={max_history}")
    examples = window_examples(sequences, targets, max_history, stride)
    buckets = resolve_buckets(buckets, examples.lengths, max_history)
    plan = BatchPlan(
        examples=examples,
        buckets=buckets,
        rows=tuple(
            max(1, items_per_batch // (b + 1) // rows_multiple_of) * rows_multiple_of
            for b in buckets
        ),
        seed=seed,
        num_epochs=num_epochs,
        process_index=process_index,
        process_count=process_count,
        epoch_order=make_epoch_order(sequences, targets, time_jitter, place_jitter, reversed_share),
    )
    return TrainBatches(plan=plan, dataset=_grain_dataset(plan), targets_per_epoch=len(targets))


def evaluation_batches(
    sequences: Sequences,
    targets: Targets,
    *,
    batch_size: int,
    max_history: int,
    buckets: int | Sequence[int],
) -> Iterator[Batch]:
    """Batches of every target exactly once, longest histories first, always in the same order.

    As in `train_batches_by_target`, with `rows [B]` int32 besides: the index into `targets`, -1 for
    the filler rows of the last batch. The first row of a batch is never filler. Batches are made lazily.

    Raises:
        DataError: no targets, a target without history, bad buckets, or bad sizes.
    """
    examples = target_examples(sequences, targets, max_history)
    require_positive(batch_size=batch_size)
    buckets = resolve_buckets(buckets, examples.lengths, max_history)
    bucket_of = assign_buckets(examples.lengths, buckets)
    # By the whole history rather than by bucket, so that very active users share batches also beyond `max_history`.
    order = np.argsort(sequences.offsets[targets.users] - targets.positions, kind="stable")

    def batch(start: int, bucket: int) -> Batch:
        rows, real = batch_rows(order, start, batch_size)
        of_rows = examples.batch(rows, real, buckets[bucket])
        return {"rows": np.where(real, rows, -1).astype(np.int32), **of_rows}

    cuts = cut_batches(bucket_of, (batch_size,) * len(buckets))
    return (batch(start, bucket) for start, bucket in cuts)


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """A training pipeline. Its iterators are Grain's: `get_state` and `set_state` resume them."""

    plan: BatchPlan
    dataset: "grain.IterDataset"  # Of this process's part of every batch.
    targets_per_epoch: int  # Over all processes.

    @property
    def batches_per_epoch(self) -> int:
        """Batches, that is steps, of an epoch; the same in every epoch."""
        return self.plan.batches_per_epoch

    @property
    def targets_per_batch(self) -> float:
        """Mean number of weighted targets in a global batch.

        Divide a loss by it, so that every target of an epoch counts the same.
        """
        return self.targets_per_epoch / self.batches_per_epoch

    def filled(self, multiple: int) -> "TrainBatches":
        """The same batches with filler rows, so that a process has a multiple of so many rows: of its devices.

        Filler repeats the rows of the batch, with weight 0.
        """
        if multiple == 1:
            return self
        return dataclasses.replace(
            self, dataset=self.dataset.map(functools.partial(_filled, multiple=multiple))
        )

    def __iter__(self) -> "grain.DatasetIterator":
        return iter(self.dataset)


def _filled(batch: Batch, multiple: int) -> Batch:
    rows = len(batch["weight"])
    places = np.arange(-(-rows // multiple) * multiple)
    batch = {name: values[places % rows] for name, values in batch.items()}
    batch["weight"][places >= rows] = 0.0
    return batch


def _grain_dataset(plan: BatchPlan) -> "grain.IterDataset":
    import grain

    # One thread: batches are made in order, so that an epoch is drawn once, and off the main thread.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED_BATCHES)
    return grain.MapDataset.source(plan).to_iter_dataset(options)
