"""JSON lines: read by columns if they are valid, else line by line, with errors that name file and line.

Lines may also be Python dictionaries, as old exports have them (`{u'user': u'ann', ...}`); these are
parsed as literals and never evaluated.
"""

import ast
import gzip
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
from etils.epath import Path

from gr.data.files import existing_file, open_bytes, open_text
from gr.data.rows import RowFormat, arrow_types, bad_row, shown, sound
from gr.data.sequences import DataError
from gr.data.times import WAY_OUT, cast_times, instant, is_number, times_of

# No line may be longer than a block; some reviews exceed 1 MiB.
_BLOCK_BYTES = 16 << 20
_DECODER = json.JSONDecoder()


def read_json_rows(
    path: str | os.PathLike[str],
    *,
    ids: Sequence[str],
    numbers: Sequence[str] = (),
    times: Sequence[str] = (),
    skip_bad_rows: bool = False,
) -> tuple[pa.Table, int]:
    """Reads some fields of a file (plain or gzip) of one JSON object, or Python dictionary, a line.

    Returns:
        The fields, ids as strings, numbers as float64, times as numbers or timestamps; and the
        number of rows left out.

    Raises:
        DataError: no such file, no rows, or (unless `skip_bad_rows`) a bad row, by file and line.
    """
    path = existing_file(path)
    form = RowFormat(names=[*ids, *numbers, *times], ids=ids, numbers=numbers, times=times)
    table, skipped = _read_fast(path, form), 0
    if table is None:
        table, skipped = _read_slow(path, form, skip_bad_rows)
    if not table.num_rows:
        raise DataError(f"{path}: no usable rows ({skipped} bad ones left out); check the format")
    return table, skipped


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line that is not blank, with its number; invalid UTF-8 becomes lone surrogates."""
    with open_text(path, errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def numbered_objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each line's number and its object, or its fault in words."""
    for number, line in numbered_lines(path):
        for record in objects(line):
            yield number, record


def objects(line: str) -> list[dict[str, Any] | str]:
    """The JSON object or Python dictionary of a line, or its fault in words.

    Several JSON objects on a line, as in concatenated files without a last line end, are several rows.
    """
    records, rest = [], line.strip()
    try:
        while rest:
            record, end = _DECODER.raw_decode(rest)
            records.append(record)
            rest = rest[end:].lstrip()
    except (ValueError, RecursionError) as error:
        literal = _literal(line)
        if literal is None:
            fault = " ".join(str(error).encode("ascii", "backslashreplace").decode().split())
            return [f"not JSON ({fault}), nor a Python dictionary"]
        records = [literal]
    return [r if isinstance(r, dict) else "not a JSON object" for r in records]


def id_of(record: dict[str, Any], name: str) -> str:
    """The id in a field: a string, or a whole number as a string; a DataError for anything else."""
    value = record.get(name)
    if value is None:
        raise DataError(f"no field {name!r}")
    if isinstance(value, float) and value.is_integer():  # As beside a missing one.
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{name} is no id: {shown(value)}")
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        raise DataError(f"{name} is not UTF-8 text: {shown(value)}")
    if isinstance(value, str) and "\0" in value:  # NumPy's strings drop NUL at their end.
        raise DataError(f"{name} holds a NUL character: {shown(value)}")
    return str(value)


def _literal(line: str) -> Any:
    """The value of a Python literal, or None."""
    try:
        with warnings.catch_warnings():  # For unknown escapes in strings.
            warnings.simplefilter("ignore")
            return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _read_fast(path: Path, form: RowFormat) -> pa.Table | None:
    """The table, or None where any row needs a closer look."""
    with open_bytes(path) as file:
        packed = "gzip" if isinstance(file, gzip.GzipFile) else None
    # Times may be integers, other numbers or dates; the first lines decide.
    for kind in (pa.int64(), pa.float64(), pa.string()) if form.times else (None,):
        types = arrow_types(form) | dict.fromkeys(form.times, kind)
        try:
            table = pa_json.read_json(
                pa.input_stream(str(path), compression=packed),
                read_options=pa_json.ReadOptions(block_size=_BLOCK_BYTES),
                parse_options=pa_json.ParseOptions(
                    explicit_schema=pa.schema(list(types.items())),
                    unexpected_field_behavior="ignore",
                ),
            )
            table.validate(full=True)  # Arrow's parser also accepts invalid UTF-8.
        except (pa.ArrowException, OSError, EOFError):
            continue
        for name in form.times if kind == pa.string() else ():
            times = cast_times(table[name])
            if times is None:
                return None
            table = table.set_column(table.column_names.index(name), name, times)
        if any(pc.any(pc.match_substring(table[name], "\0")).as_py() for name in form.ids):
            return None
        return table if table.num_rows and sound(table, form) else None
    return None


def _read_slow(path: Path, form: RowFormat, skip_bad_rows: bool) -> tuple[pa.Table, int]:
    """The table, and how many rows were left out."""
    columns = {name: [] for name in form.wanted}
    kinds: dict[str, bool] = {}  # Whether a column of times holds numbers, by its first good row.
    skipped = 0
    for line, record in numbered_objects(path):
        fault = record if isinstance(record, str) else _fault(record, form)
        for name in form.times if fault is None else ():
            number = is_number(record[name])
            if kinds.setdefault(name, number) != number:
                others = "numbers" if kinds[name] else "dates"
                fault = f"{name} is {shown(record[name])}, but others are {others}"
        if fault is None:
            for name, column in columns.items():
                if name in form.ids:
                    column.append(id_of(record, name))
                else:
                    value = record[name]
                    column.append(float(value) if name in form.numbers else str(value))
        elif skip_bad_rows:
            skipped += 1
        else:
            raise bad_row(path, line, fault)
    table = pa.table(columns, schema=pa.schema(list(arrow_types(form).items())))
    for name in form.times:
        place = table.column_names.index(name)
        table = table.set_column(place, name, times_of(table[name]))
    return table, skipped


def _fault(record: dict[str, Any], form: RowFormat) -> str | None:
    for name in form.wanted:
        if record.get(name) is None:
            return f"no field {name!r}"
    for name in form.ids:
        try:
            id_of(record, name)
        except DataError as fault:
            return str(fault)
    for name in form.numbers:
        if isinstance(record[name], bool) or not is_number(record[name]):
            return f"{name} is not a number: {shown(record[name])}"
    for name in form.times:
        value = record[name]
        good = is_number(value) or (isinstance(value, str) and instant(value) is not None)
        if isinstance(value, bool) or not good:
            return f"{name} is not a number: {shown(value)}, and no time; {WAY_OUT}"
    return None
