r"""Evaluates a trained run beside its baselines and writes the report.

    python -m experiments.evaluate --workdir=DIR --split=test

Prints the table, with seen items removed and with all items allowed; writes `metrics_SPLIT.json` and
`report_SPLIT.html` into the workdir. Baselines rank under the same rule as the model, with seen items removed if
`decoding.exclude_seen`: popularity, a first-order Markov chain, item-kNN as it is usually run (cosine, 100 neighbours,
the whole history), and a far stronger one whose neighbours, shrinkage and reach into the history are tuned on
validation.
"""

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
from absl import app, flags

from experiments import build, reporting
from experiments.errors import one_line_errors
from experiments.workdir import Run, load_run
from gr.data import Splits, Targets, histories
from gr.data.files import write_atomically
from gr.evaluation import (
    Decoded,
    Rankings,
    evaluate_rankings,
    evaluate_with_baselines,
    fit_item_knn,
    fit_markov_chain,
    fit_popularity,
    format_metrics,
    rankings_of_baseline,
    rankings_of_beams,
    training_counts,
    tune_item_knn,
)

SPLITS = ("validation", "test")
VARIANTS = {True: "seen items removed", False: "all items allowed"}
KS = (1, 5, 10, 20)


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Evaluates as the flags say."""
    del argv
    run = load_run(_WORKDIR.value, data_dir=_DATA_DIR.value, which=_CHECKPOINT.value)
    evaluate(run, _SPLIT.value)


def evaluate(run: Run, split: str, decoded: Mapping[bool, Decoded] | None = None) -> dict:
    """Decode, rank the baselines, compare, report; returns what it writes into `metrics_SPLIT.json`.

    Args:
        run: the trained run.
        split: "validation" or "test".
        decoded: what the model decoded, with seen items removed (True) and with all items allowed, if that is known.
    """
    splits, targets = run.splits, getattr(run.splits, split)
    exclude = run.config.decoding.exclude_seen

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
    wanted = splits.sequences.items[targets.positions]
    depth = min(max(KS), run.config.decoding.num_beams)
    ks = tuple(k for k in KS if k <= depth)
    rankings = {
        rule: rankings_of_beams(found.items, wanted, depth=depth) for rule, found in decoded.items()
    }

    # The baselines, under the main rule.
    baselines, settings = _baselines(run, targets, wanted, exclude, depth)
    counts = training_counts(splits)
    metrics = evaluate_with_baselines(rankings[exclude], baselines, counts, ks=ks)
    other = evaluate_rankings(rankings[not exclude], counts, ks=ks)
    metrics |= {
        "split": split,
        "checkpoint_step": run.step,
        "rule": VARIANTS[exclude],
        "variants": {VARIANTS[not exclude]: other},
        "prefix_recall": {VARIANTS[rule]: found.prefix_recall for rule, found in decoded.items()},
        "loss": decoded[exclude].loss,
        "item_knn_tuned_settings": settings,
    }

    # Results.
    print(format_metrics(metrics, model_name=run.config.backbone))
    print(
        f"{VARIANTS[exclude]}, of model and baselines; with {VARIANTS[not exclude]} the model has "
        f"Hit@10 {other['hit@10']:.4f}, NDCG@10 {other['ndcg@10']:.4f}"
    )
    metrics_path = os.path.join(run.workdir, f"metrics_{split}.json")
    write_atomically(metrics_path, json.dumps(metrics, indent=2).encode())
    report_path = os.path.join(run.workdir, f"report_{split}.html")
    reporting.write_run_report(report_path, run, targets, decoded[exclude], metrics)
    print(f"wrote {metrics_path}\nreport: {report_path}")
    return metrics


def _baselines(
    run: Run, targets: Targets, wanted: np.ndarray, exclude: bool, depth: int
) -> tuple[dict[str, Rankings], dict]:
    """Every baseline's ranking of the targets, and the tuned item-kNN's settings."""
    splits = run.splits
    validation = splits.validation
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
    }
    sid_of_item = reporting.sid_numbers(run.catalogue.semantic_ids)
    past = whole_histories(splits, targets)
    ranked = {
        name: rankings_of_baseline(ranker, past, wanted, sid_of_item, depth=depth, exclude=exclude)
        for name, ranker in rankers.items()
    }
    return ranked, settings


def whole_histories(splits: Splits, targets: Targets) -> np.ndarray:
    """Everything each user did before the target, `[n, T]`, -1-padded."""
    lengths = targets.positions - splits.sequences.offsets[targets.users]
    return histories(splits.sequences, targets, int(lengths.max(initial=1)))


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Folder of the trained run; the results go there."
    )
    _SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which targets to rank.")
    _CHECKPOINT = flags.DEFINE_enum(
        "checkpoint", "best", ("best", "last"), "Which model to evaluate."
    )
    _DATA_DIR = flags.DEFINE_string(
        "data_dir", "", "The data's folder, if it has moved since training."
    )
    flags.mark_flag_as_required("workdir")
    app.run(main)
