"""The order in which an epoch reads each user's interactions, drawn anew in every epoch."""

import dataclasses

import numpy as np

from gr.data.sequences import DataError, Sequences, Targets


@dataclasses.dataclass(frozen=True, eq=False)
class EpochOrder:
    """Sorts each user's interactions by their time, or place, plus a random delay of up to `span`; some backwards.

    With 0 seconds only interactions of equal time change places, since their order carries no information;
    MovieLens-100K's users give half of their ratings in the same second as the one before. A longer delay also mixes
    neighbours, as if the user had gone through the same page in another order. Interactions far apart in time keep
    their order. By place, it mixes neighbours whenever they happened: in shops what was bought together, or in the same
    weeks, might have come in another order.

    Backwards, a model learns what came before an item, which also tells what goes with it: the memory, too, counts both
    directions (`MemorySettings.back`). On some data this is worth having, on others not; see docs/results.md.
    """

    times: np.ndarray  # [E], ascending within a part.
    parts: np.ndarray  # [E] int64, rising: 2 * user where trained on, then 2 * user + 1.
    span: float  # Seconds, or places.
    reversed_share: float  # Of users, in [0, 1].

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The interaction at each place, `[E]`; none leaves its part."""
        noise = rng.random(len(self.times))
        keys = self.times + self.span * noise
        if self.reversed_share:
            users = self.parts // 2
            backwards = rng.random(users[-1] + 1) < self.reversed_share
            keys = np.where(backwards[users], -keys, keys)
        return np.lexsort((noise, keys, self.parts))


def make_epoch_order(
    sequences: Sequences,
    targets: Targets,
    time_jitter: float | None = None,
    place_jitter: float = 0.0,
    reversed_share: float = 0.0,
) -> EpochOrder | None:
    """The order of the interactions up to each user's last target; None if every epoch keeps that of the data.

    Later interactions form a separate part: held-out interactions never change places with training ones.

    Args:
        sequences: the data.
        targets: the training targets.
        time_jitter: the longest delay, in seconds; None: no jitter by time.
        place_jitter: the longest delay, in places; 0: no jitter by place.
        reversed_share: share of the users whose interactions an epoch reads backwards, in [0, 1].

    Raises:
        DataError: negative numbers, both delays, one by time for sequences without times, or a share outside [0, 1].
    """
    if not 0 <= reversed_share <= 1:
        raise DataError(f"reversed_share={reversed_share} must lie in [0, 1]")
    for name, value in (("place_jitter", place_jitter), ("time_jitter", time_jitter)):
        if value is not None and value < 0:
            raise DataError(f"{name}={value} must not be negative")
    by_time = time_jitter is not None
    if by_time and place_jitter > 0:
        raise DataError(
            f"time_jitter={time_jitter} and place_jitter={place_jitter}: use one of them, None or 0 for the other"
        )
    if by_time and sequences.times is None:
        raise DataError("time_jitter needs times, which these data do not have; set it to None")
    if not (by_time or place_jitter or reversed_share):
        return None
    users = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    last_target = np.full(sequences.num_users, -1, np.int64)
    np.maximum.at(last_target, targets.users, targets.positions)
    held_out = np.arange(len(users)) > last_target[users]
    return EpochOrder(
        times=sequences.times if by_time else np.arange(len(users)),
        parts=2 * users + held_out,
        span=time_jitter if by_time else place_jitter,
        reversed_share=reversed_share,
    )
