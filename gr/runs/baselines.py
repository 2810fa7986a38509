"""Baselines for any model (popularity, a Markov chain, item-kNN), ranked once and kept in a file."""

import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from gr.data import Histories, Splits, Targets
from gr.data.files import read_arrays, write_arrays
from gr.evaluation import (
    Ranker,
    Rankings,
    fit_item_knn,
    fit_markov_chain,
    fit_own_baseline,
    fit_popularity,
    ndcg,
    rankings_of_baseline,
    tune_item_knn,
)
from gr.runs.report import sid_numbers
from gr.semantic_ids import SemanticIds


@dataclasses.dataclass(frozen=True)
class Baselines:
    """The baselines' rankings of the targets of one split under one rule."""

    rankings: dict[str, Rankings]  # By name.
    settings: dict[str, float | None]  # Of the tuned item-kNN.
    validation: dict[
        str, float
    ]  # Name -> NDCG@10 on the validation users that a training run watches.


def rank_baselines(
    splits: Splits,
    semantic_ids: SemanticIds,
    targets: Targets,
    *,
    exclude: bool,
    depth: int,
    watched: Targets | None = None,
    own: Sequence[str] = (),
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

    Raises:
        EvaluationError: if one of your own functions cannot be imported or returns something else.
    """
    own_rankers = {
        name: fit_own_baseline(name, splits) for name in own
    }  # Your own first, since one may fail.
    validation = splits.validation
    watched = validation if watched is None else watched
    tuned, settings = tune_item_knn(
        splits,
        whole_histories(splits, validation),
        splits.sequences.items[validation.positions],
        exclude=exclude,
    )
    rankers = {
        "popularity": fit_popularity(splits),
        "markov": fit_markov_chain(splits),
        "item_knn": fit_item_knn(splits),
        "item_knn_tuned": tuned,
        **own_rankers,
    }
    sid_of_item = sid_numbers(semantic_ids)

    def ranked(ranker: Ranker, targets: Targets, depth: int) -> Rankings:
        past, wanted = whole_histories(splits, targets), splits.sequences.items[targets.positions]
        return rankings_of_baseline(ranker, past, wanted, sid_of_item, depth=depth, exclude=exclude)

    return Baselines(
        rankings={name: ranked(ranker, targets, depth) for name, ranker in rankers.items()},
        settings=settings,
        validation={
            name: float(ndcg(ranked(ranker, watched, 10).sid_ranks, 10).mean())
            for name, ranker in rankers.items()
        },
    )


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
) -> Baselines:
    """`rank_baselines`, read from the `.npz` file at `path` if its inputs were the same, else written there.

    Your own baselines are ranked anew each time, since their code may have changed.
    """
    if own:
        return rank_baselines(
            splits, semantic_ids, targets, exclude=exclude, depth=depth, watched=watched, own=own
        )
    made_of = {"exclude": exclude, "depth": depth, "codes": semantic_ids.codes}
    made_of |= {"items": splits.sequences.items, "offsets": splits.sequences.offsets}
    made_of |= {"positions": targets.positions, "watched": watched.positions}
    made_of |= {"validation": splits.validation.positions, "train": splits.train.positions}
    found = load_baselines(path)
    if found is not None and all(
        np.array_equal(found[1].get(name), of) for name, of in made_of.items()
    ):
        return found[0]
    made = rank_baselines(
        splits, semantic_ids, targets, exclude=exclude, depth=depth, watched=watched
    )
    arrays = {f"of/{name}": np.asarray(value) for name, value in made_of.items()}
    arrays["settings"] = np.array(json.dumps(made.settings))
    arrays["validation"] = np.array(json.dumps(made.validation))
    for name, rankings in made.rankings.items():
        for field in dataclasses.fields(Rankings):
            arrays[f"rankings/{name}/{field.name}"] = getattr(rankings, field.name)
    write_arrays(path, arrays)
    return made


def load_baselines(path: str) -> tuple[Baselines, dict[str, np.ndarray]] | None:
    """The file of `kept_baselines`, and a record of its inputs; None if it is missing, broken or old."""
    try:
        arrays = read_arrays(path)
        names = dict.fromkeys(key.split("/")[1] for key in arrays if key.startswith("rankings/"))
        rankings = {name: _rankings(arrays, f"rankings/{name}/") for name in names}
        settings, validation = (json.loads(str(arrays[key])) for key in ("settings", "validation"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # The file is made again.
    made_of = {name[3:]: value for name, value in arrays.items() if name.startswith("of/")}
    return Baselines(rankings, settings, validation), made_of


def _rankings(arrays: Mapping[str, np.ndarray], prefix: str) -> Rankings:
    fields = {field.name: arrays[prefix + field.name] for field in dataclasses.fields(Rankings)}
    return Rankings(**fields | {"exclude": bool(fields["exclude"])})


def whole_histories(splits: Splits, targets: Targets) -> Histories:
    """Everything each user did before the target."""
    return Histories.of(splits.sequences, targets)
