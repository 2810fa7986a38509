r"""Compares beam search, sampling without replacement and VED at equal budgets of token evaluations.

    python -m experiments.compare_searches --workdir=DIR --split=validation --budgets=24,36,60,96 --users=1024

Prints a table; writes `searches_SPLIT.json` and `searches_SPLIT.png` into the workdir. VED is guided by the run's value
head and by entropy; by entropy alone where the run trained no value head. A budget is the number of tokens that the
model may be given for one user, besides the history: a beam search with M beams over L codes takes M (L - 1).
"""

import functools
import io
import json
import os
from collections.abc import Sequence

from absl import app, flags

from experiments import build
from experiments.errors import one_line_errors
from experiments.workdir import Run, load_run
from gr.data.files import write_atomically
from gr.decoding import SearchConfig
from gr.evaluation import EvaluationError, compare_searches, format_searches, searches_plot


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Compares as the flags say."""
    del argv
    try:
        budgets = [int(budget) for budget in _BUDGETS.value]
    except ValueError as error:
        raise EvaluationError(
            f"--budgets={','.join(_BUDGETS.value)}: give whole numbers, with commas"
        ) from error
    run = load_run(_WORKDIR.value, data_dir=_DATA_DIR.value, which=_CHECKPOINT.value)
    ved = SearchConfig(
        entropy_weight=_ENTROPY_WEIGHT.value,
        prior_weight=_PRIOR_WEIGHT.value,
        exploration=_EXPLORATION.value,
    )
    compare(run, _SPLIT.value, budgets, num_users=_USERS.value, ved=ved)


def compare(
    run: Run,
    split: str,
    budgets: Sequence[int],
    *,
    num_users: int = 1024,
    ved: SearchConfig | None = None,
) -> dict:
    """Searches, prints and writes; returns what it writes into `searches_SPLIT.json`.

    Args:
        run: the trained run.
        split: "validation" or "test".
        budgets: in tokens a user.
        num_users: evenly spaced users of the split; 0: all.
        ved: has what VED is told besides the budget.

    Raises:
        EvaluationError: for a budget that does not pay for two beams.
    """
    sequences = run.splits.sequences
    targets = build.spread_targets(getattr(run.splits, split), num_users)
    rows = compare_searches(
        functools.partial(
            build.search,
            run.config,
            run.catalogue,
            run.model,
            run.value_head,
            run.splits,
            targets,
            progress=True,
        ),
        budgets,
        code_length=run.catalogue.semantic_ids.num_levels,
        targets=sequences.items[targets.positions],
        num_items=sequences.num_items,
        ved=ved,
    )
    guide = "a trained value head and entropy" if run.value_head else "entropy alone"
    print(format_searches(rows))
    print(f"{len(targets):,} users of {split}; VED is guided by {guide}")

    ved = ved or SearchConfig()
    result = {
        "split": split,
        "checkpoint_step": run.step,
        "users": len(targets),
        "exclude_seen": run.config.decoding.exclude_seen,
        "value_head": run.value_head is not None,
        "entropy_weight": ved.entropy_weight,
        "prior_weight": ved.prior_weight,
        "exploration": ved.exploration,
        "searches": rows,
    }
    stem = os.path.join(run.workdir, f"searches_{split}")
    write_atomically(f"{stem}.json", json.dumps(result, indent=2).encode())
    drawn = io.BytesIO()
    searches_plot(rows).savefig(drawn, format="png", dpi=130)
    write_atomically(f"{stem}.png", drawn.getvalue())
    print(f"wrote {stem}.json and {stem}.png")
    return result


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Folder of the trained run; the results go there."
    )
    _SPLIT = flags.DEFINE_enum(
        "split", "validation", ("validation", "test"), "Which targets to search for."
    )
    _BUDGETS = flags.DEFINE_list("budgets", "24,36,60,96", "Token evaluations a user.")
    _USERS = flags.DEFINE_integer("users", 1024, "How many users at most; 0: all.", lower_bound=0)
    _ENTROPY_WEIGHT = flags.DEFINE_float(
        "entropy_weight", SearchConfig.entropy_weight, "Lambda of VED.", lower_bound=0.0
    )
    _PRIOR_WEIGHT = flags.DEFINE_float(
        "prior_weight",
        SearchConfig.prior_weight,
        "Of a prefix's log-probability in VED's priority.",
        lower_bound=0.0,
    )
    _EXPLORATION = flags.DEFINE_float(
        "exploration", SearchConfig.exploration, "Beta of VED.", lower_bound=0.0
    )
    _CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ("best", "last"), "Which model to use.")
    _DATA_DIR = flags.DEFINE_string(
        "data_dir", "", "The data's folder, if it has moved since training."
    )
    flags.mark_flag_as_required("workdir")
    app.run(main)
