"""Semantic IDs that others made: `*.index*.json`, `.npy` and CSV files, read as they are."""

import csv
import os
import re
from collections.abc import Sequence

import numpy as np

from gr.data.files import open_text
from gr.semantic_ids.arrays import (
    is_header_word,
    load_item_rows,
    load_json,
    load_npy,
    load_npz,
    semantic_id_errors,
)
from gr.semantic_ids.semantic_ids import SemanticIdError, SemanticIds

_TOKEN = re.compile(r"<([a-z])_([0-9]{1,9})>")  # Level letter and code.


def read_index_json(
    path: str | os.PathLike,
    item_ids: Sequence[str] | np.ndarray | None = None,
    codebook_sizes: Sequence[int] | None = None,
) -> SemanticIds:
    """Reads the `*.index*.json` form that LC-Rec, LETTER and APAO share.

    An object from item number to its code tokens, one a level: `{"0": ["<a_159>", "<b_42>"], ..}`,
    letter `a` for level 0 and so on. SIDs that several items share stay shared.

    Args:
        path: the file.
        item_ids: items wanted, in this order; others of the file are left out. By default all, in numeric order of
            their keys (in the file's order where some key is no number).
        codebook_sizes: codes of each level, [L]. By default the highest code + 1 of that level, rounded up to a power
            of two.

    Raises:
        SemanticIdError: naming the file and the item for anything else.
    """
    path = os.fspath(path)
    entries = _load_object(path)
    keys = list(entries)
    if all(re.fullmatch("[0-9]+", key) for key in keys):
        keys.sort(key=int)
    num_levels = len(entries[keys[0]]) if isinstance(entries[keys[0]], list) else 0
    codes = [_parse_tokens(path, key, entries[key], num_levels) for key in keys]
    return _build(path, np.array(codes, dtype=np.int64), keys, item_ids, codebook_sizes)


def read_codes_csv(
    path: str | os.PathLike,
    item_ids: Sequence[str] | np.ndarray | None = None,
    codebook_sizes: Sequence[int] | None = None,
    *,
    header: bool | None = None,
) -> SemanticIds:
    """Reads a CSV (or, by its ending, TSV) file: the item id, then one column of codes per level.

    Args:
        path: the file, its first line a header or not.
        item_ids: as in `read_index_json`; the default order is the file's.
        codebook_sizes: as in `read_index_json`.
        header: whether the first line is a header; by default it is unless it holds codes.

    Raises:
        SemanticIdError: naming the file and the line, also where the first line may be either.
    """
    path = os.fspath(path)
    lines, rows = [], []
    separator = "\t" if path.lower().endswith(".tsv") else ","
    # Undecodable bytes become lone surrogates, so that the fault can be laid to its line.
    with semantic_id_errors(), open_text(path, errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=separator)
        try:
            for row in reader:
                if row:
                    lines.append(reader.line_num)
                    rows.append(row[:1] + [cell.strip() for cell in row[1:]])
        except csv.Error as error:
            raise SemanticIdError(f"{path}: line {reader.line_num}: {error}.") from error
    for line, row in zip(lines, rows, strict=True):
        if any("\udc80" <= char <= "\udcff" for cell in row for char in cell):
            raise SemanticIdError(f"{path}: line {line}: not UTF-8 text; save it as UTF-8.")
    if not rows:
        raise SemanticIdError(f"{path}: no items.")
    if header is None:
        header = _is_header(path, rows, item_ids)
    keys, codes = [], []
    for line, row in list(zip(lines, rows, strict=True))[header:]:
        good = len(row) == len(rows[0]) > 1 and row[0]
        if not good or not all(map(_is_code, row[1:])):
            raise SemanticIdError(
                f"{path}: line {line}: expected an item id and {max(len(rows[0]) - 1, 1)} codes, "
                f"separated by {separator!r}, got {row}."
            )
        keys.append(row[0])
        codes.append([int(code) for code in row[1:]])
    if not keys:
        raise SemanticIdError(f"{path}: no items.")
    return _build(path, np.array(codes, dtype=np.int64), keys, item_ids, codebook_sizes)


def _is_code(cell: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", cell) is not None


def _is_header(
    path: str, rows: list[list[str]], item_ids: Sequence[str] | np.ndarray | None
) -> bool:
    """Whether the first line is a header: no number is in it, or its numbers number columns."""
    first, cells = rows[0][0], rows[0][1:]
    if not all(map(_is_code, cells)):
        # With a number among them this is a row with a fault, which must not pass for a header.
        return bool(cells) and not any(re.fullmatch(r"[-+.\d]*\d[-+.\deE]*", c) for c in cells)
    numbers = list(map(int, cells))
    if item_ids is not None and first in set(np.asarray(item_ids).astype(np.str_).tolist()):
        return False
    if numbers not in (list(range(len(cells))), list(range(1, len(cells) + 1))):
        return False
    if not first or is_header_word(first):
        return True

    def kind(key: str) -> tuple[bool, bool]:
        return any(map(str.isdigit, key)), any(map(str.isalpha, key))

    # `what,0,1` before `B00X,3,4` may be a header, `B00Y,0,1` is an item.
    if len(rows) > 1 and kind(first) not in {kind(row[0]) for row in rows[1:]}:
        raise SemanticIdError(
            f"{path}: line 1, {rows[0]}, may be a header or an item; call the columns item_id, code_1,"
            " .. if it is a header, and put such a line before it if not."
        )
    return False


def read_codes_npy(
    path: str | os.PathLike,
    item_ids: Sequence[str] | np.ndarray | None = None,
    codebook_sizes: Sequence[int] | None = None,
    *,
    ids_path: str | os.PathLike = "",
    order: str = "",
) -> SemanticIds:
    """Reads codes `[N, L]` of items from a `.npy` file, or a `.npz` one with `item_ids` and `codes`.

    `item_ids`, `ids_path` and `order` as in `load_item_rows`; without `item_ids` all rows are read,
    and row `i` is item `i`.
    """
    path = os.fspath(path)
    if item_ids is None:
        codes = load_npy(path)
        item_ids = np.arange(len(codes) if codes.ndim else 0)
    else:
        codes = load_item_rows(path, "codes", item_ids, ids_path=ids_path, order=order)
    return _build(path, codes, item_ids, None, codebook_sizes)


def read_semantic_ids(
    path: str | os.PathLike,
    item_ids: Sequence[str] | np.ndarray | None = None,
    *,
    ids_path: str | os.PathLike = "",
    order: str = "",
) -> SemanticIds:
    """Reads the SIDs of these items from any known form, chosen by the file's ending.

    `.npz` (from `SemanticIds.save`, or with the arrays `item_ids` and `codes`), `.json`, `.csv`,
    `.tsv` and `.npy`, which needs one of `ids_path` and `order`, see `read_codes_npy`. By default
    the SIDs of all items of the file.
    """
    path = os.fspath(path)
    ending = os.path.splitext(path)[1].lower()
    if ending == ".npz":
        arrays = load_npz(path)
        if "format_version" not in arrays and {"codes", "item_ids"} <= arrays.keys():
            return _build(path, arrays["codes"], arrays["item_ids"], item_ids, None)
        semantic_ids = SemanticIds.load(path)
        return semantic_ids if item_ids is None else semantic_ids.select(item_ids)
    if ending == ".npy":
        return read_codes_npy(path, item_ids, ids_path=ids_path, order=order)
    readers = {".json": read_index_json, ".csv": read_codes_csv, ".tsv": read_codes_csv}
    if ending not in readers:
        raise SemanticIdError(
            f"{path}: unknown ending; known are .npz, .npy, {', '.join(readers)}."
        )
    return readers[ending](path, item_ids)


def _load_object(path: str) -> dict[str, list]:
    entries = load_json(path)
    if not isinstance(entries, dict) or not entries:
        raise SemanticIdError(f"{path}: expected a non-empty object from item to code tokens.")
    return entries


def _parse_tokens(path: str, key: str, tokens: object, num_levels: int) -> list[int]:
    """The codes of one item, [L]."""
    if not isinstance(tokens, list) or not tokens:
        raise SemanticIdError(f"{path}: item {key}: expected a list of tokens, got {tokens!r}.")
    if len(tokens) != num_levels:
        raise SemanticIdError(
            f"{path}: item {key} has {len(tokens)} tokens where the first item has {num_levels}."
        )
    codes = []
    for level, token in enumerate(tokens):
        match = _TOKEN.fullmatch(token) if isinstance(token, str) else None
        letter = chr(ord("a") + level)
        if match is None or match[1] != letter:
            raise SemanticIdError(
                f"{path}: item {key}: token {token!r} at level {level} should be like "
                f"'<{letter}_12>'."
            )
        codes.append(int(match[2]))
    return codes


def _build(
    path: str,
    codes: np.ndarray,
    keys: Sequence[str] | np.ndarray,
    item_ids: Sequence[str] | np.ndarray | None,
    codebook_sizes: Sequence[int] | None,
) -> SemanticIds:
    if codebook_sizes is None and codes.ndim == 2 and codes.size:
        codebook_sizes = [1 << int(highest).bit_length() for highest in codes.max(axis=0)]
    try:
        semantic_ids = SemanticIds(codes, tuple(codebook_sizes or ()), np.asarray(keys))
        return semantic_ids if item_ids is None else semantic_ids.select(item_ids)
    except SemanticIdError as error:
        raise SemanticIdError(f"{path}: {error}") from error
