r"""Runs several experiments with several seeds, or resumes them, and compares them.

    python -m experiments.compare --config=configs/office_apao_study.py --workdir=DIR [--split=test] [--only=ce,msl]
    python -m experiments.compare --configs=ce=configs/a.py,other=configs/b.py --seeds=0,1 --workdir=DIR

A study config has `variants` (name -> experiment config), `seeds`, the `reference` variant that the others are
compared with, and `labels`; `--configs` makes one from experiment configs, whose first is the reference unless
`--reference` names another. Every run is a process of its own, with
its workdir in DIR/VARIANT/seed_S and its output in `log.txt` there. Runs that are done are not done again; the same
command resumes what was stopped, and tries again what failed. Prints the table and writes `comparison.md`, `.json`,
`.html` and `figures/` into DIR.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from experiments.config_files import load_config_file, study_of
from experiments.errors import MENDABLE, one_line_errors, run_main, start_backend
from gr.runs import Study, config_of
from gr.runs.compare import Job, compare, jobs_of
from gr.runs.workdir import occupied
from gr.training import TrainingError, TrainingInterrupted

LOG_TAIL = 4096  # Bytes in which a log's last line is looked for.


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Trains what is missing, compares what is there."""
    del argv
    study = study_from_flags()
    names = _ONLY.value or list(study.variants)
    unknown = sorted(set(names) - set(study.variants))
    if unknown:
        raise TrainingError(f"--only={unknown[0]}: use some of {', '.join(study.variants)}")
    jobs = jobs_of(study, _WORKDIR.value, _SPLIT.value, data_dir=_DATA_DIR.value)
    with occupied(_WORKDIR.value, of_study=True):
        failed = run_all(jobs, names, _JOBS.value)
        if any(job.is_done for job in jobs):
            command = shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]])
            compare(study, _WORKDIR.value, jobs, command=command)
    if failed:
        reasons = "; ".join(f"{job.label} failed, see {job.log}" for job in failed)
        raise TrainingError(f"{reasons}. The same command tries again")


def study_from_flags() -> Study:
    """The study of `--config`, or one made from `--configs`; `--seeds` and `--reference` replace its own."""
    if bool(_CONFIG.value) == bool(_CONFIGS.value):
        raise TrainingError(
            "name a study by --config=FILE, or experiments by --configs=NAME=FILE,..."
        )
    study = study_of(_CONFIG.value) if _CONFIG.value else study_of_files(_CONFIGS.value)
    changes = {}
    if _SEEDS.value:
        if not all(text.isdecimal() for text in _SEEDS.value):
            raise TrainingError(f"--seeds={','.join(_SEEDS.value)}: use numbers such as 0,1,2")
        changes["seeds"] = tuple(map(int, _SEEDS.value))
    if _REFERENCE.value:
        changes["reference"] = _REFERENCE.value
    return dataclasses.replace(study, **changes)


def study_of_files(pairs: Sequence[str]) -> Study:
    """A study of experiment configs, `NAME=FILE` each; the first is the reference."""
    variants = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not name.isidentifier() or not path:
            raise TrainingError(f"--configs: {pair} is not NAME=FILE")
        variants[name] = config_of(load_config_file(path), f"variants.{name}.")
    return Study(name=", ".join(variants), reference=next(iter(variants)), variants=variants)


def run_all(jobs: Sequence[Job], names: Sequence[str], width: int) -> list[Job]:
    """Does the jobs of the named variants that are not done, `width` at once; returns those that failed.

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
    finally:  # A run saves its state when it is told to stop.
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join()
    return failed


def ready(waiting: Sequence[Job], running: Sequence["_Running"]) -> Job | None:
    """The first of those that wait that does not start from one that waits or runs; None if there is none."""
    unfinished = {job.workdir for job in waiting} | {one.job.workdir for one in running}
    return next((job for job in waiting if job.starts_from not in unfinished), None)


class _Running:
    """A job in a process of its own, which keeps JAX's memory and compiled programs apart."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.start = time.monotonic()
        # Not forked, which JAX's threads do not survive.
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
    """One run, in a process of its own, which does not outlive the one that started it."""
    os.makedirs(job.workdir, exist_ok=True)
    with open(job.log, "a", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    start_backend()
    try:
        job.run()
    except MENDABLE as error:
        raise SystemExit(f"error: {error}") from error
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def last_line(path: str) -> str:
    """The last line of a log, a progress bar's as it stands; "" if there is none yet."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - LOG_TAIL))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _stop_with_parent() -> None:
    """Asks this process to stop when its parent is gone, however that ended: the same command may start anew."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """While entered, SIGTERM does what Ctrl-C does, so that the runs are told to stop."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The study's configuration.")
    _CONFIGS = flags.DEFINE_list("configs", [], "Or experiments to compare: NAME=FILE,...")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs; resumes what it holds.")
    _SPLIT = flags.DEFINE_enum("split", "test", ("validation", "test"), "Which targets to rank.")
    _SEEDS = flags.DEFINE_list("seeds", [], "Seeds, instead of the study's.")
    _REFERENCE = flags.DEFINE_string("reference", "", "The variant to compare the others with.")
    _ONLY = flags.DEFINE_list("only", [], "Variants to run; what is there is compared.")
    _JOBS = flags.DEFINE_integer("jobs", 1, "Runs at once.", lower_bound=1)
    _DATA_DIR = flags.DEFINE_string("data_dir", "", "The data's folder, instead of the configs'.")
    flags.mark_flag_as_required("workdir")
    run_main(main, starts_backend=False)  # Its runs do, each in a process of its own.
