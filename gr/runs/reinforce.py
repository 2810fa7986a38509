"""Reinforcement learning of a trained run: value head first, then policy and value head together."""

import os
from collections.abc import Callable

from gr.data import Splits, TrainBatches
from gr.rl import ActorCritic
from gr.runs import build, build_rl, keys
from gr.runs.experiment import ReinforcedExperiment, Reinforcement, check_experiment
from gr.runs.rl_report import write_rl_report
from gr.runs.run import Run, load_run
from gr.runs.train import validation
from gr.runs.value_evaluation import ValueEvaluation
from gr.runs.workdir import (
    VALUE_FOLDER,
    check_config_of,
    check_data,
    has_begun,
    keep,
    occupied,
    saved_experiment,
    take_semantic_ids,
)
from gr.training import (
    Checkpointer,
    FitResult,
    MetricWriter,
    TrainingError,
    TrainState,
    checkpoint_step,
    fit,
    mesh_line,
    restore_model,
    shard_state,
)
from gr.trie import Catalogue

# Fields that may change when a run is resumed, see `gr.runs.train`. Not `rl.eval_users`: those users must not be
# trained on.
MAY_DIFFER = (
    "baselines",  # Of evaluations alone.
    "data_dir",
    "data.path",
    "init_from",  # Needed at the start only: later the model is in this run's checkpoints.
    "init_from_other_data",
    "mesh.data",
    "mesh.model",
    "rl.checkpoint_every",
    "rl.clip_norm",
    "rl.eval_every",
    "rl.learning_rate",
    "rl.log_every",
    "rl.patience",
)


def resolved(reinforcement: Reinforcement) -> ReinforcedExperiment:
    """The whole experiment: the supervised run's, with these fields.

    Raises:
        ConfigError: if it is invalid.
        TrainingError: if there is no supervised run.
    """
    check_experiment(reinforcement)
    init_from = reinforcement.init_from
    if not init_from:
        raise TrainingError(
            "init_from is empty: name the workdir of a supervised run, init_from=WORKDIR"
        )
    start = saved_experiment(init_from)
    if isinstance(start, ReinforcedExperiment):
        raise TrainingError(f"init_from={init_from} is a run of reinforcement learning itself")
    experiment = reinforcement.applied_to(start)
    check_experiment(experiment)
    return experiment


def reinforce(experiment: Reinforcement | ReinforcedExperiment, workdir: str) -> Run:
    """Trains the value head, then policy and value head, into a workdir; resumes the run that it holds.

    Args:
        experiment: the settings, or a mapping with the fields of a `Reinforcement`, such as a `ConfigDict`.
        workdir: folder of the run; created if missing.

    Returns:
        The run with its best policy and value head; `run.result` says how training ended.

    Raises:
        ConfigError: for an invalid experiment.
        TrainingError: if the workdir holds a run of another experiment, or training fails.
        TrainingInterrupted: after Ctrl-C or SIGTERM, once the state is saved.
    """
    if not isinstance(experiment, ReinforcedExperiment):
        experiment = resolved(Reinforcement.from_config(experiment))
    with occupied(workdir):
        return _reinforce(experiment, workdir)


def _reinforce(config: ReinforcedExperiment, workdir: str) -> Run:
    check_config_of(workdir, config, MAY_DIFFER)
    start = load_run(
        config.init_from,
        data_dir=config.data_dir,
        other_data=config.init_from_other_data,
        added_items=False,  # It trains on the data's items; others can be added to it afterwards.
        remedy="init_from_other_data=True",
    )
    if start.splits.cold is not None:
        raise TrainingError(
            f"{config.init_from} has cold items, which a search would find and training would see; start from a run "
            "with another data.split"
        )
    if not len(start.splits.validation):
        raise TrainingError(
            f"{config.init_from} has no validation targets, by which steps are chosen; start from a run that has, such "
            "as the one that it was refitted from"
        )
    if has_begun(workdir):
        check_data(workdir, start.splits, resume=True)
    else:
        take_semantic_ids(config.init_from, start.splits, workdir)
    catalogue = build_rl.with_vectors(start.catalogue, start.splits)
    mesh = build.make_mesh_of(config)
    print(mesh_line(mesh))
    batches = build_rl.make_batches(config, start.splits, mesh)
    head = build_rl.make_value_head(config, start.semantic_ids.num_levels, start.model)
    model = ActorCritic(build_rl.policy_of(start.model), head)
    print(
        f"{config.policy.name} with search {config.search.name}: {build.num_parameters(start.model):,} parameters of "
        f"the policy, {build.num_parameters(head):,} of the value head; {config.rl.num_steps:,} steps of "
        f"{batches.targets_per_batch:.0f} users"
    )
    keep(workdir, config, start.splits)
    if config.value.learn and config.value.pretrain_steps:
        model = _pretrain_value(config, workdir, catalogue, start.splits, batches, model)
    result = _fit(
        config,
        workdir,
        catalogue,
        batches,
        model,
        num_steps=config.rl.num_steps,
        learn_policy=True,
        evaluate=_of_policy(
            validation(config, start.catalogue, start.splits, config.rl.eval_users)
        ),
        monitor=config.rl.monitor,
        mode="min" if config.rl.monitor == "loss" else "max",
        patience=config.rl.patience or None,
    )
    step = checkpoint_step(workdir, "best")
    best = restore_model(workdir, build_rl.make_model(config, start.semantic_ids), step)
    return Run(
        workdir,
        config,
        start.splits,
        start.semantic_ids,
        start.catalogue,
        best.backbone,
        step,
        value_head=best.value_head if config.value.learn else None,
        result=result,
    )


def report(run: Run) -> str:
    """Writes the report of a finished run of reinforcement learning and returns its path."""
    config = run.reinforced
    # The supervised run has the same data and semantic IDs.
    start = restore_model(config.init_from, build.make_model(config, run.semantic_ids))
    evaluate = validation(config, run.catalogue, run.splits, config.rl.eval_users)
    catalogue = build_rl.with_vectors(run.catalogue, run.splits)
    return write_rl_report(run, catalogue, evaluate(start), evaluate(run.model))


def _pretrain_value(
    config: ReinforcedExperiment,
    workdir: str,
    catalogue: Catalogue,
    splits: Splits,
    batches: TrainBatches,
    model: ActorCritic,
) -> ActorCritic:
    """Trains the value head on the frozen backbone and returns the model."""
    folder = os.path.join(workdir, VALUE_FOLDER)
    steps = config.value.pretrain_steps
    evaluation = ValueEvaluation.of(config, catalogue, splits, config.rl.eval_users)
    result = _fit(
        config,
        folder,
        catalogue,
        batches,
        model,
        num_steps=steps,
        learn_policy=False,
        evaluate=evaluation.metrics,
        monitor="value/loss",
        mode="min",
        patience=None,
    )
    print(f"value head: {result.reason}, mean squared error {result.best_value:.4f} on validation")
    return restore_model(folder, model, "best")


def _fit(
    config: ReinforcedExperiment,
    workdir: str,
    catalogue: Catalogue,
    batches: TrainBatches,
    model: ActorCritic,
    *,
    num_steps: int,
    learn_policy: bool,
    **options,
) -> FitResult:
    """The training loop of both phases."""
    rl = config.rl
    mesh = build.make_mesh_of(config)
    optimizer, step = build_rl.make_optimisation(
        config, catalogue, num_steps, mesh, learn_policy=learn_policy
    )
    # The second phase starts with the same batches, but other random numbers for the search.
    key = keys.make_key(config.seed, keys.POLICY_TRAINING if learn_policy else keys.VALUE_TRAINING)
    model = shard_state(model, mesh)
    state = TrainState.create(model, optimizer, key, loss_state=model.backbone)
    with Checkpointer(workdir) as checkpointer, MetricWriter(workdir) as writer:
        return fit(
            state,
            step,
            batches,
            total_steps=num_steps,
            log_every=rl.log_every,
            eval_every=rl.eval_every,
            checkpoint_every=rl.checkpoint_every,
            examples_in_batch=lambda batch: int(batch["weight"].sum()),
            checkpointer=checkpointer,
            writer=writer,
            mesh=mesh,
            **options,
        )


def _of_policy(evaluate: Callable) -> Callable[[ActorCritic], dict[str, float]]:
    """Turns an evaluation of a backbone into one of the `ActorCritic` around it."""
    return lambda model: evaluate(model.backbone)
