"""From data to `SemanticIds`, with a quality report."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gr.data.sequences import Splits
from gr.data.splits import training_interactions
from gr.fields import load_own
from gr.semantic_ids import item_vectors
from gr.semantic_ids.collisions import EXTRA_CODE, SHARE, resolve_collisions, with_new_items
from gr.semantic_ids.item_encoder import BOTH, INTERACTIONS, TEXT, TFIDF, ItemEncoder
from gr.semantic_ids.readers import read_semantic_ids
from gr.semantic_ids.residual_kmeans import check_codebooks, codebook_report, fit_residual_kmeans
from gr.semantic_ids.semantic_ids import SemanticIdError, SemanticIds


@dataclasses.dataclass(frozen=True, eq=False)
class FittedIds:
    """Semantic IDs, how good they are, and the fit that made them."""

    semantic_ids: SemanticIds
    report: dict[str, Any]  # Plain numbers, fit for JSON; see `build_semantic_ids`.
    encoder: ItemEncoder | None  # None for IDs of a finished file.


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
    return _with_policy(codes, sizes, item_ids, collision, min_perplexity)


def _with_policy(
    codes: np.ndarray,
    sizes: tuple[int, ...],
    item_ids: Sequence[str] | np.ndarray,
    collision: str,
    min_perplexity: float,
    spare_codes: int = 0,
) -> tuple[SemanticIds, dict[str, Any]]:
    """SIDs of codes `[N, L]` under a policy, and a report; see `build_semantic_ids`."""
    # Before the policy: an extra code is seldom needed, so its perplexity is low by nature.
    check_codebooks(codebook_report(codes, sizes), min_perplexity)
    shared = SemanticIds(codes, sizes, item_ids)
    resolved = resolve_collisions(codes, sizes, collision, spare_codes)
    semantic_ids = SemanticIds(*resolved, item_ids)
    return semantic_ids, _report("residual k-means", collision, shared, semantic_ids)


def make_semantic_ids(splits: Splits, **options: Any) -> tuple[SemanticIds, dict[str, Any]]:
    """SIDs of all items of the data and a report: `fit_semantic_ids`, which has the options, without the fit itself."""
    fitted = fit_semantic_ids(splits, **options)
    return fitted.semantic_ids, fitted.report


def fit_semantic_ids(
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
    spare_codes: int = 0,
    min_perplexity: float = 0.1,
    text_model: str = TFIDF,
    seed: int = 0,
) -> FittedIds:
    """SIDs of all items of the data, in the order of its item rows, with a report and the fit.

    Cold items of a split take no part in the fit: TF-IDF, SVD and codebooks see the others only, and cold items get
    their SIDs as new items do, by `ItemEncoder` and `with_new_items`.

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
        spare_codes: extra codes beyond those in use, for items that are added later.
        min_perplexity: least allowed relative perplexity of a level.
        text_model: "tfidf", or the name of a sentence-transformers model (whose width is its own).
        seed: same seed, same SIDs.

    Raises:
        SemanticIdError: see `build_semantic_ids`, which also describes the report; and for cold items whose SIDs would
            be of a finished file or of interactions.
    """
    sequences, cold = splits.sequences, splits.cold
    if cold is not None and (path or vectors == INTERACTIONS):
        told = f"were read from {path}" if path else "are made from interactions, which they lack"
        raise SemanticIdError(
            f"the split has cold items, whose semantic IDs {told}: make them from text or ready vectors, fitted on the "
            f"other items (semantic_ids.path='' and semantic_ids.vectors={TEXT})"
        )
    if path:
        semantic_ids = read_semantic_ids(path, sequences.item_ids, ids_path=item_ids, order=order)
        return FittedIds(semantic_ids, _report(path, SHARE, semantic_ids, semantic_ids), None)

    # Vectors of the items that take part in the fit.
    fitted = np.arange(sequences.num_items) if cold is None else np.flatnonzero(~cold)
    text, fields, blocks = None, (), []
    if vectors in (TEXT, BOTH):
        fields = tuple(sequences.item_fields)
        texts = item_vectors.item_texts(sequences)
        texts = [texts[row] for row in fitted]
        if text_model == TFIDF:
            text, of_text = item_vectors.TextEncoder.fit(texts, dim, seed)
        else:
            of_text = item_vectors.sentence_vectors(texts, text_model)
        blocks.append(of_text)
    if vectors in (INTERACTIONS, BOTH):
        training = training_interactions(splits)
        of_all = item_vectors.interaction_vectors(sequences, training, dim, seed)
        blocks.append(of_all[fitted])
    if not blocks:
        of_all = _ready_vectors(splits, vectors, item_ids, order)
        blocks.append(of_all[fitted])

    # Codebooks, and the codes of all items.
    scales = item_vectors.fit_scales(blocks)
    codebooks, codes = fit_residual_kmeans(
        item_vectors.scaled_blocks(scales, blocks),
        num_levels=num_levels,
        codebook_size=codebook_size,
        seed=seed,
        balanced=balanced,
    )
    encoder = ItemEncoder(vectors, fields, text_model, text, scales, codebooks)
    semantic_ids, report = _with_policy(
        codes,
        (codebook_size,) * num_levels,
        sequences.item_ids[fitted],
        collision,
        min_perplexity,
        spare_codes,
    )
    report["source"] = f"residual k-means of vectors={vectors}"
    if cold is not None:
        new = np.flatnonzero(cold)
        if encoder.reads_text:
            of_new = encoder.encode_fields(fields_of(splits, new))
        else:
            of_new = encoder.encode_vectors(of_all[new])
        semantic_ids = with_new_items(semantic_ids, of_new, sequences.item_ids[new], grow=True)
        semantic_ids = semantic_ids.select(sequences.item_ids)
        report["source"] += f", fitted on the {len(fitted):,} items that are not cold"
        report["cold_items"] = len(new)
    return FittedIds(semantic_ids, report, encoder)


def fields_of(splits: Splits, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The text fields of some items, name -> `[n]` str."""
    return {name: texts[rows] for name, texts in splits.sequences.item_fields.items()}


def content_vectors(
    encoder: ItemEncoder, splits: Splits, *, item_ids: str = "", order: str = ""
) -> np.ndarray:
    """The vectors `[N, D]` of all items by which a fit clusters their content: of text, or ready ones.

    Args:
        encoder: the fit.
        splits: the data.
        item_ids: see `fit_semantic_ids`.
        order: see `fit_semantic_ids`.

    Raises:
        SemanticIdError: if the fit saw interactions alone.
    """
    if encoder.reads_text or encoder.vectors == INTERACTIONS:
        return encoder.text_blocks(splits.sequences.item_fields)[0]
    return _ready_vectors(splits, encoder.vectors, item_ids, order)


def _ready_vectors(splits: Splits, vectors: str, item_ids: str, order: str) -> np.ndarray:
    """Vectors `[N, E]` of a file, or of the user's own function."""
    if os.path.splitext(vectors)[1].lower() in (".npy", ".npz"):
        of_items = splits.sequences.item_ids
        return item_vectors.load_vectors(vectors, of_items, ids_path=item_ids, order=order)
    return _own_vectors(splits, vectors)


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
