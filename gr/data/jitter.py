"""Shuffles nearly simultaneous interactions anew in every epoch."""

import dataclasses

import numpy as np

from gr.data.sequences import DataError, Sequences, Targets


@dataclasses.dataclass(frozen=True, eq=False)
class TimeJitter:
    """Sorts each user's interactions by their time plus a random delay of up to `seconds`.

    With 0 seconds only interactions of equal time change places, since their order carries no information;
    MovieLens-100K's users give half of their ratings in the same second as the one before. A longer delay also mixes
    neighbours, as if the user had gone through the same page in another order. Interactions far apart in time keep
    their order.
    """

    times: np.ndarray  # [E], ascending within a part.
    parts: np.ndarray  # [E] int64, rising: a user's training interactions, then those held out.
    seconds: float

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The interaction at each place, `[E]`; none leaves its part."""
        noise = rng.random(len(self.times))
        return np.lexsort((noise, self.times + self.seconds * noise, self.parts))


def time_jitter(sequences: Sequences, targets: Targets, seconds: float | None) -> TimeJitter | None:
    """The jitter of the interactions up to each user's last target; None if `seconds` is None.

    Later interactions form a separate part: held-out interactions never change places with training ones.

    Raises:
        DataError: negative seconds, or sequences without times.
    """
    if seconds is None:
        return None
    if seconds < 0:
        raise DataError(f"time_jitter={seconds} seconds must not be negative")
    if sequences.times is None:
        raise DataError("time_jitter needs times, which these data do not have; set it to None")
    users = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    last_target = np.full(sequences.num_users, -1, np.int64)
    np.maximum.at(last_target, targets.users, targets.positions)
    held_out = np.arange(len(users)) > last_target[users]
    return TimeJitter(times=sequences.times, parts=2 * users + held_out, seconds=seconds)
