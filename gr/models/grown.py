"""A trained backbone on a catalogue that has grown."""

from typing import Any

import numpy as np
from flax import nnx

from gr.models.backbone import item_share
from gr.models.trie_head import TrieHead, remap_nodes
from gr.trie import TrieIndex


def on_grown_catalogue(model: Any, before: TrieIndex, after: TrieIndex, unknown: np.ndarray) -> Any:
    """The model for another index: its trie nodes keep their embeddings, and what training did not know has none.

    Args:
        model: the trained model, of any backbone; it stays as it is.
        before: the index that it was trained with.
        after: the index of the grown catalogue.
        unknown: which items training did not know, bool, for the first items of `after` at least. If the model has
            embeddings of items, theirs become 0.
    """
    if isinstance(getattr(model, "head", None), TrieHead):
        model = remap_nodes(model, before, after)
    if unknown.any() and hasattr(model, "items_in"):
        model = nnx.clone(model)
        rows = np.flatnonzero(unknown[: model.config.num_items])
        for part in [model, *([model.tower] if item_share(model) else [])]:
            part.items_in = nnx.Param(part.items_in[...].at[rows].set(0.0))
    return model
