"""Runs the jobs of a study in separate processes, several at once, each with a log file."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

import jax
from tqdm import tqdm

from gr.errors import GrError
from gr.runs.study import Job
from gr.training import TrainingError, TrainingInterrupted

LOG_TAIL = 4096  # Bytes in which a log's last line is looked for.


def run_all(jobs: Sequence[Job], names: Sequence[str], width: int) -> list[Job]:
    """Runs the unfinished jobs of the named variants, `width` at once; returns those that failed.

    Raises:
        TrainingError: before anything is run, if a job's folder holds a run of another configuration.
        TrainingInterrupted: after Ctrl-C or SIGTERM, when the runs have saved their state.
    """
    for job in jobs:
        job.check()
    chosen = [job for job in jobs if job.variant in names]
    for job in chosen:
        if job.is_done:
            print(f"{job.label}: done before")
    waiting = [job for job in chosen if not job.is_done]
    failed = []
    running: list[_Running] = []
    bar = tqdm(total=len(waiting), unit="run", dynamic_ncols=True, disable=not waiting)
    try:
        with _sigterm_as_interrupt(), bar:
            while waiting or running:
                while len(running) < width and (job := ready(waiting, running)):
                    waiting.remove(job)
                    running.append(_Running(job))
                    bar.write(f"{running[-1].job.label}: started; log: {running[-1].job.log}")
                time.sleep(0.2)
                for ended in [one for one in running if not one.process.is_alive()]:
                    running.remove(ended)
                    bar.write(ended.outcome())
                    bar.update(1)
                    if not ended.succeeded:
                        failed.append(ended.job)
                status = "; ".join(one.status() for one in running)
                bar.set_postfix_str(status, refresh=sys.stderr.isatty())
    except KeyboardInterrupt:
        stopped = ", ".join(one.job.label for one in running)
        raise TrainingInterrupted(
            f"stopped; {stopped} saved what was trained, and the same command resumes"
        ) from None
    finally:  # A run saves its state when it is stopped.
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join()
    return failed


def ready(waiting: Sequence[Job], running: Sequence["_Running"]) -> Job | None:
    """The first waiting job that does not start from an unfinished one; None if there is none."""
    unfinished = {job.workdir for job in waiting} | {one.job.workdir for one in running}
    return next((job for job in waiting if job.starts_from not in unfinished), None)


class _Running:
    """A job in its own process, with its own JAX memory and compiled programs."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.start = time.monotonic()
        # Spawned, since JAX's threads do not survive a fork.
        self.process = multiprocessing.get_context("spawn").Process(target=do, args=(job,))
        self.process.start()

    @property
    def succeeded(self) -> bool:
        return self.process.exitcode == 0

    def status(self) -> str:
        return f"{self.job.label}: {last_line(self.job.log)}"

    def outcome(self) -> str:
        minutes = (time.monotonic() - self.start) / 60
        if self.succeeded:
            return f"{self.job.label}: done after {minutes:.1f} min"
        reason = last_line(self.job.log)
        return f"{self.job.label}: FAILED after {minutes:.1f} min ({reason}), see {self.job.log}"


def do(job: Job) -> None:
    """Runs one job in this process, which ends when its parent ends."""
    os.makedirs(job.workdir, exist_ok=True)
    with open(job.log, "a", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        check_devices()
        job.run()
    except (GrError, TrainingInterrupted) as error:
        raise SystemExit(f"error: {error}") from error
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def last_line(path: str) -> str:
    """The last line of a log, which may be a progress bar; "" if there is none yet."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - LOG_TAIL))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _stop_with_parent() -> None:
    """Stops this process when its parent has ended in any way, so that the same command can be restarted."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM act like Ctrl-C, so that the runs are stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_devices() -> None:
    """Starts JAX's devices.

    Raises:
        TrainingError: if there are none, for example because JAX_PLATFORMS names a missing platform.
    """
    try:
        jax.devices()
    except Exception as error:  # JAX raises even AssertionError for a missing plugin.
        platforms = os.environ.get("JAX_PLATFORMS")
        remedy = "install what its devices need, pip install -e '.[cuda]' or '.[tpu]'"
        if platforms:
            remedy = f"unset JAX_PLATFORMS, which is {platforms!r}, to compute on what is there, or {remedy}"
        said = " ".join(str(error).split())[:160]
        raise TrainingError(
            f"JAX finds no device to compute on{f' ({said})' if said else ''}; {remedy}"
        ) from error
