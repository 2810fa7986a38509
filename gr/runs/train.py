"""Supervised training of an experiment into a workdir; the same call resumes a stopped run."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from gr.data import Histories, Splits
from gr.evaluation import EvaluationError, hit, ndcg, sid_ranks
from gr.reports import seen_note
from gr.runs import build, data
from gr.runs.content import from_vectors
from gr.runs.experiment import Experiment, check_experiment
from gr.runs.mixture import check_tunable
from gr.runs.run import Run
from gr.runs.workdir import (
    check_config_of,
    check_data,
    has_begun,
    keep,
    load_semantic_ids,
    make_semantic_ids,
    occupied,
    saved_experiment,
    take_semantic_ids,
)
from gr.semantic_ids import SemanticIds, report_table
from gr.training import (
    Checkpointer,
    MetricWriter,
    as_in_first,
    checkpoint_step,
    first_then_others,
    fit,
    mesh_line,
    replicate,
    restore_model,
    shard_state,
)
from gr.trie import Catalogue

# Fields that may change when a run is resumed: the data's location (the data are compared), how often the run is
# evaluated and logged, the devices, and settings that help after a loss that was not finite.
MAY_DIFFER = (
    "baselines",  # Of evaluations alone.
    "data.path",
    "data_dir",
    "mesh.data",
    "mesh.model",
    "training.checkpoint_every_epochs",
    "training.clip_norm",
    "training.eval_every_epochs",
    "training.eval_users",
    "training.init_from_other_data",  # Used before the first step only.
    "training.learning_rate",
    "training.log_every",
    "training.patience",
)


def train(experiment: Experiment, workdir: str, *, frame: Any = None) -> Run:
    """Trains a supervised run into a workdir; resumes the run that it holds.

    Args:
        experiment: the settings, or a mapping with its fields, such as a `ConfigDict`.
        workdir: folder of the run; created if missing.
        frame: the interactions as a pandas data frame or Arrow table, for `data.format="table"`. They are saved in the
            workdir, so that the run can be loaded again.

    Returns:
        The run with its best model; `run.result` says how training ended.

    Raises:
        ConfigError: for an invalid experiment.
        TrainingError: if the workdir is used by another process or holds a run of another experiment or other data, or
            training fails.
        GrError: other errors of reading the data and of building semantic IDs and model.
        TrainingInterrupted: after Ctrl-C or SIGTERM, once the state is saved.
    """
    experiment = Experiment.from_config(experiment)
    with occupied(workdir):
        if frame is not None:
            experiment = data.keep_frame(experiment, frame, workdir)
        check_experiment(experiment)
        return train_in(experiment, workdir)


def train_in(config: Experiment, workdir: str) -> Run:
    """`train` in a workdir that is occupied already, of an experiment that is checked."""
    check_config_of(workdir, config, MAY_DIFFER)
    training, goes_on = config.training, has_begun(workdir)
    mesh = build.make_mesh_of(config)
    print(mesh_line(mesh))

    # Data and semantic IDs.
    splits = data.load_data(config, workdir)
    sequences = splits.sequences
    print(
        f"{sequences.num_users:,} users, {sequences.num_items:,} items, {len(sequences.items):,} interactions; "
        f"targets: {len(splits.train):,} train, {len(splits.validation):,} validation, {len(splits.test):,} test"
    )
    check_tunable(config.memory, splits)
    if not len(splits.validation):
        print(
            "note: there are no validation targets, so that no evaluation chooses a step: the last model counts"
        )
    if goes_on:
        check_data(workdir, splits, resume=True)
        semantic_ids = load_semantic_ids(workdir, splits)
    elif training.init_from:
        check_data(
            training.init_from,
            splits,
            allow=training.init_from_other_data,
            remedy="training.init_from_other_data=True",
        )
        semantic_ids = take_semantic_ids(training.init_from, splits, workdir)
    else:
        semantic_ids = first_then_others(
            lambda: _new_semantic_ids(config, splits, workdir),
            lambda: load_semantic_ids(workdir, splits),
        )
    known = catalogue = build.make_catalogue(config, semantic_ids, sequences=sequences)
    if splits.cold is not None:  # Training must not know the cold items.
        known = build.make_catalogue(config, semantic_ids, splits.cold, sequences)

    # Model, optimiser, step.
    batches = build.make_train_batches(config, splits, mesh)
    steps_per_epoch = batches.batches_per_epoch
    last_step = build.last_step(training, batches)
    model = build.make_model(config, semantic_ids, splits.cold)
    if training.init_from and not goes_on:
        before = saved_experiment(training.init_from).training.param_dtype
        model = restore_model(training.init_from, build.with_param_dtype(model, before))
        model = build.with_param_dtype(model, training.param_dtype)
    elif config.backbone == "item_decoder" and not goes_on:
        model = as_in_first(from_vectors(config, model, splits, semantic_ids, known))
        model = build.with_param_dtype(model, training.param_dtype)
    print(
        f"{config.backbone}: {build.num_parameters(model):,} parameters; {last_step:,} steps of "
        f"{batches.targets_per_batch:.0f} targets, {steps_per_epoch} an epoch"
    )
    optimizer, train_step = build.make_optimisation(config, semantic_ids, known, batches, mesh)
    state = build.make_state(config, semantic_ids, shard_state(model, mesh), optimizer)

    # Loop.
    keep(workdir, config, splits)
    with Checkpointer(workdir) as checkpointer, MetricWriter(workdir) as writer:
        result = fit(
            state,
            train_step,
            batches,
            total_steps=last_step,
            log_every=training.log_every,
            eval_every=max(1, round(training.eval_every_epochs * steps_per_epoch)),
            checkpoint_every=max(1, round(training.checkpoint_every_epochs * steps_per_epoch)),
            evaluate=validation(config, known, splits, training.eval_users),
            monitor=training.monitor,
            mode="min" if training.monitor == "loss" else "max",
            patience=training.patience or None,
            examples_in_batch=lambda batch: int(batch["weight"].sum()),
            checkpointer=checkpointer,
            writer=writer,
            mesh=mesh,
        )
    step = checkpoint_step(workdir, "best")
    best = restore_model(workdir, build.make_model(config, semantic_ids, splits.cold), step)
    best = build.on_grown_catalogue(config, best, semantic_ids, splits.cold, catalogue)
    return Run(workdir, config, splits, semantic_ids, catalogue, best, step, result=result)


def _new_semantic_ids(config: Experiment, splits: Splits, workdir: str) -> SemanticIds:
    semantic_ids, report = make_semantic_ids(config, splits, workdir)
    print(report_table(report))
    return semantic_ids


def validation(
    config: Experiment, catalogue: Catalogue, splits: Splits, num_users: int
) -> Callable[[nnx.Module], dict[str, float]] | None:
    """Ranking metrics and loss of a backbone on evenly spaced validation users, 0: all; None if there are none.

    Raises:
        EvaluationError: if no target can be hit, because all are in the histories and seen items are removed.
    """
    targets = build.spread_targets(build.validation_targets(splits), num_users)
    if not len(targets):
        return None
    wanted = splits.sequences.items[targets.positions]
    seen = int(Histories.of(splits.sequences, targets).hold(wanted).sum())
    if config.decoding.exclude_seen and seen:
        remedy = "decoding.exclude_seen=False"
        told = seen_note(seen, len(targets), impossible=True, split="validation", remedy=remedy)
        if seen == len(targets):
            raise EvaluationError(f"no validation metric can rise above 0. {told}")
        print(told)
    mesh = build.decoding_mesh(config)
    if mesh is not None:  # Once, rather than at every evaluation.
        catalogue = replicate(catalogue, mesh)

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
