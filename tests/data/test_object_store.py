"""Files in an object store are read and written there, and files on a disk are whole or not there."""

import gzip
import os
import sys
from pathlib import PurePath

import pytest

from gr.data import DataError, read_table
from gr.data.files import (
    as_path,
    existing_file,
    open_bytes,
    open_text,
    read_json,
    write_atomically,
    write_json,
)

LOG = b"user,item,time\na,x,1\na,y,2\nb,x,3\n"


@pytest.mark.parametrize("content", [b"abc", [b"a", memoryview(b"bc")]])
def test_what_is_written_is_in_the_store(bucket, content):
    write_atomically("gs://bucket/a/b.bin", content)
    assert bucket() == {"a/b.bin": b"abc"}
    with open_bytes(as_path("gs://bucket") / "a/b.bin") as file:
        assert file.read() == b"abc"


def failing():
    yield b"half"
    raise KeyError


@pytest.mark.parametrize("folder", ["gs://bucket/", "there/"])
def test_a_failed_write_leaves_what_was_there(bucket, tmp_path, folder):
    write_atomically(f"{folder}a.bin", b"whole")
    with pytest.raises(KeyError):
        write_atomically(f"{folder}a.bin", failing())
    assert as_path(f"{folder}a.bin").read_bytes() == b"whole"
    assert [path.name for path in as_path(folder).iterdir()] == ["a.bin"]


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    monkeypatch.setattr(os, "replace", lambda source, _: synced.append(os.path.basename(source)))
    write_atomically(tmp_path / "a.bin", b"abc")
    assert synced[0] == 3 and synced[1].startswith(".a.bin.")


@pytest.mark.parametrize("folder", ["gs://bucket", "."])
def test_json(bucket, folder):
    write_json(f"{folder}/a/b.json", {"b": [1, None], "a": "é"}, sort_keys=True)
    assert as_path(f"{folder}/a/b.json").read_text().startswith('{\n  "a"')
    assert read_json(f"{folder}/a/b.json") == {"a": "é", "b": [1, None]}
    with pytest.raises(FileNotFoundError):
        read_json(f"{folder}/none.json")
    write_atomically(f"{folder}/a/b.json", b"{")
    with pytest.raises(ValueError, match="line 1"):
        read_json(f"{folder}/a/b.json")


def test_logs_are_read_from_the_store(bucket):
    write_atomically("gs://bucket/log.csv", gzip.compress(LOG))
    with open_text("gs://bucket/log.csv") as file:
        assert file.read().encode() == LOG
    assert read_table("gs://bucket/log.csv", user="user", item="item").num_users == 2


def test_what_the_store_lacks_is_one_error(bucket):
    write_atomically("gs://bucket/a/empty", b"")
    for name, fault in (("a", "is a folder"), ("b", "does not exist"), ("a/empty", "is empty")):
        with pytest.raises(DataError, match=f"^gs://bucket/{name} {fault}"):
            existing_file(f"gs://bucket/{name}")


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("ftp://host/x", "no address that is known; give a local"),
        ("odd://x", "cannot be reached"),
        (PurePath("gs://bucket/x"), "was an address"),
    ],
)
def test_other_addresses_are_one_error(path, fault):
    with pytest.raises(DataError, match=f"^{path}:? {fault}"):
        as_path(path)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(DataError, match="^az://bucket/x cannot be reached: .*adlfs"):
        as_path("az://bucket/x")
