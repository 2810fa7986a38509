import datetime
import decimal
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr.data import DataError, read_table

COLUMNS = {"user": "who", "item": "what", "time": "when"}
GOOD = {"who": [1, 1, 2], "what": ["x", "y", "x"], "when": [3, 1, 2]}
HOUR = datetime.timedelta(hours=1)
START = datetime.datetime(1970, 1, 2)
STAMPS = [START + 3 * HOUR, START + HOUR / 2, START]
NANOSECONDS = [1577836800000000003, 1577836800000000001, 1577836800000000002]


def names(sequences):
    return [sequences.item_ids[sequences.of(user)].tolist() for user in range(sequences.num_users)]


def parquet(folder, columns, name="log.parquet", **options):
    path = folder / name
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, **options)
    return path


def test_parquet(tmp_path):
    sequences = read_table(parquet(tmp_path, {**GOOD, "unused": [[1], [], None]}), **COLUMNS)
    assert sequences.user_ids.tolist() == ["1", "2"]
    assert names(sequences) == [["y", "x"], ["x"]]


def test_it_is_told_by_its_content_packed_or_not_and_columns_may_be_numbers(tmp_path):
    path = parquet(tmp_path, GOOD, "log.csv")
    assert names(read_table(path, user=0, item=1, time=2)) == [["y", "x"], ["x"]]
    (tmp_path / "log.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert names(read_table(tmp_path / "log.parquet.gz", **COLUMNS)) == [["y", "x"], ["x"]]


def test_a_folder_called_like_a_column_says_nothing(tmp_path):
    (tmp_path / "who=5").mkdir()
    path = parquet(tmp_path / "who=5", GOOD)
    assert read_table(path, **COLUMNS).user_ids.tolist() == ["1", "2"]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (STAMPS, [86400 + 1800, 86400 + 3 * 3600, 86400]),
        (pa.array(STAMPS, pa.timestamp("ns")), [86400 + 1800, 86400 + 3 * 3600, 86400]),
        (pa.array(STAMPS, pa.timestamp("ms", "Asia/Tokyo")), [88200, 97200, 86400]),
        ([str(stamp) for stamp in STAMPS], [88200, 97200, 86400]),
        ([datetime.date(1970, 1, day) for day in (3, 2, 1)], [86400, 2 * 86400, 0]),
        (pa.array([3, 1, 2], pa.int16()), [1, 3, 2]),
        (pa.array([decimal.Decimal(n) for n in NANOSECONDS]), None),
        (pa.array(NANOSECONDS, pa.uint64()), None),
        (NANOSECONDS, None),
        (list(map(str, NANOSECONDS)), None),
        (pa.array(NANOSECONDS, pa.timestamp("ns")), None),
        (pa.array(["3", "1", "2"]).dictionary_encode(), [1, 3, 2]),
    ],
)
def test_times_of_every_type_keep_their_order(tmp_path, times, expected):
    sequences = read_table(parquet(tmp_path, {**GOOD, "when": times}), **COLUMNS)
    assert names(sequences) == [["y", "x"], ["x"]]
    assert sequences.times.dtype == np.float64
    if expected is not None:
        assert sequences.times.tolist() == expected


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([1, 1, 2]),
        pa.array([1, 1, 2], pa.uint8()),
        pa.array([1.0, 1.0, 2.0]),
        pa.array([1.0, 1.0, 2.0], pa.float32()),
        pa.array(np.array([1, 1, 2], np.float16)),
        pa.array([decimal.Decimal(n) for n in ("1.0", "1.0", "2.0")]),
        pa.array([1.0, 1.0, 2.0]).dictionary_encode(),
        pa.array([1, 1, 2]).dictionary_encode(),
        pa.array(["1", "1", "2"]),
        pa.array(["1", "1", "2"]).dictionary_encode(),
        pa.array(["1", "1", "2"], pa.large_string()).dictionary_encode(),
        pa.array(["1", "1", "2"], pa.string_view()),
        pa.array([b"1", b"1", b"2"]),
    ],
)
def test_ids_of_every_type_are_the_same_text(tmp_path, ids):
    assert read_table(parquet(tmp_path, {**GOOD, "who": ids}), **COLUMNS).user_ids.tolist() == [
        "1",
        "2",
    ]


def test_items_with_lists(tmp_path):
    items = parquet(
        tmp_path,
        {
            "what": ["y", "x"],
            "tags": [["a", "b"], None],
            "name": ["Why", None],
            "price": [1.5, float("nan")],
        },
        "items.parquet",
    )
    sequences = read_table(parquet(tmp_path, GOOD), items, **COLUMNS, title="name")
    assert sequences.item_fields["tags"].tolist() == ["", "a, b"]
    assert sequences.item_fields["price"].tolist() == ["", "1.5"]
    assert sequences.titles().tolist() == ["x", "Why"]


@pytest.mark.parametrize(
    ("column", "values", "fault"),
    [
        ("who", [1, None, 2], "row 2: who is None"),
        ("who", [1.0, float("nan"), 2.0], "row 2: who is nan"),
        ("who", [1.0, 1.5, 2.0], "row 2: who is 1.5; as a float it is no id"),
        ("who", [1.0, 2.0**53, 2.0], "row 2: who is 9007199254740992.0; as a float it is no id"),
        ("who", pa.array([None, 1, 1]).dictionary_encode(), "row 1: who is None"),
        ("who", pa.array([1.0, float("nan"), 1]).dictionary_encode(), "row 2: who is nan"),
        ("what", ["x", "y", ""], "row 3: what is ''"),
        ("what", pa.array(["x", "", "x"]).dictionary_encode(), "row 2: what is ''"),
        ("what", ["x", "y\0", "y"], "row 2: what holds a NUL byte"),
        ("when", [float("nan"), 1.0, 2.0], "row 1: when is nan"),
        ("when", [STAMPS[0], None, STAMPS[1]], "row 2: when is None"),
        ("when", ["3", "noon", "1"], "row 2: when is 'noon', neither number nor time; write"),
        ("when", ["3", "1970-01-02", "1"], "row 2: when is '1970-01-02'"),
    ],
)
def test_bad_rows(tmp_path, column, values, fault):
    path = parquet(tmp_path, {**GOOD, column: values})
    with pytest.raises(DataError, match=fault):
        read_table(path, **COLUMNS)
    sequences = read_table(path, **COLUMNS, skip_bad_rows=True)
    assert (len(sequences.items), sequences.skipped_rows) == (2, 1)


def test_where_all_rows_are_bad_the_first_fault_is_told(tmp_path):
    path = parquet(tmp_path, {**GOOD, "when": ["noon"] * 3})
    with pytest.raises(DataError, match="no usable rows .3 bad ones .* row 1: when is 'noon'"):
        read_table(path, **COLUMNS, skip_bad_rows=True)


def test_unusable_files_and_columns(tmp_path):
    with pytest.raises(DataError, match="column 'who' of type"):
        read_table(parquet(tmp_path, {**GOOD, "who": [[1], [2], [3]]}), **COLUMNS)
    for no_time in (HOUR, True, {"at": 1}):
        with pytest.raises(DataError, match="column 'when' of type"):
            read_table(parquet(tmp_path, {**GOOD, "when": [no_time] * 3}), **COLUMNS)
    with pytest.raises(DataError, match="no column 'when'; the file has 'who', 'what'"):
        read_table(parquet(tmp_path, {"who": [1], "what": [2]}), **COLUMNS)
    twice = pa.Table.from_arrays([pa.array([1])] * 3, names=["who", "what", "what"])
    with pytest.raises(DataError, match=r"log\.parquet: column 'what' stands twice"):
        read_table(parquet(tmp_path, twice), user="who", item="what")
    with pytest.raises(DataError, match="no usable rows .0 bad ones"):
        read_table(parquet(tmp_path, {"who": [], "what": []}), user="who", item="what")
    (tmp_path / "fake.parquet").write_text("xxxxx")
    with pytest.raises(DataError, match="is no Parquet file"):
        read_table(tmp_path / "fake.parquet", **COLUMNS)


def test_damage_is_one_error_wherever_it_is(tmp_path):
    whole = parquet(tmp_path, GOOD, write_page_checksum=True).read_bytes()
    path = tmp_path / "damaged.parquet"
    read = 0
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_table(path, **COLUMNS)
            read += 1  # Not all bytes are looked at.
        except DataError as error:
            assert "damaged.parquet" in str(error)
    assert read < len(whole) / 10
    for size in range(4, len(whole), 50):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"damaged\.parquet: damaged"):
            read_table(path, **COLUMNS)
