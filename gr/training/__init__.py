"""Train state, optimisers, the compiled step, the loop, checkpoints and records of a run.

A run: `make_optimizer` -> `TrainState.create` -> `make_train_step` -> `fit`, with a `Checkpointer` and a
`MetricWriter` on its workdir, which `locked` keeps for it and `save_run_info` marks; afterwards
`restore_model(workdir, model, "best")`.
`value_loss` is what a value head minimises, alone by `value_objective` or beside a policy.

Reinforcement learning is the same run with `make_policy_step`: its model is an `ActorCritic`, its `loss_state` the
reference policy.
"""

from gr.training.actor_critic import ActorCritic, actor_critic_optimizer
from gr.training.checkpoints import (
    Checkpointer,
    Restored,
    checkpoint_step,
    checkpoints_directory,
    has_checkpoint,
    restore_model,
)
from gr.training.errors import TrainingError
from gr.training.interrupts import TrainingInterrupted
from gr.training.lock import locked
from gr.training.loop import (
    ALL_STEPS,
    NO_MORE_BATCHES,
    OUT_OF_PATIENCE,
    FitResult,
    fit,
    rows_in_batch,
)
from gr.training.mesh import make_mesh, replicate, shard_batch
from gr.training.metric_writer import MetricWriter, read_metrics
from gr.training.objectives import (
    LossConfig,
    SupervisedLoss,
    init_loss_state,
    item_token_table,
    supervised_loss,
)
from gr.training.optimizers import Schedule, decay_mask, make_optimizer, make_schedule
from gr.training.policy_step import LearningConfig, make_policy_step
from gr.training.provenance import (
    check_run_info,
    git_revision,
    load_config,
    save_run_info,
    versions,
)
from gr.training.rollouts import Environment, RolloutConfig, Rollouts, roll_out, scored_candidates
from gr.training.state import NO_BAD_STEP, TrainState
from gr.training.step import CompiledStep, LossFn, TrainStep, make_train_step
from gr.training.value_objective import ValueConfig, value_loss, value_objective

__all__ = [
    "ALL_STEPS",
    "NO_BAD_STEP",
    "NO_MORE_BATCHES",
    "OUT_OF_PATIENCE",
    "ActorCritic",
    "Checkpointer",
    "CompiledStep",
    "Environment",
    "FitResult",
    "LearningConfig",
    "LossConfig",
    "LossFn",
    "MetricWriter",
    "Restored",
    "RolloutConfig",
    "Rollouts",
    "Schedule",
    "SupervisedLoss",
    "TrainState",
    "TrainStep",
    "TrainingError",
    "TrainingInterrupted",
    "ValueConfig",
    "actor_critic_optimizer",
    "check_run_info",
    "checkpoint_step",
    "checkpoints_directory",
    "decay_mask",
    "fit",
    "git_revision",
    "has_checkpoint",
    "init_loss_state",
    "item_token_table",
    "load_config",
    "locked",
    "make_mesh",
    "make_optimizer",
    "make_policy_step",
    "make_schedule",
    "make_train_step",
    "read_metrics",
    "replicate",
    "restore_model",
    "roll_out",
    "rows_in_batch",
    "save_run_info",
    "scored_candidates",
    "shard_batch",
    "supervised_loss",
    "value_loss",
    "value_objective",
    "versions",
]
