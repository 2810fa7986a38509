"""Makes `oracles` importable from every test folder; fixtures of several folders."""

import sys
from pathlib import Path

import fsspec
import jax
import pytest
from fsspec.implementations.memory import MemoryFileSystem

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def compile_in_haste():
    """For modules of tiny models: compiling well takes far longer than running what was compiled."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(autouse=True, scope="module")
def drop_compiled_programs():
    """Compiled programs hold mappings of memory, of which Linux grants a process 65,530; thousands of them add up."""
    yield
    jax.clear_caches()


class Bucket(MemoryFileSystem):
    """What answers for `gs://` in the tests: object names -> contents in memory."""

    protocol = ("gcs", "gs")
    store, pseudo_dirs = {}, [""]  # Not those of `memory://`.

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol("/" + str(path).removeprefix("gs://").lstrip("/"))


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An empty object store at `gs://bucket`, as name -> bytes; the test fails if a folder `gs:` appears."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EPATH_USE_TF", "false")
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    yield lambda: {
        name.removeprefix("/bucket/"): file.getvalue() for name, file in Bucket.store.items()
    }
    assert not (tmp_path / "gs:").exists()
