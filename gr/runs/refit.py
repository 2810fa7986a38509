"""A run trained anew on what was held out, with all that its validation chose: the one to recommend with."""

import dataclasses

from etils.epath import Path

from gr.data import learn_from
from gr.data.files import as_path, write_atomically
from gr.runs import build
from gr.runs.baselines import SETTINGS_FILE, keep_settings, kept_settings
from gr.runs.experiment import ConfigError, Experiment, ReinforcedExperiment, check_experiment
from gr.runs.mixture import chosen_memory, keep_mixture
from gr.runs.run import Run
from gr.runs.train import MAY_DIFFER, train_in
from gr.runs.workdir import ADDED_ITEMS_FILE, check_config_of, occupied
from gr.training import first_then_others, is_first


def refit(run: Run, workdir: str, *, keep_test: bool = False) -> Run:
    """Trains a run's experiment on all interactions; the same call resumes a stopped one.

    A run learns nothing from its validation and test targets, which are the newest interactions of each user. Once it
    has told how good its recommendations are, they are what is missing. A refit chooses nothing: the number of epochs,
    the memory's settings and its weight are those that validation chose in the run, and its `config.json` names them.
    Nothing is left to evaluate it on, but with `keep_test` the test.

    Args:
        run: a trained supervised run.
        workdir: folder of the new run.
        keep_test: whether test targets stay held out, to be evaluated; its baselines then learn from validation
            targets too, with the settings that were tuned in the run.

    Returns:
        The new run.

    Raises:
        ConfigError: for a run of reinforcement learning, or a memory weighted by a gate.
        DataError: for a cold-start split, which keeps items out of training.
        TrainingError: as for `train`.
        GrError: other errors of `train` and `mixture_of`.
    """
    config, before = refit_experiment(run, keep_test=keep_test), as_path(run.workdir)
    added = before / ADDED_ITEMS_FILE
    if added.exists():
        print(f"note: items of {added} are not among the data: add them to the new run again")
    with occupied(workdir):
        check_config_of(workdir, config, MAY_DIFFER)
        check_experiment(config)
        here = as_path(workdir)
        # A frame, or what was fetched.
        first_then_others(lambda: _copy(before / "data", here / "data"), lambda: None)
        new = train_in(config, workdir)
        if keep_test:
            _keep_what_is_tuned_to_evaluate(run, new)
    return new


def refit_experiment(run: Run, *, keep_test: bool = False) -> Experiment:
    """The experiment that `refit` trains."""
    config, training = run.config, run.config.training
    if isinstance(config, ReinforcedExperiment):
        raise ConfigError(
            f"{run.workdir} is a run of reinforcement learning, which cannot be refitted: refit the run it started from"
        )
    what = "validation" if keep_test else "all"
    before = build.make_train_batches(config, run.splits)
    after = build.make_train_batches(config, learn_from(run.splits, what))
    growth = after.batches_per_epoch / before.batches_per_epoch
    config = dataclasses.replace(config, memory=chosen_memory(run))
    return config.override(
        {
            "data.learn_from": what,
            "training.end_share": min(1.0, run.step / build.total_steps(training, before)),
            "training.max_steps": round(training.max_steps * growth),  # As many epochs.
            "training.init_from_other_data": bool(training.init_from),
        }
    )


def _keep_what_is_tuned_to_evaluate(run: Run, new: Run) -> None:
    """Gives the new run, which has no validation, the baselines' settings and the mixture under the other rule."""
    if run.config.memory.weight is not None:
        other = not run.config.decoding.exclude_seen
        keep_mixture(new, other, chosen_memory(run, other))
    if is_first():
        before, here = (as_path(of.workdir) / "baselines" / SETTINGS_FILE for of in (run, new))
        keep_settings(here, new.splits, kept_settings(before, run.splits))


def _copy(folder: Path, copy: Path) -> None:
    """Copies a folder's files, if it exists, into another one."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            _copy(path, copy / path.name)
        else:
            write_atomically(copy / path.name, path.read_bytes())
