"""The trie of all valid semantic IDs as flat arrays that pass through `jit` (STATIC, arXiv 2602.22647).

`TrieIndex.build(tokens, vocab_size)` on the host, `save` and `load` to and from a file; `walk`, `children`, `descend`,
`items_of` on the device. `ExcludeItems`, `AttributeFilter` and `ItemMask` constrain one request without a rebuild;
`check_search` checks one beforehand. `EditableIndex` adds and removes items, `SwappableIndex` replaces an index in use,
`ShardedIndex` is split over devices. `NodeVectors` holds the mean item vector below each node. A `Catalogue` bundles
what decoding needs of the items: index, tokens, vectors.
"""

from gr.trie.catalogue import Catalogue, item_token_table
from gr.trie.constraints import (
    AttributeFilter,
    Constraint,
    Filter,
    prepare,
)
from gr.trie.exclusion import ExcludeItems
from gr.trie.index import NO_NODE, ROOT, TrieIndex
from gr.trie.inputs import NO_ITEM
from gr.trie.item_mask import ItemMask
from gr.trie.layout import Layout, TrieError
from gr.trie.node_vectors import NodeVectors
from gr.trie.overlay import EditableIndex, OverlaidIndex, check_search
from gr.trie.sharding import ShardedIndex
from gr.trie.swap import SwappableIndex
from gr.trie.transitions import (
    Nodes,
    ancestors,
    child_log_sum_exp,
    child_logits,
    child_sizes,
    child_tokens,
    children,
    descend,
    few_children,
    items_of,
    node_rows,
    root,
    slots_of,
    walk,
)

__all__ = [
    "NO_ITEM",
    "NO_NODE",
    "ROOT",
    "AttributeFilter",
    "Catalogue",
    "Constraint",
    "EditableIndex",
    "ExcludeItems",
    "Filter",
    "ItemMask",
    "Layout",
    "NodeVectors",
    "Nodes",
    "OverlaidIndex",
    "ShardedIndex",
    "SwappableIndex",
    "TrieError",
    "TrieIndex",
    "ancestors",
    "child_log_sum_exp",
    "child_logits",
    "child_sizes",
    "child_tokens",
    "check_search",
    "children",
    "descend",
    "few_children",
    "item_token_table",
    "items_of",
    "node_rows",
    "prepare",
    "root",
    "slots_of",
    "walk",
]
