"""Train state, optimisers, the compiled step, the loop, checkpoints and records of a run."""

from gr.training.errors import TrainingError
from gr.training.mesh import make_mesh, replicate, shard_batch
from gr.training.optimizers import Schedule, decay_mask, make_optimizer, make_schedule
from gr.training.state import NO_BAD_STEP, TrainState
from gr.training.step import LossFn, TrainStep, make_train_step

__all__ = [
    "NO_BAD_STEP",
    "LossFn",
    "Schedule",
    "TrainState",
    "TrainStep",
    "TrainingError",
    "decay_mask",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "replicate",
    "shard_batch",
]
