"""Compiles programs for accelerators that are not there, and reads off what they will cost (docs/accelerators.md)."""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from gr.fields import did_you_mean
from gr.runs.experiment import ConfigError, MeshConfig
from gr.runs.hlo import COLLECTIVES, COPIES, GATHERS, SORTS, TRANSFERS, Costs, read_costs
from gr.runs.programs import Program
from gr.training import make_mesh

CHIPS = 4  # Of the topology of a target for one chip.
# Names of a program's numbers for these: with its batch split, and with its state split too.
ON_SEVERAL, SHARDED = f"on_{CHIPS}_chips", f"on_{CHIPS}_chips_sharded"

# What the compiler has to know of a GPU: what CUDA tells of an H100 (SXM, 80 GB), in the form of XLA's GpuTargetConfig.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# Read by libtpu when it starts: it shall neither look for a machine of Google's cloud around it, which takes minutes,
# nor mind another process that uses it.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Accelerators that can be described to their compiler."""

    platform: str  # JAX's.
    topology: str
    memory_bytes: int  # Of a chip.
    package: str  # That holds the compiler.
    extra: str  # Of setup.py, that installs it.
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # Of the topology.
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Whether programs are compiled for all its chips, as a run uses them; else for one, and beside it for all.
    is_slice: bool = False


_ONE_HOST = {"chips_per_host_bounds": (2, 4, 1)}  # Of eight chips; libtpu would give it two hosts.

TARGETS = {
    "tpu:v5e": Target("tpu", "v5e:2x2", 16 << 30, "libtpu", "aot"),
    "tpu:v6e": Target("tpu", "v6e:2x2", 32 << 30, "libtpu", "aot"),
    "tpu:v5e-8": Target("tpu", "v5e:2x4", 16 << 30, "libtpu", "aot", _ONE_HOST, is_slice=True),
    "tpu:v6e-8": Target("tpu", "v6e:2x4", 32 << 30, "libtpu", "aot", _ONE_HOST, is_slice=True),
    "gpu:h100": Target(
        "cuda",
        "h100",
        80 << 30,
        "jax_cuda12_plugin",
        "cuda",
        options={"target_config": _H100, "topology": f"1x1x{CHIPS}"},
        compiler_options={
            "xla_gpu_collect_cost_model_stats": True,
            # Its sizes of tiles are found by timing; where no GPU is there, the compiler fails on some products.
            "xla_gpu_enable_triton_gemm": False,
        },
    ),
}


def described_devices(target: str) -> list[jax.Device]:
    """The devices of a target, of `TARGETS`; programs can be compiled for them, but not run.

    Raises:
        ConfigError: for an unknown target, or if its compiler is not installed or does not start.
    """
    if target not in TARGETS:
        raise ConfigError(
            f"target={target} is unknown: use one of {', '.join(TARGETS)}{did_you_mean(target, TARGETS)}"
        )
    wanted = TARGETS[target]
    remedy = f"pip install -e '.[{wanted.extra}]'"
    if importlib.util.find_spec(wanted.package) is None:
        raise ConfigError(
            f"target={target} needs {wanted.package}, which holds its compiler: {remedy}"
        )
    if wanted.platform == "tpu":
        for name, value in _LIBTPU.items():
            os.environ.setdefault(name, value)
    try:
        described = topologies.get_topology_desc(
            wanted.topology, platform=wanted.platform, **wanted.options
        )
    except Exception as error:  # Of JAX, of its plugin or of the compiler.
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"target={target}: {wanted.package} does not describe it ({said}); install the release that fits "
            f"jax {jax.__version__}: {remedy}"
        ) from error
    return list(described.devices)


def compiler(target: str) -> str:
    """Name and release of what compiles for a target."""
    package = TARGETS[target].package
    return f"{package} {importlib.metadata.version(package)}"


def compile_programs(
    target: str,
    programs: Mapping[str, Program],
    *,
    split: bool = True,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Compiles programs for one chip of a target, and those whose batch can be split for `CHIPS` of them too.

    A slice (`Target.is_slice`) is what a run uses as a whole: for it those programs alone are compiled whose batch can
    be split, once, and numbers are those of one of its chips.

    Args:
        target: of `TARGETS`.
        programs: by name, with all that they are compared with.
        split: whether programs are compiled for several chips too, under `"on_4_chips"`; and with their state split
            over these, under `"on_4_chips_sharded"`. A slice knows nothing of it.
        mesh: of a slice.
        progress: gets a line for each program.

    Returns:
        For each program a dictionary of numbers, as docs/accelerators.md explains them.

    Raises:
        ConfigError: see `described_devices`; or if a program does not fit the chip.
        TrainingError: if the mesh does not fit on the slice.
    """
    devices = described_devices(target)
    of_target = make_mesh(devices=devices)
    if TARGETS[target].is_slice:
        of_target = make_mesh(mesh.data, mesh.model, devices)
        programs = {name: program for name, program in programs.items() if program.splits}
        split = False
    results: dict[str, dict[str, Any]] = {}
    for name, program in programs.items():
        results[name] = _compiled(target, name, program, of_target)
        progress(f"{name}: compiled in {results[name]['compile_seconds']:.1f} s")
        for key, model in _on_several(program).items() if split else ():
            several = make_mesh(CHIPS // model, model, devices)
            results[name][key] = _compiled(target, name, program, several)
            progress(f"{name}: {key} in {results[name][key]['compile_seconds']:.1f} s")
    for name, program in programs.items():
        results[name] |= _compared(program, results[name], results)
    return results


def _on_several(program: Program) -> dict[str, int]:
    """The name of each form for several chips, and its size of the mesh axis "model"."""
    forms = {ON_SEVERAL: 1} if program.splits else {}
    return forms | ({SHARDED: CHIPS} if program.shards else {})


def _compiled(target: str, name: str, program: Program, mesh: Mesh) -> dict[str, Any]:
    """The numbers of one program on a chip of a mesh."""
    wanted = TARGETS[target]
    start = time.perf_counter()
    lowered = program.lower(mesh)
    traced = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=dict(wanted.compiler_options) or None)
    except jax.errors.JaxRuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"program {name} cannot be compiled for {mesh.size} chip(s) of {target} ({said}); if its memory is too "
            "small, lower the batch size"
        ) from error
    done = time.perf_counter()
    text = compiled.as_text()
    costs = read_costs(text, program.rounds)
    estimates = compiled.cost_analysis() or {}
    return {
        "trace_seconds": traced - start,
        "compile_seconds": done - traced,
        "cycles": costs.cycles,
        **_seconds(estimates.get("optimal_seconds")),
        "flops": estimates.get("flops"),
        "bytes": estimates.get("bytes accessed"),
        **_memory(compiled, wanted.memory_bytes),
        **_of_text(costs, program.rounds),
        "text_bytes": len(text),
        **({"mesh": dict(mesh.shape)} if wanted.is_slice else {}),
    }


def _seconds(told: float | None) -> dict[str, float | int | None]:
    """XLA's estimate of the time; an operation that it does not know counts as -1 s, and no program takes a second."""
    unknown = 0 if told is None else max(0, math.ceil(-told))
    return {
        "optimal_seconds": None if told is None else told + unknown,
        "without_optimal_seconds": unknown,
    }


def _memory(compiled: jax.stages.Compiled, of_chip: int) -> dict[str, float]:
    stats = compiled.memory_analysis()
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    told = getattr(stats, "peak_memory_in_bytes", 0)  # Older releases of JAX do not tell it.
    most = max(told, held + stats.temp_size_in_bytes)
    return {
        "argument_bytes": stats.argument_size_in_bytes,
        "output_bytes": stats.output_size_in_bytes,
        "temp_bytes": stats.temp_size_in_bytes,
        "code_bytes": stats.generated_code_size_in_bytes,
        "peak_bytes": most,
        "share_of_memory": most / of_chip,
    }


def _of_text(costs: Costs, rounds: int) -> dict[str, Any]:
    kinds = costs.of_kinds()
    return {
        **{
            kind: {name: getattr(costs.of(kind), name) for name in ("count", "elements", "bytes")}
            for kind in (GATHERS, SORTS, COPIES, TRANSFERS, COLLECTIVES)
        },
        "constant_bytes": costs.constant_bytes,
        "unestimated": sum(cost.unestimated for cost in kinds.values()),
        "open_loops": costs.open_loops,
        "rounds_of_open_loops": rounds if costs.open_loops else None,
        "kinds": {kind: dataclasses.asdict(cost) for kind, cost in kinds.items()},
        "lines": [dataclasses.asdict(cost) for cost in costs.of_lines],
    }


def _compared(
    program: Program, result: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The program's numbers over those of its fastest floor."""
    by = "cycles" if result["cycles"] else "optimal_seconds"
    floors = [name for name in program.floors if results.get(name, {}).get(by)]
    floor = min(floors, key=lambda name: results[name][by], default=None)
    return {"floor": floor} | {
        f"{quantity}_over_floor": _ratio(result, results[floor] if floor else {}, quantity)
        for quantity in ("cycles", "optimal_seconds", "bytes")
    }


def _ratio(result: Mapping[str, Any], floor: Mapping[str, Any], quantity: str) -> float | None:
    return result[quantity] / floor[quantity] if result[quantity] and floor.get(quantity) else None
