"""Files of items alone, in every form, and what is wrong with them."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr.data import DataError, read_items

ROWS = [
    {"item": "a1", "name": "A <b>red</b> pen", "brand": ""},
    {"item": "07", "name": "Ink", "brand": "X"},
]


def write(folder, form):
    path = folder / f"new.{form}"
    text = "item,name,brand\na1,A <b>red</b> pen,\n07,Ink,X\n"
    if form == "csv":
        path.write_text(text)
    elif form == "csv.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif form == "tsv":
        path.write_text(text.replace(",", "\t"))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif form == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    else:
        path.write_text(
            json.dumps({row["item"]: {k: row[k] for k in ("name", "brand")} for row in ROWS})
        )
    return path


@pytest.mark.parametrize("form", ["csv", "csv.gz", "tsv", "parquet", "jsonl", "json"])
def test_every_form_gives_ids_and_fields(tmp_path, form):
    ids, fields = read_items(write(tmp_path, form), title="name")
    assert ids.tolist() == ["a1", "07"]
    assert {name: column.tolist() for name, column in fields.items()} == {
        "title": ["A red pen", "Ink"],
        "brand": ["", "X"],
    }


def test_refusals(tmp_path):
    path = write(tmp_path, "csv")
    with pytest.raises(DataError, match="no column 'sku'"):
        read_items(path, item="sku")
    path.write_text("item,name\na,x\na,y\n")
    with pytest.raises(DataError, match="item 'a' stands there twice"):
        read_items(path)
    path = write(tmp_path, "json")
    with pytest.raises(DataError, match="no items' field 'caption'"):
        read_items(path, title="caption")
    path.write_text('{"a": "pen"}')
    with pytest.raises(DataError, match="item 'a' is no object of text fields"):
        read_items(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="holds no items"):
        read_items(path)
