"""From training sequences to what they remember: sparse item-to-item weights, and priors of a request.

* `fit_memory` counts which items come with which; `tune_memory` chooses its settings on validation targets.
* `similar_by_codes` and `similar_by_vectors` say which items have like content, which a memory may add to its counts.
* `Memory.prior` gives each user's best items as an `ItemPrior`, which a search mixes into its model;
  `Gate` says how much it counts, and `Memory.because` names the items of the history that a recommendation came from.
"""

from gr.memory.content import similar_by_codes, similar_by_vectors
from gr.memory.cooccurrence import (
    GATE_INPUTS,
    ItemMemoryError,
    Memory,
    MemorySettings,
    fit_memory,
)
from gr.memory.gate import Gate, best_weight, fit_gate
from gr.memory.prior import ItemPrior
from gr.memory.tuning import tune_memory

__all__ = [
    "GATE_INPUTS",
    "Gate",
    "ItemMemoryError",
    "ItemPrior",
    "Memory",
    "MemorySettings",
    "best_weight",
    "fit_gate",
    "fit_memory",
    "similar_by_codes",
    "similar_by_vectors",
    "tune_memory",
]
