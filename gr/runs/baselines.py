"""Baselines for any model, tuned and ranked once and kept in files.

Popularity, a Markov chain, item-kNN with the usual settings and tuned, the memory, EASE and SLIST. The last four are
tuned on validation, each under the rule it is ranked by, within the grids `GRIDS`.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr.data import Histories, Splits, Targets
from gr.data.files import read_arrays, read_json, write_arrays, write_json
from gr.evaluation import (
    EvaluationError,
    Ranker,
    Rankings,
    fit_ease,
    fit_item_knn,
    fit_markov_chain,
    fit_own_baseline,
    fit_popularity,
    fit_slist,
    memory_ranker,
    ndcg,
    rankings_of_baseline,
    tune_item_knn,
    tune_linear,
)
from gr.evaluation.baselines import KNN_GRID
from gr.evaluation.linear import EASE_GRID, MAX_ITEMS, SLIST_GRID
from gr.memory import fit_memory, tune_memory
from gr.memory.tuning import GRID as MEMORY_GRID
from gr.memory.tuning import STARTS as MEMORY_STARTS
from gr.runs.report import sid_numbers
from gr.semantic_ids import SemanticIds

GRIDS = {
    "item_knn_tuned": KNN_GRID,
    "memory": MEMORY_GRID,
    "ease": EASE_GRID,
    "slist": SLIST_GRID,
}
SETTINGS_FILE = "baseline_settings.json"  # Beside the rankings.
_RULES = {"seen items removed": True, "all items allowed": False}
_FORM = 1  # Of both files; raised where the same settings give other rankings than before.

Settings = dict[str, dict[str, float | None]]  # Tuned baseline -> argument -> value.


@dataclasses.dataclass(frozen=True)
class Baselines:
    """The baselines' rankings of the targets of one split under one rule."""

    rankings: dict[str, Rankings]  # By name.
    settings: Settings  # Of the tuned ones.
    validation: dict[
        str, float
    ]  # Name -> NDCG@10 on the validation users that a training run watches.
    left_out: dict[str, str]  # Name -> why it was not ranked.


def tune_baselines(
    splits: Splits, rules: Sequence[bool], *, linear_up_to: int = MAX_ITEMS
) -> dict[bool, Settings]:
    """The settings with the best NDCG@10 on validation, under each rule: seen items removed (True) or allowed.

    EASE and SLIST are left out if there are more than `linear_up_to` items.

    Raises:
        EvaluationError: if there are no validation targets.
    """
    validation = splits.validation
    if not len(validation):
        raise EvaluationError(
            "there are no validation targets to tune baselines by: keep a share for validation; a run of "
            f"`refit(..., keep_test=True)` has their settings in its folder, in baselines/{SETTINGS_FILE}"
        )
    past, wanted = (
        whole_histories(splits, validation),
        splits.sequences.items[validation.positions],
    )
    tuned: dict[bool, Settings] = {}
    for rule in rules:
        _, knn = tune_item_knn(splits, past, wanted, exclude=rule)
        memory, _ = tune_memory(splits, past, wanted, exclude=rule)
        tuned[rule] = {"item_knn_tuned": knn, "memory": dataclasses.asdict(memory.settings)}
    if splits.sequences.num_items <= linear_up_to:
        for rule, linear in tune_linear(splits, past, wanted, rules=rules).items():
            tuned[rule] |= linear
    return tuned


def kept_settings(
    path: str | os.PathLike[str], splits: Splits, *, linear_up_to: int = MAX_ITEMS
) -> dict[bool, Settings]:
    """`tune_baselines` for both rules, read from a JSON file if data and grids were the same, else written there."""
    made_of = _made_of(splits, linear_up_to)
    try:
        found = read_json(path)
        if found["made_of"] == made_of:
            return {rule: found["settings"][name] for name, rule in _RULES.items()}
    except (OSError, KeyError, TypeError, ValueError):
        pass  # Missing, broken or old: it is made again.
    tuned = tune_baselines(splits, list(_RULES.values()), linear_up_to=linear_up_to)
    keep_settings(path, splits, tuned, linear_up_to=linear_up_to)
    return tuned


def keep_settings(
    path: str | os.PathLike[str],
    splits: Splits,
    settings: Mapping[bool, Settings],
    *,
    linear_up_to: int = MAX_ITEMS,
) -> None:
    """Writes settings under both rules as those for these data, for `kept_settings`."""
    by_name = {name: settings[rule] for name, rule in _RULES.items()}
    write_json(path, {"made_of": _made_of(splits, linear_up_to), "settings": by_name})


def _made_of(splits: Splits, linear_up_to: int) -> dict[str, Any]:
    """Data and grids, as JSON has them."""
    sequences, checksum = splits.sequences, hashlib.sha256()
    for array in (
        *(sequences.items, sequences.offsets),
        *(splits.train.positions, splits.validation.positions, splits.test.positions),
    ):
        checksum.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    starts = [dataclasses.asdict(start) for start in MEMORY_STARTS]
    linear = sequences.num_items <= linear_up_to
    made_of = {"form": _FORM, "data": checksum.hexdigest(), "linear": linear}
    return json.loads(json.dumps(made_of | {"grids": GRIDS, "starts": starts}))


def rank_baselines(
    splits: Splits,
    semantic_ids: SemanticIds,
    targets: Targets,
    *,
    exclude: bool,
    depth: int,
    watched: Targets | None = None,
    own: Sequence[str] = (),
    settings: Settings | None = None,
    linear_up_to: int = MAX_ITEMS,
) -> Baselines:
    """Fits every baseline and ranks the targets.

    Args:
        splits: the data.
        semantic_ids: a hit is an item with the target's semantic ID.
        targets: the targets to predict.
        exclude: whether items of the user's history are not recommended; also applies to the tuning.
        depth: the largest k at which the rankings can be evaluated.
        watched: the validation targets that a training run watches; None: all.
        own: `module:name` of your own functions `Splits -> Ranker`; these are also their names in the results.
        settings: of the tuned baselines under this rule; None: tuned here.
        linear_up_to: most items for which EASE and SLIST are fitted, whose systems are dense.

    Raises:
        EvaluationError: if one of your own functions cannot be imported or returns something else.
    """
    own_rankers = _own_rankers(splits, own)  # Your own first, since one may fail.
    if settings is None:
        settings = tune_baselines(splits, [exclude], linear_up_to=linear_up_to)[exclude]
    rankers = {
        "popularity": fit_popularity(splits),
        "markov": fit_markov_chain(splits),
        "item_knn": fit_item_knn(splits),
        "item_knn_tuned": fit_item_knn(splits, **settings["item_knn_tuned"]),
        "memory": memory_ranker(splits, fit_memory(splits, **settings["memory"])),
    }
    rankers |= {
        name: fit(splits, **settings[name])
        for name, fit in (("ease", fit_ease), ("slist", fit_slist))
        if name in settings
    }
    num_items = splits.sequences.num_items
    why = f"{num_items:,} items; it is fitted for up to {linear_up_to:,}"
    rankings, validation = _ranked(
        rankers | own_rankers, splits, semantic_ids, targets, watched, exclude=exclude, depth=depth
    )
    left_out = {name: why for name in ("ease", "slist") if name not in rankers}
    return Baselines(rankings, settings, validation, left_out)


def kept_baselines(
    path: str,
    splits: Splits,
    semantic_ids: SemanticIds,
    targets: Targets,
    *,
    exclude: bool,
    depth: int,
    watched: Targets,
    own: Sequence[str] = (),
    linear_up_to: int = MAX_ITEMS,
) -> Baselines:
    """`rank_baselines`, read from the `.npz` file at `path` if its inputs were the same, else written there.

    The tuned settings are kept in the same folder, as `kept_settings` does. Your own baselines are ranked anew each
    time, since their code may have changed.
    """
    own_rankers = _own_rankers(splits, own)
    beside = os.path.join(os.path.dirname(os.fspath(path)), SETTINGS_FILE)
    settings = kept_settings(beside, splits, linear_up_to=linear_up_to)[exclude]
    made_of = {"exclude": exclude, "depth": depth, "codes": semantic_ids.codes}
    made_of |= {"items": splits.sequences.items, "offsets": splits.sequences.offsets}
    made_of |= {"positions": targets.positions, "watched": watched.positions}
    made_of |= {"validation": splits.validation.positions, "train": splits.train.positions}
    made_of |= {"form": _FORM, "settings": json.dumps(settings, sort_keys=True)}
    made_of |= {"linear_up_to": linear_up_to}
    found = load_baselines(path)
    if found is not None and all(
        np.array_equal(found[1].get(name), of) for name, of in made_of.items()
    ):
        made = found[0]
    else:
        made = rank_baselines(
            splits,
            semantic_ids,
            targets,
            exclude=exclude,
            depth=depth,
            watched=watched,
            settings=settings,
            linear_up_to=linear_up_to,
        )
        arrays = {f"of/{name}": np.asarray(value) for name, value in made_of.items()}
        for name in ("settings", "validation", "left_out"):
            arrays[name] = np.array(json.dumps(getattr(made, name)))
        write_arrays(path, arrays | arrays_of_rankings(made.rankings))
    rankings, validation = _ranked(
        own_rankers, splits, semantic_ids, targets, watched, exclude=exclude, depth=depth
    )
    return dataclasses.replace(
        made, rankings=made.rankings | rankings, validation=made.validation | validation
    )


def load_baselines(path: str) -> tuple[Baselines, dict[str, np.ndarray]] | None:
    """The file of `kept_baselines`, and a record of its inputs; None if it is missing, broken or old."""
    try:
        arrays = read_arrays(path)
        parts = (json.loads(str(arrays[key])) for key in ("settings", "validation", "left_out"))
        made = Baselines(rankings_of_arrays(arrays), *parts)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # The file is made again.
    return made, {name[3:]: value for name, value in arrays.items() if name.startswith("of/")}


def arrays_of_rankings(rankings: Mapping[str, Rankings]) -> dict[str, np.ndarray]:
    """The arrays of a file with several rankings by name."""
    return {
        f"rankings/{name}/{field.name}": np.asarray(getattr(of_name, field.name))
        for name, of_name in rankings.items()
        for field in dataclasses.fields(Rankings)
    }


def rankings_of_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Rankings]:
    """The rankings of `arrays_of_rankings`; KeyError for an array that is missing."""
    names = dict.fromkeys(key.split("/")[1] for key in arrays if key.startswith("rankings/"))
    rankings = {}
    for name in names:
        fields = {f.name: arrays[f"rankings/{name}/{f.name}"] for f in dataclasses.fields(Rankings)}
        rankings[name] = Rankings(**fields | {"exclude": bool(fields["exclude"])})
    return rankings


def _own_rankers(splits: Splits, own: Sequence[str]) -> dict[str, Ranker]:
    return {name: fit_own_baseline(name, splits) for name in own}


def _ranked(
    rankers: Mapping[str, Ranker],
    splits: Splits,
    semantic_ids: SemanticIds,
    targets: Targets,
    watched: Targets | None,
    *,
    exclude: bool,
    depth: int,
) -> tuple[dict[str, Rankings], dict[str, float]]:
    """The rankings of the targets by name, and each ranker's NDCG@10 on the watched validation targets, if any."""
    watched = splits.validation if watched is None else watched
    sid_of_item = sid_numbers(semantic_ids)

    def ranked(ranker: Ranker, targets: Targets, depth: int) -> Rankings:
        past, wanted = whole_histories(splits, targets), splits.sequences.items[targets.positions]
        return rankings_of_baseline(ranker, past, wanted, sid_of_item, depth=depth, exclude=exclude)

    rankings = {name: ranked(ranker, targets, depth) for name, ranker in rankers.items()}
    if not len(watched):
        return rankings, {}
    validation = {
        name: float(ndcg(ranked(ranker, watched, 10).sid_ranks, 10).mean())
        for name, ranker in rankers.items()
    }
    return rankings, validation


def whole_histories(splits: Splits, targets: Targets) -> Histories:
    """Everything each user did before the target."""
    return Histories.of(splits.sequences, targets)
