"""The one call for all searches does as each of them does, and counts what the model is asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries

from gr.decoding import (
    DecodingError,
    SearchConfig,
    beam_search,
    sample_without_replacement,
    search,
    ved_search,
)
from gr.testing import random_table_model, random_tokens
from gr.trie import TrieIndex
from tests.decoding.test_ved import random_case

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS = 2
HISTORY = jnp.zeros((USERS, 1))
KEY = jax.random.key(3)
SHARED = {"temperature": 1.5}


def case():
    rng = np.random.default_rng(0)
    tokens = random_tokens(rng, 20)
    return (
        tokens,
        TrieIndex.build(tokens, tries.VOCAB),
        random_table_model(rng, 3, tries.VOCAB, USERS),
    )


def same(found, expected):
    for field in ("codes", "items", "scores", "valid", "draws", "tree"):
        mine, other = getattr(found, field), getattr(expected, field)
        jax.tree.map(np.testing.assert_array_equal, mine, other)


def test_beam_search():
    _, index, model = case()
    options = {"normalise_over": "children", **SHARED}
    config = SearchConfig("beam", num_candidates=5)
    found = search(config, model, None, index, HISTORY, key=KEY, **options)
    expected = beam_search(model, index, HISTORY, 5, keep_beams=True, **options)
    same(found, expected)
    asked = sum((beams >= 0).sum(axis=1) for beams in expected.beams[:-1])
    np.testing.assert_array_equal(found.evaluations, asked)


def test_sampling():
    tokens, index, model = case()
    config = SearchConfig("sample", num_candidates=5)
    found = search(config, model, None, index, HISTORY, key=KEY, **SHARED)
    same(found, sample_without_replacement(model, index, HISTORY, 5, key=KEY, **SHARED))
    beams = [min(6, len(np.unique(tokens[:, :depth], axis=0))) for depth in (1, 2)]
    assert found.evaluations.tolist() == [sum(beams)] * USERS


def test_value_guided_search():
    _, index, _ = case()
    model, head = random_case(0, num_users=USERS)
    options = {
        "budget": 9,
        "num_candidates": 7,
        "initial_beams": 2,
        "entropy_weight": 0.7,
        "prior_weight": 0.2,
        "exploration": 0.3,
        "width": 2,
    }
    shared = {"keep_tree": True, "normalise_over": "children", **SHARED}
    config = SearchConfig("ved", **options)
    found = search(config, model, head, index, HISTORY, key=KEY, **shared)
    expected = ved_search(model, head, index, HISTORY, key=KEY, **options, **shared)
    same(found, expected)
    np.testing.assert_array_equal(found.evaluations, expected.evaluations)


def test_where_one_way_is_left_only_a_beam_search_asks_the_model():
    rng = np.random.default_rng(4)
    first = np.unique(rng.integers(0, 7, (12, 2)), axis=0)
    tokens = np.concatenate([first, rng.integers(0, 7, (len(first), 3))], axis=1)
    index, model = TrieIndex.build(tokens, 7), random_table_model(rng, 5, 7, USERS)
    assert index.layout.settled == 2
    ask = functools.partial(search, value_head=None, index=index, history=HISTORY, key=KEY)
    expected = beam_search(model, index, HISTORY, 4, keep_beams=True)
    asked = sum((beams >= 0).sum(axis=1) for beams in expected.beams[:-1])
    assert asked.tolist() == [16] * USERS
    beam = ask(SearchConfig("beam", num_candidates=4), model)
    np.testing.assert_array_equal(beam.evaluations, asked)
    drawn = ask(SearchConfig("sample", num_candidates=4), model)
    assert drawn.evaluations.tolist() == [5] * USERS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dfs"}, "search.name='dfs' is unknown: use one of beam, sample, ved"),
        ({"num_candidates": 0}, "search.num_candidates=0 must be at least 1"),
        ({"initial_beams": -1}, "search.initial_beams=-1 must not be negative"),
        ({"width": -1}, "search.width=-1 must be at least 1"),
        ({"budget": -1}, "search.budget=-1 must not be negative"),
        ({"entropy_weight": -0.1}, "search.entropy_weight=-0.1 must not be negative"),
        ({"exploration": -1.0}, "search.exploration=-1.0 must not be negative"),
    ],
)
def test_bad_configs_get_one_clear_error(options, message):
    with pytest.raises(DecodingError, match=message):
        SearchConfig(**options)
