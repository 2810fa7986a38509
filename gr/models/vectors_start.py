"""Embeddings that begin as vectors of the items, not at random.

An item that was seen five times has learnt little by the end of training. A vector of what is known of it, its text or
its neighbours in users' sequences, puts it among its like from the first step on.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gr.models.backbone import ModelError
from gr.models.item_decoder import ItemDecoder
from gr.models.trie_head import TrieHead
from gr.trie import NO_NODE, TrieIndex, descend, node_rows, root


def start_from_vectors(
    model: ItemDecoder, index: TrieIndex, tokens: np.ndarray, vectors: np.ndarray, scale: float
) -> ItemDecoder:
    """The model with vectors added to its embeddings of items and of trie nodes, on the host.

    A node gets the mean of the items below it.

    Args:
        model: freshly initialised; it stays as it is.
        index: the trie that it is trained with.
        tokens: of all items `[N, L]`.
        vectors: of all items `[N, D]`, of the model's width; see `unit_vectors`.
        scale: the vectors are multiplied by it.

    Raises:
        ModelError: for vectors of another shape.
    """
    shape = (model.config.num_items, model.config.d_model)
    if vectors.shape != shape:
        raise ModelError(
            f"vectors have shape {list(vectors.shape)}: give {list(shape)}, one of the model's width for each item"
        )
    model, vectors = nnx.clone(model), (scale * vectors).astype(np.float32)
    for tower in _towers(model):
        for name in ("items_in", "items_out"):
            if hasattr(tower, name):
                setattr(tower, name, nnx.Param(getattr(tower, name)[...] + vectors))
    head = getattr(model, "head", None)
    if isinstance(head, TrieHead):
        rows = np.asarray(_rows(index, jnp.asarray(tokens)))
        head.nodes = nnx.Param(head.nodes[...] + _of_nodes(rows, vectors, len(head.nodes)))
        if hasattr(head, "facets"):
            facets = _of_facets(rows, vectors, *head.facets.shape[:2])
            head.facets = nnx.Param(head.facets[...] + facets)
    return model


def _towers(model: ItemDecoder) -> list[ItemDecoder]:
    """The model, and its item tower if it has one."""
    return [model, *([model.tower] if model.item_share else [])]


def unit_vectors(blocks: list[np.ndarray]) -> np.ndarray:
    """Blocks of vectors `[N, D_b]` side by side, each centred and its rows of length 1.

    Rows of zeros, items of which a block knows nothing, stay zeros. Returns `[N, sum D_b]` float32.
    """
    parts = []
    for block in blocks:
        known = block.any(axis=1, keepdims=True)
        centre = block.sum(axis=0) / max(int(known.sum()), 1)
        centred = np.where(known, block - centre, 0.0)
        lengths = np.linalg.norm(centred, axis=1, keepdims=True)
        parts.append(centred / np.maximum(lengths, 1e-6))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _of_nodes(rows: np.ndarray, vectors: np.ndarray, num_nodes: int) -> np.ndarray:
    """The mean of `vectors [N, D]` of the items below each of the first nodes, `[num_nodes, D]`."""
    sums, counts = np.zeros((num_nodes, vectors.shape[1]), np.float32), np.zeros(num_nodes)
    for at_depth in rows.T:
        known = (at_depth != NO_NODE) & (at_depth < num_nodes)
        np.add.at(sums, at_depth[known], vectors[known])
        counts += np.bincount(at_depth[known], minlength=num_nodes)
    return sums / np.maximum(counts, 1)[:, None].astype(np.float32)


def _of_facets(rows: np.ndarray, vectors: np.ndarray, num_facets: int, first: int) -> np.ndarray:
    """Means of the items below each node of depth 1, in as many stretches of equal length in the order of the trie.

    A node of fewer items than facets has some items in several of them. `[num_facets, first, D]`.
    """
    order = np.lexsort(rows.T[::-1])
    order = order[rows[order, 0] != NO_NODE]
    bounds = np.searchsorted(rows[order, 0], np.arange(first + 1))
    begin, count = bounds[:-1], np.diff(bounds)
    places = np.arange(num_facets)[:, None]
    low = begin + places * count // num_facets
    high = np.maximum(begin + (places + 1) * count // num_facets, low + (count > 0))
    sums = np.concatenate([np.zeros((1, vectors.shape[1])), vectors[order].cumsum(0, np.float64)])
    means = (sums[high] - sums[low]) / np.maximum(high - low, 1)[..., None]
    return means.astype(np.float32)


@jax.jit
def _rows(index: TrieIndex, tokens: jax.Array) -> jax.Array:
    """`node_rows` `[N, L]` of all prefixes of semantic IDs `[N, L]`."""
    nodes, rows = root(index, tokens.shape[:1]), []
    for depth in range(tokens.shape[1]):
        nodes = descend(index, depth, nodes, tokens[:, depth])
        rows.append(node_rows(index, depth + 1, nodes))
    return jnp.stack(rows, axis=1)
