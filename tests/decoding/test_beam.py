import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.decoding import Candidates, DecodingError, beam_search
from gr.decoding import beam as beam_module
from gr.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder, EncoderDecoderConfig
from gr.trie import ExcludeItems, TrieIndex

VOCAB = 7


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableModel:
    """Logits that depend on the last token and the depth only: `table[depth, last token]`, per user."""

    table: jax.Array  # [B, L, V, V].

    def prefill(self, history):
        return self.table[:, 0, 0], jnp.zeros((self.table.shape[0], 1)), (0, history)

    def step(self, tokens, cache):
        depth = cache[0] + 1
        user = jnp.arange(tokens.shape[0])[:, None]
        return self.table[user, depth, tokens], jnp.zeros((*tokens.shape, 1)), (depth, cache[1])

    def reorder(self, cache, parents):
        return cache

    def log_prob(self, user):
        table = np.asarray(self.table[user])

        def of(prefix):
            return oracles.log_softmax(table[len(prefix), prefix[-1] if prefix else 0])

        return of


def random_case(seed, num_items, length, num_users=3):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (num_items, length))
    table = jnp.asarray(rng.normal(size=(num_users, length, VOCAB, VOCAB)) * 2, jnp.float32)
    return tokens, TrieIndex.build(tokens, VOCAB), TableModel(table), rng


def rows(candidates: Candidates, user):
    """The valid candidates of one user as (score, sid, items), best first."""
    valid = np.asarray(candidates.valid[user])
    count = int(valid.sum())
    assert valid[:count].all(), "valid candidates come first"
    for beam in range(count, len(valid)):
        assert (np.asarray(candidates.codes[user, beam]) == -1).all()
        assert (np.asarray(candidates.items[user, beam]) == -1).all()
        assert candidates.scores[user, beam] == -np.inf
    return [
        (
            float(candidates.scores[user, beam]),
            tuple(np.asarray(candidates.codes[user, beam]).tolist()),
            [item for item in np.asarray(candidates.items[user, beam]).tolist() if item >= 0],
        )
        for beam in range(count)
    ]


def assert_same_ranking(found, expected):
    assert len(found) == len(expected)
    np.testing.assert_allclose(
        [f[0] for f in found], [e[0] for e in expected], rtol=1e-5, atol=1e-4
    )
    assert [f[1:] for f in found] == [e[1:] for e in expected]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 15), st.integers(1, 4))
def test_with_enough_beams_all_items_are_ranked_as_by_brute_force(seed, num_items, length):
    tokens, index, model, _ = random_case(seed, num_items, length)
    found = beam_search(model, index, jnp.zeros((3, 1)), num_beams=16)
    for user in range(3):
        expected = oracles.brute_force_ranking(tokens, model.log_prob(user))
        assert_same_ranking(rows(found, user), expected)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 4), st.sampled_from([1, 2, 4]))
def test_with_few_beams_it_is_beam_search(seed, num_items, length, num_beams):
    tokens, index, model, _ = random_case(seed, num_items, length)
    found = beam_search(model, index, jnp.zeros((3, 1)), num_beams=num_beams)
    by_sid = oracles.items_by_sid(tokens)
    for user in range(3):
        beams = oracles.beam_search(tokens, model.log_prob(user), num_beams)
        expected = [(score, sid, by_sid[sid]) for score, sid in beams]
        assert_same_ranking(rows(found, user), expected)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.integers(1, 4),
    st.sampled_from([2, 24]),
    st.sampled_from([1, 6, 18]),
)
def test_excluded_items_are_never_decoded_and_nothing_else_is_lost(
    seed, num_items, length, num_beams, num_excluded
):
    tokens, index, model, rng = random_case(seed, num_items, length)
    excluded = rng.integers(-1, num_items, (3, num_excluded))
    found = beam_search(
        model,
        index,
        jnp.zeros((3, 1)),
        num_beams=num_beams,
        constraint=ExcludeItems(jnp.asarray(excluded)),
    )
    by_sid = oracles.items_by_sid(tokens)
    for user in range(3):
        gone = set(excluded[user].tolist())
        beams = oracles.beam_search(tokens, model.log_prob(user), num_beams, gone)
        expected = [
            (score, sid, [item for item in by_sid[sid] if item not in gone]) for score, sid in beams
        ]
        assert_same_ranking(rows(found, user), expected)
        if num_beams >= num_items:
            ranking = oracles.brute_force_ranking(tokens, model.log_prob(user), gone)
            assert_same_ranking(rows(found, user), ranking)


def test_when_everything_is_excluded_no_candidate_is_valid():
    _, index, model, _ = random_case(0, 9, 3)
    everything = ExcludeItems(jnp.tile(jnp.arange(9), (3, 1)))
    found = beam_search(model, index, jnp.zeros((3, 1)), num_beams=4, constraint=everything)
    assert not found.valid.any()
    assert (found.items == -1).all()


def test_an_empty_exclusion_changes_nothing():
    _, index, model, _ = random_case(0, 9, 3)
    nothing = ExcludeItems(jnp.zeros((3, 0), jnp.int32))
    found = beam_search(model, index, jnp.zeros((3, 1)), num_beams=4, constraint=nothing)
    plain = beam_search(model, index, jnp.zeros((3, 1)), num_beams=4)
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_beams_of_each_depth_hold_the_prefixes_of_the_result():
    tokens, index, model, _ = random_case(3, 20, 3)
    found = beam_search(model, index, jnp.zeros((3, 1)), num_beams=3)
    levels = oracles.prefixes(tokens.tolist())
    for user in range(3):
        beams = oracles.beam_search([row[:2] for row in tokens.tolist()], model.log_prob(user), 3)
        alive = [levels[2][node] for node in np.asarray(found.beams[1][user]).tolist()]
        assert alive == [prefix for _, prefix in beams]


def test_a_token_of_probability_zero_ranks_last_but_stays_valid():
    tokens = np.array([[0, 1], [0, 2], [1, 1]])
    table = jnp.zeros((1, 2, VOCAB, VOCAB)).at[0, 1, 0, 2].set(-jnp.inf)
    found = beam_search(
        TableModel(table), TrieIndex.build(tokens, VOCAB), jnp.zeros((1, 1)), num_beams=4
    )
    assert found.valid.tolist() == [[True, True, True, False]]
    assert found.items[0, :, 0].tolist()[2:] == [1, -1]


def backbones():
    return {
        "decoder_only": DecoderOnly(
            DecoderOnlyConfig(VOCAB, 3, d_model=16, num_heads=2, d_ff=24, num_layers=2),
            rngs=nnx.Rngs(0),
        ),
        "encoder_decoder": EncoderDecoder(
            EncoderDecoderConfig(VOCAB, 3, 16, 2, 8, 24, 2, 2), rngs=nnx.Rngs(0)
        ),
        "causal_encoder_decoder": EncoderDecoder(
            EncoderDecoderConfig(
                VOCAB, 3, 16, 2, 8, 24, 2, 2, causal_encoder=True, recency_bias=True
            ),
            rngs=nnx.Rngs(0),
        ),
    }


@pytest.mark.parametrize("name", list(backbones()))
def test_real_backbones_rank_all_items_as_by_scoring_each(name):
    model = backbones()[name]
    # Sharper than at initialisation, so that the ranking is not decided by rounding.
    model = jax.tree.map(lambda x: x * 2.0, model)
    rng = np.random.default_rng(5)
    tokens = rng.integers(2, VOCAB, (40, 3))
    index = TrieIndex.build(tokens, VOCAB)
    history = rng.integers(2, VOCAB, (4, 5, 3))
    for user, length in enumerate((1, 3, 5, 2)):
        history[user, length:] = 0
    found = beam_search(model, index, jnp.asarray(history), num_beams=40)
    by_sid = oracles.items_by_sid(tokens)
    sids = np.array(list(by_sid))
    for user in range(4):
        repeated = jnp.asarray(np.repeat(history[user : user + 1], len(sids), axis=0))
        logits = np.asarray(model.target_logits(repeated, jnp.asarray(sids)))
        scored = []
        for sid, of_sid in zip(sids, logits, strict=True):
            log_probs = [
                oracles.log_softmax(row)[token] for row, token in zip(of_sid, sid, strict=True)
            ]
            scored.append((sum(log_probs), tuple(sid.tolist()), by_sid[tuple(sid.tolist())]))
        assert_same_ranking(rows(found, user), sorted(scored, key=lambda entry: -entry[0]))


def test_a_second_call_with_other_numbers_does_not_compile_again():
    _, index, model, _ = random_case(0, 9, 3)
    _, _, other, _ = random_case(1, 9, 3)
    beam_search(model, index, jnp.zeros((3, 1)), num_beams=5)
    compiled = beam_module._beam_search._cache_size()
    beam_search(other, index, jnp.ones((3, 1)), num_beams=5)
    assert beam_module._beam_search._cache_size() == compiled


def test_works_inside_jit():
    _, index, model, _ = random_case(0, 9, 3)
    outer = jax.jit(lambda m, i, h: beam_search(m, i, h, num_beams=5).items)
    plain = beam_search(model, index, jnp.zeros((3, 1)), num_beams=5).items
    np.testing.assert_array_equal(outer(model, index, jnp.zeros((3, 1))), plain)


def test_bad_requests_get_one_clear_error():
    _, index, model, _ = random_case(0, 9, 3)
    with pytest.raises(DecodingError, match="num_beams must be at least 1"):
        beam_search(model, index, jnp.zeros((3, 1)), num_beams=0)
    with pytest.raises(DecodingError, match="constraint is for 2 users, the history for 3"):
        beam_search(
            model,
            index,
            jnp.zeros((3, 1)),
            num_beams=2,
            constraint=ExcludeItems(jnp.zeros((2, 1), jnp.int32)),
        )
    wide = TrieIndex.build(np.array([[0, 1, 2]]), VOCAB + 1)
    with pytest.raises(DecodingError, match="logits cover 7 tokens, the index 8"):
        beam_search(model, wide, jnp.zeros((3, 1)), num_beams=2)
