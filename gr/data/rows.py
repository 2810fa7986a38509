"""Text tables: read by columns when they are sound, row by row, naming file and line, when not.

Both ways give the same Arrow table. The fast way (Arrow's CSV parser) either accepts a whole file
or is abandoned; only then does the slow way look at every row, so that a fault can be reported with
its line, or left out and counted.
"""

import csv
import dataclasses
import functools
import io
import math
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from gr.data.files import existing_file, open_bytes
from gr.data.sequences import DataError

REMEDY = "correct it, or leave such rows out with skip_bad_rows"
_SEPARATOR = b"\x1f"  # Stands in for separators of several characters; in no text of ours.


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """What a row of a text table must look like.

    Ids and numbers are required in every row, an empty id or a number that is not finite being a
    fault; text may be empty. Columns in `names` that are in none of the three are not read.
    """

    names: Sequence[str]  # All columns, in the order of the file.
    ids: Sequence[str] = ()
    numbers: Sequence[str] = ()
    text: Sequence[str] = ()
    separator: str = "\t"
    quoted: bool = (
        False  # Whether cells may stand in double quotes, and then hold separators and line ends.
    )
    header_lines: int = 0
    encoding: str = "utf-8"
    known: tuple[str, Collection[str]] | None = None  # A column, and the only ids that it may hold.

    def fault(self, cells: Sequence[str]) -> str | None:
        """What is wrong with a row, or None."""
        if len(cells) != len(self.names):
            return f"{len(cells)} columns instead of {len(self.names)} ({', '.join(self.names)})"
        row = dict(zip(self.names, cells, strict=True))
        for name in self.wanted:
            if not row[name].isprintable() and any(
                "\ud800" <= char <= "\udfff" for char in row[name]
            ):
                return f"{name} is not {self.encoding} text"
        for name in self.ids:
            if not row[name]:
                return f"{name} is empty"
        for name in self.numbers:
            if not is_number(row[name]):
                return f"{name} is not a number: {row[name]!r}"
        if self.known is not None and row[self.known[0]] not in self._known_ids:
            return f"unknown {self.known[0]} {row[self.known[0]]!r}"
        return None

    @functools.cached_property
    def wanted(self) -> list[str]:
        """The columns that are read."""
        return [*self.ids, *self.numbers, *self.text]

    @functools.cached_property
    def _known_ids(self) -> frozenset[str]:
        return frozenset(self.known[1]) if self.known else frozenset()


def is_number(cell: object) -> bool:
    """Whether a cell is, or spells, a finite number."""
    try:
        return math.isfinite(float(cell))
    except (TypeError, ValueError):
        return False


def read_header(path: str | Path, separator: str, *, quoted: bool = False) -> list[str]:
    """The column names in the first line of a text table."""
    path = existing_file(path)
    with open_bytes(path) as file:
        line = file.readline().decode("utf-8-sig", errors="replace").rstrip("\r\n")
    return next(csv.reader([line], delimiter=separator)) if quoted else line.split(separator)


def require_columns(path: str | Path, present: Collection[str], wanted: Collection[str]) -> None:
    """Raises a DataError naming the columns that a file lacks."""
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(map(repr, missing))}; the file has "
            f"{', '.join(map(repr, present))}; name the right ones"
        )


def read_rows(
    path: str | Path, form: RowFormat, *, skip_bad_rows: bool = False
) -> tuple[pa.Table, int]:
    """Reads a text table (plain or `.gz`).

    Returns:
        The wanted columns, ids and text as strings and numbers as float64, and the number of rows
        left out.

    Raises:
        DataError: no such file, no rows, or (unless `skip_bad_rows`) a bad row, by file and line.
    """
    path = existing_file(path)
    table, skipped = _read_fast(path, form), 0
    if table is None:
        table, skipped = _read_slow(path, form, skip_bad_rows)
    if not table.num_rows:
        raise DataError(f"{path}: no usable rows ({skipped} bad ones left out); check the format")
    return table, skipped


def sound(table: pa.Table, form: RowFormat) -> bool:
    """Whether columns that could be parsed also hold what the format requires."""
    return (
        all(not table[name].null_count for name in form.wanted)
        and all(pc.all(pc.is_finite(table[name])).as_py() for name in form.numbers)
        and not any(pc.any(pc.equal(table[name], "")).as_py() for name in form.ids)
        and (
            form.known is None
            or pc.all(
                pc.is_in(table[form.known[0]], pa.array(sorted(form.known[1]), pa.string()))
            ).as_py()
        )
    )


def bad_row(path: str | Path, line: int, fault: str) -> DataError:
    """The error for a bad row."""
    return DataError(f"{path}:{line}: {fault}; {REMEDY}")


def arrow_types(form: RowFormat) -> dict[str, pa.DataType]:
    """The wanted columns' types."""
    return {name: pa.float64() if name in form.numbers else pa.string() for name in form.wanted}


def _read_fast(path: Path, form: RowFormat) -> pa.Table | None:
    """The table, or None where any row needs a closer look."""
    try:
        if len(form.separator) == 1:
            source, separator = pa.input_stream(str(path)), form.separator
        else:
            with open_bytes(path) as file:
                content = file.read()
            if _SEPARATOR in content:
                return None
            content = content.replace(form.separator.encode(), _SEPARATOR)
            source, separator = pa.BufferReader(content), _SEPARATOR.decode()
        table = pa_csv.read_csv(
            source,
            read_options=pa_csv.ReadOptions(
                column_names=list(form.names),
                skip_rows=form.header_lines,
                encoding=form.encoding,
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if form.quoted else False,
                # Slower; ids and numbers do without.
                newlines_in_values=form.quoted and bool(form.text),
            ),
            convert_options=pa_csv.ConvertOptions(
                include_columns=form.wanted, column_types=arrow_types(form)
            ),
        )
    except (pa.ArrowInvalid, OSError, EOFError, zlib.error):
        return None
    return table if table.num_rows and sound(table, form) else None


def _read_slow(path: Path, form: RowFormat, skip_bad_rows: bool) -> tuple[pa.Table, int]:
    columns = {name: [] for name in form.wanted}
    place = {name: list(form.names).index(name) for name in form.wanted}
    skipped = 0
    for line, cells in numbered_cells(path, form):
        fault = cells if isinstance(cells, str) else form.fault(cells)
        if fault is None:
            for name, column in columns.items():
                cell = cells[place[name]]
                column.append(float(cell) if name in form.numbers else cell)
        elif skip_bad_rows:
            skipped += 1
        else:
            raise bad_row(path, line, fault)
    schema = pa.schema(arrow_types(form).items())
    return pa.table(
        {name: pa.array(c, schema.field(name).type) for name, c in columns.items()}
    ), skipped


def numbered_cells(path: Path, form: RowFormat) -> Iterator[tuple[int, list[str] | str]]:
    """Each row's first line and its cells, or what kept it from being split; no blank lines."""
    encoding = "utf-8-sig" if form.encoding == "utf-8" else form.encoding
    with open_bytes(path) as file:
        # Undecodable bytes become lone surrogates, so that the fault can be laid to its row.
        text = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="")
        try:
            for _ in range(form.header_lines):
                text.readline()
            if not form.quoted:
                for line, row in enumerate(text, form.header_lines + 1):
                    if row.strip("\r\n"):
                        yield line, row.rstrip("\r\n").split(form.separator)
                return
            rows = csv.reader(text, delimiter=form.separator)
            while True:
                line = form.header_lines + rows.line_num + 1
                try:
                    cells = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield line, f"not a CSV row ({error})"
                    continue
                if cells:
                    yield line, cells
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged ({error}); fetch it again") from error
