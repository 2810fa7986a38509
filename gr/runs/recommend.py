"""Recommends items for one user of a trained run, or for any history."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gr.data import NO_ITEM, DataError, Histories, Sequences, find_items
from gr.decoding import beam_search
from gr.decoding import rank_items as rank_whole
from gr.evaluation import check_finite
from gr.models import histories_for, scores_items
from gr.runs import build
from gr.runs.export import memory_shares
from gr.runs.mixture import Mixture
from gr.runs.report import item_details
from gr.runs.run import Run
from gr.trie import ExcludeItems

_REASONS = 3  # Items of the history that are named.


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    item_id: str
    title: str  # The item id if the data has no titles.
    score: float  # Log-probability of its semantic ID, with a memory that of the mixture.
    detail: str  # Such as its category; "" where the data has none.
    memory_share: float = (
        0.0  # How much of its probability came from the memory, 0 to 1; the rest from the model.
    )
    because: tuple[
        str, ...
    ] = ()  # Titles of the history's items that the memory's part came from, most of it first.


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
    mixture = run.mixture
    items, scores = rank_items(run, rows, top_k, mixture)
    titles = sequences.titles()
    details = item_details(sequences.item_fields, sequences.num_items)
    places = [(int(item), beam) for beam, row in enumerate(items) for item in row if item >= 0]
    places = places[:top_k]
    shares, sources = np.zeros(len(places)), [()] * len(places)
    if mixture is not None and places:
        shares, sources = _from_memory(run, mixture, rows, items, scores, places)
    return [
        Recommendation(
            item_id=str(sequences.item_ids[item]),
            title=str(titles[item]),
            score=float(scores[beam]),
            detail=str(details[item]),
            memory_share=float(share),
            because=tuple(str(titles[source]) for source in of_item),
        )
        for (item, beam), share, of_item in zip(places, shares, sources, strict=True)
    ]


def _from_memory(
    run: Run,
    mixture: Mixture,
    history: np.ndarray,
    items: np.ndarray,
    scores: np.ndarray,
    places: Sequence[tuple[int, int]],
) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Of each recommended item and its beam: the memory's share of its probability, and the items of the history."""
    past = Histories.of_rows(np.asarray(history, np.int32)[None])
    prior, weight = mixture.of(past, exclude=run.config.decoding.exclude_seen)
    beams = np.array([beam for _, beam in places])
    shares = memory_shares(prior, weight, items[None], scores[None])[0, beams]
    if mixture.memory is None:
        return shares, [()] * len(places)
    named = np.array([[item for item, _ in places]], np.int32)
    sources, _ = mixture.memory.because(past, named)
    return shares, [tuple(row[row >= 0][:_REASONS].tolist()) for row in sources[0]]


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
        raise DataError(unknown_user(sequences, user))
    return sequences.of(int(rows[0]))


def unknown_user(sequences: Sequences, user: str) -> str:
    """What is told of a user who is not in the data."""
    close = difflib.get_close_matches(user, sequences.user_ids.tolist(), n=5, cutoff=0.0)
    return f"user {user!r} is not in the data; ids look like {', '.join(close)}"


def rank_items(
    run: Run, history: Sequence[int], top_k: int, mixture: Mixture | None = None
) -> tuple[np.ndarray, np.ndarray]:
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
    options: dict[str, Any] = {"constraint": excluded if decoding.exclude_seen else None}
    options |= build.distribution(run.config)
    if mixture is not None:
        past = Histories.of_rows(history.astype(np.int32)[None])
        prior, weight = mixture.of(past, exclude=decoding.exclude_seen)
        options |= {"prior": prior, "prior_weight": weight}
    read = histories_for(run.model, run.catalogue.tokens, recent, run.catalogue.pieces)
    index, count = run.catalogue.index, max(decoding.num_beams, top_k)
    with build.scoring(run.config):
        if scores_items(run.model):
            options.pop("normalise_over")
            found = rank_whole(run.model, index, run.catalogue.tokens, read, count, **options)
        else:
            found = beam_search(run.model, index, read, num_beams=count, **options)
    check_finite(np.asarray(found.bad_step), np.array(["with this history"]))
    return np.asarray(found.items[0]), np.asarray(found.scores[0])


def _padded(items: np.ndarray, value: int, *, least: int) -> np.ndarray:
    """`items` as a row `[1, S]` int32, with S the next power of two, at least `least`."""
    width = max(least, 1 << (len(items) - 1).bit_length())
    return np.pad(items.astype(np.int32), (0, width - len(items)), constant_values=value)[None]
