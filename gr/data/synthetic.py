"""A seeded click log with features of real ones: Zipf popularity, categories, drifting tastes, sequels."""

import numpy as np

from gr.data.interactions import offsets_of
from gr.data.sequences import DataError, Sequences

_SERIES_LENGTH = 5  # Items of a category come in series, part 1 to part 5.
_ZIPF_EXPONENT = 1.0
_MIN_LENGTH = 5  # As in the 5-core of a real log.

# Probabilities of a step; the rest goes to the most popular items overall.
_SEQUEL = 0.35  # Take the next part of the last item's series.
_TASTE = 0.5  # Take an item of the user's category.
_DRIFT = 0.15  # First, the user's category gives way to the one after it.

_GAP_SECONDS = 86_400.0
_START_SECONDS = 1_600_000_000
_SPAN_SECONDS = 365 * 86_400

_NOUNS = (
    "Lamp Novel Guitar Kettle Tent Puzzle Camera Jacket Bicycle Teapot Garden Chess Violin Compass "
    "Pillow Skillet Telescope Notebook Saddle Clock Anchor Basket Candle Drum Easel Flute"
).split()
_ADJECTIVES = (
    "Amber Bold Crimson Dusty Early Fabled Gentle Hidden Ivory Jolly Keen Lunar Mellow Noble Opal "
    "Plain Quiet Rustic Silver Tidal Upper Velvet Winter Young Zesty"
).split()


def synthetic_sequences(
    *,
    num_users: int = 2000,
    num_items: int = 500,
    num_categories: int = 20,
    mean_length: float = 20.0,
    seed: int = 0,
) -> Sequences:
    """Draws users' sequences in which the next item depends on the last one and on the user's taste.

    Each item belongs to a category and to a series within it; its popularity follows Zipf's law. A user has a current
    category, which occasionally changes to the next one. The next item is the sequel of the last, or one of the user's
    category, or any, the latter two by popularity. No user takes an item twice. The title names the series (`"Amber
    Lamp, part 2"`), the field `categories` the category, so that text predicts as well.

    Args:
        num_users: U.
        num_items: N.
        num_categories: at most N.
        mean_length: interactions per user, on average; the shortest have 5, the longest N / 2.
        seed: same seed, same log.

    Raises:
        DataError: sizes that do not fit together.
    """
    if min(num_users, num_categories) < 1 or num_items < max(num_categories, 4 * _MIN_LENGTH):
        raise DataError(
            f"num_users={num_users}, num_items={num_items}, num_categories={num_categories}: there "
            f"must be users and categories, and at least {4 * _MIN_LENGTH} items and one a category"
        )
    longest = num_items // 2
    if not _MIN_LENGTH <= mean_length <= longest:
        raise DataError(f"mean_length={mean_length} must be from {_MIN_LENGTH} to {longest}, N / 2")
    random = np.random.default_rng(seed)

    # Items in the order of their categories, and in it of their series.
    categories = np.sort(np.arange(num_items) % num_categories)
    starts = np.searchsorted(categories, np.arange(num_categories + 1))
    place = np.arange(num_items) - starts[categories]
    part = place % _SERIES_LENGTH
    popularity = 1.0 / (1.0 + random.permutation(num_items)) ** _ZIPF_EXPONENT
    cumulative = np.concatenate(([0.0], np.cumsum(popularity)))

    def popular(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """An item from each of the ranges `low:high`, by popularity."""
        left, right = cumulative[low], cumulative[high]
        drawn = left + random.random(len(low)) * (right - left)
        return np.clip(np.searchsorted(cumulative, drawn, side="right") - 1, low, high - 1)

    extra = random.exponential(mean_length - _MIN_LENGTH, num_users)
    lengths = np.minimum(_MIN_LENGTH + np.rint(extra).astype(np.int64), longest)
    taken = np.full((num_users, lengths.max()), -1, dtype=np.int64)
    taste = random.integers(num_categories, size=num_users)
    for step in range(lengths.max()):
        waiting = np.flatnonzero(lengths > step)
        drifts = random.random(len(waiting)) < _DRIFT
        taste[waiting] = (taste[waiting] + drifts) % num_categories
        # Users who drew an item that they already had draw again, including the kind of step.
        while len(waiting):
            last = taken[waiting, step - 1]  # At the first step -1, an item without a sequel.
            choice = random.random(len(waiting))
            sequel = np.where(last < num_items - 1, last + 1, 0)
            has_sequel = (last >= 0) & (part[sequel] > 0)
            by_taste = choice < _SEQUEL + _TASTE
            low = np.where(by_taste, starts[taste[waiting]], 0)
            high = np.where(by_taste, starts[taste[waiting] + 1], num_items)
            drawn = np.where((choice < _SEQUEL) & has_sequel, sequel, popular(low, high))
            fresh = ~(taken[waiting, :step] == drawn[:, None]).any(axis=1)
            taken[waiting[fresh], step] = drawn[fresh]
            waiting = waiting[~fresh]

    begin = _START_SECONDS + random.integers(_SPAN_SECONDS, size=num_users)
    gaps = np.ceil(random.exponential(_GAP_SECONDS, taken.shape))
    times = begin[:, None] + np.cumsum(gaps, axis=1)
    here = np.arange(taken.shape[1]) < lengths[:, None]
    return Sequences(
        items=taken[here].astype(np.int32),
        offsets=offsets_of(lengths),
        user_ids=np.arange(num_users).astype(str),
        item_ids=np.arange(num_items).astype(str),
        times=times[here],
        item_fields=_texts(categories, place // _SERIES_LENGTH, part),
    )


def _texts(categories: np.ndarray, series: np.ndarray, part: np.ndarray) -> dict[str, np.ndarray]:
    names = [_name(_NOUNS, category) for category in categories.tolist()]
    titles = [
        f"{_name(_ADJECTIVES, number)} {name}, part {part + 1}"
        for name, number, part in zip(names, series.tolist(), part.tolist(), strict=True)
    ]
    return {
        "title": np.array(titles, dtype=object),
        "categories": np.array(names, dtype=object),
    }


def _name(words: list[str], number: int) -> str:
    """A word for a number; beyond the words, the number of the round is added."""
    again, place = divmod(number, len(words))
    return f"{words[place]} {again + 1}" if again else words[place]
