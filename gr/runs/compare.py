"""The runs of a study, what is kept of each, and the comparison that is written."""

import dataclasses
import datetime
import json
import os
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from gr.data import Splits
from gr.data.files import as_path, read_arrays, read_json, write_arrays, write_atomically
from gr.evaluation import (
    EvaluationError,
    RunRanks,
    compare_runs,
    rankings_of_beams,
    training_seconds,
    user_metrics,
)
from gr.runs import build, comparison_pages, data
from gr.runs.baselines import Baselines, kept_baselines
from gr.runs.evaluate import KS, VARIANTS, evaluate, ranking_depth, watched_targets
from gr.runs.experiment import (
    Experiment,
    ReinforcedExperiment,
    Reinforcement,
    Study,
    check_experiment,
    flattened,
)
from gr.runs.reinforce import MAY_DIFFER as MAY_DIFFER_OF_RL
from gr.runs.reinforce import reinforce, resolved
from gr.runs.reinforce import report as report_of_rl
from gr.runs.train import MAY_DIFFER, train
from gr.runs.workdir import (
    SEMANTIC_IDS_FILE,
    check_data,
    check_same_data,
    check_same_experiment,
    has_begun,
    has_config,
    load_semantic_ids,
    saved_experiment,
)
from gr.semantic_ids import SemanticIds
from gr.training import TrainingError, read_metrics

MIN_BEAMS = 10  # Variants are compared at 10.


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a study."""

    variant: str
    label: str
    seed: int
    config: Experiment | Reinforcement  # As it is run, or was.
    workdir: str
    split: str
    with_report: bool  # Whether the run's own report is made too.

    @property
    def folder(self) -> str:
        """The study's."""
        return os.path.dirname(os.path.dirname(self.workdir))

    @property
    def starts_from(self) -> str:
        """Folder of the run whose model it starts from; "" for none."""
        return _start_of(self.config)[1]

    @property
    def log(self) -> str:
        """Where its output goes."""
        return os.path.join(self.workdir, "log.txt")

    @property
    def ranks_path(self) -> str:
        """What is kept of its evaluation; written last."""
        return os.path.join(self.workdir, f"ranks_{self.split}.npz")

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return as_path(self.ranks_path).exists()

    def check(self) -> None:
        """Raises `TrainingError` if its folder holds a run with another configuration."""
        if has_begun(self.workdir) or (self.is_done and has_config(self.workdir)):
            config, may_differ = self.config, MAY_DIFFER
            if isinstance(config, Reinforcement):
                config, may_differ = resolved(config), MAY_DIFFER_OF_RL
            check_same_experiment(self.workdir, config, may_differ)

    def run(self) -> None:
        """Trains, or goes on, and evaluates."""
        of_rl = isinstance(self.config, Reinforcement)
        run = (reinforce if of_rl else train)(self.config, self.workdir)
        print(f"{run.result.reason}; best step {run.result.best_step}", flush=True)
        targets = getattr(run.splits, self.split)
        wanted = run.splits.sequences.items[targets.positions]
        decoded = {
            rule: build.decode(
                run.config, run.catalogue, run.model, run.splits, targets, exclude_seen=rule
            )
            for rule in VARIANTS
        }
        if self.with_report:
            if of_rl:
                report_of_rl(run)
            as_run = dataclasses.replace(self, config=run.config)
            baselines = {
                rule: _baselines(as_run, run.splits, run.semantic_ids, rule) for rule in VARIANTS
            }
            evaluate(run, self.split, decoded, baselines=baselines)
        depth = run.config.decoding.num_beams
        arrays = {"targets": wanted, "num_beams": np.array(depth), "step": np.array(run.step)}
        for rule, name in VARIANTS.items():
            found = decoded[rule]
            ranks = rankings_of_beams(found.items, wanted, depth=depth)
            arrays[f"{name}/sid_ranks"] = ranks.sid_ranks
            arrays[f"{name}/prefix_hits"] = found.prefix_hits
        write_arrays(self.ranks_path, arrays)

    def ranks(self) -> dict[str, RunRanks]:
        """What `run` kept, by rule.

        Raises:
            TrainingError: if the file cannot be read.
        """
        try:
            kept = read_arrays(self.ranks_path)
            return {
                name: RunRanks(
                    kept["targets"],
                    kept[f"{name}/sid_ranks"],
                    kept[f"{name}/prefix_hits"],
                    int(kept["num_beams"]),
                )
                for name in VARIANTS.values()
            }
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise TrainingError(
                f"{self.ranks_path} cannot be read ({error}); delete it, and the same command makes it anew"
            ) from error


def jobs_of(config: Study, workdir: str, split: str, *, data_dir: str = "") -> list[Job]:
    """All runs of a study, seed by seed, so that a study that is cut off has whole comparisons."""
    if config.reference not in config.variants:
        raise TrainingError(
            f"reference={config.reference!r} is no variant; use one of {', '.join(config.variants)}"
        )
    if not config.seeds:
        raise TrainingError("seeds is empty: name at least one, such as seeds=(0,)")
    result = []
    for seed in config.seeds:
        for name, variant in config.variants.items():
            check_experiment(variant, f"variants.{name}.")
            field, start = _start_of(variant)
            experiment = variant.override(
                {
                    "seed": seed,
                    "data_dir": data_dir or variant.data_dir,
                    field: start.format(study=workdir, seed=seed),  # Another run of the study.
                }
            )
            of_rl = isinstance(experiment, Reinforcement)
            beams = MIN_BEAMS if of_rl else experiment.decoding.num_beams
            if beams < MIN_BEAMS:
                raise TrainingError(
                    f"variants.{name}.decoding.num_beams={beams}: variants are compared at {MIN_BEAMS}, so use as "
                    "many or more"
                )
            result.append(
                Job(
                    variant=name,
                    label=f"{config.labels.get(name, name)}, seed {seed}",
                    seed=seed,
                    config=experiment,
                    workdir=os.path.join(workdir, name, f"seed_{seed}"),
                    split=split,
                    with_report=seed == config.seeds[0],
                )
            )
    return result


def _start_of(config: Experiment | Reinforcement) -> tuple[str, str]:
    """The field of an experiment that says which run it starts from, and its value; "" for none."""
    if isinstance(config, (Reinforcement, ReinforcedExperiment)):
        return "init_from", config.init_from
    return "training.init_from", config.training.init_from


def compare(config: Study, workdir: str, all_jobs: Sequence[Job], *, command: str = "") -> None:
    """Compares the runs that are done, prints the table, writes the pages.

    Raises:
        EvaluationError: if runs that are done have other items, semantic IDs or targets than the first.
        TrainingError: if none is done.
    """
    done = [job for job in all_jobs if job.is_done]
    if not done:
        raise TrainingError(f"no run in {workdir} is done: there is nothing to compare")
    # As they were run, which the study's present configs may say otherwise of, such as the learning rate.
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

    # What is shown with them.
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
    write_atomically(path, json.dumps(comparison_pages.as_json(page), indent=2).encode())
    print(f"wrote {workdir}: comparison.md, comparison.json, comparison.html, figures/")


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
    """Of a variant's runs and their metrics' lines: best step, last step, minutes of training."""
    facts = {"best step": [], "last step": [], "minutes": []}
    for job, lines in zip(runs, curves, strict=True):
        facts["best step"].append(int(read_arrays(job.ranks_path)["step"]))
        facts["last step"].append(lines[-1]["step"])
        facts["minutes"].append(training_seconds(lines) / 60)
    return facts


def study_baselines(job: Job) -> dict[bool, Baselines]:
    """With seen items removed (True) or all allowed: the same for every run of a study, and so ranked once for all."""
    splits = data.load_data(job.config, job.workdir)
    check_data(job.workdir, splits, remedy="another workdir")
    semantic_ids = load_semantic_ids(job.workdir, splits)
    return {rule: _baselines(job, splits, semantic_ids, rule) for rule in VARIANTS}


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


def _baselines(job: Job, splits: Splits, semantic_ids: SemanticIds, exclude: bool) -> Baselines:
    """The study's."""
    config = job.config
    rule = VARIANTS[exclude].replace(" ", "_")
    return kept_baselines(
        os.path.join(job.folder, f"baselines_{job.split}_{rule}.npz"),
        splits,
        semantic_ids,
        getattr(splits, job.split),
        exclude=exclude,
        depth=ranking_depth(config),
        watched=watched_targets(config, splits),
        own=config.baselines,
    )


def _versions(job: Job) -> dict:
    return read_json(os.path.join(job.workdir, "versions.json"))
