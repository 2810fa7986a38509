"""Semantic IDs that others made."""

import json
import os
import pathlib

import numpy as np
import pytest

from gr.semantic_ids import (
    SemanticIdError,
    read_codes_csv,
    read_codes_npy,
    read_index_json,
    read_semantic_ids,
)

INDEX = {"10": ["<a_3>", "<b_0>"], "2": ["<a_0>", "<b_4>"], "1": ["<a_3>", "<b_0>"]}


@pytest.fixture
def write(tmp_path):
    def write(content, name="x.index.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_index_json_in_numeric_order_with_inferred_sizes(write):
    ids = read_index_json(write(INDEX))
    assert ids.item_ids.tolist() == ["1", "2", "10"]
    assert ids.codes.tolist() == [[3, 0], [0, 4], [3, 0]]
    assert ids.codebook_sizes == (4, 8)  # 3 + 1 is a power of two, 4 + 1 goes up to 8.
    assert ids.items_of([3, 0]).tolist() == [0, 2]  # Shared SIDs are kept.


def test_index_json_in_the_order_of_the_items(write):
    ids = read_index_json(write(INDEX), item_ids=["2", "10"], codebook_sizes=(256, 256))
    assert ids.item_ids.tolist() == ["2", "10"]
    assert ids.codes.tolist() == [[0, 4], [3, 0]]
    assert ids.vocab_size == 2 + 512


def test_index_json_with_names_for_keys_keeps_the_order_of_the_file(write):
    ids = read_index_json(write({"b": ["<a_0>"], "a": ["<a_1>"], "3": ["<a_0>"]}))
    assert ids.item_ids.tolist() == ["b", "a", "3"]
    assert ids.codebook_sizes == (2,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0": ["<a_1>", "<b_2>"], "1": ["<a_1>"]}, "item 1 has 1 tokens where the first .* 2"),
        ({"0": ["<a_1>", "<c_2>"]}, r"item 0: token '<c_2>' at level 1 should be like '<b_12>'"),
        ({"0": ["<b_1>"]}, "item 0: token '<b_1>' at level 0"),
        ({"0": ["a_1"]}, "item 0: token 'a_1' at level 0"),
        ({"0": ["<a_-1>"]}, "item 0: token '<a_-1>'"),
        ({"0": ["<a_1> "]}, "item 0: token '<a_1> '"),
        ({"0": ["<a_99999999999>"]}, "item 0: token"),
        ({"0": [7]}, "item 0: token 7"),
        ({"0": []}, "item 0: expected a list"),
        ({"0": "<a_1>"}, "item 0: expected a list"),
        ({"0": ["<a_1>"], "1": None}, "item 1: expected a list"),
        ({}, "expected a non-empty object"),
        ([["<a_1>"]], "expected a non-empty object"),
        ('{"0": ["<a_1>"], "0": ["<a_2>"]}', "item 0 stands there twice"),
        ('{"0": ["<a_1>"', "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[" + "9" * 5000 + "]", "not a JSON file"),
    ],
)
def test_bad_index_json(write, content, message):
    with pytest.raises(SemanticIdError, match=rf"x\.index\.json: {message}"):
        read_index_json(write(content))


def test_missing_items_and_too_small_codebooks(write):
    path = write(INDEX)
    with pytest.raises(SemanticIdError, match=r"x\.index\.json: no Semantic ID for item 3"):
        read_index_json(path, item_ids=["1", "3"])
    with pytest.raises(SemanticIdError, match=r"x\.index\.json: item 2: code 4 at level 1"):
        read_index_json(path, codebook_sizes=(4, 4))
    with pytest.raises(SemanticIdError, match=r"none\.json does not exist"):
        read_index_json(path.parent / "none.json")


def test_csv(write):
    path = write("item_id,code_1,code_2\nb,1,0\na,0,2\n", "ids.csv")
    assert read_codes_csv(path).item_ids.tolist() == ["b", "a"]
    ids = read_codes_csv(path, item_ids=["a", "b"])
    assert ids.codes.tolist() == [[0, 2], [1, 0]]
    assert ids.codebook_sizes == (2, 4)
    with pytest.raises(SemanticIdError, match=r"ids\.csv: line 3: expected an item id and 2"):
        read_codes_csv(write("item_id,c,d\na,1,0\nb,1\n", "ids.csv"))
    with pytest.raises(SemanticIdError, match=r"ids\.csv: line 2"):
        read_codes_csv(write("item_id,c\na,1.5\n", "ids.csv"))
    with pytest.raises(SemanticIdError, match=r"ids\.csv: no items"):
        read_codes_csv(write("item_id,c\n", "ids.csv"))


@pytest.mark.parametrize("item_ids", [None, ["b", "a"]])
@pytest.mark.parametrize(
    ("content", "ids", "codes"),
    [
        ("a,5,7\nb,1,0\n", ["a", "b"], [[5, 7], [1, 0]]),
        ("a,0,1\nb,1,0\n", ["a", "b"], [[0, 1], [1, 0]]),  # As columns are numbered, too.
        ("a,0\r\nb,0\r\n", ["a", "b"], [[0], [0]]),
        ("a, 0, 1\n\nb, 1, 0\n\n", ["a", "b"], [[0, 1], [1, 0]]),
        ("a,0,1\rb,1,0", ["a", "b"], [[0, 1], [1, 0]]),
        ("item_id,0,1\na,5,7\nb,5,7\n", ["a", "b"], [[5, 7], [5, 7]]),  # As pandas writes them.
        (",0,1\na,5,7\nb,5,7\n", ["a", "b"], [[5, 7], [5, 7]]),
        ("\ufeffwhat,c\na,5\nb,5\n", ["a", "b"], [[5], [5]]),
    ],
)
def test_csv_without_a_header_keeps_its_first_item(write, content, ids, codes, item_ids):
    read = read_codes_csv(write(content, "ids.csv"), item_ids=item_ids)
    order = [ids.index(item) for item in item_ids or ids]
    assert read.item_ids.tolist() == (item_ids or ids)
    assert read.codes.tolist() == [codes[row] for row in order]


def test_a_first_line_that_may_be_both_is_refused(write):
    path = write("what,0,1\nB00X,3,4\nB00Y,3,4\n", "ids.csv")
    with pytest.raises(SemanticIdError, match=r"ids\.csv: line 1, .* may be a header or an item"):
        read_codes_csv(path)
    assert read_codes_csv(path, header=True).item_ids.tolist() == ["B00X", "B00Y"]
    assert read_codes_csv(path, header=False).item_ids.tolist() == ["what", "B00X", "B00Y"]
    assert read_codes_csv(path, ["B00X", "what"]).codes.tolist() == [[3, 4], [0, 1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"item,c0\ncaf\xe9,5\n", "line 2: not UTF-8 text"),
        (b"caf\xe9,5\na,3\n", "line 1: not UTF-8 text"),
        (b"a,1.5\nb,2\n", r"line 1: expected an item id and 1 codes"),
        (b"a,x,2\nb,2,3\n", r"line 1: expected an item id and 2 codes"),
        (b"a,-1\nb,2\n", "line 1: expected"),
        (b"item,c\n,5\n", "line 2: expected"),
        (b"item,c\na,5\nb,5,6\n", "line 3: expected"),
        (b"item,c\na,5\na,6\n", "item id a has more than one row"),
        (b"a;5;6\nb;1;2\n", "line 1: expected .* separated by ','"),
        (b"item,c\na,9999999999\n", "line 2: expected"),
        (b"item,c\n" + b"x" * 200_000 + b",5\n", "line 2: field larger than field limit"),
    ],
)
def test_faults_of_csv_name_file_and_line(write, tmp_path, content, message):
    path = tmp_path / "ids.csv"
    path.write_bytes(content)
    with pytest.raises(SemanticIdError, match=rf"ids\.csv: {message}"):
        read_codes_csv(path)


def test_tsv(write):
    path = write("a\t1\t0\nb\t0\t2\n", "ids.TSV")
    assert read_semantic_ids(path, ["b"]).codes.tolist() == [[0, 2]]


def test_npy(tmp_path):
    path = tmp_path / "codes.npy"
    np.save(path, np.array([[1, 0], [0, 2]]))
    read = read_codes_npy(path, ["a", "b"], order="items")
    assert read.codes.tolist() == [[1, 0], [0, 2]]
    with pytest.raises(SemanticIdError, match=r"codes\.npy: nobody said which items its 2 rows"):
        read_codes_npy(path, ["a", "b"])
    with pytest.raises(SemanticIdError, match=r"codes\.npy: 2 rows of codes where .* 1 items"):
        read_codes_npy(path, ["a"], order="items")
    np.save(path, np.array(3))
    with pytest.raises(SemanticIdError, match=r"codes\.npy: codes must be"):
        read_codes_npy(path)
    np.save(path, np.array([[0.5]]))
    with pytest.raises(SemanticIdError, match=r"codes\.npy: codes must be"):
        read_codes_npy(path, ["a"], order="items")
    path.write_bytes(b"")
    with pytest.raises(SemanticIdError, match=r"codes\.npy: cannot be read"):
        read_codes_npy(path, ["a"])


def test_the_ending_chooses_the_reader(write, tmp_path):
    wanted = ["2", "1"]
    expected = read_index_json(write(INDEX), wanted)
    read_index_json(write(INDEX)).save(tmp_path / "ids.npz")
    np.save(tmp_path / "ids.npy", expected.codes)
    write("item_id,a,b\n1,3,0\n2,0,4\n", "ids.csv")
    np.savez(tmp_path / "plain.npz", codes=expected.codes[::-1], item_ids=np.array([1, 2]))
    for name in ("x.index.json", "ids.npz", "plain.npz", "ids.npy", "ids.csv"):
        order = "items" if name == "ids.npy" else ""
        ids = read_semantic_ids(tmp_path / name, wanted, order=order)
        np.testing.assert_array_equal(ids.codes, expected.codes)
        assert ids.item_ids.tolist() == wanted
        everything = read_semantic_ids(tmp_path / name)
        of_file = {"ids.npy": ["0", "1"], "ids.csv": ["1", "2"], "plain.npz": ["1", "2"]}
        of_file = of_file.get(name, ["1", "2", "10"])
        assert everything.item_ids.tolist() == of_file
    with pytest.raises(SemanticIdError, match="unknown ending"):
        read_semantic_ids(tmp_path / "ids.txt", wanted)


@pytest.mark.skipif("GR_DATA" not in os.environ, reason="GR_DATA (real data) is not set")
@pytest.mark.parametrize(
    ("name", "num_items", "num_distinct"),
    [
        ("amazon-office/Office.index.rq-kmeans.json", 2420, 2415),
        ("amazon-beauty/Beauty.index.rq-kmeans.json", 12101, 12089),
    ],
)
def test_published_indexes(name, num_items, num_distinct):
    path = pathlib.Path(os.environ["GR_DATA"]) / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    ids = read_index_json(path)
    assert (ids.num_items, ids.num_distinct) == (num_items, num_distinct)
    assert ids.codebook_sizes == (256,) * 4
    assert ids.item_ids.tolist() == [str(i) for i in range(num_items)]
    table = ids.items_of_many(ids.codes)
    assert (table == np.arange(num_items)[:, None]).any(axis=1).all()  # No item is lost.
