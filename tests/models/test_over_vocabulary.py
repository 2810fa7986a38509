"""A model that scores children, as one with logits over the vocabulary: the same search, and exact mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.decoding import beam_search
from gr.models import (
    ItemDecoder,
    ItemDecoderConfig,
    MixedBackbone,
    ModelError,
    OverVocabulary,
    histories_for,
)
from gr.testing import check_backbone, random_table_model, random_tokens
from gr.trie import ExcludeItems, TrieIndex, item_token_table

pytestmark = pytest.mark.usefixtures("compile_in_haste")

VOCAB, ITEMS = 50, 14
TOKENS = random_tokens(np.random.default_rng(0), ITEMS)
INDEX = TrieIndex.build(TOKENS, VOCAB)
LISTS = jnp.asarray([[0, 3, 5, -1], [7, 2, 9, 11], [4, 1, -1, -1]])


def trie_model(seed, depth, facets=0):
    """A model with a trie head whose nodes have embeddings up to a depth, and random weights that count."""
    offsets = INDEX.layout.node_offsets
    config = ItemDecoderConfig(
        vocab_size=VOCAB, code_length=3, d_model=8, num_heads=2, d_ff=8, num_items=ITEMS, head="trie",
        num_nodes=offsets[depth], num_facets=facets, num_first=offsets[1] if facets else 0,
    )  # fmt: skip
    model, rng = ItemDecoder(config, rngs=nnx.Rngs(seed)), np.random.default_rng(seed)

    def noisy(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return x + rng.normal(size=x.shape).astype(x.dtype) if floating else x

    return jax.tree.map(noisy, model)


def history_of(model):
    return histories_for(model, item_token_table(TOKENS), LISTS)


def by_item(found):
    """Score of each item, by user."""
    return [
        {int(item[0]): float(score) for item, score in zip(items, scores, strict=True)}
        for items, scores in zip(found.items, found.scores, strict=True)
    ]


@pytest.mark.parametrize("num_beams", [3, ITEMS])
def test_the_search_is_that_of_the_model(num_beams):
    model, seen = trie_model(1, 2, facets=3), ExcludeItems(LISTS)
    direct = beam_search(model, INDEX, history_of(model), num_beams, constraint=seen)
    over = OverVocabulary(model, INDEX)
    found = beam_search(over, INDEX, history_of(over), num_beams, constraint=seen)
    np.testing.assert_array_equal(found.items, direct.items)
    np.testing.assert_allclose(found.scores, direct.scores, rtol=1e-5)
    assert (found.bad_step == -1).all()


def test_it_keeps_the_protocol():
    over = OverVocabulary(trie_model(2, 3), INDEX)
    checked = check_backbone(over, history_of(over), INDEX)
    assert "target_logits" in " ".join(checked)


def test_two_trie_heads_are_mixed_exactly():
    models = [trie_model(3, 3, facets=2), trie_model(4, 1)]
    each = [by_item(beam_search(model, INDEX, history_of(model), ITEMS)) for model in models]
    mixed = MixedBackbone(*(OverVocabulary(model, INDEX) for model in models), 0.3)
    found = by_item(beam_search(mixed, INDEX, history_of(mixed), ITEMS))
    for user, scores in enumerate(found):
        assert len(scores) == ITEMS
        for item, score in scores.items():
            expected = 0.3 * np.exp(each[0][user][item]) + 0.7 * np.exp(each[1][user][item])
            assert np.exp(score) == pytest.approx(expected, rel=1e-4)


def test_what_has_logits_is_refused_and_what_has_none_is_told_the_remedy():
    with pytest.raises(ModelError, match="has logits over the vocabulary already"):
        OverVocabulary(random_table_model(np.random.default_rng(0), 3, VOCAB), INDEX)
    model = trie_model(5, 1)
    with pytest.raises(ModelError, match=r"mix OverVocabulary\(model, index\)"):
        MixedBackbone(model, model, 0.5)
