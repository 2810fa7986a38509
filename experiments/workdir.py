"""What a trained workdir holds, read back: config, data, semantic IDs, model."""

import dataclasses
import os

from flax import nnx
from ml_collections import ConfigDict

from experiments import build
from gr.data import Splits
from gr.models import ValueHead
from gr.semantic_ids import SemanticIds
from gr.training import checkpoint_step, load_config, restore_model

SEMANTIC_IDS_FILE = "semantic_ids.npz"


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run."""

    workdir: str
    config: ConfigDict
    splits: Splits
    catalogue: build.Catalogue
    model: nnx.Module
    step: int  # Of the checkpoint that the model is from.
    value_head: ValueHead | None = None  # Of a run that trained one.


def load_run(workdir: str, *, data_dir: str = "", which: str = "best") -> Run:
    """Reads a workdir that `experiments.train` wrote.

    Args:
        workdir: of the run.
        data_dir: where its data lies now, if elsewhere than during training.
        which: "best" or "last" checkpoint.

    Raises:
        TrainingError: if there is no such run or checkpoint; `DataError` if its data is not found.
    """
    config = ConfigDict(load_config(workdir))
    if data_dir:
        config.data_dir = data_dir
    splits = build.load_data(config, workdir)
    semantic_ids = load_semantic_ids(workdir, splits)
    return Run(
        workdir=workdir,
        config=config,
        splits=splits,
        catalogue=build.make_catalogue(semantic_ids),
        model=restore_model(workdir, build.make_model(config, semantic_ids), which),
        step=checkpoint_step(workdir, which),
    )


def load_semantic_ids(workdir: str, splits: Splits) -> SemanticIds:
    """The workdir's semantic IDs, row by row those of the data's items."""
    path = os.path.join(workdir, SEMANTIC_IDS_FILE)
    return SemanticIds.load(path).select(splits.sequences.item_ids)
