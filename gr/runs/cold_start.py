"""Items that training never saw: how often a run finds them, freely and constrained to them, beside content-kNN.

STATIC's claim (Su et al. 2026, arXiv 2602.22647): a generative model that decodes under a constraint to the new items
recommends items that it was never trained on. The split is `gr.data.cold_start`; semantic IDs are fitted on the other
items, and cold items get theirs by that fit (`gr.semantic_ids.fit_semantic_ids`).
"""

import os

import numpy as np

from gr.data.files import write_json
from gr.data.sequences import Targets
from gr.evaluation import (
    EvaluationError,
    Ranker,
    Rankings,
    fit_markov_chain,
    fit_popularity,
    random_recall,
    rankings_of_baseline,
    rankings_of_beams,
    recall_table,
    select_rankings,
    tune_content_knn,
)
from gr.reports import format_table
from gr.reports.numbers import number
from gr.runs import data, report
from gr.runs.baselines import whole_histories
from gr.runs.evaluate import ALONE, KS, VARIANTS, decode_under, ranking_depth
from gr.runs.mixture import Mixture, mixture_of
from gr.runs.run import Run
from gr.runs.workdir import load_encoder
from gr.semantic_ids import content_vectors
from gr.trie import ItemMask

GROUPS = {
    "in_catalogue": "targets in training's catalogue, whole catalogue decoded",
    "cold": "cold targets, whole catalogue decoded",
    "cold_constrained": "cold targets, decoding constrained to cold items",
}


def evaluate_cold_start(run: Run, split: str = "test", *, exclude_seen: bool | None = None) -> dict:
    """Recall and NDCG of in-catalogue and cold targets apart; returns the content of `metrics_SPLIT_cold.json`.

    Beside the model, with its memory and alone: content-kNN on the vectors whose text or content the semantic IDs
    cluster (its number of recent items tuned on validation, for each group), and without a constraint a Markov chain
    and popularity. Under the constraint also the expectation of a random order.

    Args:
        run: a run on the split "cold_start".
        split: "validation" or "test".
        exclude_seen: whether items of the history are left out; None: as in the run's config.

    Returns:
        `in_catalogue`, `cold` and `cold_constrained`: ranker -> metrics, see `gr.evaluation.recall_table`; and the
        counts and settings behind them.

    Raises:
        EvaluationError: if the run has no cold items, no target is one, or its IDs have no content.
    """
    splits, cold = run.splits, run.splits.cold
    if cold is None:
        raise EvaluationError(
            f"{run.workdir} has no cold items: train a run with data.split=cold_start"
        )
    targets, validation = run.targets(split), splits.validation
    exclude = run.config.decoding.exclude_seen if exclude_seen is None else exclude_seen
    depth = ranking_depth(run.config)
    items = splits.sequences.items
    is_cold = cold[items[targets.positions]]
    if not is_cold.any() or is_cold.all():
        raise EvaluationError(
            f"{is_cold.sum()} of {len(targets)} {split} targets are cold items: choose another data.cold_share"
        )
    cold_targets, ks = _some(targets, is_cold), tuple(k for k in KS if k <= depth)

    # The model, and if it has a memory, with it and alone.
    mixture, named = mixture_of(run, exclude), report.model_name(run.config)
    mixtures: dict[str, dict[bool, Mixture]] = {named: {}}
    if mixture is not None:
        mixtures = {named: {exclude: mixture}, ALONE: {exclude: mixture.weighted(0.0)}}

    def of_models(chosen: Targets, allowed: ItemMask | None = None) -> dict[str, Rankings]:
        wanted = items[chosen.positions]
        seen = whole_histories(splits, chosen).hold(wanted)
        found = {
            name: decode_under(run, chosen, (exclude,), mixed, allowed=allowed)[exclude].items
            for name, mixed in mixtures.items()
        }
        return {
            name: rankings_of_beams(of, wanted, depth=depth, seen=seen, exclude=exclude)
            for name, of in found.items()
        }

    free = of_models(targets)
    only_cold = ItemMask.allow(run.catalogue.index, np.flatnonzero(cold).astype(np.int32))
    constrained = of_models(cold_targets, only_cold)

    # Baselines.
    config = run.config.semantic_ids
    options = data.semantic_id_options(run.config)
    vectors = content_vectors(
        load_encoder(run.workdir, config.path),
        splits,
        item_ids=options["item_ids"],
        order=options["order"],
    )
    sid_of_item = report.sid_numbers(run.semantic_ids)
    cold_validation = cold[items[validation.positions]]
    recents: dict[str, int | None] = {}

    def ranked(ranker: Ranker, chosen: Targets) -> Rankings:
        past, wanted = whole_histories(splits, chosen), items[chosen.positions]
        return rankings_of_baseline(ranker, past, wanted, sid_of_item, depth=depth, exclude=exclude)

    def content(group: str, chosen: Targets, watched: np.ndarray) -> Rankings:
        tuned_on = _some(validation, watched)
        ranker, recents[group] = tune_content_knn(
            splits,
            vectors,
            whole_histories(splits, tuned_on),
            items[tuned_on.positions],
            exclude=exclude,
            allowed=cold if group == "cold_constrained" else None,
        )
        return ranked(ranker, chosen)

    closed = {"markov": fit_markov_chain(splits), "popularity": fit_popularity(splits)}
    groups = {}
    for group, mask in (("in_catalogue", ~is_cold), ("cold", is_cold)):
        chosen = _some(targets, mask)
        groups[group] = {
            **{name: select_rankings(of_all, mask) for name, of_all in free.items()},
            "content_knn": content(
                group, chosen, cold_validation if group == "cold" else ~cold_validation
            ),
            **{name: ranked(ranker, chosen) for name, ranker in closed.items()},
        }
    groups["cold_constrained"] = {
        **constrained,
        "content_knn": content("cold_constrained", cold_targets, cold_validation),
    }
    metrics = {name: recall_table(rankings, ks=ks) for name, rankings in groups.items()}
    metrics["cold_constrained"]["random"] = random_recall(
        _cold_choices(run, cold_targets, exclude), ks=ks
    )
    result = {
        "split": split,
        "rule": VARIANTS[exclude],
        "items": splits.sequences.num_items,
        "cold_items": int(cold.sum()),
        "checkpoint_step": run.step,
        "content_knn_recent": recents,
        **metrics,
    }
    print(_table(result, max(k for k in ks if k <= 10)))
    path = os.path.join(run.workdir, f"metrics_{split}_cold.json")
    write_json(path, result)
    print(f"wrote {path}")
    return result


def _some(targets: Targets, rows: np.ndarray) -> Targets:
    return Targets(users=targets.users[rows], positions=targets.positions[rows])


def _cold_choices(run: Run, targets: Targets, exclude: bool) -> np.ndarray:
    """How many cold items may be in each target's list, [n]; 0 if the target itself may not."""
    cold = np.flatnonzero(run.splits.cold)
    sizes = np.full(len(targets), len(cold))
    if exclude:
        past = whole_histories(run.splits, targets)
        for item in np.unique(past.items[np.isin(past.items, cold)]):
            sizes -= past.hold(np.full(len(targets), item))
        sizes[past.hold(run.splits.sequences.items[targets.positions])] = 0
    return sizes


def _table(result: dict, k: int) -> str:
    """The groups' rows as text."""
    lines = [
        f"{result['cold_items']:,} of {result['items']:,} items were never trained on; {result['rule']}"
    ]
    for group, words in GROUPS.items():
        of_group = result[group]
        users = next(iter(of_group.values()))["users"]
        rows = [["", f"Recall@{k}", f"NDCG@{k}"]]
        rows += [
            [name, number(row[f"recall@{k}"]), number(row[f"ndcg@{k}"])]
            for name, row in of_group.items()
        ]
        lines += ["", f"{words}: {users:,}", format_table(rows)]
    return "\n".join(lines)
