"""Files of items alone, such as those that are added to a catalogue later."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gr.data.files import existing_file
from gr.data.inter_json import read_records_by_id
from gr.data.json_lines import read_items_lines
from gr.data.sequences import DataError
from gr.data.tables import read_items_table
from gr.data.text import without_markup

_JSON, _LINES = (".json",), (".jsonl", ".ndjson")


def read_items(
    path: str | os.PathLike[str],
    *,
    item: str = "item",
    title: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Item ids `[n]` str and text fields, name -> `[n]` str, from a file in one of these forms.

    * A table (`.csv`, `.tsv`, `.parquet`, each text table also `.gz`): a column of ids, and text columns.
    * JSON lines (`.jsonl`): the same, as fields.
    * `.json`: an object from item id to its text fields.

    Args:
        path: the file.
        item: the column or field of ids; `.json` has none.
        title: the column or field that becomes `title`, replacing one of that name.
        options: `separator`, `encoding`, `header` and `quoted` of a text table; see `read_table`.

    Raises:
        DataError: a missing file or column, another kind of file, a bad row, or an item that stands there twice.
    """
    path = existing_file(path)
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(_JSON):
        ids, fields = read_records_by_id(path, title)
    else:
        if name.endswith(_LINES):
            table = read_items_lines(path, item, title)
        else:
            table = read_items_table(path, item, title, **(options or {}))
        ids = np.array(table.column(0).to_pylist(), dtype=str)
        fields = {
            field: np.array([without_markup(text or "") for text in column.to_pylist()], object)
            for field, column in zip(table.column_names[1:], table.columns[1:], strict=True)
        }
    distinct, counts = np.unique(ids, return_counts=True)
    if len(distinct) < len(ids):
        raise DataError(
            f"{path}: item {str(distinct[counts.argmax()])!r} stands there twice; keep one row"
        )
    if not len(ids):
        raise DataError(f"{path} holds no items")
    return ids, fields
