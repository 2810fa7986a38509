"""The workdir of a run: the lock, its experiment, the fingerprint of its data, and its semantic IDs."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gr.data import Splits, fingerprint, fingerprint_differences
from gr.data.files import as_path, is_remote, read_json, write_atomically, write_json
from gr.runs import data
from gr.runs.experiment import Experiment, kind_of
from gr.semantic_ids import ItemEncoder, SemanticIdError, SemanticIds
from gr.semantic_ids.build import BOTH, INTERACTIONS, TEXT
from gr.training import (
    TrainingError,
    check_run_info,
    has_checkpoint,
    is_first,
    load_config,
    locked,
    save_run_info,
)

SEMANTIC_IDS_FILE = "semantic_ids.npz"
REPORT_FILE = "semantic_ids_report.json"  # Report of the semantic IDs, with their sources.
ENCODER_FILE = "item_encoder.npz"  # The fit that made the semantic IDs, for new items.
ADDED_ITEMS_FILE = "added_items.json"  # Texts of items that were added since.
DATA_FILE = "data.json"  # The fingerprint of the data.
VALUE_FOLDER = "value_head"  # Folder of reinforcement learning's first phase.

# Files that a starting run may find in its workdir, left by a run that failed or was killed.
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
    *(ADDED_ITEMS_FILE, DATA_FILE, ENCODER_FILE, REPORT_FILE, SEMANTIC_IDS_FILE, VALUE_FOLDER),
}

# A trained model scores items by their semantic IDs, so times and texts do not affect its recommendations.
OF_NO_MATTER_TO_A_MODEL = ("times", "texts")


def saved_experiment(workdir: str) -> Experiment:
    """The saved experiment of a run; fields newer than the run get their defaults.

    Raises:
        TrainingError: if there is none.
        ConfigError: if it has unknown fields.
    """
    saved = load_config(workdir)
    return kind_of(saved).from_saved(saved)


# Starting and resuming.


@contextlib.contextmanager
def occupied(workdir: str, *, of_study: bool = False) -> Iterator[None]:
    """Creates the workdir if needed, and locks it against other processes while entered.

    Args:
        workdir: folder of a run.
        of_study: whether it is the folder of a study instead.

    Raises:
        TrainingError: if it is not writable, holds foreign files, or another process works in it.
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
    """Whether a run has a checkpoint to resume from."""
    return has_checkpoint(workdir) or has_checkpoint(os.path.join(workdir, VALUE_FOLDER))


def _foreign(names: Sequence[str]) -> list[str]:
    return sorted(
        name
        for name in names
        if not (name in _LEFT or name.startswith(".") or name.endswith(".tmp"))
    )


def check_config_of(workdir: str, config: Experiment, may_differ: Sequence[str]) -> None:
    """Refuses an experiment that differs from that of the run in the workdir.

    A run that failed or was killed before its first checkpoint does not count: there a corrected call starts anew.

    Raises:
        TrainingError: if the experiment differs.
    """
    if has_begun(workdir):
        longer = (
            "The learning rate's schedule spans all steps, so that their number cannot change in a run; to go on from "
            f"its best model, train with workdir={workdir.rstrip('/')}_longer and training.init_from={workdir}"
        )
        if not as_path(os.path.join(workdir, DATA_FILE)).exists():  # The data are unknown.
            may_differ = [field for field in may_differ if field != "data.path"]
        ways_out = dict.fromkeys(("training.num_epochs", "training.max_steps"), longer)
        check_same_experiment(workdir, config, may_differ, ways_out=ways_out)


def check_same_experiment(
    workdir: str,
    config: Experiment,
    may_differ: Sequence[str],
    *,
    ways_out: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raises `TrainingError` if a workdir's run has another experiment, except for fields that `may_differ`.

    A field newer than the run must have its default.
    """
    before = saved_experiment(workdir).to_dict()
    check_run_info(
        workdir, config.to_dict(), before=before, may_differ=may_differ, ways_out=ways_out
    )


def keep(workdir: str, config: Experiment, splits: Splits) -> None:
    """Writes the experiment and the data's fingerprint; to be called right before training."""
    save_run_info(workdir, config.to_dict())
    if is_first():
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
    """Compares data with the training data of a run.

    Args:
        workdir: folder of the run.
        splits: the current data.
        allow: whether differences are only noted.
        resume: whether the run is resumed, which also requires the same times, and for rewards the same texts.
        remedy: how to allow other data, for the message.

    Raises:
        TrainingError: if they differ and this is not allowed.
    """
    before = _data_of(workdir)
    if before is None:
        return
    ignore = OF_NO_MATTER_TO_A_MODEL
    if resume:  # Supervised training already has its IDs; rewards may use the texts again.
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
    """Raises `TrainingError` if two runs were trained on different data, as far as known."""
    paths = [os.path.join(folder, DATA_FILE) for folder in (workdir, other)]
    if all(as_path(path).exists() for path in paths):
        differences = fingerprint_differences(
            _data_of(workdir), _data_of(other), ignore=OF_NO_MATTER_TO_A_MODEL
        )
        if differences:
            raise TrainingError(
                f"{other} was trained on other data than {workdir}: {'; '.join(differences)}; only runs on the same "
                "data can be compared"
            )


def _data_of(workdir: str) -> dict[str, Any] | None:
    """The saved fingerprint; None, with a note, if the run is older than such files."""
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
    """The workdir's semantic IDs, in the order of the data's items."""
    path = os.path.join(workdir, SEMANTIC_IDS_FILE)
    return SemanticIds.load(path).select(splits.sequences.item_ids)


def make_semantic_ids(
    config: Experiment, splits: Splits, workdir: str
) -> tuple[SemanticIds, dict[str, Any]]:
    """Semantic IDs and their report: those in the workdir if made with the same settings, else made now.

    Raises:
        TrainingError: if the workdir's semantic IDs have no report of their settings.
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
        # A file, or the user's own function, may have changed.
        from_file = settings["path"] or settings["vectors"] not in (TEXT, INTERACTIONS, BOTH)
        if report["made_from"] == made_from and not from_file:
            print(f"semantic IDs: those of {path}")
            return load_semantic_ids(workdir, splits), report
        print(f"semantic IDs: made anew, those of {path} have other settings or data")
        as_path(path).unlink()  # Deleted first, so that a report never stands beside other IDs.
    fitted = data.load_semantic_ids(config, splits)
    report = fitted.report | {"made_from": made_from}
    for name in (ADDED_ITEMS_FILE, ENCODER_FILE):
        as_path(os.path.join(workdir, name)).unlink(missing_ok=True)
    write_json(report_path, report)
    if fitted.encoder is not None:
        fitted.encoder.save(os.path.join(workdir, ENCODER_FILE))
    fitted.semantic_ids.save(path)
    return fitted.semantic_ids, report


def take_semantic_ids(start: str, splits: Splits, workdir: str) -> SemanticIds:
    """Copies the semantic IDs of the run that this one starts from, and their fit, into its workdir."""
    semantic_ids = load_semantic_ids(start, splits)
    if not is_first():
        return semantic_ids
    encoder, mine = (as_path(os.path.join(folder, ENCODER_FILE)) for folder in (start, workdir))
    mine.unlink(missing_ok=True)
    if encoder.exists():
        write_atomically(mine, encoder.read_bytes())
    write_json(os.path.join(workdir, REPORT_FILE), {"made_from": {"init_from": start}})
    semantic_ids.save(os.path.join(workdir, SEMANTIC_IDS_FILE))
    return semantic_ids


def load_encoder(workdir: str, origin: str) -> ItemEncoder:
    """The fit that made the workdir's semantic IDs.

    Args:
        workdir: folder of the run.
        origin: the file that its semantic IDs were read from, if any, for the message.

    Raises:
        SemanticIdError: if there is none, or it is broken.
    """
    try:
        return ItemEncoder.load(os.path.join(workdir, ENCODER_FILE))
    except FileNotFoundError:
        how = f"were read from {origin}, without a fit" if origin else "have no saved fit"
        raise SemanticIdError(
            f"{workdir}: its semantic IDs {how} ({ENCODER_FILE} is missing), so that new items cannot get any by it; "
            "build IDs and train anew: semantic_ids.path='' and semantic_ids.vectors=text, or vectors=FILE.npz with "
            "item vectors of your own"
        ) from None


def _read_report(path: str) -> dict[str, Any]:
    try:
        report = read_json(path)
        return report if "made_from" in report else {"made_from": None, **report}
    except (FileNotFoundError, ValueError):
        raise TrainingError(
            f"{os.path.dirname(path)} holds {SEMANTIC_IDS_FILE}, but no {REPORT_FILE} says what they were made from; "
            "name such a file by semantic_ids.path=FILE, and another workdir"
        ) from None
