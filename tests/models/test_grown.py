"""A model on a grown catalogue: nodes keep their embeddings wherever another index puts them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.models import ItemDecoder, ItemDecoderConfig, on_grown_catalogue
from gr.trie import NO_NODE, TrieIndex, descend, node_rows, root

V, L, D = 40, 3, 4


def indexes(rng, listed):
    """Random semantic IDs, some of them new, and the indexes without and with the new ones."""
    tokens = np.unique(rng.integers(2, [6, 20, V], (rng.integers(2, 60), L)), axis=0)
    tokens = rng.permutation(tokens)
    new = rng.random(len(tokens)) < 0.3
    new[0] = False
    old = np.flatnonzero(~new)
    before = TrieIndex.build(tokens[old], V, items=old, listed=listed)
    return tokens, new, before, TrieIndex.build(tokens, V, listed=listed)


def prefix_rows(index, tokens):
    """The `node_rows` of all prefixes of semantic IDs `[N, L]`."""
    nodes, rows = root(index, (len(tokens),)), []
    for depth in range(tokens.shape[1]):
        nodes = descend(index, depth, nodes, jnp.asarray(tokens[:, depth], jnp.int32))
        rows.append(np.asarray(node_rows(index, depth + 1, nodes)))
    return np.stack(rows, axis=1)


def made(before, depth, num_items, **options):
    config = ItemDecoderConfig(
        V,
        L,
        num_items=num_items,
        num_nodes=before.layout.node_offsets[depth],
        d_model=D,
        num_heads=2,
        d_ff=4,
        num_layers=1,
        **options,
    )
    return ItemDecoder(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("seed", "depth", "listed"),
    [
        pytest.param(0, 1, True, marks=pytest.mark.long),
        (1, 3, True),
        pytest.param(2, 2, False, marks=pytest.mark.long),
    ],
)
def test_a_node_has_its_embedding_or_none(seed, depth, listed):
    rng = np.random.default_rng(seed)
    tokens, new, before, after = indexes(rng, listed)
    model = made(before, depth, len(tokens))
    table = rng.normal(size=model.head.nodes.shape).astype(np.float32)
    model.head.nodes = nnx.Param(jnp.asarray(table))
    own = np.asarray(model.items_in[...])
    grown = on_grown_catalogue(model, before, after, new)
    found = np.asarray(grown.head.nodes[...])
    assert grown.config.num_nodes == len(found) == after.layout.node_offsets[depth]
    by_prefix = {}
    for sid, rows in zip(tokens[~new].tolist(), prefix_rows(before, tokens[~new]), strict=True):
        by_prefix |= {tuple(sid[: t + 1]): table[row] for t, row in enumerate(rows[:depth])}
    expected = np.zeros_like(found)
    for sid, rows in zip(tokens.tolist(), prefix_rows(after, tokens), strict=True):
        for t, row in enumerate(rows[:depth]):
            expected[row] = by_prefix.get(tuple(sid[: t + 1]), 0.0)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.asarray(grown.items_in[...]), np.where(new[:, None], 0.0, own))
    np.testing.assert_array_equal(
        np.asarray(model.head.nodes[...]), table
    )  # The trained one stays.


def test_an_item_tower_forgets_the_same_items():
    tokens, new, before, after = indexes(np.random.default_rng(0), True)
    model = made(before, 1, len(tokens), item_share=0.5)
    own = np.asarray(model.tower.items_in[...])
    grown = on_grown_catalogue(model, before, after, new)
    expected = np.where(new[:, None], 0.0, own)
    np.testing.assert_array_equal(np.asarray(grown.tower.items_in[...]), expected)
    np.testing.assert_array_equal(np.asarray(model.tower.items_in[...]), own)


def test_rows_of_prefixes_are_different_and_missing_ones_have_none():
    tokens, new, before, after = indexes(np.random.default_rng(3), True)
    rows, prefixes = prefix_rows(after, tokens), {}
    for sid, of_sid in zip(tokens.tolist(), rows.tolist(), strict=True):
        for t, row in enumerate(of_sid):
            prefixes.setdefault(row, set()).add(tuple(sid[: t + 1]))
    assert all(len(of_row) == 1 for of_row in prefixes.values())
    assert new.any() and (prefix_rows(before, tokens[new])[:, -1] == NO_NODE).all()


@pytest.mark.parametrize("head", ["vocabulary", "items"])
def test_other_heads_have_no_nodes(head):
    tokens, new, before, after = indexes(np.random.default_rng(0), True)
    model = made(before, 2, len(tokens), head=head)
    grown = on_grown_catalogue(model, before, after, np.zeros(len(tokens), bool))
    for one, other in zip(jax.tree.leaves(model), jax.tree.leaves(grown), strict=True):
        np.testing.assert_array_equal(one, other)
