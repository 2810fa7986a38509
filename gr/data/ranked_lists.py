"""Ranked lists of items, one for each user, as files that any program may write: Parquet, CSV, JSON lines, TREC runs.

A row is an item of a user's list. Columns are named `user`, `item` and `score` or `rank`, or as others call them, such
as `user_id` or `docid`; ids are text, as they stand. `rank` decides about the order where it is there, in TREC runs
the score. Equal scores, or ranks, are ordered by item id, from Z to A: the rule of trec_eval, and so of the libraries
built on it.
"""

import dataclasses
import io
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from etils.epath import Path

from gr.data.files import as_path, existing_file, write_atomically
from gr.data.interactions import numbered, offsets_of
from gr.data.json_rows import numbered_lines, numbered_objects, read_json_rows
from gr.data.parquet import is_parquet
from gr.data.rows import RowFormat, arrow_types, bad_row, listed
from gr.data.sequences import DataError
from gr.data.tables import column_names, read_columns

# Role -> what its column may be called, in lower case and without anything but letters and digits.
_NAMES = {
    "user": ("user", "userid", "uid", "query", "queryid", "qid"),
    "item": ("item", "itemid", "iid", "doc", "docid", "docno"),
    "score": ("score", "prediction"),
    "rank": ("rank",),
    "memory_share": ("memoryshare",),
}
_KINDS = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".csv", ".tsv"), "table"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **dict.fromkeys((".trec", ".run"), "trec"),
}
_TREC = RowFormat(
    names=["user", "Q0", "item", "rank", "score", "tag"], ids=["user", "item"], numbers=["score"]
)
# What is written: a user's rows stand together, best item first; ranks count from 1.
SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "rank": pa.int32(),
        "item_id": pa.string(),
        "score": pa.float32(),
        "memory_share": pa.float32(),
    }
)
WRITTEN = ("parquet", "csv", "trec")  # Endings of the files that `write_table` writes.


@dataclasses.dataclass(frozen=True, eq=False)
class RankedLists:
    """The lists of n users, E items in all, best item first.

    List `j` is of user `users[j]`; it holds the items `item_ids[items[offsets[j]:offsets[j + 1]]]`.
    """

    users: np.ndarray  # [n] str, in the order in which the source names them.
    offsets: np.ndarray  # [n + 1] int64.
    items: np.ndarray  # [E] int32.
    item_ids: np.ndarray  # [K] str: the distinct items.
    scores: np.ndarray | None = (
        None  # [E] float64, higher is better; None: the source has ranks only.
    )
    # [E] float64: how much of an item's probability came from a memory; None: not known.
    memory_shares: np.ndarray | None = None
    tied: np.ndarray | None = (
        None  # [n] bool: lists in which two items have the same score or rank.
    )
    skipped_rows: int = 0  # Bad rows left out under `skip_bad_rows`.

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """Items of each list, `[n]` int64."""
        return np.diff(self.offsets)

    def of(self, user: str) -> list[str]:
        """The item ids of one user, best first; a DataError for a user without a list."""
        (found,) = np.nonzero(self.users == user)
        if not len(found):
            raise DataError(f"user {user!r} has no list; ids look like {listed(self.users[:5])}")
        row = found[0]
        return self.item_ids[self.items[self.offsets[row] : self.offsets[row + 1]]].tolist()

    @staticmethod
    def from_table(table: pa.Table, source: object, *, skipped_rows: int = 0) -> "RankedLists":
        """Lists from the columns `user`, `item`, `score` or `rank` (which decides), and perhaps `memory_share`."""
        users, user_ids = numbered(table["user"], source)
        items, item_ids = numbered(table["item"], source)
        numbers = {
            name: table[name].to_numpy()
            for name in ("score", "rank", "memory_share")
            if name in table.column_names
        }
        keys = numbers["rank"] if "rank" in numbers else -numbers["score"]
        ties = np.empty(len(item_ids), np.int64)
        ties[np.argsort(item_ids, kind="stable")] = np.arange(len(item_ids))[::-1]
        order = np.lexsort((ties[items], keys, users))
        users, keys = users[order], keys[order]
        equal = (users[1:] == users[:-1]) & (keys[1:] == keys[:-1])
        tied = np.zeros(len(user_ids), bool)
        tied[users[1:][equal]] = True
        ordered = {name: values[order] for name, values in numbers.items()}
        return RankedLists(
            users=user_ids,
            offsets=offsets_of(np.bincount(users, minlength=len(user_ids))),
            items=items[order].astype(np.int32),
            item_ids=item_ids,
            scores=ordered.get("score"),
            memory_shares=ordered.get("memory_share"),
            tied=tied,
            skipped_rows=skipped_rows,
        )

    def table(self) -> pa.Table:
        """The columns of `SCHEMA`, without those that are not known."""
        ranks = np.arange(1, len(self.items) + 1) - np.repeat(self.offsets[:-1], self.lengths)
        columns = {
            "user_id": np.repeat(self.users, self.lengths),
            "rank": ranks,
            "item_id": self.item_ids[self.items],
            "score": self.scores,
            "memory_share": self.memory_shares,
        }
        fields = [field for field in SCHEMA if columns[field.name] is not None]
        arrays = [pa.array(columns[field.name]).cast(field.type) for field in fields]
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the lists, as `write_table` does."""
        write_table(path, self.table())


def read_ranked_lists(path: str | os.PathLike[str], *, skip_bad_rows: bool = False) -> RankedLists:
    """Reads ranked lists.

    Args:
        path: a file that ends in `.parquet`, `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json` (of lines), `.trec` or
            `.run`, plain or packed by gzip; or a folder of such files, such as `gr.runs.recommend_all` writes.
        skip_bad_rows: leave bad rows out and count them.

    Raises:
        DataError: a missing file or column, an unknown kind of file, or a bad row, by file and line.
    """
    tables, skipped = [], 0
    for file in _files(path):
        table, bad = _read(file, skip_bad_rows)
        if tables and table.column_names != tables[0].column_names:
            raise DataError(
                f"{file} has the columns {listed(table.column_names)}, the file before it "
                f"{listed(tables[0].column_names)}; the files of a folder must have the same"
            )
        tables.append(table)
        skipped += bad
    return RankedLists.from_table(pa.concat_tables(tables), path, skipped_rows=skipped)


def read_pairs(path: str | os.PathLike[str], *, skip_bad_rows: bool = False) -> pa.Table:
    """The columns `user` and `item`, as text, of a file of any kind that `read_ranked_lists` reads, or of TREC qrels.

    Qrels (`.qrels`: user, 0, item, relevance) give the items whose relevance is above 0.

    Raises:
        DataError: as `read_ranked_lists`.
    """
    path = existing_file(path)
    if _suffix(path) == ".qrels":
        form = RowFormat(["user", "0", "item", "relevance"], ("user", "item"), ("relevance",))
        table, _ = _read_blank_separated(path, form, skip_bad_rows)
        table = table.filter(pc.greater(table["relevance"], 0))
    else:
        table, _ = _read(path, skip_bad_rows, ranked=False)
    return table.select(["user", "item"])


def write_table(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Writes a table with the columns of `SCHEMA` (the last two may lack) as the ending of `path` says.

    * `.parquet` and `.csv`: the columns as they are.
    * `.trec`: `user Q0 item rank score gr`. Readers of runs sort by score, so a score that is not below the one before
      it is lowered to the next smaller number of float32; without scores they are `1 / rank`.

    Raises:
        DataError: for another ending; for a TREC run, ids with blanks.
    """
    path, content = as_path(path), io.BytesIO()
    kind = check_written(path)
    if kind == "parquet":
        pq.write_table(table, content)
    elif kind == "csv":
        pa_csv.write_csv(table, content)
    else:
        content.write(_trec(path, table).encode())
    write_atomically(path, content.getvalue())


def check_written(path: str | os.PathLike[str]) -> str:
    """The kind of file that `write_table` makes of a path; a DataError for an ending that it does not know."""
    kind = _suffix(as_path(path)).removeprefix(".")
    if kind not in WRITTEN:
        endings = ", ".join(f".{known}" for known in WRITTEN)
        raise DataError(f"{path}: no lists are written into such a file; let it end in {endings}")
    return kind


def _trec(path: Path, table: pa.Table) -> str:
    """The lines of a TREC run."""
    for name in ("user_id", "item_id"):
        blank = pc.match_substring_regex(table[name], r"\s")
        if pc.any(blank).as_py():
            found = table[name].filter(blank)[0].as_py()
            raise DataError(
                f"{path}: {name} {found!r} holds a blank, which a TREC run cannot; write .csv or .parquet"
            )
    ranks = table["rank"].to_numpy()
    scores = table["score"].to_numpy() if "score" in table.column_names else 1 / ranks
    lines, user_before, score_before = [], None, np.float32(0)
    rows = (table["user_id"].to_pylist(), table["item_id"].to_pylist(), ranks.tolist())
    for user, item, rank, score in zip(*rows, scores.astype(np.float32), strict=True):
        if user == user_before:
            score = np.minimum(score, np.nextafter(score_before, np.float32(-np.inf)))
        lines.append(f"{user} Q0 {item} {rank} {score} gr\n")
        user_before, score_before = user, score
    return "".join(lines)


def _files(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The file itself, or those of a folder whose names are of a known kind, in their order."""
    folder = as_path(path)
    if not folder.is_dir():
        yield existing_file(path)
        return
    names = sorted(entry.name for entry in folder.iterdir() if entry.name[:1] not in "._")
    names = [name for name in names if _suffix(folder / name) in _KINDS]
    if not names:
        raise DataError(f"{path} holds no lists; name a file, or a folder of {', '.join(_KINDS)}")
    yield from (existing_file(folder / name) for name in names)


def _suffix(path: Path) -> str:
    path = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return path.suffix.lower()


def _read(path: Path, skip_bad_rows: bool, *, ranked: bool = True) -> tuple[pa.Table, int]:
    """The columns of one file, named by their role, and the number of bad rows left out."""
    kind = _KINDS.get(_suffix(path))
    if kind is None and is_parquet(path):
        kind = "parquet"
    if kind is None:
        raise DataError(
            f"{path}: no reader of lists for {_suffix(path)!r}; rename it to one of {', '.join(_KINDS)}"
        )
    if kind == "trec":
        return _read_blank_separated(path, _TREC, skip_bad_rows)
    roles = _roles(path, _fields(path) if kind == "json" else column_names(path), ranked)
    ids = [roles[role] for role in ("user", "item")]
    numbers = (
        [name for role, name in roles.items() if role not in ("user", "item")] if ranked else []
    )
    read = read_json_rows if kind == "json" else read_columns
    table, skipped = read(path, ids=ids, numbers=numbers, skip_bad_rows=skip_bad_rows)
    names = {name: role for role, name in roles.items()}
    return table.rename_columns([names[name] for name in table.column_names]), skipped


def _fields(path: Path) -> list[str]:
    """The fields of the first line of JSON that has any."""
    objects = (record for _, record in numbered_objects(path) if isinstance(record, dict))
    return [str(name) for name in next(objects, {})]


def _roles(path: Path, names: Sequence[str], ranked: bool) -> dict[str, str]:
    """Role -> column, of those that are there."""
    roles = {}
    for role, known in _NAMES.items():
        found = [name for name in names if re.sub(r"[\W_]", "", name.lower()) in known]
        found = [role] if role in found else found
        if len(found) > 1:
            raise DataError(
                f"{path}: {listed(found)} may all be the {role}; name one of them {role!r}"
            )
        roles |= dict.fromkeys([role], found[0]) if found else {}
    missing = [role for role in ("user", "item") if role not in roles]
    if ranked and not {"score", "rank"} & roles.keys():
        missing.append("score or rank")
    if missing:
        raise DataError(
            f"{path}: no column {' nor '.join(missing)}; it has {listed(names)}; name the columns user, item and score "
            "or rank"
        )
    return roles


def _read_blank_separated(path: Path, form: RowFormat, skip_bad_rows: bool) -> tuple[pa.Table, int]:
    """As `read_columns`, of lines without a header whose cells any blanks separate."""
    places = [list(form.names).index(name) for name in form.wanted]
    rows, skipped = [], 0
    for line, text in numbered_lines(path):
        cells = text.split()
        fault = form.fault(cells)
        if fault is None:
            rows.append([cells[place] for place in places])
        elif skip_bad_rows:
            skipped += 1
        else:
            raise bad_row(path, line, fault)
    if not rows:
        raise DataError(f"{path}: no usable rows ({skipped} bad ones left out); check the format")
    columns = dict(zip(form.wanted, zip(*rows, strict=True), strict=True))
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    return table.cast(pa.schema(list(arrow_types(form).items()))), skipped
