"""Items for one user of a trained run, or for anyone with a history."""

import difflib
from collections.abc import Sequence

import numpy as np

from gr.data import PAD_ITEM, DataError, Sequences
from gr.decoding import beam_search
from gr.evaluation import check_finite
from gr.runs import build
from gr.runs.workdir import Run
from gr.trie import NO_ITEM, ExcludeItems


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
