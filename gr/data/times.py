"""Parses times: any ordered numbers, or dates and times of ISO 8601."""

import datetime
import math
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_EXACT = 2**53  # From here on float64 cannot represent all integers.
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
WAY_OUT = "write times as numbers or like 2018-09-20 or 2018-09-20T10:51:09Z"


def is_number(cell: object) -> bool:
    """Whether a cell is, or spells, a finite number."""
    try:
        return math.isfinite(float(cell)) and not (isinstance(cell, str) and "_" in cell)
    except (TypeError, ValueError, OverflowError):
        return False


def instant(cell: str) -> int | None:
    """Nanoseconds since 1970 of an ISO date or time, in UTC unless it has a zone."""
    try:
        moment = datetime.datetime.fromisoformat(cell.strip().removesuffix(" UTC"))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    finer = re.search(r"[.,]\d{6}(\d{1,3})", cell)  # `datetime` drops these digits.
    micros = (moment - _EPOCH) // datetime.timedelta(microseconds=1)
    return 1000 * micros + (int(finer[1].ljust(3, "0")) if finer else 0)


def cast_times(texts: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """All cells of a column as numbers, or all as timestamps; None if cells must be parsed one by one."""
    try:
        numbers = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        pass
    else:
        least, most = pc.min_max(numbers).as_py().values()
        if least is not None and (least <= -_EXACT or most >= _EXACT):
            for exact in (pa.int64(), pa.uint64()):
                try:
                    return texts.cast(exact)
                except pa.ArrowInvalid:
                    continue
        return numbers
    for unit in ("ns", "us"):  # Microseconds for dates out of the range of nanoseconds.
        for zone in (None, "UTC"):
            try:
                return texts.cast(pa.timestamp(unit, zone))
            except pa.ArrowInvalid:
                continue
    return None


def times_of(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """As `cast_times`, cell by cell if needed.

    The first valid cell decides whether the column holds numbers or dates; cells of another kind become null.
    """
    found = cast_times(texts)
    if found is not None:
        return found
    cells = texts.to_pylist()
    first = next((c for c in cells if is_number(c) or (c and instant(c) is not None)), "")
    if is_number(first):
        return _numbers([cell if is_number(cell) else None for cell in cells])
    instants = [None if cell is None or is_number(cell) else instant(cell) for cell in cells]
    if any(i is not None and not -(2**63) <= i < 2**63 for i in instants):
        micros = [None if i is None else i // 1000 for i in instants]
        return pa.chunked_array([pa.array(micros, pa.timestamp("us"))])
    return pa.chunked_array([pa.array(instants, pa.timestamp("ns"))])


def seconds_of(times: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Times without nulls as exact sort keys, and as float64; timestamps in seconds."""
    if not pa.types.is_timestamp(times.type):
        keys = times.to_numpy()
        return keys, keys.astype(np.float64)
    keys = times.cast(pa.int64()).to_numpy()
    per_second = _PER_SECOND[times.type.unit]
    if per_second < 10**9:
        return keys, keys / per_second
    # So nanoseconds that are whole microseconds give the same numbers as microseconds.
    micros, nanos = np.divmod(keys, 1000)
    return keys, micros / 10**6 + nanos / 10**9


def _numbers(cells: Sequence[str | None]) -> pa.ChunkedArray:
    """Finite numbers as float64, or as integers if all are integers that float64 would round."""
    floats = [None if cell is None else float(cell) for cell in cells]
    if any(number is not None and abs(number) >= _EXACT for number in floats):
        for exact in (pa.int64(), pa.uint64()):
            try:
                whole = [None if cell is None else int(cell) for cell in cells]
                return pa.chunked_array([pa.array(whole, exact)])
            except (ValueError, OverflowError):
                continue
    return pa.chunked_array([pa.array(floats, pa.float64())])
