"""Decoders: from a backbone, a trie and histories to `Candidates`.

`beam_search(backbone, index, history, num_beams=M)` is exact and compiles into one program.
"""

from gr.decoding.beam import beam_search
from gr.decoding.candidates import Candidates, DecodingError

__all__ = ["Candidates", "DecodingError", "beam_search"]
