"""Beam search against dictionaries, with every kind of level; its options; what it compiles to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tries
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import assert_same_ranking, assert_searches_as_slow_ones, rows

from gr.decoding import DecodingError, beam_search
from gr.decoding import beam as beam_module
from gr.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder, EncoderDecoderConfig
from gr.testing import TableModel, random_table_model, random_tokens
from gr.trie import TrieIndex, walk

pytestmark = pytest.mark.usefixtures("compile_in_haste")

VOCAB = 7
HISTORY = jnp.zeros((3, 1))


def random_case(seed, num_items, length, num_users=3):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (num_items, length))
    return tokens, TrieIndex.build(tokens, VOCAB), random_table_model(rng, length, VOCAB, num_users)


def check(tokens, index, model, num_beams):
    found = beam_search(model, index, HISTORY, num_beams)
    for user in range(3):
        assert_searches_as_slow_ones(found, user, tokens, model, num_beams)


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
@settings(max_examples=8, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_it_is_beam_search_and_with_enough_beams_ranks_everything(kinds, tokens, seed):
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    model = random_table_model(np.random.default_rng(seed), 3, tries.VOCAB)
    for num_beams in (1, 4, tries.MAX_ITEMS):
        check(tokens, index, model, num_beams)


@pytest.mark.parametrize("case", range(8))
def test_tight_layouts_of_all_lengths(case):
    num_items, length = [(1, 1), (15, 1), (9, 2), (30, 2), (1, 4), (20, 3), (30, 4), (12, 6)][case]
    tokens, index, model = random_case(case, num_items, length)
    for num_beams in (2, 30):
        check(tokens, index, model, num_beams)


def test_a_large_trie_in_the_layout_that_is_chosen_for_it():
    rng = np.random.default_rng(0)
    vocab_size = 2 + 4 * 640
    tokens = rng.integers(0, 640, (3000, 4)) + 2 + 640 * np.arange(4)
    tokens[:2000, 0] = rng.integers(2, 12, 2000)
    tokens[:, 1] = 642 + (tokens[:, 1] - 642) % 60
    tokens[1000:1010] = tokens[:10]
    index = TrieIndex.build(
        tokens, vocab_size, level_ranges=[(2 + 640 * i, 642 + 640 * i) for i in range(4)]
    )
    assert [level.kind for level in index.layout.levels] == ["dense", "dense", "scan", "scan"]
    model = LevelModel(jnp.asarray(rng.normal(size=(2, 4, vocab_size)), jnp.float32))
    found = beam_search(model, index, jnp.zeros((2, 1)), 64)
    by_sid = oracles.items_by_sid(tokens)
    for user in range(2):
        beams = oracles.beam_search(tokens.tolist(), model.log_prob(user), 64)
        assert_same_ranking(rows(found, user), [(s, sid, by_sid[sid]) for s, sid in beams])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LevelModel:
    """Logits that depend on the depth only."""

    table: jax.Array  # [B, L, V].

    def prefill(self, history):
        return self.table[:, 0], None, 0

    def step(self, tokens, depth):
        logits = self.table[:, None, depth + 1]
        return jnp.broadcast_to(logits, (*tokens.shape, logits.shape[-1])), None, depth + 1

    def reorder(self, cache, parents):
        return cache

    def log_prob(self, user):
        levels = [oracles.log_softmax(level) for level in self.table[user]]
        return lambda prefix: levels[len(prefix)]


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
def test_beams_of_each_depth_are_the_names_of_their_prefixes(kinds):
    rng = np.random.default_rng(3)
    tokens = random_tokens(rng, 24)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    model = random_table_model(rng, 3, tries.VOCAB)
    found = beam_search(model, index, HISTORY, num_beams=3, keep_beams=True)
    assert len(found.beams) == 3
    for user in range(3):
        for depth in range(1, 4):
            beams = oracles.beam_search(tokens[:, :depth], model.log_prob(user), 3)
            prefixes = jnp.asarray([prefix for _, prefix in beams])
            names = walk(index, prefixes)[:, -1].tolist()
            assert [n for n in found.beams[depth - 1][user].tolist() if n >= 0] == names


# Options.


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_divides_logits(temperature):
    tokens, index, model = random_case(1, 20, 3)
    found = beam_search(model, index, HISTORY, 4, temperature=temperature)
    by_sid = oracles.items_by_sid(tokens)
    for user in range(3):
        beams = oracles.beam_search(tokens, model.log_prob(user, temperature), 4)
        assert_same_ranking(rows(found, user), [(s, sid, by_sid[sid]) for s, sid in beams])


def test_a_length_penalty_divides_scores():
    _, index, model = random_case(2, 20, 3)
    plain = beam_search(model, index, HISTORY, 30)
    for penalty in (1.0, 0.5):
        found = beam_search(model, index, HISTORY, 30, length_penalty=penalty)
        np.testing.assert_allclose(found.scores, plain.scores / 3**penalty, rtol=1e-6)
        np.testing.assert_array_equal(found.items, plain.items)


def check_groups(tokens, index, model, num_beams, num_groups, diversity):
    found = beam_search(
        model, index, HISTORY, num_beams, num_groups=num_groups, diversity=diversity
    )
    by_sid = oracles.items_by_sid(tokens)
    for user in range(3):
        expected = oracles.diverse_beam_search(
            tokens,
            model.log_prob(user),
            num_beams,
            num_groups,
            diversity,
            unique_depth=index.layout.unique_depth,
        )
        sids = [sid for _, sid in expected]
        assert len(set(sids)) == len(sids)
        assert_same_ranking(rows(found, user), [(s, sid, by_sid[sid]) for s, sid in expected])


@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[3], tries.MIXES[5]], ids="-".join)
@settings(max_examples=8, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_diverse_groups(kinds, tokens, seed):
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    model = random_table_model(np.random.default_rng(seed), 3, tries.VOCAB)
    for num_beams, num_groups, diversity in ((6, 3, 0.7), (2, 2, 50.0)):
        check_groups(tokens, index, model, num_beams, num_groups, diversity)


def unary_case(length=5):
    """A trie whose first two tokens tell all items apart."""
    rng = np.random.default_rng(4)
    pairs = np.unique(rng.integers(0, VOCAB, (25, 2)), axis=0)
    tokens = np.concatenate([pairs, rng.integers(0, VOCAB, (len(pairs), length - 2))], axis=1)
    return tokens, TrieIndex.build(tokens, VOCAB), random_table_model(rng, length, VOCAB)


def test_diverse_groups_where_one_way_is_left():
    tokens, index, model = unary_case()
    assert index.layout.unique_depth == 2
    check_groups(tokens, index, model, 6, 3, 1.0)


def test_one_group_alone_is_beam_search_whatever_diversity_costs():
    _, index, model = random_case(5, 20, 3)
    plain = beam_search(model, index, HISTORY, 4)
    found = beam_search(model, index, HISTORY, 4, num_groups=1, diversity=9.0)
    jax.tree.map(np.testing.assert_array_equal, found, plain)


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


# What it compiles to.


def test_another_index_of_the_same_layout_does_not_compile_again():
    layout = tries.roomy_layout(tries.MIXES[3])
    rng = np.random.default_rng(6)
    sets = [random_tokens(rng, count) for count in (9, 24, 1)]
    for number, tokens in enumerate(sets):
        index = TrieIndex.build(tokens, tries.VOCAB, layout=layout)
        model = random_table_model(rng, 3, tries.VOCAB)
        beam_search(model, index, HISTORY + number, num_beams=5)
        if number == 0:
            compiled = beam_module._beam_search._cache_size()
    assert beam_module._beam_search._cache_size() == compiled


def test_works_inside_jit():
    _, index, model = random_case(0, 9, 3)
    outer = jax.jit(lambda m, i, h: beam_search(m, i, h, num_beams=5))
    plain = beam_search(model, index, HISTORY, num_beams=5)
    found = outer(model, index, HISTORY)
    np.testing.assert_array_equal(found.items, plain.items)
    np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-6)


def test_works_inside_vmap():
    _, index, model = random_case(0, 9, 3)
    other = random_case(1, 9, 3)[2]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), model, other)
    found = jax.vmap(lambda m: beam_search(m, index, HISTORY, num_beams=5))(both)
    for number, alone in enumerate((model, other)):
        expected = beam_search(alone, index, HISTORY, num_beams=5)
        np.testing.assert_array_equal(found.items[number], expected.items)
        np.testing.assert_allclose(found.scores[number], expected.scores, rtol=1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
    """A backbone whose history is a prefilled cache, in which steps write: sums of embeddings."""

    embedding: jax.Array  # [V, V].

    def prefill(self, history):
        return history[:, 0], None, history

    def step(self, tokens, cache):
        cache = cache[:, : tokens.shape[1]] + self.embedding[tokens]
        return cache, None, cache

    def reorder(self, cache, parents):
        return jnp.take_along_axis(cache, parents[..., None], axis=1)


def test_a_cache_may_be_donated():
    tokens, index, _ = random_case(7, 20, 3)
    rng = np.random.default_rng(7)
    backbone = Prefilled(jnp.asarray(rng.normal(size=(VOCAB, VOCAB)), jnp.float32))
    start = np.repeat(rng.normal(size=(3, 1, VOCAB)), 4, axis=1).astype(np.float32)
    plain = beam_search(backbone, index, jnp.asarray(start), num_beams=4)

    def decode(model, trie, cache):
        found = beam_search(model, trie, cache, num_beams=4)
        return found, cache * 0  # Of the cache's size, so that its memory can be used.

    donating = jax.jit(decode, donate_argnums=2)
    for _ in range(3):
        cache = jnp.asarray(start)
        found, _ = donating(backbone, index, cache)
        assert cache.is_deleted()
        np.testing.assert_array_equal(found.items, plain.items)
        np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-6)

    by_sid = oracles.items_by_sid(tokens)
    for user in range(3):

        def log_prob(prefix, first=start[user, 0]):
            return oracles.log_softmax(first + sum(backbone.embedding[t] for t in prefix))

        beams = oracles.beam_search(tokens, log_prob, 4)
        assert_same_ranking(rows(plain, user), [(s, sid, by_sid[sid]) for s, sid in beams])


class Calls:
    """Counts what is called while a program is traced."""

    def __init__(self):
        self.step = self.reorder = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counting(TableModel):
    """A table that counts calls."""

    calls: Calls = dataclasses.field(metadata={"static": True}, default=None)

    def step(self, tokens, cache):
        self.calls.step += 1
        return super().step(tokens, cache)

    def reorder(self, cache, parents):
        self.calls.reorder += 1
        return cache


def test_where_one_way_is_left_no_cache_is_moved():
    tokens, index, model = unary_case(length=6)
    assert index.layout.unique_depth == 2
    counting = Counting(model.table, Calls())
    found = beam_search(counting, index, HISTORY, num_beams=3)
    assert (counting.calls.step, counting.calls.reorder) == (5, 2)
    for user in range(3):
        assert_searches_as_slow_ones(found, user, tokens, model, 3)
    # Of a single item not even the first token is a choice.
    index = TrieIndex.build(tokens[:1], VOCAB)
    counting = Counting(model.table, Calls())
    beam_search(counting, index, HISTORY, num_beams=3)
    assert (counting.calls.step, counting.calls.reorder) == (5, 0)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"num_groups": 0}, "num_groups=0 must divide num_beams=4"),
        ({"num_groups": 3}, "num_groups=3 must divide num_beams=4"),
        ({"diversity": -1.0}, "diversity must not be negative, got -1"),
    ],
)
def test_bad_requests_get_one_clear_error(options, message):
    _, index, model = random_case(0, 9, 3)
    with pytest.raises(DecodingError, match=message):
        beam_search(model, index, HISTORY, **{"num_beams": 4} | options)


def test_an_index_of_a_larger_vocabulary_is_refused():
    _, _, model = random_case(0, 9, 3)
    wide = TrieIndex.build(np.array([[0, 1, 2]]), VOCAB + 1)
    with pytest.raises(DecodingError, match="logits cover 7 tokens, the index 8"):
        beam_search(model, wide, HISTORY, num_beams=2)
