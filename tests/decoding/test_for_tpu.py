"""What a TPU would run, on this machine: beam search against dictionaries, and parts against what a CPU runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from platforms import of_tpu
from ranked import assert_searches_as_slow_ones, rows

from gr.decoding import beam_search, trie_step
from gr.decoding import softmax as softmax_module
from gr.decoding.softmax import softmax
from gr.decoding.top_k import first_of_sorted, take_along
from gr.testing import random_table_model, random_tokens
from gr.trie import ExcludeItems, TrieIndex
from gr.trie import packed as packed_module
from gr.trie.bit_rows import expand, make_rows, octets_by_product, octets_of, rank
from gr.trie.packed import PackedInts, pack
from tests.decoding import test_prior, test_ved

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS = 3
HISTORY = jnp.zeros((USERS, 1))
seeds = st.integers(0, 10**6)
few = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", autouse=True)
def a_tpu():
    """Chooses what a TPU would run, with sizes at which small tries take all ways."""
    patch = pytest.MonkeyPatch()
    patch.setattr(jax.lax, "platform_dependent", of_tpu)
    patch.setattr(softmax_module, "_LANES", 8)
    jax.clear_caches()  # Programs for a CPU.
    yield
    patch.undo()
    jax.clear_caches()


@pytest.fixture
def few_tokens(request, monkeypatch):
    """So many tokens of a DENSE level are sorted at once; of a SCAN level so many tokens and slots are compared."""
    monkeypatch.setattr(trie_step, "_FEW_TOKENS", request.param)
    monkeypatch.setattr(trie_step, "_NARROW", request.param)
    monkeypatch.setattr(trie_step, "_FEW_SLOTS", request.param)
    jax.clear_caches()


@pytest.mark.parametrize(
    ("few_tokens", "kinds"),
    [*((0, kinds) for kinds in tries.MIXES), (10**6, tries.MIXES[0]), (10**6, tries.MIXES[4])],
    indirect=["few_tokens"],
)
@few
@given(tokens=tries.token_sets(), seed=seeds)
def test_beam_search(few_tokens, kinds, tokens, seed):
    rng = np.random.default_rng(seed)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    model = random_table_model(rng, 3, tries.VOCAB)
    removed = rng.integers(-1, len(tokens), (USERS, 4))
    for constraint, excluded in (
        (None, [[]] * USERS),
        (ExcludeItems(jnp.asarray(removed)), removed),
    ):
        for num_beams in (3, tries.MAX_ITEMS):
            found = beam_search(model, index, HISTORY, num_beams, constraint=constraint)
            for user in range(USERS):
                gone = set(np.asarray(excluded[user]).tolist())
                demands = [lambda item, gone=gone: item not in gone]
                assert_searches_as_slow_ones(found, user, tokens, model, num_beams, demands)


@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[3]], ids="-".join)
@few
@given(tokens=tries.token_sets(), seed=seeds)
def test_beams_ranked_by_a_mixture(kinds, tokens, seed):
    rng = np.random.default_rng(seed)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    model = random_table_model(rng, 3, tries.VOCAB)
    prior = test_prior.random_prior(rng, len(tokens))
    for num_beams in (4, tries.MAX_ITEMS):
        asked = {"prior": prior, "prior_weight": test_prior.SHARES}
        found = beam_search(model, index, HISTORY, num_beams, **asked)
        test_prior.check(found, tokens, model, num_beams, prior, test_prior.SHARES)


def test_masses_of_many_prefixes():
    test_prior.test_masses_are_as_exact_as_sums_of_the_few_weights_below()


@pytest.mark.parametrize("name", ["ved", "best_first"])
@settings(max_examples=2, deadline=None)
@given(tokens=tries.token_sets(), seed=seeds)
def test_tree_search(name, tokens, seed):
    """Of levels of several kinds, so that a step may list fewer children than the tree has places for."""
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(tries.MIXES[1]))
    options = {"initial_beams": 2, "width": 3, "budget": 17, "num_candidates": 10}
    options |= {"name": name, "prior_weight": 0.5}
    test_ved.check(tokens, index, *test_ved.random_case(seed), seed, **options)


@pytest.mark.parametrize("beams", [20, 35])
def test_groups_of_beams_of_which_the_last_is_not_full(beams):
    rng = np.random.default_rng(3)
    tokens = random_tokens(rng, 200, np.arange(90).reshape(3, 30))
    index = TrieIndex.build(
        tokens, 90, layout=tries.with_kinds(TrieIndex.build(tokens, 90).layout, tries.MIXES[0])
    )
    model = random_table_model(rng, 3, 90)
    found = beam_search(model, index, HISTORY, beams)
    for user in range(USERS):
        assert_searches_as_slow_ones(found, user, tokens, model, beams)


def test_a_beam_that_is_no_more_does_no_harm():
    """Fewer prefixes than beams, and NaN for those that are not there."""
    tokens = np.array([[2, 10, 45], [2, 11, 46], [3, 12, 45]])
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(tries.MIXES[0]))
    model = random_table_model(np.random.default_rng(4), 3, tries.VOCAB)
    found = beam_search(model, index, HISTORY, 5)
    assert all(len(rows(found, user)) == 3 for user in range(USERS))


@pytest.mark.parametrize("temperature", [None, 0.3, 1e-25])
@few
@given(seed=seeds, size=st.sampled_from([1, 8, 9, 50]))
def test_softmax_against_rows(temperature, seed, size):
    rng = np.random.default_rng(seed)
    odd = rng.choice([0.0, -np.inf, np.inf, np.nan], (4, 3, size), p=[0.9, 0.06, 0.02, 0.02])
    logits = jnp.asarray(rng.normal(0, 30, (4, 3, size)) + odd, jnp.float32)
    logits = logits.at[0, 0].set(-jnp.inf)
    inverse = None if temperature is None else jnp.float32(1 / temperature)
    found = softmax(logits, inverse)
    largest, total = softmax_module._sum_by_rows(logits, inverse, None)
    np.testing.assert_array_equal(found.largest, largest)
    known = np.isfinite(largest)
    np.testing.assert_allclose(
        np.asarray(found.log_total)[known], np.log(np.asarray(total))[known], rtol=1e-5, atol=1e-6
    )
    assert (np.asarray(found.log_total)[largest == np.inf] == 0).all()
    assert np.isnan(np.asarray(found.log_total)[np.isnan(largest)]).all()
    best = found.of(logits.max(axis=-1))
    assert (np.asarray(best)[known] <= 0).all()


@few
@given(seed=seeds)
def test_a_softmax_over_devices(seed):
    rng = np.random.default_rng(seed)
    odd = rng.choice([0.0, -np.inf, np.inf, np.nan], (4, 3, 40), p=[0.8, 0.16, 0.02, 0.02])
    logits = jnp.asarray(rng.normal(0, 30, (4, 3, 40)) + odd, jnp.float32)
    logits = logits.at[0, 0].set(-jnp.inf).at[1, :, 20:].set(-jnp.inf)
    halves = jnp.stack(jnp.split(logits, 2, axis=-1))
    found = jax.vmap(lambda half: softmax(half, None, "x"), axis_name="x")(halves)
    expected = softmax(logits, None)
    for largest, log_total in zip(found.largest, found.log_total, strict=True):
        np.testing.assert_array_equal(largest, expected.largest)
        np.testing.assert_allclose(log_total, expected.log_total, rtol=1e-5, atol=1e-6)


@few
@given(seed=seeds, span=st.sampled_from([32, 96, 256]))
def test_rows_of_bits(seed, span):
    rng = np.random.default_rng(seed)
    bits = rng.random((5, span)) < rng.choice([0.1, 0.5, 1.0])
    made = jnp.asarray(make_rows(*np.nonzero(bits), 5, span))
    np.testing.assert_array_equal(expand(made), bits)
    np.testing.assert_array_equal(octets_by_product(made), octets_of(made))
    offset = rng.integers(0, span, (5, 7))
    expected = [[bits[row, :at].sum() for at in offset[row]] for row in range(5)]
    repeated = jnp.broadcast_to(made[:, None], (5, 7, span // 32))
    np.testing.assert_array_equal(rank(repeated, jnp.asarray(offset, jnp.int32)), expected)


@few
@given(seed=seeds, bits=st.integers(1, 31), size=st.integers(2, 200))
def test_packed_integers(monkeypatch, seed, bits, size):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << bits, size)
    packed = jax.device_put(pack(values, (1 << bits) - 1, size))
    index = rng.integers(0, size - 1, (3, 5))
    np.testing.assert_array_equal(packed[jnp.asarray(index)], values[index])
    begin, end = packed.interval(jnp.asarray(index))
    np.testing.assert_array_equal(begin, values[index])
    np.testing.assert_array_equal(end, values[index + 1])
    ascending = jax.device_put(pack(np.sort(values), (1 << bits) - 1, size))
    wanted = rng.integers(0, 1 << bits, (2, 7))
    expected = np.searchsorted(np.sort(values), wanted, side="right")
    for pairs in (0, 10**6):
        monkeypatch.setattr(packed_module, "_COMPARED", pairs)
        found = PackedInts.first_above.__wrapped__(ascending, jnp.asarray(wanted, jnp.int32))
        np.testing.assert_array_equal(found, expected)


@few
@given(seed=seeds, count=st.integers(1, 12))
def test_the_first_of_sorted_values_with_what_belongs_to_them(seed, count):
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 5, (3, 9)).astype(np.float32)
    places, others = np.arange(27).reshape(3, 9), rng.integers(0, 99, (3, 9))
    found = first_of_sorted(jnp.asarray(costs), count, jnp.asarray(places), jnp.asarray(others))
    expected = np.argsort(costs, axis=1, kind="stable")[:, :count]
    for part, whole in zip(found, (costs, places, others), strict=True):
        np.testing.assert_array_equal(part, np.take_along_axis(whole, expected, 1))


@few
@given(seed=seeds)
def test_reading_by_comparison(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(3, 9)).astype(np.float32)
    values[0, 0], values[1, 1] = np.inf, np.nan
    places = rng.integers(0, 9, (3, 4, 2))
    expected = np.take_along_axis(values[:, None], places, 2)
    np.testing.assert_array_equal(take_along(jnp.asarray(values), jnp.asarray(places)), expected)
