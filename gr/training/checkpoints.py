"""Checkpoints of a run: the latest ones and the best one, written behind the run's back by Orbax.

Layout: `WORKDIR/checkpoints/STEP/{model,training,loop}`. A folder gets its final name only when it is complete, so a
killed run leaves no half checkpoint; folders are removed only after a later one is complete.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gr.training.checkpoint_reading import read_arrays
from gr.training.checkpoint_records import (
    FORMAT,
    decode_iterator_state,
    encode_iterator_state,
    first_line,
    list_steps,
    of_all_processes,
    pack_record,
    read_record,
)
from gr.training.errors import TrainingError
from gr.training.named_arrays import checksum, named_leaves, with_leaves
from gr.training.state import NO_BAD_STEP, TrainState


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpointer.restore` returns."""

    state: TrainState
    iterator_state: Any  # As the iterator's `get_state` gave it; None if not saved.
    loop: dict[str, Any]  # As given to `save`.


class Checkpointer:
    """Saves a run's state while it goes on, and restores it; a context manager, which waits for the last write."""

    def __init__(self, workdir: str | os.PathLike, *, keep_latest: int = 2):
        """Keeps the `keep_latest` last checkpoints and the best; two latest, so that one damaged is not the end."""
        self.directory = checkpoints_directory(workdir)
        self._preservation = _LatestAndBest(keep_latest)
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={
                "model": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "loop": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                create=True,
                cleanup_tmp_directories=True,
                preservation_policy=self._preservation,
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
            error.add_note(str(second))  # The error on its way out is the news.

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, in order."""
        return list_steps(self.directory)

    def save(
        self,
        state: TrainState,
        *,
        iterator_state: Any = None,
        loop: Mapping[str, Any] | None = None,
        best_step: int | None = None,
    ) -> None:
        """Starts writing a checkpoint of `state` and returns; it waits for the write before, if that still goes on.

        Args:
            state: a good state; it may be donated as soon as this returns.
            iterator_state: of the data iterator, after the batch of step `state.step - 1`.
            loop: JSON values that the loop needs to go on.
            best_step: the step whose checkpoint is to be kept as the best; may be this one.

        Raises:
            TrainingError: if this or the write before failed; complete checkpoints are untouched by that.
        """
        step = int(jax.device_get(state.step))
        model, training = _arrays_of(state)
        checksums = jax.device_get(_checksums(model, training))
        record = {
            "format": FORMAT,
            "best_step": best_step,
            "key_impl": str(jax.random.key_impl(state.key)),
            "iterators": of_all_processes(encode_iterator_state(iterator_state)),
            "checksums": {name: int(value) for name, value in checksums.items()},
            "loop": dict(loop or {}),
        }
        self._preservation.best_step = best_step
        try:
            # Orbax has copied the arrays to the host when this returns, and writes them in the background.
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    training=ocp.args.StandardSave(training),
                    loop=ocp.args.JsonSave(pack_record(record)),
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
        """Waits and lets go of threads.

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
            TrainingError: if it is damaged or was made by a different model, optimiser or number of processes.
        """
        steps = self.steps
        if not steps:
            return None
        step = steps[-1]
        record = read_record(self.directory, step)
        folder = os.path.join(self.directory, str(step))
        wanted_model, wanted_training = _arrays_of(like)
        model = read_arrays(self.directory, step, "model", wanted_model, record)
        training = read_arrays(self.directory, step, "training", wanted_training, record)
        key_impl = str(jax.random.key_impl(like.key))
        if record["key_impl"] != key_impl:
            raise TrainingError(
                f"{folder}: its PRNG key is of kind {record['key_impl']} and this run's is {key_impl}; "
                "set jax_default_prng_impl as it was"
            )
        if len(record["iterators"]) != jax.process_count():
            raise TrainingError(
                f"{folder}: written by {len(record['iterators'])} process(es), now there are {jax.process_count()}; "
                "resume with as many as before"
            )
        self._preservation.best_step = record["best_step"]
        key = jax.random.wrap_key_data(training.pop("key"), impl=record["key_impl"])
        rest = with_leaves(_without_model(like), training)
        state = TrainState(
            step=rest["step"],
            model=with_leaves(like.model, model),
            opt_state=rest["opt_state"],
            key=jax.device_put(key, like.key.sharding),
            loss_state=rest["loss_state"],
            bad_step=jax.device_put(np.int32(NO_BAD_STEP), like.bad_step.sharding),
            reward_fault=like.reward_fault,
        )
        iterator_state = decode_iterator_state(record["iterators"][jax.process_index()])
        return Restored(state=state, iterator_state=iterator_state, loop=record["loop"])

    def _write_error(self, error: Exception) -> TrainingError:
        kept = ", ".join(map(str, self.steps)) or "none yet"
        return TrainingError(
            f"{self.directory}: a checkpoint could not be written ({first_line(error)}); complete ones are untouched "
            f"(steps: {kept}); free some space or make the folder writable, then start the same command to resume"
        )


def restore_model(workdir: str | os.PathLike, model: Any, which: str | int = "best") -> Any:
    """Returns the model of a run's "best" or "last" checkpoint, also while the run goes on.

    Args:
        workdir: of the run.
        model: gives the structure and, if its leaves are arrays, the devices; `jax.eval_shape` of the model's
            construction is enough, and then the first device is used.
        which: "best" by the monitored validation metric, "last", or a step.

    Raises:
        TrainingError: if there is no such checkpoint, it is damaged, or it is of a different model.
    """
    directory = checkpoints_directory(workdir)
    step = which if isinstance(which, int) else checkpoint_step(workdir, which)
    try:
        arrays = read_arrays(
            directory, step, "model", named_leaves(model), read_record(directory, step)
        )
    except TrainingError as error:
        if step in list_steps(directory):
            raise
        raise TrainingError(
            f"{os.path.join(directory, str(step))} is gone: a run that still trains there has a newer one; start the "
            "same command again"
        ) from error
    return with_leaves(model, arrays)


def checkpoint_step(workdir: str | os.PathLike, which: str = "best") -> int:
    """The step of a run's "best" or "last" checkpoint.

    Raises:
        TrainingError: if there is none.
    """
    directory = checkpoints_directory(workdir)
    if which not in ("best", "last"):
        raise TrainingError(f"which={which!r}; use 'best' or 'last'")
    steps = list_steps(directory)
    if not steps:
        raise TrainingError(
            f"{directory} holds no checkpoint; train first, or name another --workdir"
        )
    if which == "last":
        return steps[-1]
    best_step = read_record(directory, steps[-1])["best_step"]
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
    """Whether a run has got so far that there is something to resume."""
    return bool(list_steps(checkpoints_directory(workdir)))


def checkpoints_directory(workdir: str | os.PathLike) -> str:
    """Where a run's checkpoints are."""
    return os.path.join(os.path.abspath(workdir), "checkpoints")


class _LatestAndBest:
    """Which checkpoints Orbax keeps."""

    def __init__(self, keep_latest: int):
        self.keep_latest = keep_latest
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """One truth value for each checkpoint."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-self.keep_latest :], self.best_step}
        return [step in kept for step in steps]


def _without_model(state: TrainState) -> dict[str, Any]:
    # bad_step and reward_fault are left out: only good states are saved.
    return {"step": state.step, "opt_state": state.opt_state, "loss_state": state.loss_state}


def _arrays_of(state: TrainState) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    training = named_leaves(_without_model(state)) | {"key": jax.random.key_data(state.key)}
    return named_leaves(state.model), training


@jax.jit
def _checksums(model: dict[str, jax.Array], training: dict[str, jax.Array]) -> dict[str, jax.Array]:
    items = {"model": model, "training": training}
    return {f"{i}.{name}": checksum(leaf) for i in items for name, leaf in items[i].items()}
