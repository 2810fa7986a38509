"""JSON lines: read by columns when they are sound, line by line, naming file and line, when not."""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json

from gr.data.files import existing_file, open_bytes
from gr.data.rows import RowFormat, arrow_types, bad_row, is_number, sound
from gr.data.sequences import DataError

_BLOCK_BYTES = (
    16 << 20
)  # No line may be longer than a block; reviews are, now and then, above 1 MiB.


def read_json_rows(
    path: str | os.PathLike[str],
    *,
    ids: Sequence[str],
    numbers: Sequence[str],
    skip_bad_rows: bool = False,
) -> tuple[pa.Table, int]:
    """Reads some fields of a file (plain or `.gz`) of one JSON object a line.

    Returns:
        The fields, ids as strings and numbers as float64, and the number of rows left out.

    Raises:
        DataError: no such file, no rows, or (unless `skip_bad_rows`) a bad row, by file and line.
    """
    path = existing_file(path)
    form = RowFormat(names=[*ids, *numbers], ids=ids, numbers=numbers)
    table, skipped = _read_fast(path, form), 0
    if table is None:
        columns = {name: [] for name in form.wanted}
        for line, record in numbered_objects(path):
            fault = record if isinstance(record, str) else _fault(record, form)
            if fault is None:
                for name, column in columns.items():
                    column.append(float(record[name]) if name in numbers else str(record[name]))
            elif skip_bad_rows:
                skipped += 1
            else:
                raise bad_row(path, line, fault)
        table = pa.table(columns, schema=pa.schema(list(arrow_types(form).items())))
    if not table.num_rows:
        raise DataError(f"{path}: no usable rows ({skipped} bad ones left out); check the format")
    return table, skipped


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number."""
    with open_bytes(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged ({error}); fetch it again") from error


def numbered_objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each line's number and its JSON object, or what is wrong with it."""
    for number, line in numbered_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON ({error})"
            continue
        yield number, record if isinstance(record, dict) else "not a JSON object"


def _read_fast(path: Path, form: RowFormat) -> pa.Table | None:
    """The table, or None where any row needs a closer look."""
    try:
        table = pa_json.read_json(
            pa.input_stream(str(path)),
            read_options=pa_json.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pa_json.ParseOptions(
                explicit_schema=pa.schema(list(arrow_types(form).items())),
                unexpected_field_behavior="ignore",
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError):
        return None
    return table if table.num_rows and sound(table, form) else None


def _fault(record: dict[str, Any], form: RowFormat) -> str | None:
    for name in form.wanted:
        if record.get(name) is None:
            return f"no field {name!r}"
    for name in form.ids:
        if not isinstance(record[name], str | int) or record[name] == "":
            return f"{name} is no id: {record[name]!r}"
    for name in form.numbers:
        if isinstance(record[name], bool) or not is_number(record[name]):
            return f"{name} is not a number: {record[name]!r}"
    return None
