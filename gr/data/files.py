"""Files that are checked before they are read and complete before they can be seen."""

import gzip
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from gr.data.sequences import DataError


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there and not empty; a DataError says which of the two fails."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; name the file in it")
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path, or fetch the data first")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; fetch it again")
    return path


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file for reading, unpacking it where its name ends in `.gz`."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def write_atomically(
    path: str | os.PathLike[str], content: bytes | Iterable[bytes | memoryview]
) -> None:
    """Writes a file, at once or piece by piece, so that a reader, or a crash, never meets a part of it."""
    pieces = (content,) if isinstance(content, bytes) else content
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read.
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
