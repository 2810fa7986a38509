r"""Trains a recommender on a config's data; the same command resumes a run that was stopped.

    python -m experiments.train --config=configs/ml100k.py --workdir=DIR [--config.FIELD=VALUE ...]

Writes into the workdir: the resolved `config.json`, `versions.json` and `data.json` (what the data were),
`semantic_ids.npz` with its report, `checkpoints/` (best and last), `metrics.jsonl` and TensorBoard event files. A run
that has a checkpoint goes on with the same config and data alone; before that, the corrected command begins anew.
"""

from collections.abc import Callable, Sequence

from absl import flags
from flax import nnx
from ml_collections import ConfigDict, config_flags

from experiments import build
from experiments.config_checks import check_experiment
from experiments.errors import one_line_errors, run_main
from experiments.workdir import (
    check_config_of,
    check_data,
    has_begun,
    keep,
    load_semantic_ids,
    make_semantic_ids,
    occupied,
    take_semantic_ids,
)
from gr.data import Histories, Splits
from gr.evaluation import EvaluationError, hit, ndcg, seen_note, sid_ranks
from gr.semantic_ids import report_table
from gr.training import (
    Checkpointer,
    FitResult,
    MetricWriter,
    fit,
    make_mesh,
    restore_model,
)

# What may change when a run is resumed: where the data lie (they are compared), how often the run is looked at, and
# what mends a run whose loss was not finite.
MAY_DIFFER = (
    "data.path",
    "data_dir",
    "training.checkpoint_every_epochs",
    "training.clip_norm",
    "training.eval_every_epochs",
    "training.eval_users",
    "training.init_from_other_data",  # Asked before the first step alone.
    "training.learning_rate",
    "training.log_every",
    "training.patience",
)


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Trains as the flags say."""
    del argv
    workdir = _WORKDIR.value
    result = train(_CONFIG.value, workdir)
    print(
        f"{result.reason}; best {_CONFIG.value.training.monitor} {result.best_value:.4f} on validation at step "
        f"{result.best_step:,}\n"
        f"wrote {workdir}; next: python -m experiments.evaluate --workdir={workdir} --split=test"
    )


def train(config: ConfigDict, workdir: str) -> FitResult:
    """Data, semantic IDs, model, loop: trains into the workdir, or goes on with the run that it holds.

    Raises:
        ConfigError: for a config that cannot be used.
        TrainingError: if the workdir is used by another process or holds a run of another config or other data, or
            training fails; and the errors of the rooms that read the data and build the semantic IDs and the model.
        TrainingInterrupted: after Ctrl-C or SIGTERM, when the state has been saved.
    """
    check_experiment(config)
    with occupied(workdir):
        return _train(config, workdir)


def _train(config: ConfigDict, workdir: str) -> FitResult:
    check_config_of(workdir, config, MAY_DIFFER)
    training, goes_on = config.training, has_begun(workdir)
    mesh = make_mesh(**config.mesh)

    # Data and semantic IDs.
    splits = build.load_data(config, workdir)
    sequences = splits.sequences
    print(
        f"{sequences.num_users:,} users, {sequences.num_items:,} items, {len(sequences.items):,} interactions; "
        f"targets: {len(splits.train):,} train, {len(splits.validation):,} validation, {len(splits.test):,} test"
    )
    if goes_on:
        check_data(workdir, splits, resume=True)
        semantic_ids = load_semantic_ids(workdir, splits)
    elif training.init_from:
        check_data(
            training.init_from,
            splits,
            allow=training.init_from_other_data,
            remedy="--config.training.init_from_other_data",
        )
        semantic_ids = take_semantic_ids(training.init_from, splits, workdir)
    else:
        semantic_ids, report = make_semantic_ids(config, splits, workdir)
        print(report_table(report))
    catalogue = build.make_catalogue(semantic_ids)

    # Model, optimiser, step.
    batches = build.make_train_batches(config, splits)
    steps_per_epoch = batches.batches_per_epoch
    total_steps = steps_per_epoch * training.num_epochs
    model = build.make_model(config, semantic_ids)
    if training.init_from and not goes_on:
        model = restore_model(training.init_from, model)
    print(
        f"{config.backbone}: {build.num_parameters(model):,} parameters; {total_steps:,} steps of "
        f"{batches.targets_per_batch:.0f} targets, {steps_per_epoch} an epoch"
    )
    optimizer, train_step = build.make_optimisation(config, catalogue, batches, mesh)
    state = build.make_state(config, semantic_ids, model, optimizer)

    # Loop.
    keep(workdir, config, splits)
    with Checkpointer(workdir) as checkpointer, MetricWriter(workdir) as writer:
        return fit(
            state,
            train_step,
            batches,
            total_steps=total_steps,
            log_every=training.log_every,
            eval_every=max(1, round(training.eval_every_epochs * steps_per_epoch)),
            checkpoint_every=max(1, round(training.checkpoint_every_epochs * steps_per_epoch)),
            evaluate=validation(config, catalogue, splits, training.eval_users),
            monitor=training.monitor,
            mode="min" if training.monitor == "loss" else "max",
            patience=training.patience or None,
            examples_in_batch=lambda batch: int(batch["weight"].sum()),
            checkpointer=checkpointer,
            writer=writer,
            mesh=mesh,
        )


def validation(
    config: ConfigDict, catalogue: build.Catalogue, splits: Splits, num_users: int
) -> Callable[[nnx.Module], dict[str, float]]:
    """Ranking metrics and loss of a backbone on evenly spaced validation users; 0: all.

    Raises:
        EvaluationError: if none of their targets can be hit, because all are in the histories and seen items are
            removed: the metrics would be 0 whatever is learnt.
    """
    targets = build.spread_targets(splits.validation, num_users)
    wanted = splits.sequences.items[targets.positions]
    seen = int(Histories.of(splits.sequences, targets).hold(wanted).sum())
    if config.decoding.exclude_seen and seen:
        remedy = "--config.decoding.exclude_seen=false"
        told = seen_note(seen, len(targets), impossible=True, split="validation", remedy=remedy)
        if seen == len(targets):
            raise EvaluationError(f"no validation metric can rise above 0. {told}")
        print(told)

    def evaluate(model: nnx.Module) -> dict[str, float]:
        decoded = build.decode(config, catalogue, model, splits, targets)
        ranks = sid_ranks(decoded.items, wanted)
        values = {"loss": decoded.loss}
        for k in (10, 20):
            if k <= config.decoding.num_beams:
                values[f"hit@{k}"] = float(hit(ranks, k).mean())
                values[f"ndcg@{k}"] = float(ndcg(ranks, k).mean())
        for depth, share in enumerate(decoded.prefix_recall, start=1):
            values[f"prefix_recall/{depth}"] = share
        return values

    return evaluate


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write into; resumes what it holds.")
    flags.mark_flags_as_required(["config", "workdir"])
    run_main(main)
