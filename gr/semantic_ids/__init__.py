"""Item vectors -> codebooks -> `SemanticIds`, the table between items, codes and model tokens.

`make_semantic_ids` does all steps from the data of a `Splits`; `fit_semantic_ids` also returns the fit, an
`ItemEncoder`, which gives new items codes: `with_new_items` adds them. The parts:

* vectors: `item_texts`, `text_vectors`, `sentence_vectors`, `interaction_vectors`, `load_vectors`,
  `concatenate_vectors`, and `catalogue_vectors` for rewards;
* residual k-means: `fit_residual_kmeans`, `ResidualCodebooks`, `codebook_report`, `check_codebooks`;
* collisions: `append_extra_code`, `resolve_collisions`;
* existing files of semantic IDs: `read_index_json`, ...;
* text for a terminal: `report_table`, `example_table`.
"""

from gr.semantic_ids.build import (
    FittedIds,
    build_semantic_ids,
    content_vectors,
    fit_semantic_ids,
    make_semantic_ids,
)
from gr.semantic_ids.collisions import append_extra_code, resolve_collisions, with_new_items
from gr.semantic_ids.item_encoder import ItemEncoder
from gr.semantic_ids.item_vectors import (
    catalogue_vectors,
    concatenate_vectors,
    interaction_vectors,
    item_texts,
    load_vectors,
    sentence_vectors,
    text_vectors,
)
from gr.semantic_ids.readers import (
    read_codes_csv,
    read_codes_npy,
    read_index_json,
    read_semantic_ids,
)
from gr.semantic_ids.residual_kmeans import (
    ResidualCodebooks,
    assign_balanced,
    check_codebooks,
    codebook_report,
    fit_residual_kmeans,
)
from gr.semantic_ids.semantic_ids import (
    BOS_TOKEN,
    FIRST_CODE_TOKEN,
    NO_CODE,
    PAD_TOKEN,
    SemanticIdError,
    SemanticIds,
)
from gr.semantic_ids.tables import example_table, report_table

__all__ = [
    "BOS_TOKEN",
    "FIRST_CODE_TOKEN",
    "FittedIds",
    "ItemEncoder",
    "NO_CODE",
    "PAD_TOKEN",
    "ResidualCodebooks",
    "SemanticIdError",
    "SemanticIds",
    "append_extra_code",
    "assign_balanced",
    "build_semantic_ids",
    "catalogue_vectors",
    "check_codebooks",
    "codebook_report",
    "concatenate_vectors",
    "content_vectors",
    "example_table",
    "fit_residual_kmeans",
    "fit_semantic_ids",
    "interaction_vectors",
    "item_texts",
    "load_vectors",
    "make_semantic_ids",
    "read_codes_csv",
    "read_codes_npy",
    "read_index_json",
    "read_semantic_ids",
    "report_table",
    "resolve_collisions",
    "sentence_vectors",
    "text_vectors",
    "with_new_items",
]
