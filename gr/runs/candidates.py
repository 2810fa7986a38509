"""Evaluates other people's ranked lists beside baselines, without a trained run: metrics, tables and the report."""

import dataclasses
import datetime
import json
import os
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from gr.data import Sequences, Splits, Targets
from gr.data.files import write_atomically
from gr.data.ranked_lists import RankedLists, read_pairs, read_ranked_lists
from gr.data.splits import with_test_targets
from gr.evaluation import EvaluationError, Rankings
from gr.evaluation.linear import MAX_ITEMS
from gr.evaluation.lists import (
    MatchedLists,
    list_facts,
    list_notes,
    match_lists,
    named,
    places_of_ids,
    rankings_of_matched,
    unknown_ids,
)
from gr.reports import Example, ReportData, format_metrics, target_notes, write_report
from gr.runs import data
from gr.runs.evaluate import KS, VARIANTS, beside_baselines, rows_of_runs
from gr.runs.experiment import Experiment
from gr.runs.report import SHOWN_CANDIDATES, examples_of
from gr.runs.run import SPLITS
from gr.runs.workdir import check_data, has_config
from gr.semantic_ids import SemanticIds
from gr.training.provenance import versions

Lists = str | os.PathLike[str] | RankedLists


def evaluate_candidates(
    experiment: Experiment,
    candidates: Mapping[str, Lists],
    workdir: str | os.PathLike[str],
    split: str = "test",
    *,
    ground_truth: str | os.PathLike[str] | None = None,
    exclude_seen: bool | None = None,
    rows: Mapping[str, str] | None = None,
    linear_up_to: int = MAX_ITEMS,
    skip_bad_rows: bool = False,
    command: str = "",
) -> dict:
    """Ranks targets by lists from files, beside baselines; returns the content of `metrics_SPLIT.json`.

    A hit is the target item itself. Both rules have a table: with all items allowed, lists count as they are; with seen
    items removed, what is in the user's history is left out of every list, and the items below move up.

    Args:
        experiment: its data, split, `decoding.exclude_seen` and own baselines; nothing is trained.
        candidates: name of a row -> file or folder, see `gr.data.ranked_lists`, or lists; the table compares the first
            with all others.
        workdir: folder of the results, which is not that of a run.
        split: "validation" or "test".
        ground_truth: a file of users and items, the targets instead of the split's; see `with_test_targets`. Users and
            items that the data lack are added to them.
        exclude_seen: whether the main rule removes seen items; None: as the experiment says.
        rows: name -> workdir of an evaluated run on the same data, whose model becomes a row.
        linear_up_to: most items for which the baselines EASE and SLIST are fitted.
        skip_bad_rows: leave bad rows of the files out and count them.
        command: that the report names.

    Raises:
        EvaluationError: for an unknown split, rows of one name, or rows of runs beside a ground truth.
        DataError: for a file that cannot be read, or none of whose users or items are in the data.
        TrainingError: for a run on other data.
    """
    rows = dict(rows or {})
    _check(workdir, candidates, rows, split, ground_truth)
    lists = {
        name: of
        if isinstance(of, RankedLists)
        else read_ranked_lists(of, skip_bad_rows=skip_bad_rows)
        for name, of in candidates.items()
    }

    # The targets.
    splits, notes = data.load_data(experiment, workdir), []
    for of_run in rows.values():
        check_data(of_run, splits, remedy="another config")
    if ground_truth is not None:
        pairs = read_pairs(ground_truth, skip_bad_rows=skip_bad_rows)
        splits, notes = with_ground_truth(splits.sequences, pairs, ground_truth)
    targets = getattr(splits, split)
    if not len(targets):
        raise EvaluationError(f"split={split!r} has no targets in these data; choose another")

    # The lists, under both rules.
    exclude = experiment.decoding.exclude_seen if exclude_seen is None else exclude_seen
    others = {name: _by_item(of) for name, of in rows_of_runs(str(workdir), split, rows).items()}
    depth = min([max(KS), *(of.depth for by_rule in others.values() for of in by_rule.values())])
    main = next(iter(candidates))
    matched = {name: match_lists(of, splits.sequences, name) for name, of in lists.items()}
    ranked = {
        name: {
            rule: rankings_of_matched(of, splits.sequences, targets, exclude=rule, depth=depth)
            for rule in (exclude, not exclude)
        }
        for name, of in matched.items()
    }
    facts = {
        name: list_facts(of, splits.sequences, targets, depth=depth) for name, of in matched.items()
    }
    for name, of in facts.items():
        notes += list_notes(name, of, depth=depth)
    further = {
        name: {VARIANTS[rule]: found for rule, found in by_rule.items()}
        for name, by_rule in ranked.items()
        if name != main
    }

    # The table, and what is written.
    metrics = beside_baselines(
        experiment,
        splits,
        _ids_of_items(splits.sequences),
        targets,
        ranked[main],
        kept=os.path.join(workdir, "baselines", split),
        exclude=exclude,
        others=further | others,
        linear_up_to=linear_up_to,
        name=main,
    )
    metrics |= {"split": split, "model": main, "hit": "item", "candidates": facts, "notes": notes}
    k = max(k for k in KS if k <= min(10, depth))
    print("\n\n".join([format_metrics(metrics, model_name=main, k=k), *notes]))
    metrics_path = os.path.join(workdir, f"metrics_{split}.json")
    write_atomically(metrics_path, json.dumps(metrics, indent=2).encode())
    report_path = os.path.join(workdir, f"report_{split}.html")
    told = {name: str(of) for name, of in candidates.items() if not isinstance(of, RankedLists)}
    _write_report(report_path, experiment, splits, targets, matched[main], metrics, told, command)
    print(f"wrote {metrics_path}\nreport: {report_path}")
    return metrics


def with_ground_truth(
    sequences: Sequences, pairs: pa.Table, source: object
) -> tuple[Splits, list[str]]:
    """The split whose test targets are the pairs of `user` and `item`, and notes on them.

    Users and items that the data lack become users without a history, and items without an interaction.

    Raises:
        DataError: if none of the users, or none of the items, are in the data.
    """
    notes, ids, places = [], {}, {}
    for what, known in (("user", sequences.user_ids), ("item", sequences.item_ids)):
        wanted = np.array(pairs[what].to_pylist(), dtype=str)
        new = np.unique(wanted[places_of_ids(wanted, known) < 0])
        if len(new) == len(np.unique(wanted)):
            raise unknown_ids(source, f"{what}s", new, known)
        if len(new):
            how = "their histories are empty" if what == "user" else "training has none of them"
            notes.append(
                f"{source}: {len(new):,} {what}s are not in the data ({named(new)}): {how}."
            )
        ids[what] = np.concatenate([known, new])
        places[what] = places_of_ids(wanted, ids[what])
    new_users = len(ids["user"]) - sequences.num_users
    no_text = np.full(len(ids["item"]) - sequences.num_items, "", dtype=object)
    sequences = dataclasses.replace(
        sequences,
        offsets=np.pad(sequences.offsets, (0, new_users), mode="edge"),
        user_ids=ids["user"],
        item_ids=ids["item"],
        item_fields={
            name: np.concatenate([texts, no_text]) for name, texts in sequences.item_fields.items()
        },
    )
    return with_test_targets(sequences, places["user"], places["item"]), notes


def _check(
    workdir: str | os.PathLike[str],
    candidates: Mapping[str, Lists],
    rows: Mapping[str, str],
    split: str,
    ground_truth: str | os.PathLike[str] | None,
) -> None:
    """Raises `EvaluationError` for arguments that do not go together."""
    if split not in SPLITS:
        raise EvaluationError(f"split={split!r}: use one of {', '.join(SPLITS)}")
    if not candidates:
        raise EvaluationError("candidates={}: name a file of ranked lists")
    if has_config(str(workdir)):
        raise EvaluationError(
            f"workdir={workdir} is that of a trained run, whose results would be overwritten; name another, and put "
            f"the run into the table by rows=ours={workdir}"
        )
    if twice := [name for name in rows if name in candidates]:
        raise EvaluationError(f"{twice[0]!r} names two rows: give one another name, NAME=FILE")
    if ground_truth is not None and (rows or split != "test"):
        raise EvaluationError(
            f"ground_truth={ground_truth} replaces the test targets: leave out rows= and split=. For a row of a run "
            "write its lists by experiments.recommend_all, and name them as candidates"
        )


def _by_item(by_rule: Mapping[str, Rankings]) -> dict[str, Rankings]:
    """Rankings in which a hit is the target itself, as it is for lists of items."""
    return {rule: dataclasses.replace(of, sid_ranks=of.item_ranks) for rule, of in by_rule.items()}


def _ids_of_items(sequences: Sequences) -> SemanticIds:
    """A semantic ID for each item alone: a hit is then the item itself."""
    codes = np.arange(sequences.num_items)[:, None]
    return SemanticIds(codes, (sequences.num_items,), sequences.item_ids)


# The report.


def _write_report(
    path: str,
    experiment: Experiment,
    splits: Splits,
    targets: Targets,
    matched: MatchedLists,
    metrics: Mapping,
    files: Mapping[str, str],
    command: str,
) -> None:
    """Writes the report; users are examples of the main row, under the main rule."""
    sequences, main, found = splits.sequences, metrics["model"], versions()
    data_ = ReportData(
        title=f"{experiment.name}: {main}" if experiment.name else main,
        dataset={
            "users": sequences.num_users,
            "items": sequences.num_items,
            "interactions": len(sequences.items),
            "targets": f"{len(targets):,} ({metrics['split']})",
        },
        model={f"lists of {name}": of["lists"] for name, of in metrics["candidates"].items()},
        metrics={main: metrics, **metrics["baselines"]},
        main_row=main,
        rule=metrics["rule"],
        hit_is_item=True,
        variants={
            rule: {main: of_rule, **of_rule["baselines"]}
            for rule, of_rule in metrics["variants"].items()
        },
        notes=[*target_notes(metrics), *metrics["notes"]],
        differences=metrics["differences"],
        p_values=metrics["p_values"],
        target_classes=metrics["breakdown_classes"],
        left_out=metrics["baselines_left_out"],
        examples=_examples(sequences, targets, matched, metrics["rule"] == VARIANTS[True]),
        config=experiment.to_dict() | {"candidates": files},
        versions=found,
        commands=[command] if command else [],
        date=datetime.date.today().isoformat(),
        revision=found.get("git_revision") or "",
    )
    write_report(path, data_)


def _examples(
    sequences: Sequences, targets: Targets, matched: MatchedLists, exclude: bool
) -> list[Example]:
    lists = matched.lists

    def candidates(row: int, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        number = matched.list_of_user[targets.users[row]]
        start, stop = (0, 0) if number < 0 else lists.offsets[number : number + 2]
        items = np.minimum(matched.items[start:stop], sequences.num_items)
        # Ranks alone have no scores to be shown.
        scores = np.full(len(items), np.nan) if lists.scores is None else lists.scores[start:stop]
        kept = ~np.isin(items, history) if exclude else np.ones(len(items), bool)
        return items[kept][:SHOWN_CANDIDATES, None], scores[kept][:SHOWN_CANDIDATES]

    return examples_of(sequences, targets, candidates)
