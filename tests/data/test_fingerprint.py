"""The fingerprint of data: what changes it, and what does not."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr.data import Sequences, fingerprint, fingerprint_differences, leave_one_out

LOG = Sequences(
    items=np.array([0, 1, 2, 1, 0, 2, 2], np.int32),
    offsets=np.array([0, 4, 7]),
    user_ids=np.array(["ann", "bob"]),
    item_ids=np.array(["a", "b", "ü"]),
    times=np.arange(7.0),
    item_fields={"title": np.array(["A", "B", ""])},
)
COUNTS = {
    **{"users": 2, "items": 3, "interactions": 7},
    **{"train targets": 1, "validation targets": 2, "test targets": 2},
}


def changed(**fields):
    return fingerprint(leave_one_out(dataclasses.replace(LOG, **fields)))


def test_it_counts_and_is_the_same_on_every_machine():
    found = changed()
    assert {name: found[name] for name in COUNTS} == COUNTS
    assert found["checksums"] == {
        "item_ids": "60e464bc153e1e0dc1d6dd33f6b998e4",
        "user_ids": "5bb3ed909928959af540d1433e3c55de",
        "sequences": "66501ff0eda8d7c65f5c91f57c67f8a3",
        "splits": "ef897b3b76781f1050aff3080029e33d",
        "times": "871427545e879b803a9fc3de85c4861a",
        "texts": "0f7661794153a6d6edae57c904288f2f",
    }
    sizes, ids = np.array([1, 1, 1], "<i8"), "abü".encode()  # The bytes, written out once.
    told = (3).to_bytes(8, "little") + sizes.tobytes() + (4).to_bytes(8, "little") + ids
    assert found["checksums"]["item_ids"] == hashlib.blake2b(told, digest_size=16).hexdigest()


def test_how_the_arrays_are_stored_makes_no_difference():
    stored = changed(
        items=np.asfortranarray(LOG.items).astype(">i8"),
        offsets=LOG.offsets.astype(np.int32),
        user_ids=LOG.user_ids.astype("U40"),
        item_ids=LOG.item_ids.astype(object),
        times=LOG.times.astype(">f8"),
    )
    assert fingerprint_differences(changed(), stored) == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"items": LOG.items[[1, 0, 2, 3, 4, 5, 6]]}, "what users took"),
        ({"item_ids": LOG.item_ids[::-1]}, "item ids (or their order)"),
        ({"item_ids": np.array(["a", "bü", ""])}, "item ids (or their order)"),
        ({"user_ids": np.array(["bob", "ann"])}, "user ids (or their order)"),
        ({"offsets": np.array([0, 3, 7])}, "which interactions are targets"),
        ({"times": LOG.times + 1}, "the times"),
        ({"times": None}, "the times"),
        ({"item_fields": {"title": np.array(["A", "B", "C"])}}, "text fields"),
        ({"item_fields": {"name": LOG.item_fields["title"]}}, "text fields"),
    ],
)
def test_what_differs_is_named(fields, told):
    (line,) = fingerprint_differences(changed(), changed(**fields))
    assert line.startswith("the counts agree, but not ") and told in line


def test_counts_are_named_first_and_what_does_not_matter_is_left_out():
    more = changed(item_ids=np.array(["a", "b", "c", "d"]), times=None)
    assert fingerprint_differences(changed(), more) == ["items were 3 and are 4"]
    later = changed(times=LOG.times + 1)
    assert fingerprint_differences(changed(), later, ignore=("times",)) == []


@given(st.permutations(range(7)))
def test_no_two_orders_are_taken_for_one(order):
    items = LOG.items[list(order)]
    differ = fingerprint_differences(changed(), changed(items=items))
    assert bool(differ) == (items.tolist() != LOG.items.tolist())
