"""Decoders: from a backbone, a trie and histories to `Candidates`.

`beam_search(backbone, index, history, num_beams=M)` is exact and compiles into one program. `sharded_beam_search` is
the same over an index that is split over the devices of a mesh. `sample_without_replacement` draws different semantic
IDs, `sample` independent ones. `ved_search` searches a tree with a value head and a budget, as its `VedConfig` says.
`search` runs whichever of them a `SearchConfig` names.

Files: `beam.py` and `beam_step.py`, `sampling.py`, `sharded.py`, and `ved.py` with `ved_config.py`, `ved_selection.py`,
`ved_step.py` and `ved_tree.py` hold one search each. All of them share `sources.py` (what is searched) and
`trie_step.py` (one step on one trie), and `prior.py` (a prior over items, mixed into what is searched).
"""

from gr.decoding.beam import beam_search
from gr.decoding.candidates import Candidates, DecodingError, Draws, SearchTree
from gr.decoding.configured import PRESETS, SEARCHES, SearchConfig, search
from gr.decoding.items import rank_items
from gr.decoding.sampling import sample, sample_without_replacement
from gr.decoding.sharded import sharded_beam_search, sharded_mask
from gr.decoding.ved import ved_search
from gr.decoding.ved_config import VedConfig
from gr.memory import ItemPrior

__all__ = [
    "PRESETS",
    "SEARCHES",
    "Candidates",
    "DecodingError",
    "Draws",
    "ItemPrior",
    "SearchConfig",
    "SearchTree",
    "VedConfig",
    "beam_search",
    "rank_items",
    "sample",
    "sample_without_replacement",
    "search",
    "sharded_beam_search",
    "sharded_mask",
    "ved_search",
]
