"""Supervised training of an experiment into a workdir; the same call goes on with a run that was stopped."""

from collections.abc import Callable

from flax import nnx
from gr.runs.config_checks import check_experiment
from ml_collections import ConfigDict

from gr.data import Histories, Splits
from gr.evaluation import EvaluationError, hit, ndcg, sid_ranks
from gr.reports import seen_note
from gr.runs import build
from gr.runs.workdir import (
    check_config_of,
    check_data,
    has_begun,
    keep,
    load_semantic_ids,
    make_semantic_ids,
    occupied,
    take_semantic_ids,
)
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
