"""Loads the data of an experiment, its splits and its semantic IDs."""

import dataclasses
import difflib
import hashlib
import io
import os
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils.epath import Path

from gr.data import (
    DataError,
    Sequences,
    Splits,
    by_time,
    cold_start,
    learn_from,
    leave_one_out,
    load_sequences,
    time_quantiles,
)
from gr.data.files import as_path, existing_file, is_remote, write_atomically
from gr.data.rows import read_header
from gr.runs.experiment import DataConfig, Experiment
from gr.semantic_ids import FittedIds, fit_semantic_ids

ENVIRONMENT_VARIABLE = "GR_DATA"
_FRAME = "frame-"  # Begins the name of a kept frame, in the workdir's folder `data`.
_LIKE_A_TIME = re.compile(
    r"(?i)(.*[_. ])?(time|timestamp|datetime|date|ts|unix|when|created|created_at|at)([_. ].*)?"
)


def load_data(experiment: Experiment, workdir: str | os.PathLike[str]) -> Splits:
    """Reads the experiment's data and splits it; downloads go into `workdir/data`."""
    data = experiment.data
    options = _options(experiment)
    own = ":" in data.format  # "module:function", which may need no path.
    if data.format == "synthetic" or (own and not data.path):
        path = None
    elif data.format == "movielens_100k":
        path = as_path(experiment.data_dir or os.path.join(workdir, "data"))
    elif data.path.startswith(_FRAME):  # It moves with the workdir.
        path = existing_file(as_path(workdir) / "data" / data.path)
    else:
        path = data_path(experiment, data.path)
    if data.format not in ("synthetic", "movielens_100k") and not own:
        options["skip_bad_rows"] = data.skip_bad_rows
    if data.format == "table":
        _look_at_columns(path, options)
    sequences = load_sequences(data.format, path, **options)
    if sequences.skipped_rows:
        print(f"skipped {sequences.skipped_rows:,} bad rows of {path}")
    return learn_from(_split(sequences, data), data.learn_from)


def _split(sequences: Sequences, data: DataConfig) -> Splits:
    if data.split == "leave_one_out":
        return leave_one_out(sequences)
    if data.split == "cold_start":
        return cold_start(sequences, data.cold_share, by=data.cold_by, seed=data.cold_seed)
    if data.split != "by_time":
        raise DataError(
            f"data.split={data.split!r} is unknown: use leave_one_out, by_time or cold_start"
        )
    share = data.test_share
    cuts = time_quantiles(sequences, 1 - share - data.validation_share, 1 - share)
    return by_time(sequences, *cuts)


def _options(experiment: Experiment) -> dict[str, Any]:
    """The reader's options that are set; its other files may be in the data folder."""
    options = {name: value for name, value in experiment.data.options.items() if value is not None}
    for name, value in options.items():
        if name.endswith("_path") and not as_path(value).exists():
            options[name] = data_path(experiment, value)
    return options


def _look_at_columns(path: Path, options: Mapping[str, Any]) -> None:
    """Lists a table's columns if the required ones are not named yet.

    Raises:
        DataError: if the columns of users or items are not named.
    """
    columns = _columns(path, options.get("separator"))
    missing = [name for name in ("user", "item") if name not in options]
    if missing:
        how = " and ".join(f"data.options.{name}=COLUMN" for name in missing)
        there = f"it has the columns {', '.join(columns)}; " if columns else ""
        raise DataError(
            f"{path}: {there}name that of the {'s and that of the '.join(missing)}s by {how}"
        )
    times = [] if "time" in options else [name for name in columns if _LIKE_A_TIME.fullmatch(name)]
    if times and options.get("header", True):
        print(
            f"note: users' interactions are taken in the order of the file. Its column {times[0]!r} looks like a time; "
            f"to sort by it: data.options.time={times[0]}"
        )


def _columns(path: Path, separator: str | None) -> list[str]:
    """The columns of a table; none if it cannot be read, which the reader will report."""
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PAR1":
                return pq.read_schema(path).names
        default = "\t" if ".tsv" in path.name.lower() else ","
        return read_header(path, separator or default, quoted=True)
    except (DataError, pa.ArrowException, OSError):
        return []


def data_path(experiment: Experiment, path: str) -> Path:
    """The path of a data file.

    An absolute path is used as it is. A relative one starts from the data folder, which may also hold the file itself,
    or without a data folder from the current folder.

    Raises:
        DataError: if the file does not exist.
    """
    if not path:
        raise DataError("data.path is empty: name the file, data.path=FILE")
    folder = experiment.data_dir or os.environ.get(ENVIRONMENT_VARIABLE, "")
    choices = [as_path(path) if is_remote(path) else as_path(folder or ".") / path]
    if folder:
        choices.append(as_path(folder) / os.path.basename(path))
    for choice in choices:
        if choice.exists():
            return choice
    if not folder:
        raise DataError(
            f"{path}: no such file{_beside(as_path(path))}, and no data folder is named: give an absolute path, set "
            f"{ENVIRONMENT_VARIABLE}=FOLDER, or data_dir=FOLDER"
        )
    hint = _beside(choices[0]) or _beside(choices[1])
    if not hint and as_path(path).exists():
        hint = f", but in the current folder there is one: to take it, give {os.path.abspath(path)}"
    raise DataError(
        f"{choices[0]}: no such file{hint}; the data folder is the one that holds {path}"
    )


def _beside(path: Path) -> str:
    """A file of a similar name in the same folder, as a hint for the message."""
    there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def load_semantic_ids(experiment: Experiment, splits: Splits) -> FittedIds:
    """Reads or builds the semantic IDs, with their report and fit."""
    return fit_semantic_ids(splits, **semantic_id_options(experiment))


def semantic_id_options(experiment: Experiment) -> dict[str, Any]:
    """The arguments of `fit_semantic_ids`, with the paths of the files that are named."""
    options = dataclasses.asdict(experiment.semantic_ids)
    for name in ("path", "item_ids", "vectors"):
        value = options.get(name, "")
        # `vectors` may also name a kind of vectors. What was written here counts before the data folder.
        if value and (name != "vectors" or value.endswith((".npy", ".npz"))):
            found = name != "path" and as_path(value).exists()
            options[name] = value if found else str(data_path(experiment, value))
    return options


def keep_frame(experiment: Experiment, frame: Any, workdir: str | os.PathLike[str]) -> Experiment:
    """Puts interactions into the workdir as a Parquet file and returns the experiment that reads it.

    Args:
        experiment: with `data.format="table"`, and the columns' names among `data.options`.
        frame: a pandas data frame, an Arrow table or a mapping of columns.
        workdir: folder of the run.

    Raises:
        DataError: if `data.format` is another, or the frame is not a table.
    """
    if experiment.data.format != "table":
        raise DataError(f"a frame needs data.format='table', not {experiment.data.format!r}")
    try:
        if isinstance(frame, pa.Table):
            table = frame
        elif isinstance(frame, Mapping):
            table = pa.table(dict(frame))
        else:
            table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"frame={type(frame).__name__} is no table ({error}): give a pandas data frame, an Arrow table or a "
            "mapping of columns"
        ) from error
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    content = buffer.getvalue()
    # Named by its content: another frame never replaces the one that a run in this workdir was trained on.
    name = f"{_FRAME}{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    write_atomically(as_path(workdir) / "data" / name, content)
    return experiment.override({"data.path": name})
