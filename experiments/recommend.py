r"""Recommends items to one user of a trained run, or to anyone with a history.

    python -m experiments.recommend --workdir=DIR --user=ID --top_k=10
    python -m experiments.recommend --workdir=DIR --history='Toy Story, GoldenEye' --top_k=10

A user's history is all that the data has of him. `--history` takes item ids and titles, oldest first, parted by
commas; a part of a title is enough where only one title has it. Writes nothing.
"""

import difflib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments import build
from experiments.errors import one_line_errors
from experiments.reporting import candidates_by_title, item_details
from experiments.workdir import Run, load_run
from gr.data import DataError, Sequences
from gr.decoding import beam_search
from gr.evaluation import check_finite
from gr.trie import ExcludeItems

SHOWN_HISTORY = 10


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """History, decode, print."""
    del argv
    if bool(_USER.value) == bool(_HISTORY.value):
        raise DataError("give either --user=ID or --history='title or id, ...'")
    run = load_run(_WORKDIR.value, data_dir=_DATA_DIR.value, which=_CHECKPOINT.value)
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
        DataError: for a user who is not in the data, with ids that look like his.
    """
    rows = np.flatnonzero(sequences.user_ids == user)
    if len(rows) == 0:
        close = difflib.get_close_matches(user, sequences.user_ids.tolist(), n=5, cutoff=0.0)
        raise DataError(f"user {user!r} is not in the data; ids look like {', '.join(close)}")
    return sequences.of(int(rows[0]))


def find_items(sequences: Sequences, text: str) -> np.ndarray:
    """Item rows of a list of ids and titles, parted by commas; titles may hold commas themselves.

    Raises:
        DataError: for a part that is no id and no title, or is part of several titles.
    """
    by_id = {str(item).casefold(): row for row, item in enumerate(sequences.item_ids)}
    by_title = {str(title).casefold(): row for row, title in enumerate(sequences.titles())}
    parts = [part.strip().casefold() for part in text.split(",")]
    rows = []
    while parts:
        # The longest run of parts that is an id or a whole title; else one part of a title.
        for count in range(len(parts), 0, -1):
            name = ", ".join(parts[:count])
            row = by_id.get(name, by_title.get(name))
            if row is not None:
                break
        else:
            count, row = 1, _by_part_of_title(by_title, parts[0])
        rows.append(row)
        parts = parts[count:]
    return np.array(rows, np.int32)


def _by_part_of_title(by_title: dict[str, int], part: str) -> int:
    titles = [title for title in by_title if part and part in title]
    if len(titles) == 1:
        return by_title[titles[0]]
    if titles:
        raise DataError(f"{part!r} is part of several titles: {'; '.join(titles[:5])}; write more")
    close = difflib.get_close_matches(part, by_title, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise DataError(f"{part!r} is no item id and no title of the data{hint}")


def recommend(run: Run, history: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Items `[M, C]` and scores `[M]` of the beams for one history, under the run's decoding rule."""
    decoding = run.config.decoding
    recent = history[-run.config.data.max_history :]
    excluded = ExcludeItems(jnp.asarray(history)[None]) if decoding.exclude_seen else None
    found = beam_search(
        run.model,
        run.catalogue.index,
        run.catalogue.tokens[recent][None],
        num_beams=max(decoding.num_beams, top_k),
        constraint=excluded,
        **build.distribution(run.config),
    )
    check_finite(np.asarray(found.bad_step), np.array(["with this history"]))
    return np.asarray(found.items[0]), np.asarray(found.scores[0])


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
    flags.mark_flag_as_required("workdir")
    app.run(main)
