"""Makes `oracles` importable from every test folder; fixtures of several folders."""

import sys
from pathlib import Path

import jax
import pytest

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
