r"""Evaluates a trained run beside its baselines and writes the report.

    python -m experiments.evaluate --workdir=DIR --split=test

Prints the table, with seen items removed and with all items allowed; writes `metrics_SPLIT.json` and
`report_SPLIT.html` into the workdir. `--beside=OTHER_WORKDIR` shows another run's prefix recall beside this one's in
the report. Baselines rank under the same rule as the model, with seen items removed if
`decoding.exclude_seen`: popularity, a first-order Markov chain, item-kNN as it is usually run (cosine, 100 neighbours,
the whole history), and a far stronger one whose neighbours, shrinkage and reach into the history are tuned on
validation.
"""

import json
import os
from collections.abc import Mapping, Sequence

from absl import app, flags
from ml_collections import ConfigDict

from experiments import build, reporting
from experiments.baselines import Baselines, rank_baselines
from experiments.errors import one_line_errors
from experiments.workdir import Run, load_run
from gr.data.files import write_atomically
from gr.evaluation import (
    Decoded,
    evaluate_rankings,
    evaluate_with_baselines,
    format_metrics,
    rankings_of_beams,
    training_counts,
)

SPLITS = ("validation", "test")
VARIANTS = {True: "seen items removed", False: "all items allowed"}
KS = (1, 5, 10, 20)


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Evaluates as the flags say."""
    del argv
    run = load_run(_WORKDIR.value, data_dir=_DATA_DIR.value, which=_CHECKPOINT.value)
    evaluate(run, _SPLIT.value, beside=_BESIDE.value)


def evaluate(
    run: Run,
    split: str,
    decoded: Mapping[bool, Decoded] | None = None,
    *,
    baselines: Baselines | None = None,
    beside: str | None = None,
) -> dict:
    """Decode, rank the baselines, compare, report; returns what it writes into `metrics_SPLIT.json`.

    Args:
        run: the trained run.
        split: "validation" or "test".
        decoded: what the model decoded, with seen items removed (True) and with all items allowed, if that is known.
        baselines: under the main rule and to `ranking_depth`, if those are known.
        beside: workdir of another evaluated run, whose prefix recall the report shows beside this one's.

    Raises:
        EvaluationError: if the other run was not evaluated on this split, or on other users or codes.
    """
    splits, targets = run.splits, getattr(run.splits, split)
    exclude = run.config.decoding.exclude_seen
    other_run = None
    if beside is not None:  # Read first, so that what is wrong with it is said before the decoding.
        other_run = reporting.read_other_run(beside, split)
        reporting.check_beside(other_run, len(targets), run.catalogue.semantic_ids.num_levels)

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
    depth = ranking_depth(run.config)
    ks = tuple(k for k in KS if k <= depth)
    rankings = {
        rule: rankings_of_beams(found.items, wanted, depth=depth) for rule, found in decoded.items()
    }

    # The baselines, under the main rule.
    if baselines is None:
        baselines = rank_baselines(
            splits, run.catalogue.semantic_ids, targets, exclude=exclude, depth=depth
        )
    counts = training_counts(splits)
    metrics = evaluate_with_baselines(rankings[exclude], baselines.rankings, counts, ks=ks)
    other = evaluate_rankings(rankings[not exclude], counts, ks=ks)
    metrics |= {
        "split": split,
        "checkpoint_step": run.step,
        "rule": VARIANTS[exclude],
        "variants": {VARIANTS[not exclude]: other},
        "prefix_recall": {VARIANTS[rule]: found.prefix_recall for rule, found in decoded.items()},
        "loss": decoded[exclude].loss,
        "item_knn_tuned_settings": baselines.settings,
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
    reporting.write_run_report(
        report_path, run, targets, decoded[exclude], metrics, other_run=other_run
    )
    print(f"wrote {metrics_path}\nreport: {report_path}")
    return metrics


def ranking_depth(config: ConfigDict) -> int:
    """The largest k at which a run is evaluated."""
    return min(max(KS), config.decoding.num_beams)


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
    _BESIDE = flags.DEFINE_string(
        "beside", None, "Workdir of another evaluated run, for the plot of prefix recall."
    )
    flags.mark_flag_as_required("workdir")
    app.run(main)
