"""The cold-start split: training never sees a cold item, and every held-out one is there to be found."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gr.data import (
    DataError,
    Sequences,
    cold_start,
    train_batches_by_target,
    train_batches_by_user,
    training_interactions,
)
from gr.semantic_ids import interaction_vectors

HISTORIES = st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=9), min_size=2, max_size=12)


def make(histories, times=True):
    lengths = [len(history) for history in histories]
    items = np.array([item for history in histories for item in history], np.int32)
    return Sequences(
        items=items,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_ids=np.arange(len(lengths)).astype(str),
        item_ids=np.arange(12).astype(str),
        times=np.arange(len(items), dtype=float) if times else None,
    )


def split(histories, share=0.3, **options):
    """The split, or None where too little is left."""
    try:
        return cold_start(make(histories), share, **options)
    except DataError as error:
        assert "use another share" in str(error) or "use a share" in str(error)
        return None


@hypothesis.given(HISTORIES, st.sampled_from(["seed", "time"]), st.integers(0, 3))
@hypothesis.settings(max_examples=100, deadline=None)
def test_the_split_is_what_a_loop_gives(histories, by, seed):
    splits = split(histories, by=by, seed=seed)
    if splits is None:
        return
    cold, sequences = set(np.flatnonzero(splits.cold).tolist()), splits.sequences
    present = {item for history in histories for item in history}
    assert len(cold) == max(1, round(0.3 * len(present))) and cold < present
    train, validation, test = [], [], []
    for user, history in enumerate(histories):
        left = [
            item
            for place, item in enumerate(history)
            if item not in cold or place >= len(history) - 2
        ]
        assert sequences.of(user).tolist() == left
        start = int(sequences.offsets[user])
        for place in range(1, len(left)):
            of = (test, validation, train)[min(2, len(left) - 1 - place)]
            of.append((user, start + place))
    for targets, expected in (
        (splits.train, train),
        (splits.validation, validation),
        (splits.test, test),
    ):
        found = zip(targets.users.tolist(), targets.positions.tolist(), strict=True)
        assert list(found) == expected


@hypothesis.given(HISTORIES, st.integers(0, 3))
@hypothesis.settings(max_examples=40, deadline=None)
def test_no_cold_item_is_in_a_training_batch_or_in_co_occurrence(histories, seed):
    splits = split(histories, seed=seed)
    if splits is None:
        return
    sequences, cold = splits.sequences, np.flatnonzero(splits.cold)
    options = {"max_history": 3, "buckets": 1, "seed": 0, "time_jitter": 2.0, "num_epochs": 2}
    by_target = train_batches_by_target(sequences, splits.train, batch_size=4, **options)
    by_user = train_batches_by_user(sequences, splits.train, items_per_batch=8, **options)
    rows = [batch[name] for batch in by_target for name in ("history", "target")]
    rows += [batch["items"] for batch in by_user]
    assert rows and not any(np.isin(items, cold).any() for items in rows)
    learnt = training_interactions(splits)
    assert not splits.cold[sequences.items[learnt]].any()
    try:
        vectors = interaction_vectors(sequences, learnt, 4, 0)
    except ValueError:
        return  # No pair at all.
    assert not vectors[cold].any()


def test_by_time_the_latest_newcomers_are_cold():
    splits = cold_start(make([[0, 1, 2, 3], [1, 0, 4, 5], [0, 2, 1, 5]]), 0.3, by="time")
    assert np.flatnonzero(splits.cold).tolist() == [4, 5]
    assert splits.sequences.of(1).tolist() == [1, 0, 4, 5]


def test_refusals():
    sequences = make([[0, 1, 2, 3], [3, 2, 1, 0]], times=False)
    for share in (0.0, 1.0, 0.95):
        with pytest.raises(DataError, match="cold_share"):
            cold_start(sequences, share)
    with pytest.raises(DataError, match="needs times"):
        cold_start(sequences, 0.3, by="time")
    with pytest.raises(DataError, match="use seed or time"):
        cold_start(sequences, 0.3, by="luck")
