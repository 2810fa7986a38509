r"""Builds the Semantic IDs of a data set and shows how good they are.

    python -m experiments.tokenize_items --config=configs/ml100k.py --workdir=DIR \
        [--config.semantic_ids.num_levels=3 ...]

Prints usage and perplexity of each level, collisions, and items that share a first code; writes
`semantic_ids.npz` (see `SemanticIds.save`) and `semantic_ids_report.json` into the workdir.
"""

import json
import os
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from experiments import build
from gr.data.sequences import DataError
from gr.semantic_ids import SemanticIdError, example_table, report_table

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write into.")


def main(argv: Sequence[str]) -> None:
    """Data, IDs, report, files."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    config, workdir = _CONFIG.value, _WORKDIR.value
    try:
        splits = build.load_data(config, workdir)
        semantic_ids, report = build.load_semantic_ids(config, splits)
    except (DataError, SemanticIdError) as error:
        raise SystemExit(f"error: {error}") from error

    print(report_table(report))
    print(example_table(splits.sequences, semantic_ids))

    os.makedirs(workdir, exist_ok=True)
    ids_path = os.path.join(workdir, "semantic_ids.npz")
    report_path = os.path.join(workdir, "semantic_ids_report.json")
    semantic_ids.save(ids_path)
    with open(report_path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    os.replace(report_path + ".tmp", report_path)
    print(f"wrote {ids_path}\nwrote {report_path}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
