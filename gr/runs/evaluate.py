"""Evaluates a trained run beside its baselines: metrics, tables and the report."""

import json
import os
from collections.abc import Mapping

import numpy as np

from gr.data import Splits, Targets
from gr.data.files import write_atomically
from gr.decoding import PRESETS
from gr.evaluation import (
    Decoded,
    EvaluationError,
    equal_budget,
    evaluate_with_baselines,
    rankings_of_beams,
    training_counts,
)
from gr.reports import format_metrics
from gr.runs import build, report
from gr.runs.baselines import Baselines, rank_baselines, whole_histories
from gr.runs.experiment import Experiment, ReinforcedExperiment
from gr.runs.run import Run
from gr.runs.workdir import check_same_data

VARIANTS = {True: "seen items removed", False: "all items allowed"}
KS = (1, 5, 10, 20)


def evaluate(
    run: Run,
    split: str = "test",
    decoded: Mapping[bool, Decoded] | None = None,
    *,
    baselines: Mapping[bool, Baselines] | None = None,
    beside: str | None = None,
    exclude_seen: bool | None = None,
) -> dict:
    """Decodes, ranks the baselines, compares and reports; returns the content of `metrics_SPLIT.json`.

    Args:
        run: the trained run.
        split: "validation" or "test".
        decoded: the model's candidates with seen items removed (True) and with all items allowed (False), if already
            computed.
        baselines: the baselines under the same two rules and to `ranking_depth`, if already computed.
        beside: workdir of another evaluated run, whose prefix recall the report shows beside this one's.
        exclude_seen: whether the report's main rule removes seen items; None: as in the run's config.

    Raises:
        EvaluationError: for an unknown split; if the other run was not evaluated on this split, or with other users
            or codes.
    """
    splits, targets = run.splits, run.targets(split)
    exclude = _main_rule(run, exclude_seen)
    other_run = None
    if beside is not None:  # Read first, so that an error is raised before decoding.
        other_run = report.read_other_run(beside, split)
        check_same_data(run.workdir, beside)
        report.check_beside(other_run, len(targets), run.semantic_ids.num_levels)

    # The model, under both rules.
    if decoded is None:
        decoded = {
            rule: build.decode(
                run.config,
                run.catalogue,
                run.model,
                splits,
                targets,
                exclude_seen=rule,
                progress=True,
            )
            for rule in (exclude, not exclude)
        }
    metrics = _beside_baselines(
        run,
        targets,
        {rule: found.items for rule, found in decoded.items()},
        exclude=exclude,
        depth=ranking_depth(run.config),
        baselines=baselines,
    )
    metrics |= {
        "split": split,
        "prefix_recall": {VARIANTS[rule]: found.prefix_recall for rule, found in decoded.items()},
        "loss": decoded[exclude].loss,
    }
    _print(run, metrics)
    metrics_path = os.path.join(run.workdir, f"metrics_{split}.json")
    write_atomically(metrics_path, json.dumps(metrics, indent=2).encode())
    report_path = os.path.join(run.workdir, f"report_{split}.html")
    report.write_run_report(
        report_path, run, targets, decoded[exclude], metrics, other_run=other_run
    )
    print(f"wrote {metrics_path}\nreport: {report_path}")
    return metrics


def evaluate_search(
    run: Run, split: str, decoder: str, budget: int, *, exclude_seen: bool | None = None
) -> dict:
    """As `evaluate`, with the candidates of another decoder; returns the content of the file that it writes."""
    splits, targets = run.splits, run.targets(split)
    if decoder not in PRESETS:
        raise EvaluationError(f"decoder={decoder!r}: use one of {', '.join(PRESETS)}")
    exclude = _main_rule(run, exclude_seen)
    config = equal_budget(PRESETS[decoder], budget, run.semantic_ids.num_levels)
    found = {
        rule: build.decode(
            run.config,
            run.catalogue,
            run.model,
            splits,
            targets,
            config,
            value_head=run.value_head,
            exclude_seen=rule,
            progress=True,
        )
        for rule in (True, False)
    }
    metrics = _beside_baselines(
        run,
        targets,
        {rule: searched.items for rule, searched in found.items()},
        exclude=exclude,
        depth=min(max(KS), config.num_candidates),
    )
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


def _main_rule(run: Run, exclude_seen: bool | None) -> bool:
    return run.config.decoding.exclude_seen if exclude_seen is None else exclude_seen


def _beside_baselines(
    run: Run,
    targets: Targets,
    items: Mapping[bool, np.ndarray],
    *,
    exclude: bool,
    depth: int,
    baselines: Mapping[bool, Baselines] | None = None,
) -> dict:
    """Metrics of ranked items `[n, M, C]` and baselines under the main rule, with the other rule's as `variants`."""
    splits, config = run.splits, run.config
    wanted = splits.sequences.items[targets.positions]
    seen = whole_histories(splits, targets).hold(wanted)
    ks = tuple(k for k in KS if k <= depth)
    if baselines is None:
        baselines = {
            rule: rank_baselines(
                splits,
                run.semantic_ids,
                targets,
                exclude=rule,
                depth=depth,
                watched=watched_targets(config, splits),
                own=config.baselines,
            )
            for rule in items
        }
    counts = training_counts(splits)
    by_rule = {
        rule: evaluate_with_baselines(
            rankings_of_beams(found, wanted, depth=depth, seen=seen, exclude=rule),
            baselines[rule].rankings,
            counts,
            ks=ks,
        )
        | {"rule": VARIANTS[rule], "item_knn_tuned_settings": baselines[rule].settings}
        for rule, found in items.items()
    }
    trained_under = config.decoding.exclude_seen
    return by_rule[exclude] | {
        "checkpoint_step": run.step,
        "variants": {VARIANTS[not exclude]: by_rule[not exclude]},
        "validation_baselines": {
            "rule": VARIANTS[trained_under],
            "ndcg@10": baselines[trained_under].validation,
        },
    }


def watched_targets(config: Experiment, splits: Splits) -> Targets:
    """The validation targets of the evaluations during training."""
    of_main = config.rl if isinstance(config, ReinforcedExperiment) else config.training
    return build.spread_targets(splits.validation, of_main.eval_users)


def _print(run: Run, metrics: Mapping) -> None:
    """Prints the tables at the largest available k up to 10."""
    k = max(k for k in KS if k <= 10 and f"ndcg@{k}" in metrics)
    print(format_metrics(metrics, model_name=run.config.backbone, k=k))


def ranking_depth(config: Experiment) -> int:
    """The largest k at which a run is evaluated."""
    return min(max(KS), config.decoding.num_beams)
