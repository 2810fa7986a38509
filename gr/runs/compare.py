"""Trains several experiments with several seeds and compares them on the same users."""

import dataclasses
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr.data.files import is_remote, read_arrays, read_json, write_atomically
from gr.evaluation import (
    EvaluationError,
    compare_runs,
    training_seconds,
    user_metrics,
)
from gr.runs import comparison_pages, data
from gr.runs.baselines import Baselines
from gr.runs.evaluate import KS, VARIANTS
from gr.runs.experiment import (
    ConfigError,
    Study,
    config_of,
    flattened,
)
from gr.runs.processes import run_all
from gr.runs.study import Job, baselines_of, jobs_of
from gr.runs.workdir import (
    SEMANTIC_IDS_FILE,
    check_data,
    check_same_data,
    load_semantic_ids,
    occupied,
    saved_experiment,
)
from gr.semantic_ids import SemanticIds
from gr.training import TrainingError, read_metrics


def compare(
    study: Study,
    workdir: str,
    *,
    split: str = "test",
    only: Sequence[str] = (),
    at_once: int = 1,
    data_dir: str = "",
    command: str = "",
) -> dict[str, Any]:
    """Trains the missing runs of a study, each in its own process, and compares all finished runs.

    Args:
        study: the experiments and seeds; or a mapping with its fields, such as a `ConfigDict`.
        workdir: local folder of all runs; runs already in it are resumed.
        split: which targets are ranked, "validation" or "test".
        only: variants to run; (): all.
        at_once: number of runs at a time.
        data_dir: folder of the data, instead of the experiments'.
        command: the command shown in the page to repeat the comparison.

    Returns:
        The content of `comparison.json`. It also writes `comparison.md`, `comparison.html` and `figures/`.

    Raises:
        ConfigError: for a study that cannot be run.
        TrainingError: if a run fails, another process works in the workdir, or there is nothing to compare.
        TrainingInterrupted: after Ctrl-C or SIGTERM, when the runs have saved their state.
    """
    study = config_of(study)
    if not isinstance(study, Study):
        raise ConfigError("this is no study but a single experiment")
    unknown = sorted(set(only) - set(study.variants))
    if unknown:
        raise TrainingError(f"only={unknown[0]}: use some of {', '.join(study.variants)}")
    if is_remote(workdir):
        raise TrainingError(
            f"workdir={workdir}: the runs of a study write logs; name a local folder"
        )
    jobs = jobs_of(study, workdir, split, data_dir=data_dir)
    with occupied(workdir, of_study=True):
        failed = run_all(jobs, only or list(study.variants), at_once)
        page = {}
        if any(job.is_done for job in jobs):
            page = write_comparison(study, workdir, jobs, command=command)
    if failed:
        reasons = "; ".join(f"{job.label} failed, see {job.log}" for job in failed)
        raise TrainingError(f"{reasons}. The same command tries again")
    return page


def write_comparison(
    config: Study, workdir: str, all_jobs: Sequence[Job], *, command: str = ""
) -> dict[str, Any]:
    """Compares the finished runs, prints the table and writes the pages.

    Raises:
        EvaluationError: if finished runs differ in items, semantic IDs or targets.
        TrainingError: if no run is finished.
    """
    done = [job for job in all_jobs if job.is_done]
    if not done:
        raise TrainingError(f"no run in {workdir} is done: there is nothing to compare")
    # Settings of the actual runs; the study's current configs may differ, for example in the learning rate.
    done = [
        dataclasses.replace(
            job,
            config=dataclasses.replace(saved_experiment(job.workdir), data_dir=job.config.data_dir),
        )
        for job in done
    ]
    done.sort(key=lambda job: job.variant != config.reference)  # Stable: the reference first.
    check_same_items(done)
    first = done[0]

    # Variants, the reference first.
    others = [name for name in config.variants if name != config.reference]
    labels = {name: config.labels.get(name, name) for name in (config.reference, *others)}
    of_label = {
        label: {job.seed: job for job in done if job.variant == name}
        for name, label in labels.items()
    }
    of_label = {label: by_seed for label, by_seed in of_label.items() if by_seed}
    kept = {label: {s: job.ranks() for s, job in by.items()} for label, by in of_label.items()}
    compared = {
        rule: compare_runs(
            {label: {s: ranks[rule] for s, ranks in by.items()} for label, by in kept.items()},
            labels[config.reference],
        )
        for rule in VARIANTS.values()
    }

    # Further parts of the page.
    baselines = study_baselines(first)
    curves = {
        label: {
            s: read_metrics(os.path.join(job.workdir, "metrics.jsonl")) for s, job in by.items()
        }
        for label, by in of_label.items()
    }
    page = comparison_pages.Comparison(
        title=config.name,
        reference=labels[config.reference],
        split=first.split,
        compared=compared,
        missing=[job.label for job in all_jobs if not job.is_done],
        settings=settings(done, labels),
        training={
            label: training(list(by.values()), list(curves[label].values()))
            for label, by in of_label.items()
        },
        baselines=baseline_metrics(baselines),
        left_out=baselines[True].left_out,
        curves=curves,
        users=len(next(iter(next(iter(kept.values())).values()))[VARIANTS[True]].targets),
        targets_seen=int(next(iter(baselines[True].rankings.values())).seen.sum()),
        num_beams=first.config.decoding.num_beams,
        versions=list({json.dumps(v, sort_keys=True): v for v in map(_versions, done)}.values()),
        configs={label: next(iter(by.values())).config.to_dict() for label, by in of_label.items()},
        command=command,
        date=datetime.date.today().isoformat(),
    )
    comparison_pages.write(workdir, page)
    print(comparison_pages.as_text(page))
    path = os.path.join(workdir, "comparison.json")
    values = comparison_pages.as_json(page)
    write_atomically(path, json.dumps(values, indent=2).encode())
    print(f"wrote {workdir}: comparison.md, comparison.json, comparison.html, figures/")
    return values


def check_same_items(done: Sequence[Job]) -> None:
    """Raises `EvaluationError` unless all runs have the same items with the same semantic IDs."""
    first = SemanticIds.load(os.path.join(done[0].workdir, SEMANTIC_IDS_FILE))
    for job in done[1:]:
        check_same_data(done[0].workdir, job.workdir)
        found = SemanticIds.load(os.path.join(job.workdir, SEMANTIC_IDS_FILE))
        for what, one, other in (
            ("items", found.item_ids, first.item_ids),
            ("semantic IDs", found.codes, first.codes),
        ):
            if not np.array_equal(one, other):
                raise EvaluationError(
                    f"{job.label} ({job.workdir}) has other {what} than {done[0].label}: compare runs on the same "
                    "data and semantic IDs, with the same semantic_ids.seed"
                )


def settings(runs: Sequence[Job], labels: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """The fields in which variants differ: field -> label -> value, or values where seeds differ too."""
    flat = [
        (labels[job.variant], dict(flattened(json.loads(job.config.to_json())))) for job in runs
    ]
    fields = sorted(set().union(*(of for _, of in flat)) - {"seed", "data_dir", "name"})
    differing = {}
    for field in fields:
        by_label: dict[str, list] = {}
        for label, of in flat:
            values = by_label.setdefault(label, [])
            if of.get(field) not in values:
                values.append(of.get(field))
        if len({json.dumps(values) for values in by_label.values()}) > 1 or any(
            len(values) > 1 for values in by_label.values()
        ):
            differing[field] = {
                label: values[0] if len(values) == 1 else " / ".join(map(str, values))
                for label, values in by_label.items()
            }
    return differing


def training(runs: Sequence[Job], curves: Sequence[Sequence[Mapping]]) -> dict[str, list[float]]:
    """Best step, last step and minutes of training of a variant's runs, from the lines of their metrics."""
    facts = {"best step": [], "last step": [], "minutes": []}
    for job, lines in zip(runs, curves, strict=True):
        facts["best step"].append(int(read_arrays(job.ranks_path)["step"]))
        facts["last step"].append(lines[-1]["step"])
        facts["minutes"].append(training_seconds(lines) / 60)
    return facts


def study_baselines(job: Job) -> dict[bool, Baselines]:
    """Baselines with seen items removed (True) and with all items allowed (False), ranked once for the study."""
    splits = data.load_data(job.config, job.workdir)
    check_data(job.workdir, splits, remedy="another workdir")
    semantic_ids = load_semantic_ids(job.workdir, splits)
    return {rule: baselines_of(job, splits, semantic_ids, rule) for rule in VARIANTS}


def baseline_metrics(
    baselines: Mapping[bool, Baselines],
) -> dict[str, dict[str, dict[str, float]]]:
    """Rule -> baseline -> metric."""
    return {
        VARIANTS[rule]: {
            name: {
                key: float(values.mean())
                for key, values in user_metrics(
                    rankings, [k for k in (*KS, 3) if k <= rankings.depth]
                ).items()
            }
            for name, rankings in of_rule.rankings.items()
        }
        for rule, of_rule in baselines.items()
    }


def _versions(job: Job) -> dict:
    return read_json(os.path.join(job.workdir, "versions.json"))
