"""Mean vectors of nodes against means over the items below each prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.testing import random_tokens
from gr.trie import NodeVectors, TrieError, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

# A layout with room serves all random tries of a mix, so that each mix compiles once.
of_prefixes = jax.jit(NodeVectors.of_prefixes)


def unit_rows(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("kinds", [tries.MIXES[i] for i in (0, 1, 3, 5)])
@settings(max_examples=8, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_means_are_those_of_the_items_below(kinds, tokens, seed):
    rng = np.random.default_rng(seed)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    vectors = unit_rows(rng, len(tokens), 5)
    asked = np.concatenate([tokens[rng.integers(0, len(tokens), 6)], random_tokens(rng, 6)])
    found = of_prefixes(NodeVectors.build(index, vectors), index, jnp.asarray(asked))
    for row, means in zip(asked, found, strict=True):
        for depth in range(1, 4):
            below = [sid[:depth] == tuple(row[:depth]) for sid in map(tuple, tokens.tolist())]
            expected = vectors[below].mean(axis=0) if any(below) else np.zeros(5)
            np.testing.assert_allclose(means[depth - 1], expected, atol=1e-6)


def test_items_may_have_any_numbers():
    vectors = np.zeros((8, 2))
    vectors[5], vectors[7] = [1, 0], [0, 1]
    index = TrieIndex.build(np.array([[1, 2], [1, 3]]), 4, items=np.array([7, 5]))
    found = NodeVectors.build(index, vectors).of_prefixes(index, jnp.array([[1, 2], [1, 3]]))
    np.testing.assert_allclose(found, [[[0.5, 0.5], [0, 1]], [[0.5, 0.5], [1, 0]]])


def test_sums_stay_exact_behind_many_items():
    # All vectors point one way, but for the last: in float32 alone its difference of running sums is lost.
    num = 50_000
    tokens = np.stack(np.divmod(np.arange(num), 500), axis=1) + np.array([0, 400])
    vectors = np.tile(np.float32([0.6, 0.8]), (num, 1))
    vectors[-1] = [1e-4, 1.0]
    index = TrieIndex.build(tokens, 900)
    node_vectors = NodeVectors.build(index, vectors)
    found = node_vectors.of_prefixes(index, jnp.asarray(tokens[-1:]))[0]
    np.testing.assert_allclose(found[1], vectors[-1], atol=1e-7)
    expected = vectors[-500:].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    naive = np.diff(np.cumsum(vectors[:, 0], dtype=np.float32)[-2:])
    assert naive[0] == 0.0


def test_vectors_belong_to_their_index():
    tokens = np.array([[1, 2], [1, 3]])
    index = TrieIndex.build(tokens, 4)
    node_vectors = NodeVectors.build(index, np.ones((2, 3)))
    other = TrieIndex.build(tokens[::-1], 4, layout=index.layout)
    assert np.isnan(of_prefixes(node_vectors, other, jnp.asarray(tokens))).all()
    assert (np.asarray(of_prefixes(node_vectors, index, jnp.asarray(tokens))) == 1).all()
    with pytest.raises(TrieError, match="made for another index"):
        of_prefixes(node_vectors, TrieIndex.build(tokens[:1], 4), jnp.asarray(tokens))


def test_what_does_not_fit_is_refused():
    index = TrieIndex.build(np.array([[1, 2], [1, 3]]), 4)
    with pytest.raises(TrieError, match="vectors has 1 rows, but the index holds item 1"):
        NodeVectors.build(index, np.ones((1, 3)))
    with pytest.raises(TrieError, match=r"finite numbers \[N, E\], got shape \(2,\)"):
        NodeVectors.build(index, np.ones(2))
    with pytest.raises(TrieError, match="finite"):
        NodeVectors.build(index, np.full((2, 3), np.nan))
