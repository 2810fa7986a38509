"""The runs of a study, what is kept of each, and the comparison that is written."""

import dataclasses
import datetime
import importlib.util
import json
import os
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments import build, comparison_pages
from experiments.evaluate import VARIANTS, evaluate
from experiments.train import MAY_DIFFER, train
from experiments.workdir import load_run
from gr.data.files import write_atomically
from gr.evaluation import RunRanks, compare_runs, rankings_of_beams
from gr.training import TrainingError, read_metrics, save_run_info


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a study."""

    variant: str
    label: str
    seed: int
    config: dict  # Resolved, of the experiment.
    workdir: str
    split: str
    with_report: bool  # Whether the whole evaluation is made too: baselines and the run's report.

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
        return os.path.exists(self.ranks_path)

    def check(self) -> None:
        """Raises `TrainingError` if its folder holds a run with another configuration."""
        if os.path.exists(os.path.join(self.workdir, "config.json")):
            save_run_info(self.workdir, self.config, may_differ=MAY_DIFFER, only_check=True)

    def run(self) -> None:
        """Trains, or goes on, and evaluates."""
        config = ConfigDict(self.config)
        result = train(config, self.workdir)
        print(f"{result.reason}; best step {result.best_step}", flush=True)
        run = load_run(self.workdir, data_dir=config.data_dir)
        targets = getattr(run.splits, self.split)
        wanted = run.splits.sequences.items[targets.positions]
        decoded = {
            rule: build.decode(
                run.config, run.catalogue, run.model, run.splits, targets, exclude_seen=rule
            )
            for rule in VARIANTS
        }
        if self.with_report:
            evaluate(run, self.split, decoded)
        depth = run.config.decoding.num_beams
        arrays = {"targets": wanted, "num_beams": np.array(depth), "step": np.array(run.step)}
        for rule, name in VARIANTS.items():
            found = decoded[rule]
            ranks = rankings_of_beams(found.items, wanted, depth=depth)
            arrays[f"{name}/sid_ranks"] = ranks.sid_ranks
            arrays[f"{name}/prefix_hits"] = found.prefix_hits
        with open(f"{self.ranks_path}.tmp", "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(f"{self.ranks_path}.tmp", self.ranks_path)

    def ranks(self) -> dict[str, RunRanks]:
        """What `run` kept, by rule.

        Raises:
            TrainingError: if the file cannot be read.
        """
        try:
            with np.load(self.ranks_path) as kept:
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


def study_of_files(paths: Mapping[str, str]) -> ConfigDict:
    """A study of experiment configs, name -> file; the first is the reference."""
    study = ConfigDict({"name": ", ".join(paths), "seeds": (0,), "labels": {}, "variants": {}})
    study.reference = next(iter(paths))
    for name, path in paths.items():
        if not name.isidentifier() or not os.path.isfile(path):
            raise TrainingError(f"--configs: {name}={path} is not NAME=FILE with an existing file")
        spec = importlib.util.spec_from_file_location(f"_study_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        study.variants[name] = module.get_config()
    return study


def jobs(config: ConfigDict, workdir: str, split: str, *, data_dir: str = "") -> list[Job]:
    """All runs of a study, seed by seed, so that a study that is cut off has whole comparisons."""
    if config.reference not in config.variants:
        raise TrainingError(
            f"reference={config.reference!r} is no variant; use one of {', '.join(config.variants)}"
        )
    result = []
    for seed in config.seeds:
        for name, variant in config.variants.items():
            experiment = variant.copy_and_resolve_references()
            experiment.seed = int(seed)
            if data_dir:
                experiment.data_dir = data_dir
            result.append(
                Job(
                    variant=name,
                    label=f"{config.labels.get(name, name)}, seed {seed}",
                    seed=int(seed),
                    config=json.loads(json.dumps(experiment.to_dict())),
                    workdir=os.path.join(workdir, name, f"seed_{seed}"),
                    split=split,
                    with_report=seed == config.seeds[0],
                )
            )
    return result


def compare(config: ConfigDict, workdir: str, all_jobs: Sequence[Job]) -> None:
    """Compares the runs that are done, prints the table, writes the pages."""
    done = [job for job in all_jobs if job.is_done]
    missing = [job.label for job in all_jobs if not job.is_done]
    if not done:
        raise TrainingError(f"no run in {workdir} is done: there is nothing to compare")
    kept = {(job.variant, job.seed): job.ranks() for job in done}
    others = [name for name in config.variants if name != config.reference]
    labels = {name: config.labels.get(name, name) for name in (config.reference, *others)}
    compared = {}
    for rule in VARIANTS.values():
        runs = {label: {} for label in labels.values()}
        for job in done:
            runs[labels[job.variant]][job.seed] = kept[job.variant, job.seed][rule]
        compared[rule] = compare_runs(runs, labels[config.reference])
    first = done[0]
    pages = comparison_pages.Comparison(
        title=config.name,
        reference=labels[config.reference],
        split=first.split,
        compared=compared,
        missing=missing,
        settings=settings([job for job in done if job.seed == first.seed], labels),
        training={
            labels[name]: training(done, name)
            for name in labels
            if any(j.variant == name for j in done)
        },
        baselines=_baselines(all_jobs),
        curves={
            labels[name]: {
                j.seed: read_metrics(os.path.join(j.workdir, "metrics.jsonl"))
                for j in done
                if j.variant == name
            }
            for name in labels
            if any(job.variant == name for job in done)
        },
        users=len(kept[first.variant, first.seed][next(iter(VARIANTS.values()))].targets),
        num_beams=first.config["decoding"]["num_beams"],
        versions=_versions(first.workdir),
        date=datetime.date.today().isoformat(),
    )
    comparison_pages.write(workdir, pages)
    print(comparison_pages.as_text(pages))
    path = os.path.join(workdir, "comparison.json")
    write_atomically(path, json.dumps(comparison_pages.as_json(pages), indent=2).encode())
    print(f"wrote {workdir}: comparison.md, comparison.json, comparison.html, figures/")


def settings(first_runs: Sequence[Job], labels: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """The fields in which variants differ: field -> label -> value."""
    flat = {labels[job.variant]: flattened(job.config) for job in first_runs}
    fields = sorted(set().union(*flat.values()) - {"seed", "data_dir"})
    values = {f: {label: of.get(f) for label, of in flat.items()} for f in fields}
    return {f: by for f, by in values.items() if len({json.dumps(v) for v in by.values()}) > 1}


def flattened(config: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested fields by dotted name."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def training(done: Sequence[Job], variant: str) -> dict[str, list[float]]:
    """Of a variant's runs: best step, last step, and training seconds between first and last line."""
    facts = {"best step": [], "last step": [], "minutes": []}
    for job in done:
        if job.variant == variant:
            lines = read_metrics(os.path.join(job.workdir, "metrics.jsonl"))
            with np.load(job.ranks_path) as kept:
                facts["best step"].append(int(kept["step"]))
            facts["last step"].append(lines[-1]["step"])
            facts["minutes"].append((lines[-1]["wall_time"] - lines[0]["wall_time"]) / 60)
    return facts


def _baselines(all_jobs: Sequence[Job]) -> dict[str, dict[str, float]]:
    """Baselines of the first run whose whole evaluation is there; they are the same for all."""
    for job in all_jobs:
        path = os.path.join(job.workdir, f"metrics_{job.split}.json")
        if job.is_done and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                metrics = json.load(file)
            return {"rule": metrics["rule"], **metrics["baselines"]}
    return {}


def _versions(workdir: str) -> dict:
    with open(os.path.join(workdir, "versions.json"), encoding="utf-8") as file:
        return json.load(file)
