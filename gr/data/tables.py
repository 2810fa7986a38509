"""Plain tables, CSV, TSV, other text or Parquet, whose columns the caller names."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from etils.epath import Path

from gr.data.files import existing_file
from gr.data.interactions import sequences_from_table
from gr.data.parquet import is_parquet, parquet_columns, read_parquet
from gr.data.rows import RowFormat, column_roles, near_name, read_header, read_rows, require_columns
from gr.data.sequences import DataError, Sequences

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_PARQUET = (".parquet", ".pq")
_UNUSABLE_SEPARATORS = ("", '"', "\n", "\r", "\0")


def read_table(
    path: str | os.PathLike[str],
    items_path: str | os.PathLike[str] | None = None,
    *,
    user: str | int,
    item: str | int,
    time: str | int | None = None,
    rating: str | int | None = None,
    title: str | int | None = None,
    separator: str | None = None,
    encoding: str = "utf-8",
    header: bool = True,
    quoted: bool | None = None,
    items_options: Mapping[str, Any] | None = None,
    k_core: int = 0,
    min_rating: float | None = None,
    drop_duplicates: bool = False,
    skip_bad_rows: bool = False,
) -> Sequences:
    """Reads a table of interactions with named, or numbered, columns.

    Rows and cells are split as `gr.data.cells` says; blank lines are no rows, and a row with a quote
    that never closes is one bad row, of one line. Ids are text and taken as they stand: in text
    files "1.0" is not "1", and "NA" is an id; in Parquet the integer 1 and the float 1.0 are "1". An
    interaction whose user or item is empty, null or NaN is a bad row, as is one without a finite time
    where times are read.

    Args:
        path: a text table, plain or packed by gzip, or a Parquet file.
        items_path: a table of items in any of these forms, with the column `item` too; all its
            other columns that have a name become `item_fields`. It is authoritative: an interaction
            with an item that it lacks is a bad row.
        user: the users' column: its name, or its number from 0.
        item: the items' column.
        time: the times' column: any ordered numbers, or dates and times of ISO 8601 (in Parquet also
            timestamps), which become seconds since 1970; without a zone they are in UTC. Users'
            interactions are sorted by the exact times, `Sequences.times` are float64. None takes a
            user's interactions in the order of the file.
        rating: the ratings' column, needed only for `min_rating`.
        title: the item table's column that becomes the field `title`, replacing one of that name.
        separator: the text between the cells of a text table; by default a comma in `.csv` and a tab in `.tsv`. Other
            names of text tables (`.txt`, `.dat`, ...) need it.
        encoding: of text tables. A byte order mark of UTF-8, UTF-16 or UTF-32 is heeded.
        header: whether the first row of a text table names the columns; without one their names
            are their numbers.
        quoted: whether cells of a text table may stand in double quotes, and then hold separators
            and line ends; by default where the name ends in `.csv` or the separator is a comma.
        items_options: `item`, `separator`, `encoding`, `header` and `quoted` of the item table, where
            they are not those of the interactions.
        k_core: keep only users and items with at least so many interactions.
        min_rating: keep only interactions rated at least so high.
        drop_duplicates: of interactions with the same user, item and time (user and item, where no
            times are read) keep the first.
        skip_bad_rows: leave bad rows out and count them.

    Raises:
        DataError: a missing file or column, an unknown kind of file, or a bad row.
    """
    log = _Table(existing_file(path), separator, encoding, header, quoted)
    items_table, skipped_items = None, 0
    if items_path is not None:
        options = {"item": item, **(items_options or {})}
        items_item = options.pop("item")
        for name in options:
            known = ("item", "separator", "encoding", "header", "quoted")
            if name not in known:
                raise DataError(
                    f"items_options has no {name!r}; it has {', '.join(known)}{near_name(name, known)}"
                )
        items = dataclasses.replace(log, path=existing_file(items_path), **options)
        items_table, skipped_items = items.read_items(items_item, title, skip_bad_rows)
    elif title is not None or items_options is not None:
        raise DataError(f"{path}: title and items_options are of the item table; give items_path")
    table, skipped = log.read_interactions(user, item, time, rating, items_table, skip_bad_rows)
    return sequences_from_table(
        table,
        source=path,
        items_table=items_table,
        k_core=k_core,
        min_rating=min_rating,
        drop_duplicates=drop_duplicates,
        skipped_rows=skipped + skipped_items,
    )


def read_items_table(
    path: str | os.PathLike[str],
    item: str | int,
    title: str | int | None = None,
    *,
    separator: str | None = None,
    encoding: str = "utf-8",
    header: bool = True,
    quoted: bool | None = None,
) -> pa.Table:
    """A table of items alone, such as `items_path` of `read_table`: the column `item`, then all others as text.

    Raises:
        DataError: a missing file or column, an unknown kind of file, or a bad row.
    """
    table = _Table(existing_file(path), separator, encoding, header, quoted)
    return table.read_items(item, title, skip_bad_rows=False)[0]


def column_names(path: str | os.PathLike[str]) -> list[str]:
    """The names of the columns of a table with a header, CSV, TSV or Parquet; a DataError if it cannot be read."""
    return list(_with_header(path)._form().names)


def read_columns(
    path: str | os.PathLike[str],
    *,
    ids: Sequence[str],
    numbers: Sequence[str] = (),
    skip_bad_rows: bool = False,
) -> tuple[pa.Table, int]:
    """Named columns of a table with a header, ids as text and numbers as float64, and the number of bad rows left out.

    Raises:
        DataError: a missing file or column, an unknown kind of file, or (unless `skip_bad_rows`) a bad row.
    """
    table = _with_header(path)
    form = dataclasses.replace(table._form(), ids=ids, numbers=numbers)
    return table._read(form, skip_bad_rows)


def _with_header(path: str | os.PathLike[str]) -> "_Table":
    return _Table(existing_file(path), separator=None, encoding="utf-8", header=True, quoted=None)


@dataclasses.dataclass(frozen=True)
class _Table:
    """A file and how it is to be read; the options are those of `read_table`."""

    path: Path
    separator: str | None
    encoding: str
    header: bool
    quoted: bool | None

    def read_interactions(
        self,
        user: str | int,
        item: str | int,
        time: str | int | None,
        rating: str | int | None,
        items_table: pa.Table | None,
        skip_bad_rows: bool,
    ) -> tuple[pa.Table, int]:
        """The columns that have a role, renamed to it, and the number of bad rows."""
        form = self._form()
        columns = {"user": user, "item": item, "time": time, "rating": rating}
        columns = {
            role: None if column is None else self._column(form.names, column)
            for role, column in columns.items()
        }
        roles = column_roles(self.path, **columns)
        require_columns(self.path, form.names, list(roles))
        form = dataclasses.replace(
            form,
            ids=[columns["user"], columns["item"]],
            numbers=[] if rating is None else [columns["rating"]],
            times=[] if time is None else [columns["time"]],
            known=None
            if items_table is None
            else (columns["item"], items_table.column(0).to_pylist()),
        )
        table, skipped = self._read(form, skip_bad_rows)
        return table.rename_columns([roles[name] for name in table.column_names]), skipped

    def read_items(
        self, item: str | int, title: str | int | None, skip_bad_rows: bool
    ) -> tuple[pa.Table, int]:
        """The column of items, renamed, and all others as text, and the number of bad rows."""
        form = self._form()
        item = self._column(form.names, item)
        title = None if title is None else self._column(form.names, title)
        roles = column_roles(self.path, item=item, title=title)
        require_columns(self.path, form.names, list(roles))
        others = [name for name in form.names if name.strip() and name not in roles]
        if title is not None:
            others = [title, *(name for name in others if name != "title")]
        form = dataclasses.replace(form, ids=[item], text=others)
        table, skipped = self._read(form, skip_bad_rows)
        return table.rename_columns(["item", *(roles.get(n, n) for n in others)]), skipped

    def _is_parquet(self) -> bool:
        return self._suffix() in _PARQUET or is_parquet(self.path)

    def _suffix(self) -> str:
        path = self.path.with_suffix("") if self.path.suffix.lower() == ".gz" else self.path
        return path.suffix.lower()

    def _form(self) -> RowFormat:
        """The file's columns, and how a text table is split."""
        if self._is_parquet():
            return RowFormat(names=parquet_columns(self.path))
        suffix = self._suffix()
        # A shell passes on the two characters of '\\t'.
        separator = "\t" if self.separator == "\\t" else self.separator
        if separator is None:
            separator = _SEPARATORS.get(suffix)
        if separator is None:
            known = ", ".join((*_SEPARATORS, *_PARQUET))
            raise DataError(
                f"{self.path}: no reader for {suffix!r}; the file must be one of {known}, or text whose "
                "separator is named (separator='\\t')"
            )
        if separator in _UNUSABLE_SEPARATORS:
            raise DataError(
                f"{self.path}: cells cannot be separated by {separator!r}; name another"
            )
        quoted = self.quoted
        if quoted is None:
            quoted = suffix == ".csv" or separator == ","
        names = read_header(self.path, separator, quoted=quoted, encoding=self.encoding)
        if not self.header:
            names = [str(number) for number in range(len(names))]
        return RowFormat(
            names=names,
            separator=separator,
            quoted=quoted,
            header=self.header,
            encoding=self.encoding,
        )

    def _column(self, names: list[str], column: str | int) -> str:
        """The name of a column that may be given by its number."""
        if not isinstance(column, int):
            return column
        if not 0 <= column < len(names):
            raise DataError(
                f"{self.path}: no column {column}; it has {len(names)}, numbered from 0"
            )
        return names[column]

    def _read(self, form: RowFormat, skip_bad_rows: bool) -> tuple[pa.Table, int]:
        read = read_parquet if self._is_parquet() else read_rows
        return read(self.path, form, skip_bad_rows=skip_bad_rows)
