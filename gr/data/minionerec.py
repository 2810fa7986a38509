"""MiniOneRec's CSV files (Kong et al., arXiv 2510.24431): one row per target, with its history."""

import ast
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gr.data.files import existing_file
from gr.data.interactions import offsets_of
from gr.data.rows import RowFormat, bad_row, numbered_cells, read_header, require_columns
from gr.data.sequences import DataError, Sequences, Splits, Targets
from gr.data.text import clean_text

_IDS = ["user_id", "history_item_id", "item_id"]
# Item field -> the target's column; the history's has the same name after `history_`.
_FIELDS = {"title": "item_title", "sid": "item_sid"}
_SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class _Row:
    split: int
    path: Path
    line: int
    history: list[str]
    item: str


def read_minionerec(
    folder: str | os.PathLike[str], *, name: str = "", skip_bad_rows: bool = False
) -> Sequences:
    """The sequences of `read_minionerec_splits`, to be split in another way."""
    return read_minionerec_splits(folder, name=name, skip_bad_rows=skip_bad_rows).sequences


def read_minionerec_splits(
    folder: str | os.PathLike[str], *, name: str = "", skip_bad_rows: bool = False
) -> Splits:
    """Reads MiniOneRec's CSV files with their split into training, validation and test.

    Every row holds a target (`item_id`) and what came before it (`history_item_id`, a list, possibly
    cut to the latest items). A user's rows are merged into one sequence, in which each row's target
    has its row's history right before it; items of rows that were left out are no targets. Users and items are numbered
    in the order in which the files name them. Item fields are `title` and `sid`, where the files have them.

    Args:
        folder: holds `train.csv`, `valid.csv` and `test.csv`, or folders of these names that hold one
            CSV file each.
        name: start of the wanted file's name, if the folders hold files of several data sets.
        skip_bad_rows: leave bad rows out and count them.

    Raises:
        DataError: a missing file or column, a bad row, or one that does not continue its user's rows.
    """
    users: dict[str, list[_Row]] = {}
    fields: dict[str, dict[str, str]] = {field: {} for field in _FIELDS}
    skipped = 0
    for split, split_name in enumerate(_SPLITS):
        path = _csv_file(Path(folder), split_name, name)
        for line, user, row in _rows(path, split, fields):
            if isinstance(row, _Row):
                users.setdefault(user, []).append(row)
            elif skip_bad_rows:
                skipped += 1
            else:
                raise bad_row(path, line, row)

    item_rows: dict[str, int] = {}
    sequences: list[list[int]] = []
    targets: list[list[tuple[int, int]]] = [[] for _ in _SPLITS]  # (user row, place) of each.
    for user, rows in users.items():
        merged: list[str] = []
        # Rows of a split may be shuffled; a longer history is a later one.
        for row in sorted(rows, key=lambda row: (row.split, len(row.history))):
            shared = _overlap(merged, row.history)
            if merged and not shared:
                if not skip_bad_rows:
                    fault = f"the history does not continue the earlier rows of user {user!r}"
                    raise bad_row(row.path, row.line, fault)
                skipped += 1
                continue
            merged += row.history[shared:]
            targets[row.split].append((len(sequences), len(merged)))
            merged.append(row.item)
        sequences.append([item_rows.setdefault(item, len(item_rows)) for item in merged])
    if not sequences:
        raise DataError(f"{folder}: no usable rows ({skipped} bad ones left out); check the format")

    offsets = offsets_of(np.array([len(sequence) for sequence in sequences]))
    merged_sequences = Sequences(
        items=np.concatenate(sequences).astype(np.int32),
        offsets=offsets,
        user_ids=np.array(list(users), dtype=str),
        item_ids=np.array(list(item_rows), dtype=str),
        item_fields={
            field: np.array([clean_text(texts.get(item, "")) for item in item_rows], dtype=object)
            for field, texts in fields.items()
            if texts
        },
        skipped_rows=skipped,
    )
    train, validation, test = (_targets(pairs, offsets) for pairs in targets)
    return Splits(merged_sequences, train=train, validation=validation, test=test)


def _csv_file(folder: Path, split: str, name: str) -> Path:
    if (folder / f"{split}.csv").exists():
        return existing_file(folder / f"{split}.csv")
    found = sorted((folder / split).glob(f"{name}*.csv"))
    if len(found) != 1:
        raise DataError(
            f"{folder} holds no {split}.csv, and {len(found)} files {split}/{name}*.csv instead of "
            "one; check the folder, or choose by name"
        )
    return existing_file(found[0])


def _rows(
    path: Path, split: int, fields: dict[str, dict[str, str]]
) -> Iterator[tuple[int, str, _Row | str]]:
    """Each row's line, user, and content or fault; notes in `fields` what it says of its items."""
    names = read_header(path, ",", quoted=True)
    present = {field: column for field, column in _FIELDS.items() if column in names}
    require_columns(path, names, [*_IDS, *present.values()])
    form = RowFormat(
        names=names,
        ids=_IDS,
        text=list(present.values()),
        separator=",",
        quoted=True,
        header=True,
    )
    for line, cells in numbered_cells(path, form):
        fault = cells if isinstance(cells, str) else form.fault(cells)
        if fault is not None:
            yield line, "", fault
            continue
        row = dict(zip(names, cells, strict=True))
        history = _strings(row["history_item_id"])
        if not history or not all(history):
            yield line, "", f"history_item_id is no list of items: {row['history_item_id']!r}"
            continue
        for field, column in present.items():
            texts = fields[field]
            if row[column]:
                texts.setdefault(row["item_id"], row[column])
            # Few items are never targets, so the slow parsing of lists is rarely needed.
            if not all(item in texts for item in history):
                told = _strings(row.get(f"history_{column}", ""))
                if told is not None and len(told) == len(history):
                    for item, text in zip(history, told, strict=True):
                        if text:
                            texts.setdefault(item, text)
        yield line, row["user_id"], _Row(split, path, line, history, row["item_id"])


def _strings(cell: str) -> list[str] | None:
    """The elements of a list in Python's notation, as non-empty strings; None for anything else."""
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(value, list):
        return None
    return ["" if element is None else str(element) for element in value]


def _overlap(merged: list[str], history: list[str]) -> int:
    """How many of the first items of `history` are the last ones of `merged`, at most."""
    for size in range(min(len(merged), len(history)), 0, -1):
        if merged[-size:] == history[:size]:
            return size
    return 0


def _targets(pairs: list[tuple[int, int]], offsets: np.ndarray) -> Targets:
    users, places = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Targets(users=users.astype(np.int32), positions=offsets[users] + places)
