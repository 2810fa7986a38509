"""Arrays in files are matched to items, or refused."""

import json

import numpy as np
import pytest

from gr.semantic_ids import SemanticIdError
from gr.semantic_ids.arrays import load_item_rows, read_item_ids

ROWS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
IDS = ["7", "b", "c d"]


def write_ids(path, ids):
    if path.suffix == ".npy":
        np.save(path, np.array(ids))
    elif path.name == "rows.json":
        path.write_text(json.dumps({id: row for row, id in reversed(list(enumerate(ids)))}))
    elif path.suffix == ".json":
        path.write_text(json.dumps([int(id) if id.isdigit() else id for id in ids]))
    elif path.name.startswith("header"):
        path.write_text("item_id,title\n" + "".join(f"{id},x\n" for id in ids))
    else:
        path.write_text("\n".join(ids))
    return path


LISTS = ["ids.npy", "ids.json", "rows.json", "ids.txt", "ids.csv", "header.csv"]


@pytest.mark.parametrize("name", LISTS)
def test_rows_follow_their_ids(tmp_path, name):
    np.save(tmp_path / "v.npy", ROWS)
    ids_path = write_ids(tmp_path / name, IDS)
    assert read_item_ids(ids_path).tolist() == IDS
    rows = load_item_rows(tmp_path / "v.npy", "vectors", ["c d", "7"], ids_path=ids_path)
    assert rows.tolist() == [[5, 6], [1, 2]]  # An item that is not wanted is left out.
    with pytest.raises(SemanticIdError, match=r"no vectors for item d \(2 of 3 items have none\)"):
        load_item_rows(tmp_path / "v.npy", "vectors", ["d", "e", "7"], ids_path=ids_path)
    write_ids(ids_path, IDS[:2])
    with pytest.raises(SemanticIdError, match=f"{name}: 2 item ids for 3 rows of vectors"):
        load_item_rows(tmp_path / "v.npy", "vectors", ["7"], ids_path=ids_path)


@pytest.mark.parametrize("name", ["ids.npy", "ids.json", "ids.txt", "ids.csv"])
def test_an_item_with_two_rows_is_refused(tmp_path, name):
    np.save(tmp_path / "v.npy", ROWS)
    ids_path = write_ids(tmp_path / name, ["7", "b", "7"])
    with pytest.raises(SemanticIdError, match=f"{name}: item 7 has more than one row"):
        load_item_rows(tmp_path / "v.npy", "vectors", ["b"], ids_path=ids_path)


def test_rows_in_an_order_that_nobody_stated(tmp_path):
    path = tmp_path / "v.npy"
    np.save(path, ROWS)
    assert load_item_rows(path, "vectors", IDS, order="items").tolist() == ROWS.tolist()
    with pytest.raises(
        SemanticIdError, match=r"v\.npy: nobody said .*item_ids=FILE.*order='items'"
    ):
        load_item_rows(path, "vectors", IDS)
    with pytest.raises(SemanticIdError, match=r"v\.npy: 3 rows .* 2 items after its filters"):
        load_item_rows(path, "vectors", IDS[:2], order="items")
    with pytest.raises(SemanticIdError, match="order='rows' is unknown"):
        load_item_rows(path, "vectors", IDS, order="rows")
    ids_path = write_ids(tmp_path / "ids.txt", IDS)
    with pytest.raises(SemanticIdError, match="said twice"):
        load_item_rows(path, "vectors", IDS, ids_path=ids_path, order="items")


def test_archives_that_name_their_items(tmp_path):
    path = tmp_path / "v.npz"
    np.savez(path, vectors=ROWS, item_ids=np.array(IDS))
    assert load_item_rows(path, "vectors", ["b"]).tolist() == [[3, 4]]
    with pytest.raises(SemanticIdError, match="no array 'codes' but vectors, item_ids"):
        load_item_rows(path, "codes", ["b"])
    np.savez(path, vectors=ROWS, item_ids=np.array([0.5, 1, 2]))
    with pytest.raises(SemanticIdError, match="item ids must be strings or integers"):
        load_item_rows(path, "vectors", ["b"])
    np.savez(path, vectors=ROWS)
    with pytest.raises(SemanticIdError, match="nobody said which items"):
        load_item_rows(path, "vectors", ["b"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.npy", b"", "cannot be read"),
        ("v.npy", b"1,2\n", "cannot be read"),
        ("v.npz", b"PK\x03\x04junk", "cannot be read"),
        ("ids.txt", b"a\n\nb\n", "line 2: no item id"),
        ("ids.txt", b"a\ncaf\xe9\nb\n", "not UTF-8 text"),
        ("ids.csv", b"a,1\n,2\nb,3\n", "line 2: no item id"),
        ("ids.json", b"{", "not a JSON file"),
        ("ids.json", b"[1.5]", "expected a list of item ids"),
        ("ids.json", b'{"a": 1, "b": 2}', "must number rows from 0"),
        ("ids.xlsx", b"PK", "a list of item ids is a"),
        ("ids.txt", b"", "is empty"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    np.save(tmp_path / "rows.npy", ROWS)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SemanticIdError, match=rf"{name}.*{message}"):
        if name.startswith("v"):
            load_item_rows(path, "vectors", IDS, order="items")
        else:
            load_item_rows(tmp_path / "rows.npy", "vectors", IDS, ids_path=path)
