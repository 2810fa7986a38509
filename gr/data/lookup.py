"""Finds items by ids and titles, as written by a person on one line."""

import collections
import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gr.data.sequences import DataError, Sequences

_YEAR_FIELDS = ("release_year", "year")
_SHOWN = 5
_Row = int


def find_items(sequences: Sequences, text: str) -> np.ndarray:
    """Item rows `[n]` of a list of ids and titles, separated by commas.

    * Titles may hold commas: the longest run of parts that is an id or a title is one item.
    * A title may be written with its year, "Sabrina (1954)", or without, and with its article in front, "The Matrix"
      for "Matrix, The".
    * An exact match takes precedence over one that differs in letter case or Unicode form.
    * A part of a title is enough if only one item has it.
    * `id:300` and `title:300` are unambiguous.

    Raises:
        DataError: for a part that is neither id nor title, or that fits several items, which are listed.
    """
    names = _Names(sequences)
    parts = [part.strip() for part in text.split(",")]
    while parts and not parts[-1]:
        parts.pop()
    if not parts:
        raise DataError("no items are named; write ids or titles, parted by commas")
    rows = []
    while parts:
        count, row = names.first(parts)
        rows.append(row)
        parts = parts[count:]
    return np.array(rows, np.int32)


class _Names:
    """The names of the items of a data set."""

    def __init__(self, sequences: Sequences):
        self._ids = [str(item) for item in sequences.item_ids]
        self._titles = [str(title) for title in sequences.titles()]
        years = next(
            (sequences.item_fields[f] for f in _YEAR_FIELDS if f in sequences.item_fields), None
        )
        self._years = [""] * len(self._ids) if years is None else [str(year) for year in years]
        self._strict, self._lenient = _Reading(self, exact), _Reading(self, folded)

    def ids(self) -> Iterable[tuple[str, _Row]]:
        """Each id and its item."""
        return zip(self._ids, range(len(self._ids)), strict=True)

    def titles(self) -> Iterable[tuple[str, _Row]]:
        """Each way to write a title, and its item."""
        for row, (title, year) in enumerate(zip(self._titles, self._years, strict=True)):
            bare = re.sub(r"\s*\(\d{4}\)\s*$", "", title) or title
            for form in {title, bare, f"{bare} ({year})" if year else title}:
                yield form, row
                article = re.fullmatch(r"(.+), (The|A|An)((?: \(.*\))?)", form)
                if article:
                    yield f"{article[2]} {article[1]}{article[3]}", row

    def first(self, parts: Sequence[str]) -> tuple[int, _Row]:
        """The number of leading parts that name an item, and that item."""
        runs = [(count, _joined(parts[:count])) for count in range(len(parts), 0, -1)]
        for count, name in runs:
            if found := self._known(name):
                if count > 1 and self._are_several(parts[:count]):
                    raise DataError(
                        f"{name!r} is one item and also a list of several; write them as id:ID"
                    )
                return count, self._only(name, found)
        for count, name in runs:
            if found := self._with_part(name):
                return count, self._only(name, found, "is part of the titles of")
        close = self._lenient.similar_titles(parts[0])
        hint = f"; did you mean {' or '.join(map(self._described, close))}?" if close else ""
        raise DataError(f"{parts[0]!r} is no item id and no title of the data{hint}")

    def _known(self, name: str) -> set[_Row]:
        """The items of this name; exact matches take precedence."""
        return self._strict.of(name) or self._lenient.of(name)

    def _with_part(self, name: str) -> set[_Row]:
        """The items whose titles hold this name."""
        part = folded(name)
        titles = self._lenient.titles.items()
        return {row for title, rows in titles if part and part in title for row in rows}

    def _are_several(self, parts: Sequence[str]) -> bool:
        """Whether the parts can be read as two names or more."""
        ends = {0}  # Where a list of names may end.
        for end in range(1, len(parts) + 1):
            starts = ends - {0} if end == len(parts) else ends
            if any(self._known(_joined(parts[start:end])) for start in starts):
                ends.add(end)
        return len(parts) in ends

    def _only(self, name: str, rows: set[_Row], fits: str = "fits") -> _Row:
        if len(rows) == 1:
            return next(iter(rows))
        shown = sorted(rows)[:_SHOWN]
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        raise DataError(
            f"{name!r} {fits} {len(rows)} items: {'; '.join(map(self._described, shown))}{more}; "
            f"write the one you mean as id:{self._ids[shown[0]]}, id:{self._ids[shown[1]]}, ..."
        )

    def _described(self, row: _Row) -> str:
        year = f" ({self._years[row]})" if self._years[row] else ""
        return f"{self._titles[row]}{year}, id {self._ids[row]}"


class _Reading:
    """A lookup in which names with equal `key` are the same."""

    def __init__(self, names: _Names, key: Callable[[str], str]):
        self._key = key
        self._ids: dict[str, set[_Row]] = collections.defaultdict(set)
        self.titles: dict[str, set[_Row]] = collections.defaultdict(set)
        for name, row in names.ids():
            self._ids[key(name)].add(row)
        for title, row in names.titles():
            self.titles[key(title)].add(row)

    def of(self, name: str) -> set[_Row]:
        """The items of a name."""
        key = self._key(name)
        found = self._ids.get(key, set()) | self.titles.get(key, set())
        if found:
            return found
        kind, colon, rest = name.partition(":")
        table = {"id": self._ids, "title": self.titles}.get(kind.strip()) if colon else None
        return table.get(self._key(rest), set()) if table is not None else set()

    def similar_titles(self, name: str) -> list[_Row]:
        """A few items with similar titles."""
        close = difflib.get_close_matches(self._key(name), self.titles, n=3, cutoff=0.4)
        return list(dict.fromkeys(row for title in close for row in sorted(self.titles[title])))


def exact(name: str) -> str:
    """A name in one Unicode form, with normalised spaces."""
    return re.sub(r"\s*,\s*", ", ", " ".join(unicodedata.normalize("NFC", name).split()))


def folded(name: str) -> str:
    """As `exact`, without letter case and compatibility forms (full-width letters, ligatures)."""
    return exact(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()))


def _joined(parts: Sequence[str]) -> str:
    return ", ".join(parts)
