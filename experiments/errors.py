"""Shared by all mains: quiet libraries, and one-line messages for errors that the user can fix."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from experiments import distributed
from experiments.config_files import check_overrides, load_config_file, one_line
from gr import GrError
from gr.runs import ConfigError, ReinforcedExperiment, config_of
from gr.runs.processes import check_devices
from gr.training import TrainingInterrupted

MENDABLE = (GrError, TrainingInterrupted)

# Experiment fields and `gr.runs` arguments that are flags of the mains.
_FIELDS = "|".join(field.name for field in dataclasses.fields(ReinforcedExperiment))
_ARGUMENTS = (
    "workdir|only|other_data|beside|budget|data_dir|exclude_seen|reference|seeds|user|history|add|id_column|programs|"
    "target|output|shards|num_items|process_id|num_processes|candidates|ground_truth|export|skip_bad_rows|rows|split"
)


def run_main(main: Callable[[Sequence[str]], None], *, starts_backend: bool = True) -> None:
    """Runs a main whose flags are defined, as `app.run`; errors of the command line take one line.

    Args:
        main: wrapped by `one_line_errors`.
        starts_backend: whether the process itself computes; then it checks JAX's devices at once.
    """
    with distributed.leaving():
        app.run(main, flags_parser=functools.partial(_parsed, starts_backend=starts_backend))


def one_line_errors(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """Wraps an absl main: an error that the user can fix prints `error: MESSAGE` and exits with status 1."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise SystemExit(f"error: unknown arguments: {' '.join(argv[1:])}")
        logging.set_verbosity(logging.WARNING)  # Orbax logs every file that it writes.
        try:
            main(argv)
        except MENDABLE as error:
            raise SystemExit(f"error: {with_flags(str(error))}") from error
        except KeyboardInterrupt:  # Training itself saves its state and says so.
            raise SystemExit("stopped") from None
        except OSError as error:  # Such as a full disk, or a file without permission.
            if error.strerror is None:
                raise
            place = f"{error.filename}: " if error.filename else ""
            raise SystemExit(f"error: {place}{error.strerror}") from error

    return wrapped


def with_flags(message: str) -> str:
    """A message of the library, with fields and arguments named as on the command line."""
    # `experiments.evaluate` takes a config for candidates only.
    if "config" in flags.FLAGS and flags.FLAGS.config is not None:
        message = re.sub(rf"(?<![\w.\-/])((?:{_FIELDS})(?:\.\w+)*=)", r"--config.\1", message)
    return re.sub(rf"(?<![\w.\-/])((?:{_ARGUMENTS})=)", r"--\1", message)


def _parsed(argv: Sequence[str], *, starts_backend: bool) -> list[str]:
    """Parses the command line; long errors of absl and ml_collections become one line."""
    try:
        defined = "config" in flags.FLAGS
        path = _value_of("config", argv) if defined else None
        if path:
            check_overrides(load_config_file(path), argv[1:])
        rest = flags.FLAGS(argv)
        if defined and flags.FLAGS.config is not None:
            config_of(flags.FLAGS.config)
    except (ConfigError, flags.Error) as error:
        missing = re.fullmatch(
            r"flag --(\w+)=None: .*must have a value other than None\.", str(error)
        )
        told = (
            f"--{missing[1]}=... is missing (--help lists all flags)"
            if missing
            else one_line(error)
        )
        raise SystemExit(f"error: {told}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # Of an override.
        raise SystemExit(f"error: {one_line(error)}") from error
    if starts_backend:
        try:
            distributed.start()
            check_devices()
        except GrError as error:
            raise SystemExit(f"error: {error}") from error
    return rest


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    """The last `--name=VALUE` or `--name VALUE` of a command line."""
    value = None
    for place, argument in enumerate(argv[1:], start=1):
        flag, equals, text = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = text if equals else next(iter(argv[place + 1 :]), None)
    return value
