"""The device mesh: which device holds what of a batch and of a state, and programs in which each has its own users.

A mesh has two axes. Each of its `data` groups of devices holds all the parameters; the `model` devices of a group share
them. The rows of a batch are split over all devices of both axes: what is split over "model" is storage. A step gathers
the parameters, adds up the gradients into the parts that the devices hold, and updates these (ZeRO, arXiv 1910.02054,
stage 3, also called fully sharded data parallelism).
"""

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from gr.decoding.draws import KeyOfPart
from gr.training.state import TrainingError

# What JAX calls the runtime of devices that are only described.
_DESCRIBED = "compile_only_runtime"

ROWS = PartitionSpec(("data", "model"))
WHOLE = PartitionSpec()

# Which axis of an array of a state is split over "model", by the end of its name: the first rule that fits counts.
# An axis whose size the devices do not divide is passed over for the largest one that they divide, and where there is
# none the array is whole on every device. An optimiser's moments and copies have their parameter's name and shape, so
# they are split like it.
_LARGEST = None
AXES: tuple[tuple[str, int | None], ...] = (
    # Tables of embeddings by their width: how many rows they have is the catalogue's affair, and seldom a multiple.
    (r".*embedding|(codes|items)(_in|_out|_before)?|nodes|facets", -1),
    (r".*", _LARGEST),
)
SMALL = 1024  # Arrays of fewer numbers, such as the scales of norms, are whole on every device.


def make_mesh(data: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with axes `("data", "model")` over the first `data * model` devices; one device is the 1x1 mesh.

    Args:
        data: groups of devices, each of which has all the parameters; 0: as many as there are.
        model: devices of a group, which share the parameters.
        devices: from which the mesh is made; None: all that JAX computes on, as many of each process. They may also be
            those of a described topology (`jax.experimental.topologies`), which programs can be compiled for:
            `shard_batch`, `shard_state` and `replicate` then return shapes in place of arrays.

    Raises:
        TrainingError: if there are fewer devices, or they cannot be taken from all processes alike.
    """
    everything = devices is None
    devices = jax.devices() if devices is None else list(devices)
    if data == 0:
        data = max(1, len(devices) // max(model, 1))
    if data < 1 or model < 1 or data * model > len(devices):
        raise TrainingError(
            f"a mesh of data={data} x model={model} does not fit on {len(devices)} {devices[0].platform} device(s); "
            "make data * model at most that"
        )
    if everything and jax.process_count() > 1:
        devices = _alike(devices, data, model)
    return jax.make_mesh(
        (data, model),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: data * model],
    )


def _alike(devices: Sequence[jax.Device], data: int, model: int) -> list[jax.Device]:
    """`data * model` devices, as many of each process: one without any could not take part."""
    each, left = divmod(data * model, jax.process_count())
    if left:
        raise TrainingError(
            f"a mesh of data={data} x model={model} cannot have as many devices of each of {jax.process_count()} "
            "processes; make data * model a multiple of their number"
        )
    groups = ([d for d in devices if d.process_index == p] for p in range(jax.process_count()))
    return [device for group in groups for device in group[:each]]


def mesh_line(mesh: Mesh) -> str:
    """What a mesh is made of, in words for a log."""
    device = mesh.devices.flat[0]
    shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    kind = "" if device.device_kind == device.platform else f" ({device.device_kind})"
    return f"{mesh.size} of {jax.device_count()} {device.platform} device(s){kind}: {shape}"


# Placement.


def shard_batch(batch: Any, mesh: Mesh, *, whole: bool = False) -> Any:
    """Puts host arrays `[B, ...]` on the mesh, B split over all its devices; scalars go everywhere.

    Args:
        batch: a pytree of arrays.
        mesh: the devices. If it spans several processes, each passes its own rows, and the global batch is all of them
            in process order.
        whole: whether each process passes all rows instead.

    Raises:
        TrainingError: if B is not a multiple of the number of devices.
    """
    processes = _num_processes(mesh)
    parts = 1 if whole else processes  # In which the batch is passed.

    def put(path: Any, array: np.ndarray) -> jax.Array:
        array = np.asarray(array)
        if array.ndim and (array.shape[0] * parts) % mesh.size:
            raise TrainingError(
                f"batch{jax.tree_util.keystr(path)} has {array.shape[0] * parts} rows, which do not split over "
                f"data={mesh.shape['data']} x model={mesh.shape['model']} devices; use a batch size that is a multiple "
                "of their number, and pad or drop the last batch"
            )
        sharding = _sharding(mesh, ROWS if array.ndim else WHOLE)
        if processes > 1 and not whole:
            return jax.make_array_from_process_local_data(sharding, array)
        return _put(array, sharding)

    return jax.tree_util.tree_map_with_path(put, batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts all arrays of the tree on every device of the mesh; all processes must hold the same values."""
    sharding = _sharding(mesh, WHOLE)
    return jax.tree.map(lambda leaf: _put(leaf, sharding), tree)


def shard_state(state: Any, mesh: Mesh) -> Any:
    """Puts a state, or a part of one, on the mesh by `state_shardings`; all processes must hold the same values."""
    return jax.tree.map(_put, state, state_shardings(state, mesh))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Where the arrays of a train state, a model or its gradients lie: split over "model" by `AXES`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _sharding(mesh, _spec(path, leaf.shape, mesh.shape["model"])), state
    )


def _sharding(mesh: Mesh, spec: PartitionSpec) -> Sharding:
    """Where arrays of a mesh lie. On one device, as arrays do that know no mesh: programs are then compiled once."""
    if mesh.size == 1:
        return SingleDeviceSharding(mesh.devices.flat[0])
    return NamedSharding(mesh, spec)


def _spec(path: Any, shape: tuple[int, ...], parts: int) -> PartitionSpec:
    if parts == 1 or np.prod(shape) < SMALL:
        return WHOLE
    name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    first = next(axis for pattern, axis in AXES if re.fullmatch(pattern, name.rpartition(".")[2]))
    axes = sorted(range(len(shape)), key=lambda axis: -shape[axis])
    if first is not _LARGEST:
        axes.insert(0, first % len(shape))
    fits = next((axis for axis in axes if shape[axis] % parts == 0), None)
    return WHOLE if fits is None else PartitionSpec(*[None] * fits, "model")


def on_host() -> contextlib.AbstractContextManager:
    """Within it, new arrays lie in the host's memory, and are computed there, whatever other devices there are.

    Raises:
        TrainingError: if JAX was told not to use the host's processor.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise TrainingError(
            "arrays are to be made on the host, which JAX was told not to use: name cpu in JAX_PLATFORMS too, such as "
            "JAX_PLATFORMS=cuda,cpu"
        ) from None
    return jax.default_device(device)


def of_all_processes(tree: Any, mesh: Mesh | None) -> Any:
    """Results of a mesh such that each process can fetch them: parts on other processes' devices cannot be."""
    if mesh is None or not mesh.is_multi_process:
        return tree
    tree = replicate(tree, mesh)
    settle(tree, mesh)
    return tree


def settle(tree: Any, mesh: Mesh) -> None:
    """Waits for results where no further program may be queued behind them: on CPU devices of several processes.

    The devices of a process take up queued programs in any order there, and their exchanges (Gloo) then wait for each
    other for ever.
    """
    if mesh.is_multi_process and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(tree)


def _num_processes(mesh: Mesh) -> int:
    return len({device.process_index for device in mesh.devices.flat})


def _put(leaf: Any, sharding: Sharding) -> Any:
    """An array placed by `sharding`; its shape if that is all that is given, or if the devices are only described."""
    device: Any = next(iter(sharding.device_set))
    if device.client.runtime_type == _DESCRIBED or isinstance(leaf, jax.ShapeDtypeStruct):
        leaf = jax.eval_shape(lambda array: array, leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    on_others = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if sharding.is_fully_addressable or on_others:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda place: host[place])


# Programs.


def pin_state(state: Any, mesh: Mesh | None) -> Any:
    """Within a program: keeps a state, a model or its gradients where `shard_state` puts them; None: one device."""
    if mesh is None or mesh.size == 1:
        return state
    return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh))


def gathered(model: Any, mesh: Mesh | None) -> Any:
    """Within a program: the whole model on every device, for a loss; None: one device.

    Left to itself, the compiler exchanges activations as well, which are larger, and computes some of them on every
    device.
    """
    if mesh is None or mesh.shape["model"] == 1:
        return model
    return jax.lax.with_sharding_constraint(model, NamedSharding(mesh, WHOLE))


def pin_rows(batch: Any, mesh: Mesh | None) -> Any:
    """Within a program: splits arrays `[B, ...]` over all devices, if B is a multiple of their number."""
    if mesh is None or mesh.size == 1 or len(jax.tree.leaves(batch)[0]) % mesh.size:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, ROWS))


def on_own_rows(
    function: Callable[[Any, Any, Any], Any],
    mesh: Mesh | None,
    whole: Any,
    rows: Any,
    key: Any,
) -> Any:
    """`function(whole, rows, key)`, in which each device handles its own rows, without communication.

    XLA by itself would gather the rows of all devices for every top-k.

    Args:
        function: its results are arrays `[B, ...]`; those of a row may depend on this row alone, and its random
            numbers come from `key`.
        mesh: the devices; None: one, which handles all rows.
        whole: arrays that every device needs.
        rows: arrays `[B, ...]`, B a multiple of the number of devices; and scalars.
        key: random key or None; the function gets a `KeyOfPart` of it.
    """
    if mesh is None or mesh.size == 1:
        return function(whole, rows, key)

    def on_device(whole: Any, rows: Any, key: jax.Array | None) -> Any:
        if key is not None:
            mine = next(len(array) for array in jax.tree.leaves(rows) if array.ndim)
            place = jax.lax.axis_index(mesh.axis_names)
            key = KeyOfPart(key, place * mine, mine * mesh.size)
        return function(whole, rows, key)

    split = jax.tree.map(lambda array: ROWS if array.ndim else WHOLE, rows)
    # Not checked: what is whole comes out of top-k and loops as if it differed between devices.
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(WHOLE, split, WHOLE), out_specs=ROWS, check_vma=False
    )(whole, rows, key)
