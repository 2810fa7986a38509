"""Item vectors -> codebooks -> `SemanticIds`, the table between items, codes and model tokens."""

from gr.semantic_ids.readers import (
    read_codes_csv,
    read_codes_npy,
    read_index_json,
    read_semantic_ids,
)
from gr.semantic_ids.semantic_ids import (
    BOS_TOKEN,
    FIRST_CODE_TOKEN,
    NO_CODE,
    PAD_TOKEN,
    SemanticIdError,
    SemanticIds,
)

__all__ = [
    "BOS_TOKEN",
    "FIRST_CODE_TOKEN",
    "NO_CODE",
    "PAD_TOKEN",
    "SemanticIdError",
    "SemanticIds",
    "read_codes_csv",
    "read_codes_npy",
    "read_index_json",
    "read_semantic_ids",
]
