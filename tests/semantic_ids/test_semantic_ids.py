"""The item-SID table: tokens, look-ups, bad input, files."""

import collections
import os

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from gr.semantic_ids import NO_CODE, PAD_TOKEN, SemanticIdError, SemanticIds
from gr.semantic_ids import semantic_ids as module

# Items x and z share the SID (1, 0).
SMALL = SemanticIds([[1, 0], [0, 2], [1, 0]], (2, 3), ["x", "y", "z"])


@st.composite
def random_ids(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    num_items = draw(st.integers(1, 30))
    columns = [draw(hnp.arrays(np.int64, num_items, elements=st.integers(0, k - 1))) for k in sizes]
    return SemanticIds(np.stack(columns, 1), tuple(sizes), [f"i{i}" for i in range(num_items)])


def test_tokens_by_hand():
    # Level 0 has tokens 2, 3; level 1 has 4, 5, 6.
    np.testing.assert_array_equal(SMALL.tokens, [[3, 4], [2, 6], [3, 4]])
    assert SMALL.tokens.dtype == SMALL.codes.dtype == np.int32
    assert SMALL.vocab_size == 7
    np.testing.assert_array_equal(SMALL.level_offsets, [2, 4])
    assert (SMALL.num_items, SMALL.num_levels) == (3, 2)


def test_encode_turns_padding_into_padding():
    tokens = SMALL.encode([[1, -1], [2, 0]])
    np.testing.assert_array_equal(tokens, [[[2, 6], [0, 0]], [[3, 4], [3, 4]]])
    assert SMALL.encode(np.zeros((0, 5), np.int32)).shape == (0, 5, 2)
    assert SMALL.encode(1).tolist() == [2, 6]


@pytest.mark.parametrize("row", [-2, 3])
def test_encode_rejects_unknown_rows(row):
    with pytest.raises(SemanticIdError, match=f"item row {row} is not in 0..2"):
        SMALL.encode([0, row])


def test_codes_of_tokens_inverts_tokens():
    np.testing.assert_array_equal(SMALL.codes_of_tokens(SMALL.tokens), SMALL.codes)
    assert SMALL.codes_of_tokens([PAD_TOKEN, PAD_TOKEN]).tolist() == [NO_CODE, NO_CODE]
    with pytest.raises(SemanticIdError, match=r"token 4 at level 0 is outside 2\.\.3"):
        SMALL.codes_of_tokens([[3, 4], [4, 4]])
    with pytest.raises(SemanticIdError, match="token 1 at level 0"):
        SMALL.codes_of_tokens([1, 4])
    with pytest.raises(SemanticIdError, match="must be"):
        SMALL.codes_of_tokens([1, 4, 2])


def test_items_of_and_collisions_by_hand():
    assert SMALL.items_of([1, 0]).tolist() == [0, 2]
    assert SMALL.items_of([0, 2]).tolist() == [1]
    assert SMALL.items_of([0, 0]).tolist() == []
    assert SMALL.items_of([-1, 7]).tolist() == []
    np.testing.assert_array_equal(
        SMALL.items_of_many([[[1, 0], [0, 1]], [[0, 2], [9, 9]]]),
        [[[0, 2], [-1, -1]], [[1, -1], [-1, -1]]],
    )
    assert SMALL.collisions() == {
        "items": 3,
        "distinct_sids": 2,
        "colliding_items": 2,
        "largest_group": 2,
    }
    with pytest.raises(SemanticIdError, match=r"codes must be \[2\]"):
        SMALL.items_of([1, 0, 0])


def test_codes_that_need_more_than_one_byte_or_end_in_zero():
    codes = [[0, 256], [1, 0], [256, 0], [255, 255], [0, 0], [70_000, 0]]
    ids = SemanticIds(codes, (70_001, 257), list("abcdef"))
    for row, code in enumerate(codes):
        assert ids.items_of(code).tolist() == [row]
    assert ids.items_of([0, 1]).tolist() == []


@hypothesis.given(random_ids())
@hypothesis.settings(max_examples=60, deadline=None)
def test_items_of_is_the_inverse_of_encode(ids):
    groups = collections.defaultdict(list)
    for row, code in enumerate(ids.codes.tolist()):
        groups[tuple(code)].append(row)
    assert ids.num_distinct == len(groups)
    assert ids.largest_group == max(map(len, groups.values()))
    assert ids.colliding_items == sum(len(g) for g in groups.values() if len(g) > 1)
    everything = np.array(list(np.ndindex(*ids.codebook_sizes)))
    table = ids.items_of_many(everything)
    for code, rows in zip(everything.tolist(), table.tolist(), strict=True):
        expected = groups.get(tuple(code), [])
        assert ids.items_of(code).tolist() == expected
        assert rows == expected + [-1] * (ids.largest_group - len(expected))
    tokens = ids.encode(np.arange(ids.num_items))
    np.testing.assert_array_equal(ids.codes_of_tokens(tokens), ids.codes)
    assert tokens.min() >= 2 and tokens.max() < ids.vocab_size
    # No token means two things.
    levels = [set(column) for column in tokens.T.tolist()]
    assert len(set().union(*levels)) == sum(map(len, levels))


@pytest.mark.parametrize(
    ("codes", "sizes", "item_ids", "message"),
    [
        ([[0, 3]], (2, 3), ["x"], r"item x: code 3 at level 1 is outside 0\.\.2"),
        ([[-1, 0]], (2, 3), ["x"], r"item x: code -1 at level 0 is outside 0\.\.1"),
        ([[0, 0]], (2,), ["x"], "2 levels"),
        ([[0, 0]], (2, 0), ["x"], "positive"),
        ([[0, 0]], (2, 2), ["x", "y"], "1 rows of codes"),
        ([[0], [1]], (2,), ["x", "x"], "item id x has more than one row"),
        ([[0.0]], (2,), ["x"], "integer"),
        ([0, 1], (2,), ["x", "y"], "integer array"),
        (np.zeros((0, 2), int), (2, 2), [], "non-empty"),
        ([[0, 0]], (2**30, 2**30), ["x"], "int32"),
    ],
)
def test_bad_tables_are_refused(codes, sizes, item_ids, message):
    with pytest.raises(SemanticIdError, match=message):
        SemanticIds(codes, sizes, item_ids)


def test_select_reorders_and_names_the_missing():
    chosen = SMALL.select(["z", "y"])
    assert chosen.item_ids.tolist() == ["z", "y"]
    assert chosen.codes.tolist() == [[1, 0], [0, 2]]
    with pytest.raises(SemanticIdError, match="no Semantic ID for item w .1 of 2"):
        SMALL.select(["x", "w"])


def test_save_and_load(tmp_path):
    path = tmp_path / "new" / "ids.npz"
    SMALL.save(path)
    loaded = SemanticIds.load(path)
    np.testing.assert_array_equal(loaded.codes, SMALL.codes)
    assert loaded.codebook_sizes == SMALL.codebook_sizes
    assert loaded.item_ids.tolist() == ["x", "y", "z"]
    assert os.listdir(path.parent) == ["ids.npz"]


def test_save_and_load_in_an_object_store(bucket):
    SMALL.save("gs://bucket/run/ids.npz")
    assert list(bucket()) == ["run/ids.npz"]
    loaded = SemanticIds.load("gs://bucket/run/ids.npz")
    np.testing.assert_array_equal(loaded.codes, SMALL.codes)
    with pytest.raises(SemanticIdError, match="^gs://bucket/none.npz: no such file"):
        SemanticIds.load("gs://bucket/none.npz")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "ids.npz"
    SMALL.save(path)

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(module.np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        SemanticIds([[0]], (1,), ["a"]).save(path)
    assert os.listdir(tmp_path) == ["ids.npz"]
    assert SemanticIds.load(path).num_items == 3


def test_load_refuses_what_it_cannot_read(tmp_path, monkeypatch):
    path = tmp_path / "ids.npz"
    with pytest.raises(SemanticIdError, match=r"ids\.npz: no such file"):
        SemanticIds.load(path)
    SMALL.save(path)
    whole = path.read_bytes()
    for broken in (b"", b"text", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(broken)
        with pytest.raises(SemanticIdError, match=r"ids\.npz: not a file of Semantic IDs"):
            SemanticIds.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(SemanticIdError, match="not a file of Semantic IDs"):
        SemanticIds.load(path)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(SemanticIdError, match="not a file of Semantic IDs"):
        SemanticIds.load(path)
    np.savez(path, format_version=1, codes=[[5]], codebook_sizes=[2], item_ids=["x"])
    with pytest.raises(SemanticIdError, match=r"ids\.npz: item x: code 5"):
        SemanticIds.load(path)
    monkeypatch.setattr(module, "FORMAT_VERSION", 2)
    SMALL.save(path)
    monkeypatch.undo()
    with pytest.raises(SemanticIdError, match="version 2 is newer than 1"):
        SemanticIds.load(path)
