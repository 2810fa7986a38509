r"""Writes a trained run as one file, which a server loads with JAX and without this library.

    python -m experiments.export_recommender --workdir=DIR --output=FILE
    python -m experiments.export_recommender --workdir=DIR --output=FILE --num_items=50 --platforms=cpu,cuda

It recommends as `experiments.recommend` does. docs/serving.md has a loader of twenty lines.
"""

from collections.abc import Sequence

from absl import flags

from experiments.errors import one_line_errors, run_main
from gr.runs import export_recommender, load_run


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Exports as the flags say."""
    del argv
    run = load_run(_WORKDIR.value, data_dir=_DATA_DIR.value, which=_CHECKPOINT.value)
    export_recommender(
        run,
        _OUTPUT.value,
        top_k=_NUM_ITEMS.value,
        history_length=_HISTORY_LENGTH.value,
        batch_size=_BATCH_SIZE.value,
        platforms=_PLATFORMS.value or None,
    )
    print(f"wrote {_OUTPUT.value}")


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    _OUTPUT = flags.DEFINE_string("output", None, "File to write.")
    _NUM_ITEMS = flags.DEFINE_integer("num_items", 10, "Items of a history.")
    _HISTORY_LENGTH = flags.DEFINE_integer("history_length", 1024, "Most recent items that count.")
    _BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Histories of a call.")
    _PLATFORMS = flags.DEFINE_list("platforms", [], "Of cpu, cuda, rocm, tpu; else this machine's.")
    _CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ("best", "last"), "Which model to use.")
    _DATA_DIR = flags.DEFINE_string(
        "data_dir", "", "The data's folder, if it has moved since training."
    )
    flags.mark_flags_as_required(["workdir", "output"])
    run_main(main)
