"""Train state, optimisers, the compiled step, the loop, checkpoints and records of a run.

A run: `make_optimizer` -> `TrainState.create` -> `make_train_step` -> `fit`, with a `Checkpointer` and a `MetricWriter`
on its workdir. `locked` keeps other processes out of the workdir, and `save_run_info` records the config. Afterwards
`restore_model(workdir, model, "best")` loads the model.

A workdir may be in an object store, such as `gs://bucket/run` (extra `gcs`). The tests cover all files there except the
arrays of checkpoints, which Orbax writes in another way; these were tried with an emulator of Google's store.
"""

from gr.training.checkpoints import (
    Checkpointer,
    Restored,
    checkpoint_step,
    checkpoints_directory,
    has_checkpoint,
    restore_model,
)
from gr.training.hosts import as_in_first, first_then_others, is_first, wait_for_all
from gr.training.lock import locked
from gr.training.loop import (
    ALL_STEPS,
    NO_MORE_BATCHES,
    OUT_OF_PATIENCE,
    FitResult,
    fit,
    rows_in_batch,
)
from gr.training.mesh import (
    make_mesh,
    mesh_line,
    of_all_processes,
    on_host,
    on_own_rows,
    replicate,
    shard_batch,
    shard_state,
    state_shardings,
)
from gr.training.metric_writer import MetricWriter, read_metrics
from gr.training.objectives import (
    LossConfig,
    SupervisedLoss,
    init_loss_state,
    supervised_loss,
)
from gr.training.optimizers import (
    Schedule,
    decay_mask,
    make_optimizer,
    make_schedule,
    with_master_copy,
)
from gr.training.provenance import (
    check_run_info,
    git_revision,
    load_config,
    save_run_info,
    versions,
)
from gr.training.state import (
    NO_BAD_STEP,
    NO_REWARD,
    MasterCopy,
    RewardFault,
    TrainingError,
    TrainState,
)
from gr.training.step import CompiledStep, LossFn, TrainStep, make_train_step
from gr.training.stopping import TrainingInterrupted

__all__ = [
    "ALL_STEPS",
    "NO_BAD_STEP",
    "NO_MORE_BATCHES",
    "NO_REWARD",
    "OUT_OF_PATIENCE",
    "Checkpointer",
    "CompiledStep",
    "FitResult",
    "LossConfig",
    "LossFn",
    "MasterCopy",
    "MetricWriter",
    "Restored",
    "RewardFault",
    "Schedule",
    "SupervisedLoss",
    "TrainState",
    "TrainStep",
    "TrainingError",
    "TrainingInterrupted",
    "as_in_first",
    "check_run_info",
    "checkpoint_step",
    "checkpoints_directory",
    "decay_mask",
    "first_then_others",
    "fit",
    "git_revision",
    "has_checkpoint",
    "init_loss_state",
    "is_first",
    "load_config",
    "locked",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "mesh_line",
    "of_all_processes",
    "on_host",
    "on_own_rows",
    "read_metrics",
    "replicate",
    "restore_model",
    "rows_in_batch",
    "save_run_info",
    "shard_batch",
    "shard_state",
    "state_shardings",
    "supervised_loss",
    "versions",
    "wait_for_all",
    "with_master_copy",
]
