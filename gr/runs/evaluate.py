"""Evaluates a trained run beside its baselines: metrics, tables and the report."""

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr.data import Splits, Targets
from gr.data.files import read_arrays, write_arrays, write_atomically
from gr.decoding import PRESETS, SearchConfig
from gr.evaluation import (
    Decoded,
    EvaluationError,
    Rankings,
    breakdown_by_class,
    equal_budget,
    evaluate_with_baselines,
    memory_ranker,
    rankings_of_baseline,
    rankings_of_beams,
    target_classes,
    training_counts,
)
from gr.evaluation.linear import MAX_ITEMS
from gr.reports import format_metrics
from gr.runs import build, report
from gr.runs.baselines import (
    Baselines,
    arrays_of_rankings,
    kept_baselines,
    rankings_of_arrays,
    whole_histories,
)
from gr.runs.experiment import Experiment, ReinforcedExperiment
from gr.runs.export import check_export, export_lists
from gr.runs.mixture import Mixture, mixtures_of
from gr.runs.run import Run
from gr.runs.workdir import check_same_data
from gr.semantic_ids import SemanticIds
from gr.training import is_first
from gr.trie import ItemMask

VARIANTS = {True: "seen items removed", False: "all items allowed"}
KS = (1, 5, 10, 20)
ALONE = "model alone"  # The row of a model without its memory.
_MORE = ("content", "discount")  # What a memory may have beside co-occurrence.


def evaluate(
    run: Run,
    split: str = "test",
    decoded: Mapping[bool, Decoded] | None = None,
    *,
    baselines: Mapping[bool, Baselines] | None = None,
    beside: str | None = None,
    exclude_seen: bool | None = None,
    rows: Mapping[str, str] | None = None,
    linear_up_to: int = MAX_ITEMS,
    export: str | os.PathLike[str] | None = None,
) -> dict:
    """Decodes, ranks the baselines, compares and reports; returns the content of `metrics_SPLIT.json`.

    Several processes share the users. The first one ranks the baselines and writes; the others return {}.

    Args:
        run: the trained run.
        split: "validation" or "test".
        decoded: the model's candidates with seen items removed (True) and with all items allowed (False), if already
            computed.
        baselines: the baselines under the same two rules and to `ranking_depth`, if already computed.
        beside: workdir of another evaluated run, whose prefix recall the report shows beside this one's.
        exclude_seen: whether the report's main rule removes seen items; None: as in the run's config.
        rows: name -> workdir of another evaluated run on the same data, whose model becomes a baseline of this name.
        linear_up_to: most items for which the baselines EASE and SLIST are fitted, whose systems are dense.
        export: a file that the model's lists under the main rule are written into, see `gr.data.ranked_lists`.

    Raises:
        DataError: for an export whose ending is unknown.
        EvaluationError: for an unknown split, or an export of several lists a user; if another run was not evaluated on
            this split, or with other users or codes.
    """
    targets = run.targets(split)
    exclude = _main_rule(run, exclude_seen)
    if export is not None:
        check_export(export, targets)
    other_run = None
    if beside is not None:  # Read first, so that an error is raised before decoding.
        other_run = report.read_other_run(beside, split)
        check_same_data(run.workdir, beside)
        report.check_beside(other_run, len(targets), run.semantic_ids.num_levels)
    others = rows_of_runs(run.workdir, split, rows or {})

    # The model, under both rules; if it has a memory, with it and alone.
    rules, depth = (exclude, not exclude), ranking_depth(run.config)
    mixtures = mixtures_of(run, rules)
    mixture = mixtures.get(exclude)
    if decoded is None:
        decoded = decode_under(run, targets, rules, mixtures)
    if mixtures:
        # With a weight of 0 the search is the model's own, by the program that is compiled already.
        without = {rule: of_rule.weighted(0.0) for rule, of_rule in mixtures.items()}
        alone = decode_under(run, targets, rules, without)
    if not is_first():
        return {}
    rankings = _rankings(
        run, targets, {rule: found.items for rule, found in decoded.items()}, depth
    )
    if export is not None:
        export_lists(export, run, targets, decoded[exclude], mixture, exclude=exclude)
    if mixture is not None:
        of_alone = _rankings(
            run, targets, {rule: found.items for rule, found in alone.items()}, depth
        )
        others[ALONE] = {VARIANTS[rule]: ranked for rule, ranked in of_alone.items()}
        of_memories = _rankings_of_memories(run, targets, mixtures, depth)
        others |= of_memories
    metrics = _beside_baselines(
        run,
        split,
        rankings,
        exclude=exclude,
        baselines=baselines,
        others=others,
        linear_up_to=linear_up_to,
    )
    write_arrays(
        _rankings_path(run.workdir, split),
        arrays_of_rankings({VARIANTS[rule]: of_rule for rule, of_rule in rankings.items()}),
    )
    metrics |= {
        "split": split,
        "prefix_recall": {VARIANTS[rule]: found.prefix_recall for rule, found in decoded.items()},
        "loss": decoded[exclude].loss,
    }
    if mixture is not None:
        metrics["parts"] = [ALONE, *of_memories]
        metrics["memory"] = mixture.summary()
        metrics["variants"][VARIANTS[not exclude]]["memory"] = mixtures[not exclude].summary()
    _print(run, metrics)
    metrics_path = os.path.join(run.workdir, f"metrics_{split}.json")
    write_atomically(metrics_path, json.dumps(metrics, indent=2).encode())
    report_path = os.path.join(run.workdir, f"report_{split}.html")
    report.write_run_report(
        report_path, run, targets, decoded[exclude], metrics, other_run=other_run
    )
    print(
        f"wrote {metrics_path}{f' and {export}' if export is not None else ''}\nreport: {report_path}"
    )
    return metrics


def evaluate_search(
    run: Run, split: str, decoder: str, budget: int, *, exclude_seen: bool | None = None
) -> dict:
    """As `evaluate`, with the candidates of another decoder; returns the content of the file that it writes."""
    targets = run.targets(split)
    if decoder not in PRESETS:
        raise EvaluationError(f"decoder={decoder!r}: use one of {', '.join(PRESETS)}")
    exclude = _main_rule(run, exclude_seen)
    config = equal_budget(PRESETS[decoder], budget, run.semantic_ids.num_levels)
    rules = (True, False)
    found = decode_under(run, targets, rules, mixtures_of(run, rules), config)
    if not is_first():
        return {}
    depth = min(max(KS), config.num_candidates)
    rankings = _rankings(
        run, targets, {rule: searched.items for rule, searched in found.items()}, depth
    )
    metrics = _beside_baselines(run, split, rankings, exclude=exclude)
    main = found[exclude]
    metrics |= {
        "split": split,
        "decoder": decoder,
        "budget": budget,
        "evaluations": float(main.evaluations.mean()),
        "value_head": run.value_head is not None,
    }
    _print(run, metrics)
    print(f"{decoder}: {metrics['evaluations']:.1f} token evaluations a user, budget {budget}")
    path = os.path.join(run.workdir, f"metrics_{split}_{decoder}.json")
    write_atomically(path, json.dumps(metrics, indent=2).encode())
    print(f"wrote {path}")
    return metrics


def decode_under(
    run: Run,
    targets: Targets,
    rules: Sequence[bool],
    mixtures: Mapping[bool, Mixture],
    search: SearchConfig | None = None,
    *,
    allowed: ItemMask | None = None,
) -> dict[bool, Decoded]:
    """The candidates under each rule, of its mixture if there is one.

    Args:
        run: the trained run.
        targets: to be decoded.
        rules: whether seen items are removed.
        mixtures: what `mixtures_of` gives; {}: the model alone.
        search: the search; None: the experiment's beam search.
        allowed: the items that may be decoded; None: all.
    """
    return {
        rule: build.decode(
            run.config,
            run.catalogue,
            run.model,
            run.splits,
            targets,
            search,
            value_head=run.value_head,
            prior=mixtures[rule].for_targets(run.splits, targets, exclude=rule)
            if mixtures
            else None,
            exclude_seen=rule,
            allowed=allowed,
            progress=is_first(),
        )
        for rule in rules
    }


def _main_rule(run: Run, exclude_seen: bool | None) -> bool:
    return run.config.decoding.exclude_seen if exclude_seen is None else exclude_seen


def _rankings(
    run: Run, targets: Targets, items: Mapping[bool, np.ndarray], depth: int
) -> dict[bool, Rankings]:
    """The rankings of candidates `[n, M, C]` under each rule."""
    wanted = run.splits.sequences.items[targets.positions]
    seen = whole_histories(run.splits, targets).hold(wanted)
    return {
        rule: rankings_of_beams(found, wanted, depth=depth, seen=seen, exclude=rule)
        for rule, found in items.items()
    }


def _rankings_of_memories(
    run: Run, targets: Targets, mixtures: Mapping[bool, Mixture], depth: int
) -> dict[str, dict[str, Rankings]]:
    """Memories that are more than co-occurrence, which the baselines have: name -> name of a rule -> rankings."""
    past = whole_histories(run.splits, targets)
    wanted = run.splits.sequences.items[targets.positions]
    sid_of_item = report.sid_numbers(run.semantic_ids)
    found: dict[str, dict[str, Rankings]] = {}
    for rule, mixture in mixtures.items():
        memory = mixture.memory
        more = [] if memory is None else [n for n in _MORE if getattr(memory.settings, n)]
        if more:  # Tuned under this rule, so the other's may be of another kind.
            ranker = memory_ranker(run.splits, memory)
            found.setdefault(f"memory with {' and '.join(more)}", {})[VARIANTS[rule]] = (
                rankings_of_baseline(ranker, past, wanted, sid_of_item, depth=depth, exclude=rule)
            )
    return found


def _rankings_path(workdir: str, split: str) -> str:
    return os.path.join(workdir, f"rankings_{split}.npz")


def rows_of_runs(mine: str, split: str, rows: Mapping[str, str]) -> dict[str, dict[str, Rankings]]:
    """Name -> rule -> the rankings that another run's evaluation has kept, on the data of the workdir `mine`."""
    found = {}
    for name, workdir in rows.items():
        check_same_data(mine, workdir)
        path = _rankings_path(workdir, split)
        try:
            found[name] = rankings_of_arrays(read_arrays(path))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise EvaluationError(
                f"{path} cannot be read ({error}); first run python -m experiments.evaluate --workdir={workdir} "
                f"--split={split}"
            ) from error
    return found


def _beside_baselines(
    run: Run, split: str, rankings: Mapping[bool, Rankings], **options: Any
) -> dict:
    """`beside_baselines` for the split of a run."""
    metrics = beside_baselines(
        run.config,
        run.splits,
        run.semantic_ids,
        run.targets(split),
        rankings,
        kept=os.path.join(run.workdir, "baselines", split),
        **options,
    )
    return metrics | {"checkpoint_step": run.step}


def beside_baselines(
    config: Experiment,
    splits: Splits,
    semantic_ids: SemanticIds,
    targets: Targets,
    rankings: Mapping[bool, Rankings],
    *,
    kept: str,
    exclude: bool,
    baselines: Mapping[bool, Baselines] | None = None,
    others: Mapping[str, Mapping[str, Rankings]] | None = None,
    linear_up_to: int = MAX_ITEMS,
    name: str | None = None,
) -> dict:
    """Metrics of rankings and baselines under the main rule, with the other rule's as `variants`.

    Args:
        config: the experiment.
        splits: the data.
        semantic_ids: of the items; baselines are hit where one with the target's semantic ID is listed.
        targets: what was ranked.
        rankings: of the main row, under both rules.
        kept: how the paths of the files begin in which baselines are kept.
        exclude: whether the main rule removes seen items.
        baselines: under both rules, if already computed.
        others: name -> name of a rule -> rankings of further rows, which need not be there under both.
        linear_up_to: as for `evaluate`.
        name: of the main row, where it is not a run's own.

    Raises:
        EvaluationError: if a row has the name of a baseline.
    """
    depth = rankings[exclude].depth
    ks = tuple(k for k in KS if k <= depth)
    if baselines is None:
        baselines = {
            rule: kept_baselines(
                f"{kept}_{VARIANTS[rule].replace(' ', '_')}_at_{depth}.npz",
                splits,
                semantic_ids,
                targets,
                exclude=rule,
                depth=depth,
                watched=watched_targets(config, splits),
                own=config.baselines,
                linear_up_to=linear_up_to,
            )
            for rule in rankings
        }
    for row in [name, *(others or {})]:
        if row in baselines[exclude].rankings:
            raise EvaluationError(f"{row!r} is the name of a baseline: give that row another one")
    counts, classes = training_counts(splits), target_classes(splits, targets)
    by_rule = {}
    for rule, of_model in rankings.items():
        rows = baselines[rule].rankings | {
            name: of_run[VARIANTS[rule]]
            for name, of_run in (others or {}).items()
            if VARIANTS[rule] in of_run
        }
        metrics = evaluate_with_baselines(of_model, rows, counts, ks=ks)
        of_rows = {None: metrics, **metrics["baselines"]}
        for name, ranked in ((None, of_model), *rows.items()):
            of_rows[name]["breakdown"] = breakdown_by_class(
                ranked, classes, k=max(k for k in ks if k <= 10)
            )
        by_rule[rule] = metrics | {
            "rule": VARIANTS[rule],
            "item_knn_tuned_settings": baselines[rule].settings["item_knn_tuned"],
            "baseline_settings": baselines[rule].settings,
        }
    trained_under = config.decoding.exclude_seen
    return by_rule[exclude] | {
        "variants": {VARIANTS[not exclude]: by_rule[not exclude]},
        "breakdown_classes": classes.definitions(),
        "baselines_left_out": baselines[exclude].left_out,
        "validation_baselines": {
            "rule": VARIANTS[trained_under],
            "ndcg@10": baselines[trained_under].validation,
        },
    }


def watched_targets(config: Experiment, splits: Splits) -> Targets:
    """The validation targets of the evaluations during training."""
    of_main = config.rl if isinstance(config, ReinforcedExperiment) else config.training
    return build.spread_targets(build.validation_targets(splits), of_main.eval_users)


def _print(run: Run, metrics: Mapping) -> None:
    """Prints the tables at the largest available k up to 10."""
    k = max(k for k in KS if k <= 10 and f"ndcg@{k}" in metrics)
    print(format_metrics(metrics, model_name=report.model_name(run.config), k=k))


def ranking_depth(config: Experiment) -> int:
    """The largest k at which a run is evaluated."""
    return min(max(KS), config.decoding.num_beams)
