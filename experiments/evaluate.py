r"""Evaluates a trained run beside its baselines and writes the report.

    python -m experiments.evaluate --workdir=DIR --split=test

Prints the tables, with seen items removed and with all items allowed; writes `metrics_SPLIT.json` and
`report_SPLIT.html` into the workdir. Differences and the verdict use one of these rules: `decoding.exclude_seen` of the
run's config, or `--exclude_seen=true|false`. The rows of the other rule are the file's `variants`. A memory and its
weight are tuned under each rule, as baselines are; `recommend` has those of the run's own. If targets are in their
users' histories, their number is printed. `--beside=OTHER_WORKDIR` shows another run's prefix recall beside this one's
in the report.

    python -m experiments.evaluate --workdir=DIR --split=test --decoder=ved --budget=60

ranks the candidates of another decoder with so many token evaluations per user: "sample" (without replacement), "ved"
(value-guided search as published) or "best_first" (ours); the run's value head guides both, if it has one. It writes
`metrics_SPLIT_DECODER.json` and no report.

    python -m experiments.evaluate --workdir=DIR --split=test --cold_start

is for a run on the split `data.split=cold_start`: Recall and NDCG of targets in training's catalogue and of items that
training never saw, these also with decoding constrained to them, beside content-kNN. It writes
`metrics_SPLIT_cold.json`.

Baselines rank under the same rule as the model: popularity, a first-order Markov chain, item-kNN with the usual
settings (cosine, 100 neighbours, the whole history), and, tuned on validation under that rule, item-kNN, the memory of
windowed co-occurrences (`gr.memory`), EASE and SLIST. Settings and rankings are kept in the workdir's `baselines`.
`--linear_up_to=20000` fits EASE and SLIST for larger catalogues, too: they need N^2 memory and N^3 time.
`--rows=sasrec=OTHER_WORKDIR` makes the model of another evaluated run on the same data a baseline of that name.

`--distributed` makes it one of several processes, which share the users: see `experiments.distributed`. Baselines are
ranked by the first one.

`--export=FILE` also writes the model's lists, under the main rule (Parquet, CSV or a TREC run, as FILE ends).

    python -m experiments.evaluate --candidates=bert=FILE --candidates=FILE2 --config=configs/ml100k.py --workdir=DIR

needs no trained run: it ranks the split's targets by lists that other programs wrote (Parquet, CSV, JSON lines, TREC
runs; columns user, item, and score or rank), with the same table, intervals and report. A hit is the target itself.
`--ground_truth=FILE` names users and items that are the targets instead. See docs/candidates.md.
"""

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from experiments import distributed
from experiments.config_files import supervised
from experiments.errors import one_line_errors, run_main
from gr.decoding import PRESETS
from gr.evaluation import EvaluationError
from gr.evaluation.linear import MAX_ITEMS
from gr.runs.candidates import evaluate_candidates
from gr.runs.cold_start import evaluate_cold_start
from gr.runs.evaluate import evaluate, evaluate_search
from gr.runs.run import SPLITS, load_run
from gr.training import wait_for_all


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Evaluates as the flags say."""
    del argv
    if flags.FLAGS.distributed and (_COLD_START.value or _CANDIDATES.value):
        raise EvaluationError("--distributed takes neither --cold_start nor --candidates")
    if _CANDIDATES.value:
        _evaluate_candidates()
        return
    if _CONFIG.value is not None or _GROUND_TRUTH.value is not None or _SKIP_BAD_ROWS.value:
        raise EvaluationError(
            "--config, --ground_truth and --skip_bad_rows are for --candidates=FILE; a trained run has its own config"
        )
    by_beams = _DECODER.value == "beam"
    if by_beams and _BUDGET.value is not None:
        raise EvaluationError(
            "--budget is for other decoders: beam search has decoding.num_beams beams; to compare them at "
            "equal budgets run experiments.compare_searches"
        )
    if _EXPORT.value is not None and (not by_beams or _COLD_START.value):
        raise EvaluationError("--export takes neither --decoder nor --cold_start")
    if not by_beams and (_BUDGET.value is None or _BESIDE.value is not None):
        raise EvaluationError(
            f"--decoder={_DECODER.value} needs --budget=TOKENS and takes no --beside"
        )
    if _COLD_START.value and (not by_beams or _BESIDE.value is not None):
        raise EvaluationError("--cold_start takes neither --decoder nor --beside")
    run = load_run(
        _WORKDIR.value,
        data_dir=_DATA_DIR.value,
        which=_CHECKPOINT.value,
        other_data=_OTHER_DATA.value,
    )
    if _COLD_START.value:
        evaluate_cold_start(run, _SPLIT.value, exclude_seen=_EXCLUDE_SEEN.value)
    elif by_beams:
        evaluate(
            run,
            _SPLIT.value,
            beside=_BESIDE.value,
            exclude_seen=_EXCLUDE_SEEN.value,
            rows=dict(_named(row) for row in _ROWS.value),
            linear_up_to=_LINEAR_UP_TO.value,
            export=_EXPORT.value,
        )
    else:
        evaluate_search(
            run, _SPLIT.value, _DECODER.value, _BUDGET.value, exclude_seen=_EXCLUDE_SEEN.value
        )
    wait_for_all()  # The first process is still at work when the others are done.


def _evaluate_candidates() -> None:
    """Evaluates lists from files, as the flags say."""
    if _CONFIG.value is None:
        raise EvaluationError("--candidates needs --config=FILE, which says of which data they are")
    if _DECODER.value != "beam" or _BESIDE.value is not None or _COLD_START.value:
        raise EvaluationError("--candidates takes neither --decoder nor --beside nor --cold_start")
    if _EXPORT.value is not None:
        raise EvaluationError("--export writes the lists of a run; --candidates has files already")
    experiment = supervised(_CONFIG.value)
    if _DATA_DIR.value:
        experiment = dataclasses.replace(experiment, data_dir=_DATA_DIR.value)
    candidates: dict[str, str] = {}
    for text in _CANDIDATES.value:
        name, path = _name_of(text)
        if name in candidates:
            raise EvaluationError(f"--candidates: {name!r} names two rows; write NAME=FILE")
        candidates[name] = path
    evaluate_candidates(
        experiment,
        candidates,
        _WORKDIR.value,
        _SPLIT.value,
        ground_truth=_GROUND_TRUTH.value,
        exclude_seen=_EXCLUDE_SEEN.value,
        rows=dict(_named(row) for row in _ROWS.value),
        linear_up_to=_LINEAR_UP_TO.value,
        skip_bad_rows=_SKIP_BAD_ROWS.value,
        command=shlex.join(["python", "-m", "experiments.evaluate", *sys.argv[1:]]),
    )


def _name_of(text: str) -> tuple[str, str]:
    """Name and path of `NAME=FILE` or `FILE`, whose name is then that of the file."""
    name, equals, path = text.partition("=")
    if equals and name and path and "/" not in name:
        return name, path
    return os.path.basename(text.rstrip("/")).split(".")[0], text


def _named(row: str) -> tuple[str, str]:
    name, _, workdir = row.partition("=")
    if not (name and workdir):
        raise EvaluationError(f"--rows={row}: give NAME=WORKDIR of an evaluated run")
    return name, workdir


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _WORKDIR = flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the trained run, or for --candidates any other; the results go there.",
    )
    _CANDIDATES = flags.DEFINE_multi_string(
        "candidates", [], "A file of ranked lists, or NAME=FILE; may be repeated."
    )
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Of which data the candidates are.")
    _GROUND_TRUTH = flags.DEFINE_string(
        "ground_truth", None, "A file of users and items: the targets, instead of the split's."
    )
    _SKIP_BAD_ROWS = flags.DEFINE_boolean(
        "skip_bad_rows", False, "Leave bad rows of these files out, and count them."
    )
    _SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which targets to rank.")
    _CHECKPOINT = flags.DEFINE_enum(
        "checkpoint", "best", ("best", "last"), "Which model to evaluate."
    )
    _EXCLUDE_SEEN = flags.DEFINE_boolean(
        "exclude_seen",
        None,
        "Whether the rule that the report is about removes seen items, if not as in the run's config.",
    )
    _DATA_DIR = flags.DEFINE_string(
        "data_dir", "", "The data's folder, if it has moved since training."
    )
    _OTHER_DATA = flags.DEFINE_boolean(
        "other_data", False, "Allow data that the run was not trained on."
    )
    _BESIDE = flags.DEFINE_string(
        "beside", None, "Workdir of another evaluated run, for the plot of prefix recall."
    )
    _ROWS = flags.DEFINE_list(
        "rows", [], "NAME=WORKDIR of other evaluated runs that become baselines."
    )
    _LINEAR_UP_TO = flags.DEFINE_integer(
        "linear_up_to", MAX_ITEMS, "Most items for which EASE and SLIST are fitted."
    )
    _EXPORT = flags.DEFINE_string(
        "export", None, "A file for the model's lists: .parquet, .csv or .trec."
    )
    _DECODER = flags.DEFINE_enum("decoder", "beam", tuple(PRESETS), "Which search ranks the items.")
    _BUDGET = flags.DEFINE_integer(
        "budget", None, "Token evaluations a user, for every --decoder but beam."
    )
    _COLD_START = flags.DEFINE_boolean(
        "cold_start", False, "Whether to rank targets that training never saw apart from others."
    )
    distributed.define_flags()
    flags.mark_flag_as_required("workdir")
    run_main(main)
