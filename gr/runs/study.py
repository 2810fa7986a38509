"""The runs of a study, and the results kept of each."""

import dataclasses
import os
import zipfile

import numpy as np

from gr.data import Splits
from gr.data.files import as_path, read_arrays, write_arrays
from gr.evaluation import (
    EvaluationError,
    RunRanks,
    rankings_of_beams,
)
from gr.runs.baselines import Baselines, kept_baselines
from gr.runs.evaluate import VARIANTS, decode_under, evaluate, ranking_depth, watched_targets
from gr.runs.experiment import (
    Experiment,
    ReinforcedExperiment,
    Reinforcement,
    Study,
    check_experiment,
)
from gr.runs.mixture import mixtures_of
from gr.runs.reinforce import MAY_DIFFER as MAY_DIFFER_OF_RL
from gr.runs.reinforce import reinforce, resolved
from gr.runs.reinforce import report as report_of_rl
from gr.runs.run import SPLITS
from gr.runs.train import MAY_DIFFER, train
from gr.runs.workdir import (
    check_same_experiment,
    has_begun,
    has_config,
)
from gr.semantic_ids import SemanticIds
from gr.training import TrainingError

MIN_BEAMS = 10  # Metrics are compared at k = 10.


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a study."""

    variant: str
    label: str
    seed: int
    config: Experiment | Reinforcement  # The settings; for a begun run, its own.
    workdir: str
    split: str
    with_report: bool  # Whether the run also gets its own report.

    @property
    def folder(self) -> str:
        """The study's."""
        return os.path.dirname(os.path.dirname(self.workdir))

    @property
    def starts_from(self) -> str:
        """Folder of the run that it starts from; "" for none."""
        return _start_of(self.config)[1]

    @property
    def log(self) -> str:
        """Path of its log."""
        return os.path.join(self.workdir, "log.txt")

    @property
    def ranks_path(self) -> str:
        """Path of its evaluation's ranks; written last."""
        return os.path.join(self.workdir, f"ranks_{self.split}.npz")

    @property
    def is_done(self) -> bool:
        """Whether the run is finished."""
        return as_path(self.ranks_path).exists()

    def check(self) -> None:
        """Raises `TrainingError` if its folder holds a run with another configuration."""
        if has_begun(self.workdir) or (self.is_done and has_config(self.workdir)):
            config, may_differ = self.config, MAY_DIFFER
            if isinstance(config, Reinforcement):
                config, may_differ = resolved(config), MAY_DIFFER_OF_RL
            check_same_experiment(self.workdir, config, may_differ)

    def run(self) -> None:
        """Trains or resumes the run, and evaluates it."""
        of_rl = isinstance(self.config, Reinforcement)
        run = (reinforce if of_rl else train)(self.config, self.workdir)
        print(f"{run.result.reason}; best step {run.result.best_step}", flush=True)
        targets = run.targets(self.split)
        wanted = run.splits.sequences.items[targets.positions]
        rules = tuple(VARIANTS)
        decoded = decode_under(run, targets, rules, mixtures_of(run, rules))
        if self.with_report:
            if of_rl:
                report_of_rl(run)
            as_run = dataclasses.replace(self, config=run.config)
            baselines = {
                rule: baselines_of(as_run, run.splits, run.semantic_ids, rule) for rule in VARIANTS
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
        """The ranks that `run` saved, by rule.

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
    """All runs of a study, seed by seed, so that an interrupted study has complete comparisons."""
    if config.reference not in config.variants:
        raise TrainingError(
            f"reference={config.reference!r} is no variant; use one of {', '.join(config.variants)}"
        )
    if split not in SPLITS:
        raise EvaluationError(f"split={split!r}: use one of {', '.join(SPLITS)}")
    if not config.seeds:
        raise TrainingError("seeds is empty: name at least one, such as seeds=(0,)")
    whole = [
        name
        for name, variant in config.variants.items()
        if isinstance(variant, Experiment) and variant.ranks_whole_items
    ]
    if 0 < len(whole) < len(config.variants):  # Else it would fail only after training.
        raise TrainingError(
            f"variants.{whole[0]}.item_decoder.head='items' scores whole items, and has no prefixes to compare with "
            "those of the others: train it by itself, and name it by python -m experiments.evaluate --rows=NAME=WORKDIR"
        )
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
    """The field of an experiment that names the run it starts from, and its value; "" for none."""
    if isinstance(config, (Reinforcement, ReinforcedExperiment)):
        return "init_from", config.init_from
    return "training.init_from", config.training.init_from


def baselines_of(job: Job, splits: Splits, semantic_ids: SemanticIds, exclude: bool) -> Baselines:
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
