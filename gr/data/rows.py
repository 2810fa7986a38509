"""Text tables: read by columns if they are valid, else row by row, with errors that name file and line.

Both ways give the same Arrow table. The fast way (Arrow's CSV parser) either accepts a whole file
or is abandoned; only then does the slow way look at every row, so that a fault can be reported with
its line, or left out and counted. `gr.data.cells` defines rows and cells.
"""

import codecs
import dataclasses
import difflib
import functools
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from etils.epath import Path

from gr.data.cells import Lines, PlainText, numbered_rows
from gr.data.files import existing_file, open_text
from gr.data.sequences import DataError
from gr.data.times import WAY_OUT, cast_times, instant, is_number, times_of

REMEDY = "correct it, or leave such rows out with skip_bad_rows"
_SEPARATOR = b"\x1f"  # Stands in for separators of several bytes; in no text of ours.
_BLOCK_BYTES = 1 << 20  # Size of a parsed block; a longer row is left to the slow way.


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """The format of a row of a text table.

    Ids, numbers and times are required in every row, an empty id or a number that is not finite
    being a fault; text may be empty. Ids are taken as they stand: "1.0" is not "1". Columns in
    `names` that are in none of the four are not read.
    """

    names: Sequence[str]  # All columns, in the order of the file.
    ids: Sequence[str] = ()
    numbers: Sequence[str] = ()
    times: Sequence[str] = ()  # Any ordered numbers, or dates and times.
    text: Sequence[str] = ()
    separator: str = "\t"
    quoted: bool = False  # Whether cells may be quoted, and then hold separators and line ends.
    header: bool = False  # Whether the first row names the columns.
    encoding: str = "utf-8"
    known: tuple[str, Collection[str]] | None = None  # A column, and its allowed ids.

    def fault(self, cells: Sequence[str]) -> str | None:
        """What is wrong with a row, or None."""
        if len(cells) != len(self.names):
            return f"{len(cells)} columns instead of {len(self.names)} ({listed(self.names)})"
        row = dict(zip(self.names, cells, strict=True))
        for name in self.wanted:
            if "\0" in row[name]:
                return f"{name} holds a NUL byte; name the encoding if this is UTF-16"
            if _undecoded(row[name]):
                return f"{name} is not {self.encoding} text; name its encoding"
        for name in self.ids:
            if not row[name]:
                return f"{name} is empty"
        for name in self.numbers:
            if not is_number(row[name]):
                return f"{name} is not a number: {shown(row[name])}"
        for name in self.times:
            if not is_number(row[name]) and instant(row[name]) is None:
                return f"{name} is not a number: {shown(row[name])}, and no time; {WAY_OUT}"
        if self.known is not None and row[self.known[0]] not in self._known_ids:
            return unknown_id(*self.known, row[self.known[0]])
        return None

    @functools.cached_property
    def wanted(self) -> list[str]:
        """The columns that are read."""
        return [*self.ids, *self.numbers, *self.times, *self.text]

    @functools.cached_property
    def _known_ids(self) -> frozenset[str]:
        return frozenset(self.known[1]) if self.known else frozenset()


def unknown_id(name: str, known: Collection[str], value: str) -> str:
    """The fault of an id that is not among those that its column may hold."""
    whole = value.removesuffix(".0")
    hint = f" ({whole!r} is known, and ids are compared as text)" if whole != value else ""
    return f"unknown {name} {shown(value)}{hint if whole in known else ''}"


def read_header(
    path: str | Path, separator: str, *, quoted: bool = False, encoding: str = "utf-8"
) -> list[str]:
    """The cells of the first row of a text table, by the rules for all rows.

    Raises:
        DataError: no such file, no row in it, or a row that cannot be split.
    """
    with open_text(path, encoding, errors="surrogateescape") as text:
        line, cells = next(
            numbered_rows(Lines(text), separator, quoted), (1, "no row in this file")
        )
    if isinstance(cells, str):
        raise DataError(f"{path}:{line}: {cells}; correct it")
    if any("\0" in name for name in cells):
        raise DataError(
            f"{path}:{line}: NUL bytes; fetch it again, or name its encoding if this is UTF-16"
        )
    return cells


def column_roles(path: str | Path, **columns: str | None) -> dict[str, str]:
    """Column -> role, from role -> column; None is no column.

    Raises:
        DataError: one column is named for two roles.
    """
    roles = {}
    for role, column in columns.items():
        if column in roles:
            raise DataError(
                f"{path}: column {column!r} is named as {roles[column]} and as {role}; name another"
            )
        if column is not None:
            roles[column] = role
    return roles


def shown(value: object) -> str:
    """A value for messages, shortened if long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:90]}... ({len(text):,} characters)"


def listed(names: Iterable[str]) -> str:
    """Names for messages."""
    names = list(names)
    more = f", ... ({len(names):,} in all)" if len(names) > 40 else ""
    return ", ".join(names[:40]) + more


def near_name(name: str, known: Collection[str]) -> str:
    """A hint for a misspelt name, as the end of a message."""
    near = difflib.get_close_matches(str(name), known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def require_columns(path: str | Path, present: Collection[str], wanted: Collection[str]) -> None:
    """Raises a DataError naming the columns that a file lacks, or has twice."""
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(map(repr, missing))}; the file has "
            f"{listed(map(shown, present))}; name the right ones{near_name(missing[0], present)}"
        )
    counts = Counter(present)
    for name in wanted:
        if counts[name] > 1:
            raise DataError(f"{path}: column {name!r} stands twice in the header; rename one")
        if _undecoded(name):
            raise DataError(f"{path}: the name {name!r} is not UTF-8 text; name its encoding")


def read_rows(
    path: str | Path, form: RowFormat, *, skip_bad_rows: bool = False
) -> tuple[pa.Table, int]:
    """Reads a text table (plain or gzip).

    Returns:
        The wanted columns, ids and text as strings, numbers as float64, times as numbers or
        timestamps; and the number of rows left out.

    Raises:
        DataError: no such file, no rows, or (unless `skip_bad_rows`) a bad row, by file and line.
    """
    path = existing_file(path)
    require_columns(path, form.names, form.wanted)
    table, skipped, first = _read_fast(path, form), 0, ""
    if table is None:
        table, skipped, first = _read_slow(path, form, skip_bad_rows)
    if not table.num_rows:
        raise DataError(
            f"{path}: no usable rows ({skipped} bad ones left out{first}); check the format"
        )
    return table, skipped


def sound(table: pa.Table, form: RowFormat) -> bool:
    """Whether parsed columns meet the format's requirements."""
    return (
        all(not table[name].null_count for name in form.wanted)
        and all(
            pc.all(pc.is_finite(table[name])).as_py()
            for name in [*form.numbers, *form.times]
            if pa.types.is_floating(table[name].type)
        )
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


class _PlainFile(io.RawIOBase):
    """A file for Arrow's parser; it stops at text that the parser would split differently than we do."""

    def __init__(self, read: Callable[[int], bytes], plain: PlainText):
        self._read, self._plain = read, plain
        self._fault: Exception | None = None
        self._ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            block = self._read(size // 2)
            # Between blocks Arrow takes every \r\n for one line end, in quotes too.
            while block.endswith(b"\r") and (more := self._read(1)):
                block += more
            if len(block) > size or not self._plain.holds(block):
                raise pa.ArrowInvalid("a closer look is needed")
        except Exception as fault:
            self._fault = fault
            raise
        self._ended = not block
        return block

    def check(self) -> None:
        """Raises an error of reading that Arrow may have mistaken for the end of the file."""
        if self._fault is not None:
            raise self._fault
        if not self._ended:
            raise pa.ArrowInvalid("the file was not read to its end")


def _read_fast(path: Path, form: RowFormat) -> pa.Table | None:
    """The table, or None where any row needs a closer look."""
    names = [str(number) for number in range(len(form.names))]  # Unwanted names may repeat.
    place = {name: names[list(form.names).index(name)] for name in form.wanted}
    types = arrow_types(form)
    with open_text(path, form.encoding, errors="surrogateescape") as text:
        lines = Lines(text)
        if form.header:
            next(numbered_rows(lines, form.separator, form.quoted), None)
    with open_text(path, form.encoding) as text:
        try:
            read, separator = _utf8(text), form.separator
            if len(separator.encode()) > 1:
                content = b"".join(iter(lambda: read(_BLOCK_BYTES), b""))
                if _SEPARATOR in content or (form.quoted and b'"' in content):
                    return None
                read = io.BytesIO(content.replace(separator.encode(), _SEPARATOR)).read
                separator = _SEPARATOR.decode()
            file = _PlainFile(read, PlainText(separator, form.quoted))
            table = pa_csv.read_csv(
                pa.PythonFile(file, "r"),
                read_options=pa_csv.ReadOptions(
                    column_names=names, skip_rows=lines.number, block_size=2 * _BLOCK_BYTES
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter=separator,
                    quote_char='"' if form.quoted else False,
                    newlines_in_values=form.quoted,
                ),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=list(place.values()),
                    column_types={place[name]: kind for name, kind in types.items()},
                ),
            ).rename_columns(form.wanted)
            file.check()
        except (pa.ArrowException, UnicodeError):
            return None
    for name in form.times:
        times = cast_times(table[name])
        if times is None:
            return None
        table = table.set_column(table.column_names.index(name), name, times)
    return table if table.num_rows and sound(table, form) else None


def _utf8(text: io.TextIOWrapper) -> Callable[[int], bytes]:
    """A function that reads at most so many bytes of a UTF-8 text, without a byte order mark."""
    encoding = codecs.lookup(text.encoding).name
    if encoding not in ("utf-8", "utf-8-sig"):
        return lambda size: text.read(max(1, size // 4)).encode()  # No character takes more.
    if encoding == "utf-8-sig":
        text.buffer.read(len(codecs.BOM_UTF8))
    return text.buffer.read


def _read_slow(path: Path, form: RowFormat, skip_bad_rows: bool) -> tuple[pa.Table, int, str]:
    """The table, how many rows were left out, and what was wrong with the first of them."""
    columns = {name: [] for name in form.wanted}
    place = {name: list(form.names).index(name) for name in form.wanted}
    kinds: dict[str, bool] = {}  # Whether a column of times holds numbers, by its first good row.
    skipped, first = 0, ""
    for line, cells in numbered_cells(path, form):
        fault = cells if isinstance(cells, str) else form.fault(cells)
        for name in form.times if fault is None else ():
            cell = cells[place[name]]
            if kinds.setdefault(name, is_number(cell)) != is_number(cell):
                others = "numbers" if kinds[name] else "dates"
                fault = f"{name} is {shown(cell)}, but others are {others}"
        if fault is None:
            for name, column in columns.items():
                cell = cells[place[name]]
                column.append(float(cell) if name in form.numbers else cell)
        elif skip_bad_rows:
            skipped += 1
            first = first or f", the first in line {line}: {fault}"
        else:
            raise bad_row(path, line, fault)
    schema = pa.schema(arrow_types(form).items())
    table = pa.table({name: pa.array(c, schema.field(name).type) for name, c in columns.items()})
    for name in form.times:
        place = table.column_names.index(name)
        table = table.set_column(place, name, times_of(table[name]))
    return table, skipped, first


def numbered_cells(path: Path, form: RowFormat) -> Iterator[tuple[int, list[str] | str]]:
    """Each row's first line and its cells or its fault; blank lines are skipped."""
    # Undecodable bytes become lone surrogates, so that the fault can be laid to its row.
    with open_text(path, form.encoding, errors="surrogateescape") as text:
        rows = numbered_rows(Lines(text), form.separator, form.quoted)
        if form.header:
            next(rows, None)
        yield from rows


def _undecoded(text: str) -> bool:
    """Whether some bytes of a text could not be decoded."""
    return not text.isprintable() and any("\ud800" <= char <= "\udfff" for char in text)
