r"""Evaluates a trained run beside its baselines and writes the report.

    python -m experiments.evaluate --workdir=DIR --split=test

Prints the tables, with seen items removed and with all items allowed; writes `metrics_SPLIT.json` and
`report_SPLIT.html` into the workdir. Differences and the verdict use one of these rules: `decoding.exclude_seen` of the
run's config, or `--exclude_seen=true|false`. The rows of the other rule are the file's `variants`. If targets are in
their users' histories, their number is printed. `--beside=OTHER_WORKDIR` shows another run's prefix recall beside this
one's in the report.

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
"""

from collections.abc import Sequence

from absl import flags

from experiments.errors import one_line_errors, run_main
from gr.decoding import PRESETS
from gr.evaluation import EvaluationError
from gr.evaluation.linear import MAX_ITEMS
from gr.runs.cold_start import evaluate_cold_start
from gr.runs.evaluate import evaluate, evaluate_search
from gr.runs.run import SPLITS, load_run


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Evaluates as the flags say."""
    del argv
    by_beams = _DECODER.value == "beam"
    if by_beams and _BUDGET.value is not None:
        raise EvaluationError(
            "--budget is for other decoders: beam search has decoding.num_beams beams; to compare them at "
            "equal budgets run experiments.compare_searches"
        )
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
        )
    else:
        evaluate_search(
            run, _SPLIT.value, _DECODER.value, _BUDGET.value, exclude_seen=_EXCLUDE_SEEN.value
        )


def _named(row: str) -> tuple[str, str]:
    name, _, workdir = row.partition("=")
    if not (name and workdir):
        raise EvaluationError(f"--rows={row}: give NAME=WORKDIR of an evaluated run")
    return name, workdir


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Folder of the trained run; the results go there."
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
    _DECODER = flags.DEFINE_enum("decoder", "beam", tuple(PRESETS), "Which search ranks the items.")
    _BUDGET = flags.DEFINE_integer(
        "budget", None, "Token evaluations a user, for every --decoder but beam."
    )
    _COLD_START = flags.DEFINE_boolean(
        "cold_start", False, "Whether to rank targets that training never saw apart from others."
    )
    flags.mark_flag_as_required("workdir")
    run_main(main)
