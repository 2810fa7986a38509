"""The trie of all valid semantic IDs as flat arrays that pass through `jit` (STATIC, arXiv 2602.22647).

`TrieIndex.build(tokens, vocab_size)` on the host; `children`, `walk`, `items_of_leaves` on the device;
`ExcludeItems` is a constraint for one request, applied without a rebuild.
"""

from gr.trie.constraints import ExcludeItems
from gr.trie.index import NO_ITEM, NO_NODE, ROOT, TrieError, TrieIndex
from gr.trie.transitions import ancestors, children, items_of_leaves, slots_of, walk

__all__ = [
    "NO_ITEM",
    "NO_NODE",
    "ROOT",
    "ExcludeItems",
    "TrieError",
    "TrieIndex",
    "ancestors",
    "children",
    "items_of_leaves",
    "slots_of",
    "walk",
]
