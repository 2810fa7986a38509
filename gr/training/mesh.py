"""The device mesh, and how batches and states are placed on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gr.training.state import TrainingError

# What JAX calls the runtime of devices that are only described.
_DESCRIBED = "compile_only_runtime"


def make_mesh(data: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with axes `("data", "model")` over the first `data * model` devices; one device is the 1x1 mesh.

    Args:
        data: devices that share a batch.
        model: devices that share the parameters.
        devices: from which the mesh is made; None: all that JAX computes on, of all processes. They may also be those
            of a described topology (`jax.experimental.topologies`), which programs can be compiled for: `shard_batch`
            and `replicate` then return shapes in place of arrays.

    Raises:
        TrainingError: if there are fewer devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if data < 1 or model < 1 or data * model > len(devices):
        raise TrainingError(
            f"a mesh of data={data} x model={model} does not fit on {len(devices)} {devices[0].platform} device(s); "
            "make data * model at most that"
        )
    return jax.make_mesh(
        (data, model),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: data * model],
    )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts host arrays `[B, ...]` on the mesh, B split over "data"; scalars go everywhere.

    If the mesh spans several processes, each passes its own rows; the global batch is all of them in process order.

    Raises:
        TrainingError: if B is not a multiple of the data axis.
    """
    processes = _num_processes(mesh)
    parts = mesh.shape["data"]

    def put(path: Any, array: np.ndarray) -> jax.Array:
        array = np.asarray(array)
        if array.ndim and (array.shape[0] * processes) % parts:
            raise TrainingError(
                f"batch{jax.tree_util.keystr(path)} has {array.shape[0] * processes} rows, which do not split over "
                f"data={parts}; use a batch size that is a multiple of it, and pad or drop the last batch"
            )
        spec = PartitionSpec("data") if array.ndim else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        if processes == 1:
            return _put(array, sharding)
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree_util.tree_map_with_path(put, batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicates every array of the tree on all devices of the mesh; all processes must hold the same values."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if _num_processes(mesh) == 1:
        return _put(tree, sharding)

    def put(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(put, tree)


def _num_processes(mesh: Mesh) -> int:
    return len({device.process_index for device in mesh.devices.flat})


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """The tree's arrays placed by `sharding`; their shapes where its devices are only described."""
    if sharding.mesh.devices.flat[0].client.runtime_type != _DESCRIBED:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda tree: tree, tree),
    )
