"""Shuffles neighbouring interactions anew in every epoch."""

import dataclasses

import numpy as np

from gr.data.sequences import DataError, Sequences, Targets


@dataclasses.dataclass(frozen=True, eq=False)
class Jitter:
    """Sorts each user's interactions by their time, or place, plus a random delay of up to `span`.

    With 0 seconds only interactions of equal time change places, since their order carries no information;
    MovieLens-100K's users give half of their ratings in the same second as the one before. A longer delay also mixes
    neighbours, as if the user had gone through the same page in another order. Interactions far apart in time keep
    their order. By place, it mixes neighbours whenever they happened: in shops what was bought together, or in the same
    weeks, might have come in another order.
    """

    times: np.ndarray  # [E], ascending within a part.
    parts: np.ndarray  # [E] int64, rising: a user's training interactions, then those held out.
    span: float  # Seconds, or places.

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The interaction at each place, `[E]`; none leaves its part."""
        noise = rng.random(len(self.times))
        return np.lexsort((noise, self.times + self.span * noise, self.parts))


def make_jitter(
    sequences: Sequences, targets: Targets, *, seconds: float | None = None, places: float = 0.0
) -> Jitter | None:
    """The jitter of the interactions up to each user's last target; None if neither is given.

    Later interactions form a separate part: held-out interactions never change places with training ones.

    Args:
        sequences: the data.
        targets: the training targets.
        seconds: the longest delay; None: no jitter by time.
        places: the longest delay by place; 0: no jitter by place.

    Raises:
        DataError: negative numbers, both of them, or seconds for sequences without times.
    """
    if seconds is None and places == 0:
        return None
    if places < 0 or (seconds is not None and seconds < 0):
        name, value = ("place_jitter", places) if places < 0 else ("time_jitter", seconds)
        raise DataError(f"{name}={value} must not be negative")
    if seconds is not None and places > 0:
        raise DataError(
            f"time_jitter={seconds} and place_jitter={places}: use one of them, None or 0 for the other"
        )
    if seconds is not None and sequences.times is None:
        raise DataError("time_jitter needs times, which these data do not have; set it to None")
    users = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    last_target = np.full(sequences.num_users, -1, np.int64)
    np.maximum.at(last_target, targets.users, targets.positions)
    held_out = np.arange(len(users)) > last_target[users]
    if seconds is None:
        return Jitter(times=np.arange(len(users)), parts=2 * users + held_out, span=places)
    return Jitter(times=sequences.times, parts=2 * users + held_out, span=seconds)
