"""Checked reading and atomic writing of files, on a disk or in an object store.

Paths are strings, `os.PathLike`, or addresses such as `gs://bucket/run`, which need the extra `gcs`.
"""

import codecs
import contextlib
import gzip
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from etils.epath import Path

from gr.data.sequences import DataError

# A URL scheme as `pathlib` changes it, such as `gs:/`.
_BROKEN_ADDRESSES = ("gs:/", "s3:/", "az:/", "hf:/")
_GZIP = b"\x1f\x8b"
# First bytes -> kind of a file that cannot be read directly.
_PACKED = {
    b"PK\x03\x04": "a zip archive (as Excel workbooks are)",
    b"BZh91AY&SY": "packed by bzip2",
    b"\xfd7zXZ\x00": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
}
# Byte order mark -> the encoding that it announces; UTF-32 comes first, since its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path of a local or remote file or folder; `pathlib.Path` would turn an address into a local folder `gs:`.

    Raises:
        DataError: an address of an unknown kind, or one that needs a package that is not installed.
    """
    if is_remote(path):
        import fsspec  # Imported here, since few paths need it.

        scheme = os.fspath(path).partition("://")[0]
        try:
            fsspec.get_filesystem_class({"gs": "gcs"}.get(scheme, scheme))
            return Path(path)
        except KeyError as error:
            known = "a local path or an address that begins with gs://, s3://, az:// or hf://"
            raise DataError(f"{path}: no address that is known; give {known}") from error
        except (ImportError, ValueError) as error:
            raise DataError(f"{path} cannot be reached: {error}") from error
    if os.fspath(path).startswith(_BROKEN_ADDRESSES):
        raise DataError(f"{path} was an address before it became a `pathlib.Path`; give a string")
    return Path(path)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in an object store, where objects are written atomically."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], *more: type[Exception]) -> Iterator[None]:
    """Turns errors of opening, unpacking, decoding or parsing in the block into one DataError.

    Args:
        path: the file that is read in the block, for the message.
        *more: exceptions of the block's own parser, beside those of the system, gzip and Arrow.
    """
    try:
        yield
    except DataError:
        raise
    except UnicodeError as error:
        encoding = getattr(error, "encoding", "Unicode").upper()
        raise DataError(
            f"{path}: not {encoding} text ({getattr(error, 'reason', error)}); name its encoding, "
            "or fetch it again"
        ) from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read; change its permissions") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException, *more) as error:
        fault = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: damaged ({fault}); fetch it again") from error


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of an existing, non-empty file; a DataError otherwise."""
    path = as_path(path)
    with reading(path):
        if path.is_dir():
            raise DataError(f"{path} is a folder; name the file in it")
        if not path.exists():
            raise DataError(f"{path} does not exist; check the path, or fetch the data first")
        # `Path.stat` would look up the owner's name, which may be missing in a container.
        if (path.stat().length if is_remote(path) else os.path.getsize(path)) == 0:
            raise DataError(f"{path} is empty; fetch it again")
    return path


@contextlib.contextmanager
def open_bytes(path: str | os.PathLike[str]) -> Iterator[io.BufferedReader]:
    """Opens a file for reading as in `reading`; unpacks gzip whatever the file's name.

    An object of a store is read into memory.

    Raises:
        DataError: a file that is missing, damaged, empty or packed in another way.
    """
    path = existing_file(path)
    with reading(path), contextlib.ExitStack() as stack:
        if is_remote(path):
            file = io.BufferedReader(io.BytesIO(path.read_bytes()))
        else:
            file = stack.enter_context(path.open("rb"))
        if file.peek(len(_GZIP)).startswith(_GZIP):
            file = stack.enter_context(gzip.open(file, "rb"))
        start = file.peek(16)
        if not start:
            raise DataError(f"{path} is empty; fetch it again")
        for mark, kind in _PACKED.items():
            if start.startswith(mark):
                raise DataError(f"{path} is {kind}; unpack it, or save it as text")
        yield file


@contextlib.contextmanager
def open_text(
    path: str | os.PathLike[str], encoding: str = "utf-8", *, errors: str = "strict"
) -> Iterator[io.TextIOWrapper]:
    """As `open_bytes`, decoded, with line ends as they stand in the file.

    A byte order mark is removed from the text; it overrides `encoding` if that is another Unicode encoding.

    Args:
        path: the file.
        encoding: the text's encoding.
        errors: how undecodable bytes are handled, as in `open`.

    Raises:
        DataError: as `open_bytes`, an unknown encoding, or undecodable bytes.
    """
    with open_bytes(path) as file:
        try:
            unicode = codecs.lookup(encoding).name.startswith("utf")
            if unicode:
                start = file.peek(4)
                encoding = next((e for m, e in _MARKS.items() if start.startswith(m)), encoding)
            text = io.TextIOWrapper(file, encoding, errors, newline="")
        except LookupError as error:
            raise DataError(
                f"{path}: unknown encoding {encoding!r}; name one of Python's, such as 'utf-8' or "
                "'cp1252'"
            ) from error
        yield text


def write_atomically(
    path: str | os.PathLike[str], content: bytes | Iterable[bytes | memoryview]
) -> None:
    """Writes a file, at once or piece by piece, so that readers and crashes never leave or see a part of it.

    On a disk a temporary file is renamed once its content is safe; objects of a store are atomic anyway.
    """
    path = as_path(path)
    pieces = (content,) if isinstance(content, bytes) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.write_bytes(b"".join(pieces))
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())  # Otherwise a crash could leave the name without the content.
        os.chmod(temporary, 0o644)  # mkstemp creates files that only their owner may read.
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: str | os.PathLike[str], values: Any, *, sort_keys: bool = False) -> None:
    """Writes JSON values as indented text, as `write_atomically` does."""
    text = json.dumps(values, indent=2, sort_keys=sort_keys)
    write_atomically(path, f"{text}\n".encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """The values of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    return json.loads(as_path(path).read_text())


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as an `.npz` file, as `write_atomically` does."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, zipfile.BadZipFile: it is another kind of file, or damaged.
    """
    with np.load(io.BytesIO(as_path(path).read_bytes())) as file:
        return {name: file[name] for name in file.files}
