"""JSON lines, or lines of Python dictionaries such as Steam's, whose fields the caller names."""

import os

import pyarrow as pa
from etils.epath import Path

from gr.data.files import existing_file
from gr.data.interactions import sequences_from_table
from gr.data.json_rows import id_of, numbered_objects, read_json_rows
from gr.data.rows import bad_row, column_roles, near_name
from gr.data.sequences import DataError, Sequences
from gr.data.text import as_text


def read_json_lines(
    path: str | os.PathLike[str],
    items_path: str | os.PathLike[str] | None = None,
    *,
    user: str,
    item: str,
    time: str | None = None,
    rating: str | None = None,
    items_item: str | None = None,
    title: str | None = None,
    k_core: int = 0,
    min_rating: float | None = None,
    drop_duplicates: bool = False,
    skip_bad_rows: bool = False,
) -> Sequences:
    """Reads interactions, one JSON object or Python dictionary a line, with named fields.

    An interaction without a user, an item or, where times are read, a finite time is a bad row. An integer and its
    string are the same id.

    Args:
        path: the file, plain or packed by gzip.
        items_path: a file of items in the same form; all its other fields become `item_fields`. A missing item has
            empty fields; of several lines for one item the first counts.
        user: the users' field.
        item: the items' field.
        time: the times' field: any ordered numbers, or dates and times of ISO 8601. None takes a
            user's interactions in the order of the file.
        rating: the ratings' field, needed only for `min_rating`.
        items_item: the items' field in `items_path`, where it is not `item`.
        title: the field in `items_path` that becomes `title`, replacing one of that name.
        k_core: keep only users and items with at least so many interactions.
        min_rating: keep only interactions rated at least so high.
        drop_duplicates: of interactions with the same user, item and time keep the first.
        skip_bad_rows: leave bad rows out and count them.

    Raises:
        DataError: a missing file or field, or a bad row, by file and line.
    """
    path = existing_file(path)
    roles = column_roles(path, user=user, item=item, time=time, rating=rating)
    _require_fields(path, list(roles))
    items_table, skipped_items = None, 0
    if items_path is not None:
        items_table, skipped_items = _read_items(
            existing_file(items_path), items_item or item, title, skip_bad_rows
        )
    elif items_item is not None or title is not None:
        raise DataError(f"{path}: items_item and title are of the file of items; give items_path")
    table, skipped = read_json_rows(
        path,
        ids=[user, item],
        numbers=[] if rating is None else [rating],
        times=[] if time is None else [time],
        skip_bad_rows=skip_bad_rows,
    )
    return sequences_from_table(
        table.rename_columns([roles[name] for name in table.column_names]),
        source=path,
        items_table=items_table,
        k_core=k_core,
        min_rating=min_rating,
        drop_duplicates=drop_duplicates,
        skipped_rows=skipped + skipped_items,
    )


def read_items_lines(path: str | os.PathLike[str], item: str, title: str | None = None) -> pa.Table:
    """Items alone, such as `items_path` of `read_json_lines`: the column `item`, then all others as text.

    Raises:
        DataError: a missing file or field, or a bad row, by file and line.
    """
    return _read_items(existing_file(path), item, title, skip_bad_rows=False)[0]


def _require_fields(path: Path, wanted: list[str]) -> None:
    """Raises a DataError for a field that none of the first lines has."""
    known: dict[str, None] = {}
    for seen, (_, record) in enumerate(numbered_objects(path), 1):
        known |= dict.fromkeys(map(str, record)) if isinstance(record, dict) else {}
        if seen >= 1000 or all(name in known for name in wanted):
            break
    if not known:
        raise DataError(
            f"{path}: no line is a JSON object or a Python dictionary; check the format"
        )
    for name in wanted:
        if name not in known:
            raise DataError(
                f"{path}: no field {name!r}; its lines have {', '.join(known)}; name the right ones"
                f"{near_name(name, known)}"
            )


def _read_items(
    path: Path, item: str, title: str | None, skip_bad_rows: bool
) -> tuple[pa.Table, int]:
    """The items' ids and all other fields as text, and the number of bad rows."""
    roles = column_roles(path, item=item, title=title)
    _require_fields(path, list(roles))
    rows: dict[str, dict[str, str]] = {}
    fields: dict[str, None] = {} if title is None else {title: None}
    skipped = 0
    for line, record in numbered_objects(path):
        try:
            if isinstance(record, str):
                raise DataError(record)
            name = id_of(record, item)
            texts = {str(key): as_text(value) for key, value in record.items() if key != item}
        except DataError as fault:
            if not skip_bad_rows:
                raise bad_row(path, line, str(fault)) from fault
            skipped += 1
            continue
        fields |= dict.fromkeys(texts)
        rows.setdefault(name, texts)
    if title is not None:
        fields.pop("title" if title != "title" else "", None)
    columns = [[texts.get(field, "") for texts in rows.values()] for field in fields]
    # A list of pairs, as a field may have any name, "item" included.
    return pa.table(
        [pa.array(column, pa.string()) for column in [list(rows), *columns]],
        names=["item", *("title" if field == title else field for field in fields)],
    ), skipped
