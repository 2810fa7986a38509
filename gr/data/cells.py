"""Splits text into rows and cells, by one set of rules for all readers of text tables.

* A row ends with `\\n`, `\\r\\n` or `\\r` only. Empty lines are no rows.
* Without quoting, quotes are text.
* With quoting, a cell that begins with a double quote ends at the next quote that is not doubled, and the cell must end
  there. Everything between is text, including line ends. A quote anywhere else is text.
* Broken quoting makes one bad row, reported at the line where the quote opened. The next row begins with the next line,
  so that one stray quote hides no other row.
"""

import codecs
import collections
from collections.abc import Iterable, Iterator

import numpy as np

_QUOTE = ord('"')
_REMEDY = " (quotes that are text: double them, or read the table without quoting)"


class Lines:
    """An iterator over lines that can take lines back; `number` is that of the last line returned."""

    def __init__(self, lines: Iterable[str]):
        self._lines = iter(lines)
        self._back: collections.deque[str] = collections.deque()
        self.number = 0

    def next(self) -> str:
        """The next line, or an empty string at the end."""
        line = self._back.popleft() if self._back else next(self._lines, "")
        self.number += bool(line)
        return line

    def take_back(self, lines: list[str]) -> None:
        """Takes back the last lines, to be returned once more."""
        self._back.extendleft(reversed(lines))
        self.number -= len(lines)


def numbered_rows(
    lines: Lines, separator: str, quoted: bool
) -> Iterator[tuple[int, list[str] | str]]:
    """Each row's first line and its cells, or the line and text of its fault."""
    while line := lines.next():
        bare = line.rstrip("\r\n")
        if not bare:
            continue
        if quoted and '"' in bare:
            number = lines.number
            row = _quoted_row(line, lines, separator)
            yield row if isinstance(row, tuple) else (number, row)
        else:
            yield lines.number, bare.split(separator)


def _quoted_row(line: str, lines: Lines, separator: str) -> list[str] | tuple[int, str]:
    """The cells of the row that begins with this line, or the line and text of its fault."""
    cells, at, end = [], 0, len(line.rstrip("\r\n"))
    while True:
        if not line.startswith('"', at):
            stop = line.find(separator, at, end)
            cells.append(line[at : end if stop < 0 else stop])
            if stop < 0:
                return cells
            at = stop + len(separator)
            continue
        opened, passed, pieces = lines.number, [], []
        start = seek = at + 1
        while (quote := line.find('"', seek)) < 0 or line.startswith('""', quote):
            if quote >= 0:
                seek = quote + 2
                continue
            pieces.append(line[start:])
            line, start, seek = lines.next(), 0, 0
            if not line:
                lines.take_back(passed)
                return opened, f"the quote that opens column {len(cells) + 1} never closes{_REMEDY}"
            passed.append(line)
        pieces.append(line[start:quote])
        cells.append("".join(pieces).replace('""', '"'))
        at, end = quote + 1, len(line.rstrip("\r\n"))
        if at == end:
            return cells
        if not line.startswith(separator, at):
            lines.take_back(passed)
            return opened, f"text follows the quotes around column {len(cells)}{_REMEDY}"
        at += len(separator)


class PlainText:
    """Checks the UTF-8 bytes of a table, block by block, for text that Arrow's parser splits differently.

    This is so for quotes that do not enclose a whole cell, and for quotes that never close: Arrow accepts both
    silently. A quote of even number (from 0) must open a cell or be the second of a doubled one, a quote of odd number
    must close a cell or be the first of a doubled one.
    """

    def __init__(self, separator: str, quoted: bool):
        self._beside = np.frombuffer(separator.encode() + b'"\n\r', np.uint8)
        self._quoted = quoted
        self._first = True
        self._quotes = 0
        self._rest = b"\n"  # The last checked byte, and one that waits for its successor.

    def holds(self, block: bytes) -> bool:
        """Whether everything up to this block is plain; an empty block marks the end of the file."""
        if b"\0" in block:  # No cell may hold NUL.
            return False
        if self._first and block.startswith(codecs.BOM_UTF8):  # A second mark.
            return False
        self._first = False
        if not self._quoted:
            return True
        content = self._rest + (block or b"\n")
        if b'"' in content:
            codes = np.frombuffer(content, np.uint8)
            places = np.flatnonzero(codes[1:-1] == _QUOTE) + 1
            opens = (np.arange(len(places)) + self._quotes) % 2 == 0
            self._quotes += len(places)
            if not np.isin(codes[np.where(opens, places - 1, places + 1)], self._beside).all():
                return False
        self._rest = content[-2:]
        return bool(block) or self._quotes % 2 == 0
