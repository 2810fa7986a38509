r"""Builds the Semantic IDs of a data set and shows how good they are.

    python -m experiments.tokenize_items --config=configs/ml100k.py --workdir=DIR \
        [--config.semantic_ids.num_levels=3 ...]

Prints usage and perplexity of each level, collisions, and items that share a first code; writes
`semantic_ids.npz` (see `SemanticIds.save`), `item_encoder.npz` (the fit, see `ItemEncoder.save`) and
`semantic_ids_report.json` into the workdir. A run that is trained there with the same settings and data takes them.

    python -m experiments.tokenize_items --workdir=RUN --add=FILE [--id_column=item]

gives new items of a trained run semantic IDs by its fit; the IDs of old items stay as they are. FILE holds the items'
ids and text fields as the run's data names them (`.csv`, `.tsv`, `.parquet`, `.jsonl`, or `.json`: an object from id to
fields), or, for a run on ready vectors, is a `.npz` file with the arrays `vectors` and `item_ids`. From then on
`recommend` and `evaluate` of the run have these items in their catalogue.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.config_files import supervised
from experiments.errors import one_line_errors, run_main
from gr.reports import format_table
from gr.runs import ConfigError, add_items, check_experiment, load_data
from gr.runs.workdir import has_begun, make_semantic_ids, occupied
from gr.semantic_ids import example_table, report_table
from gr.training import TrainingError

SHOWN_ITEMS = 10


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Makes semantic IDs, or adds items, as the flags say."""
    del argv
    if (_CONFIG.value is None) == (_ADD.value is None):
        raise ConfigError(
            "give either --config=FILE, to make semantic IDs, or --add=FILE, new items"
        )
    if _ADD.value is None:
        tokenize(_CONFIG.value, _WORKDIR.value)
    else:
        add(_WORKDIR.value, _ADD.value, _ID_COLUMN.value)


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


def add(workdir: str, path: str, id_column: str = "") -> None:
    """Adds the items of a file to a run, and prints their codes.

    Raises:
        TrainingError, SemanticIdError, DataError: see `add_items`.
    """
    found = add_items(workdir, path, id_column=id_column)
    codes = found.semantic_ids.codes[-found.num_added :]
    rows = [["item", "codes", "title"]]
    ids = found.semantic_ids.item_ids[-found.num_added :]
    rows += [
        [str(item), "-".join(map(str, row)), title[:50]]
        for item, row, title in zip(ids, codes, found.titles, strict=True)
    ][:SHOWN_ITEMS]
    print(format_table(rows))
    if found.num_added > SHOWN_ITEMS:
        print(f"... and {found.num_added - SHOWN_ITEMS:,} more")
    print(
        f"added {found.num_added:,} items; {found.num_colliding:,} of them have the codes of another item, "
        "but for the extra one if there is one"
    )
    if found.num_unknown:
        print(
            f"note: the text of {found.num_unknown:,} new items has no word that the fit knows; their codes say nothing"
        )
    print(f"wrote {workdir}: added_items.json, semantic_ids.npz")


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write into.")
    _ADD = flags.DEFINE_string("add", None, "File of new items for the run in the workdir.")
    _ID_COLUMN = flags.DEFINE_string(
        "id_column", "", "Column of the new items' ids, if it is not that of the run's data."
    )
    flags.mark_flag_as_required("workdir")
    run_main(main)
