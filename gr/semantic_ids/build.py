"""From data to `SemanticIds`, with a quality report."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gr.data.sequences import Splits
from gr.data.splits import training_interactions
from gr.fields import load_own
from gr.semantic_ids import item_vectors
from gr.semantic_ids.collisions import EXTRA_CODE, SHARE, resolve_collisions
from gr.semantic_ids.readers import read_semantic_ids
from gr.semantic_ids.residual_kmeans import check_codebooks, codebook_report, fit_residual_kmeans
from gr.semantic_ids.semantic_ids import SemanticIdError, SemanticIds

TEXT, INTERACTIONS, BOTH = "text", "interactions", "both"  # Kinds of item vectors.


def build_semantic_ids(
    vectors: np.ndarray,
    item_ids: Sequence[str] | np.ndarray,
    *,
    num_levels: int,
    codebook_size: int,
    collision: str,
    seed: int,
    balanced: bool = False,
    min_perplexity: float = 0.0,
) -> tuple[SemanticIds, dict[str, Any]]:
    """SIDs of vectors `[N, D]` by residual k-means, and a report.

    Under `collision="extra_code"` SIDs have `num_levels + 1` levels, under `"share"` `num_levels`.
    The report (plain numbers, fit for JSON) holds `source`, `collision`, `levels` (see
    `codebook_report`), `before_policy` and `after_policy` (see `SemanticIds.collisions`).

    Raises:
        SemanticIdError: for bad vectors, an unknown policy, or a level whose relative perplexity is below
            `min_perplexity`.
    """
    sizes = (codebook_size,) * num_levels
    _, codes = fit_residual_kmeans(
        vectors,
        num_levels=num_levels,
        codebook_size=codebook_size,
        seed=seed,
        balanced=balanced,
    )
    # Before the policy: an extra code is seldom needed, so its perplexity is low by nature.
    check_codebooks(codebook_report(codes, sizes), min_perplexity)
    shared = SemanticIds(codes, sizes, item_ids)
    semantic_ids = SemanticIds(*resolve_collisions(codes, sizes, collision), item_ids)
    return semantic_ids, _report("residual k-means", collision, shared, semantic_ids)


def make_semantic_ids(
    splits: Splits,
    *,
    path: str = "",
    item_ids: str = "",
    order: str = "",
    vectors: str = BOTH,
    dim: int = 64,
    num_levels: int = 3,
    codebook_size: int = 64,
    balanced: bool = False,
    collision: str = EXTRA_CODE,
    min_perplexity: float = 0.1,
    text_model: str = "tfidf",
    seed: int = 0,
) -> tuple[SemanticIds, dict[str, Any]]:
    """SIDs of all items of the data, in the order of its item rows, and a report.

    Args:
        splits: the data; only training interactions are used.
        path: a file of finished SIDs, read as they are (shared ones stay shared); then all arguments except `item_ids`
            and `order` are ignored. "" builds SIDs.
        item_ids: a file with the item ids of the rows of a `.npy` file, of SIDs or of vectors.
        order: "items" if such rows are in the order of the data's item rows. A `.npy` file needs `item_ids` or `order`;
            a `.npz` file holds `item_ids`.
        vectors: "text", "interactions", "both", the path of a `.npy` or `.npz` file of vectors, or `module:name`, your
            own function `Splits -> [N, E]` with a row for each item row.
        dim: width of each kind of vector.
        num_levels: levels of residual k-means; "extra_code" adds one.
        codebook_size: codes of a level.
        balanced: whether codes of a level hold equally many items.
        collision: "extra_code" or "share".
        min_perplexity: least allowed relative perplexity of a level.
        text_model: "tfidf", or the name of a sentence-transformers model (whose width is its own).
        seed: same seed, same SIDs.

    Raises:
        SemanticIdError: see `build_semantic_ids`, which also describes the report.
    """
    sequences = splits.sequences
    if path:
        semantic_ids = read_semantic_ids(path, sequences.item_ids, ids_path=item_ids, order=order)
        return semantic_ids, _report(path, SHARE, semantic_ids, semantic_ids)
    if vectors in (TEXT, INTERACTIONS, BOTH):
        blocks = _vectors_of(splits, vectors, dim, text_model, seed)
    elif os.path.splitext(vectors)[1].lower() in (".npy", ".npz"):
        blocks = [
            item_vectors.load_vectors(vectors, sequences.item_ids, ids_path=item_ids, order=order)
        ]
    else:
        blocks = [_own_vectors(splits, vectors)]
    semantic_ids, report = build_semantic_ids(
        item_vectors.concatenate_vectors(blocks),
        sequences.item_ids,
        num_levels=num_levels,
        codebook_size=codebook_size,
        collision=collision,
        seed=seed,
        balanced=balanced,
        min_perplexity=min_perplexity,
    )
    return semantic_ids, report | {"source": f"residual k-means of vectors={vectors}"}


def _vectors_of(
    splits: Splits, kind: str, dim: int, text_model: str, seed: int
) -> list[np.ndarray]:
    """Blocks `[N, D]` of vectors of one kind; see `make_semantic_ids`."""
    sequences = splits.sequences
    blocks = []
    if kind != INTERACTIONS:
        texts = item_vectors.item_texts(sequences)
        if text_model == "tfidf":
            blocks.append(item_vectors.text_vectors(texts, dim, seed))
        else:
            blocks.append(item_vectors.sentence_vectors(texts, text_model))
    if kind != TEXT:
        training = training_interactions(splits)
        blocks.append(item_vectors.interaction_vectors(sequences, training, dim, seed))
    return blocks


def _own_vectors(splits: Splits, name: str) -> np.ndarray:
    """The vectors `[N, E]` of the user's own function."""
    known = (TEXT, INTERACTIONS, BOTH, "FILE.npy", "FILE.npz")
    vectors = np.asarray(load_own(name, "kind of item vectors", known, SemanticIdError)(splits))
    num_items = splits.sequences.num_items
    if vectors.ndim != 2 or len(vectors) != num_items:
        raise SemanticIdError(
            f"vectors={name!r} returned {vectors.dtype}{list(vectors.shape)}; such a function is "
            f"Splits -> [N, E], here with N = {num_items} items."
        )
    try:
        item_vectors.check_vectors(vectors)
    except SemanticIdError as error:
        raise SemanticIdError(f"vectors={name!r}: {error}") from error
    return vectors


def _report(source: str, collision: str, before: SemanticIds, after: SemanticIds) -> dict[str, Any]:
    return {
        "source": source,
        "collision": collision,
        "levels": codebook_report(after.codes, after.codebook_sizes),
        "before_policy": before.collisions(),
        "after_policy": after.collisions(),
    }
