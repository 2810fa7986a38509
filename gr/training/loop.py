"""The training loop: steps, logging, evaluation, early stopping, checkpoints, resuming."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from gr.training.checkpoints import Checkpointer
from gr.training.hosts import Agreement, is_first, texts_of_all
from gr.training.mesh import make_mesh, settle, shard_batch, shard_state
from gr.training.meter import Interval, Meter
from gr.training.metric_writer import MetricWriter
from gr.training.state import NO_BAD_STEP, NO_REWARD, TrainingError, TrainState
from gr.training.step import TrainStep
from gr.training.stopping import StopSignals, TrainingInterrupted

ALL_STEPS = "all steps done"
NO_MORE_BATCHES = "no more batches"
OUT_OF_PATIENCE = "no better evaluation within patience"


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `fit` returns."""

    state: TrainState  # After the last step; the best model is in the best checkpoint.
    best_step: int | None  # None without an evaluation.
    best_value: float | None  # Of the monitored metric.
    reason: str  # Why training ended: ALL_STEPS, NO_MORE_BATCHES or OUT_OF_PATIENCE.


@dataclasses.dataclass
class _Progress:
    """The loop's own state, needed to resume; JSON values."""

    best_step: int | None = None
    best_value: float | None = None
    evaluations_since_best: int = 0
    evaluated_step: int | None = None
    interval: dict[str, Any] = dataclasses.field(default_factory=dict)  # `Meter.read`.


def rows_in_batch(batch: Mapping[str, np.ndarray]) -> int:
    """The length of a batch's leading axis."""
    return len(jax.tree.leaves(batch)[0])


def fit(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    total_steps: int,
    log_every: int = 50,
    eval_every: int | None = None,
    checkpoint_every: int | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    monitor: str = "ndcg@10",
    mode: str = "max",
    patience: int | None = None,
    examples_in_batch: Callable[[Mapping[str, np.ndarray]], int] = rows_in_batch,
    checkpointer: Checkpointer | None = None,
    writer: MetricWriter | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> FitResult:
    """Trains until `total_steps` are done; resumes from the newest checkpoint if there is one.

    The device never waits for the host: metrics are summed on the device, and an interval's means are read while the
    next step runs. A resumed run logs the same as an uninterrupted one.

    Args:
        state: the state before the first step; gives the shapes of checkpoints. It is donated.
        train_step: made by `make_train_step`.
        batches: dicts of arrays `[B, ...]`; with a checkpointer the iterator has `get_state()` and `set_state(..)`.
        total_steps: train steps in total, including those before a resume.
        log_every: train steps per interval of logging.
        eval_every: train steps between evaluations; there is always one at the end.
        checkpoint_every: train steps between checkpoints; there is always one at the end and at a new best.
        evaluate: the model -> validation metrics; None: nothing says which model is best, so the last one counts.
        monitor: the validation metric that decides which model is best.
        mode: "max" or "min": which values are better.
        patience: evaluations in a row without a new best after which the run ends; None for never.
        examples_in_batch: number of examples in a batch of this process, for examples/s; such as its targets.
        checkpointer: None for no checkpoints.
        writer: None for no record.
        mesh: where to train; None for one device.
        progress: whether to show a bar, in the first of several processes.

    In a run of several processes all call `fit`, each with its own rows of the batches; see `gr.training.hosts`.

    Raises:
        TrainingError: for invalid settings, a loss, gradient or reward that is not finite, a checkpoint that cannot be
            read or written, a missing metric.
        TrainingInterrupted: after SIGTERM or SIGINT (Ctrl-C), when the state has been saved.
    """
    # Settings.
    if mode not in ("max", "min"):
        raise TrainingError(f"mode={mode!r}; use 'max' or 'min'")
    periods = {"log_every": log_every, "eval_every": eval_every, "patience": patience}
    for name, value in {**periods, "checkpoint_every": checkpoint_every}.items():
        if value is not None and value < 1:
            raise TrainingError(f"{name}={value}; use 1 or more")
    mesh = mesh or make_mesh()
    batches = iter(batches)
    if checkpointer is not None and not hasattr(batches, "get_state"):
        raise TrainingError(
            "batches without get_state() and set_state() cannot be resumed; give such an iterator or no checkpointer"
        )

    # Resume.
    done = _Progress()
    saved_step = None
    state = shard_state(state, mesh)  # First, so that a checkpoint is read to where it belongs.
    restored = checkpointer.restore(state) if checkpointer is not None else None
    if restored is not None:
        state, done = restored.state, _Progress(**restored.loop)
        batches.set_state(restored.iterator_state)
        saved_step = int(jax.device_get(state.step))
    step = int(jax.device_get(state.step))
    if writer is not None:
        writer.start(step)
    meter = Meter(mesh, done.interval)
    pending: Interval | None = None  # Interval whose means are still on the device.
    bar = tqdm(
        total=total_steps,
        initial=step,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        disable=not progress or not is_first(),
    )

    # Periodic actions.
    def report_pending() -> None:
        nonlocal pending
        if pending is None:
            return
        interval, pending = pending, None
        check_finite(interval.bad_step)
        values = interval.values()
        if writer is not None:
            writer.write(interval.step, "train", values)
        shown = f"loss {values['loss']:.4f}, {values['examples_per_second']:.0f} examples/s"
        if done.best_value is not None:
            shown += f", best {monitor} {done.best_value:.4f}"
        bar.set_postfix_str(shown, refresh=False)

    def check_finite(bad_step: jax.Array) -> None:
        if int(jax.device_get(bad_step)) != NO_BAD_STEP:
            # The state has been frozen since then, so the current one tells what happened.
            raise TrainingError(_what_was_not_finite(state, train_step, checkpointer))

    def catch_up() -> None:
        report_pending()
        check_finite(state.bad_step)

    def evaluate_model() -> bool:
        catch_up()
        with meter.paused():
            values = {name: float(value) for name, value in evaluate(state.model).items()}
            # All processes go by the first one's values, lest they differ about which model is best.
            values = json.loads(texts_of_all(json.dumps(values))[0])
        value = _monitored(values, monitor)
        if writer is not None:
            writer.write(step, "validation", values)
        sign = 1.0 if mode == "max" else -1.0
        better = done.best_value is None or sign * value > sign * done.best_value
        done.evaluated_step = step
        done.evaluations_since_best = 0 if better else done.evaluations_since_best + 1
        if better:
            done.best_step, done.best_value = step, value
        return better

    def save() -> None:
        nonlocal saved_step
        if checkpointer is None or saved_step == step:
            return
        catch_up()
        with meter.paused():
            if writer is not None:
                writer.flush()  # Lines up to this step are on the disk before the checkpoint.
            done.interval = meter.read()
            checkpointer.save(
                state,
                iterator_state=batches.get_state(),
                loop=dataclasses.asdict(done),
                best_step=step if evaluate is None else done.best_step,
            )
        saved_step = step

    # Steps.
    reason = ALL_STEPS
    agreement = Agreement(mesh)
    with bar, StopSignals() as signals:
        while step < total_steps:
            if patience is not None and done.evaluations_since_best >= patience:
                reason = OUT_OF_PATIENCE
                break

            # The call returns before the device is done; meanwhile the next batch is made and sent.
            batch = next(batches, None)
            if batch is None:
                reason = NO_MORE_BATCHES
                break
            state, metrics = train_step(state, shard_batch(batch, mesh))
            settle(state, mesh)
            meter.add(metrics, examples_in_batch(batch) * jax.process_count())
            step += 1
            bar.update(1)

            # Log, one step late: the device is busy with this step while the host waits for the one before.
            report_pending()
            if step % log_every == 0 or step == total_steps:
                pending = meter.take(step, state.bad_step)

            # Evaluate, save.
            due = checkpoint_every is not None and step % checkpoint_every == 0
            if evaluate is not None and eval_every is not None and step % eval_every == 0:
                due = evaluate_model() or due
            if due:
                save()
            if agreement.on(signals.received is not None):
                by = signals.received or "a signal to another process"
                _stop(by, step, save, checkpointer)

        # The end.
        report_pending()
        if (
            meter.steps and saved_step != step
        ):  # The checkpoint, if any, holds the unfinished interval.
            pending = meter.take(step, state.bad_step)
            report_pending()
        if evaluate is not None and done.evaluated_step != step:
            evaluate_model()
        save()
        if checkpointer is not None:
            checkpointer.wait()
        if writer is not None:
            writer.flush()
    return FitResult(state, done.best_step, done.best_value, reason)


def _monitored(values: Mapping[str, float], monitor: str) -> float:
    if monitor not in values:
        raise TrainingError(
            f"the evaluation gave no {monitor!r}; set monitor to one of {', '.join(sorted(values))}"
        )
    if not np.isfinite(values[monitor]):
        raise TrainingError(
            f"the evaluation's {monitor!r} is {values[monitor]}, which cannot be compared; monitor another metric"
        )
    return values[monitor]


def _what_was_not_finite(
    state: TrainState, train_step: TrainStep, checkpointer: Checkpointer | None
) -> str:
    """A message on what happened at the state's `bad_step`, and what to do."""
    bad_step, fault = jax.device_get((state.bad_step, state.reward_fault))
    kept = "there is no checkpoint yet"
    if checkpointer is not None:
        checkpointer.wait()
        if checkpointer.steps:
            last = checkpointer.steps[-1]
            kept = f"the last good checkpoint is {checkpointer.directory / str(last)}"
    at = f"at step {bad_step + 1}"
    if fault.reward != NO_REWARD:
        name = getattr(train_step, "reward_names", ())[fault.reward]
        return (
            f"reward {name!r} gave {fault.value:.3g} for {fault.count} of {fault.valid} candidates {at} (first: user "
            f"row {fault.user} of the batch, item row {fault.item}), and the step was not applied; {kept}. A reward "
            "must be a finite number for every valid candidate, also for one that it cannot score: give that 0 or the "
            "like by jnp.where"
        )
    rewards = ""
    if fault.valid:
        rewards = f" (the largest reward was {fault.value:.3g}: if that is much, lower its weight)"
    return (
        f"the loss or its gradient was not finite {at}, which was not applied; {kept}. Lower the learning rate"
        f"{rewards}, clip at a smaller norm or warm up longer, then resume or start again"
    )


def _stop(by: str, step: int, save: Callable[[], None], checkpointer: Checkpointer | None) -> None:
    if checkpointer is None:
        raise TrainingInterrupted(f"stopped by {by} after step {step}; nothing was saved")
    save()
    checkpointer.wait()
    raise TrainingInterrupted(
        f"stopped by {by} after step {step}, saved in {checkpointer.directory}; the same command resumes there"
    )
