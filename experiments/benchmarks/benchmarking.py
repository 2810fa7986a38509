"""Shared by the benchmarks: flags for a config, alternating timing, the machine, table and JSON file."""

import contextlib
import dataclasses
import itertools
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax import monitoring
from ml_collections import config_flags

from experiments.errors import run_main
from gr.data import Splits
from gr.data.files import write_atomically
from gr.models import ModelError
from gr.reports import format_table
from gr.runs import Experiment, build
from gr.runs.data import load_data, load_semantic_ids
from gr.semantic_ids import SemanticIds
from gr.training import versions

BACKBONES = ("encoder_decoder", "decoder_only", "item_decoder")
PEAK = "matrix product"  # The call that `machine_peak` adds to those that are timed.

FLAGS = flags.FLAGS

_LEAST_ROUNDS = 3
_KEPT_BATCHES = 8  # Of each shape; the calls on a shape walk through them.
_COMPILED = "/jax/core/compile/backend_compile_duration"


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a model benchmark's main with its flags; they are defined here, so that importing defines none."""
    config_flags.DEFINE_config_file("config", None, "The experiment's configuration.")
    flags.DEFINE_string("json", None, "File to write the measurements to.")
    flags.DEFINE_list(
        "backbones", list(BACKBONES), "Which backbones to measure; config.backbone is ignored."
    )
    flags.DEFINE_float(
        "seconds_per_row", 8.0, "Time spent on each row, compilation aside; three rounds at least."
    )
    flags.mark_flags_as_required(["config", "json"])
    run_main(main)


def backbones() -> list[str]:
    """The backbones to be measured, by `--backbones`."""
    chosen = FLAGS.backbones
    if not chosen or set(chosen) - set(BACKBONES):
        raise ModelError(f"--backbones={','.join(chosen)}: use some of {','.join(BACKBONES)}")
    return [backbone for backbone in BACKBONES if backbone in chosen]


def models(
    config: Experiment, semantic_ids: SemanticIds
) -> Iterator[tuple[str, Experiment, nnx.Module]]:
    """Each backbone to be measured: its name, the config with it, an untrained model."""
    for backbone in backbones():
        chosen = dataclasses.replace(config, backbone=backbone)
        yield backbone, chosen, build.make_model(chosen, semantic_ids)


def by_quantity(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results by row and quantity, the other way round: as the files hold them."""
    fields = next(iter(results.values()))
    return {field: {name: results[name][field] for name in results} for field in fields}


def load(config: Experiment) -> tuple[Splits, SemanticIds]:
    """The config's data and semantic IDs; downloads go into a temporary folder."""
    splits = load_data(config, os.path.join(tempfile.gettempdir(), "gr-benchmark"))
    return splits, load_semantic_ids(config, splits).semantic_ids


# Timing.


@dataclasses.dataclass(frozen=True)
class Stratum:
    """The batches of one shape: a few to be timed, their total number, and their examples."""

    batches: list[dict[str, np.ndarray]]
    count: int
    examples: float


def strata(batches: Iterable[dict[str, np.ndarray]], *fields: str) -> dict[tuple, Stratum]:
    """Groups batches by the shapes of fields (one tuple of all), which are what decides how long they take."""
    groups: dict[tuple, list] = {}
    for batch in batches:
        shape = tuple(size for field in fields for size in batch[field].shape)
        groups.setdefault(shape, []).append(batch)
    return {
        shape: Stratum(
            batches=groups[shape][:_KEPT_BATCHES],
            count=len(groups[shape]),
            examples=float(sum(batch["weight"].sum() for batch in groups[shape])),
        )
        for shape in sorted(groups)
    }


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long a call takes."""

    seconds: float  # Median.
    compile_seconds: float  # Extra time of the first call: tracing and compilation.
    calls: int


def time_in_turns(
    calls: Mapping[Hashable, Callable[[], Any]], seconds: float, *, settle: bool = False
) -> tuple[dict[Hashable, Timing], int]:
    """Times calls in rounds, each once per round, so that a drift of the machine affects all equally.

    Args:
        calls: timed until their results are ready. The first call of each, which compiles, is not in the median.
        seconds: total time of the rounds; there are at least three.
        settle: whether each call is made once more before it is timed, so that it finds the memory as it left it, not
            as another program did.

    Returns:
        Their timings, and how many programs were compiled after the first calls: 0 unless something is wrong.
    """
    first = {name: _seconds(call) for name, call in calls.items()}
    taken: dict[Hashable, list[float]] = {name: [] for name in calls}
    with _count_compilations() as compiled:
        start = time.perf_counter()
        for number in itertools.count(1):
            for name, call in calls.items():
                if settle:
                    _seconds(call)
                taken[name].append(_seconds(call))
            spent = time.perf_counter() - start
            if number >= _LEAST_ROUNDS and spent + spent / number > seconds:
                break
    medians = {name: statistics.median(values) for name, values in taken.items()}
    timings = {
        name: Timing(median, max(0.0, first[name] - median), len(taken[name]))
        for name, median in medians.items()
    }
    return timings, len(compiled)


def in_order(run: Callable[[Any], Any], batches: Sequence[Any]) -> Callable[[], Any]:
    """A call that runs on the next of the batches, over and over."""
    turn = itertools.cycle(batches)
    return lambda: run(next(turn))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


@contextlib.contextmanager
def _count_compilations() -> Iterator[list[str]]:
    """A list that gets an entry for each program compiled inside the block."""
    compiled: list[str] = []

    def listen(event: str, _: float, **__: Any) -> None:
        if event == _COMPILED:
            compiled.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        monitoring.unregister_event_duration_listener(listen)


# The machine.


def machine() -> dict[str, Any]:
    """The machine of the measurements."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),  # At the start: others' work slows ours.
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores (load {machine['load_average']} at the start); "
        f"jax {machine['jax']} on {machine['backend']}, {machine['devices']} x {machine['device_kind']}"
    )


def peak_product(dtype: str) -> tuple[Callable[[], jax.Array], float]:
    """A large matrix product, the floor of every model's time, and its GFLOP (2 per multiply and add)."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    return lambda: product(matrix, matrix), 2e-9 * size**3


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# Results.


def report(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    on: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> None:
    """Prints the table with its notes and the machine, and writes `--json`."""
    print(f"\n{title}\n{machine_line(on)}\n")
    print(format_table([list(header), *map(list, rows)]))
    print("\n" + "\n".join(notes))
    write(on, measured)


def write(on: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Writes `--json`: what was measured, the machine, the command and the versions."""
    content = {
        "machine": dict(on),
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "versions": versions(),
        **measured,
    }
    write_atomically(FLAGS.json, (json.dumps(content, indent=2) + "\n").encode())
    print(f"wrote {FLAGS.json}")


def _module() -> str:
    """The name by which the main was started with `python -m`."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else sys.argv[0]
