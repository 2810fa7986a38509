"""Tools to test your own backbone, search or loss on small random tries.

`check_backbone(backbone, history, index)` explains where a backbone violates the protocols of `gr.models`. `TableModel`
is a backbone that looks its logits up in a table; `random_tokens` makes semantic IDs with shared prefixes, and
`random_paths` draws semantic IDs from an index. Nothing here needs a test framework.
"""

from gr.testing.conformance import ConformanceError, check_backbone
from gr.testing.semantic_ids import LEVEL_TOKENS, random_paths, random_tokens
from gr.testing.table_model import TableModel, random_table_model

__all__ = [
    "LEVEL_TOKENS",
    "ConformanceError",
    "TableModel",
    "check_backbone",
    "random_paths",
    "random_table_model",
    "random_tokens",
]
