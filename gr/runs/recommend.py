"""Recommends items for one user of a trained run, or for any history."""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np

from gr.data import NO_ITEM, DataError, Sequences, find_items
from gr.decoding import beam_search
from gr.evaluation import check_finite
from gr.models import histories_for
from gr.runs import build
from gr.runs.report import item_details
from gr.runs.run import Run
from gr.trie import ExcludeItems


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    item_id: str
    title: str  # The item id if the data has no titles.
    score: float  # Log-probability of its semantic ID.
    detail: str  # Such as its category; "" where the data has none.


def recommend(
    run: Run,
    *,
    user: str | None = None,
    history: str | Sequence[str] | None = None,
    top_k: int = 10,
) -> list[Recommendation]:
    """The best items for a user of the data, or for any history, under the run's decoding rule.

    Args:
        run: the trained run.
        user: a user's id; their history is all of their interactions.
        history: item ids or titles instead, oldest first: a list, or one text with commas, see `gr.data.find_items`.
        top_k: maximum number of items.

    Raises:
        DataError: unless one of user and history is given, and known to the data.
    """
    sequences = run.splits.sequences
    rows = history_rows(sequences, user=user, history=history)
    items, scores = rank_items(run, rows, top_k)
    titles = sequences.titles()
    details = item_details(sequences.item_fields, sequences.num_items)
    places = [(int(item), beam) for beam, row in enumerate(items) for item in row if item >= 0]
    return [
        Recommendation(
            item_id=str(sequences.item_ids[item]),
            title=str(titles[item]),
            score=float(scores[beam]),
            detail=str(details[item]),
        )
        for item, beam in places[:top_k]
    ]


def history_rows(
    sequences: Sequences,
    *,
    user: str | None = None,
    history: str | Sequence[str] | None = None,
) -> np.ndarray:
    """Item rows of a user's interactions, or of the items that a history names; see `recommend`."""
    if (user is None) == (history is None):
        raise DataError("give either user=ID or history='title or id, ...'")
    if user is not None:
        return user_history(sequences, str(user))
    if isinstance(history, str):
        return np.asarray(find_items(sequences, history))
    rows = [find_items(sequences, str(name)) for name in history]
    return np.concatenate(rows) if rows else np.zeros(0, np.int32)


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


def rank_items(run: Run, history: Sequence[int], top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Items `[M, C]` and scores `[M]` of the beams for one history of item rows, under the run's decoding rule.

    Histories are padded to a few lengths, so that users share compiled programs.

    Raises:
        DataError: for a history without items, or with an unknown item row.
    """
    if top_k < 1:
        raise DataError(f"top_k={top_k}: use 1 or more")
    history, num_items = np.asarray(history), run.splits.sequences.num_items
    known = history.ndim == 1 and history.dtype.kind in "iu" and history.size > 0
    if not known or history.min() < 0 or history.max() >= num_items:
        raise DataError(f"a history is a list of item rows from 0 to {num_items - 1}, at least one")
    decoding, longest = run.config.decoding, run.config.data.max_history
    recent = _padded(history[-longest:], NO_ITEM, least=min(8, longest))
    excluded = ExcludeItems(_padded(np.unique(history), NO_ITEM, least=64))
    found = beam_search(
        run.model,
        run.catalogue.index,
        histories_for(run.model, run.catalogue.tokens, recent),
        num_beams=max(decoding.num_beams, top_k),
        constraint=excluded if decoding.exclude_seen else None,
        **build.distribution(run.config),
    )
    check_finite(np.asarray(found.bad_step), np.array(["with this history"]))
    return np.asarray(found.items[0]), np.asarray(found.scores[0])


def _padded(items: np.ndarray, value: int, *, least: int) -> np.ndarray:
    """`items` as a row `[1, S]` int32, with S the next power of two, at least `least`."""
    width = max(least, 1 << (len(items) - 1).bit_length())
    return np.pad(items.astype(np.int32), (0, width - len(items)), constant_values=value)[None]
