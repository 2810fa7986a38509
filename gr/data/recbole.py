"""RecBole's atomic files (Zhao et al., CIKM 2021): tab-separated, with types in the header."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gr.data.files import existing_file
from gr.data.interactions import sequences_from_table
from gr.data.rows import RowFormat, column_roles, read_header, read_rows, require_columns
from gr.data.sequences import DataError, Sequences

# Names of the same column differ between data sets.
_FIELD_NAMES = {
    "movie_title": "title",
    "item_title": "title",
    "class": "genres",
    "genre": "genres",
    "category": "categories",
}


def read_recbole(
    path: str | os.PathLike[str],
    items_path: str | os.PathLike[str] | None = None,
    *,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = "timestamp",
    rating: str = "rating",
    title: str | None = None,
    encoding: str = "utf-8",
    k_core: int = 0,
    min_rating: float | None = None,
    drop_duplicates: bool = False,
    skip_bad_rows: bool = False,
) -> Sequences:
    """Reads RecBole atomic files.

    Args:
        path: the `.inter` file.
        items_path: the `.item` file; by default the one beside `path`, if there is one. Where it is
            read it is authoritative: an interaction with an item that it lacks is a bad row. Its
            fields become `item_fields`; `movie_title` becomes `title`, `class` `genres`.
        user: name of the users' column, without its type, as for the following three.
        item: name of the items' column.
        time: name of the times' column, numbers or ISO dates and times; None takes a user's
            interactions in the order of the file.
        rating: name of the ratings' column, needed only for `min_rating`.
        title: name of the items' column that becomes `title`, where it is not one of those.
        encoding: of both files.
        k_core: keep only users and items with at least so many interactions.
        min_rating: keep only interactions rated at least so high.
        drop_duplicates: of interactions with the same user, item and time keep the first.
        skip_bad_rows: leave bad rows out and count them.

    Raises:
        DataError: a missing file or column, or a bad row.
    """
    path = existing_file(path)
    names = _header(path, encoding)
    roles = column_roles(
        path, user=user, item=item, time=time, rating=None if min_rating is None else rating
    )
    require_columns(path, names, list(roles))

    if items_path is None:
        packed = path.suffix == ".gz"
        beside = (path.with_suffix("") if packed else path).with_suffix(".item")
        choices = (beside, beside.with_name(f"{beside.name}.gz"))
        items_path = next((choice for choice in choices if choice.exists()), None)
    items_table, skipped_items = None, 0
    if items_path is None and title is not None:
        raise DataError(f"{path}: title is of the item file; give items_path")
    if items_path is not None:
        items_table, skipped_items = _read_items(items_path, item, title, encoding, skip_bad_rows)
    table, skipped = read_rows(
        path,
        RowFormat(
            names=names,
            ids=[user, item],
            numbers=[] if min_rating is None else [rating],
            times=[] if time is None else [time],
            header=True,
            encoding=encoding,
            known=None if items_table is None else (item, items_table.column(0).to_pylist()),
        ),
        skip_bad_rows=skip_bad_rows,
    )
    return sequences_from_table(
        table.rename_columns([roles[name] for name in table.column_names]),
        source=path,
        items_table=items_table,
        k_core=k_core,
        min_rating=min_rating,
        drop_duplicates=drop_duplicates,
        skipped_rows=skipped + skipped_items,
    )


def _header(path: Path, encoding: str) -> list[str]:
    """Column names without their types (`user_id:token` -> `user_id`)."""
    return [name.partition(":")[0] for name in read_header(path, "\t", encoding=encoding)]


def _read_items(
    path: str | os.PathLike[str],
    item: str,
    title: str | None,
    encoding: str,
    skip_bad_rows: bool,
) -> tuple[pa.Table, int]:
    names = _header(existing_file(path), encoding)
    roles = column_roles(path, item=item, title=title)
    require_columns(path, names, list(roles))
    others = [name for name in names if name != item]
    if title is not None:  # Replaces another column of that name.
        others = [title, *(n for n in others if n not in (title, "title"))]
    table, skipped = read_rows(
        path,
        RowFormat(names=names, ids=[item], text=others, header=True, encoding=encoding),
        skip_bad_rows=skip_bad_rows,
    )
    renamed = ["item"]
    for name in others:
        ours = roles.get(name) or _FIELD_NAMES.get(name, name)
        taken = name not in roles and ours in (*names, *renamed)
        renamed.append(name if taken else ours)
    table = table.rename_columns(renamed)
    if "genres" in renamed:  # A sequence of tokens; elsewhere its separator, a space, may be text.
        listed = pc.replace_substring(table["genres"], " ", ", ")
        table = table.set_column(renamed.index("genres"), "genres", listed)
    return table, skipped
