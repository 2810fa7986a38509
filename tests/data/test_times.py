import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data.times import cast_times, instant, is_number, seconds_of, times_of

DAY = 86400


def seconds(cells):
    return seconds_of(times_of(pa.chunked_array([pa.array(cells, pa.string())])))[1].tolist()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("1970-01-02", DAY),
        ("1970-01-02T00:00:01.5", DAY + 1.5),
        ("1970-01-02 00:00:01", DAY + 1),
        ("1970-01-02T00:00:01.500Z", DAY + 1.5),
        ("1970-01-02T02:00:01+02:00", DAY + 1),
        ("1970-01-01 19:00:00-0500", DAY),
        ("1970-01-02 00:00:01 UTC", DAY + 1),
        ("1969-12-31 23:59", -60),
        ("0001-01-01", -719162 * DAY),
        ("9999-12-31", 2932896 * DAY),
        ("5", 5),
        (" 1.5e3 ", 1500),
    ],
)
def test_one_time_written_in_many_ways(cell, expected):
    assert seconds([cell]) == [expected]
    assert seconds([cell, cell]) == [expected] * 2


def test_one_column_may_mix_zones_lengths_and_centuries():
    cells = ["1970-01-01", "1970-01-01T01:00Z", "1970-01-01T03:00:00.25+01:00", "1500-01-01"]
    assert seconds(cells)[:3] == [0, 3600, 7200.25]


def test_the_first_readable_cell_says_whether_a_column_holds_numbers_or_dates():
    assert times_of(pa.chunked_array([["", "7", "1970-01-02", "nan"]])).to_pylist() == [
        None,
        7,
        None,
        None,
    ]
    found = times_of(pa.chunked_array([["1970-01-02", "7", None]])).to_pylist()
    assert [cell is None for cell in found] == [False, True, True]


@pytest.mark.parametrize("cell", ["", "noon", "20-09-2018", "2018/09/20", "2018-13-01", "1_000"])
def test_what_is_no_time(cell):
    assert instant(cell) is None and not is_number(cell)
    assert times_of(pa.chunked_array([[cell]])).to_pylist() == [None]


@settings(deadline=None)
@given(
    st.lists(
        st.integers(-(2**63), 2**63 - 1) | st.integers(2**60, 2**60 + 9), min_size=1, max_size=9
    ),
    st.booleans(),
)
def test_whole_numbers_keep_their_order_beyond_what_a_float_tells_apart(numbers, padded):
    cells = [f" {number}" if padded else str(number) for number in numbers]
    keys, _ = seconds_of(times_of(pa.chunked_array([cells])))
    assert keys.tolist() == numbers


def test_numbers_beyond_int64():
    keys, _ = seconds_of(times_of(pa.chunked_array([["18446744073709551615", "3"]])))
    assert keys.tolist() == [2**64 - 1, 3]
    keys, _ = seconds_of(times_of(pa.chunked_array([["1e30", "36893488147419103232"]])))
    assert keys.tolist() == [1e30, 2.0**65]


MOMENTS = st.datetimes(
    datetime.datetime(1678, 1, 1),
    datetime.datetime(2261, 1, 1),
    timezones=st.none() | st.just(datetime.UTC),
)


@settings(deadline=None)
@given(st.lists(MOMENTS, min_size=1, max_size=6), st.sampled_from("T "))
def test_dates_are_read_alike_by_column_and_by_cell(moments, between):
    cells = [moment.isoformat(between) for moment in moments]
    by_cell = [instant(cell) for cell in cells]
    column = pa.chunked_array([cells])
    assert times_of(column).cast(pa.timestamp("ns")).cast(pa.int64()).to_pylist() == by_cell
    found = cast_times(column)
    if found is not None:
        assert found.cast(pa.timestamp("ns")).cast(pa.int64()).to_pylist() == by_cell
    micros = pa.chunked_array([pa.array(by_cell).cast(pa.timestamp("ns")).cast(pa.timestamp("us"))])
    assert seconds_of(times_of(column))[1].tolist() == seconds_of(micros)[1].tolist()


def test_nanoseconds_keep_their_order():
    cells = ["2020-01-01T00:00:00.000000002", "2020-01-01T00:00:00.000000001Z"]
    for column in (cells, [cells[0], cells[1][:-1]]):
        keys, times = seconds_of(times_of(pa.chunked_array([column])))
        assert np.argsort(keys).tolist() == [1, 0]
        assert times.tolist() == [1577836800, 1577836800]
