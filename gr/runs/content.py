"""What is known of the items of a run: likeness of content for its memory, vectors that its model starts from."""

import os

import numpy as np
from scipy import sparse

from gr.data import Splits, training_interactions
from gr.memory import similar_by_codes, similar_by_vectors
from gr.memory.content import MAX_ITEMS
from gr.models import ItemDecoder, start_from_vectors, unit_vectors
from gr.runs.data import semantic_id_options
from gr.runs.experiment import ConfigError, Experiment
from gr.runs.run import Run
from gr.runs.workdir import load_encoder
from gr.semantic_ids import (
    SemanticIdError,
    SemanticIds,
    content_vectors,
    interaction_vectors,
    item_texts,
    text_vectors,
)
from gr.trie import Catalogue

_TEXT_DIM = 128


def similar_items(run: Run, kind: str) -> dict[str, sparse.csr_array]:
    """Similarities of the items' content by name, as `gr.memory.fit_memory` takes them.

    Args:
        run: the trained run.
        kind: one of `MemoryConfig.content`: a name, "all" that the data have, or "none".

    Raises:
        ConfigError: if the data do not have the one that is named.
        SemanticIdError: if it cannot be used; for "all" it is left out with a note.
    """
    if kind == "none":
        return {}
    offered = {"codes": True, "text": _has_text(run.splits), "vectors": _has_vectors(run)}
    names = [name for name, there in offered.items() if there] if kind == "all" else [kind]
    if not offered.get(kind, True):
        raise ConfigError(
            f"memory.content={kind!r}: the items have no {kind}; use 'codes', what their semantic IDs share, "
            "or 'all'"
        )
    num_items = run.splits.sequences.num_items
    if num_items > MAX_ITEMS:
        if kind not in ("all", "codes"):
            raise ConfigError(
                f"memory.content={kind!r} compares all pairs of up to {MAX_ITEMS:,} items; these are {num_items:,}: "
                "use 'codes'"
            )
        if len(names) > 1:
            print(
                f"note: memory.content={kind!r} goes without {', '.join(names[1:])}: all pairs of items are compared, "
                f"of up to {MAX_ITEMS:,}; these are {num_items:,}"
            )
        names = ["codes"]
    similar = {}
    for name in names:
        try:
            similar[name] = _MAKE[name](run)
        except SemanticIdError as error:  # Such as texts without a word.
            if kind != "all":
                raise
            print(f"note: memory.content={kind!r} goes without {name}: {error}")
    return similar


def from_vectors(
    config: Experiment,
    model: ItemDecoder,
    splits: Splits,
    semantic_ids: SemanticIds,
    catalogue: Catalogue,
) -> ItemDecoder:
    """The freshly initialised model, started from what `item_decoder.start_from` says.

    Args:
        config: the settings.
        model: of the backbone "item_decoder".
        splits: the data; of interactions only those of training are used.
        semantic_ids: of all items.
        catalogue: what the model is trained with.

    Raises:
        SemanticIdError: if the data do not have what is named; for "all" it is left out with a note.
    """
    sizes, blocks = config.item_decoder, []
    if sizes.start_from == "none":
        return model
    kinds = [sizes.start_from]
    if sizes.start_from == "all":
        kinds = ["text", "interactions"] if _has_text(splits) else ["interactions"]
    for place, kind in enumerate(kinds):
        width = sizes.d_model * (place + 1) // len(kinds) - sizes.d_model * place // len(kinds)
        try:
            blocks.append(_block(kind, splits, width, config.seed))
        except SemanticIdError as error:  # Such as texts without a word.
            if sizes.start_from != "all":
                raise
            print(f"note: item_decoder.start_from='all' goes without {kind}: {error}")
    if not blocks:
        return model
    missing = sizes.d_model - sum(block.shape[1] for block in blocks)
    vectors = np.pad(unit_vectors(blocks), ((0, 0), (0, missing)))
    return start_from_vectors(
        model, catalogue.index, semantic_ids.tokens, vectors, sizes.start_scale
    )


def _block(kind: str, splits: Splits, width: int, seed: int) -> np.ndarray:
    if kind == "text":
        return text_vectors(item_texts(splits.sequences), width, seed)
    return interaction_vectors(splits.sequences, training_interactions(splits), width, seed)


def _has_text(splits: Splits) -> bool:
    return any(any(texts) for texts in splits.sequences.item_fields.values())


def _has_vectors(run: Run) -> bool:
    """Whether semantic IDs were fitted on vectors of a file, or of the user's own function."""
    vectors = run.config.semantic_ids.vectors
    is_file = os.path.splitext(vectors)[1].lower() in (".npy", ".npz")
    return not run.config.semantic_ids.path and (is_file or ":" in vectors)


def _by_vectors(run: Run) -> sparse.csr_array:
    options = semantic_id_options(run.config)
    encoder = load_encoder(run.workdir, run.config.semantic_ids.path)
    item_ids, order = options["item_ids"], options["order"]
    return similar_by_vectors(content_vectors(encoder, run.splits, item_ids=item_ids, order=order))


_MAKE = {
    "codes": lambda run: similar_by_codes(run.semantic_ids.codes),
    "text": lambda run: similar_by_vectors(
        text_vectors(item_texts(run.splits.sequences), _TEXT_DIM, seed=0)
    ),
    "vectors": _by_vectors,
}
