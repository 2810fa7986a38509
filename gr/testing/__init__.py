"""What is needed to test a backbone, a search or a loss of your own on small, random tries.

`check_backbone(backbone, history, index)` says in words what a backbone does otherwise than the protocols of
`gr.models` want. `TableModel` is a backbone whose logits can be looked up by hand; `random_tokens` makes semantic IDs
with shared prefixes, and `random_paths` draws some of an index. Nothing here needs a test framework.
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
