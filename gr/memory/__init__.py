"""From training sequences to what they remember: sparse item-to-item weights, and priors of a request.

* `fit_memory` counts which items come with which; `tune_memory` chooses its settings on validation targets.
* `Memory.prior` gives each user's best items as an `ItemPrior`, which a search mixes into its model;
  `Memory.because` names the items of the history that a recommendation came from.
"""

from gr.memory.cooccurrence import (
    GATE_INPUTS,
    ItemMemoryError,
    Memory,
    MemorySettings,
    fit_memory,
)
from gr.memory.prior import ItemPrior
from gr.memory.tuning import tune_memory

__all__ = [
    "GATE_INPUTS",
    "ItemMemoryError",
    "ItemPrior",
    "Memory",
    "MemorySettings",
    "fit_memory",
    "tune_memory",
]
