"""Reinforcement learning of a trained run: value head first, then policy and value head together."""

import os
from collections.abc import Callable

from gr.runs.config_checks import check_experiment, check_monitor
from ml_collections import ConfigDict

from gr.data import Splits, TrainBatches
from gr.rl import ActorCritic, Environment
from gr.runs import build, build_rl, keys
from gr.runs.rl_report import write_rl_report
from gr.runs.train import validation
from gr.runs.value_evaluation import ValueEvaluation
from gr.runs.workdir import (
    VALUE_FOLDER,
    check_config_of,
    check_data,
    has_begun,
    keep,
    load_run,
    occupied,
    saved_config,
    take_semantic_ids,
)
from gr.training import (
    Checkpointer,
    FitResult,
    MetricWriter,
    TrainingError,
    TrainState,
    fit,
    make_mesh,
    restore_model,
)

# What may change when a run is resumed: see `experiments.train`. Not `rl.eval_users`, who may not be learnt from.
MAY_DIFFER = (
    "data_dir",
    "data.path",
    "init_from",  # Its model is in this run's own checkpoints.
    "init_from_other_data",
    "rl.checkpoint_every",
    "rl.clip_norm",
    "rl.eval_every",
    "rl.learning_rate",
    "rl.log_every",
    "rl.patience",
)


def resolved(config: ConfigDict) -> ConfigDict:
    """The whole config of a run: the supervised run's, with this experiment's fields.

    Raises:
        ConfigError: if the config is of no reinforcement learning, or cannot be used.
        TrainingError: if there is no supervised run.
    """
    check_experiment(config, of_rl=True)
    init_from = config.init_from
    if not init_from:
        raise TrainingError(
            "init_from is empty: name the workdir of a supervised run, --config.init_from=WORKDIR"
        )
    merged = saved_config(init_from)
    if build_rl.is_rl(merged):
        raise TrainingError(f"init_from={init_from} is a run of reinforcement learning itself")
    for name in build_rl.FIELDS:
        merged[name] = config[name]
    merged.init_from = init_from
    merged.data_dir = config.data_dir or merged.data_dir
    check_monitor(merged)
    return merged


def reinforce(config: ConfigDict, workdir: str) -> FitResult:
    """Value head, then policy and value head: trains into the workdir, or goes on with the run that it holds.

    Raises:
        TrainingError: if the workdir holds a run of another config, or training fails.
        TrainingInterrupted: after Ctrl-C or SIGTERM, when the state has been saved.
    """
    with occupied(workdir):
        return _reinforce(config, workdir)


def _reinforce(config: ConfigDict, workdir: str) -> FitResult:
    check_config_of(workdir, config, MAY_DIFFER)
    start = load_run(
        config.init_from,
        data_dir=config.data_dir,
        other_data=config.init_from_other_data,
        remedy="--config.init_from_other_data",
    )
    if has_begun(workdir):
        check_data(workdir, start.splits, resume=True)
    else:
        take_semantic_ids(config.init_from, start.splits, workdir)
    environment = build_rl.make_environment(start.catalogue, start.splits)
    batches = build_rl.make_batches(config, start.splits)
    head = build_rl.make_value_head(config, start.catalogue.semantic_ids.num_levels)
    model = ActorCritic(start.model, head)
    print(
        f"{config.policy.name} with search {config.search.name}: {build.num_parameters(start.model):,} parameters of "
        f"the policy, {build.num_parameters(head):,} of the value head; {config.rl.num_steps:,} steps of "
        f"{batches.targets_per_batch:.0f} users"
    )
    keep(workdir, config, start.splits)
    if config.value.learn and config.value.pretrain_steps:
        model = _pretrain_value(config, workdir, environment, start.splits, batches, model)
    return _fit(
        config,
        workdir,
        environment,
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


def report(config: ConfigDict, workdir: str) -> str:
    """Writes the report of a run that has ended and returns its path."""
    run = load_run(workdir, data_dir=config.data_dir)
    # The start has the same data and semantic IDs.
    start = restore_model(config.init_from, build.make_model(config, run.catalogue.semantic_ids))
    evaluate = validation(config, run.catalogue, run.splits, config.rl.eval_users)
    environment = build_rl.make_environment(run.catalogue, run.splits)
    return write_rl_report(run, environment, evaluate(start), evaluate(run.model))


def _pretrain_value(
    config: ConfigDict,
    workdir: str,
    environment: Environment,
    splits: Splits,
    batches: TrainBatches,
    model: ActorCritic,
) -> ActorCritic:
    """The model with a value head that has learnt on the frozen backbone."""
    folder = os.path.join(workdir, VALUE_FOLDER)
    steps = config.value.pretrain_steps
    evaluation = ValueEvaluation.of(config, environment, splits, config.rl.eval_users)
    result = _fit(
        config,
        folder,
        environment,
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
    config: ConfigDict,
    workdir: str,
    environment: Environment,
    batches: TrainBatches,
    model: ActorCritic,
    *,
    num_steps: int,
    learn_policy: bool,
    **options,
) -> FitResult:
    """The loop of either phase."""
    rl = config.rl
    mesh = make_mesh(**config.mesh)
    optimizer, step = build_rl.make_optimisation(
        config, environment, num_steps, mesh, learn_policy=learn_policy
    )
    # The second phase begins with the same batches, but searches them with other random numbers.
    key = keys.make_key(config.seed, keys.POLICY_TRAINING if learn_policy else keys.VALUE_TRAINING)
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
    """An evaluation of a backbone as one of the model that it is part of."""
    return lambda model: evaluate(model.backbone)
