import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data import DataError
from gr.data.interactions import k_core_rows, sequences_from_table


def table(rows, names=("user", "item", "rating", "time")):
    columns = zip(*rows, strict=True)
    return pa.table(dict(zip(names, map(list, columns), strict=False)))


ROWS = [
    # user, item, rating, time
    ("bob", "x", 5.0, 30.0),
    ("ann", "y", 1.0, 10.0),
    ("bob", "y", 4.0, 10.0),
    ("bob", "z", 4.0, 30.0),
    ("ann", "x", 5.0, 20.0),
]


def test_users_and_items_are_numbered_as_first_named_and_sorted_by_time_with_ties_in_file_order():
    sequences = sequences_from_table(table(ROWS), source="log")
    assert sequences.user_ids.tolist() == ["bob", "ann"]
    assert sequences.item_ids.tolist() == ["x", "y", "z"]
    assert sequences.item_ids[sequences.of(0)].tolist() == ["y", "x", "z"]
    assert sequences.item_ids[sequences.of(1)].tolist() == ["y", "x"]
    assert sequences.times.tolist() == [10.0, 30.0, 30.0, 10.0, 20.0]
    assert sequences.offsets.tolist() == [0, 3, 5]
    assert sequences.items.dtype == np.int32
    assert sequences.offsets.dtype == np.int64


def test_without_times_the_order_is_that_of_the_file():
    sequences = sequences_from_table(table(ROWS).select(["user", "item"]), source="log")
    assert sequences.item_ids[sequences.of(0)].tolist() == ["x", "y", "z"]
    assert sequences.times is None


def test_repeated_interactions_are_kept():
    sequences = sequences_from_table(table([ROWS[0]] * 3), source="log")
    assert sequences.items.tolist() == [0, 0, 0]


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=20), st.booleans())
def test_dropping_duplicates_keeps_the_first_of_each(rows, with_times):
    columns = ["user", "item", "time"] if with_times else ["user", "item"]
    log = table([(f"u{u}", f"i{i}", 0.0, 2**60 + t) for u, i, t in rows]).select(columns)
    sequences = sequences_from_table(log, source="log", drop_duplicates=True)
    users = np.repeat(sequences.user_ids, sequences.lengths).tolist()
    found = list(zip(users, sequences.item_ids[sequences.items].tolist(), strict=True))
    kept = list(dict.fromkeys(row if with_times else row[:2] for row in rows))
    if with_times:
        kept.sort(key=lambda row: row[2])
    first = list(dict.fromkeys(row[0] for row in rows))
    kept.sort(key=lambda row: first.index(row[0]))
    assert found == [(f"u{row[0]}", f"i{row[1]}") for row in kept]


def test_an_id_too_long_for_an_array_of_them_is_told():
    log = pa.table({"user": ["u" * 2**21, *map(str, range(2**9))], "item": ["x"] * (2**9 + 1)})
    with pytest.raises(DataError, match="log: an id of 2,097,152 characters, which begins 'uuu"):
        sequences_from_table(log, source="log")


def test_low_ratings_go_before_the_core_is_taken():
    sequences = sequences_from_table(table(ROWS), source="log", k_core=2)
    assert sequences.user_ids.tolist() == ["bob", "ann"]
    assert sequences.item_ids.tolist() == ["x", "y"]
    # Without ann's rating of y she has one left, so she goes, so every item has one left.
    with pytest.raises(DataError, match="log: no interaction is left with min_rating=4, k_core=2"):
        sequences_from_table(table(ROWS), source="log", min_rating=4, k_core=2)


def test_min_rating_needs_ratings():
    with pytest.raises(DataError, match="log: min_rating needs ratings"):
        sequences_from_table(table(ROWS).select(["user", "item"]), source="log", min_rating=4)


def test_item_fields_follow_the_item_rows():
    items = pa.table({"item": ["z", "x", "x"], "title": ["Zed", "Ex", "Again"]})
    sequences = sequences_from_table(table(ROWS), source="log", items_table=items)
    assert sequences.item_fields["title"].tolist() == ["Ex", "", "Zed"]
    assert sequences.titles().tolist() == ["Ex", "y", "Zed"]


EDGES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


@settings(deadline=None)
@given(EDGES, st.integers(1, 5))
def test_the_core_is_what_a_loop_leaves(edges, k):
    rows = set(range(len(edges)))
    while True:  # Take away one weak interaction at a time until there is none.
        weak = [
            row
            for row in sorted(rows)
            if sum(edges[other][0] == edges[row][0] for other in rows) < k
            or sum(edges[other][1] == edges[row][1] for other in rows) < k
        ]
        if not weak:
            break
        rows.remove(weak[0])
    users, items = np.array(edges).T
    assert k_core_rows(users, items, k).tolist() == sorted(rows)


@settings(deadline=None)
@given(EDGES, st.integers(1, 3))
def test_after_the_core_filter_every_user_and_item_has_enough(edges, k):
    log = table([(f"u{u}", f"i{i}") for u, i in edges])
    try:
        sequences = sequences_from_table(log, source="log", k_core=k)
    except DataError:
        assert len(k_core_rows(*np.array(edges).T, k)) == 0
        return
    assert sequences.lengths.min() >= k
    assert np.bincount(sequences.items, minlength=sequences.num_items).min() >= k
    kept = {(u, i) for u in sequences.user_ids for i in sequences.item_ids}
    assert kept  # Ids survive the renumbering:
    for user, user_id in enumerate(sequences.user_ids):
        expected = [
            f"i{i}" for u, i in edges if f"u{u}" == user_id and f"i{i}" in sequences.item_ids
        ]
        assert sequences.item_ids[sequences.of(user)].tolist() == expected
