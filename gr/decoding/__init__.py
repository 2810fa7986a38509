"""Decoders: from a backbone, a trie and histories to `Candidates`.

`beam_search(backbone, index, history, num_beams=M)` is exact and compiles into one program; `sharded_beam_search` is
the same over an index that is split over the devices of a mesh.
"""

from gr.decoding.beam import beam_search
from gr.decoding.candidates import Candidates, DecodingError
from gr.decoding.sharded import sharded_beam_search, sharded_mask

__all__ = [
    "Candidates",
    "DecodingError",
    "beam_search",
    "sharded_beam_search",
    "sharded_mask",
]
