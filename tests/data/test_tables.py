import datetime
import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr.data import DataError, read_table

COLUMNS = {"user": "who", "item": "what", "time": "when"}
LOG = "when,who,what,stars\n3,ann,x,5\n1,ann,y,1\n2,bob,x,4\n"
ITEMS = 'what,title,tags\nx,"Ex, the first",a b\ny,Why,\nz,Zed,c\n'


def names(sequences):
    return [sequences.item_ids[sequences.of(user)].tolist() for user in range(sequences.num_users)]


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.csv.gz"])
def test_text_tables(tmp_path, name):
    text = LOG.replace(",", "\t") if name.endswith("tsv") else LOG
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    sequences = read_table(path, **COLUMNS)
    assert sequences.user_ids.tolist() == ["ann", "bob"]
    assert names(sequences) == [["y", "x"], ["x"]]
    assert sequences.times.tolist() == [1, 3, 2]
    assert names(read_table(path, user="who", item="what")) == [["x", "y"], ["x"]]
    assert names(read_table(path, **COLUMNS, rating="stars", min_rating=2)) == [["x"], ["x"]]
    with pytest.raises(DataError, match="min_rating needs ratings"):
        read_table(path, **COLUMNS, min_rating=2)


def test_an_item_table_gives_fields_and_is_authoritative(tmp_path):
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text(LOG)
    items.write_text(ITEMS)
    sequences = read_table(log, items, **COLUMNS)
    assert sequences.item_fields["title"].tolist() == ["Ex, the first", "Why"]
    assert sequences.item_fields["tags"].tolist() == ["a b", ""]
    log.write_text(LOG + "4,bob,q,1\n")
    with pytest.raises(DataError, match=r"log\.csv:5: unknown what 'q'"):
        read_table(log, items, **COLUMNS)
    assert read_table(log, items, **COLUMNS, skip_bad_rows=True).skipped_rows == 1


def parquet(folder, columns, name="log.parquet"):
    path = folder / name
    pq.write_table(pa.table(columns), path)
    return path


GOOD = {"who": [1, 1, 2], "what": ["x", "y", "x"], "when": [3, 1, 2]}


def test_parquet(tmp_path):
    sequences = read_table(parquet(tmp_path, {**GOOD, "unused": [[1], [], None]}), **COLUMNS)
    assert sequences.user_ids.tolist() == ["1", "2"]
    assert names(sequences) == [["y", "x"], ["x"]]


def test_parquet_times_become_seconds(tmp_path):
    start = datetime.datetime(1970, 1, 2)
    hour = datetime.timedelta(hours=1)
    stamps = [start + 3 * hour, start + hour / 2, start]
    sequences = read_table(parquet(tmp_path, {**GOOD, "when": stamps}), **COLUMNS)
    assert sequences.times.tolist() == [86400 + 1800, 86400 + 3 * 3600, 86400]
    days = [datetime.date(1970, 1, day) for day in (3, 2, 1)]
    sequences = read_table(parquet(tmp_path, {**GOOD, "when": days}), **COLUMNS)
    assert sequences.times.tolist() == [86400, 2 * 86400, 0]


def test_parquet_items_with_lists(tmp_path):
    items = parquet(tmp_path, {"what": ["y", "x"], "tags": [["a", "b"], None]}, "items.parquet")
    sequences = read_table(parquet(tmp_path, GOOD), items, **COLUMNS)
    assert sequences.item_fields["tags"].tolist() == ["", "a, b"]


@pytest.mark.parametrize(
    ("column", "values", "fault"),
    [
        ("who", [1, None, 2], "row 2: who is None"),
        ("what", ["x", "y", ""], "row 3: what is ''"),
        ("when", [float("nan"), 1.0, 2.0], "row 1: when is nan"),
    ],
)
def test_bad_rows_of_parquet(tmp_path, column, values, fault):
    path = parquet(tmp_path, {**GOOD, column: values})
    with pytest.raises(DataError, match=fault):
        read_table(path, **COLUMNS)
    sequences = read_table(path, **COLUMNS, skip_bad_rows=True)
    assert (len(sequences.items), sequences.skipped_rows) == (2, 1)


def test_unusable_files_and_columns(tmp_path):
    with pytest.raises(DataError, match="column 'who' of type"):
        read_table(parquet(tmp_path, {**GOOD, "who": [[1], [2], [3]]}), **COLUMNS)
    with pytest.raises(DataError, match="no column 'when'; the file has 'who', 'what'"):
        read_table(parquet(tmp_path, {"who": [1], "what": [2]}), **COLUMNS)
    (tmp_path / "log.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"no reader for '\.xlsx'; the file must be one of \.csv"):
        read_table(tmp_path / "log.xlsx", **COLUMNS)
    (tmp_path / "fake.parquet").write_text("x")
    with pytest.raises(DataError, match="is no Parquet file"):
        read_table(tmp_path / "fake.parquet", **COLUMNS)
