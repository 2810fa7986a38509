"""What the items of a run have in common besides their interactions, for its memory."""

import os

from scipy import sparse

from gr.memory import similar_by_codes, similar_by_vectors
from gr.memory.content import MAX_ITEMS
from gr.runs.data import semantic_id_options
from gr.runs.experiment import ConfigError
from gr.runs.run import Run
from gr.runs.workdir import load_encoder
from gr.semantic_ids import SemanticIdError, content_vectors, item_texts, text_vectors

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
    offered = {"codes": True, "text": _has_text(run), "vectors": _has_vectors(run)}
    names = [name for name, there in offered.items() if there] if kind == "all" else [kind]
    if kind == "none":
        return {}
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


def _has_text(run: Run) -> bool:
    return any(any(texts) for texts in run.splits.sequences.item_fields.values())


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
