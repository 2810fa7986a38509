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
    *,
    seconds: float | None = None,
    places: float = 0.0,
    reversed_share: float = 0.0,
) -> EpochOrder | None:
    """The order of the interactions up to each user's last target; None if every epoch keeps that of the data.

    Later interactions form a separate part: held-out interactions never change places with training ones.

    Args:
        sequences: the data.
        targets: the training targets.
        seconds: the longest delay; None: no jitter by time.
        places: the longest delay by place; 0: no jitter by place.
        reversed_share: share of the users whose interactions an epoch reads backwards, in [0, 1].

    Raises:
        DataError: negative numbers, both delays, seconds for sequences without times, or no share.
    """
    if not 0 <= reversed_share <= 1:
        raise DataError(f"reversed_share={reversed_share} must lie in [0, 1]")
    if places < 0 or (seconds is not None and seconds < 0):
        name, value = ("place_jitter", places) if places < 0 else ("time_jitter", seconds)
        raise DataError(f"{name}={value} must not be negative")
    if seconds is not None and places > 0:
        raise DataError(
            f"time_jitter={seconds} and place_jitter={places}: use one of them, None or 0 for the other"
        )
    if seconds is not None and sequences.times is None:
        raise DataError("time_jitter needs times, which these data do not have; set it to None")
    if seconds is None and places == 0 and reversed_share == 0:
        return None
    users = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    last_target = np.full(sequences.num_users, -1, np.int64)
    np.maximum.at(last_target, targets.users, targets.positions)
    held_out = np.arange(len(users)) > last_target[users]
    return EpochOrder(
        times=np.arange(len(users)) if seconds is None else sequences.times,
        parts=2 * users + held_out,
        span=places if seconds is None else seconds,
        reversed_share=reversed_share,
    )
