"""Two processes of four CPU devices each, as a user starts them, beside one process of one device."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from host_runs import LOSSES, SMALL, run_all, small
from mains import ENVIRONMENT, ROOT

from experiments import distributed
from gr.runs.train import train
from gr.training import MetricWriter, TrainingInterrupted, checkpoint_step, read_metrics
from gr.training.metric_writer import truncate_metrics

pytestmark = pytest.mark.usefixtures("compile_in_haste")
LONG = {
    "training.num_epochs": 30,
    "training.eval_every_epochs": 15.0,
    "training.checkpoint_every_epochs": 2.0,
    "training.learning_rate": 1e-4,
    "training.patience": 0,
}


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def processes(commands):
    """Starts commands; kills what is left of them."""
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def steps_of(folder):
    """The losses of training, by step."""
    lines = read_metrics(folder / "metrics.jsonl")
    return {line["step"]: line["values"]["loss"] for line in lines if line["split"] == "train"}


def validation_of(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [line["values"] for line in lines if line["split"] == "validation"]


def test_losses_are_those_of_one_device(tmp_path):
    port = free_port()
    commands = [["tests/host_runs.py", tmp_path / "two", port, process] for process in (0, 1)]
    with processes(commands) as both:
        run_all(tmp_path / "one")
        for process in both:
            out, errors = process.communicate(timeout=900)
            assert process.returncode == 0, out + errors
    for name in (*LOSSES, "rl", "rl/value_head"):
        one, two = steps_of(tmp_path / "one" / name), steps_of(tmp_path / "two" / name)
        assert one.keys() == two.keys() and one, name
        np.testing.assert_allclose(
            list(two.values()), list(one.values()), rtol=1e-5, atol=1e-5, err_msg=name
        )
        one, two = (validation_of(tmp_path / kind / name) for kind in ("one", "two"))
        assert len(one) == len(two) == 1
        for field, value in one[0].items():
            if "spearman" in field:  # Ranks of values of which many are alike but for rounding.
                continue
            assert two[0][field] == pytest.approx(value, rel=1e-4, abs=1e-5), (name, field)
    kinds = (tmp_path / kind / "apao" / "metrics_validation.json" for kind in ("one", "two"))
    one, two = (json.loads(path.read_text()) for path in kinds)
    assert one["users"] == two["users"] == 64
    for field in ("ndcg@10", "hit@10", "loss"):
        assert two[field] == pytest.approx(one[field], rel=1e-5), field
    assert one["baselines"]["item_knn"] == two["baselines"]["item_knn"]


def commands(workdir):
    flags = [f"--config.{field}={value}" for field, value in (SMALL | LONG).items()]
    shared = ["-m", "experiments.train", "--config=configs/synthetic.py", f"--workdir={workdir}"]
    shared += [*flags, "--distributed", f"--coordinator=localhost:{free_port()}"]
    return [[*shared, "--num_processes=2", f"--process_id={process}"] for process in (0, 1)]


def wait_for_step(folder, step, started):
    """Returns when the two processes have done so many steps."""
    deadline = time.monotonic() + 1500
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and max(steps_of(folder), default=0) >= step:
            return
        for process in started:
            assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


def test_it_stops_together_and_resumes_on_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setitem(
        ENVIRONMENT,
        "XLA_FLAGS",
        f"{ENVIRONMENT.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
    )
    whole, folder = tmp_path / "whole", tmp_path / "run"
    train(small(**LONG), str(whole))
    # One process and one device, until it is told to stop.
    with monkeypatch.context() as patched:
        write = MetricWriter.write

        def write_and_stop(writer, step, *rest):
            write(writer, step, *rest)
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(MetricWriter, "write", write_and_stop)
        with pytest.raises(TrainingInterrupted):
            train(small(**LONG), str(folder))
    began = checkpoint_step(folder, "last")
    # Two processes go on. One is killed; the other ends with one line, and soon.
    with processes(commands(folder)) as (first, second):
        wait_for_step(folder, began + 10, (first, second))
        second.kill()
        errors = first.communicate(timeout=300)[1]
        assert first.returncode != 0
        told = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and "another process of this run has ended" in told[0], errors
        for stack in ("Check failure stack trace", "Traceback", "Fatal Python error"):
            assert stack not in errors
    killed = checkpoint_step(folder, "last")
    assert killed >= began
    truncate_metrics(
        folder / "metrics.jsonl", killed
    )  # As a resumed run does, so that its steps are seen below.
    # The same commands; one is told to stop, and both stop after the same step, which is saved.
    with processes(commands(folder)) as both:
        wait_for_step(folder, killed + 5, both)
        both[1].send_signal(signal.SIGTERM)
        told = [process.communicate(timeout=300)[1] for process in both]
    stopped = checkpoint_step(folder, "last")
    assert stopped >= killed + 5
    by_other = f"stopped by a signal to another process after step {stopped}, saved"
    assert [process.returncode for process in both] == [1, 1], told
    assert by_other in told[0] and f"stopped by SIGTERM after step {stopped}, saved" in told[1]
    # One process and one device again, to the end.
    assert train(small(**LONG), str(folder)).result.reason == "all steps done"
    found, wanted = steps_of(folder), steps_of(whole)
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-4)
    assert len(validation_of(folder)) == len(validation_of(whole))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2, "process_id": 0}, "--coordinator missing"),
        ({"coordinator": "a:1"}, "--num_processes and --process_id missing"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "count from 0 up to one less",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": -1},
            "count from 0 up to one less",
        ),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "give HOST:PORT"),
        ({"coordinator": "a:70000", "num_processes": 2, "process_id": 0}, "give HOST:PORT"),
    ],
)
def test_wrong_flags_are_named(given, message):
    with pytest.raises(distributed.DistributedError, match=message):
        distributed.check(given)


def test_what_cannot_start_says_so_in_one_line(tmp_path):
    start = ["-m", "experiments.train", "--config=configs/synthetic.py", f"--workdir={tmp_path}"]
    start += ["--distributed", "--start_timeout=2"]
    alone = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", "--process_id=1"]
    wanted = ("nothing in the environment says which", "within 2 s (--start_timeout)")
    with processes([start, start + alone]) as started:
        for process, message in zip(started, wanted, strict=True):
            errors = process.communicate(timeout=300)[1]
            assert process.returncode != 0
            assert len(errors.splitlines()) == 1 and errors.startswith("error: "), (
                process.returncode,
                errors,
            )
            assert message in errors
