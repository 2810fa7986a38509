import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data import DataError
from gr.data import rows as rows_module
from gr.data.rows import RowFormat, is_number, read_header, read_rows, require_columns

FORM = RowFormat(names=["user", "item", "time"], ids=["user", "item"], numbers=["time"])
CSV = RowFormat(
    names=["user", "item", "time", "note"],
    ids=["user", "item"],
    numbers=["time"],
    text=["note"],
    separator=",",
    quoted=True,
    header=True,
)


def write(folder, content, name="log.tsv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_reads_wanted_columns(tmp_path):
    path = write(tmp_path, "a\tx\t1\nb\ty\t2.5\n")
    table, skipped = read_rows(path, FORM)
    assert table.to_pydict() == {"user": ["a", "b"], "item": ["x", "y"], "time": [1.0, 2.5]}
    assert skipped == 0


def test_reads_gz_blank_lines_windows_ends_and_a_missing_last_newline(tmp_path):
    path = tmp_path / "log.tsv.gz"
    path.write_bytes(gzip.compress(b"a\tx\t1\r\n\r\nb\ty\t2"))
    table, _ = read_rows(path, FORM)
    assert table["item"].to_pylist() == ["x", "y"]


def test_null_like_ids_stay_ids(tmp_path):
    table, _ = read_rows(write(tmp_path, "NA\tnull\t1\nnan\tNone\t2\n"), FORM)
    assert table["user"].to_pylist() == ["NA", "nan"]
    assert table["item"].to_pylist() == ["null", "None"]


BAD_ROWS = {
    "a\tx": "2 columns instead of 3",
    "a\tx\t1\t2": "4 columns instead of 3",
    "a\tx\tnoon": "time is not a number: 'noon'",
    "a\tx\t": "time is not a number: ''",
    "a\tx\tnan": "time is not a number: 'nan'",
    "a\tx\tinf": "time is not a number: 'inf'",
    "\tx\t1": "user is empty",
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line_or_left_out(tmp_path, bad):
    path = write(tmp_path, f"a\tx\t1\n\n{bad}\nb\ty\t2\n{bad}\n")
    with pytest.raises(DataError, match=r"log\.tsv:3: ") as error:  # Blank lines count as lines.
        read_rows(path, FORM)
    assert BAD_ROWS[bad] in str(error.value)
    assert "skip_bad_rows" in str(error.value)
    table, skipped = read_rows(path, FORM, skip_bad_rows=True)
    assert table["user"].to_pylist() == ["a", "b"]
    assert skipped == 2


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path):
    path = write(tmp_path, b"a\tx\t1\n\xe9\ty\t2\n")
    with pytest.raises(DataError, match=r"log\.tsv:2: user is not utf-8 text"):
        read_rows(path, FORM)


def test_unknown_ids_are_bad_rows(tmp_path):
    form = RowFormat(FORM.names, FORM.ids, FORM.numbers, known=("item", ["x"]))
    path = write(tmp_path, "a\tx\t1\nb\ty\t2\n")
    with pytest.raises(DataError, match=r"log\.tsv:2: unknown item 'y'"):
        read_rows(path, form)
    table, skipped = read_rows(path, form, skip_bad_rows=True)
    assert (table["item"].to_pylist(), skipped) == (["x"], 1)


def test_quoted_cells_hold_separators_quotes_and_line_ends(tmp_path):
    text = 'user,item,time,note\na,x,1,"one, ""two""\nthree"\nb,y,2,\n'
    table, _ = read_rows(write(tmp_path, text), CSV)
    assert table["note"].to_pylist() == ['one, "two"\nthree', ""]


def test_line_numbers_count_the_lines_within_quotes(tmp_path):
    text = 'user,item,time,note\na,x,1,"one\ntwo"\nb,y,late,\n'
    with pytest.raises(DataError, match=r"log\.tsv:4: time is not a number: 'late'"):
        read_rows(write(tmp_path, text), CSV)


def test_separators_of_several_characters_and_latin_1(tmp_path):
    form = RowFormat(
        ["item", "title"], ["item"], text=["title"], separator="::", encoding="latin-1"
    )
    path = write(tmp_path, "1::Misérables: Les\n2::Fargo\n".encode("latin-1"))
    assert read_rows(path, form)[0]["title"].to_pylist() == ["Misérables: Les", "Fargo"]
    with pytest.raises(DataError, match=r"log\.tsv:2: 3 columns"):
        read_rows(write(tmp_path, "1::A\n2::B::C\n"), form)


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfuser\titem\n")
    assert read_header(path, "\t") == ["user", "item"]


CELL = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.sampled_from(" '\""),
    min_size=1,
).filter(str.strip)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(CELL, CELL, st.floats(allow_nan=False, allow_infinity=False)),
        min_size=1,
        max_size=8,
    )
)
def test_both_ways_of_reading_agree(tmp_path_factory, expected):
    path = write(
        tmp_path_factory.mktemp("rows"),
        "".join(f"{user}\t{item}\t{time!r}\n" for user, item, time in expected),
    )
    fast = rows_module._read_fast(path, FORM)
    slow, skipped, _ = rows_module._read_slow(path, FORM, skip_bad_rows=False)
    assert skipped == 0
    assert slow.to_pydict() == {
        name: list(column)
        for name, column in zip(FORM.names, zip(*expected, strict=True), strict=True)
    }
    assert fast is not None
    assert fast.to_pydict() == slow.to_pydict()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ("\n\n", "no usable rows"),
    ],
)
def test_files_that_hold_nothing(tmp_path, content, fault):
    path = tmp_path / "log.tsv" if content is None else write(tmp_path, content)
    with pytest.raises(DataError, match=fault):
        read_rows(path, FORM)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_rows(tmp_path, FORM)


def test_a_cut_off_gz_file_is_damaged(tmp_path):
    whole = gzip.compress("".join(f"u{i * 7919}\tx\t{i}\n" for i in range(5000)).encode())
    path = write(tmp_path, whole[: len(whole) // 2], "log.tsv.gz")
    with pytest.raises(DataError, match="damaged"):
        read_rows(path, FORM)


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(DataError, match="no column 'time'; the file has 'user', 'when'"):
        require_columns("log.csv", ["user", "when"], ["user", "time"])


def test_numbers():
    assert all(map(is_number, ("1", " 2.5", "-1e9", 3)))
    assert not any(map(is_number, ("", "one", "nan", "inf", None, "1,5")))


def test_messages_stay_short_whatever_the_file_holds(tmp_path):
    path = write(tmp_path, "a\tx\t1\nb\ty\t" + "9" * 10_000 + "x\n")
    with pytest.raises(DataError, match=r"log\.tsv:2: time .* \(10,003 characters\)") as error:
        read_rows(path, FORM)
    assert len(str(error.value)) < 500
    with pytest.raises(DataError, match=r"no column 'user'.*\.\.\. \(9,999 in all\)") as error:
        require_columns(path, list(map(str, range(9999))), ["user"])
    assert len(str(error.value)) < 700


def test_text_of_one_bad_byte_is_a_bad_row_in_every_encoding(tmp_path):
    form = RowFormat(["item", "title"], ["item"], text=["title"], separator="::", encoding="cp1252")
    path = write(tmp_path, b"1::A\n2::\x81\n3::C\n")
    with pytest.raises(DataError, match=r"log\.tsv:2: title is not cp1252 text"):
        read_rows(path, form)
    table, skipped = read_rows(path, form, skip_bad_rows=True)
    assert (table["item"].to_pylist(), skipped) == (["1", "3"], 1)
