"""Plain tables, CSV, TSV or Parquet, whose columns the caller names."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gr.data.files import existing_file
from gr.data.inter_json import as_text
from gr.data.interactions import sequences_from_table
from gr.data.rows import REMEDY, RowFormat, read_header, read_rows, require_columns
from gr.data.sequences import DataError, Sequences

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_PARQUET = (".parquet", ".pq")


def read_table(
    path: str | os.PathLike[str],
    items_path: str | os.PathLike[str] | None = None,
    *,
    user: str,
    item: str,
    time: str | None = None,
    rating: str | None = None,
    k_core: int = 0,
    min_rating: float | None = None,
    skip_bad_rows: bool = False,
) -> Sequences:
    """Reads a table of interactions with named columns.

    Args:
        path: a `.csv`, `.tsv` (plain or `.gz`, with a header line) or `.parquet` file.
        items_path: a table of items in any of these forms, with the column `item` too; all its
            other columns become `item_fields`. It is authoritative: an interaction with an item
            that it lacks is a bad row.
        user: the users' column.
        item: the items' column.
        time: the times' column: any ordered number or, in Parquet, a date or time, taken in
            seconds. None takes a user's interactions in the order of the file.
        rating: the ratings' column, needed only for `min_rating`.
        k_core: keep only users and items with at least so many interactions.
        min_rating: keep only interactions rated at least so high.
        skip_bad_rows: leave bad rows out and count them.

    Raises:
        DataError: a missing file or column, an unknown kind of file, or a bad row.
    """
    path = existing_file(path)
    items_table, skipped_items = None, 0
    if items_path is not None:
        items_table, skipped_items = _read(
            existing_file(items_path), {item: "item"}, {}, None, skip_bad_rows, fields=True
        )
    numbers = {} if time is None else {time: "time"}
    if rating is not None:
        numbers[rating] = "rating"
    table, skipped = _read(path, {user: "user", item: "item"}, numbers, items_table, skip_bad_rows)
    return sequences_from_table(
        table,
        source=path,
        items_table=items_table,
        k_core=k_core,
        min_rating=min_rating,
        skipped_rows=skipped + skipped_items,
    )


def _read(
    path: Path,
    ids: dict[str, str],
    numbers: dict[str, str],
    items_table: pa.Table | None,
    skip_bad_rows: bool,
    fields: bool = False,
) -> tuple[pa.Table, int]:
    """Reads and renames columns, with `fields` all other columns as text, and counts bad rows."""
    renamed = {**ids, **numbers}
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix in _SEPARATORS:
        names = read_header(path, _SEPARATORS[suffix], quoted=True)
    elif suffix in _PARQUET:
        try:
            names = pq.read_schema(path).names
        except pa.ArrowInvalid as error:
            raise DataError(f"{path} is no Parquet file ({error}); fetch it again") from error
    else:
        known = ", ".join((*_SEPARATORS, *_PARQUET))
        raise DataError(f"{path}: no reader for {suffix!r}; the file must be one of {known}")
    require_columns(path, names, list(renamed))
    form = RowFormat(
        names=names,
        ids=list(ids),
        numbers=list(numbers),
        text=[name for name in names if fields and name not in renamed],
        separator=_SEPARATORS.get(suffix, ","),
        quoted=True,
        header_lines=1,
        known=None
        if items_table is None
        else (
            next(n for n, ours in ids.items() if ours == "item"),
            items_table["item"].to_pylist(),
        ),
    )
    read = _read_parquet if suffix in _PARQUET else read_rows
    table, skipped = read(path, form, skip_bad_rows=skip_bad_rows)
    return table.rename_columns([renamed.get(name, name) for name in table.column_names]), skipped


def _read_parquet(path: Path, form: RowFormat, *, skip_bad_rows: bool) -> tuple[pa.Table, int]:
    """As `read_rows`, with rows numbered from 1 where text files have lines."""
    table = pq.read_table(path, columns=form.wanted)
    columns = {}
    for name in form.wanted:
        convert = (
            _as_ids if name in form.ids else _as_numbers if name in form.numbers else _as_texts
        )
        try:
            columns[name] = convert(table[name])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{path}: column {name!r} of type {table[name].type} cannot be used ({error}); "
                "store ids as strings or integers, and times as numbers or timestamps"
            ) from error
    table = pa.table(columns)
    good = np.ones(table.num_rows, bool)
    faults = {}
    for name in form.ids:
        faults[name] = pc.fill_null(pc.not_equal(table[name], ""), False)
    for name in form.numbers:
        faults[name] = pc.fill_null(pc.is_finite(table[name]), False)
    if form.known is not None:
        name, known = form.known
        inside = pc.is_in(table[name], pa.array(known, pa.string()))
        faults[name] = pc.and_(faults[name], inside)
    for name, sound in faults.items():
        sound = sound.to_numpy()
        if not skip_bad_rows and not sound.all():
            row = int(np.argmin(sound))
            value = table[name][row].as_py()
            raise DataError(
                f"{path}: row {row + 1}: {name} is {value!r}, missing or unknown; {REMEDY}"
            )
        good &= sound
    if not good.any():
        raise DataError(f"{path}: no usable rows ({len(good)} bad ones left out); check the format")
    return table.filter(pa.array(good)), int(len(good) - good.sum())


def _as_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_floating(column.type):  # Whole numbers that were stored beside missing ones.
        column = column.cast(pa.int64())
    return column.cast(pa.string())


def _as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if pa.types.is_timestamp(column.type):
        micros = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return pc.divide(micros.cast(pa.float64()), 1e6)
    return column.cast(pa.float64())


def _as_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(map(as_text, column.to_pylist()), pa.string())])
