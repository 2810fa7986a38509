"""A trained run, read from its workdir."""

import dataclasses
import functools
from typing import TYPE_CHECKING

from flax import nnx

from gr.data import Splits, Targets
from gr.evaluation import EvaluationError
from gr.models import ValueHead
from gr.runs import build, build_rl, data
from gr.runs.experiment import Experiment, ReinforcedExperiment
from gr.runs.new_items import with_added_items
from gr.runs.workdir import check_data, load_semantic_ids, saved_experiment
from gr.semantic_ids import SemanticIds
from gr.training import FitResult, TrainingError, checkpoint_step, restore_model
from gr.trie import Catalogue

if TYPE_CHECKING:
    from gr.runs.mixture import Mixture

SPLITS = ("validation", "test")  # Whose targets are ranked.


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run."""

    workdir: str
    config: Experiment
    splits: Splits
    semantic_ids: SemanticIds
    catalogue: Catalogue
    model: nnx.Module
    step: int  # Step of the model's checkpoint.
    value_head: ValueHead | None = None  # Set if the run trained one.
    result: FitResult | None = None  # How training ended, if this process trained it.

    def targets(self, split: str) -> Targets:
        """The targets of a split.

        Raises:
            EvaluationError: for a split that is not one of `SPLITS`, or of which the run has learnt.
        """
        if split not in SPLITS:
            raise EvaluationError(f"split={split!r}: use one of {', '.join(SPLITS)}")
        targets = getattr(self.splits, split)
        if not len(targets) and self.config.data.learn_from != "train":
            raise EvaluationError(
                f"{self.workdir} has learnt from the {split} targets (data.learn_from="
                f"{self.config.data.learn_from!r}), so that it cannot be evaluated on them"
            )
        return targets

    @functools.cached_property
    def mixture(self) -> "Mixture | None":
        """What `mixture_of` gives, read or fitted once."""
        from gr.runs.mixture import mixture_of  # It takes runs, so it imports this module.

        return mixture_of(self)

    @property
    def reinforced(self) -> ReinforcedExperiment:
        """The experiment of a run of reinforcement learning.

        Raises:
            TrainingError: if it is a supervised run.
        """
        if not isinstance(self.config, ReinforcedExperiment):
            raise TrainingError(f"{self.workdir} is no run of reinforcement learning")
        return self.config


def load_run(
    workdir: str,
    *,
    data_dir: str = "",
    which: str = "best",
    other_data: bool = False,
    added_items: bool = True,
    remedy: str = "other_data=True",
) -> Run:
    """Reads a workdir that `train` or `reinforce` wrote.

    Args:
        workdir: folder of the run.
        data_dir: folder of the data, if it was moved since training.
        which: "best" or "last" checkpoint.
        other_data: whether data other than the training data are accepted; the items must be among the run's.
        added_items: whether the catalogue holds the items that `add_items` added.
        remedy: how to allow other data, for messages.

    Raises:
        TrainingError: if there is no such run or checkpoint, or the data are not the run's.
        DataError: if the data are not found.
    """
    config = saved_experiment(workdir)
    if data_dir:
        config = dataclasses.replace(config, data_dir=data_dir)
    splits = data.load_data(config, workdir)
    check_data(workdir, splits, allow=other_data, remedy=remedy)
    trained, cold = load_semantic_ids(workdir, splits), splits.cold
    model, value_head = build.make_model(config, trained, cold), None
    if isinstance(config, ReinforcedExperiment):
        model = build_rl.make_model(config, trained)
    step = checkpoint_step(workdir, which)  # Read once: a run that is still training may change it.
    model = restore_model(workdir, model, step)
    if isinstance(config, ReinforcedExperiment):
        value_head = model.value_head if config.value.learn else None
        model = model.backbone
    if added_items:
        splits = with_added_items(workdir, splits)
    semantic_ids = load_semantic_ids(workdir, splits)
    catalogue = build.make_catalogue(config, semantic_ids, sequences=splits.sequences)
    return Run(
        workdir=workdir,
        config=config,
        splits=splits,
        semantic_ids=semantic_ids,
        catalogue=catalogue,
        model=build.on_grown_catalogue(config, model, trained, cold, catalogue),
        step=step,
        value_head=value_head,
    )
