"""One process at a time in a workdir."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gr.training import TrainingError, locked
from gr.training.lock import LOCK_FILE

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from gr.training import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_the_first_one_named(tmp_path, holder):
    with pytest.raises(TrainingError, match=rf"in use by process {holder.pid} since 20.* on \S"):
        with locked(tmp_path):
            pass
    assert holder.poll() is None


def test_a_killed_process_leaves_no_lock_behind(tmp_path, holder, capsys):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == holder.pid
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK_FILE).read_text() == ""
    assert capsys.readouterr().out == ""


def test_it_is_free_again_after_an_error_and_keeps_out_the_same_process(tmp_path):
    with pytest.raises(KeyError):
        with locked(tmp_path):
            with pytest.raises(TrainingError, match=f"process {os.getpid()} "):
                with locked(tmp_path):
                    pass
            raise KeyError
    with locked(tmp_path):
        pass


def test_what_another_machine_left_is_said(tmp_path, capsys):
    left = {"pid": 7, "host": "elsewhere", "since": "2030-01-01 00:00:00+00:00"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(left))
    with locked(tmp_path):
        pass
    told = capsys.readouterr().out
    assert "process 7 since 2030-01-01 00:00:00+00:00 on elsewhere" in told and "stop this" in told
    for broken in ("{", "3", '{"pid": 1}'):
        (tmp_path / LOCK_FILE).write_text(broken)
        with locked(tmp_path):
            pass
    assert capsys.readouterr().out == ""


def test_a_file_system_without_locks_is_noted(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path):
        pass
    assert "cannot be locked (Operation not supported)" in capsys.readouterr().out


def test_an_object_store_has_no_locks_and_a_note_says_so(bucket, capsys):
    with locked("gs://bucket/run"):
        assert bucket() == {}
    assert capsys.readouterr().out == (
        "note: gs://bucket/run cannot be locked; see to it that no second process uses it\n"
    )
