import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data import DataError
from gr.data import rows as rows_module
from gr.data.cells import Lines, PlainText, numbered_rows
from gr.data.rows import RowFormat, numbered_cells, read_rows


def split(text, separator=",", quoted=True):
    return list(numbered_rows(Lines(io.StringIO(text, newline="")), separator, quoted))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (
            "a,b\r\nc,d\re,\n\n\r\n,f",
            [(1, ["a", "b"]), (2, ["c", "d"]), (3, ["e", ""]), (6, ["", "f"])],
        ),
        ("a\x85b\u2028\x0b\x0c,\x1c ,c \n", [(1, ["a\x85b\u2028\x0b\x0c", "\x1c ", "c "])]),
        ('"a,""b""\r\n\n",c\n"",d', [(1, ['a,"b"\r\n\n', "c"]), (4, ["", "d"])]),
        ('12",a""b, "c"\n', [(1, ['12"', 'a""b', ' "c"'])]),
        # A quote that never closes hides no other row.
        ('a,"b\nc,d\n', [(1, "the quote that opens column 2 never closes"), (2, ["c", "d"])]),
        ('a,"b\nc,""\n', [(1, "the quote that opens column 2 never closes"), (2, ["c", ""])]),
        # One that closes in another row's cell is found there, and laid to where it opened.
        ('a,"b\nc,"d"\n', [(1, "text follows the quotes around column 2"), (2, ["c", "d"])]),
        ('"a"b,c\n"d"\n', [(1, "text follows the quotes around column 1"), (2, ["d"])]),
        # The row begins in line 1, its bad quote in line 3.
        ('"a\n\nb","c\nd', [(3, "the quote that opens column 2 never closes"), (4, ["d"])]),
    ],
)
def test_rows_and_cells(text, rows):
    found = [
        (line, cells if isinstance(cells, list) else cells.partition(" (quotes that are text:")[0])
        for line, cells in split(text)
    ]
    assert found == rows


def test_without_quoting_quotes_are_text():
    text = '"Heroes\ta\n"b"\t"\n'
    assert split(text, "\t", quoted=False) == [(1, ['"Heroes', "a"]), (2, ['"b"', '"'])]


def test_separators_of_several_characters():
    assert split('a::"b::"::c:\n', "::") == [(1, ["a", "b::", "c:"])]
    assert split("a::b:::c", "::", quoted=False) == [(1, ["a", "b", ":c"])]


def test_a_cell_may_be_of_any_length():
    cell = "x\n" * 200_000  # Above Arrow's block, and above what the csv module takes.
    (row,) = split(f'a,"{cell}"\n')
    assert row == (1, ["a", cell])


def rows_by_hand(text, separator, quoted):
    """The rules once more, character by character; None for a row that cannot be split."""
    rows, at = [], 0
    while at < len(text):
        if text[at] in "\r\n":
            at += 1
            continue
        cells = []
        while True:
            if quoted and text[at : at + 1] == '"':
                opened, cell, at = at, "", at + 1
                while at < len(text) and (text[at] != '"' or text[at + 1 : at + 2] == '"'):
                    cell += text[at]
                    at += 2 if text[at] == '"' else 1
                at += 1
                ends = at == len(text) or text[at : at + 1] in ("\r", "\n")
                if not ends and not text.startswith(separator, at) or at > len(text):
                    at = opened
                    while at < len(text) and text[at] not in "\r\n":
                        at += 1
                    cells = None
                    break
            else:
                start = at
                while (
                    at < len(text) and text[at] not in "\r\n" and not text.startswith(separator, at)
                ):
                    at += 1
                cell = text[start:at]
            cells.append(cell)
            if not text.startswith(separator, at):
                break
            at += len(separator)
        rows.append(cells)
    return rows


CHARACTERS = 'ab"" ,\t:\n\n\r\x85\u2028\x0bé'


@settings(deadline=None, max_examples=400)
@given(
    text=st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=40),
    separator=st.sampled_from(",\t ") | st.just("::"),
    quoted=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    block=st.sampled_from([2, 5, 16, 1 << 20]),
)
def test_both_ways_follow_the_rules(tmp_path_factory, text, separator, quoted, encoding, block):
    path = tmp_path_factory.mktemp("rows") / "log"
    path.write_bytes(text.encode(encoding))
    names = ["one", "two"]
    form = RowFormat(names, text=names, separator=separator, quoted=quoted, encoding=encoding)
    expected = rows_by_hand(text, separator, quoted)
    found = [None if isinstance(cells, str) else cells for _, cells in numbered_cells(path, form)]
    assert found == expected
    good = [cells for cells in expected if cells is not None and len(cells) == 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_BLOCK_BYTES", block)
        fast = rows_module._read_fast(path, form)
        if fast is not None:
            assert len(good) == len(expected)
            assert list(zip(*fast.to_pydict().values(), strict=True)) == list(map(tuple, good))
        try:
            table, skipped = read_rows(path, form, skip_bad_rows=True)
        except DataError as error:
            assert not good and "no usable rows" in str(error)
            return
    assert list(zip(*table.to_pydict().values(), strict=True)) == list(map(tuple, good))
    assert table.num_rows + skipped == len(expected)


@settings(deadline=None)
@given(
    cells=st.lists(st.tuples(st.text('ab" ,\n\r'), st.text('ab" ,\n\r')), min_size=1, max_size=9),
    line_end=st.sampled_from(["\n", "\r\n"]),
    size=st.integers(1, 20),
)
def test_what_is_quoted_as_it_should_be_is_plain(cells, line_end, size):
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator=line_end).writerows(cells)
    content = file.getvalue().encode()
    blocks = [content[at : at + size] for at in range(0, len(content), size)]
    plain = PlainText(",", quoted=True)
    assert all(map(plain.holds, [*blocks, b""]))


@pytest.mark.parametrize(
    "text", ['a,"b\n', 'a,b"\n', '"a"b,c\n', 'a,"b" \n', 'a,"b\nc,"d"\n', '""a"",b\n', "a,b\0\n"]
)
@pytest.mark.parametrize("size", [1, 2, 99])
def test_what_arrow_would_split_otherwise_is_not_plain(text, size):
    content = text.encode()
    blocks = [content[at : at + size] for at in range(0, len(content), size)]
    plain = PlainText(",", quoted=True)
    assert not all([plain.holds(block) for block in [*blocks, b""]])


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_cells_hold_line_ends_wherever_a_block_ends(tmp_path, monkeypatch, line_end):
    cell = line_end.join(["a,b", "c,d", ""])  # Its lines look like rows.
    path = tmp_path / "log.csv"
    path.write_text(f'"{cell}","{cell}"{line_end}' * 30, newline="")
    form = RowFormat(["one", "two"], text=["one", "two"], separator=",", quoted=True)
    accepted = 0
    for block in range(2, 120):
        monkeypatch.setattr(rows_module, "_BLOCK_BYTES", block)
        fast = rows_module._read_fast(path, form)
        if fast is not None:
            accepted += 1
            assert fast.to_pydict() == {"one": [cell] * 30, "two": [cell] * 30}
    assert accepted > 50  # Smaller blocks do not hold a row.
