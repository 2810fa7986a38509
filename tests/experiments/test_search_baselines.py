"""The walk over Python objects, against which value-guided search is timed, searches as that does."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from experiments.benchmarks.search_baselines import PythonWalk
from gr.decoding import SearchConfig, beam_search
from gr.models import ValueHead, ValueHeadConfig
from gr.trie import TrieIndex
from tests.models.test_backbones import LENGTH, VOCAB, make_model

pytestmark = pytest.mark.usefixtures("compile_in_haste")

HISTORY = np.random.default_rng(1).integers(2, VOCAB, (1, 3, LENGTH))
BEAMS = 3


def walk(tokens, cached=True, **options):
    model = make_model("decoder-only")
    head = ValueHead(ValueHeadConfig(model.config.d_model, LENGTH), rngs=nnx.Rngs(0))
    config = SearchConfig("ved", initial_beams=BEAMS, **options)
    return PythonWalk(model, head, tokens, config, cached=cached)(jnp.asarray(HISTORY))


def test_with_a_budget_for_the_first_beams_it_is_a_beam_search():
    tokens = np.random.default_rng(2).integers(2, VOCAB, (60, LENGTH))
    found, evaluations = walk(tokens, budget=BEAMS * (LENGTH - 1), num_candidates=BEAMS)
    assert evaluations == BEAMS * (LENGTH - 1)
    index = TrieIndex.build(tokens, VOCAB)
    expected = beam_search(make_model("decoder-only"), index, jnp.asarray(HISTORY), BEAMS)
    assert [sid for _, sid in found] == list(map(tuple, expected.tokens[0].tolist()))
    np.testing.assert_allclose([s for s, _ in found], expected.scores[0], rtol=1e-4)


def test_it_spends_its_budget_and_finds_more():
    tokens = np.random.default_rng(2).integers(2, VOCAB, (60, LENGTH))
    found, evaluations = walk(tokens, budget=30, num_candidates=60)
    assert evaluations == 30
    assert {sid for _, sid in found} < set(oracles.items_by_sid(tokens)) and len(found) > BEAMS


def test_without_keys_and_values_it_finds_the_same():
    tokens = np.random.default_rng(2).integers(2, VOCAB, (60, LENGTH))
    found, evaluations = walk(tokens, budget=20, num_candidates=20)
    again, evaluations_again = walk(tokens, cached=False, budget=20, num_candidates=20)
    assert evaluations == evaluations_again
    assert [sid for _, sid in found] == [sid for _, sid in again]
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in again], rtol=1e-4)


def test_a_small_trie_is_exhausted():
    tokens = np.random.default_rng(3).integers(2, VOCAB, (4, LENGTH))
    found, evaluations = walk(tokens, budget=50, num_candidates=50)
    assert evaluations == len({tuple(row[:d]) for row in tokens.tolist() for d in (1, 2, 3)})
    assert {sid for _, sid in found} == set(oracles.items_by_sid(tokens))
