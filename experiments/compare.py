r"""Runs several experiments with several seeds, or resumes them, and compares them.

    python -m experiments.compare --config=configs/office_apao_study.py --workdir=DIR [--split=test] [--only=ce,msl]
    python -m experiments.compare --configs=ce=configs/a.py,other=configs/b.py --seeds=0,1 --workdir=DIR

A study config has `variants` (name -> experiment config), `seeds`, the `reference` variant that the others are
compared with, and `labels`; `--configs` makes one from experiment configs. Every run is a process of its own, with
its workdir in DIR/VARIANT/seed_S and its output in `log.txt` there. Runs that are done are not done again; the same
command resumes what was stopped, and tries again what failed. Prints the table and writes `comparison.md`, `.json`,
`.html` and `figures/` into DIR.
"""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments import comparing
from experiments.comparing import Job
from experiments.errors import one_line_errors
from gr.training import TrainingError


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Trains what is missing, compares what is there."""
    del argv
    config = study_from_flags()
    if _SEEDS.value:
        config.seeds = tuple(int(seed) for seed in _SEEDS.value)
    names = _ONLY.value or list(config.variants)
    unknown = sorted(set(names) - set(config.variants))
    if unknown:
        raise TrainingError(f"--only={unknown[0]}: use some of {', '.join(config.variants)}")
    jobs = comparing.jobs(config, _WORKDIR.value, _SPLIT.value, data_dir=_DATA_DIR.value)
    failed = run_all([job for job in jobs if job.variant in names], _JOBS.value)
    comparing.compare(config, _WORKDIR.value, jobs)
    if failed:
        raise TrainingError("; ".join(f"{job.label} failed, see {job.log}" for job in failed))


def study_from_flags() -> ConfigDict:
    """The study of `--config`, or one made from `--configs`."""
    if bool(_CONFIG.value) == bool(_CONFIGS.value):
        raise TrainingError(
            "name a study by --config=FILE, or experiments by --configs=NAME=FILE,..."
        )
    if _CONFIG.value:
        return _CONFIG.value
    pairs = [text.partition("=") for text in _CONFIGS.value]
    return comparing.study_of_files({name: path for name, _, path in pairs})


def run_all(jobs: Sequence[Job], width: int) -> list[Job]:
    """Does all jobs that are not done, `width` at once; the ones that failed are returned."""
    waiting = []
    for job in jobs:
        job.check()
        if job.is_done:
            print(f"{job.label}: done before")
        else:
            waiting.append(job)
    running: list[tuple[Job, multiprocessing.Process, float]] = []
    failed, total = [], len(waiting)
    spawn = multiprocessing.get_context("spawn")  # JAX must not be forked.
    try:
        while waiting or running:
            while waiting and len(running) < width:
                job = waiting.pop(0)
                place = total - len(waiting)
                print(f"[{place}/{total}] {job.label}: started; log: {job.log}", flush=True)
                process = spawn.Process(target=do, args=(job,))
                process.start()
                running.append((job, process, time.monotonic()))
            time.sleep(0.2)
            for entry in [entry for entry in running if not entry[1].is_alive()]:
                running.remove(entry)
                job, process, start = entry
                outcome = "done" if process.exitcode == 0 else f"FAILED, see {job.log}"
                minutes = (time.monotonic() - start) / 60
                print(f"{job.label}: {outcome} after {minutes:.1f} min", flush=True)
                if process.exitcode:
                    failed.append(job)
    finally:  # Also after Ctrl-C: a run saves its state when it is told to stop.
        for _, process, _ in running:
            process.terminate()
        for _, process, _ in running:
            process.join()
    return failed


def do(job: Job) -> None:
    """One run, in a process of its own."""
    os.makedirs(job.workdir, exist_ok=True)
    with open(job.log, "a", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    try:
        job.run()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The study's configuration.")
    _CONFIGS = flags.DEFINE_list("configs", [], "Or experiments to compare: NAME=FILE,...")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs; resumes what it holds.")
    _SPLIT = flags.DEFINE_enum("split", "test", ("validation", "test"), "Which targets to rank.")
    _SEEDS = flags.DEFINE_list("seeds", [], "Seeds, instead of the study's.")
    _ONLY = flags.DEFINE_list("only", [], "Variants to run; what is there is compared.")
    _JOBS = flags.DEFINE_integer("jobs", 1, "Runs at once.", lower_bound=1)
    _DATA_DIR = flags.DEFINE_string("data_dir", "", "The data's folder, instead of the configs'.")
    flags.mark_flag_as_required("workdir")
    app.run(main)
