"""A trained item-level backbone on a catalogue that has grown: nodes of the trie keep their embeddings."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gr.models.item_decoder import ItemDecoder
from gr.trie import TrieIndex, descend, node_rows, root


def on_grown_catalogue(
    model: ItemDecoder,
    before: TrieIndex,
    after: TrieIndex,
    tokens: np.ndarray,
    unknown: np.ndarray,
    node_depth: int,
) -> ItemDecoder:
    """The model with its embeddings of trie nodes in the rows of another index.

    A node keeps its embedding; new nodes have 0, so that they are scored by their code alone, and so are items that
    training did not know: their own embeddings become 0.

    Args:
        model: the trained model; it stays as it is.
        before: the index that it was trained with.
        after: the index of the grown catalogue.
        tokens: of all items of `after`, `[N, L]`.
        unknown: which of the first items, as many as the model has embeddings for, training did not know; bool.
        node_depth: depths whose nodes have embeddings.
    """
    model = nnx.clone(model)
    if model.config.item_embeddings and unknown.any():
        rows = np.flatnonzero(unknown[: model.config.num_items])
        model.items_in = nnx.Param(model.items_in[...].at[rows].set(0.0))
    if model.config.head != "trie":
        return model
    count = after.layout.node_offsets[min(node_depth, after.length)]
    old_rows, new_rows = (prefix_rows(index, tokens) for index in (before, after))
    trained = np.asarray(model.head.nodes[...])
    kept = (old_rows >= 0) & (old_rows < len(trained)) & (new_rows >= 0) & (new_rows < count)
    table = np.zeros((count, trained.shape[1]), trained.dtype)
    table[new_rows[kept]] = trained[old_rows[kept]]
    model.head.nodes = nnx.Param(jnp.asarray(table))
    model.config = dataclasses.replace(model.config, num_nodes=count)
    return model


def prefix_rows(index: TrieIndex, tokens: np.ndarray) -> np.ndarray:
    """The `node_rows` of all prefixes of semantic IDs `[N, L]`, `[N, L]`; `NO_NODE` where the index lacks one."""
    tokens = jnp.asarray(tokens, jnp.int32)
    nodes, rows = root(index, (len(tokens),)), []
    for depth in range(tokens.shape[1]):
        nodes = descend(index, depth, nodes, tokens[:, depth])
        rows.append(node_rows(index, depth + 1, nodes))
    return np.stack([np.asarray(of_depth) for of_depth in rows], axis=1)
