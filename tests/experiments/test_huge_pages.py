import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.huge_pages import TUNABLE, VARIABLE, restart_main, tunables_to_add

ASKS = "always [madvise] never\n"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("environment", "kernel", "libc", "expected"),
    [
        ({}, ASKS, "glibc 2.36", f"{TUNABLE}=1"),
        ({}, ASKS, "glibc 2.35", f"{TUNABLE}=1"),
        ({VARIABLE: "a=b"}, ASKS, "glibc 3.0", f"a=b:{TUNABLE}=1"),
        ({VARIABLE: f"{TUNABLE}=0"}, ASKS, "glibc 2.36", None),
        ({}, "[always] madvise never", "glibc 2.36", None),
        ({}, "always madvise [never]", "glibc 2.36", None),
        ({}, "", "glibc 2.36", None),
        ({}, ASKS, "glibc 2.31", None),
        ({}, ASKS, "", None),
        ({}, ASKS, "musl 1.2", None),
    ],
)
def test_huge_pages_are_asked_for_where_that_is_needed_and_possible(
    environment, kernel, libc, expected
):
    assert tunables_to_add(environment, kernel, libc) == expected


def test_nothing_but_a_main_is_started_again(monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *arguments: pytest.fail("started again"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest"])
    restart_main()
    monkeypatch.setattr(sys, "orig_argv", ["python", "script.py"])
    restart_main()


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux")
def test_a_main_runs_with_its_arguments_whether_started_again_or_not():
    for value in (None, f"{TUNABLE}=0"):
        environment = {name: text for name, text in os.environ.items() if name != VARIABLE}
        environment["PYTHONPROFILEIMPORTTIME"] = "1"
        if value is not None:
            environment[VARIABLE] = value
        done = subprocess.run(
            [sys.executable, "-m", "experiments.build_index", "--ids=no such file", "--output=x"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and "no such file" in done.stderr
        # It is started again before the imports that take seconds.
        assert len(re.findall(r"\| +jax$", done.stderr, re.MULTILINE)) == 1
