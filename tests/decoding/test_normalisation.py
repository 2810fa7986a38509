"""Scores that are normalised over the children of a prefix, as the masked softmax loss trains them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import assert_same_ranking, rows

from gr.decoding import DecodingError, beam_search
from gr.losses import masked_token_log_probs
from gr.testing import random_table_model, random_tokens
from gr.trie import EditableIndex, ExcludeItems, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS, TEMPERATURE = 3, 2.0
HISTORY = jnp.zeros((USERS, 1))


def over_children(model, user, tokens):
    """Prefix -> log-probabilities `[V]` of the next token, -inf where the trie has none."""
    table = np.asarray(model.table[user]) / TEMPERATURE
    ids = set(map(tuple, tokens.tolist()))

    def of(prefix):
        depth = len(prefix)
        children = sorted({sid[depth] for sid in ids if sid[:depth] == tuple(prefix)})
        logits = table[depth, prefix[-1] if prefix else 0]
        values = np.full(len(logits), -np.inf)
        values[children] = oracles.log_softmax(logits[children])
        return values

    return of


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
@settings(max_examples=10, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6), excludes=st.booleans())
def test_the_search_is_that_over_dictionaries(kinds, tokens, seed, excludes):
    rng = np.random.default_rng(seed)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    model = random_table_model(rng, 3, tries.VOCAB)
    out = rng.integers(0, len(tokens), (USERS, 2)) if excludes else np.full((USERS, 2), -1)
    by_sid = oracles.items_by_sid(tokens)
    for num_beams in (3, tries.MAX_ITEMS):
        found = beam_search(
            model,
            index,
            HISTORY,
            num_beams,
            constraint=ExcludeItems(jnp.asarray(out)),
            temperature=TEMPERATURE,
            normalise_over="children",
        )
        for user in range(USERS):
            # What is excluded still counts among the children over which is normalised.
            demands = oracles.excluding(set(out[user].tolist()))
            log_prob = over_children(model, user, tokens)
            beams = oracles.beam_search(tokens, log_prob, num_beams, demands)
            expected = [
                (score, sid, oracles.allowed_items(by_sid[sid], demands)) for score, sid in beams
            ]
            assert_same_ranking(rows(found, user), expected)


def test_scores_are_the_log_probabilities_of_the_masked_softmax_loss():
    rng = np.random.default_rng(0)
    tokens = random_tokens(rng, tries.MAX_ITEMS)
    index, model = TrieIndex.build(tokens, tries.VOCAB), random_table_model(rng, 3, tries.VOCAB)
    found = beam_search(
        model, index, HISTORY, 12, temperature=TEMPERATURE, normalise_over="children"
    )
    before = jnp.pad(found.tokens[..., :-1], ((0, 0), (0, 0), (1, 0)))
    user, depth = np.arange(USERS)[:, None, None], np.arange(3)
    logits = model.table[user, depth, before]  # [B, M, L, V].
    log_probs = masked_token_log_probs(logits, found.tokens, index, TEMPERATURE).sum(-1)
    valid = np.asarray(found.valid)
    np.testing.assert_allclose(found.scores[valid], log_probs[valid], rtol=1e-5)
    # All semantic IDs together have probability 1.
    everything = beam_search(
        model, index, HISTORY, tries.MAX_ITEMS, temperature=TEMPERATURE, normalise_over="children"
    )
    np.testing.assert_allclose(np.exp(everything.scores).sum(axis=1), 1.0, rtol=1e-5)


def test_a_second_search_compiles_nothing():
    rng = np.random.default_rng(1)
    index = TrieIndex.build(random_tokens(rng, 9), tries.VOCAB)
    search = jax.jit(lambda m: beam_search(m, index, HISTORY, 4, normalise_over="children"))
    for _ in range(2):
        search(random_table_model(rng, 3, tries.VOCAB))
    assert search._cache_size() == 1


def test_what_cannot_be_is_one_clear_error():
    rng = np.random.default_rng(2)
    tokens, model = random_tokens(rng, 9), random_table_model(rng, 3, tries.VOCAB)
    index = TrieIndex.build(tokens, tries.VOCAB)
    with pytest.raises(DecodingError, match="normalise_over='items' is unknown"):
        beam_search(model, index, HISTORY, 4, normalise_over="items")
    edited, _ = EditableIndex.build(tokens, tries.VOCAB).add(np.array([[4, 12, 46]]))
    with pytest.raises(DecodingError, match="compact it first"):
        beam_search(model, edited.index, HISTORY, 4, normalise_over="children")
