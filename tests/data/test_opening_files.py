import bz2
import codecs
import gzip
import lzma

import pyarrow as pa
import pytest

from gr.data import DataError
from gr.data.files import as_path, existing_file, open_bytes, open_text, reading


def write(folder, content, name="log.csv"):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_gzip_is_told_by_the_content_and_not_by_the_name(tmp_path, name, pack):
    with open_bytes(write(tmp_path, pack(b"a\r\nb\n"), name)) as file:
        assert file.read() == b"a\r\nb\n"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (b"\x1f\x8b", "damaged"),
        (gzip.compress(bytes(range(256)) * 99, mtime=0)[:-9], "damaged"),
        (b"PK\x03\x04rest", "is a zip archive .as Excel workbooks are.; unpack it"),
        (bz2.compress(b"a"), "is packed by bzip2; unpack it"),
        (gzip.compress(lzma.compress(b"a"), mtime=0), "is packed by xz; unpack it"),
    ],
)
def test_what_cannot_be_read_is_one_error_that_names_the_file(tmp_path, content, fault):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=rf"log\.csv.*{fault}"), open_bytes(path) as file:
        file.read()


def test_paths_that_are_no_files(tmp_path):
    for path, fault in (
        (tmp_path, "is a folder"),
        (tmp_path / "absent", "does not exist"),
        (tmp_path / ("x" * 5000), "x"),
        ("a\0b", "does not exist"),
    ):
        with pytest.raises(DataError, match=fault):
            existing_file(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path, b"a")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(as_path(path)), "open", refuse)
    with pytest.raises(DataError, match=r"log\.csv may not be read"), open_bytes(path):
        pass


@pytest.mark.parametrize(
    "error", [OSError("x"), EOFError(), pa.ArrowInvalid("x\nstack"), KeyError(1)]
)
def test_errors_of_a_block_become_one_line(error):
    with pytest.raises(DataError, match=r"^log: damaged \(.*\); fetch it again$"):
        with reading("log", KeyError):
            raise error
    with pytest.raises(ZeroDivisionError), reading("log"):
        raise ZeroDivisionError


TEXT = "é,\x85\u2028\r\n日,b\rc"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf_16_be"]
)
@pytest.mark.parametrize("named", [False, True])
def test_text_in_every_unicode_encoding(tmp_path, encoding, named):
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf_16_be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    path = write(tmp_path, mark + TEXT.encode(encoding))
    with open_text(path, encoding if named else "utf-8") as file:
        assert list(file) == ["é,\x85\u2028\r\n", "日,b\r", "c"]


def test_text_in_other_encodings(tmp_path):
    path = write(tmp_path, "ÿþ€".encode("cp1252"))
    with open_text(path, "cp1252") as file:
        assert file.read() == "ÿþ€"
    path = write(tmp_path, "é".encode("latin-1"))
    with pytest.raises(DataError, match=r"log\.csv: not UTF-8 text .* name its encoding"):
        with open_text(path) as file:
            file.read()
    for unknown in ("utf-9", "hex"):
        with (
            pytest.raises(DataError, match=f"unknown encoding '{unknown}'"),
            open_text(path, unknown),
        ):
            pass
