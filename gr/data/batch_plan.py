"""The batches of all epochs, each a pure function of seed and index."""

import dataclasses
import functools
import sys
from typing import Protocol

import numpy as np

from gr.data.buckets import assign_buckets, batch_rows, cut_batches, longest_first, require_positive
from gr.data.epoch_order import EpochOrder
from gr.data.examples import Batch
from gr.data.sequences import DataError


class Examples(Protocol):
    """Slices of the sequences; each becomes a row of a batch."""

    items: np.ndarray  # [E] int32, of the sequences.
    lengths: np.ndarray  # [n] history lengths, used for bucketing.

    def batch(self, rows: np.ndarray, real: np.ndarray, bucket: int) -> Batch:
        """The batch of examples `rows [B]`, with weight where `real [B]`, padded to a bucket."""


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """Random access to the batches of all epochs: a source for `grain.MapDataset.source`.

    Each process gets its part of the rows, as many as any other: where they do not split, the last ones get filler.

    Batch `i` is batch `i % batches_per_epoch` of epoch `i // batches_per_epoch`.

    Raises:
        DataError: a negative seed, no epochs, or a process index out of range.
    """

    examples: Examples
    buckets: tuple[int, ...]  # History lengths, rising.
    rows: tuple[int, ...]  # Rows of a global batch, by bucket.
    seed: int
    num_epochs: int | None
    process_index: int
    process_count: int
    epoch_order: EpochOrder | None = None  # None: the order of interactions stays as it is.

    def __post_init__(self):
        if self.seed < 0:
            raise DataError(f"seed={self.seed} is negative; seeds are 0 or more")
        if self.num_epochs is not None:
            require_positive(num_epochs=self.num_epochs)
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
            return sys.maxsize  # Grain's own value for endless.
        return self.num_epochs * self.batches_per_epoch

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        epoch, number = divmod(int(index), self.batches_per_epoch)
        order, batch_order, examples = self._epochs(epoch)
        start, bucket = self._cuts[batch_order[number]]
        rows, real = batch_rows(order, start, self.rows[bucket])
        mine = -(-len(rows) // self.process_count)
        places = self.process_index * mine + np.arange(mine)
        real = real[places % len(rows)] & (places < len(rows))
        return examples.batch(rows[places % len(rows)], real, self.buckets[bucket])

    @functools.cached_property
    def _bucket_of(self) -> np.ndarray:
        return assign_buckets(self.examples.lengths, self.buckets)

    @functools.cached_property
    def _cuts(self) -> list[tuple[int, int]]:
        return cut_batches(self._bucket_of, self.rows)

    @functools.cached_property
    def _epochs(self):
        # Reading runs ahead into the next epoch, so the last two are kept.
        return functools.lru_cache(maxsize=2)(self._draw_epoch)

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, Examples]:
        """An epoch's order of examples `[n]` and of batches `[batches_per_epoch]`, and the examples."""
        rng = np.random.default_rng((self.seed, epoch))
        shuffled = rng.permutation(len(self._bucket_of))
        order = shuffled[longest_first(self._bucket_of[shuffled])]
        batch_order = rng.permutation(self.batches_per_epoch)
        if self.epoch_order is None:
            return order, batch_order, self.examples
        items = self.examples.items[self.epoch_order.draw(rng)]
        return order, batch_order, dataclasses.replace(self.examples, items=items)
