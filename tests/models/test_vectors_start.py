"""Embeddings that begin as vectors of the items, beside means by loops."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.models import (
    ItemDecoder,
    ItemDecoderConfig,
    ModelError,
    start_from_vectors,
    unit_vectors,
)
from gr.trie import TrieIndex, descend, node_rows, root

WIDTH, VOCAB = 4, 9


def model_of(index, num_items, depth=3, **options):
    config = ItemDecoderConfig(
        vocab_size=VOCAB,
        code_length=3,
        num_items=num_items,
        num_nodes=index.layout.node_offsets[depth],
        **{"d_model": WIDTH, "num_heads": 2, "d_ff": 4, "num_layers": 1} | options,
    )
    return ItemDecoder(config, rngs=nnx.Rngs(0))


def tokens_of(codes):
    return np.array(codes, np.int32) + np.arange(3) * 3


def rows_of(index, prefixes):
    """The rows of the nodes of prefixes `[n, t]`."""
    nodes = root(index, (len(prefixes),))
    for depth, tokens in enumerate(prefixes.T):
        nodes = descend(index, depth, nodes, jnp.asarray(tokens))
    return np.asarray(node_rows(index, prefixes.shape[1], nodes))


@pytest.mark.parametrize(("depth", "item_embeddings"), [(3, True), (2, False), (0, True)])
def test_a_node_starts_from_the_mean_of_the_items_below(depth, item_embeddings):
    codes = np.random.default_rng(depth).integers(
        0, 3, (14, 3)
    )  # Some prefixes, and items, repeat.
    tokens = tokens_of(codes)
    index = TrieIndex.build(tokens, VOCAB)
    before = model_of(index, len(codes), depth, item_embeddings=item_embeddings)
    vectors = np.random.default_rng(1).normal(size=(len(codes), WIDTH)).astype(np.float32)
    after = start_from_vectors(before, index, tokens, vectors, 0.5)
    nodes = np.zeros(before.head.nodes.shape)
    for length in range(1, depth + 1):
        prefixes = np.unique(tokens[:, :length], axis=0)
        for row, prefix in zip(rows_of(index, prefixes), prefixes, strict=True):
            below = (tokens[:, :length] == prefix).all(axis=1)
            nodes[row] = 0.5 * vectors[below].mean(axis=0)
    np.testing.assert_allclose(after.head.nodes[...], nodes, rtol=1e-5, atol=1e-6)
    assert hasattr(after, "items_in") == item_embeddings
    if item_embeddings:
        moved = after.items_in[...] - before.items_in[...]
        np.testing.assert_allclose(moved, 0.5 * vectors, rtol=1e-4, atol=1e-6)
    assert not np.asarray(before.head.nodes[...]).any()  # It stays as it is.
    for (path, one), (_, other) in zip(
        *(nnx.to_flat_state(nnx.state(model)) for model in (before, after)), strict=True
    ):
        if path not in (("head", "nodes"), ("items_in",)):
            np.testing.assert_array_equal(one[...], other[...])


def test_facets_start_from_stretches_of_the_items_below():
    rng = np.random.default_rng(2)
    codes = np.concatenate([rng.integers(0, 3, (20, 3)), [[3, 0, 1]]])  # One first code of 1 item.
    tokens = tokens_of(codes)[rng.permutation(21)]
    index = TrieIndex.build(tokens, VOCAB)
    first = index.layout.node_offsets[1]
    before = model_of(index, 21, num_first=first, num_facets=3)
    vectors = rng.normal(size=(21, WIDTH)).astype(np.float32)
    after = start_from_vectors(before, index, tokens, vectors, 0.5)
    moved = np.asarray(after.head.facets[...] - before.head.facets[...])
    expected = np.zeros_like(moved)
    for code in np.unique(tokens[:, 0]):
        row = rows_of(index, np.array([[code]]))[0]
        below = sorted(
            (tuple(rows_of(index, tokens[[item], : t + 1])[0] for t in range(3)), item)
            for item in np.flatnonzero(tokens[:, 0] == code)
        )
        items = [item for _, item in below]
        for facet in range(3):
            low = facet * len(items) // 3
            high = max((facet + 1) * len(items) // 3, low + 1)
            expected[facet, row] = 0.5 * vectors[items[low:high]].mean(axis=0)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)


def test_an_item_softmax_starts_from_the_vectors_on_both_sides():
    tokens = tokens_of([[0, 0, 0], [1, 2, 0]])
    index = TrieIndex.build(tokens, VOCAB)
    before = model_of(index, 2, head="items")
    vectors = np.eye(2, WIDTH, dtype=np.float32)
    after = start_from_vectors(before, index, tokens, vectors, 2.0)
    for name in ("items_in", "items_out"):
        moved = getattr(after, name)[...] - getattr(before, name)[...]
        np.testing.assert_allclose(moved, 2 * vectors, rtol=1e-5, atol=1e-6)


def test_an_item_tower_starts_from_them_too():
    tokens = tokens_of([[0, 0, 0], [1, 2, 0]])
    index = TrieIndex.build(tokens, VOCAB)
    before = model_of(index, 2, item_share=0.5)
    vectors = np.eye(2, WIDTH, dtype=np.float32)
    after = start_from_vectors(before, index, tokens, vectors, 2.0)
    for name in ("items_in", "items_out"):
        moved = getattr(after.tower, name)[...] - getattr(before.tower, name)[...]
        np.testing.assert_allclose(moved, 2 * vectors, rtol=1e-5, atol=1e-6)


def test_vectors_of_another_shape_are_refused():
    tokens = tokens_of([[0, 0, 0], [1, 2, 0]])
    index = TrieIndex.build(tokens, VOCAB)
    model = model_of(index, 2)
    with pytest.raises(
        ModelError, match=r"shape \[2, 3\]: give \[2, 4\], one of the model's width"
    ):
        start_from_vectors(model, index, tokens, np.zeros((2, 3)), 1.0)


def test_blocks_are_centred_and_count_alike():
    text = np.array([[3.0, 0], [1, 0], [0, 0], [2, 1]])
    other = np.array([[10.0], [30], [20], [60]])
    found = unit_vectors([text, other])
    assert found.shape == (4, 3) and found.dtype == np.float32
    centre = np.array([2.0, 1 / 3])  # Of the items that have a text.
    for row, of_text, of_other in zip(found, text, other - 30, strict=True):
        expected = (
            (of_text - centre) / np.linalg.norm(of_text - centre) if of_text.any() else of_text
        )
        np.testing.assert_allclose(row[:2], expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(row[2], np.sign(of_other[0]), rtol=1e-6)
    assert not unit_vectors([np.ones((3, 2))]).any()  # Equal vectors say nothing.
