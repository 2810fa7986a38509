"""Parquet tables: the same columns, and the same faults, as `gr.data.rows` reads from text."""

import contextlib
import gzip
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils.epath import Path

from gr.data.files import open_bytes, reading
from gr.data.rows import REMEDY, RowFormat, require_columns, shown, unknown_id
from gr.data.sequences import DataError
from gr.data.text import as_text
from gr.data.times import WAY_OUT, is_number, times_of

_MAGIC = b"PAR1"
# From here on a float of so many bits cannot represent all integers.
_EXACT = {16: 2**11, 32: 2**24, 64: 2**53}


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does."""
    with open_bytes(path) as file:
        return file.read(len(_MAGIC)) == _MAGIC


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns."""
    with _opened(path) as file:
        return file.schema_arrow.names


def read_parquet(path: Path, form: RowFormat, *, skip_bad_rows: bool) -> tuple[pa.Table, int]:
    """As `read_rows`, with rows numbered from 1 where text files have lines."""
    require_columns(path, form.names, form.wanted)
    with _opened(path) as file:
        stored = file.read(columns=form.wanted)
        stored.validate(full=True)
        if stored.num_rows != file.metadata.num_rows:
            raise DataError(
                f"{path}: {stored.num_rows} rows instead of {file.metadata.num_rows}; fetch it again"
            )
    converters = {
        **dict.fromkeys(form.ids, _as_ids),
        **dict.fromkeys(form.numbers, _as_numbers),
        **dict.fromkeys(form.times, _as_times),
        **dict.fromkeys(form.text, _as_texts),
    }
    columns = {}
    for name, convert in converters.items():
        try:
            columns[name] = convert(_decoded(stored[name]))
        except pa.ArrowException as error:
            raise DataError(
                f"{path}: column {name!r} of type {stored[name].type} cannot be used ({error}); "
                "store ids as strings or integers, and times as numbers or timestamps"
            ) from error
    table = pa.table(columns)
    good = np.ones(table.num_rows, bool)
    faults = {}
    for name in form.ids:
        filled = pc.greater(pc.binary_length(table[name]), 0)
        faults[name] = pc.and_(filled, pc.invert(pc.match_substring(table[name], "\0")))
    for name in (*form.numbers, *form.times):
        column = table[name]
        finite = pc.is_finite(column) if pa.types.is_floating(column.type) else pc.is_valid(column)
        faults[name] = finite
    for name in form.text:
        faults[name] = pc.invert(pc.match_substring(table[name], "\0"))
    if form.known is not None:
        name, known = form.known
        faults[name] = pc.and_(faults[name], pc.is_in(table[name], pa.array(known, pa.string())))
    first = ""
    for name, sound in faults.items():
        sound = pc.fill_null(sound, False).to_numpy()
        if not sound.all() and not first:
            row = int(np.argmin(sound))
            first = f"row {row + 1}: {_fault(form, name, stored[name][row], table[name][row])}"
            if not skip_bad_rows:
                raise DataError(f"{path}: {first}; {REMEDY}")
        good &= sound
    if not good.any():
        first = f", the first in {first}" if first else ""
        raise DataError(
            f"{path}: no usable rows ({len(good)} bad ones left out{first}); check the format"
        )
    return table.filter(pa.array(good)), int(len(good) - good.sum())


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    if not is_parquet(path):
        raise DataError(f"{path} is no Parquet file; fetch it again, or name it for what it is")
    with open_bytes(path) as file, reading(path, ValueError):
        if isinstance(file, gzip.GzipFile):  # Seeking in gzip is slow.
            file = pa.BufferReader(file.read())
        # Checksums are verified if the writer stored them.
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            yield parquet


def _fault(form: RowFormat, name: str, stored: pa.Scalar, converted: pa.Scalar) -> str:
    """What is wrong with a cell."""
    value = stored.as_py()
    if value is None or value != value or value == "":
        return f"{name} is {shown(value)}, missing or unknown"
    if isinstance(value, str) and "\0" in value:
        return f"{name} holds a NUL byte: {shown(value)}"
    if name in form.ids and converted.as_py() is None:
        return f"{name} is {shown(value)}; as a float it is no id: store ids as strings or integers"
    if name in form.ids:
        return unknown_id(name, form.known[1], converted.as_py())
    return f"{name} is {shown(value)}, neither number nor time; {WAY_OUT}"


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without dictionaries, and with strings and bytes of one kind."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _decoded(column.cast(kind.value_type))
    if (
        pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    ):
        return column.cast(pa.string())
    return column


def _as_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as text; floats, whole numbers stored beside missing ones, as integers, or null."""
    if pa.types.is_floating(column.type):
        exact = _EXACT[column.type.bit_width]
        column = column.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), float(exact)))
        column = pc.if_else(whole, column, pa.scalar(None, pa.float64())).cast(pa.int64())
    elif pa.types.is_decimal(column.type):
        column = column.cast(pa.decimal128(38, 0))
    return column.cast(pa.string())


def _as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(column.type):
        cells = column.to_pylist()
        numbers = [float(cell) if is_number(cell) else None for cell in cells]
        return pa.chunked_array([pa.array(numbers, pa.float64())])
    return column.cast(pa.float64(), safe=False)


def _as_times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers as they are, whole ones exact beyond what a float64 holds; dates as timestamps."""
    kind = column.type
    if pa.types.is_string(kind):
        return times_of(column)
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("ms"))
    if pa.types.is_decimal(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            return column.cast(pa.float64())
    if pa.types.is_timestamp(kind) or pa.types.is_integer(kind):
        return column
    if pa.types.is_boolean(kind):
        raise pa.ArrowInvalid("neither numbers nor times")
    return column.cast(pa.float64())


def _as_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(column.type):
        return pc.fill_null(column, "")
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return pa.chunked_array([pa.array(map(as_text, column.to_pylist()), pa.string())])
