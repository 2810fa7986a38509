r"""Compares beam search, sampling without replacement and tree searches at equal budgets of token evaluations.

    python -m experiments.compare_searches --workdir=DIR --split=validation --budgets=24,36,60,96 --users=1024

Prints a table; writes `searches_SPLIT.json` and `searches_SPLIT.png` into the workdir. The tree searches are VED as
published (`ved`) and ours (`best_first`), with the run's value head; without V where the run trained none. A budget is
the number of tokens that the model may be given for one user, besides the history: a beam search with M beams over L
codes takes M (L - 1). All have M candidates; further semantic IDs known to a tree search have a separate column.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from experiments.errors import one_line_errors, run_main
from gr.decoding import PRESETS, VedConfig
from gr.evaluation import EvaluationError
from gr.fields import NotNegative
from gr.runs.compare_searches import compare
from gr.runs.run import SPLITS, load_run


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
    run = load_run(
        _WORKDIR.value,
        data_dir=_DATA_DIR.value,
        which=_CHECKPOINT.value,
        other_data=_OTHER_DATA.value,
    )
    told = {name: flag.value for name, flag in _OF_TREE_SEARCHES.items() if flag.value is not None}
    searches = {
        name: dataclasses.replace(PRESETS[name], **told if PRESETS[name].is_tree_search else {})
        for name in _SEARCHES.value
    }
    if _NORMALISE_OVER.value:
        searches = {
            name: dataclasses.replace(search, normalise_over=_NORMALISE_OVER.value)
            for name, search in searches.items()
        }
    compare(run, _SPLIT.value, budgets, num_users=_USERS.value, searches=searches)


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Folder of the trained run; the results go there."
    )
    _SPLIT = flags.DEFINE_enum("split", "validation", SPLITS, "Which targets to search for.")
    _BUDGETS = flags.DEFINE_list("budgets", "24,36,60,96", "Token evaluations a user.")
    _USERS = flags.DEFINE_integer("users", 1024, "How many users at most; 0: all.", lower_bound=0)
    _SEARCHES = flags.DEFINE_multi_enum(
        "search", list(PRESETS), list(PRESETS), "What to compare; may be given several times."
    )
    _OF_TREE_SEARCHES = {
        field.name: flags.DEFINE_float(
            field.name,
            None,
            "Of all tree searches, if not the presets'; see `gr.decoding.VedConfig`.",
            lower_bound=0.0,
        )
        for field in dataclasses.fields(VedConfig)
        if field.type == NotNegative
    }
    _NORMALISE_OVER = flags.DEFINE_enum(
        "normalise_over",
        None,
        ("vocabulary", "children"),
        "Scores, if not as the run's and presets'.",
    )
    _CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ("best", "last"), "Which model to use.")
    _DATA_DIR = flags.DEFINE_string(
        "data_dir", "", "The data's folder, if it has moved since training."
    )
    _OTHER_DATA = flags.DEFINE_boolean(
        "other_data", False, "Allow data that the run was not trained on."
    )
    flags.mark_flag_as_required("workdir")
    run_main(main)
