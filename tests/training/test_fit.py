import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_run
from toy_run import Toy, ToyBatches, distance, toy_fit, toy_state_and_step

from gr.training import (
    ALL_STEPS,
    NO_MORE_BATCHES,
    OUT_OF_PATIENCE,
    Checkpointer,
    MetricWriter,
    TrainingError,
    TrainingInterrupted,
    checkpoint_step,
    fit,
    make_mesh,
    read_metrics,
    restore_model,
    shard_batch,
)
from gr.training.stopping import StopSignals


def records(workdir):
    """The lines of a run without what depends on the clock."""
    lines = read_metrics(Path(workdir) / "metrics.jsonl")
    for line in lines:
        del line["wall_time"]
        line["values"].pop("examples_per_second", None)
    return sorted(lines, key=lambda line: (line["step"], line["split"]))


def weights(model):
    return jax.tree.leaves(jax.device_get(model))


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory):
    """A run from start to end: its workdir and result."""
    workdir = tmp_path_factory.mktemp("unkilled")
    return workdir, toy_fit(workdir, ToyBatches())


def test_the_logged_means_are_those_of_every_step(unkilled):
    workdir, result = unkilled
    state, step = toy_state_and_step()
    batches, mesh, losses = ToyBatches(), make_mesh(), []
    for _ in range(30):
        state, metrics = step(state, shard_batch(next(batches), mesh))
        losses.append(float(metrics["loss"]))
    lines = [line for line in records(workdir) if line["split"] == "train"]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24, 28, 30]
    begin = 0
    for line in lines:
        expected = np.mean(losses[begin : line["step"]])
        np.testing.assert_allclose(line["values"]["loss"], expected, rtol=1e-6)
        np.testing.assert_allclose(line["values"]["double"], 2 * expected, rtol=1e-6)
        begin = line["step"]
    np.testing.assert_array_equal(weights(result.state.model)[1], weights(state.model)[1])
    assert result.reason == ALL_STEPS


def test_validation_is_logged_and_the_best_is_kept(unkilled):
    workdir, result = unkilled
    values = {
        line["step"]: line["values"]["distance"]
        for line in records(workdir)
        if line["split"] == "validation"
    }
    assert sorted(values) == [10, 20, 30]
    assert result.best_value == min(values.values()) == values[result.best_step]
    assert checkpoint_step(workdir, "best") == result.best_step
    assert distance(restore_model(workdir, Toy()))["distance"] == result.best_value


def test_killed_and_resumed_equals_never_killed(unkilled, tmp_path):
    script = [sys.executable, toy_run.__file__, str(tmp_path), "18"]
    killed = subprocess.run(script, capture_output=True, text=True, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert records(tmp_path)[-1]["step"] == 16  # The line after it is lost with the run.
    assert checkpoint_step(tmp_path, "last") in (10, 15)  # The newest may not have been complete.
    result = toy_fit(tmp_path, ToyBatches())
    assert records(tmp_path) == records(unkilled[0])
    assert (result.best_step, result.best_value) == (unkilled[1].best_step, unkilled[1].best_value)
    np.testing.assert_array_equal(
        weights(result.state.model)[1], weights(unkilled[1].state.model)[1]
    )


def test_crashed_before_the_first_checkpoint(unkilled, tmp_path):
    def crash(i):
        if i == 4:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        toy_fit(tmp_path, ToyBatches(on_batch=crash))
    toy_fit(tmp_path, ToyBatches())
    assert records(tmp_path) == records(unkilled[0])


def test_sigterm_saves_the_state_and_the_run_can_be_resumed(unkilled, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    stop = ToyBatches(
        as_bytes=True, on_batch=lambda i: i == 13 and os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(TrainingInterrupted, match="stopped by SIGTERM after step 14, saved"):
        toy_fit(tmp_path, stop)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert checkpoint_step(tmp_path, "last") == 14  # In the middle of an interval of 4 steps.
    toy_fit(tmp_path, ToyBatches(as_bytes=True))
    assert records(tmp_path) == records(unkilled[0])


@pytest.fixture
def interruptible():
    """A process that was started in the background may have been told to ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_is_noted_and_the_second_one_acts(interruptible):
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # Until the signal arrives.


def test_a_finished_run_does_nothing_more(unkilled):
    workdir, result = unkilled
    before = records(workdir)

    def fail(i):
        raise AssertionError("asked for a batch")

    again = toy_fit(workdir, ToyBatches(on_batch=fail))
    assert again.reason == ALL_STEPS and again.best_value == result.best_value
    assert records(workdir) == before


def test_a_bad_loss_stops_the_run_and_the_last_good_checkpoint_stays(tmp_path):
    with pytest.raises(TrainingError) as caught:
        toy_fit(tmp_path, ToyBatches(bad=[16]))
    message = str(caught.value)
    assert "not finite at step 17" in message and "learning rate" in message
    assert str(tmp_path / "checkpoints" / "15") in message
    assert checkpoint_step(tmp_path, "last") == 15
    assert all(np.isfinite(w).all() for w in weights(restore_model(tmp_path, Toy(), "last")))
    assert max(line["step"] for line in records(tmp_path)) == 16
    # With the fault gone the run goes on from there.
    assert toy_fit(tmp_path, ToyBatches()).reason == ALL_STEPS


def test_a_bad_loss_without_checkpoints():
    state, step = toy_state_and_step()
    with pytest.raises(TrainingError, match="step 3, .*no checkpoint yet"):
        fit(state, step, ToyBatches(bad=[2]), total_steps=9, log_every=4, progress=False)


def scripted(values):
    """An evaluation that gives these values one after the other."""
    values = iter(values)
    return lambda model: {"score": next(values)}


def test_early_stopping_counts_evaluations_without_a_new_best(tmp_path):
    # 0.4 is no better than the 0.5 before; a tie with the best is not better either.
    evaluate = scripted([0.1, 0.5, 0.4, 0.6, 0.6, 0.2, 0.9])
    result = toy_fit(
        tmp_path,
        ToyBatches(),
        evaluate=evaluate,
        monitor="score",
        mode="max",
        eval_every=3,
        patience=2,
        checkpoint_every=None,
    )
    assert (result.best_step, result.best_value) == (12, 0.6)
    assert result.reason == OUT_OF_PATIENCE and int(result.state.step) == 18
    assert checkpoint_step(tmp_path, "best") == 12 and checkpoint_step(tmp_path, "last") == 18
    # Patience is remembered: a resume does not begin to wait anew.
    again = toy_fit(
        tmp_path, ToyBatches(), evaluate=scripted([]), monitor="score", mode="max", patience=2
    )
    assert again.reason == OUT_OF_PATIENCE and int(again.state.step) == 18


def test_the_end_of_the_data_ends_the_run(tmp_path):
    result = toy_fit(tmp_path, ToyBatches(stop=13))
    assert result.reason == NO_MORE_BATCHES and int(result.state.step) == 13
    validated = [line["step"] for line in records(tmp_path) if line["split"] == "validation"]
    assert validated == [10, 13] and checkpoint_step(tmp_path, "last") == 13


def test_no_implicit_transfers_no_reads_between_log_points_and_one_compilation(monkeypatch):
    state, step = toy_state_and_step()
    reads, dispatched = [], []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: reads.append(len(dispatched)) or device_get(x))

    def counted(state, batch):
        dispatched.append(1)
        return step(state, batch)

    with jax.transfer_guard("disallow"), toy_run.compilations() as events:
        fit(state, counted, ToyBatches(), total_steps=30, log_every=10, progress=False)
    # Once for the step at the start; then after steps 11 and 21, each time the bad step and the sums; then at the end.
    assert reads == [0, 11, 11, 21, 21, 30, 30]
    assert len(events) <= 3  # The step, the addition of metrics, the copy of the bad step.


def test_no_implicit_transfers_in_evaluation_checkpoints_and_resume(unkilled, tmp_path):
    for total_steps in (15, 30):
        state, step = toy_state_and_step()
        with (
            Checkpointer(tmp_path) as checkpointer,
            MetricWriter(tmp_path, tensorboard=False) as writer,
            jax.transfer_guard("disallow"),
        ):
            result = fit(
                state,
                step,
                ToyBatches(),
                total_steps=total_steps,
                log_every=4,
                eval_every=10,
                checkpoint_every=5,
                evaluate=distance,
                monitor="distance",
                mode="min",
                checkpointer=checkpointer,
                writer=writer,
                progress=False,
            )
    np.testing.assert_array_equal(
        weights(result.state.model)[1], weights(unkilled[1].state.model)[1]
    )


def test_a_run_that_ended_early_and_goes_on_logs_no_step_twice(tmp_path):
    # The data end at 13, after a checkpoint (and best) at 12 or at the end; then there are more.
    for every in (12, 13):
        workdir = tmp_path / str(every)
        toy_fit(workdir, ToyBatches(stop=13), checkpoint_every=every, eval_every=None)
        toy_fit(workdir, ToyBatches(), checkpoint_every=every, eval_every=None)
        lines = [(line["step"], line["split"]) for line in records(workdir)]
        assert len(set(lines)) == len(lines) and max(lines) == (30, "validation")


def test_examples_are_counted_by_the_callers_rule(tmp_path):
    counted = []

    def examples(batch):
        counted.append(isinstance(batch["x"], np.ndarray))
        return 1000

    toy_fit(tmp_path, ToyBatches(), total_steps=4, examples_in_batch=examples)
    assert counted == [True] * 4
    (line,) = [x for x in read_metrics(tmp_path / "metrics.jsonl") if x["split"] == "train"]
    assert line["values"]["examples_per_second"] > 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mode": "best"}, "'max' or 'min'"),
        ({"log_every": 0}, "log_every=0"),
        ({"patience": 0}, "patience=0"),
        ({"monitor": "ndcg"}, "no 'ndcg'; set monitor to one of distance"),
        ({"evaluate": lambda model: {"distance": float("nan")}}, "'distance' is nan"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, named):
    with pytest.raises(TrainingError, match=named):
        toy_fit(tmp_path, ToyBatches(), **{"total_steps": 2} | settings)


def test_batches_that_cannot_be_resumed_are_refused(tmp_path):
    state, step = toy_state_and_step()
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(TrainingError, match="get_state"):
        fit(state, step, (b for b in ToyBatches()), total_steps=1, checkpointer=checkpointer)


def test_the_bar_shows_loss_and_speed(capsys):
    state, step = toy_state_and_step()
    fit(state, step, ToyBatches(), total_steps=6, log_every=2)
    shown = capsys.readouterr().err
    assert "6/6" in shown and "loss" in shown and "examples/s" in shown
