"""Splits into training, validation and test targets; a history is everything that the user did before."""

import dataclasses

import numpy as np

from gr.data.sequences import DataError, Sequences, Splits, Targets


def leave_one_out(sequences: Sequences) -> Splits:
    """Each user's last interaction is for testing, the one before for validation, the rest for training.

    The targets of training are a user's 2nd to (n-2)th interactions. A user of two interactions
    gives only a test target, a user of one gives none: a target needs a history.
    """
    users, place, left = _places(sequences)
    has_history = place > 0
    return Splits(
        sequences=sequences,
        train=_targets(users, has_history & (left >= 2)),
        validation=_targets(users, has_history & (left == 1)),
        test=_targets(users, has_history & (left == 0)),
    )


def by_time(sequences: Sequences, validation_from: float, test_from: float) -> Splits:
    """Trains on interactions before `validation_from`, tests on those from `test_from` on.

    The interactions between are for validation. A user's first interaction has no history, so it is no target, but it
    is part of later histories. A test target's history holds all earlier interactions of its user, including those of
    validation.

    Raises:
        DataError: no times, cuts in the wrong order, or nothing to train or to test on.
    """
    times = sequences.times
    if times is None:
        raise DataError("a split by time needs times, and the data has none; use leave_one_out")
    if not len(times):
        raise DataError("there are no interactions to split")
    if not validation_from <= test_from:
        raise DataError(
            f"validation_from={validation_from} is after test_from={test_from}; swap them"
        )
    users, place, _ = _places(sequences)
    has_history = place > 0
    splits = Splits(
        sequences=sequences,
        train=_targets(users, has_history & (times < validation_from)),
        validation=_targets(users, has_history & (times >= validation_from) & (times < test_from)),
        test=_targets(users, has_history & (times >= test_from)),
    )
    if not len(splits.train) or not len(splits.test):
        raise DataError(
            f"cut at {validation_from} and {test_from}, {len(splits.train)} targets are left for "
            f"training and {len(splits.test)} for test; times run from {times.min()} to "
            f"{times.max()}: see time_quantiles"
        )
    return splits


def cold_start(sequences: Sequences, share: float, *, by: str = "seed", seed: int = 0) -> Splits:
    """`leave_one_out`, with a share of the items kept out of training: a test of items that nobody trained on.

    Interactions with these cold items are removed from the sequences, except for each user's last two, which are the
    targets of test and validation. So they are never part of a training example, nor of anything that is learnt from
    `training_interactions`; a cold validation target is in its user's history at test time, as any new item would be.
    `Splits.cold` says which items are cold.

    Args:
        sequences: the data.
        share: share of the items that occur in the data, above 0 and below 1; rounded to at least one item.
        by: "seed": cold items are drawn at random; "time": they are those whose first interaction is the latest.
        seed: of the draw.

    Raises:
        DataError: a share that leaves no item for training or none for the test, no times, or an unknown rule.
    """
    present = np.unique(sequences.items)
    count = max(1, round(share * len(present)))
    if not 0 < share < 1 or count >= len(present):
        raise DataError(
            f"cold_share={share} of {len(present)} items: use a share above 0 that leaves items to train on"
        )
    if by == "seed":
        chosen = np.random.default_rng(seed).permutation(present)[:count]
    elif by == "time":
        if sequences.times is None:
            raise DataError("cold_by='time' needs times, and the data has none; use cold_by='seed'")
        first = np.full(sequences.num_items, np.inf)
        np.minimum.at(first, sequences.items, sequences.times)
        chosen = present[np.argsort(-first[present], kind="stable")[:count]]
    else:
        raise DataError(f"cold_by={by!r} is unknown: use seed or time")
    cold = np.zeros(sequences.num_items, bool)
    cold[chosen] = True
    users, _, left = _places(sequences)
    kept = ~cold[sequences.items] | (left < 2)
    lengths = np.bincount(users[kept], minlength=sequences.num_users)
    warm = dataclasses.replace(
        sequences,
        items=sequences.items[kept],
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        times=None if sequences.times is None else sequences.times[kept],
    )
    splits = dataclasses.replace(leave_one_out(warm), cold=cold)
    if not len(splits.train) or not cold[warm.items[splits.test.positions]].any():
        raise DataError(
            f"cold_share={share} leaves {len(splits.train)} training targets, and "
            f"{cold[warm.items[splits.test.positions]].sum()} test targets are cold items; use another share or seed"
        )
    return splits


def with_test_targets(sequences: Sequences, users: np.ndarray, items: np.ndarray) -> Splits:
    """A split whose test targets are given, such as those of another program's split.

    A target that its user took is the user's last interaction with it; what followed is not used. A target that the
    user did not take comes after all that they did: then there are no times. Of what came before a user's first target
    the last interaction is for validation, the rest for training, and so is all of a user without a target.

    Args:
        sequences: the data.
        users: the user row of each target, `[n]`; a user may have several.
        items: the item row of each, `[n]`.
    """
    base = np.int64(max(sequences.num_items, 1))  # User and item as one number.
    owners, _, _ = _places(sequences)
    wanted, first = np.unique(users * base + items, return_index=True)
    new = np.sort(first[~np.isin(wanted, owners * base + sequences.items)])  # As they were given.
    if len(new):
        owners = np.concatenate([owners, users[new]])
        order = np.argsort(owners, kind="stable")
        lengths = np.bincount(owners, minlength=sequences.num_users)
        sequences = dataclasses.replace(
            sequences,
            items=np.concatenate([sequences.items, items[new]])[order].astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            times=None,
        )
    owners, place, _ = _places(sequences)
    keys = owners * base + sequences.items
    order = np.argsort(keys, kind="stable")
    test = np.zeros(len(keys), bool)
    test[order[np.searchsorted(keys[order], wanted, side="right") - 1]] = True
    stop = sequences.lengths.copy()  # The place of each user's first target, if there is one.
    np.minimum.at(stop, owners[test], place[test])
    tested = np.isin(owners, owners[test])
    validation = tested & (place == stop[owners] - 1)
    return Splits(
        sequences=sequences,
        train=_targets(owners, (place > 0) & (place < stop[owners]) & ~validation),
        validation=_targets(owners, (place > 0) & validation),
        test=_targets(owners, test),
    )


def time_quantiles(sequences: Sequences, *fractions: float) -> tuple[float, ...]:
    """The times before which the given fractions of all interactions lie, as cuts for `by_time`.

    Raises:
        DataError: no times, or a fraction outside [0, 1].
    """
    if sequences.times is None:
        raise DataError("time_quantiles needs times, and the data has none; use leave_one_out")
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise DataError(f"fractions lie between 0 and 1, not {fractions}")
    return tuple(np.quantile(sequences.times, fractions, method="higher").tolist())


def _places(sequences: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every interaction, `[E]` each: user row, place in the sequence, and how many follow."""
    lengths = sequences.lengths
    users = np.repeat(np.arange(sequences.num_users, dtype=np.int32), lengths)
    place = np.arange(len(sequences.items)) - np.repeat(sequences.offsets[:-1], lengths)
    return users, place, np.repeat(lengths, lengths) - place - 1


def _targets(users: np.ndarray, chosen: np.ndarray) -> Targets:
    positions = np.flatnonzero(chosen)
    return Targets(users=users[positions], positions=positions)


def learn_from(splits: Splits, what: str) -> Splits:
    """The splits with held-out targets moved to training, as for a model that is used once all is chosen.

    Args:
        splits: as for choosing: with validation and test targets.
        what: "train" (nothing is moved), "validation" (its targets are trained on too; the test stays), or "all".

    Raises:
        DataError: for another word, or items that training must not see.
    """
    if what == "train":
        return splits
    if what not in ("validation", "all"):
        raise DataError(f"learn_from={what!r} is unknown: use train, validation or all")
    if splits.cold is not None:
        raise DataError(
            f"learn_from={what!r}: a cold-start split keeps its items out of training; use another split"
        )
    moved = [splits.train, splits.validation, *([splits.test] if what == "all" else [])]
    users = np.concatenate([targets.users for targets in moved])
    positions = np.concatenate([targets.positions for targets in moved])
    order = np.argsort(positions, kind="stable")  # As every split has them.
    nothing = Targets(users=users[:0], positions=positions[:0])
    return dataclasses.replace(
        splits,
        train=Targets(users=users[order], positions=positions[order]),
        validation=nothing,
        test=nothing if what == "all" else splits.test,
    )


def training_interactions(splits: Splits) -> np.ndarray:
    """Which interactions may be learnt from, bool `[E]`: each user's up to their last training target.

    Validation and test targets are never among them, and a user without a training target has none.
    """
    sequences = splits.sequences
    last = np.full(sequences.num_users, -1, dtype=np.int64)
    np.maximum.at(last, splits.train.users, splits.train.positions)
    mask = np.arange(len(sequences.items)) <= np.repeat(last, sequences.lengths)
    mask[splits.validation.positions] = False
    mask[splits.test.positions] = False
    return mask
