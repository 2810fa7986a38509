"""Semantic IDs that others made: `*.index*.json`, `.npy` and CSV files, read as they are."""

import csv
import json
import os
import re
from collections.abc import Sequence
from typing import TextIO

import numpy as np

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
      path: The file.
      item_ids: Items wanted, in this order; others of the file are left out. By default all, in
        numeric order of their keys (in the file's order where some key is no number).
      codebook_sizes: Codes of each level, [L]. By default the highest code + 1 of that level,
        rounded up to a power of two.

    Raises `SemanticIdError` naming the file and the item for anything else.
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
) -> SemanticIds:
    """Reads a CSV file with a header line: the item id, then one column of codes for each level.

    `item_ids` and `codebook_sizes` as in `read_index_json`; the default order is the file's.
    """
    path = os.fspath(path)
    keys, codes = [], []
    with _open(path) as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if len(header) < 2:
            raise SemanticIdError(f"{path}: line 1: expected a header 'item_id,code_1,..'.")
        for row in reader:
            if len(row) != len(header) or not all(re.fullmatch("[0-9]{1,9}", c) for c in row[1:]):
                raise SemanticIdError(
                    f"{path}: line {reader.line_num}: expected an item id and "
                    f"{len(header) - 1} codes, got {row}."
                )
            keys.append(row[0])
            codes.append([int(code) for code in row[1:]])
    if not keys:
        raise SemanticIdError(f"{path}: no items.")
    return _build(path, np.array(codes, dtype=np.int64), keys, item_ids, codebook_sizes)


def read_codes_npy(
    path: str | os.PathLike,
    item_ids: Sequence[str] | np.ndarray | None = None,
    codebook_sizes: Sequence[int] | None = None,
) -> SemanticIds:
    """Reads codes `[N, L]` from a `.npy` file whose row `i` belongs to `item_ids[i]`, by default `i`."""
    path = os.fspath(path)
    codes = load_npy(path)
    if item_ids is None:
        item_ids = np.arange(len(codes) if codes.ndim else 0)
    return _build(path, codes, item_ids, None, codebook_sizes)


def read_semantic_ids(
    path: str | os.PathLike, item_ids: Sequence[str] | np.ndarray | None = None
) -> SemanticIds:
    """Reads the SIDs of these items from any of the known forms, told apart by the file's ending.

    `.npz` (from `SemanticIds.save`), `.json`, `.csv` and `.npy`. By default the SIDs of all items
    of the file.
    """
    path = os.fspath(path)
    ending = os.path.splitext(path)[1].lower()
    if ending == ".npz":
        semantic_ids = SemanticIds.load(path)
        return semantic_ids if item_ids is None else semantic_ids.select(item_ids)
    readers = {".json": read_index_json, ".csv": read_codes_csv, ".npy": read_codes_npy}
    if ending not in readers:
        raise SemanticIdError(f"{path}: unknown ending; known are .npz, {', '.join(readers)}.")
    return readers[ending](path, item_ids)


def load_npy(path: str) -> np.ndarray:
    """The array of a `.npy` file; `SemanticIdError` where there is none."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SemanticIdError(f"{path}: cannot be read as a .npy array ({error}).") from error


def _open(path: str) -> TextIO:
    try:
        return open(path, encoding="utf-8", newline="")
    except OSError as error:
        raise SemanticIdError(f"{path}: {error.strerror}.") from error


def _load_object(path: str) -> dict[str, list]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            seen = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise SemanticIdError(f"{path}: item {twice} stands there twice.")
        return entries

    with _open(path) as file:
        try:
            entries = json.load(file, object_pairs_hook=unique)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise SemanticIdError(f"{path}: not a JSON file ({error}).") from error
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
