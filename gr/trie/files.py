"""An index as one file: a checksummed header that describes the arrays, then the arrays, each at a page's start.

    magic (8 bytes) | length of the header (8, little-endian) | CRC-32 of the header (4) | header (JSON) | arrays

The header holds the format's version, the layout, and for every array its type, shape, place and CRC-32. Arrays are
little-endian and start at multiples of `ALIGNMENT`, so that a mapped file can be used in place.
"""

import dataclasses
import json
import mmap
import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils.epath import Path

from gr.data.files import as_path, is_remote, write_atomically
from gr.trie.attributes import Attributes
from gr.trie.identity import fingerprint
from gr.trie.layout import Layout, Level, TrieError
from gr.trie.packed import PackedInts

MAGIC = b"GRTRIE\r\n"
VERSION = 2  # Of the files that are written; older ones are read, newer ones are refused.
ALIGNMENT = 4096

_PREFIX = len(MAGIC) + 8 + 4
_TYPES = {"PackedInts": PackedInts, "Attributes": Attributes}


def write_index(path: str | os.PathLike[str], fields: dict[str, Any]) -> None:
    """Writes the fields of an index, atomically.

    Raises:
        TrieError: if the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    described = {
        name: _describe(value, arrays) for name, value in fields.items() if name != "layout"
    }
    header: dict[str, Any] = {
        "version": VERSION,
        "layout": dataclasses.asdict(fields["layout"]),
        "fields": described,
        "arrays": [],
    }
    # Places are relative to the first array, whose own place depends on the header's length.
    place = 0
    for array in arrays:
        header["arrays"].append(
            {
                "dtype": array.dtype.newbyteorder("<").str,
                "shape": array.shape,
                "place": place,
                "crc32": zlib.crc32(array.reshape(-1).view(np.uint8)),
            }
        )
        place += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    text = json.dumps(header).encode()
    try:
        write_atomically(path, _pieces(text, arrays))
    except OSError as error:
        raise TrieError(
            f"{os.fspath(path)}: cannot be written ({error}); free space or name another folder, "
            "nothing was left behind"
        ) from error


def read_index(path: str | os.PathLike[str], *, mmap: bool) -> dict[str, Any]:
    """The fields of the index in a file, every checksum verified; arrays are views of the mapped file if `mmap`.

    Raises:
        TrieError: if the file is missing, not an index, truncated, corrupt, or of a newer version.
    """
    path = as_path(path)
    content = _content(path, mmap)
    header, begin = _read_header(path, content)
    arrays = [_read_array(path, content, begin, entry) for entry in header["arrays"]]
    layout = dict(header["layout"])
    levels = tuple(Level(**level) for level in layout.pop("levels"))
    fields = {name: _restore(value, arrays) for name, value in header["fields"].items()}
    if "fingerprint" not in fields:  # Version 1 had none.
        fields["fingerprint"] = fingerprint(fields)
    return fields | {"layout": Layout(levels=levels, **layout)}


def _describe(value: Any, arrays: list[np.ndarray]) -> Any:
    """A JSON form of a field; its arrays are appended to `arrays`."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return [_describe(part, arrays) for part in value]
    for name, kind in _TYPES.items():
        if isinstance(value, kind):
            parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}
            return {"type": name} | {
                key: part if isinstance(part, int) else _describe(part, arrays)
                for key, part in parts.items()
            }
    array = np.ascontiguousarray(value)
    arrays.append(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(np.shape(value)))
    return {"type": "array", "number": len(arrays) - 1}


def _restore(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, list):
        return tuple(_restore(part, arrays) for part in value)
    if not isinstance(value, dict):
        return value
    if value["type"] == "array":
        return arrays[value["number"]]
    parts = {key: _restore(part, arrays) for key, part in value.items() if key != "type"}
    return _TYPES[value["type"]](**parts)


def _pieces(header: bytes, arrays: list[np.ndarray]) -> Iterator[bytes | memoryview]:
    yield MAGIC + len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(4, "little")
    yield header
    yield b"\0" * (-(_PREFIX + len(header)) % ALIGNMENT)
    for array in arrays:
        yield memoryview(array.reshape(-1).view(np.uint8))
        yield b"\0" * (-array.nbytes % ALIGNMENT)


def _content(path: Path, mapped: bool) -> memoryview:
    try:
        if is_remote(path):  # A remote file cannot be mapped.
            return memoryview(path.read_bytes())
        with path.open("rb") as file:
            if not mapped or os.fstat(file.fileno()).st_size == 0:
                return memoryview(file.read())
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise TrieError(f"{path}: no such file; write it with `TrieIndex.save`") from error
    except OSError as error:
        raise TrieError(f"{path}: cannot be read ({error})") from error


def _read_header(path: Path, content: memoryview) -> tuple[dict[str, Any], int]:
    """The header, and where the first array begins."""
    if bytes(content[: len(MAGIC)]) != MAGIC:
        raise TrieError(f"{path}: not an index; it must be a file that `TrieIndex.save` wrote")
    if len(content) < _PREFIX:
        raise TrieError(f"{path}: truncated in its header; copy the file again, or rebuild it")
    length = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 8], "little")
    checksum = int.from_bytes(content[len(MAGIC) + 8 : _PREFIX], "little")
    text = bytes(content[_PREFIX : _PREFIX + length])
    if len(text) < length:
        raise TrieError(f"{path}: truncated in its header; copy the file again, or rebuild it")
    if zlib.crc32(text) != checksum:
        raise TrieError(f"{path}: its header is corrupt; copy the file again, or rebuild it")
    header = json.loads(text)
    if header["version"] > VERSION:
        raise TrieError(
            f"{path}: format version {header['version']} is newer than {VERSION}, the newest that this "
            "version of gr reads; update gr, or rebuild the index"
        )
    return header, -(-(_PREFIX + length) // ALIGNMENT) * ALIGNMENT


def _read_array(path: Path, content: memoryview, begin: int, entry: dict[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    start = begin + entry["place"]
    data = content[start : start + size]
    if len(data) < size:
        raise TrieError(
            f"{path}: truncated, {len(content)} bytes where at least {start + size} are needed; "
            "copy the file again, or rebuild it"
        )
    if zlib.crc32(data) != entry["crc32"]:
        raise TrieError(
            f"{path}: corrupt, the checksum of bytes {start} to {start + size} is wrong; "
            "copy the file again, or rebuild it"
        )
    return np.frombuffer(data, dtype).reshape(shape)
