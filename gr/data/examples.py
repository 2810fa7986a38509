"""Slices of users' sequences that become rows of batches: a history with its target, or a window."""

import dataclasses

import numpy as np

from gr.data.buckets import require_positive
from gr.data.sequences import NO_ITEM, DataError, Sequences, Targets

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class TargetExamples:
    """Targets, each with the end of its history."""

    items: np.ndarray  # [E] int32, of the sequences.
    users: np.ndarray  # [n] int32.
    positions: np.ndarray  # [n] int64, of the targets.
    lengths: np.ndarray  # [n] int64, of the histories after cutting.

    def batch(self, rows: np.ndarray, real: np.ndarray, bucket: int) -> Batch:
        """See `Examples`."""
        positions, lengths = self.positions[rows], self.lengths[rows]
        return {
            "users": self.users[rows],
            "history": _slices(self.items, positions - lengths, lengths, bucket),
            "target": self.items[positions],
            "weight": real.astype(np.float32),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class WindowExamples:
    """Windows on users' sequences: `lengths + 1` items from `starts` on."""

    items: np.ndarray  # [E] int32, of the sequences.
    is_target: np.ndarray  # [E] bool.
    users: np.ndarray  # [n] int32.
    starts: np.ndarray  # [n] int64, flat positions.
    lengths: np.ndarray  # [n] int64, of the history of the last item.
    first: np.ndarray  # [n] int64, the first place in the window at which targets count.

    def batch(self, rows: np.ndarray, real: np.ndarray, bucket: int) -> Batch:
        """See `Examples`."""
        starts, lengths = self.starts[rows], self.lengths[rows] + 1
        place = np.arange(bucket + 1)
        counts = (place >= self.first[rows, None]) & (place < lengths[:, None]) & real[:, None]
        counts &= self.is_target.take(starts[:, None] + place, mode="clip")
        return {
            "users": self.users[rows],
            "items": _slices(self.items, starts, lengths, bucket + 1),
            "weight": counts.astype(np.float32),
        }


def target_examples(sequences: Sequences, targets: Targets, max_history: int) -> TargetExamples:
    """Each target with its last `max_history` items; a DataError for a target without history."""
    require_positive(max_history=max_history)
    places = _places_with_history(sequences, targets)
    return TargetExamples(
        items=sequences.items,
        users=targets.users.astype(np.int32),
        positions=targets.positions,
        lengths=np.minimum(places, max_history),
    )


def window_examples(
    sequences: Sequences, targets: Targets, max_history: int, stride: int
) -> WindowExamples:
    """Cuts users' sequences into windows; see `train_batches_by_user` for the rule.

    Raises:
        DataError: bad targets, one without history, or one named twice.
    """
    places = _places_with_history(sequences, targets)
    order = np.argsort(targets.positions, kind="stable")
    places, users, positions = places[order], targets.users[order], targets.positions[order]
    twice = np.flatnonzero(positions[1:] == positions[:-1])
    if len(twice):
        user = str(sequences.user_ids[users[twice[0]]])
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
    return WindowExamples(
        items=sequences.items,
        is_target=is_target,
        users=users[opens].astype(np.int32),
        starts=starts,
        lengths=positions[last] - starts,
        first=np.where(window[opens] == 0, 1, max_history + 1 - stride),
    )


def histories(
    sequences: Sequences, targets: Targets, max_length: int, *, width: int | None = None
) -> np.ndarray:
    """The last `max_length` items before each target, `[n, width]` int32, oldest first.

    Rows are right-padded with `NO_ITEM`, by default to the longest history. A history may be empty.

    Raises:
        DataError: no targets, bad targets, or histories wider than `width`.
    """
    require_positive(max_length=max_length)
    lengths = np.minimum(_places(sequences, targets), max_length)
    longest = int(lengths.max())
    if width is not None and width < longest:
        raise DataError(
            f"width={width} does not hold a history of {longest} items; widen it or lower max_length"
        )
    return _slices(
        sequences.items, targets.positions - lengths, lengths, longest if width is None else width
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """The whole history of each of n targets, as slices of one array; no item is stored twice.

    `np.asarray` of it is the padded array `[n, T]`, as wide as the longest history; `padded` of some of its rows
    (`histories[rows]`) is as wide as the longest of those.
    """

    items: np.ndarray  # [E] int32 item rows.
    starts: np.ndarray  # [n] int64: history `j` is `items[starts[j]:stops[j]]`, oldest item first.
    stops: np.ndarray  # [n] int64.

    @staticmethod
    def of(sequences: Sequences, targets: Targets) -> "Histories":
        """The whole histories of targets; a DataError for targets of other sequences. They may be empty."""
        _check_targets(sequences, targets)
        return Histories(sequences.items, sequences.offsets[targets.users], targets.positions)

    @staticmethod
    def of_rows(rows: np.ndarray) -> "Histories":
        """Histories from rows of items `[n, T]`, in which negative entries anywhere are padding."""
        real = rows >= 0
        stops = np.cumsum(real.sum(axis=1))
        return Histories(rows[real], np.concatenate([[0], stops[:-1]])[: len(rows)], stops)

    def __len__(self) -> int:
        return len(self.stops)

    def __getitem__(self, rows: np.ndarray | slice) -> "Histories":
        return Histories(self.items, self.starts[rows], self.stops[rows])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self.padded().astype(dtype or self.items.dtype, copy=False)

    @property
    def lengths(self) -> np.ndarray:
        """Items in each history, `[n]` int64."""
        return self.stops - self.starts

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the padded array."""
        return len(self), int(self.lengths.max(initial=0))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.items.nbytes + self.starts.nbytes + self.stops.nbytes

    def padded(self) -> np.ndarray:
        """The rows `[n, T]`, right-padded with `NO_ITEM`."""
        return _slices(self.items, self.starts, self.lengths, self.shape[1])

    def hold(self, wanted: np.ndarray) -> np.ndarray:
        """Whether each history holds its wanted item: `[n]` -> bool `[n]`.

        Histories are not read one by one, since their lengths may add up to far more than the data.
        """
        # Keys (item, position) as one number: an item's first place at or after a start is the next key.
        base = len(self.items) + 1
        places = np.sort(self.items.astype(np.int64) * base + np.arange(len(self.items)))
        first = np.clip(wanted, -1, np.iinfo(np.int32).max).astype(np.int64) * base
        after = np.searchsorted(places, first + self.starts)
        found = np.append(places, np.iinfo(np.int64).max)[after]
        return found < first + self.stops


def _places(sequences: Sequences, targets: Targets) -> np.ndarray:
    """Each target's place in its user's sequence, `[n]`, after checking that it has one."""
    if not len(targets):
        raise DataError("there are no targets to make batches of; check the split")
    _check_targets(sequences, targets)
    return targets.positions - sequences.offsets[targets.users]


def _check_targets(sequences: Sequences, targets: Targets) -> None:
    """Raises a DataError unless every target is in the sequence of its user."""
    if not len(targets):
        return
    users, positions, offsets = targets.users, targets.positions, sequences.offsets
    if users.min() < 0 or users.max() >= sequences.num_users:
        raise DataError(
            f"targets name user rows {users.min()} to {users.max()}, but there are "
            f"{sequences.num_users} users; were they made from other sequences?"
        )
    outside = (positions < offsets[users]) | (positions >= offsets[users + 1])
    if outside.any():
        at = int(np.argmax(outside))
        user = str(sequences.user_ids[users[at]])
        raise DataError(
            f"user {user!r}: target position {positions[at]} is not in "
            "the user's sequence; were the targets made from other sequences?"
        )


def _places_with_history(sequences: Sequences, targets: Targets) -> np.ndarray:
    places = _places(sequences, targets)
    if not places.all():
        user = str(sequences.user_ids[targets.users[int(np.argmin(places))]])
        raise DataError(
            f"user {user!r}: the first interaction is a target, but nothing precedes it; leave "
            "first interactions out of the targets"
        )
    return places


def _slices(items: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """`items[start:start + length]` of each row, `[B, width]`, right-padded with `NO_ITEM`."""
    place = np.arange(width)
    taken = items.take(starts[:, None] + place, mode="clip")
    return np.where(place < lengths[:, None], taken, np.int32(NO_ITEM))
