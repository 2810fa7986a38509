"""Metrics of a run in its workdir: `metrics.jsonl`, and TensorBoard event files under `tensorboard/`."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from etils.epath import Path

from gr.data.files import as_path, is_remote, write_atomically
from gr.training.hosts import is_first
from gr.training.state import TrainingError


class MetricWriter:
    """Appends to `WORKDIR/metrics.jsonl`, one object a line: `{"step", "split", "wall_time", "values"}`.

    A line is handed to the operating system when `write` returns, so a killed run keeps all written lines. In an object
    store, whose objects are written whole, it is there after `flush`. Values that are not finite become null. In a run
    of several processes only the first one writes.
    """

    def __init__(self, workdir: str | os.PathLike, *, tensorboard: bool = True):
        self.path = as_path(workdir) / "metrics.jsonl"
        self._writes = is_first()
        self._tensorboard = tensorboard
        self._lines: Any = None
        self._events: Any = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, _: type | None, error: BaseException | None, *unused: object) -> None:
        try:
            self.close()
        except TrainingError:
            if error is None:  # Otherwise report the earlier error.
                raise

    def start(self, step: int) -> None:
        """Opens the files for a run that continues from `step`, and drops later lines of an earlier run.

        Otherwise a killed and resumed run would log the steps after its last checkpoint twice.
        """
        self.close()
        if not self._writes:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        truncate_metrics(self.path, step)
        remote = is_remote(self.path)
        self._lines = _Object(self.path) if remote else self.path.open("ab")
        if self._tensorboard:
            # Imported here, since the import is slow.
            from tensorboardX import SummaryWriter
            from tensorboardX.record_writer import register_writer_factory

            folder = self.path.parent / "tensorboard"
            if remote:
                # TensorBoard's own access to object stores needs other packages and settings.
                in_store = SimpleNamespace(open=_Object, directory_check=lambda folder: None)
                register_writer_factory(str(folder).partition(":")[0], in_store)
            # Events at and after purge_step are hidden by TensorBoard.
            purge_step = step + 1 if folder.is_dir() else None
            self._events = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes the values of one split ("train", "validation", ..) at one step.

        Raises:
            TrainingError: before `start`, or if the file cannot be written.
        """
        if not self._writes:
            return
        if self._lines is None:
            raise TrainingError("MetricWriter.start(step) must be called before write")
        finite = {name: _finite_or_none(value) for name, value in values.items()}
        line = {"step": step, "split": split, "wall_time": time.time(), "values": finite}
        with self._write_errors():
            self._lines.write(f"{json.dumps(line, allow_nan=False)}\n".encode())
            if not is_remote(self.path):
                self._lines.flush()
            if self._events is not None:
                for name, value in finite.items():
                    if value is not None:
                        self._events.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        """Returns when everything written is in the files; call it before saving a checkpoint."""
        with self._write_errors():
            if self._lines is not None:
                self._lines.flush()
                if not is_remote(self.path):
                    os.fsync(self._lines.fileno())
            if self._events is not None:
                self._events.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        lines, events = self._lines, self._events
        self._lines = self._events = None
        with self._write_errors():
            if lines is not None:
                lines.close()
            if events is not None:
                events.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.path} could not be written ({error}); free some space or make the folder writable, then start "
                "the same command to resume"
            ) from error


class _Object:
    """A growing file in an object store, where nothing can be appended: each flush writes it whole."""

    def __init__(self, path: str | Path):
        self._path = as_path(path)
        self._content = bytearray(self._path.read_bytes() if self._path.exists() else b"")

    def write(self, content: bytes) -> None:
        self._content += content

    def flush(self) -> None:
        write_atomically(self._path, bytes(self._content))

    close = flush


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in order; an incomplete last line, left by a killed run, is dropped.

    Raises:
        TrainingError: for any other line that is not a JSON object.
    """
    try:
        text = as_path(path).read_text()
    except FileNotFoundError as error:
        raise TrainingError(
            f"{path} does not exist; train first, or name another workdir"
        ) from error
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise TrainingError(f"{path}, line {number}: not JSON; remove it") from error
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            raise TrainingError(f"{path}, line {number}: no metrics of a step; remove it")
        lines.append(values)
    return lines


def truncate_metrics(path: str | os.PathLike, step: int) -> None:
    """Drops the lines after `step` from a `metrics.jsonl`, atomically; a missing file is no error."""
    if not as_path(path).exists():
        return
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _finite_or_none(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
