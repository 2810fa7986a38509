"""Compiled programs that all processes of a run share; fixtures of several folders."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# Nearly all of the time of a test run is compilation of programs that hardly run. XLA's older emitters compile for the
# CPU in less than half the time of the newer ones, and one part of a program at a time suits several workers.
FAST_COMPILING = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
CACHE = None


def knows(flags):
    """Whether this XLA has these flags; it ends a process that gives it others."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


# Set before JAX is imported, and inherited: by the workers of pytest-xdist and by the commands that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILING}"
    if knows(flags):
        os.environ["XLA_FLAGS"] = flags
    # Two processes may write the same program; one that is cut off is compiled again by whoever reads it.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gr_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import fsspec  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402
from tries import MIXES  # noqa: E402

ROOT = Path(__file__).parents[1]
# A minute and more each. They begin first, so that no worker is left with one of them at the end.
SLOWEST = (
    "runs/test_hosts.py",
    "runs/test_rl.py",
    "test_lint.py",
    "decoding/test_sharded.py",
    "runs/test_many_devices.py",
    "experiments/test_mains.py",
    "rl/test_policy_step.py",
    "decoding/test_extreme_logits.py",
    "test_wheel.py",
    "test_notebooks.py",
    "decoding/test_prior.py",
    "decoding/test_prior_draws.py",
    "decoding/test_ved.py",
    "decoding/test_best_first.py",
    "training/test_pairwise.py",
    "evaluation/test_searches.py",
    "trie/test_overlay.py",
)
# Searches that share their step with beam search, whose own tests have every layout of the trie. Each case compiles
# programs of its own, so `make test` runs these in one layout, which has every kind of level, and `make test-long` in
# the others.
ONE_LAYOUT = (
    *("decoding/test_prior.py", "decoding/test_prior_draws.py", "decoding/test_best_first.py"),
    *("decoding/test_ved.py", "decoding/test_child_scores.py", "decoding/test_for_tpu.py"),
    *("decoding/test_sampling.py", "decoding/test_normalisation.py"),
)
THE_ONE = MIXES[3]


def pytest_configure():
    """Tracing makes so many objects that looking for cycles among them takes a twentieth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_report_header():
    """How programs are compiled, for whoever compares times."""
    fast = FAST_COMPILING in os.environ.get("XLA_FLAGS", "")
    return f"XLA: {FAST_COMPILING if fast else 'its usual CPU emitters (the fast ones are unknown here)'}"


def pytest_collection_modifyitems(items):
    """Puts the slowest files first, each as a whole; the others keep their order."""
    place = {ROOT / "tests" / name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    files = {ROOT / "tests" / name for name in ONE_LAYOUT}
    for item in items:
        kinds = getattr(item, "callspec", None) and item.callspec.params.get("kinds")
        if item.path in files and kinds not in (None, THE_ONE):
            item.add_marker("long")


def pytest_unconfigure():
    """The process that made the folder, which outlives its workers, removes it."""
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="module")
def compile_in_haste():
    """For modules of tiny models: compiling well takes far longer than running what was compiled."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def compile_anew():
    """For modules that look at what is compiled: a cached program names lines of an older file, or cannot be loaded."""
    name = "jax_enable_compilation_cache"
    before = jax.config.jax_enable_compilation_cache
    jax.config.update(name, False)
    compilation_cache.reset_cache()  # Whether it is used was decided at the first compilation.
    yield
    jax.config.update(name, before)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True, scope="module")
def drop_compiled_programs():
    """Compiled programs hold mappings of memory, of which Linux grants a process 65,530; thousands of them add up."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what there is of the repository."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("gr", "experiments", "configs", "notebooks", "docs"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "figures")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed_python(wheel, tmp_path_factory):
    """A function that runs Python where the wheel is installed and no repository is: `(*arguments) -> what it printed`.

    The environment is fresh but for the dependencies, which are those of the running one.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True)
    (python,) = (folder / "venv").glob("*/python")
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (folder / "venv").glob("lib/*/site-packages")
    # Paths in a .pth file are searched last, and .pth files found there are not read: an editable install of this
    # repository in the running environment stays unseen.
    (site / "dependencies.pth").write_text(str(Path(np.__file__).parents[1]) + "\n")
    ours = ("PYTHONPATH", "XLA_FLAGS")  # It compiles as a user's program does.
    outside = {name: value for name, value in os.environ.items() if name not in ours}

    def run(*arguments):
        done = subprocess.run(
            [python, *map(str, arguments)],
            cwd=folder,
            env={**outside, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def pip(*arguments):
    """Runs pip, without a network."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


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
