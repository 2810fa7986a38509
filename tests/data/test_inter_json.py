import json
import os
from pathlib import Path

import pytest

from gr.data import DataError, leave_one_out, read_inter_json


def write(folder, inter, items=None):
    (folder / "Toy.inter.json").write_text(inter if isinstance(inter, str) else json.dumps(inter))
    if items is not None:
        text = items if isinstance(items, str) else json.dumps(items)
        (folder / "Toy.item.json").write_text(text)
    return folder / "Toy.inter.json"


ITEMS = {
    "0": {"title": "AT&amp;T phone", "categories": ["Office", "Phones"]},
    "1": {"title": "Pen", "brand": None},
    "2": {"title": ""},
}


def test_sequences_in_the_order_of_the_file(tmp_path):
    sequences = read_inter_json(write(tmp_path, {"u7": [2, 0, 2], "u3": [], "u5": ["4"]}))
    assert sequences.user_ids.tolist() == ["u7", "u3", "u5"]
    assert sequences.offsets.tolist() == [0, 3, 3, 4]
    assert sequences.items.tolist() == [2, 0, 2, 4]
    assert sequences.item_ids.tolist() == ["0", "1", "2", "3", "4"]
    assert sequences.times is None


def test_item_fields_and_items_that_nobody_took(tmp_path):
    write(tmp_path, {"0": [0, 1]}, ITEMS)
    sequences = read_inter_json(tmp_path)  # The folder will do where it holds one data set.
    assert sequences.num_items == 3
    assert sequences.item_fields["title"].tolist() == ["AT&T phone", "Pen", ""]
    assert sequences.item_fields["categories"].tolist() == ["Office, Phones", "", ""]
    assert sequences.item_fields["brand"].tolist() == ["", "", ""]
    assert sequences.titles().tolist() == ["AT&T phone", "Pen", "2"]


@pytest.mark.parametrize("bad", [3, -1, 1.5, "x", None, True, 10**12])
def test_bad_items_are_named_by_user_or_left_out(tmp_path, bad):
    path = write(tmp_path, {"ann": [0, 1], "bob": [], "cat": [2, bad, 0]}, ITEMS)
    with pytest.raises(
        DataError, match="user 'cat'.*below 3, the number of items in .*skip_bad_rows"
    ):
        read_inter_json(path)
    sequences = read_inter_json(path, skip_bad_rows=True)
    assert sequences.skipped_rows == 1
    assert sequences.of(2).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("inter", "fault"),
    [
        ('{"0": [1,\n 2', r"Toy\.inter\.json:2: not JSON"),
        ("[1]", "a JSON list, not an object"),
        ('{"a": 5}', "user 'a' has int 5, not a list"),
        ('{"a": [0], "b": [0], "a": [1]}', "key 'a' stands twice"),
        ("{}", "no interactions"),
        ('{"a": []}', "no interactions"),
    ],
)
def test_malformed_files(tmp_path, inter, fault):
    with pytest.raises(DataError, match=fault):
        read_inter_json(write(tmp_path, inter))


def test_items_must_be_numbered_without_gaps(tmp_path):
    path = write(tmp_path, {"a": [0]}, {"0": {}, "2": {}})
    with pytest.raises(DataError, match="2 items, but item '1' is missing"):
        read_inter_json(path)


def test_a_folder_must_hold_one_data_set(tmp_path):
    with pytest.raises(DataError, match="holds 0"):
        read_inter_json(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.inter.json").write_text('{"0": [0]}')
    with pytest.raises(DataError, match="holds 2"):
        read_inter_json(tmp_path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": [' + "9" * 5000 + "]}", "not JSON"),
        (b'{"caf\xe9": [1]}', "not UTF-8 text"),
        ('{"a": [2000000000]}', "item number 2000000000 of 1 interactions.*without large gaps"),
    ],
    ids=["depth", "digits", "Latin-1", "gap"],
)
def test_files_that_json_itself_trips_over(tmp_path, content, fault):
    path = tmp_path / "Toy.inter.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=fault):
        read_inter_json(path)


def test_texts_nested_too_deeply_are_named_by_item(tmp_path):
    path = write(tmp_path, {"a": [0]}, '{"0": {"title": ' + "[" * 50 + "]" * 50 + "}}")
    with pytest.raises(DataError, match="item '0': title: lists are nested deeper"):
        read_inter_json(path)


@pytest.mark.parametrize(
    ("fields", "titles"),
    [
        ({"Title": ["A", "B"]}, ["A", "B"]),
        ({"movie_title": ["A", ""]}, ["A", "1"]),
        ({"title": ["A", "  "], "subtitle": ["x", "y"]}, ["A", "1"]),
        ({"book_title": ["A", "B"], "TITLE": ["x", "y"]}, ["0", "1"]),  # Nobody said which.
        ({"name": ["A", "B"]}, ["0", "1"]),
    ],
)
def test_titles_by_the_name_of_their_field(tmp_path, fields, titles):
    items = {str(row): {name: f[row] for name, f in fields.items()} for row in range(2)}
    assert read_inter_json(write(tmp_path, {"a": [0]}, items)).titles().tolist() == titles


def test_a_title_of_any_name(tmp_path):
    items = {"0": {"name": "Pen", "title": ""}, "1": {"name": "<b>Ink</b>", "title": "x"}}
    path = write(tmp_path, {"a": [0, 1]}, items)
    assert read_inter_json(path).titles().tolist() == ["0", "x"]
    assert read_inter_json(path, title="name").titles().tolist() == ["Pen", "Ink"]
    with pytest.raises(DataError, match="no items' field 'names'.*did you mean 'name'"):
        read_inter_json(path, title="names")


@pytest.mark.skipif("GR_DATA" not in os.environ, reason="GR_DATA does not name the real data")
@pytest.mark.parametrize(
    ("folder", "users", "items", "interactions"),
    [("amazon-office", 4905, 2420, 53258), ("amazon-beauty", 22363, 12101, 198502)],
)
def test_real_data(folder, users, items, interactions):
    path = Path(os.environ["GR_DATA"]) / folder
    if not path.exists():
        pytest.skip(f"GR_DATA holds no {folder}")
    sequences = read_inter_json(path)
    assert (sequences.num_users, sequences.num_items) == (users, items)
    assert len(sequences.items) == interactions
    splits = leave_one_out(sequences)
    assert len(splits.test) == len(splits.validation) == users
    # Training targets start at a user's second item.
    assert len(splits.train) == interactions - 3 * users
