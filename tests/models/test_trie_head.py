"""Node embeddings follow their prefixes into another trie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scorers import node_rows

from gr.decoding import DecodingError, beam_search
from gr.losses import scored_log_probs
from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    ItemDecoder,
    ItemDecoderConfig,
    ItemHistory,
    ModelError,
    remap_nodes,
    trie_head,
)
from gr.models.trie_head import TrieHead
from gr.trie import EditableIndex, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

VOCAB, LENGTH, WIDTH = 40, 3, 8


def random_ids(rng, count):
    return rng.integers([2, 6, 12], [6, 12, 40], (count, LENGTH))


def make_model(num_nodes, num_first=0):
    config = ItemDecoderConfig(
        VOCAB,
        LENGTH,
        9,
        num_nodes,
        num_first=num_first,
        num_facets=min(num_first, 2),
        d_model=WIDTH,
        num_heads=2,
        d_ff=16,
    )
    model = ItemDecoder(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    model.head.nodes[...] = jnp.asarray(rng.normal(size=(num_nodes, WIDTH)), jnp.float32)
    if num_first:
        facets = rng.normal(size=model.head.facets.shape)
        model.head.facets[...] = jnp.asarray(facets, jnp.float32)
    return model


@pytest.mark.parametrize("part", [1, 3, 100])
def test_scores_in_parts_are_products_with_each_child(monkeypatch, part):
    monkeypatch.setattr(trie_head, "_GATHERED_ON_CPU", part * 5 * WIDTH)  # Of 8 states, 5 children.
    rng = np.random.default_rng(0)
    codes, nodes, hidden, slopes = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((VOCAB, WIDTH), (9, WIDTH), (2, 4, WIDTH), (2, 4, 5))
    )
    tokens, rows = rng.integers(0, VOCAB, (2, 4, 5)), rng.integers(-1, 12, (2, 4, 5))
    head = TrieHead(WIDTH, VOCAB, len(nodes), rngs=nnx.Rngs(0))
    head.codes[...], head.nodes[...] = codes, nodes

    def total(head, hidden):
        scores = head.score(hidden, jnp.asarray(tokens), jnp.asarray(rows))
        return (scores * slopes).sum(), scores

    (of_head, of_hidden), found = jax.jit(jax.grad(total, (0, 1), has_aux=True))(head, hidden)
    to_codes, to_nodes, to_hidden = (np.zeros(x.shape) for x in (codes, nodes, hidden))
    for place in np.ndindex(2, 4, 5):
        token, row, slope = tokens[place], rows[place], slopes[place]
        known = 0 <= row < len(nodes)
        vector = codes[token] + (nodes[row] if known else 0.0)
        assert float(found[place]) == pytest.approx(float(vector @ hidden[place[:2]]), abs=1e-4)
        to_hidden[place[:2]] += slope * vector
        to_codes[token] += slope * hidden[place[:2]]
        if known:
            to_nodes[row] += slope * hidden[place[:2]]
    np.testing.assert_allclose(of_hidden, to_hidden, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_head.codes[...], to_codes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_head.nodes[...], to_nodes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows_from", [-2, 4])  # Children with facets, or without.
@pytest.mark.parametrize("shared", [False, True])
def test_facets_add_the_mean_of_their_exponentials(rows_from, shared):
    rng, first = np.random.default_rng(0), 4
    head = TrieHead(WIDTH, VOCAB, 9, (3, first), rngs=nnx.Rngs(0))
    head.facets[...] = jnp.asarray(rng.normal(size=head.facets.shape), jnp.float32)
    facets = np.asarray(head.facets[...])
    shape = (1, 1, 5) if shared else (2, 4, 5)
    tokens, rows = rng.integers(0, VOCAB, shape), rng.integers(rows_from, 12, shape)
    hidden, slopes = rng.normal(size=(2, 4, WIDTH)), rng.normal(size=(2, 4, 5))
    plain = TrieHead(WIDTH, VOCAB, 9, rngs=nnx.Rngs(0))
    plain.codes[...], plain.nodes[...] = head.codes[...], head.nodes[...]

    def scores(head, hidden):
        return head.score(hidden, jnp.asarray(tokens), jnp.asarray(rows))

    def added(head, hidden):
        found = scores(head, hidden) - scores(plain, hidden)
        return (found * slopes).sum(), found

    hidden = jnp.asarray(hidden, jnp.float32)
    (of_head, of_hidden), found = jax.jit(jax.grad(added, (0, 1), has_aux=True))(head, hidden)
    to_facets, to_hidden = np.zeros(facets.shape), np.zeros(hidden.shape)
    for user, beam, child in np.ndindex(2, 4, 5):
        row = rows[0, 0, child] if shared else rows[user, beam, child]
        expected = 0.0
        if 0 <= row < first:
            shares = np.exp(facets[:, row] @ np.asarray(hidden[user, beam]))
            expected, shares = np.log(shares.mean()), shares / shares.sum()
            slope = slopes[user, beam, child]
            to_facets[:, row] += slope * shares[:, None] * np.asarray(hidden[user, beam])
            to_hidden[user, beam] += slope * shares @ facets[:, row]
        assert float(found[user, beam, child]) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(of_head.facets[...], to_facets, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_hidden, to_hidden, rtol=1e-4, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.integers(0, LENGTH), listed=st.booleans())
def test_a_prefix_keeps_its_embedding_and_a_new_one_has_none(seed, depth, listed):
    rng = np.random.default_rng(seed)
    first, more = random_ids(rng, 150), random_ids(rng, 60)
    other = np.concatenate([first[rng.random(150) < 0.7], more])
    old = TrieIndex.build(first, VOCAB, headroom=0.1)
    new = TrieIndex.build(other, VOCAB, listed=listed)
    model = make_model(old.layout.node_offsets[depth], old.layout.node_offsets[1])
    moved = remap_nodes(model, old, new)
    assert moved.config.num_nodes == len(moved.head.nodes[...]) == new.layout.node_offsets[depth]
    before, after = np.asarray(model.head.nodes[...]), np.asarray(moved.head.nodes[...])
    row_before, row_after = node_rows(first, old.layout), node_rows(other, new.layout)
    expected = np.zeros_like(after)
    for prefix, row in row_after.items():
        if len(prefix) <= depth and prefix in row_before:
            expected[row] = before[row_before[prefix]]
    np.testing.assert_array_equal(after, expected)
    before_facets, facets = np.asarray(model.head.facets[...]), np.asarray(moved.head.facets[...])
    assert moved.config.num_first == facets.shape[1] == new.layout.node_offsets[1]
    expected = np.zeros_like(facets)
    for prefix, row in row_after.items():
        if len(prefix) == 1 and prefix in row_before:
            expected[:, row] = before_facets[:, row_before[prefix]]
    np.testing.assert_array_equal(facets, expected)
    # All else is the same, and the old model is as it was.
    np.testing.assert_array_equal(moved.head.codes[...], model.head.codes[...])
    assert model.config.num_nodes == len(before)


def test_a_compacted_index_is_searched_as_before():
    rng = np.random.default_rng(1)
    tokens, more = random_ids(rng, 30), random_ids(rng, 12)
    editable, _ = EditableIndex.build(tokens, VOCAB).add(more)
    offsets = editable.index.base.layout.node_offsets
    model = make_model(offsets[-1], offsets[1])
    history = ItemHistory(
        jnp.array([[0, 3], [5, -1]]), jnp.array([tokens[[0, 3]], [tokens[5], [0] * 3]])
    )
    before = beam_search(model, editable.index, history, 50)
    compacted = editable.compact()
    moved = remap_nodes(model, editable.index.base, compacted.index.base)
    after = beam_search(moved, compacted.index, history, 50)
    np.testing.assert_allclose(after.scores, before.scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.sort(after.items[..., 0]), np.sort(before.items[..., 0]))
    with pytest.raises(DecodingError, match="remap_nodes"):
        beam_search(model, compacted.index, history, 50)


def test_what_cannot_be_moved_is_one_clear_error():
    rng = np.random.default_rng(2)
    tokens = random_ids(rng, 30)
    index = TrieIndex.build(tokens, VOCAB)
    with pytest.raises(
        ModelError, match="7 node embeddings.* pass the trie that it was trained on"
    ):
        remap_nodes(make_model(7), index, index)
    other = make_model(0, index.layout.node_offsets[1] + 1)  # Its facets alone are of another trie.
    first = rf"facets of {other.config.num_first} first codes"
    with pytest.raises(ModelError, match=rf"{first}.* pass the trie that it was trained on"):
        remap_nodes(other, index, index)
    history = ItemHistory(jnp.array([[0]]), jnp.array([tokens[:1]]))
    with pytest.raises(DecodingError, match=rf"{first}.*remap_nodes"):
        beam_search(other, index, history, 5)
    with pytest.raises(ModelError, match="the old trie has 3 codes, the new one 2"):
        remap_nodes(make_model(0), index, TrieIndex.build(tokens[:, :2], VOCAB))
    plain = DecoderOnly(
        DecoderOnlyConfig(VOCAB, LENGTH, d_model=8, num_heads=2, d_ff=8, num_layers=1),
        rngs=nnx.Rngs(0),
    )
    with pytest.raises(ModelError, match="DecoderOnly has no trie head"):
        remap_nodes(plain, index, index)


# The trie head of the other backbones.

BACKBONES = {
    "encoder_decoder": lambda head: EncoderDecoder(
        EncoderDecoderConfig(
            VOCAB,
            LENGTH,
            d_model=WIDTH,
            num_heads=2,
            head_dim=4,
            d_ff=16,
            num_encoder_layers=1,
            num_decoder_layers=1,
            causal_encoder=True,
            recency_bias=True,
            **head,
        ),
        rngs=nnx.Rngs(0),
    ),
    "decoder_only": lambda head: DecoderOnly(
        DecoderOnlyConfig(VOCAB, LENGTH, d_model=WIDTH, num_heads=2, d_ff=16, num_layers=1, **head),
        rngs=nnx.Rngs(0),
    ),
}


def with_trie_head(name, num_nodes):
    """A model of larger numbers than at initialisation."""
    shapes = jax.eval_shape(lambda: BACKBONES[name]({"head": "trie", "num_nodes": num_nodes}))
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, jnp.float32), shapes)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_other_backbones_score_children_too(name):
    rng = np.random.default_rng(4)
    tokens = np.unique(random_ids(rng, 40), axis=0)
    index = TrieIndex.build(tokens, VOCAB, listed=True)
    model = with_trie_head(name, index.layout.node_offsets[2])
    history = jnp.asarray(tokens[rng.integers(0, len(tokens), (2, 3))]).at[1, 2].set(0)
    logits, hidden, _ = jax.jit(lambda m: m.prefill(history))(model)
    assert logits is None and hidden.shape == (2, WIDTH)
    # Every item's score is the sum of what the loss sees, and together they have probability 1.
    found = beam_search(model, index, history, len(tokens))
    score = jax.jit(
        lambda m, history, sids: scored_log_probs(m, m.target_states(history, sids), sids, index)
    )
    for user in range(2):
        sids = found.tokens[user]
        expected = score(model, jnp.repeat(history[user][None], len(sids), 0), sids).sum(-1)
        np.testing.assert_allclose(found.scores[user], expected, atol=1e-4)
    np.testing.assert_allclose(np.exp(found.scores).sum(1), 1.0, rtol=1e-4)
    other = TrieIndex.build(np.concatenate([tokens, tokens[:1] + 1]), VOCAB)
    moved = remap_nodes(remap_nodes(model, index, other), other, index)
    again = beam_search(moved, index, history, len(tokens))
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-4)
    with pytest.raises(ModelError, match="head='trie' has no logits over the vocabulary"):
        model.target_logits(history, tokens[:2])


@pytest.mark.parametrize("name", BACKBONES)
def test_a_vocabulary_head_is_as_before_and_needs_no_nodes(name):
    one, other = (BACKBONES[name](head) for head in ({}, {"head": "vocabulary", "num_nodes": 7}))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not one.scores_children
    for wrong, message in (
        ({"head": "items"}, "head='items' is unknown: use one of vocabulary, trie"),
        ({"head": "trie", "tied_head": True}, "tied_head=True is for head='vocabulary'"),
    ):
        with pytest.raises(ModelError, match=message):
            BACKBONES[name](wrong)
