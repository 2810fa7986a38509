r"""Recommends items to one user of a trained run, or to anyone with a history.

    python -m experiments.recommend --workdir=DIR --user=ID --top_k=10
    python -m experiments.recommend --workdir=DIR --history='Toy Story, GoldenEye' --top_k=10

A user's history is all that the data has of them. `--history` takes item ids and titles, oldest first, separated by
commas. Titles may hold commas and may end with their year; a part of a title is enough if only one item has it. If a
name fits several items, they are listed; `id:300` or `title:300` is unambiguous. Writes nothing.
"""

from collections.abc import Sequence

from absl import flags

from experiments.errors import one_line_errors, run_main
from gr.runs.recommend import history_rows, recommend
from gr.runs.report import item_details
from gr.runs.run import load_run

SHOWN_HISTORY = 10


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """History, decode, print."""
    del argv
    run = load_run(
        _WORKDIR.value,
        data_dir=_DATA_DIR.value,
        which=_CHECKPOINT.value,
        other_data=_OTHER_DATA.value,
    )
    whose = {"user": _USER.value or None, "history": _HISTORY.value or None}
    sequences = run.splits.sequences
    history, titles = history_rows(sequences, **whose), sequences.titles()
    details = item_details(sequences.item_fields, sequences.num_items)

    print("history, oldest first:")
    left_out = len(history) - SHOWN_HISTORY
    if left_out > 0:
        print(f"  ... {left_out} more")
    for item in history[-SHOWN_HISTORY:]:
        print(f"  {titles[item]}  {details[item]}".rstrip())

    found = recommend(run, **whose, top_k=_TOP_K.value)
    with_memory = run.config.memory.weight is not None
    rows = [["", "log p", "title", "about"] + ["memory", "because of"] * with_memory]
    for rank, item in enumerate(found, start=1):
        row = [str(rank), f"{item.score:.2f}", item.title, item.detail]
        rows.append(row + [f"{item.memory_share:.0%}", "; ".join(item.because)] * with_memory)
    print("\nrecommended:")
    print(_left_aligned(rows))
    if len(found) < _TOP_K.value:
        print(f"only {len(found)} items are left to recommend")


def _left_aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    _USER = flags.DEFINE_string("user", "", "A user's id in the data.")
    _HISTORY = flags.DEFINE_string(
        "history", "", "Items by id or title, oldest first, with commas."
    )
    _TOP_K = flags.DEFINE_integer("top_k", 10, "How many items to recommend.", lower_bound=1)
    _CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ("best", "last"), "Which model to use.")
    _DATA_DIR = flags.DEFINE_string(
        "data_dir", "", "The data's folder, if it has moved since training."
    )
    _OTHER_DATA = flags.DEFINE_boolean(
        "other_data", False, "Allow data that the run was not trained on."
    )
    flags.mark_flag_as_required("workdir")
    run_main(main)
