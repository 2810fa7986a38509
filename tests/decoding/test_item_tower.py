"""Searches of a model with an item tower: against its two distributions, mixed by hand item by item."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.decoding import (
    DecodingError,
    ItemPrior,
    SearchConfig,
    beam_search,
    rank_items,
    sample,
    sample_without_replacement,
    sharded_beam_search,
    ved_search,
)
from gr.decoding import prior as prior_module
from gr.models import (
    ItemDecoder,
    ItemDecoderConfig,
    ItemHistory,
    MixedBackbone,
    ModelError,
    OverVocabulary,
    codes_alone,
    item_share,
)
from gr.training import make_mesh
from gr.trie import EditableIndex, ExcludeItems, ItemMask, ShardedIndex, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

SHARE, USERS, VOCAB, LENGTH = 0.4, 3, 12, 3


def catalogue():
    codes = np.random.default_rng(0).integers(0, 4, (60, LENGTH))
    tokens = (np.unique(codes, axis=0) + 4 * np.arange(LENGTH)).astype(np.int32)
    return tokens, TrieIndex.build(tokens, VOCAB)


TOKENS, INDEX = catalogue()
NUM_ITEMS = len(TOKENS)


def model_of(head="trie", share=SHARE):
    offsets = INDEX.layout.node_offsets if head == "trie" else [0] * (LENGTH + 1)
    sizes = {"num_nodes": offsets[LENGTH], "num_first": offsets[1], "num_facets": 2}
    config = ItemDecoderConfig(
        vocab_size=VOCAB,
        code_length=LENGTH,
        num_items=NUM_ITEMS,
        d_model=16,
        num_heads=2,
        d_ff=16,
        dropout=0.0,
        head=head,
        item_share=share,
        **sizes,
    )
    model, keys = ItemDecoder(config, rngs=nnx.Rngs(0)), iter(range(1000))

    def larger(x):
        return x + 0.5 * jax.random.normal(jax.random.key(next(keys)), x.shape)

    return jax.tree.map(larger, model)


def history_of(seed=1):
    rows = np.random.default_rng(seed).integers(NUM_ITEMS, size=(USERS, 5)).astype(np.int32)
    return ItemHistory(jnp.asarray(rows), jnp.asarray(TOKENS)[rows])


def probabilities(found):
    """`[B, N]` of the candidates' items, 0 for others."""
    probs = np.zeros((USERS, NUM_ITEMS))
    for user in range(USERS):
        valid = np.asarray(found.valid[user])
        probs[user, np.asarray(found.items[user, :, 0])[valid]] = np.exp(
            np.asarray(found.scores[user])[valid].astype(np.float64)
        )
    return probs


def mixed_by_hand(model, history, **of_search):
    of_codes = probabilities(
        beam_search(codes_alone(model), INDEX, history, NUM_ITEMS, **of_search)
    )
    logits = np.asarray(model.tower.item_logits(model.tower.last_state(history)), np.float64)
    logits = logits / (of_search.get("temperature") or 1.0)
    of_items = np.exp(logits - logits.max(1, keepdims=True))
    return (1 - SHARE) * of_codes + SHARE * of_items / of_items.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("head", "temperature"),
    [
        ("trie", 0.7),
        ("vocabulary", None),
        pytest.param("trie", None, marks=pytest.mark.long),
        pytest.param("vocabulary", 0.7, marks=pytest.mark.long),
    ],
)
def test_all_items_are_ranked_by_the_mixture(head, temperature):
    model, history = model_of(head), history_of()
    expected = mixed_by_hand(model, history, temperature=temperature)
    found = beam_search(model, INDEX, history, NUM_ITEMS, temperature=temperature)
    np.testing.assert_allclose(probabilities(found), expected, rtol=2e-5)
    assert (np.diff(np.asarray(found.scores)) <= 0).all()
    assert np.abs(expected / mixed_by_hand(model, history_of(2)) - 1).max() > 0.1


def test_with_a_prior_and_without_the_items_of_the_history():
    model, history, rng = model_of(), history_of(), np.random.default_rng(3)
    items = np.stack([rng.permutation(NUM_ITEMS)[:6] for _ in range(USERS)]).astype(np.int32)
    weights, weight = rng.random(items.shape).astype(np.float32), np.array([0.3, 0.0, 1.0])
    weights[1] = 0.0  # A user of whom the prior knows nothing.
    prior, seen = ItemPrior(items, weights), np.asarray(history.rows)
    mass = np.zeros((USERS, NUM_ITEMS))
    np.put_along_axis(mass, items, weights, axis=1)
    np.put_along_axis(mass, seen, 0.0, axis=1)
    mass /= np.maximum(mass.sum(1, keepdims=True), 1e-9)
    expected = (1 - weight)[:, None] * mixed_by_hand(model, history) + weight[:, None] * mass
    np.put_along_axis(expected, seen, 0.0, axis=1)
    found = beam_search(
        model,
        INDEX,
        history,
        NUM_ITEMS,
        constraint=ExcludeItems(history.rows),
        prior=prior,
        prior_weight=weight,
    )
    np.testing.assert_allclose(probabilities(found), expected, rtol=2e-5, atol=1e-12)


def test_masked_and_edited_indexes():
    model, history = model_of(), history_of()
    expected = mixed_by_hand(model, history)
    allowed = np.arange(NUM_ITEMS) % 3 > 0
    mask = ItemMask.build(INDEX, allowed)
    found = beam_search(model, INDEX, history, NUM_ITEMS, constraint=mask)
    np.testing.assert_allclose(probabilities(found), expected * allowed, rtol=2e-5)
    edited = EditableIndex.build(TOKENS, VOCAB).remove(np.flatnonzero(~allowed))
    found = beam_search(model, edited.index, history, NUM_ITEMS)
    np.testing.assert_allclose(probabilities(found), expected * allowed, rtol=2e-5)


def test_a_tree_search_with_budget_for_all_finds_the_same():
    model, history = model_of(), history_of()
    config = SearchConfig(num_candidates=NUM_ITEMS, budget=200, initial_beams=8)
    found = ved_search(model, None, INDEX, history, config, key=jax.random.key(0))
    np.testing.assert_allclose(probabilities(found), mixed_by_hand(model, history), rtol=2e-5)


@pytest.mark.long
def test_draws_come_from_the_mixture():
    model, history, draws = model_of(), history_of(), 4000
    expected = mixed_by_hand(model, history)
    found = sample(model, INDEX, history, draws, key=jax.random.key(0))
    for user in range(USERS):
        counts = np.bincount(np.asarray(found.items[user, :, 0]), minlength=NUM_ITEMS)
        assert np.abs(counts / draws - expected[user]).max() < 0.03
    found = sample_without_replacement(model, INDEX, history, NUM_ITEMS, key=jax.random.key(1))
    np.testing.assert_allclose(probabilities(found), expected, rtol=1e-4)


def test_a_prior_of_no_items_changes_nothing():
    model, history = model_of(), history_of()
    empty = ItemPrior(np.zeros((USERS, 0), np.int32), np.zeros((USERS, 0), np.float32))
    plain, found = (
        beam_search(model, INDEX, history, 8, **options) for options in ({}, {"prior": empty})
    )
    np.testing.assert_array_equal(found.items, plain.items)
    np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-6)


def test_an_index_of_shards():
    model, history = model_of(), history_of()
    mesh = make_mesh(model=jax.device_count())
    index = ShardedIndex.build(TOKENS, VOCAB, mesh)
    found = sharded_beam_search(model, index, history, NUM_ITEMS, mesh=mesh)
    np.testing.assert_allclose(probabilities(found), mixed_by_hand(model, history), rtol=2e-5)


@pytest.mark.long
def test_only_so_many_items_of_a_tower_count(monkeypatch):
    monkeypatch.setattr(prior_module, "TOWER_ITEMS", 5)
    jax.clear_caches()
    model, history = model_of(), history_of()
    logits = model.tower.item_logits(model.tower.last_state(history))
    of_items = np.asarray(jax.nn.softmax(logits))
    of_items = np.where(of_items >= np.sort(of_items)[:, -5:-4], of_items, 0.0)
    of_codes = probabilities(beam_search(codes_alone(model), INDEX, history, NUM_ITEMS))
    found = probabilities(beam_search(model, INDEX, history, NUM_ITEMS))
    np.testing.assert_allclose(found, 0.6 * of_codes + 0.4 * of_items, rtol=2e-5)
    jax.clear_caches()


def test_numbers_of_the_tower_that_are_not_finite_are_told():
    model, history = model_of(), history_of()
    rows = np.asarray(history.rows)
    model.tower.items_in = nnx.Param(model.tower.items_in[...].at[rows[1, 0]].set(jnp.nan))
    touched = (rows == rows[1, 0]).any(1)
    for head_of in (model, dataclasses.replace(codes_alone(model))):
        found = beam_search(head_of, INDEX, history, 5)
        expected = np.where(touched & (item_share(head_of) > 0), 0, -1)
        np.testing.assert_array_equal(found.bad_step, expected)


def test_what_looks_at_codes_alone_says_so():
    model, history = model_of("vocabulary"), history_of()
    with pytest.raises(DecodingError, match="num_groups=2 cannot be combined with an item tower"):
        beam_search(model, INDEX, history, 4, num_groups=2)
    with pytest.raises(ModelError, match="has an item tower of share 0.4"):
        MixedBackbone(model, model, 0.5)
    with pytest.raises(ModelError, match="has an item tower of share 0.4"):
        OverVocabulary(model_of(), INDEX)
    alone = codes_alone(model)
    assert item_share(alone) == 0 and codes_alone(alone) is alone
    beam_search(MixedBackbone(alone, alone, 0.5), INDEX, history, 4)
    assert item_share(model_of("items")) == 0 and not hasattr(model_of("items"), "tower")
    with pytest.raises(ModelError, match=r"item_share=1.0: use a number in \[0, 1\)"):
        model_of(share=1.0)


def test_the_tower_is_an_item_softmax_of_its_own():
    model, history = model_of(), history_of()
    assert model.tower.scores_items and not model.scores_items
    found = rank_items(model.tower, INDEX, jnp.asarray(TOKENS), history, NUM_ITEMS)
    expected = jax.nn.softmax(model.tower.item_logits(model.tower.last_state(history)))
    np.testing.assert_allclose(probabilities(found), expected, rtol=1e-5)
