"""Large temporaries of XLA's CPU backend in huge pages, which makes a training step up to twice as fast.

A step asks for hundreds of MiB anew, and where the kernel gives huge pages only to those who ask for them
(`/sys/kernel/mm/transparent_hugepage/enabled` is `madvise`, the default of Debian and Ubuntu), it gets them in pages of
4 KiB, each of which faults. glibc asks if a tunable says so, but reads it only when a process starts; so a main
starts itself once more, before its own imports. `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` in the environment prevents it.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_main() -> None:
    """Restarts `python -m experiments.X` with huge pages, if they must be requested; else does nothing."""
    is_main = sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("experiments.")
    if not is_main or sys.platform != "linux":
        return
    tunables = tunables_to_add(os.environ, _read(_KERNEL), _libc())
    if tunables is not None:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, VARIABLE: tunables})


def tunables_to_add(environment: Mapping[str, str], kernel: str, libc: str) -> str | None:
    """The value that `GLIBC_TUNABLES` should have, or None if it may stay as it is.

    Args:
        environment: of the process.
        kernel: the kernel's setting of transparent huge pages, such as "always [madvise] never".
        libc: name and version, such as "glibc 2.36".
    """
    name, _, version = libc.partition(" ")
    knows = name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
    before = environment.get(VARIABLE, "")
    if not knows or "[madvise]" not in kernel or TUNABLE in before:
        return None
    return f"{before}:{TUNABLE}=1" if before else f"{TUNABLE}=1"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""
