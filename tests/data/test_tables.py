import contextlib
import gzip
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data import DataError, read_table, rows
from gr.data.text import without_markup

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


def test_names_of_other_kinds_separators_and_letter_case(tmp_path):
    for name, separator in (
        ("log.CSV", None),
        ("log.Tsv.GZ", None),
        ("log.txt", ","),
        ("log.dat", "::"),
        ("log", " "),
        ("log.csv", ";"),
        ("log.csv", "\x01"),
        ("log.tsv", "§"),
        ("log.log", "\\t"),
    ):
        between = separator or ("\t" if "T" in name else ",")
        text = LOG.replace(",", "\t" if between == "\\t" else between)
        (tmp_path / name).write_text(text, "utf-8")
        assert names(read_table(tmp_path / name, **COLUMNS, separator=separator)) == [
            ["y", "x"],
            ["x"],
        ]
    with pytest.raises(DataError, match=r"no reader for '\.txt'; .* one of \.csv.*separator="):
        read_table(tmp_path / "log.txt", **COLUMNS)
    for separator in ("", '"', "\n"):
        with pytest.raises(DataError, match="cells cannot be separated by"):
            read_table(tmp_path / "log.txt", **COLUMNS, separator=separator)


def test_columns_by_number_with_and_without_a_header(tmp_path):
    log, items = tmp_path / "log.csv", tmp_path / "items.dat"
    log.write_text(LOG)
    assert names(read_table(log, user=1, item="what", time=0)) == [["y", "x"], ["x"]]
    log.write_text("\n" + LOG.partition("\n")[2])  # A blank line before the first row.
    numbers = {"user": 1, "item": "2", "time": 0, "header": False}
    assert names(read_table(log, **numbers)) == [["y", "x"], ["x"]]
    items.write_text("x::8::Ex\ny::9::Why\n")
    sequences = read_table(
        log, items, **numbers, title=2, items_options={"item": 0, "separator": "::"}
    )
    assert {name: field.tolist() for name, field in sequences.item_fields.items()} == {
        "title": ["Ex", "Why"],
        "1": ["8", "9"],
    }
    with pytest.raises(DataError, match=r"log\.csv: no column 4; it has 4, numbered from 0"):
        read_table(log, **{**numbers, "user": 4})
    with pytest.raises(DataError, match="no column 'who'; the file has '0', '1', '2', '3'"):
        read_table(log, **{**numbers, "user": "who"})
    for nothing in (None, 1.0):
        with pytest.raises(DataError, match=f"no column {nothing}"):
            read_table(log, **{**numbers, "user": nothing})


def test_titles_by_any_name_and_item_columns_named_like_ours(tmp_path):
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text(LOG)
    items.write_text(",what,item,name,title,\n0,x,1,Ex,Dr,\n1,y,2,Why,Mr,\n")
    sequences = read_table(log, items, **COLUMNS, title="name")
    assert {name: field.tolist() for name, field in sequences.item_fields.items()} == {
        "title": ["Ex", "Why"],
        "item": ["1", "2"],
    }
    with pytest.raises(DataError, match="'what' is named as item and as title"):
        read_table(log, items, **COLUMNS, title="what")
    with pytest.raises(DataError, match=r"no column 'nam'; .*did you mean 'name'"):
        read_table(log, items, **COLUMNS, title="nam")
    with pytest.raises(DataError, match="give items_path"):
        read_table(log, **COLUMNS, title="name")
    with pytest.raises(DataError, match=r"no 'seperator'; .*did you mean 'separator'"):
        read_table(log, items, **COLUMNS, items_options={"seperator": ";"})


def test_one_column_cannot_have_two_roles_nor_stand_twice(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    for roles in ({"item": "who"}, {"item": 1}, {"time": "what"}, {"rating": "when"}):
        with pytest.raises(DataError, match=r"log\.csv: column '.*' is named as .* and as"):
            read_table(path, **{**COLUMNS, **roles})
    path.write_text("when,who,what,what,other,other\n1,a,x,y,1,2\n")
    with pytest.raises(DataError, match=r"log\.csv: column 'what' stands twice"):
        read_table(path, **COLUMNS)
    path.write_text("when,who,what,other,other\n1,a,x,1,2\n")
    assert names(read_table(path, **COLUMNS)) == [["x"]]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_times_in_words_are_seconds_in_every_file(tmp_path, suffix):
    times = ["2014-04-07T10:51:09.277Z", "2014-04-07T10:51:09.276Z", "2014-04-07 12:00:00+02:00"]
    path = tmp_path / f"log.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"who": [1, 1, 2], "what": ["x", "y", "x"], "when": times}), path)
    else:
        separator = "," if suffix == "csv" else "\t"
        rows = zip("112", "xyx", times, strict=True)
        path.write_text("\n".join(map(separator.join, [("who", "what", "when"), *rows])))
    sequences = read_table(path, **COLUMNS)
    assert names(sequences) == [["y", "x"], ["x"]]
    assert sequences.times.tolist() == [1396867869.276, 1396867869.277, 1396864800]


def test_an_unreadable_time_names_the_way_out(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("who,what,when\na,x,20-09-2018\nb,x,21-09-2018\n")
    with pytest.raises(DataError, match=r"log\.csv:2: when .*'20-09-2018'.*write times as numbers"):
        read_table(path, **COLUMNS)
    with pytest.raises(DataError, match=r"2 bad ones left out, the first in line 2: when .*20-09"):
        read_table(path, **COLUMNS, skip_bad_rows=True)
    path.write_text("who,what,when\na,x,2018-09-20\nb,x,5\n")
    with pytest.raises(DataError, match=r"log\.csv:3: when is '5', but others are dates"):
        read_table(path, **COLUMNS)
    path.write_text("who,what,when\na,x,7\nb,x,2018-09-20\nb,y,8\n")
    sequences = read_table(path, **COLUMNS, skip_bad_rows=True)
    assert (sequences.times.tolist(), sequences.skipped_rows) == ([7, 8], 1)


@pytest.mark.parametrize("slow", [False, True])
def test_whole_times_keep_their_order_however_large(tmp_path, slow):
    path = tmp_path / "log.csv"
    bad = "a,,1\n" if slow else ""
    path.write_text(f"who,what,when\n{bad}a,x,1577836800000000003\na,y,1577836800000000002\n")
    assert names(read_table(path, **COLUMNS, skip_bad_rows=True)) == [["y", "x"]]


def test_ids_are_text_and_a_near_miss_is_told(tmp_path):
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text("who,what\n1,1.0\n1.0,1.0\n")
    items.write_text("what,title\n1,One\n")
    assert read_table(log, user="who", item="what").user_ids.tolist() == ["1", "1.0"]
    with pytest.raises(DataError, match=r"log\.csv:2: unknown what '1.0' .'1' is known, and ids"):
        read_table(log, items, user="who", item="what")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_duplicates_are_dropped_on_demand(tmp_path, suffix):
    columns = {"who": list("abaaab"), "what": list("xxxxyx"), "when": [5, 5, 5, 4, 5, 6]}
    path = tmp_path / f"log.{suffix}"
    if suffix == "csv":
        rows = zip(*([str(cell) for cell in column] for column in columns.values()), strict=True)
        path.write_text("\n".join(map(",".join, [columns, *rows])))
    else:
        pq.write_table(pa.table(columns), path)
    assert len(read_table(path, **COLUMNS).items) == 6
    sequences = read_table(path, **COLUMNS, drop_duplicates=True)
    assert names(sequences) == [["x", "x", "y"], ["x", "x"]]
    assert sequences.times.tolist() == [4, 5, 5, 5, 6]
    without_times = read_table(path, user="who", item="what", drop_duplicates=True)
    assert names(without_times) == [["x", "y"], ["x"]]
    with pytest.raises(DataError, match="k_core=2"):  # Duplicates are no evidence.
        read_table(path, user="who", item="what", drop_duplicates=True, k_core=2)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"who,what\n", r"log\.csv: no usable rows"),
        (b"\n\n", r"log\.csv:1: no row"),
        (b"who,what\na,x\0\n", r"log\.csv:2: what holds a NUL byte; name the encoding"),
        ("who,what\na,x\n".encode("utf-16-le"), r"log\.csv:1: NUL bytes; .* name its encoding"),
        (b"who,what\na,\xe9\n", r"log\.csv:2: what is not utf-8 text; name its encoding"),
        (b'who,what\na,"x\nb,y\n', r"log\.csv:2: the quote that opens column 2 never closes"),
        (b'who,"what\na,x\n', r"log\.csv:1: the quote that opens column 2 never closes"),
        (gzip.compress(b"who,what\na,x\n" * 999, mtime=0)[:-9], r"log\.csv: damaged"),
        (b"who,what\na\n", r"log\.csv:2: 1 columns instead of 2"),
    ],
)
def test_faults_name_the_file_and_the_line(tmp_path, content, fault):
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(DataError, match=fault):
        read_table(tmp_path / "log.csv", user="who", item="what")


def test_old_mac_line_ends(tmp_path):
    (tmp_path / "log.csv").write_text(LOG.replace("\n", "\r"))
    assert names(read_table(tmp_path / "log.csv", **COLUMNS)) == [["y", "x"], ["x"]]


def test_damage_that_arrow_passes_over_is_seen(tmp_path, monkeypatch):
    def read_csv(source, **_):  # As Arrow does now and then.
        with contextlib.suppress(OSError, EOFError, pa.ArrowInvalid):
            while source.read(1 << 20):
                pass
        return pa.table({"0": ["a"], "1": ["x"]})

    content = gzip.compress(b"who,what\n" + b"a,x\n" * 5000)
    (tmp_path / "log.csv.gz").write_bytes(content[:-6])
    monkeypatch.setattr(rows.pa_csv, "read_csv", read_csv)
    with pytest.raises(DataError, match=r"log\.csv\.gz: damaged"):
        read_table(tmp_path / "log.csv.gz", user="who", item="what")
    (tmp_path / "log.csv").write_text('who,what\na,x\nb,"y')
    with pytest.raises(DataError, match=r"log\.csv:3: the quote"):
        read_table(tmp_path / "log.csv", user="who", item="what")


@pytest.mark.parametrize("strict", [True, False])
def test_cells_of_any_length(tmp_path, strict):
    cell = 'a ""quoted"" word, \r\n' * 100_000
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text("who,what\na,x\na,y\n")
    bad = "" if strict else "x\n"
    items.write_text(f'what,text\n{bad}x,"{cell}"\ny,"{cell}"\n', newline="")
    sequences = read_table(log, items, user="who", item="what", skip_bad_rows=not strict)
    assert sequences.item_fields["text"].tolist() == [cell.replace('""', '"')] * 2
    assert sequences.skipped_rows == (not strict)


ENCODINGS = {"utf-8": "utf-8", "utf-8-sig": "utf-8", "utf-16": "utf-16", "cp1252": "cp1252"}


@st.composite
def tables(draw):
    """Rows of an id and two texts, and how they are written: suffix, encoding, separator, quotes."""
    suffix = draw(st.sampled_from(["csv", "tsv", "dat", "parquet"]))
    encoding = draw(st.sampled_from(sorted(ENCODINGS)))
    separator = {"csv": ",", "tsv": "\t"}.get(suffix) or draw(st.sampled_from(["|", "::", "é"]))
    cells = st.text(
        st.characters(
            codec="utf-8" if encoding.startswith("utf") else encoding, exclude_characters="\0\ufeff"
        )
        | st.sampled_from(' "",\n\r\t'),
        max_size=12,
    )
    cells = cells.filter(lambda text: without_markup(text) == text)
    if suffix in ("tsv", "dat"):  # Without quotes there are things that a cell cannot hold.
        cells = cells.map(lambda text: re.sub(f"[\r\n{separator}]", "_", text))
    texts = draw(st.lists(st.tuples(cells.filter(bool), cells, cells), min_size=1, max_size=6))
    rows = list({row[0]: row for row in texts}.values())
    return suffix, encoding, separator, rows


def written(suffix, separator, rows, line_end, quote_all):
    """Rows as text, by no library's rules but the format's own."""

    def cell(text):
        if suffix == "csv" and (quote_all or re.search('[",\r\n]', text)):
            return '"' + text.replace('"', '""') + '"'
        return text

    return "".join(separator.join(map(cell, row)) + line_end for row in rows)


@settings(deadline=None, max_examples=200)
@given(
    table=tables(),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quote_all=st.booleans(),
    header=st.booleans(),
    pack=st.sampled_from([bytes, gzip.compress]),
    bad_rows=st.integers(0, 2),
    block=st.sampled_from([8, 64, 1 << 20]),
)
def test_what_was_written_is_read(
    tmp_path_factory, table, line_end, quote_all, header, pack, bad_rows, block
):
    suffix, encoding, separator, content = table
    folder = tmp_path_factory.mktemp("table")
    path, log = folder / f"items.{suffix}", folder / "log.parquet"
    ids, titles, texts = map(list, zip(*content, strict=True))
    pq.write_table(pa.table({"0": ["u"] * len(ids), "1": ids}), log)
    if suffix == "parquet":
        rows_of_file = len(content) + bad_rows
        columns = zip(*content, *[("", "", "")] * bad_rows, strict=True)
        pq.write_table(pa.table(dict(zip("012", map(list, columns), strict=True))), path)
    else:
        names = [("id", "title", "text")] if header else []
        lines = [*names, *content, *[("", "bad", "")] * bad_rows]
        rows_of_file = len(lines) - header
        text = written(suffix, separator, lines, line_end, quote_all)
        path.write_bytes(pack(text.encode(encoding)))
    by_name = header and suffix != "parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_BLOCK_BYTES", block)
        sequences = read_table(
            log,
            path,
            user="0",
            item="1",
            title=1,
            encoding=ENCODINGS[encoding],
            header=header,
            items_options={"item": 0, "separator": separator},
            skip_bad_rows=True,
        )
    assert sequences.item_ids.tolist() == ids
    assert sequences.item_fields["title"].tolist() == titles
    assert sequences.item_fields["text" if by_name else "2"].tolist() == texts
    assert len(sequences.item_ids) + sequences.skipped_rows == rows_of_file
