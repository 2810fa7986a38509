"""One process at a time in a workdir."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from typing import IO

import jax

from gr.data.files import as_path, is_remote
from gr.training.hosts import is_first
from gr.training.state import TrainingError

LOCK_FILE = "run.lock"


@contextlib.contextmanager
def locked(workdir: str | os.PathLike) -> Iterator[None]:
    """Locks a workdir against other processes; readers do not need the lock.

    The operating system releases the lock when the process ends, even if it is killed. In a run of several processes
    the first one holds the lock for all. An object store has no such locks: there nothing keeps a second process out,
    and a note says so.

    Raises:
        TrainingError: if another process holds the lock; names that process.
    """
    # Asked first, since a study's process does not start JAX's devices.
    if jax.distributed.is_initialized() and not is_first():
        yield
        return
    if is_remote(workdir):
        print(f"note: {workdir} cannot be locked; see to it that no second process uses it")
        yield
        return
    path = as_path(workdir) / LOCK_FILE
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise TrainingError(
                    f"{workdir} is in use by {_holder(file) or 'another process'}; wait for it or stop it, or use "
                    "another workdir"
                ) from None
            print(
                f"note: {path} cannot be locked ({error.strerror}), which keeps a second process out; see to it that "
                "none uses this workdir"
            )
        here = socket.gethostname()
        before = _holder(file)
        if before and not before.endswith(f" on {here}"):
            print(
                f"note: {path} is left from {before}, and nobody holds it now. If that process still runs, on a "
                "file system whose locks machines do not share, stop this one"
            )
        _write(file, {"pid": os.getpid(), "host": here, "since": _now()})
        try:
            yield
        finally:
            _write(file, None)


def _holder(file: IO[str]) -> str:
    """A description of the process that wrote the file; "" if unknown."""
    file.seek(0)
    try:
        told = json.loads(file.read())
        return f"process {told['pid']} since {told['since']} on {told['host']}"
    except (ValueError, KeyError, TypeError):
        return ""


def _write(file: IO[str], told: dict | None) -> None:
    file.seek(0)
    file.truncate()
    if told is not None:
        file.write(json.dumps(told))
    file.flush()


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
