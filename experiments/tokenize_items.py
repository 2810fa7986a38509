r"""Builds the Semantic IDs of a data set and shows how good they are.

    python -m experiments.tokenize_items --config=configs/ml100k.py --workdir=DIR \
        [--config.semantic_ids.num_levels=3 ...]

Prints usage and perplexity of each level, collisions, and items that share a first code; writes
`semantic_ids.npz` (see `SemanticIds.save`) and `semantic_ids_report.json` into the workdir. A run that is trained there
with the same settings and data takes them.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.config_files import supervised
from experiments.errors import one_line_errors, run_main
from gr.runs import check_experiment, load_data
from gr.runs.workdir import has_begun, make_semantic_ids, occupied
from gr.semantic_ids import example_table, report_table
from gr.training import TrainingError


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Makes semantic IDs as the flags say."""
    del argv
    tokenize(_CONFIG.value, _WORKDIR.value)


def tokenize(config: ConfigDict, workdir: str) -> None:
    """Data, IDs, report, files.

    Raises:
        ConfigError: for a config that cannot be used.
        TrainingError: if another process works in the workdir, or a run there was trained on its semantic IDs; and
            the errors of the rooms that read the data and make the IDs.
    """
    experiment = supervised(config)
    check_experiment(experiment)
    with occupied(workdir):
        if has_begun(workdir):
            raise TrainingError(
                f"{workdir} holds a run that was trained on its semantic IDs; name another workdir"
            )
        splits = load_data(experiment, workdir)
        semantic_ids, report = make_semantic_ids(experiment, splits, workdir)
    print(report_table(report))
    print(example_table(splits.sequences, semantic_ids))
    print(f"wrote {workdir}: semantic_ids.npz, semantic_ids_report.json")


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write into.")
    flags.mark_flags_as_required(["config", "workdir"])
    run_main(main)
