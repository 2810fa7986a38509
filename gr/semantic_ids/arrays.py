"""Reads arrays from files, and finds the item of each row."""

import contextlib
import csv
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gr.data.files import open_text
from gr.data.sequences import DataError
from gr.semantic_ids.semantic_ids import SemanticIdError

ITEM_ORDER = "items"  # Rows are in the order of the data's item rows; must be stated.
# Words that mark the first line of a list of item ids as a header.
_HEADERS = frozenset(
    "asin id iid item item_id itemid movie_id movieid parent_asin product_id productid sku".split()
)


def load_npy(path: str) -> np.ndarray:
    """The array of a `.npy` file; `SemanticIdError` if there is none."""
    loaded = _load(path)
    if not isinstance(loaded, np.ndarray):
        raise SemanticIdError(f"{path}: several arrays (.npz) where one is expected (.npy).")
    return loaded


def load_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file; `SemanticIdError` if there are none."""
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        raise SemanticIdError(f"{path}: one array (.npy) where several are expected (.npz).")
    return loaded


def load_item_rows(
    path: str | os.PathLike,
    name: str,
    item_ids: Sequence[str] | np.ndarray,
    *,
    ids_path: str | os.PathLike = "",
    order: str = "",
) -> np.ndarray:
    """The rows of an array that belong to items, in the order of the items.

    Args:
        path: a `.npz` file with the arrays `name` and `item_ids`, or a `.npy` file, which needs `ids_path` or `order`.
        name: the array's name, such as "vectors".
        item_ids: the wanted items, `[N]`; rows of others are left out.
        ids_path: a list of the rows' item ids: `.npy`, `.json` (a list, or an object from id to row), `.txt` or `.csv`
            (one per line, in the first column).
        order: "items" if row `i` belongs to `item_ids[i]`.

    Raises:
        SemanticIdError: for an unreadable file, rows in an unstated order, and items with no row or several.
    """
    path, ids_path = os.fspath(path), os.fspath(ids_path)
    loaded = _load(path)
    wanted = np.asarray(item_ids).astype(np.str_)
    ids = None
    if isinstance(loaded, dict):
        if name not in loaded:
            raise SemanticIdError(
                f"{path}: no array {name!r} but {', '.join(loaded) or 'none at all'}; save the "
                f"arrays {name!r} and 'item_ids'."
            )
        ids = loaded.get("item_ids")
        ids = None if ids is None else _strings(path, ids)
    rows = loaded[name] if isinstance(loaded, dict) else loaded
    if rows.ndim != 2:
        raise SemanticIdError(
            f"{path}: expected {name} [items, D], one row an item, got shape {list(rows.shape)}."
        )
    if order not in ("", ITEM_ORDER):
        raise SemanticIdError(f"order={order!r} is unknown; known is {ITEM_ORDER!r}.")
    if (ids is not None) + bool(ids_path) + bool(order) > 1:
        raise SemanticIdError(
            f"{path}: its rows' items are said twice; keep one of its array 'item_ids', a file of "
            f"item ids and order={ITEM_ORDER!r}."
        )
    if order:
        if len(rows) != len(wanted):
            raise SemanticIdError(
                f"{path}: {len(rows)} rows of {name} where the data has {len(wanted)} items after "
                "its filters; give a file of the rows' item ids instead of an order."
            )
        return rows
    if ids_path:
        ids, path = read_item_ids(ids_path), ids_path
    if ids is None:
        raise SemanticIdError(
            f"{path}: nobody said which items its {len(rows)} rows are of; name a file of their item "
            f"ids (item_ids=FILE), save a .npz file with the arrays {name!r} and 'item_ids', or say "
            f"order={ITEM_ORDER!r} if they are in the order of the data's {len(wanted)} item rows."
        )
    if len(ids) != len(rows):
        raise SemanticIdError(f"{path}: {len(ids)} item ids for {len(rows)} rows of {name}.")
    return rows[_rows_of(path, ids, wanted, name)]


def read_item_ids(path: str | os.PathLike) -> np.ndarray:
    """A list of item ids `[N]` str from a file; see `load_item_rows`."""
    path = os.fspath(path)
    ending = os.path.splitext(path)[1].lower()
    if ending == ".npy":
        return _strings(path, load_npy(path))
    if ending == ".json":
        return _strings(path, _listed(path, load_json(path)))
    if ending not in (".txt", ".csv", ".tsv"):
        raise SemanticIdError(
            f"{path}: a list of item ids is a .txt, .csv, .tsv, .json or .npy file."
        )
    with semantic_id_errors(), open_text(path) as file:
        if ending == ".txt":
            cells = [line.rstrip("\r\n") for line in file]
        else:
            reader = csv.reader(file, delimiter="\t" if ending == ".tsv" else ",")
            try:
                cells = [row[0] if row else "" for row in reader]
            except csv.Error as error:
                raise SemanticIdError(f"{path}: line {reader.line_num}: {error}.") from error
    while cells and not cells[-1]:
        cells.pop()
    if "" in cells:
        raise SemanticIdError(f"{path}: line {cells.index('') + 1}: no item id.")
    return np.array(cells[bool(cells) and is_header_word(cells[0]) :], dtype=np.str_)


def is_header_word(cell: str) -> bool:
    """Whether a cell is a usual header of a column of item ids, rather than an item id."""
    return cell.partition(":")[0].strip().lower() in _HEADERS


def load_json(path: str) -> Any:
    """The content of a JSON file; an object with a repeated key is refused."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            seen = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise SemanticIdError(f"{path}: item {twice} stands there twice.")
        return entries

    with semantic_id_errors(), open_text(path) as file:
        try:
            return json.load(file, object_pairs_hook=unique)
        except (SemanticIdError, UnicodeError):
            raise
        except (ValueError, RecursionError) as error:
            raise SemanticIdError(f"{path}: not a JSON file ({error}).") from error


@contextlib.contextmanager
def semantic_id_errors() -> Iterator[None]:
    """Turns `DataError`s of files into `SemanticIdError`s."""
    try:
        yield
    except DataError as error:
        raise SemanticIdError(str(error)) from error


def _load(path: str) -> np.ndarray | dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SemanticIdError(f"{path}: cannot be read as a .npy array ({error}).") from error


def _listed(path: str, loaded: Any) -> np.ndarray:
    """The ids of a JSON list, or of an object from id to row."""
    if isinstance(loaded, dict):
        ids = sorted(loaded, key=lambda id: (str(type(loaded[id])), loaded[id]))
        if [loaded[id] for id in ids] != list(range(len(ids))):
            raise SemanticIdError(f"{path}: an object from item id to row must number rows from 0.")
        return np.array(ids, dtype=np.str_)
    if not isinstance(loaded, list) or not all(type(id) in (str, int) for id in loaded):
        raise SemanticIdError(f"{path}: expected a list of item ids, strings or integers.")
    return np.array([str(id) for id in loaded], dtype=np.str_)


def _strings(path: str, ids: np.ndarray) -> np.ndarray:
    if ids.ndim != 1 or ids.dtype.kind not in "iuU":
        raise SemanticIdError(
            f"{path}: item ids must be strings or integers [items], got shape {list(ids.shape)} of "
            f"{ids.dtype}."
        )
    return ids.astype(np.str_)


def _rows_of(path: str, ids: np.ndarray, wanted: np.ndarray, name: str) -> np.ndarray:
    """The row of each wanted item, [N]."""
    order = np.argsort(ids, kind="stable")
    twice = ids[order][1:] == ids[order][:-1]
    if twice.any():
        raise SemanticIdError(f"{path}: item {ids[order][1:][twice][0]} has more than one row.")
    place = np.searchsorted(ids, wanted, sorter=order)
    rows = order[np.minimum(place, len(ids) - 1)] if len(ids) else np.zeros(len(wanted), np.int64)
    missing = ids[rows] != wanted if len(ids) else np.ones(len(wanted), bool)
    if missing.any():
        raise SemanticIdError(
            f"{path}: no {name} for item {wanted[missing][0]} ({missing.sum()} of {len(wanted)} items "
            "have none)."
        )
    return rows
