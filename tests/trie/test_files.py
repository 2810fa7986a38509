"""Files of indexes: what was written is read back, and nothing else is ever read."""

import json
import os
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries

from gr.testing import random_tokens
from gr.trie import TrieError, TrieIndex, files, walk

pytestmark = pytest.mark.usefixtures("compile_in_haste")


def make(kinds=tries.MIXES[3], num_attributes=0, seed=0):
    rng = np.random.default_rng(seed)
    tokens = random_tokens(rng, 20)
    attributes = rng.random((20, num_attributes)) < 0.3 if num_attributes else None
    layout = tries.roomy_layout(kinds, num_attributes)
    return tokens, TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)


@pytest.fixture
def saved(tmp_path):
    """A file with arrays of every sort, and the index in it."""
    path = tmp_path / "index.gr"
    index = make(num_attributes=5)[1]
    index.save(path)
    return path, index


def refused(path, message):
    """The one clear error that loading ends with, with and without mapping."""
    for mmap in (True, False):
        with pytest.raises(TrieError, match=message) as caught:
            TrieIndex.load(path, mmap=mmap)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("num_attributes", [0, 1, 33])
@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
def test_what_was_saved_is_loaded(kinds, num_attributes, mmap, tmp_path):
    _, index = make(kinds, num_attributes)
    index.save(tmp_path / "index.gr")
    loaded = TrieIndex.load(tmp_path / "index.gr", mmap=mmap)
    assert loaded.layout == index.layout
    assert jax.tree.structure(loaded) == jax.tree.structure(index)
    for mine, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(index), strict=True):
        assert isinstance(mine, jax.Array) and mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["index.gr"]


@pytest.mark.parametrize("mmap", [True, False])
def test_an_index_in_an_object_store(bucket, saved, mmap):
    path, index = saved
    index.save("gs://bucket/run/index.gr")
    assert bucket() == {"run/index.gr": path.read_bytes()}
    loaded = TrieIndex.load("gs://bucket/run/index.gr", mmap=mmap)
    jax.tree.map(np.testing.assert_array_equal, loaded, index)
    with pytest.raises(TrieError, match="^gs://bucket/none: no such file"):
        TrieIndex.load("gs://bucket/none", mmap=mmap)


def test_an_index_outlives_its_file_and_works(tmp_path):
    tokens, index = make()
    path = tmp_path / "folder" / "index.gr"  # The folder is made.
    index.save(path)
    loaded = TrieIndex.load(path)
    path.unlink()
    names = walk(loaded, jnp.asarray(tokens))
    np.testing.assert_array_equal(names, walk(index, jnp.asarray(tokens)))


def test_an_index_as_it_was_chosen_and_a_second_save(tmp_path):
    path = tmp_path / "index.gr"
    index = TrieIndex.build(np.array([[4, 2, 4]]), 5)
    index.save(path)
    before = path.read_bytes()
    TrieIndex.load(path).save(path)  # Over the file that is mapped.
    assert path.read_bytes() == before
    assert len(before) % files.ALIGNMENT == 0


# Files that are no good.


def test_missing_empty_and_other_files(tmp_path):
    refused(tmp_path / "none.gr", "no such file")
    refused(tmp_path, "cannot be read")
    (tmp_path / "empty.gr").write_bytes(b"")
    refused(tmp_path / "empty.gr", "not an index")
    (tmp_path / "other.gr").write_text("Hello. This is a file of another kind.")
    refused(tmp_path / "other.gr", "not an index")
    np.savez(tmp_path / "other.npz", tokens=np.zeros(3))
    refused(tmp_path / "other.npz", "not an index")


def test_truncated_files(saved):
    path, _ = saved
    content = path.read_bytes()
    last = files.ALIGNMENT * (len(content) // files.ALIGNMENT - 1)
    lengths = [5, 8, 12, 19, 20, 21, 300, files.ALIGNMENT, files.ALIGNMENT + 1, last, last + 1]
    for length in lengths:
        path.write_bytes(content[:length])
        refused(path, "truncated|corrupt|not an index" if length < 20 else "truncated")


def sections(content):
    """Where the parts of a file lie: name -> `(begin, end)`."""
    length = int.from_bytes(content[8:16], "little")
    header = json.loads(content[20 : 20 + length])
    first = -(-(20 + length) // files.ALIGNMENT) * files.ALIGNMENT
    parts = {
        "magic": (0, 8),
        "length": (8, 16),
        "checksum": (16, 20),
        "header": (20, 20 + length),
    }
    for number, entry in enumerate(header["arrays"]):
        size = np.dtype(entry["dtype"]).itemsize * int(np.prod(entry["shape"]))
        assert (first + entry["place"]) % files.ALIGNMENT == 0
        parts[f"array {number}"] = (first + entry["place"], first + entry["place"] + size)
    return parts


def test_a_flipped_bit_in_any_part_is_noticed(saved):
    path, _ = saved
    content = path.read_bytes()
    parts = sections(content)
    assert len(parts) > 12
    for name, (begin, end) in parts.items():
        for place in {begin, (begin + end) // 2, end - 1}:
            for bit in (0, 7):
                broken = bytearray(content)
                broken[place] ^= 1 << bit
                path.write_bytes(broken)
                message = "not an index" if name == "magic" else "corrupt|truncated"
                refused(path, message)
    path.write_bytes(content)
    TrieIndex.load(path)


def rewritten(content, change):
    """The file with another header."""
    length = int.from_bytes(content[8:16], "little")
    header = json.loads(content[20 : 20 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (length - len(text))
    start = content[:8] + len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(4, "little")
    begin = -(-(20 + length) // files.ALIGNMENT) * files.ALIGNMENT
    return (start + text).ljust(begin, b"\0") + content[begin:]


def test_a_newer_version_asks_for_an_update(saved):
    path, _ = saved
    content = path.read_bytes()
    path.write_bytes(rewritten(content, lambda header: header.update(version=files.VERSION)))
    TrieIndex.load(path)
    path.write_bytes(rewritten(content, lambda header: header.update(version=9)))
    refused(path, "format version 9 is newer than 2")


def test_a_file_of_the_first_version_gets_its_fingerprint(saved):
    path, index = saved

    def as_it_was(header):
        del header["fields"]["fingerprint"]
        header["version"] = 1

    path.write_bytes(rewritten(path.read_bytes(), as_it_was))
    for mmap in (True, False):
        loaded = TrieIndex.load(path, mmap=mmap)
        np.testing.assert_array_equal(loaded.fingerprint, index.fingerprint)


# Writing that fails.


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    path, index = saved
    before = path.read_bytes()
    pieces = files._pieces

    def full(header, arrays):
        for number, piece in enumerate(pieces(header, arrays)):
            if number == 6:
                raise OSError(28, "No space left on device")
            yield piece

    monkeypatch.setattr(files, "_pieces", full)
    with pytest.raises(TrieError, match="cannot be written .*No space left") as caught:
        index.save(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written(saved, tmp_path):
    path, index = saved
    with pytest.raises(TrieError, match="cannot be written"):
        index.save(path / "index.gr")  # Below a file.
    (tmp_path / "taken").mkdir()
    with pytest.raises(TrieError, match="cannot be written"):
        index.save(tmp_path / "taken")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.gr", "taken"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(saved, tmp_path):
    _, index = saved
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(TrieError, match="cannot be written .*Permission denied"):
        index.save(folder / "index.gr")
