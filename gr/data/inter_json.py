"""The JSON form that LC-Rec, LETTER and APAO share.

`NAME.inter.json` maps users to item numbers, oldest first; `NAME.item.json` maps item numbers to text fields.
`gr.semantic_ids` reads the file of Semantic IDs beside them.
"""

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gr.data.files import existing_file, open_text
from gr.data.interactions import offsets_of
from gr.data.rows import REMEDY, near_name
from gr.data.sequences import DataError, Sequences
from gr.data.text import as_text

_MOST_GAPS = 1000  # Item numbers per interaction; more are a mistake, and would fill memory.


def read_inter_json(
    path: str | os.PathLike[str],
    items_path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    skip_bad_rows: bool = False,
) -> Sequences:
    """Reads sequences in the shared JSON form.

    Users are in the order of the file; item row `i` is item number `i`.

    Args:
        path: the `*.inter.json` file, or a folder that holds exactly one.
        items_path: the `*.item.json` file; by default the one beside `path`, if there is one. It
            says how many items there are; without it there are as many as the largest item number
            asks for.
        title: the field of the items that becomes `title`, replacing one of that name.
        skip_bad_rows: skip and count interactions whose item is not an item number or out of range.

    Raises:
        DataError: a missing or malformed file, or a bad item, by user.
    """
    path = _inter_file(Path(path))
    beside = path.with_name(path.name.removesuffix(".inter.json") + ".item.json")
    if items_path is None and beside.exists():
        items_path = beside
    records = None if items_path is None else _read_records(Path(items_path))
    num_items = None if records is None else len(records)
    fields = {} if records is None else _fields(Path(items_path), records)
    _rename_title(items_path or path, fields, title)

    histories = _load_object(path)
    for user, history in histories.items():
        if not isinstance(history, list):
            raise DataError(
                f"{path}: user {user!r} has {type(history).__name__} {history!r}, not a list"
            )
    lengths = np.fromiter(map(len, histories.values()), np.int64, len(histories))
    values = list(itertools.chain.from_iterable(histories.values()))
    numbers = np.array([_item_number(value) for value in values], np.int64)
    bad = (numbers < 0) | (numbers >= (np.inf if num_items is None else num_items))
    if bad.any():
        if not skip_bad_rows:
            at = int(np.argmax(bad))
            user = list(histories)[int(np.searchsorted(np.cumsum(lengths), at, side="right"))]
            limit = (
                ""
                if num_items is None
                else f" below {num_items}, the number of items in {items_path}"
            )
            raise DataError(
                f"{path}: user {user!r}: {values[at]!r} is no item number{limit}; {REMEDY}"
            )
        users = np.repeat(np.arange(len(lengths)), lengths)
        lengths = np.bincount(users[~bad], minlength=len(lengths))
        numbers = numbers[~bad]
    if not len(numbers):
        raise DataError(f"{path}: no interactions; check the format")
    if num_items is None:
        num_items = int(numbers.max()) + 1
        if num_items > _MOST_GAPS * (len(numbers) + 1000):
            raise DataError(
                f"{path}: item number {num_items - 1} of {len(numbers)} interactions; items must be "
                "numbered from 0 without large gaps, or named in a *.item.json file"
            )
    return Sequences(
        items=numbers.astype(np.int32),
        offsets=offsets_of(lengths),
        user_ids=np.array(list(histories), dtype=str),
        item_ids=np.arange(num_items).astype(str),
        item_fields=fields,
        skipped_rows=int(bad.sum()),
    )


def read_records_by_id(
    path: str | os.PathLike[str], title: str | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Item ids `[n]` str and text fields, name -> `[n]` str, of a JSON object from item id to text fields.

    Raises:
        DataError: a missing or malformed file, or an unknown `title`.
    """
    records = _load_object(existing_file(path))
    for item, record in records.items():
        if not isinstance(record, dict):
            raise DataError(f"{path}: item {item!r} is no object of text fields")
    fields = _columns(Path(path), records)
    _rename_title(path, fields, title)
    return np.array(list(records), dtype=str), fields


def _rename_title(
    path: str | os.PathLike[str], fields: dict[str, np.ndarray], title: str | None
) -> None:
    """Renames the field that is said to be the title; a DataError if there is none of that name."""
    if title is None:
        return
    if title not in fields:
        raise DataError(
            f"{path}: no items' field {title!r}; there are {', '.join(fields)}{near_name(title, fields)}"
        )
    fields["title"] = fields.pop(title)


def _fields(path: Path, records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Records `[N]` as columns of text, name -> `[N]` str; missing fields are empty."""
    return _columns(path, {str(number): record for number, record in enumerate(records)})


def _columns(path: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Records by item id as columns of text, name -> `[N]` str; missing fields are empty."""
    columns = {name: [] for name in itertools.chain.from_iterable(records.values())}
    for item, record in records.items():
        for name, column in columns.items():
            try:
                column.append(as_text(record.get(name)))
            except DataError as error:
                raise DataError(f"{path}: item {item!r}: {name}: {error}") from error
    return {name: np.array(column, dtype=object) for name, column in columns.items()}


def _inter_file(path: Path) -> Path:
    if not path.is_dir():
        return existing_file(path)
    found = sorted(path.glob("*.inter.json"))
    if len(found) != 1:
        raise DataError(
            f"{path} holds {len(found)} *.inter.json files instead of one; name the file"
        )
    return existing_file(found[0])


def _load_object(path: Path) -> dict[str, Any]:
    """A JSON object without repeated keys (of which `json` would silently keep the last)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        loaded = dict(pairs)
        if len(loaded) != len(pairs):
            seen = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise DataError(f"{path}: key {twice!r} stands twice in one object; keep one of them")
        return loaded

    with open_text(path) as file:
        try:
            loaded = json.load(file, object_pairs_hook=unique)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{error.lineno}: not JSON ({error.msg}); fetch the file again"
            ) from error
        except RecursionError as error:
            raise DataError(f"{path}: nested too deeply for this form; check the format") from error
        except (DataError, UnicodeError):
            raise
        except ValueError as error:  # A number of thousands of digits.
            raise DataError(f"{path}: not JSON ({error}); fetch the file again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path}: a JSON {type(loaded).__name__}, not an object; check the format")
    return loaded


def _read_records(path: Path) -> list[dict[str, Any]]:
    records = _load_object(existing_file(path))
    ordered = []
    for number in range(len(records)):
        record = records.get(str(number))
        if not isinstance(record, dict):
            raise DataError(
                f"{path}: {len(records)} items, but item {str(number)!r} is missing or not an "
                "object; items must be numbered from 0 without gaps"
            )
        ordered.append(record)
    return ordered


def _item_number(value: Any) -> int:
    """An item number, written as a number or as a string of digits; -1 for anything else."""
    if type(value) is int:
        return value if value < 2**31 else -1
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return -1
