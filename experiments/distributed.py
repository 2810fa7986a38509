"""Several processes of one run, on JAX's own engine: the flags, the start, and one message when a process is lost.

    python -m experiments.train --config=... --workdir=DIR --distributed \
        --coordinator=HOST:PORT --num_processes=2 --process_id=0|1

On TPU pods, and under SLURM, Open MPI and Kubernetes, `--distributed` alone is enough.
"""

import contextlib
import faulthandler
import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import app, flags
from jax.experimental import multihost_utils

from gr import GrError
from gr.training import TrainingInterrupted

HEARTBEAT_S = 20  # Without a sign of life for so long, a process counts as lost.
_OURS = ("coordinator", "num_processes", "process_id")


class DistributedError(GrError):
    """Raised where the processes of a run cannot be started together; names the flag and the remedy."""


def define_flags() -> None:
    """Defines the flags of a main that several processes may run."""
    flags.DEFINE_boolean("distributed", False, "Whether this is one process of several.")
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, at a port that is free there."
    )
    flags.DEFINE_integer("num_processes", None, "Processes in all.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
    flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for the other processes.")


def start() -> None:
    """Connects the processes if `--distributed` says so; to be called before anything touches JAX's devices.

    Raises:
        DistributedError: for flags that do not fit together, or without flags where nothing else says who is there.
    """
    values = flags.FLAGS.flag_values_dict()
    if "distributed" not in values:
        return
    given = {name: values[name] for name in _OURS if values[name] is not None}
    if not values["distributed"]:
        if given:
            raise DistributedError(f"--{next(iter(given))} is for --distributed; give both or none")
        return
    check(given)
    timeout = values["start_timeout"]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    who = given.get("coordinator", "the coordinator that the environment names")
    _tell_losses_in_one_line(
        start=f"error: not all processes came together at {who} within {timeout} s (--start_timeout): start all of "
        "them, with the same --coordinator and --num_processes, and see that its port can be reached",
        # On a line of its own, behind the progress bar.
        loss="\nerror: another process of this run has ended, or cannot be reached; see what it said. Once all have "
        "ended, the same commands resume from the last checkpoint",
    )
    try:
        jax.distributed.initialize(
            given.get("coordinator"),
            given.get("num_processes"),
            given.get("process_id"),
            # JAX would otherwise look for the rest in the environment, and find that of another cluster.
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    except Exception as error:  # JAX raises errors of many types.
        said = " ".join(str(error).split())[:200]
        if not given:
            raise DistributedError(
                f"--distributed: nothing in the environment says which processes there are ({said}); give "
                "--coordinator=HOST:PORT, --num_processes and --process_id"
            ) from error
        raise DistributedError(f"--coordinator={given['coordinator']}: {said}") from error
    # JAX takes SIGTERM for its own notices; here `gr.training.stopping` does, and the processes agree.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    multihost_utils.sync_global_devices("start")  # Connects CPU devices, while all are here.
    if jax.process_index() != 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # The first process says it.


def check(given: Mapping[str, Any]) -> None:
    """Raises `DistributedError` for values of the flags that are incomplete or wrong."""
    missing = [f"--{name}" for name in _OURS if name not in given]
    if given and missing:
        raise DistributedError(
            f"--distributed: {' and '.join(missing)} missing; give --coordinator, --num_processes and --process_id, or "
            "none of them where the environment says it (TPU pods, SLURM, Open MPI, Kubernetes)"
        )
    if not given:
        return
    count, number = given["num_processes"], given["process_id"]
    if not 0 <= number < count:
        raise DistributedError(
            f"--process_id={number} with --num_processes={count}: count from 0 up to one less"
        )
    port = re.fullmatch(r"(.+):(\d+)", given["coordinator"])
    if port is None or not 0 < int(port[2]) < 65536:
        raise DistributedError(
            f"--coordinator={given['coordinator']}: give HOST:PORT, such as localhost:8476"
        )


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Around a main: a process that fails ends at once, lest it waits for others that wait for it.

    An error of JAX may come from the loss of another process. JAX then ends this one too, and says why.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized() or _is_agreed(error):
            raise
        if _is_of_jax(error):
            time.sleep(2 * HEARTBEAT_S)
        if isinstance(error, SystemExit) and isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        elif not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)


def _is_of_jax(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is of JAX's runtime."""
    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_agreed(error: BaseException) -> bool:
    """Whether all processes end in this way."""
    cause = error.__cause__ or error
    return isinstance(cause, TrainingInterrupted) or (
        isinstance(error, SystemExit) and error.code in (None, 0)
    )


# When a process is lost, JAX ends all others from within, with a stack of C++ frames. So that they end with one message
# instead, what its libraries print goes through a process of its own, which outlives them. Python prints as always.
_TRANSLATOR = r"""
import os, re, sys
start, loss = (message.encode() + b"\n" for message in sys.argv[1:])
rest, left_out, out = b"", False, os.fdopen(2, "wb", 0)
while part := os.read(0, 65536):
    *lines, rest = (rest + part).split(b"\n")
    for place, line in enumerate(lines):
        if b"JAX distributed service detected fatal errors" in line:
            told = b"\n".join([*lines[place:], rest])
            while part := os.read(0, 65536):
                told += part
            out.write(start if b"RegisterTask" in told else loss)
            sys.exit()
        if not line or re.match(rb"[IWEF]\d{4} ", line):  # A record, which may have several lines.
            left_out = b"coordination_service" in line.split(b"]")[0]
        if not left_out and not line.startswith(b"[Gloo]"):
            out.write(line + b"\n")
out.write(rest)
"""


def _tell_losses_in_one_line(**messages: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    out, errors = os.dup(1), os.dup(2)
    reading, writing = os.pipe()
    subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _TRANSLATOR, messages["start"], messages["loss"]],
        stdin=reading,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is for the run.
    )
    os.close(reading)
    for number in (1, 2):
        os.dup2(writing, number)
    os.close(writing)
    # Absl has Python write its own stacks to where errors went before.
    app.call_after_init(lambda: faulthandler.enable(file=2))
    sys.stdout = io.TextIOWrapper(os.fdopen(out, "wb"), line_buffering=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(errors, "wb", 0), write_through=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # A loss is no reason for a dump of memory.
