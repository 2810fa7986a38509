"""What a trained workdir holds, read back: config, data, semantic IDs, model."""

import dataclasses
import os
from collections.abc import Mapping

from flax import nnx
from ml_collections import ConfigDict

from configs.base import base_config
from configs.base_rl import base_rl_config
from experiments import build, build_rl
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
    """Reads a workdir that `experiments.train` or `experiments.rl` wrote.

    Args:
        workdir: of the run.
        data_dir: where its data lies now, if elsewhere than during training.
        which: "best" or "last" checkpoint.

    Raises:
        TrainingError: if there is no such run or checkpoint; `DataError` if its data is not found.
    """
    config = saved_config(workdir)
    if data_dir:
        config.data_dir = data_dir
    splits = build.load_data(config, workdir)
    catalogue = build.make_catalogue(load_semantic_ids(workdir, splits))
    model, value_head = build.make_model(config, catalogue.semantic_ids), None
    if build_rl.is_rl(config):
        model = build_rl.make_model(config, catalogue)
    model = restore_model(workdir, model, which)
    if build_rl.is_rl(config):
        value_head = model.value_head if config.value.learn else None
        model = model.backbone
    return Run(
        workdir=workdir,
        config=config,
        splits=splits,
        catalogue=catalogue,
        model=model,
        step=checkpoint_step(workdir, which),
        value_head=value_head,
    )


def saved_config(workdir: str) -> ConfigDict:
    """A run's config; a field that is newer than the run has its default.

    Raises:
        TrainingError: if there is none.
    """
    saved, defaults = load_config(workdir), base_config().to_dict()
    if build_rl.is_rl(saved):
        defaults |= base_rl_config().to_dict()
    return ConfigDict(_filled(defaults, saved))


def _filled(defaults: Mapping, saved: Mapping) -> dict:
    """`saved` and, at every level, what it lacks."""
    both = {
        name: _filled(defaults[name], value)
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping)
        else value
        for name, value in saved.items()
    }
    return dict(defaults) | both


def load_semantic_ids(workdir: str, splits: Splits) -> SemanticIds:
    """The workdir's semantic IDs, row by row those of the data's items."""
    path = os.path.join(workdir, SEMANTIC_IDS_FILE)
    return SemanticIds.load(path).select(splits.sequences.item_ids)
