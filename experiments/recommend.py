r"""Recommends items to one user of a trained run, or to anyone with a history.

    python -m experiments.recommend --workdir=DIR --user=ID --top_k=10
    python -m experiments.recommend --workdir=DIR --history='Toy Story, GoldenEye' --top_k=10

A user's history is all that the data has of them. `--history` takes item ids and titles, oldest first, parted by
commas; titles may hold commas and may have their year behind them, and a part of a title is enough where only one item
has it. Where a name fits several items they are listed, to be told apart as `id:300` or `title:300`. Writes nothing.
"""

import difflib
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments import build
from experiments.errors import one_line_errors, run_main
from experiments.reporting import candidates_by_title, item_details
from experiments.workdir import Run, load_run
from gr.data import PAD_ITEM, DataError, Sequences, find_items
from gr.decoding import beam_search
from gr.evaluation import check_finite
from gr.trie import NO_ITEM, ExcludeItems

SHOWN_HISTORY = 10


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """History, decode, print."""
    del argv
    if bool(_USER.value) == bool(_HISTORY.value):
        raise DataError("give either --user=ID or --history='title or id, ...'")
    run = load_run(
        _WORKDIR.value,
        data_dir=_DATA_DIR.value,
        which=_CHECKPOINT.value,
        other_data=_OTHER_DATA.value,
    )
    sequences = run.splits.sequences
    if _USER.value:
        history = user_history(sequences, _USER.value)
    else:
        history = find_items(sequences, _HISTORY.value)
    titles = sequences.titles()
    details = item_details(sequences.item_fields, sequences.num_items)

    print("history, oldest first:")
    left_out = len(history) - SHOWN_HISTORY
    if left_out > 0:
        print(f"  ... {left_out} more")
    for item in history[-SHOWN_HISTORY:]:
        print(f"  {titles[item]}  {details[item]}".rstrip())

    items, scores = recommend(run, history, _TOP_K.value)
    found = candidates_by_title(items, scores, titles, details, count=_TOP_K.value)
    rows = [["", "log p", "title", "about"]]
    rows += [
        [str(rank), f"{item.score:.2f}", item.title, item.detail]
        for rank, item in enumerate(found, start=1)
    ]
    print("\nrecommended:")
    print(_left_aligned(rows))
    if len(found) < _TOP_K.value:
        print(f"only {len(found)} items are left to recommend")


def user_history(sequences: Sequences, user: str) -> np.ndarray:
    """All item rows of a user.

    Raises:
        DataError: for a user who is not in the data, with ids that look alike.
    """
    rows = np.flatnonzero(sequences.user_ids == user)
    if len(rows) == 0:
        close = difflib.get_close_matches(user, sequences.user_ids.tolist(), n=5, cutoff=0.0)
        raise DataError(f"user {user!r} is not in the data; ids look like {', '.join(close)}")
    return sequences.of(int(rows[0]))


def recommend(run: Run, history: Sequence[int], top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Items `[M, C]` and scores `[M]` of the beams for one history of item rows, under the run's decoding rule.

    Histories are padded to few lengths, so that many users share a few compiled programs.

    Raises:
        DataError: for a history without items, or with a row that the data lacks.
    """
    history, num_items = np.asarray(history), run.splits.sequences.num_items
    known = history.ndim == 1 and history.dtype.kind in "iu" and history.size > 0
    if not known or history.min() < 0 or history.max() >= num_items:
        raise DataError(f"a history is a list of item rows from 0 to {num_items - 1}, at least one")
    decoding, longest = run.config.decoding, run.config.data.max_history
    recent = _padded(history[-longest:], PAD_ITEM, least=min(8, longest))
    excluded = ExcludeItems(_padded(np.unique(history), NO_ITEM, least=64))
    found = beam_search(
        run.model,
        run.catalogue.index,
        run.catalogue.tokens[recent],
        num_beams=max(decoding.num_beams, top_k),
        constraint=excluded if decoding.exclude_seen else None,
        **build.distribution(run.config),
    )
    check_finite(np.asarray(found.bad_step), np.array(["with this history"]))
    return np.asarray(found.items[0]), np.asarray(found.scores[0])


def _padded(items: np.ndarray, value: int, *, least: int) -> np.ndarray:
    """`items` as a row `[1, S]` int32, S the next power of two, and at least `least`."""
    width = max(least, 1 << (len(items) - 1).bit_length())
    return np.pad(items.astype(np.int32), (0, width - len(items)), constant_values=value)[None]


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
