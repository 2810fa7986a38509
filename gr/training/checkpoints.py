"""Checkpoints of a run, the latest ones and the best one, written in the background by Orbax.

Layout: `WORKDIR/checkpoints/STEP/{model,training,loop}`. A checkpoint counts only when it is complete, so a killed run
leaves no partial one. Folders are removed only after a later checkpoint is complete. `model` and `training` hold arrays
by name. `loop` holds the record: JSON text with the state of the loop and the data iterators, and the arrays'
checksums.

Some parts of Orbax and Grain are not used, because they would lose something:
* zarr does not detect most changes of an array's bytes, nor JSON a changed digit, so both have our own checksums.
* Grain's checkpoint handler writes an iterator's state without a checksum, supports few iterators except Grain's own,
  and fails when the number of processes has changed. Here any iterator with `get_state` and `set_state` works.
"""

import base64
import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils.epath import Path
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN

from gr.data.files import as_path, is_remote
from gr.training.hosts import texts_of_all
from gr.training.state import NO_BAD_STEP, TrainingError, TrainState

FORMAT = 1
MAX_DIFFERENCES = 5  # Differences named in an error message; the rest is counted.


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpointer.restore` returns."""

    state: TrainState
    iterator_state: Any  # As the iterator's `get_state` gave it; None if not saved.
    loop: dict[str, Any]  # As given to `save`.


class Checkpointer:
    """Saves a run's state in the background and restores it; as a context manager it waits for the last write."""

    def __init__(self, workdir: str | os.PathLike, *, keep_latest: int = 2):
        """Keeps the `keep_latest` last checkpoints and the best; two by default, in case one is damaged."""
        self.directory = checkpoints_directory(workdir)
        self._kept = AnyPreservationPolicy([LatestN(keep_latest), CustomSteps([])])
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=True, cleanup_tmp_directories=True, preservation_policy=self._kept
            ),
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, _: type | None, error: BaseException | None, *unused: object) -> None:
        try:
            self.close()
        except TrainingError as second:
            if error is None:
                raise
            error.add_note(str(second))  # The first error is the one to report.

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, in order."""
        return _list_steps(self.directory)

    def save(
        self,
        state: TrainState,
        *,
        iterator_state: Any = None,
        loop: Mapping[str, Any] | None = None,
        best_step: int | None = None,
    ) -> None:
        """Starts writing a checkpoint of `state` and returns; waits for an unfinished earlier write first.

        Args:
            state: a finite state; it may be donated as soon as this returns.
            iterator_state: of the data iterator, after the batch of step `state.step - 1`.
            loop: JSON values that the loop needs to resume.
            best_step: the step whose checkpoint is kept as the best; may be this one.

        Raises:
            TrainingError: if this or the previous write failed; complete checkpoints stay intact.
        """
        step = int(jax.device_get(state.step))
        model, training = _arrays_of(state)
        checksums = jax.device_get(_checksums({"model": model, "training": training}))
        record = {
            "format": FORMAT,
            "best_step": best_step,
            "key_impl": str(jax.random.key_impl(state.key)),
            "iterators": texts_of_all(_encode_iterator_state(iterator_state)),
            "checksums": {name: int(value) for name, value in checksums.items()},
            "loop": dict(loop or {}),
        }
        self._keep(best_step)
        try:
            # Orbax has copied the arrays to the host when this returns, and writes them in the background.
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    training=ocp.args.StandardSave(training),
                    loop=ocp.args.JsonSave(_pack_record(record)),
                ),
                force=True,
            )
        except Exception as error:
            raise self._write_error(error) from error

    def wait(self) -> None:
        """Blocks until the checkpoint being written is complete.

        Raises:
            TrainingError: if the write failed.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._write_error(error) from error

    def close(self) -> None:
        """Waits for the last write and stops the threads.

        Raises:
            TrainingError: if a write failed.
        """
        try:
            self._manager.close()
        except Exception as error:
            raise self._write_error(error) from error

    def restore(self, like: TrainState) -> Restored | None:
        """Restores the newest checkpoint onto the devices where `like` lies; None if there is none.

        Raises:
            TrainingError: if it is damaged or was made by a different model or optimiser, or by other
                processes whose iterators had different states.
        """
        steps = self.steps
        if not steps:
            return None
        step = steps[-1]
        folder = self.directory / str(step)
        record = _read_record(folder)
        wanted_model, wanted_training = _arrays_of(like)
        model = _read_arrays(folder, "model", wanted_model, record)
        training = _read_arrays(folder, "training", wanted_training, record)
        key_impl = str(jax.random.key_impl(like.key))
        if record["key_impl"] != key_impl:
            raise TrainingError(
                f"{folder}: its PRNG key is of kind {record['key_impl']} and this run's is {key_impl}; "
                "set jax_default_prng_impl as it was"
            )
        self._keep(record["best_step"])
        key = jax.random.wrap_key_data(training.pop("key"), impl=record["key_impl"])
        rest = _with_leaves(_without_model(like), training)
        state = TrainState(
            step=rest["step"],
            model=_with_leaves(like.model, model),
            opt_state=rest["opt_state"],
            key=jax.device_put(key, like.key.sharding),
            loss_state=rest["loss_state"],
            bad_step=jax.device_put(np.int32(NO_BAD_STEP), like.bad_step.sharding),
            reward_fault=like.reward_fault,
        )
        iterator_state = _iterator_state_of(folder, record["iterators"])
        return Restored(state=state, iterator_state=iterator_state, loop=record["loop"])

    def _keep(self, best_step: int | None) -> None:
        # The loop decides which step is best, rather than a metric in each checkpoint (Orbax's `BestN`): it handles
        # ties and patience, and older checkpoints hold no metrics.
        self._kept.policies[1] = CustomSteps([] if best_step is None else [best_step])

    def _write_error(self, error: Exception) -> TrainingError:
        kept = ", ".join(map(str, self.steps)) or "none yet"
        return TrainingError(
            f"{self.directory}: a checkpoint could not be written ({_first_line(error)}); complete ones are untouched "
            f"(steps: {kept}); free some space or make the folder writable, then start the same command to resume"
        )


def restore_model(workdir: str | os.PathLike, model: Any, which: str | int = "best") -> Any:
    """Returns the model of a run's "best" or "last" checkpoint, also while the run goes on.

    Args:
        workdir: folder of the run.
        model: gives the structure and, if its leaves are arrays, the devices. The result of `jax.eval_shape` is enough;
            then the first device is used.
        which: "best" by the monitored validation metric, "last", or a step.

    Raises:
        TrainingError: if there is no such checkpoint, it is damaged, or it is of a different model.
    """
    step = which if isinstance(which, int) else checkpoint_step(workdir, which)
    folder = checkpoints_directory(workdir) / str(step)
    try:
        arrays = _read_arrays(folder, "model", _named_leaves(model), _read_record(folder))
    except TrainingError as error:
        if step in _list_steps(folder.parent):
            raise
        raise TrainingError(
            f"{folder} is gone: a run that still trains there has a newer one; start the same command again"
        ) from error
    return _with_leaves(model, arrays)


def checkpoint_step(workdir: str | os.PathLike, which: str = "best") -> int:
    """The step of a run's "best" or "last" checkpoint.

    Raises:
        TrainingError: if there is none.
    """
    directory = checkpoints_directory(workdir)
    if which not in ("best", "last"):
        raise TrainingError(f"which={which!r}; use 'best' or 'last'")
    steps = _list_steps(directory)
    if not steps:
        raise TrainingError(
            f"{directory} holds no checkpoint; train first, or name another workdir"
        )
    if which == "last":
        return steps[-1]
    best_step = _read_record(directory / str(steps[-1]))["best_step"]
    if best_step is None:
        raise TrainingError(
            f"{directory} has no best checkpoint: no validation was done before step {steps[-1]}; use 'last'"
        )
    if best_step not in steps:
        raise TrainingError(
            f"{directory}/{best_step}, the best checkpoint, is gone; use 'last' (step {steps[-1]}) or train on"
        )
    return best_step


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Whether a run has a checkpoint to resume from."""
    return bool(_list_steps(checkpoints_directory(workdir)))


def checkpoints_directory(workdir: str | os.PathLike) -> Path:
    """Where a run's checkpoints are."""
    directory = as_path(workdir) / "checkpoints"
    # Orbax takes no relative paths.
    return directory if is_remote(directory) else directory.resolve()


# A state as arrays by name, and their checksums.


def _without_model(state: TrainState) -> dict[str, Any]:
    # bad_step and reward_fault are left out: only good states are saved.
    return {"step": state.step, "opt_state": state.opt_state, "loss_state": state.loss_state}


def _arrays_of(state: TrainState) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    training = _named_leaves(_without_model(state)) | {"key": jax.random.key_data(state.key)}
    return _named_leaves(state.model), training


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path; empty arrays hold nothing and are left out."""
    return {
        _name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.size
    }


def _with_leaves(like: Any, arrays: Mapping[str, jax.Array]) -> Any:
    """A tree like `like` whose leaves are the arrays of these names; see `_named_leaves`."""

    def pick(path: Any, leaf: Any) -> jax.Array:
        if not leaf.size:
            return jnp.zeros(leaf.shape, leaf.dtype)
        return arrays[_name(path)]

    return jax.tree_util.tree_map_with_path(pick, like)


def _name(path: Any) -> str:
    # Leaves out the "value" of an nnx.Param, which tells a reader nothing.
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _sharding_of(leaf: Any) -> jax.sharding.Sharding:
    """A leaf's sharding; the first device of this process for an abstract leaf."""
    sharding = getattr(leaf, "sharding", None)
    return sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _checksum(array: jax.Array) -> jax.Array:
    """Sum of the array's words with odd weights, modulo 2^32: it detects a change of one word, which zarr does not."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32).ravel()
    return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


@jax.jit
def _checksums(arrays: Any) -> dict[str, jax.Array]:
    """Checksums of a tree of arrays, by name."""
    return {
        _name(path): _checksum(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


# Reading arrays.


def _read_arrays(
    checkpoint: Path, item: str, wanted: Mapping[str, Any], record: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Reads one item ("model" or "training") as named arrays onto the devices of `wanted`.

    Args:
        checkpoint: its folder.
        item: which part of it.
        wanted: name -> array or `ShapeDtypeStruct`, as expected.
        record: the checkpoint's record, with the checksums.

    Raises:
        TrainingError: if names, shapes or types differ, or the files are damaged.
    """
    folder = checkpoint / item
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding_of(leaf))
        for name, leaf in wanted.items()
    }
    handler = ocp.StandardCheckpointHandler()
    # Shapes are compared first, since Orbax would cut or pad an array of another shape.
    try:
        saved = dict(handler.metadata(folder).items())
    except Exception as error:
        raise _damage_error(checkpoint, item, error) from error
    differences = _differences(saved, abstract)
    if differences:
        more = len(differences) - MAX_DIFFERENCES
        raise TrainingError(
            f"{folder} does not fit: "
            + "; ".join(differences[:MAX_DIFFERENCES])
            + (f"; and {more} more" if more > 0 else "")
            + ". Use the configuration that is saved in the workdir, or another workdir"
        )
    # The arrays, verified by their checksums.
    try:
        arrays = handler.restore(folder, args=ocp.args.StandardRestore(abstract))
        for name, value in jax.device_get(_checksums({item: arrays})).items():
            if record["checksums"][name] != int(value):
                raise ValueError(f"the checksum of {name} is wrong")
    except Exception as error:
        raise _damage_error(checkpoint, item, error) from error
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


# The record.


def _list_steps(directory: Path) -> list[int]:
    """Steps with a complete checkpoint, in order; how Orbax marks incomplete ones depends on the file system."""
    folders = ocp.utils.checkpoint_steps_paths(directory)
    return sorted(int(folder.name) for folder in folders if folder.name.isdigit())


def _pack_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record as text with its checksum, since a flipped digit is still valid JSON."""
    text = json.dumps(record)
    return {"record": text, "crc32": zlib.crc32(text.encode())}


def _read_record(checkpoint: Path) -> dict[str, Any]:
    """Reads what `_pack_record` made.

    Raises:
        TrainingError: if it is damaged or of another format.
    """
    try:
        saved = ocp.JsonCheckpointHandler().restore(checkpoint / "loop")
        if zlib.crc32(saved["record"].encode()) != saved["crc32"]:
            raise ValueError("its checksum is wrong")
        record = json.loads(saved["record"])
    except Exception as error:
        raise _damage_error(checkpoint, "loop", error) from error
    if record["format"] != FORMAT:
        raise TrainingError(
            f"{checkpoint} is of checkpoint format {record['format']}, this version reads {FORMAT}; use the "
            "version named in the run's versions.json"
        )
    return record


def _damage_error(checkpoint: Path, item: str, error: Exception) -> TrainingError:
    """The error for a checkpoint that cannot be read; the user decides whether to fall back to another."""
    others = [step for step in _list_steps(checkpoint.parent) if str(step) != checkpoint.name]
    if others:
        remedy = f"remove {checkpoint} to go on from the checkpoint of step {others[-1]}"
    else:
        remedy = "there is no other checkpoint: start again in another workdir"
    return TrainingError(f"{checkpoint}/{item} is damaged ({_first_line(error)}); {remedy}")


def _first_line(error: Exception) -> str:
    """An error of another library in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _encode_iterator_state(state: Any) -> str:
    """A data iterator's state, bytes or JSON values, as text.

    Raises:
        TrainingError: if it is neither.
    """
    if isinstance(state, bytes):
        return json.dumps({"bytes": base64.b64encode(state).decode()})
    try:
        return json.dumps({"json": state})
    except TypeError as error:
        raise TrainingError(
            f"the data iterator's state is neither bytes nor JSON values ({error}); make get_state return such"
        ) from error


def _iterator_state_of(checkpoint: Path, saved: list[str]) -> Any:
    """This process's state of those that a checkpoint holds.

    Raises:
        TrainingError: if they were of another number of processes, whose states differed.
    """
    if len(saved) == jax.process_count():
        return _decode_iterator_state(saved[jax.process_index()])
    if len(set(saved)) > 1:
        raise TrainingError(
            f"{checkpoint}: written by {len(saved)} process(es) with iterators of different states, now there are "
            f"{jax.process_count()}; resume with as many as before"
        )
    return _decode_iterator_state(saved[0])


def _decode_iterator_state(text: str) -> Any:
    """The inverse of `_encode_iterator_state`."""
    saved = json.loads(text)
    return base64.b64decode(saved["bytes"]) if "bytes" in saved else saved["json"]
