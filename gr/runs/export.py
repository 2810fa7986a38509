"""Recommended lists as tables and files, with the memory's share of each item."""

import os
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from gr.data import Targets
from gr.data.ranked_lists import SCHEMA, check_written, write_table
from gr.evaluation import Decoded, EvaluationError
from gr.memory import ItemPrior
from gr.runs.mixture import Mixture
from gr.runs.run import Run

PriorOfRows = Callable[[np.ndarray], tuple[ItemPrior, np.ndarray]]
_CHUNK = 1024  # Users whose priors are in memory at once.


def list_table(
    user_ids: np.ndarray,
    item_ids: pa.Array,
    found: Decoded,
    num_items: int | None = None,
    *,
    prior: PriorOfRows | None = None,
) -> pa.Table:
    """The table `SCHEMA` of the first items of n users, read beam by beam.

    Args:
        user_ids: `[n]`.
        item_ids: of all items `[N]`.
        found: the candidates of the users.
        num_items: most rows of a user; None: all candidates.
        prior: what was mixed into the model, see `decode_targets`; None: nothing, and the memory's share is 0.
    """
    count, _, of_beam = found.items.shape
    items = found.items.reshape(count, -1)
    ranks = np.cumsum(items >= 0, axis=1, dtype=np.int32)
    kept = items >= 0 if num_items is None else (items >= 0) & (ranks <= num_items)
    user, place = np.nonzero(kept)
    shares = np.zeros(found.scores.shape, np.float32)
    for start in range(0, 0 if prior is None else count, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, count))
        of_rows, weight = prior(rows)
        shares[rows] = memory_shares(of_rows, weight, found.items[rows], found.scores[rows])
    columns = [
        pa.array(user_ids, pa.string()).take(pa.array(user)),
        ranks[user, place],
        item_ids.take(pa.array(items[user, place])),
        found.scores[user, place // of_beam],
        shares[user, place // of_beam],
    ]
    return pa.table(columns, schema=SCHEMA)


def memory_shares(
    prior: ItemPrior, weight: np.ndarray, items: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """How much of each candidate's probability came from the prior that was mixed in, 0 to 1.

    Items of one semantic ID share its probability.

    Args:
        prior: of n users.
        weight: of the prior, `[n]`.
        items: item rows of the candidates, `[n, M, C]`, padded with negative ones.
        scores: their log-probabilities under the mixture, `[n, M]`.

    Returns:
        The shares, `[n, M]`; 0 where there is no candidate.
    """
    listed = np.asarray(prior.items) >= 0
    weights = np.where(listed, prior.weights, 0).astype(np.float64)
    # Row and item as one number, each once, with the sum of its weights.
    base = max(np.max(prior.items, initial=0), items.max(initial=0)) + 1
    first = np.arange(len(items)) * base
    keys, places = np.unique((first[:, None] + prior.items)[listed], return_inverse=True)
    mass = np.append(np.bincount(places, weights[listed], minlength=len(keys)), 0.0)
    keys = np.append(keys, -1)
    wanted = np.where(items >= 0, first[:, None, None] + items, -2)
    place = np.searchsorted(keys[:-1], wanted)
    of_items = np.where(keys[place] == wanted, mass[place], 0.0)
    total = np.maximum(weights.sum(axis=1), np.finfo(np.float32).tiny)
    of_prior = np.asarray(weight) / total
    valid = np.isfinite(scores)
    probability = np.where(valid, np.exp(scores, where=valid, out=np.ones(scores.shape)), 1.0)
    probability = np.maximum(probability, np.finfo(np.float32).tiny)
    shares = of_prior[:, None] * of_items.sum(axis=-1) / probability
    return np.where(valid, np.clip(shares, 0.0, 1.0), 0.0)


def check_export(path: str | os.PathLike[str], targets: Targets) -> None:
    """Raises an error where `export_lists` could not write: call it before decoding.

    Raises:
        DataError: if the file's ending is unknown.
        EvaluationError: if a user has several targets, and so several lists.
    """
    check_written(path)
    if len(np.unique(targets.users)) < len(targets):
        raise EvaluationError(
            f"export={path}: some users have several targets, and a list for each, which one list a user cannot hold; "
            "write the lists of all users by experiments.recommend_all"
        )


def export_lists(
    path: str | os.PathLike[str],
    run: Run,
    targets: Targets,
    found: Decoded,
    mixture: Mixture | None,
    *,
    exclude: bool,
) -> None:
    """Writes the candidates found for targets as one list a user, in the form that the path's ending says."""
    sequences, prior = run.splits.sequences, None
    if mixture is not None:
        prior = mixture.for_targets(run.splits, targets, exclude=exclude)
    item_ids = pa.array(sequences.item_ids, pa.string())
    write_table(path, list_table(sequences.user_ids[targets.users], item_ids, found, prior=prior))
