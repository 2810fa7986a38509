"""Provenance of a run: its resolved configuration, the code's revision, and package versions."""

import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import jax

from gr.data.files import as_path, read_json, write_json
from gr.training.hosts import is_first
from gr.training.state import TrainingError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
MISSING = "(missing)"


def save_run_info(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Writes `config.json` and `versions.json` into the workdir, replacing those already there.

    Call it right before training, after `check_run_info`.

    Args:
        workdir: folder of the run.
        config: the resolved configuration, JSON values, nested or not.
    """
    if is_first():
        write_json(as_path(workdir) / "config.json", config, sort_keys=True)
        write_json(as_path(workdir) / "versions.json", versions(), sort_keys=True)


def check_run_info(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    before: Mapping[str, Any] | None = None,
    may_differ: Collection[str] = (),
    ways_out: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Checks that a run may be resumed with a configuration; call it before anything else is done in the workdir.

    Args:
        workdir: of a run that has begun.
        config: the resolved configuration, JSON values, nested or not.
        before: the run's configuration, if today's fields differ from those of its `config.json`; None: what that says.
        may_differ: dotted fields in which the two may differ.
        ways_out: what to do instead where a field differs, by dotted field.

    Raises:
        TrainingError: if the workdir belongs to a run with another configuration, or there is none.
    """
    before = load_config(workdir) if before is None else before
    told = differing_fields(before, config)
    differing = [field for field in told if field not in may_differ]
    if differing:
        ways = "".join(f". {ways_out[field]}" for field in differing if field in ways_out)
        raise TrainingError(
            f"{as_path(workdir) / 'config.json'} is of another run: {'; '.join(told[field] for field in differing)}. "
            f"Use the same values to resume that run, or another workdir{ways}"
        )


def differing_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Where two nested mappings of JSON values differ: dotted field -> "FIELD was VALUE and is VALUE"."""
    # As they are read again: tuples are lists.
    before, now = (_flatten(json.loads(json.dumps(values))) for values in (before, now))
    values = {
        field: (before.get(field, MISSING), now.get(field, MISSING))
        for field in sorted(before.keys() | now.keys())
    }
    return {
        field: f"{field} was {was!r} and is {is_!r}"
        for field, (was, is_) in values.items()
        if was != is_
    }


def load_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The resolved configuration that `save_run_info` wrote.

    Raises:
        TrainingError: if there is none or it cannot be read.
    """
    path = as_path(workdir) / "config.json"
    try:
        return read_json(path)
    except FileNotFoundError as error:
        raise TrainingError(
            f"{path} does not exist; train first, or name another workdir"
        ) from error
    except ValueError as error:
        raise TrainingError(f"{path} is not JSON ({error}); use another workdir") from error


def versions() -> dict[str, Any]:
    """Revision of the code (None outside a git checkout), package versions and devices."""
    revision, modified = git_revision(os.path.dirname(os.path.abspath(__file__)))
    return {
        "git_revision": revision,
        "git_modified": modified,  # Whether tracked files differed from that revision.
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"gr": importlib.import_module("gr").__version__}
        | {name: _package_version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def git_revision(folder: str | os.PathLike) -> tuple[str | None, bool | None]:
    """The git commit of a folder and whether tracked files were changed since; (None, None) outside a repository."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside another project's checkout: the commit counts only if it has these files.
    if not git("ls-files", "--", "."):
        return None, None
    revision, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    if revision is None or changes is None:
        return None, None
    return revision, bool(changes)


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    flat = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat
