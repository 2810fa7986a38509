import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data import NO_ITEM, DataError, Sequences, Targets, leave_one_out
from gr.data.epoch_order import make_epoch_order
from gr.data.pipeline import (
    bucket_lengths,
    evaluation_batches,
    histories,
    train_batches_by_target,
    train_batches_by_user,
)


def make(lengths):
    """Sequences of users of the given lengths; the item at flat position p is 1000 + p."""
    total = sum(lengths)
    return Sequences(
        items=np.arange(1000, 1000 + total, dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        user_ids=np.array([f"u{row}" for row in range(len(lengths))]),
        item_ids=np.arange(1000 + total).astype(str),
    )


def targets_of(pairs):
    """Targets from (user, flat position) pairs."""
    users, positions = zip(*pairs, strict=True) if pairs else ((), ())
    return Targets(users=np.array(users, np.int32), positions=np.array(positions, np.int64))


def all_targets(lengths):
    """Every interaction that has a history, as (user, flat position) pairs."""
    starts = np.concatenate(([0], np.cumsum(lengths)))
    return [
        (user, int(starts[user]) + place)
        for user, length in enumerate(lengths)
        for place in range(1, length)
    ]


@st.composite
def data_sets(draw):
    """Sequences and a non-empty subset, in any order, of the targets they can have."""
    lengths = draw(st.lists(st.integers(0, 15), max_size=8)) + [draw(st.integers(2, 15))]
    possible = all_targets(lengths)
    chosen = draw(st.lists(st.sampled_from(possible), min_size=1, unique=True))
    return make(lengths), targets_of(chosen)


def explicit_buckets(max_history):
    return tuple(sorted({1, (max_history + 1) // 2, max_history}))


def epoch(train, number=0):
    count = train.batches_per_epoch
    return [train.plan[number * count + i] for i in range(count)]


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def check_history(sequences, batch, row, max_history):
    """The history of one row is what its user did before its target, and then padding."""
    user, target = int(batch["users"][row]), int(batch["target"][row])
    before = [item for item in sequences.of(user).tolist() if item < target][-max_history:]
    padding = batch["history"].shape[1] - len(before)
    assert target in sequences.of(user)
    assert before  # Also in filler rows.
    assert batch["history"][row].tolist() == before + [NO_ITEM] * padding


# Buckets


def padded_area(lengths, buckets):
    return sum(min(bucket for bucket in buckets if bucket >= length) for length in lengths)


def test_buckets_by_hand():
    # Of ten 2s, one 3 and five 8s, two buckets cost 11 * 3 + 5 * 8 = 73 or 10 * 2 + 6 * 8 = 68.
    lengths = np.array([2] * 10 + [3] + [8] * 5)
    assert bucket_lengths(lengths, 8, 2) == (2, 8)
    assert bucket_lengths(lengths, 8, 3) == (2, 3, 8)
    assert bucket_lengths(lengths, 8, 9) == (2, 3, 8)  # More would save nothing.
    assert bucket_lengths(lengths, 8, 1) == (8,)
    assert bucket_lengths(lengths, 3, 2) == (2, 3)  # 8 is cut to 3.
    assert bucket_lengths(lengths, 20, 4) == (2, 3, 8, 20)  # Always fits any history up to 20.


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 14), min_size=1, max_size=30),
    st.integers(1, 9),
    st.integers(1, 5),
)
def test_buckets_are_as_good_as_the_best_of_all(lengths, max_length, num_buckets):
    buckets = bucket_lengths(np.array(lengths), max_length, num_buckets)
    cut = [min(length, max_length) for length in lengths]
    best = min(
        padded_area(cut, (*inner, max_length))
        for count in range(num_buckets)
        for inner in itertools.combinations(range(1, max_length), count)
    )
    assert padded_area(cut, buckets) == best
    assert buckets[-1] == max_length
    assert list(buckets) == sorted(set(buckets))
    assert len(buckets) <= num_buckets


# One target per example


@settings(deadline=None, max_examples=50)
@given(data_sets(), st.integers(1, 6), st.integers(1, 9), st.integers(0, 5))
def test_every_target_comes_once_an_epoch_after_its_history(
    data, batch_size, max_history, num_buckets
):
    sequences, targets = data
    train = train_batches_by_target(
        sequences,
        targets,
        batch_size=batch_size,
        max_history=max_history,
        buckets=num_buckets or explicit_buckets(max_history),
        seed=3,
        num_epochs=2,
    )
    assert len(train.plan) == 2 * train.batches_per_epoch
    for number in range(2):
        batches = epoch(train, number)
        counted = []
        for batch in batches:
            assert batch["history"].shape[0] == batch_size
            assert batch["history"].shape[1] in train.plan.buckets
            for row in range(batch_size):
                check_history(sequences, batch, row, max_history)
            counted += batch["target"][batch["weight"] == 1].tolist()
        assert sorted(counted) == sorted((targets.positions + 1000).tolist())
        # Only one batch has filler, and no more than it needs.
        fillers = sum(int((batch["weight"] == 0).sum()) for batch in batches)
        assert fillers == -len(targets) % batch_size
    assert train.targets_per_epoch == len(targets)
    assert train.targets_per_batch == pytest.approx(len(targets) / train.batches_per_epoch)


def test_batch_by_hand():
    # Users a b c d and e f; targets d, from a b c, and f, from e.
    sequences = make([4, 2])
    train = train_batches_by_target(
        sequences,
        targets_of([(0, 3), (1, 5)]),
        batch_size=1,
        max_history=2,
        buckets=(1, 2),
        seed=0,
        num_epochs=1,
    )
    short, long = sorted(epoch(train), key=lambda batch: batch["history"].shape[1])
    assert same(short, {"users": [1], "history": [[1004]], "target": [1005], "weight": [1]})
    assert same(long, {"users": [0], "history": [[1001, 1002]], "target": [1003], "weight": [1]})
    dtypes = {name: array.dtype for name, array in short.items()}
    assert dtypes == {"users": "int32", "history": "int32", "target": "int32", "weight": "float32"}


def test_a_bucket_is_filled_up_with_shorter_histories():
    # Histories of 3 items and, three times, of 1: one batch of each length would need 2 fillers.
    train = train_batches_by_target(
        make([4, 2, 2, 2]),
        targets_of([(0, 3), (1, 5), (2, 7), (3, 9)]),
        batch_size=2,
        max_history=3,
        buckets=(1, 3),
        seed=0,
    )
    shapes = sorted(batch["history"].shape for batch in epoch(train))
    assert shapes == [(2, 1), (2, 3)]
    assert all(batch["weight"].all() for batch in epoch(train))
    partners = {
        user
        for number in range(20)
        for batch in epoch(train, number)
        if batch["history"].shape[1] == 3
        for user in batch["users"].tolist()
    }
    assert partners == {0, 1, 2, 3}  # Not always the same one.


# All positions of a sequence


def windows_by_loop(sequences, targets, max_history, stride):
    """Target item -> the window (tuple of items) in which it counts and its place there."""
    wanted = set((targets.positions + 1000).tolist())
    found = {}
    for user in range(sequences.num_users):
        items = sequences.of(user).tolist()
        counted = set()
        for start in range(0, max(len(items), 1), stride):
            window = items[start : start + max_history + 1]
            new = [item for place, item in enumerate(window) if place and item in wanted - counted]
            counted |= set(new)
            for item in new:
                ending = window[: window.index(new[-1]) + 1]
                found[item] = (tuple(ending), ending.index(item))
    return found


@settings(deadline=None, max_examples=100)
@given(data_sets(), st.integers(1, 7), st.data(), st.integers(0, 4), st.integers(1, 40))
def test_windows_are_what_a_loop_gives(data, max_history, draw, num_buckets, items_per_batch):
    sequences, targets = data
    stride = draw.draw(st.none() | st.integers(1, max_history))
    train = train_batches_by_user(
        sequences,
        targets,
        max_history=max_history,
        buckets=num_buckets or explicit_buckets(max_history),
        items_per_batch=items_per_batch,
        seed=1,
        stride=stride,
        num_epochs=2,
    )
    if stride is None:
        stride = max_history + 1 - max(1, max_history // 2)
    expected = windows_by_loop(sequences, targets, max_history, stride)
    for number in range(2):
        found = {}
        for batch in epoch(train, number):
            rows, width = batch["items"].shape
            assert width - 1 in train.plan.buckets
            assert rows == max(1, items_per_batch // width)
            assert batch["weight"].shape == (rows, width)
            assert not batch["weight"][batch["items"] == NO_ITEM].any()
            for row in range(rows):
                items = batch["items"][row]
                length = int((items != NO_ITEM).sum())
                assert (items[:length] != NO_ITEM).all()  # Padding on the right.
                assert length >= 2  # Also in filler rows.
                assert set(items[:length]) <= set(sequences.of(batch["users"][row]))
                for place in np.flatnonzero(batch["weight"][row]).tolist():
                    assert int(items[place]) not in found
                    found[int(items[place])] = (tuple(items[:length].tolist()), place)
        assert found == expected
    for item, (_, place) in expected.items():
        user = int(np.searchsorted(sequences.offsets, item - 1000, side="right")) - 1
        before = item - 1000 - int(sequences.offsets[user])
        assert min(before, max_history + 1 - stride) <= place <= max_history
    assert train.targets_per_epoch == len(targets)


def test_windows_by_hand():
    # One user of 8 items, max_history 4, so stride 3: the first window counts places 1 to 4, the
    # second starts at place 3 and counts 5 to 7, which have 2 to 4 items before them.
    train = train_batches_by_user(
        make([8]),
        targets_of(all_targets([8])),
        max_history=4,
        buckets=(4,),
        items_per_batch=10,
        seed=0,
        num_epochs=1,
    )
    (batch,) = epoch(train)
    order = np.argsort(batch["items"][:, 0])
    expected = [[1000, 1001, 1002, 1003, 1004], [1003, 1004, 1005, 1006, 1007]]
    assert batch["items"][order].tolist() == expected
    assert batch["weight"][order].tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert train.targets_per_batch == 7
    assert batch["items"].dtype == batch["users"].dtype == np.int32
    assert batch["weight"].dtype == np.float32


def test_by_default_at_least_half_of_the_history_precedes_a_target():
    for max_history in range(1, 9):
        train = train_batches_by_user(
            make([40]),
            targets_of(all_targets([40])),
            max_history=max_history,
            buckets=1,
            items_per_batch=1,
            seed=0,
            num_epochs=1,
        )
        for batch in epoch(train):
            place = int(np.flatnonzero(batch["weight"][0])[0])
            assert place >= max(1, max_history // 2) or batch["items"][0, 0] == 1000


def test_users_without_targets_are_left_out_of_user_batches():
    train = train_batches_by_user(
        make([5, 3, 1, 6]),
        leave_one_out(make([5, 3, 1, 6])).train,
        max_history=8,
        buckets=2,
        items_per_batch=1,
        seed=0,
        num_epochs=1,
    )
    users = sorted(int(batch["users"][0]) for batch in epoch(train))
    assert users == [0, 3]
    # The items held out are in no window.
    seen = {int(i) for batch in epoch(train) for i in batch["items"].ravel() if i != NO_ITEM}
    assert seen == {1000, 1001, 1002, 1009, 1010, 1011, 1012}


# Seeds, resuming, processes

LENGTHS = [3, 9, 2, 14, 7, 5, 11, 2, 6, 30]


def training(kind, **settings_):
    shared = {"max_history": 6, "buckets": 3, "seed": 0, **settings_}
    sequences, targets = make(LENGTHS), targets_of(all_targets(LENGTHS))
    if kind == "target":
        return train_batches_by_target(sequences, targets, **{"batch_size": 4, **shared})
    return train_batches_by_user(sequences, targets, **{"items_per_batch": 28, **shared})


@pytest.mark.parametrize("kind", ["target", "user"])
def test_same_seed_same_batches_else_others(kind):
    first, again, other = training(kind), training(kind), training(kind, seed=1)
    assert all(map(same, epoch(first), epoch(again)))
    assert not all(map(same, epoch(first), epoch(other)))
    assert not all(map(same, epoch(first), epoch(first, 1)))
    assert len(epoch(first, 5)) == len(epoch(other, 9)) == first.batches_per_epoch
    late = epoch(first, 3)
    epoch(first, 7)
    assert all(map(same, late, epoch(first, 3)))  # Whatever was asked for before.


@pytest.mark.parametrize("kind", ["target", "user"])
def test_batches_of_an_epoch_are_shuffled(kind):
    widths = [
        next(v for k, v in batch.items() if k in ("history", "items")).shape[1]
        for number in range(4)
        for batch in epoch(training(kind), number)
    ]
    count = training(kind).batches_per_epoch
    epochs = [tuple(widths[i : i + count]) for i in range(0, len(widths), count)]
    assert len(set(epochs)) > 1
    assert len({tuple(sorted(widths)) for widths in epochs}) == 1  # The same shapes each time.


@pytest.mark.parametrize("kind", ["target", "user"])
def test_an_iterator_resumes_exactly(kind):
    train = training(kind)
    count = train.batches_per_epoch
    iterator = iter(train)
    for _ in range(count + count // 2):  # In the middle of the second epoch.
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    rest = list(itertools.islice(iterator, count))  # Into the third.
    resumed = iter(training(kind))
    next(resumed)
    resumed.set_state(state)
    assert all(map(same, rest, itertools.islice(resumed, count)))
    direct = [train.plan[count + count // 2 + i] for i in range(count)]
    assert all(map(same, rest, direct))


def test_another_process_draws_the_same_batches():
    code = (
        "from gr.data import *; import numpy as np\n"
        "from gr.data.pipeline import train_batches_by_target\n"
        "s = Sequences(items=np.arange(50, dtype=np.int32), offsets=np.arange(0, 51, 10), "
        "user_ids=np.arange(5).astype(str), item_ids=np.arange(50).astype(str))\n"
        "t = train_batches_by_target(s, leave_one_out(s).train, batch_size=4, max_history=5, "
        "buckets=2, seed=7, num_epochs=2)\n"
        "print([b['target'].tolist() for b in t.plan])"
    )
    run = [sys.executable, "-c", code]
    first, second = (subprocess.run(run, capture_output=True, text=True, check=True) for _ in "ab")
    assert first.stdout == second.stdout
    assert len(json.loads(first.stdout)) == 2 * 9  # 5 users of 7 targets, in batches of 4.


@pytest.mark.parametrize("kind", ["target", "user"])
def test_epochs_end(kind):
    train = training(kind, num_epochs=3)
    assert len(list(train)) == 3 * train.batches_per_epoch
    with pytest.raises(IndexError):
        train.plan[3 * train.batches_per_epoch]


@pytest.mark.parametrize("kind", ["target", "user"])
def test_processes_share_each_global_batch(kind):
    whole = training(kind)
    # Not a divisor of all numbers of rows, which are 4 by target and 28 // T by user.
    parts = [training(kind, process_index=i, process_count=3) for i in range(3)]
    assert {part.batches_per_epoch for part in parts} == {whole.batches_per_epoch}
    assert whole.targets_per_batch == parts[0].targets_per_batch
    for batch, *shares in zip(epoch(whole), *map(epoch, parts), strict=True):
        joined = {name: np.concatenate([share[name] for share in shares]) for name in batch}
        rows = len(batch["users"])
        assert same(batch, {name: values[:rows] for name, values in joined.items()})
        assert not joined["weight"][rows:].any()
        assert {len(share["users"]) for share in shares} == {-(-rows // 3)}


def test_rows_by_user_are_a_multiple():
    train = training("user", items_per_batch=40, buckets=(2, 4, 6), rows_multiple_of=3)
    assert train.plan.rows == (12, 6, 3)  # 40 // 3, 40 // 5, 40 // 7, rounded down.
    train = training("user", items_per_batch=4, buckets=(2, 4, 6), rows_multiple_of=3)
    assert train.plan.rows == (3, 3, 3)


@pytest.mark.parametrize("kind", ["target", "user"])
def test_filler_makes_rows_a_multiple_and_changes_nothing_else(kind):
    plain, filled = iter(training(kind)), iter(training(kind).filled(5))
    for _ in range(3):
        batch, longer = next(plain), next(filled)
        rows, more = len(batch["users"]), len(longer["users"])
        assert more % 5 == 0 and 0 <= more - rows < 5
        assert same(batch, {name: values[:rows] for name, values in longer.items()})
        assert not longer["weight"][rows:].any() and set(longer["users"]) == set(batch["users"])
    again = iter(training(kind).filled(5))
    again.set_state(filled.get_state())
    assert same(next(again), next(filled))


# Evaluation


@settings(deadline=None, max_examples=50)
@given(data_sets(), st.integers(1, 6), st.integers(1, 9), st.integers(0, 4))
def test_evaluation_has_every_target_once(data, batch_size, max_history, num_buckets):
    sequences, targets = data
    batches = list(
        evaluation_batches(
            sequences,
            targets,
            batch_size=batch_size,
            max_history=max_history,
            buckets=num_buckets or explicit_buckets(max_history),
        )
    )
    rows = np.concatenate([batch["rows"] for batch in batches])
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert len(rows) == -(-len(targets) // batch_size) * batch_size
    assert rows[: len(targets)].tolist() == rows[rows >= 0].tolist()  # Filler at the very end.
    assert sorted(rows[rows >= 0].tolist()) == list(range(len(targets)))
    assert np.array_equal(weight, rows >= 0)
    whole = (targets.positions - sequences.offsets[targets.users])[rows[rows >= 0]]
    assert np.all(np.diff(whole) <= 0)  # Longest first, also of those that are cut.
    widths = [batch["history"].shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    for batch in batches:
        for row in range(batch_size):
            check_history(sequences, batch, row, max_history)
            if batch["rows"][row] >= 0:
                of = batch["rows"][row]
                assert batch["users"][row] == targets.users[of]
                assert batch["target"][row] == targets.positions[of] + 1000


def test_histories_by_hand():
    sequences, targets = make([5, 2]), targets_of([(0, 3), (1, 6), (0, 0)])
    assert histories(sequences, targets, 9).tolist() == [
        [1000, 1001, 1002],
        [1005, -1, -1],
        [-1, -1, -1],
    ]
    assert histories(sequences, targets, 2, width=3).tolist() == [
        [1001, 1002, -1],
        [1005, -1, -1],
        [-1, -1, -1],
    ]
    assert histories(sequences, targets, 9).dtype == np.int32
    with pytest.raises(DataError, match="width=2 does not hold a history of 3 items"):
        histories(sequences, targets, 9, width=2)


# Errors


@pytest.mark.parametrize("kind", ["target", "user"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_history": 0}, "max_history=0 must be at least 1"),
        ({"num_epochs": 0}, "num_epochs=0 must be at least 1"),
        ({"buckets": 0}, "num_buckets=0 must be at least 1"),
        ({"buckets": ()}, "must be lengths that rise from at least 1 to max_history=6"),
        ({"buckets": (2, 5)}, "must be lengths that rise from at least 1 to max_history=6"),
        ({"buckets": (2, 2, 6)}, "must be lengths that rise from at least 1 to max_history=6"),
        ({"buckets": (0, 6)}, "must be lengths that rise from at least 1 to max_history=6"),
        ({"seed": -1}, "seed=-1 is negative"),
        ({"process_count": 0}, "process_count=0 must be at least 1"),
        ({"process_count": 2, "process_index": 2}, r"process_index=2 must lie in \[0, 2\)"),
    ],
)
def test_bad_settings_are_named(kind, changes, message):
    with pytest.raises(DataError, match=message):
        training(kind, **changes)


def test_bad_settings_of_one_kind_are_named():
    with pytest.raises(DataError, match="batch_size=0 must be at least 1"):
        training("target", batch_size=0)
    with pytest.raises(DataError, match="items_per_batch=0 must be at least 1"):
        training("user", items_per_batch=0)
    for stride in (0, 7):
        with pytest.raises(DataError, match=f"stride={stride} must lie between 1 and max_history"):
            training("user", stride=stride)


def each_maker():
    shared = {"max_history": 4, "buckets": 2}
    return [
        lambda s, t: train_batches_by_target(s, t, batch_size=2, seed=0, **shared),
        lambda s, t: train_batches_by_user(s, t, items_per_batch=9, seed=0, **shared),
        lambda s, t: evaluation_batches(s, t, batch_size=2, **shared),
    ]


@pytest.mark.parametrize("maker", each_maker())
def test_bad_targets_are_named(maker):
    sequences = make([3, 2])
    with pytest.raises(DataError, match="there are no targets"):
        maker(sequences, targets_of([]))
    with pytest.raises(DataError, match="user 'u1': the first interaction is a target"):
        maker(sequences, targets_of([(0, 2), (1, 3)]))
    with pytest.raises(DataError, match="user 'u0': target position 3 is not in"):
        maker(sequences, targets_of([(0, 1), (0, 3)]))
    with pytest.raises(DataError, match="targets name user rows 0 to 2, but there are 2 users"):
        maker(sequences, targets_of([(0, 1), (2, 5)]))


def test_a_target_named_twice_is_refused_by_user():
    with pytest.raises(DataError, match="user 'u0': interaction 2 is a target twice"):
        each_maker()[1](make([3]), targets_of([(0, 2), (0, 1), (0, 2)]))


def test_bad_lengths_are_refused():
    with pytest.raises(DataError, match="no lengths"):
        bucket_lengths(np.array([], np.int64), 5, 2)
    with pytest.raises(DataError, match="below 1"):
        bucket_lengths(np.array([0, 3]), 5, 2)
    with pytest.raises(DataError, match="num_buckets=0"):
        bucket_lengths(np.array([3]), 5, 0)


def orders_of_an_epoch(jitter, places=0.0, backwards=0.0):
    # One user; the last two of the three interactions at time 3 are held out.
    sequences = Sequences(
        items=np.arange(7, dtype=np.int32),
        offsets=np.array([0, 7]),
        user_ids=np.array(["u"]),
        item_ids=np.array([str(item) for item in range(7)]),
        times=np.array([1.0, 1, 1, 2, 3, 3, 3]),
    )
    targets = Targets(users=np.zeros(4, np.int32), positions=np.array([1, 2, 3, 4]))
    shared = {"max_history": 6, "buckets": 1, "seed": 0, "time_jitter": jitter}
    shared |= {"place_jitter": places, "reversed_share": backwards}
    by_user = train_batches_by_user(sequences, targets, items_per_batch=7, **shared)
    by_target = train_batches_by_target(sequences, targets, batch_size=4, **shared)
    orders = {tuple(by_user.plan[epoch]["items"][0, :5].tolist()) for epoch in range(200)}
    longest = set()
    for epoch in range(200):
        batch = by_target.plan[epoch]
        row = int((batch["history"] >= 0).sum(axis=1).argmax())
        longest.add((*batch["history"][row, :4].tolist(), int(batch["target"][row])))
    return orders | longest


def test_jitter_of_zero_seconds_shuffles_ties_and_never_what_is_held_out():
    orders = orders_of_an_epoch(0.0)
    assert orders == {(*first, 3, 4) for first in itertools.permutations(range(3))}


def test_jitter_mixes_neighbours_within_its_seconds():
    orders = orders_of_an_epoch(1.5)
    assert any(order.index(3) < 2 for order in orders)  # Time 2 before some of time 1.
    assert any(order.index(4) < order.index(3) for order in orders)  # Time 3 before time 2.
    assert all(order[4] in (3, 4) for order in orders)  # Time 1 never after both.


def test_without_jitter_the_order_stays():
    assert orders_of_an_epoch(None) == {(0, 1, 2, 3, 4)}


def test_jitter_by_place_mixes_neighbours_within_its_places_whatever_their_times():
    # A delay of less than a place changes nothing; of up to two places, an item passes one that is a place away.
    assert orders_of_an_epoch(None, 0.99) == {(0, 1, 2, 3, 4)}
    orders = orders_of_an_epoch(None, 1.5)
    assert (0, 1, 2, 3, 4) in orders and {(1, 0, 2, 3, 4), (0, 1, 2, 4, 3)} <= orders
    for order in orders:  # Nothing that is held out, and never before what came two places earlier.
        assert sorted(order) == [0, 1, 2, 3, 4]
        assert all(order.index(item) < order.index(item + 2) for item in range(3))
    assert any(order.index(2) < order.index(0) for order in orders_of_an_epoch(None, 2.5))


def test_backwards_an_epoch_reads_what_is_trained_on_and_nothing_that_is_held_out():
    assert orders_of_an_epoch(None, backwards=1.0) == {(4, 3, 2, 1, 0)}
    assert orders_of_an_epoch(None, backwards=0.5) == {(0, 1, 2, 3, 4), (4, 3, 2, 1, 0)}
    ties = {(4, 3, *first) for first in itertools.permutations(range(3))}
    assert orders_of_an_epoch(0.0, backwards=1.0) == ties


def test_other_users_are_read_backwards_in_each_epoch():
    users = 2_000
    sequences = Sequences(
        items=np.arange(3 * users, dtype=np.int32),
        offsets=3 * np.arange(users + 1),
        user_ids=np.arange(users).astype(str),
        item_ids=np.arange(3 * users).astype(str),
    )
    last = Targets(np.arange(users, dtype=np.int32), 3 * np.arange(users) + 2)
    order = make_epoch_order(sequences, last, reversed_share=0.3)
    epochs = [order.draw(np.random.default_rng(seed)).reshape(users, 3) for seed in (0, 1)]
    forwards = np.arange(3 * users).reshape(users, 3)
    for epoch in epochs:
        backwards = epoch[:, 0] > epoch[:, 2]
        np.testing.assert_array_equal(epoch[backwards], forwards[backwards, ::-1])
        np.testing.assert_array_equal(epoch[~backwards], forwards[~backwards])
        assert 0.25 < backwards.mean() < 0.35
    assert (epochs[0] != epochs[1]).any()


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(0.1, 9), st.integers(0, 99))
def test_jitter_by_place_is_a_sort_of_delayed_places(lengths, places, seed):
    sequences = Sequences(
        items=np.arange(sum(lengths), dtype=np.int32),
        offsets=np.cumsum([0, *lengths]),
        user_ids=np.arange(len(lengths)).astype(str),
        item_ids=np.arange(max(1, sum(lengths))).astype(str),
    )
    # The last target of a user with three interactions or more is the third from the end.
    users = [user for user, length in enumerate(lengths) if length >= 3]
    last = sequences.offsets[1:][users] - 3
    targets = Targets(np.array(users, np.int32), last)
    order = make_epoch_order(sequences, targets, place_jitter=places)
    noise = np.random.default_rng(seed).random(sum(lengths))
    expected = []
    for user, length in enumerate(lengths):
        start = int(sequences.offsets[user])
        cut = start + (length - 2 if length >= 3 else 0)
        for part in (range(start, cut), range(cut, start + length)):
            expected += sorted(part, key=lambda place: place + places * noise[place])
    assert order.draw(np.random.default_rng(seed)).tolist() == expected


def test_an_order_needs_times_and_numbers_in_range():
    sequences = Sequences(
        items=np.arange(3, dtype=np.int32),
        offsets=np.array([0, 3]),
        user_ids=np.array(["u"]),
        item_ids=np.array(["a", "b", "c"]),
    )
    targets = Targets(users=np.zeros(1, np.int32), positions=np.array([1]))
    with pytest.raises(DataError, match="needs times"):
        train_batches_by_user(
            sequences,
            targets,
            max_history=2,
            buckets=1,
            items_per_batch=4,
            seed=0,
            time_jitter=0.0,
        )
    for arguments, told in (
        ({"place_jitter": -1.0}, "place_jitter=-1.0 must not be negative"),
        ({"time_jitter": -2.0}, "time_jitter=-2.0 must not be negative"),
        (
            {"time_jitter": 0.0, "place_jitter": 1.0},
            "time_jitter=0.0 and place_jitter=1.0: use one of them",
        ),
        ({"reversed_share": 1.5}, r"reversed_share=1.5 must lie in \[0, 1\]"),
    ):
        with pytest.raises(DataError, match=told):
            make_epoch_order(sequences, targets, **arguments)
    assert make_epoch_order(sequences, targets) is None
