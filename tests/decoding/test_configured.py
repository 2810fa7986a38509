"""The one call for all searches does as each of them does, and counts what the model is asked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries

from gr.decoding import (
    DecodingError,
    SearchConfig,
    VedConfig,
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
    for field in ("tokens", "items", "scores", "valid", "draws", "tree"):
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
    shared = {"key": KEY, "keep_tree": True, **SHARED}
    for name in ("ved", "best_first"):
        config = SearchConfig(name, **options)
        found = search(config, model, head, index, HISTORY, normalise_over="children", **shared)
        config = VedConfig(name, **options, normalise_over="children")
        expected = ved_search(model, head, index, HISTORY, config, **shared)
        same(found, expected)
        np.testing.assert_array_equal(found.evaluations, expected.evaluations)


def test_where_one_way_is_left_only_a_beam_search_asks_the_model():
    rng = np.random.default_rng(4)
    first = np.unique(rng.integers(0, 7, (12, 2)), axis=0)
    tokens = np.concatenate([first, rng.integers(0, 7, (len(first), 3))], axis=1)
    index, model = TrieIndex.build(tokens, 7), random_table_model(rng, 5, 7, USERS)
    assert index.layout.unique_depth == 2
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
        (
            {"name": "dfs"},
            "search.name='dfs' is unknown; use one of beam, sample, ved, best_first",
        ),
        ({"name": "best_first"}, "set search.prior_weight above 0"),
        ({"num_candidates": 0}, "search.num_candidates=0: use 1 or more"),
        ({"initial_beams": -1}, "search.initial_beams=-1: use 0 or more"),
        ({"width": 2.5}, "search.width=2.5 is of type float; give a whole number"),
        ({"budget": -1}, "search.budget=-1: use 0 or more"),
        ({"entropy_weight": -0.1}, "search.entropy_weight=-0.1: use 0 or more"),
        ({"exploration": float("nan")}, "search.exploration=nan: use 0 or more"),
        ({"normalise_over": "items"}, "search.normalise_over='items' is unknown"),
    ],
)
def test_bad_configs_get_one_clear_error(options, message):
    with pytest.raises(DecodingError, match=message):
        SearchConfig(**options)


def test_saved_configs_are_read_by_their_old_names_too():
    saved = {"num_candidates": 5, "prior_weight": 0.5}
    descents = SearchConfig("ved", num_candidates=5, prior_weight=0.5)
    best_first = SearchConfig("best_first", num_candidates=5, prior_weight=0.5)
    beams = SearchConfig("beam", num_candidates=5, prior_weight=0.5)
    for old, expected in (
        ({"name": "ved", "selection": "descent"}, descents),
        ({"name": "ved", "selection": "best_first"}, best_first),
        ({"name": "beam", "selection": "best_first"}, beams),
        ({"name": "ved"}, descents),
        ({"selection": "best_first"}, best_first),
    ):
        assert SearchConfig.from_saved(saved | old) == expected
    for config in (descents, best_first, beams):
        assert SearchConfig.from_saved(dataclasses.asdict(config)) == config


def test_a_tree_search_takes_no_config_of_another_search():
    index = TrieIndex.build(np.arange(6).reshape(3, 2), 7)
    model = random_table_model(np.random.default_rng(0), 2, 7, USERS)
    with pytest.raises(DecodingError, match="search.name='beam' is no tree search: use one of ved"):
        ved_search(model, None, index, HISTORY, SearchConfig("beam"), key=KEY)
