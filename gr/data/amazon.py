"""Amazon reviews of 2014 and 2018 (McAuley et al.) and 2023 (Hou et al.), with product metadata."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gr.data.files import existing_file
from gr.data.interactions import sequences_from_table
from gr.data.json_rows import numbered_lines, numbered_objects, objects, read_json_rows
from gr.data.rows import RowFormat, bad_row, read_header, read_rows, require_columns
from gr.data.sequences import DataError, Sequences
from gr.data.text import as_text

_MILLISECONDS = 1000.0

# Field names of user, item, rating and time by edition.
_FIELDS_2014 = {"reviewerID": "user", "asin": "item", "overall": "rating", "unixReviewTime": "time"}
_FIELDS_2023 = {
    "user_id": "user",
    "parent_asin": "item",
    "rating": "rating",
    "timestamp": "time",
}

# Ratings-only files: the columns, for files without a header.
_RATING_COLUMNS: Mapping[int, list[str] | None] = {
    2014: ["user", "item", "rating", "time"],
    2018: ["item", "user", "rating", "time"],
    2023: None,
}

# Item field -> its names in the editions; the first one present is used.
_METADATA_FIELDS = {
    "title": ("title",),
    "brand": ("brand", "store"),
    "categories": ("categories", "category"),
    "description": ("description",),
}
_ASIN_LENGTH = 10  # Length of every item id; reviewers' ids are longer.


def read_amazon_reviews(
    path: str | os.PathLike[str],
    metadata_path: str | os.PathLike[str] | None = None,
    *,
    k_core: int = 0,
    min_rating: float | None = None,
    drop_duplicates: bool = False,
    skip_bad_rows: bool = False,
) -> Sequences:
    """Reads reviews as JSON lines, plain or `.gz`, of the 2014, 2018 or 2023 edition.

    The edition is recognised by the fields. Lines may also be Python dictionaries.

    Args:
        path: the reviews.
        metadata_path: the products' metadata (JSON lines; of 2014 also lines of Python
            dictionaries), for the item fields `title`, `brand`, `categories` and `description`. It is known to be
            incomplete: a missing product has empty fields.
        k_core: keep only users and items with at least so many reviews; 5 is usual.
        min_rating: keep only reviews with at least so many stars.
        drop_duplicates: of reviews with the same user, item and time keep the first.
        skip_bad_rows: leave bad rows out and count them.

    Raises:
        DataError: a missing file, unknown fields, or a bad row.
    """
    path = existing_file(path)
    fields = _edition_fields(path)
    table, skipped = read_json_rows(
        path,
        ids=[name for name, ours in fields.items() if ours in ("user", "item")],
        numbers=[name for name, ours in fields.items() if ours in ("rating", "time")],
        skip_bad_rows=skip_bad_rows,
    )
    table = table.rename_columns([fields[name] for name in table.column_names])
    if fields is _FIELDS_2023:
        table = _in_seconds(table)
    return _sequences(
        path, table, skipped, metadata_path, k_core, min_rating, drop_duplicates, skip_bad_rows
    )


def read_amazon_ratings(
    path: str | os.PathLike[str],
    metadata_path: str | os.PathLike[str] | None = None,
    *,
    edition: int,
    k_core: int = 0,
    min_rating: float | None = None,
    drop_duplicates: bool = False,
    skip_bad_rows: bool = False,
) -> Sequences:
    """Reads the ratings-only CSV files, plain or `.gz`.

    Args:
        path: the ratings.
        metadata_path: as for `read_amazon_reviews`.
        edition: 2014 (user, item, rating, time; no header), 2018 (item before user; no header) or
            2023 (header). Required, since the first two cannot be told apart by their columns.
        k_core: keep only users and items with at least so many ratings.
        min_rating: keep only ratings at least so high.
        drop_duplicates: of ratings with the same user, item and time keep the first.
        skip_bad_rows: leave bad rows out and count them.

    Raises:
        DataError: a missing file or column, the wrong edition, or a bad row.
    """
    path = existing_file(path)
    if edition not in _RATING_COLUMNS:
        raise DataError(f"no edition {edition} of the Amazon ratings; name one of 2014, 2018, 2023")
    columns = _RATING_COLUMNS[edition]
    names = columns
    if columns is None:
        header = read_header(path, ",", quoted=True)
        require_columns(path, header, list(_FIELDS_2023))
        names = [_FIELDS_2023.get(name, name) for name in header]
    form = RowFormat(
        names=names,
        ids=["user", "item"],
        numbers=["rating", "time"],
        separator=",",
        quoted=True,
        header=columns is None,
    )
    table, skipped = read_rows(path, form, skip_bad_rows=skip_bad_rows)
    user, item = table["user"][0].as_py(), table["item"][0].as_py()
    if len(item) != _ASIN_LENGTH and len(user) == _ASIN_LENGTH:
        raise DataError(
            f"{path}: user {user!r} looks like an item and item {item!r} like a user; "
            f"this is not edition {edition}: name 2014 (user first) or 2018 (item first)"
        )
    if edition == 2023:
        table = _in_seconds(table)
    return _sequences(
        path, table, skipped, metadata_path, k_core, min_rating, drop_duplicates, skip_bad_rows
    )


def _sequences(
    path: Path,
    table: pa.Table,
    skipped: int,
    metadata_path: str | os.PathLike[str] | None,
    k_core: int,
    min_rating: float | None,
    drop_duplicates: bool,
    skip_bad_rows: bool,
) -> Sequences:
    items_table, skipped_items = None, 0
    if metadata_path is not None:
        items_table, skipped_items = _read_metadata(
            existing_file(metadata_path), set(pc.unique(table["item"]).to_pylist()), skip_bad_rows
        )
    return sequences_from_table(
        table,
        source=path,
        items_table=items_table,
        k_core=k_core,
        min_rating=min_rating,
        drop_duplicates=drop_duplicates,
        skipped_rows=skipped + skipped_items,
    )


def _edition_fields(path: Path) -> Mapping[str, str]:
    """The edition's field names, by the first line that is an object."""
    for _, record in numbered_objects(path):
        if isinstance(record, dict):
            for fields in (_FIELDS_2014, _FIELDS_2023):
                if all(name in record for name in list(fields)[:2]):
                    return fields
            raise DataError(
                f"{path}: no Amazon reviews, which have the fields {', '.join(_FIELDS_2014)} or "
                f"{', '.join(_FIELDS_2023)}; the first line has {', '.join(record)}"
            )
    raise DataError(f"{path}: no line is a JSON object; check the format")


def _in_seconds(table: pa.Table) -> pa.Table:
    seconds = pc.divide(table["time"], _MILLISECONDS)
    return table.set_column(table.column_names.index("time"), "time", seconds)


def _read_metadata(
    path: Path, wanted: Collection[str], skip_bad_rows: bool
) -> tuple[pa.Table, int]:
    """Metadata of the wanted items, the first record of each, and the number of bad lines."""
    columns = {name: [] for name in ("item", *_METADATA_FIELDS)}
    found, skipped = set(), 0
    for number, line in numbered_lines(path):
        # Python dictionaries are slow to parse, and most products of a category are not wanted.
        start = re.match(r"\{'asin': '(\w+)'", line)
        if start and start[1] not in wanted:
            continue
        for record in objects(line):
            item = None
            if isinstance(record, dict):
                item = record.get("parent_asin") or record.get("asin")
            try:
                if not isinstance(item, str):
                    raise DataError("no JSON object or Python dictionary with an asin")
                if item not in wanted or item in found:
                    continue
                texts = {
                    name: next(filter(None, map(as_text, map(record.get, sources))), "")
                    for name, sources in _METADATA_FIELDS.items()
                }
            except DataError as fault:
                if not skip_bad_rows:
                    raise bad_row(path, number, str(fault)) from fault
                skipped += 1
                continue
            found.add(item)
            for name, text in {"item": item, **texts}.items():
                columns[name].append(text)
    return pa.table({name: pa.array(c, pa.string()) for name, c in columns.items()}), skipped
