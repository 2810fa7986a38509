"""Reads a checkpoint's arrays, after checking that they fit and that they are undamaged."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath  # A part of Orbax's interface.

from gr.training.checkpoint_records import damage_error
from gr.training.errors import TrainingError
from gr.training.named_arrays import checksum, sharding_of

MAX_DIFFERENCES = 5  # Named in an error message; the rest is counted.


def read_arrays(
    directory: str, step: int, item: str, wanted: Mapping[str, Any], record: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Reads one item ("model" or "training") as named arrays onto the devices of `wanted`.

    Args:
        directory: the folder of the run's checkpoints.
        step: which one.
        item: which part of it.
        wanted: name -> array or `ShapeDtypeStruct`, what there has to be.
        record: the checkpoint's record, with the checksums.

    Raises:
        TrainingError: if names, shapes or types differ, or the files are damaged.
    """
    folder = epath.Path(directory) / str(step) / item
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(leaf))
        for name, leaf in wanted.items()
    }
    handler = ocp.StandardCheckpointHandler()
    # Does it fit? Asked first, since Orbax would cut or pad an array of another shape.
    try:
        saved = dict(handler.metadata(folder).items())
    except Exception as error:
        raise damage_error(directory, step, item, error) from error
    differences = _differences(saved, abstract)
    if differences:
        more = len(differences) - MAX_DIFFERENCES
        raise TrainingError(
            f"{folder} does not fit: "
            + "; ".join(differences[:MAX_DIFFERENCES])
            + (f"; and {more} more" if more > 0 else "")
            + ". Use the configuration that is saved in the workdir, or another workdir"
        )
    # The arrays, and whether they are as they were written.
    try:
        arrays = handler.restore(folder, args=ocp.args.StandardRestore(abstract))
        sums = jax.device_get({name: checksum(array) for name, array in arrays.items()})
        for name, value in sums.items():
            if record["checksums"][f"{item}.{name}"] != int(value):
                raise ValueError(f"the checksum of {name} is wrong")
    except Exception as error:
        raise damage_error(directory, step, item, error) from error
    return arrays


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
    def describe(arrays: Mapping[str, Any], name: str) -> str:
        if name not in arrays:
            return "missing"
        return f"{np.dtype(arrays[name].dtype).name}{list(arrays[name].shape)}"

    lines = []
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = describe(saved, name), describe(wanted, name)
        if there != here:
            lines.append(f"{name} is {there} in the checkpoint and {here} here")
    return lines
