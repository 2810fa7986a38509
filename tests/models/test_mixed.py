"""Two backbones as one, beside the mixture of whole semantic IDs over dictionaries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import assert_same_ranking, rows

from gr.decoding import beam_search
from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    ItemDecoder,
    ItemDecoderConfig,
    MixedBackbone,
    ModelError,
    histories_for,
)
from gr.testing import check_backbone, random_table_model, random_tokens
from gr.trie import TrieIndex, item_token_table

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS, VOCAB, ITEMS = 3, 50, 14
HISTORY = jnp.zeros((USERS, 1))
WEIGHTS = (0.0, 0.3, 1.0)


def log_prob_of(models, user, weight):
    """A function from a prefix to log-probabilities of the next token, by the definition of conditional probability."""
    each = [model.log_prob(user) for model in models]

    def whole(of, prefix):
        return sum(of(prefix[:place])[token] for place, token in enumerate(prefix))

    def of(prefix):
        shares = [
            share * np.exp(whole(one, prefix))
            for share, one in zip((weight, 1 - weight), each, strict=True)
        ]
        mixed = sum(s * np.exp(one(prefix)) for s, one in zip(shares, each, strict=True))
        return np.log(mixed / sum(shares))

    return of


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_items_are_ranked_by_the_mixture_of_their_probabilities(seed):
    rng = np.random.default_rng(seed)
    tokens = random_tokens(rng, ITEMS)
    index = TrieIndex.build(tokens, VOCAB)
    models = [random_table_model(rng, 3, VOCAB, USERS) for _ in range(2)]
    mixed = MixedBackbone(*models, jnp.asarray(WEIGHTS))
    by_sid = oracles.items_by_sid(tokens)
    for num_beams in (2, ITEMS):
        found = jax.jit(beam_search, static_argnames="num_beams")(
            mixed, index, HISTORY, num_beams=num_beams
        )
        for user, weight in enumerate(WEIGHTS):
            beams = oracles.beam_search(tokens, log_prob_of(models, user, weight), num_beams)
            expected = [(score, sid, by_sid[sid]) for score, sid in beams]
            assert_same_ranking(rows(found, user), expected)
    # With a beam for each, whole semantic IDs have the mixture of two probabilities, without any prefix.
    for user, weight in enumerate(WEIGHTS):
        each = [model.log_prob(user) for model in models]
        for score, sid, _ in rows(found, user):
            of_sid = [
                np.exp(sum(one(sid[:place])[token] for place, token in enumerate(sid)))
                for one in each
            ]
            expected = weight * of_sid[0] + (1 - weight) * of_sid[1]
            assert np.exp(score) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_a_model_of_items_and_one_of_tokens_are_one_backbone():
    rng = np.random.default_rng(0)
    tokens = random_tokens(rng, ITEMS)
    sizes = {"vocab_size": VOCAB, "code_length": 3, "d_model": 8, "num_heads": 2, "d_ff": 8}
    models = [
        ItemDecoder(
            ItemDecoderConfig(**sizes, num_items=ITEMS, head="vocabulary"), rngs=nnx.Rngs(0)
        ),
        DecoderOnly(DecoderOnlyConfig(**sizes, num_layers=1), rngs=nnx.Rngs(1)),
    ]
    models = jax.tree.map(
        lambda x: (
            x + 0.3 * rng.normal(size=x.shape).astype(x.dtype)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else x
        ),
        models,
    )
    mixed = MixedBackbone(*models, 0.4)
    lists = jnp.asarray([[0, 3, 5, -1], [7, 2, 9, 11], [4, 1, -1, -1]])
    history = histories_for(mixed, item_token_table(tokens), lists)
    checked = check_backbone(mixed, history, TrieIndex.build(tokens, VOCAB))
    assert "target_logits" in " ".join(checked)


def test_what_neither_model_can_make_is_impossible_and_nan_is_no_number():
    rng = np.random.default_rng(1)
    tokens = np.array([[2, 10, 45], [3, 10, 45]])
    models = [random_table_model(rng, 3, VOCAB, 1) for _ in range(2)]
    models = [dataclasses.replace(m, table=m.table.at[:, 0, 0, 2].set(-jnp.inf)) for m in models]
    index = TrieIndex.build(tokens, VOCAB)
    found = beam_search(MixedBackbone(*models, 0.5), index, HISTORY[:1], num_beams=2)
    assert found.items[0, 0].tolist() == [1] and found.scores[0, 1] < -1e29  # The search's floor.
    assert int(found.bad_step[0]) == -1
    broken = dataclasses.replace(models[1], table=models[1].table.at[:, 1, 3].set(jnp.nan))
    found = beam_search(MixedBackbone(models[0], broken, 0.5), index, HISTORY[:1], num_beams=2)
    assert int(found.bad_step[0]) == 1


def test_models_without_probabilities_of_tokens_are_refused():
    class Scorer:
        scores_children = True

    with pytest.raises(ModelError, match="second=Scorer has no probabilities of tokens"):
        MixedBackbone(random_table_model(np.random.default_rng(0), 3, VOCAB), Scorer(), 0.5)
