"""What a run keeps in its workdir: one process at a time, its experiment, what its data were, its semantic IDs."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gr.data import Splits, fingerprint, fingerprint_differences
from gr.data.files import as_path, is_remote, read_json, write_json
from gr.runs import data
from gr.runs.experiment import Experiment, ReinforcedExperiment
from gr.semantic_ids import SemanticIds
from gr.training import (
    TrainingError,
    check_run_info,
    has_checkpoint,
    load_config,
    locked,
    save_run_info,
)

SEMANTIC_IDS_FILE = "semantic_ids.npz"
REPORT_FILE = "semantic_ids_report.json"  # Of the semantic IDs, and what they were made from.
DATA_FILE = "data.json"  # The fingerprint of the data.
VALUE_FOLDER = "value_head"  # Of reinforcement learning's first phase.

# What a run may find in its workdir when it begins there: what one that failed or was killed has left.
_LEFT = {
    *(
        "checkpoints",
        "data",
        "log.txt",
        "metrics.jsonl",
        "run.lock",
        "tensorboard",
        "versions.json",
    ),
    *(DATA_FILE, REPORT_FILE, SEMANTIC_IDS_FILE, VALUE_FOLDER),
}

# A trained model scores items by their semantic IDs, so that neither times nor texts change what it recommends.
_OF_NO_MATTER_TO_A_MODEL = ("times", "texts")


def saved_experiment(workdir: str) -> Experiment:
    """A run's experiment; a field that is newer than the run has its default.

    Raises:
        TrainingError: if there is none.
        ConfigError: if it has fields that no experiment has.
    """
    saved = load_config(workdir)
    return (ReinforcedExperiment if "init_from" in saved else Experiment).from_saved(saved)


# The workdir of a run that begins or goes on.


@contextlib.contextmanager
def occupied(workdir: str, *, of_study: bool = False) -> Iterator[None]:
    """Makes the workdir if there is none, and keeps every other process out while entered.

    Args:
        workdir: of a run.
        of_study: whether it is the folder of several runs instead.

    Raises:
        TrainingError: if it cannot be written to, holds things that are not a run's, or another process works in it.
    """
    try:
        folder = as_path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        if not is_remote(workdir) and not os.access(workdir, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        known = of_study or has_config(workdir)
        foreign = [] if known else _foreign([entry.name for entry in folder.iterdir()])
    except (FileExistsError, NotADirectoryError):
        raise TrainingError(f"workdir={workdir} is no folder; name a new or empty one") from None
    except OSError as error:
        raise TrainingError(
            f"workdir={workdir} cannot be used ({error.strerror}); name a folder that can be written to"
        ) from error
    if foreign:
        more = ", ..." if len(foreign) > 3 else ""
        raise TrainingError(
            f"workdir={workdir} holds what is not of a run ({', '.join(foreign[:3])}{more}); name a new or empty "
            "folder"
        )
    with locked(workdir):
        yield


def has_config(workdir: str) -> bool:
    """Whether a folder is the workdir of a run."""
    return as_path(os.path.join(workdir, "config.json")).exists()


def has_begun(workdir: str) -> bool:
    """Whether a run has got so far that there is something to resume, and to lose."""
    return has_checkpoint(workdir) or has_checkpoint(os.path.join(workdir, VALUE_FOLDER))


def _foreign(names: Sequence[str]) -> list[str]:
    return sorted(
        name
        for name in names
        if not (name in _LEFT or name.startswith(".") or name.endswith(".tmp"))
    )


def check_config_of(workdir: str, config: Experiment, may_differ: Sequence[str]) -> None:
    """Refuses another experiment than that of the run which has begun in the workdir, if one has.

    One that failed or was killed before its first checkpoint binds nobody: there the corrected call begins anew.

    Raises:
        TrainingError: if the experiment differs.
    """
    if has_begun(workdir):
        longer = (
            "The learning rate's schedule spans all epochs, so that their number cannot change in a run; to go on from "
            f"its best model, train with workdir={workdir.rstrip('/')}_longer and training.init_from={workdir}"
        )
        if not as_path(os.path.join(workdir, DATA_FILE)).exists():  # Nothing else tells other data.
            may_differ = [field for field in may_differ if field != "data.path"]
        check_same_experiment(workdir, config, may_differ, ways_out={"training.num_epochs": longer})


def check_same_experiment(
    workdir: str,
    config: Experiment,
    may_differ: Sequence[str],
    *,
    ways_out: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raises `TrainingError` if a workdir's run has another experiment, but for fields that `may_differ`.

    A field that is newer than the run may only have its default.
    """
    before = saved_experiment(workdir).to_dict()
    check_run_info(
        workdir, config.to_dict(), before=before, may_differ=may_differ, ways_out=ways_out
    )


def keep(workdir: str, config: Experiment, splits: Splits) -> None:
    """Writes what a run is made from; to be called when nothing but training is left to do."""
    save_run_info(workdir, config.to_dict())
    write_json(os.path.join(workdir, DATA_FILE), fingerprint(splits))


# Data.


def check_data(
    workdir: str,
    splits: Splits,
    *,
    allow: bool = False,
    resume: bool = False,
    remedy: str = "other_data=True",
) -> None:
    """Compares data with those that a run was trained on.

    Args:
        workdir: of the run.
        splits: the data at hand.
        allow: whether other data are only noted.
        resume: whether the run is to go on, which needs the same times too, and for rewards the same texts.
        remedy: what allows other data.

    Raises:
        TrainingError: if they differ and that is not allowed.
    """
    before = _data_of(workdir)
    if before is None:
        return
    ignore = _OF_NO_MATTER_TO_A_MODEL
    if resume:  # Supervised training has its IDs already; rewards may look at the texts again.
        ignore = () if "init_from" in load_config(workdir) else ("texts",)
    differences = fingerprint_differences(before, fingerprint(splits), ignore=ignore)
    if not differences:
        return
    told = f"these are not the data of {workdir}: {'; '.join(differences)}"
    if allow:
        print(f"note: {told}")
    elif resume:
        raise TrainingError(
            f"{told}. Bring those data back to resume the run, or name another workdir"
        )
    else:
        raise TrainingError(f"{told}. Bring those data back, or ask for other ones by {remedy}")


def check_same_data(workdir: str, other: str) -> None:
    """Raises `TrainingError` if two runs, of which this is known, were trained on different data."""
    paths = [os.path.join(folder, DATA_FILE) for folder in (workdir, other)]
    if all(as_path(path).exists() for path in paths):
        differences = fingerprint_differences(
            _data_of(workdir), _data_of(other), ignore=_OF_NO_MATTER_TO_A_MODEL
        )
        if differences:
            raise TrainingError(
                f"{other} was trained on other data than {workdir}: {'; '.join(differences)}; only runs on the same "
                "data can be compared"
            )


def _data_of(workdir: str) -> dict[str, Any] | None:
    """The fingerprint that the workdir keeps; None, and a note, if the run is older than such files."""
    path = os.path.join(workdir, DATA_FILE)
    try:
        kept = read_json(path)
        if "checksums" not in kept:
            raise ValueError("it has no checksums")
        return kept
    except FileNotFoundError:
        print(f"note: {path} is missing, so that it is not known whether these are the run's data")
        return None
    except ValueError as error:
        raise TrainingError(
            f"{path} cannot be read ({error}); remove it if you are sure that these are the run's data"
        ) from error


# Semantic IDs.


def load_semantic_ids(workdir: str, splits: Splits) -> SemanticIds:
    """The workdir's semantic IDs, row by row those of the data's items."""
    path = os.path.join(workdir, SEMANTIC_IDS_FILE)
    return SemanticIds.load(path).select(splits.sequences.item_ids)


def make_semantic_ids(
    config: Experiment, splits: Splits, workdir: str
) -> tuple[SemanticIds, dict[str, Any]]:
    """Semantic IDs and their report, from the workdir if they were made there as the config says, else made now.

    Raises:
        TrainingError: if the workdir's were made nobody knows how.
    """
    path, report_path = (os.path.join(workdir, name) for name in (SEMANTIC_IDS_FILE, REPORT_FILE))
    settings = dataclasses.asdict(config.semantic_ids)
    checksums = fingerprint(splits)["checksums"]
    made_from = {
        "semantic_ids": settings,
        "data": {name: checksums[name] for name in ("item_ids", "sequences", "splits", "texts")},
    }
    if as_path(path).exists():
        report = _read_report(report_path)
        from_file = settings["path"] or settings["vectors"].endswith(".npy")  # It may have changed.
        if report["made_from"] == made_from and not from_file:
            print(f"semantic IDs: those of {path}")
            return load_semantic_ids(workdir, splits), report
        print(f"semantic IDs: made anew, those of {path} have other settings or data")
        as_path(path).unlink()  # First, so that no report stands beside the IDs of another.
    semantic_ids, report = data.load_semantic_ids(config, splits)
    report |= {"made_from": made_from}
    write_json(report_path, report)
    semantic_ids.save(path)
    return semantic_ids, report


def take_semantic_ids(start: str, splits: Splits, workdir: str) -> SemanticIds:
    """Puts the semantic IDs of the run that this one starts from into its workdir."""
    semantic_ids = load_semantic_ids(start, splits)
    write_json(os.path.join(workdir, REPORT_FILE), {"made_from": {"init_from": start}})
    semantic_ids.save(os.path.join(workdir, SEMANTIC_IDS_FILE))
    return semantic_ids


def _read_report(path: str) -> dict[str, Any]:
    try:
        report = read_json(path)
        return report if "made_from" in report else {"made_from": None, **report}
    except (FileNotFoundError, ValueError):
        raise TrainingError(
            f"{os.path.dirname(path)} holds {SEMANTIC_IDS_FILE}, but no {REPORT_FILE} says what they were made from; "
            "name such a file by semantic_ids.path=FILE, and another workdir"
        ) from None
