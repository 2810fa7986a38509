"""Value-guided search by best-first selection, and what is free when scores are over children, against dictionaries."""

import jax
import numpy as np
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.decoding import DecodingError, ved_selection, ved_step
from gr.decoding import ved as ved_module
from gr.trie import EditableIndex, TrieIndex
from tests.decoding.test_normalisation import TEMPERATURE, over_children
from tests.decoding.test_ved import (
    HISTORY,
    OPTIONS,
    case,
    check,
    check_under_constraint,
    random_case,
    ved,
)

pytestmark = pytest.mark.usefixtures("compile_in_haste")

BEST_FIRST = {
    "name": "best_first",
    "prior_weight": 0.7,
    "initial_beams": 0,
    "crowding": 0.4,
}


PROBABLE_FIRST = BEST_FIRST | {
    "sampling_temperature": 0.0,
    "exploration": 0.0,
    "entropy_weight": 0.0,
}


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        *(({"initial_beams": 3}, kinds) for kinds in tries.MIXES[2:4]),
        *((PROBABLE_FIRST, kinds) for kinds in tries.MIXES),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@settings(max_examples=4, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_over_children_codes_without_an_alternative_are_free(options, kinds, tokens, seed):
    model, _ = random_case(seed)
    for budget, count in ((6, 3), (12, tries.MAX_ITEMS)):
        check(
            tokens,
            TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds)),
            model,
            None,
            seed,
            log_prob=lambda user: over_children(model, user, tokens),
            temperature=TEMPERATURE,
            normalise_over="children",
            num_candidates=count,
            **options | {"budget": max(budget, 2 * options["initial_beams"]), "width": 4},
        )


@pytest.mark.parametrize(
    "normalise_over", [pytest.param("vocabulary", marks=pytest.mark.long), "children"]
)
@pytest.mark.parametrize("options", [{"initial_beams": 2}, BEST_FIRST], ids=["ved", "best_first"])
def test_a_root_with_more_codes_than_the_budget_can_try(options, normalise_over):
    # Of 40 first codes every other one leads to a single item.
    firsts = [first for first in range(40) for _ in range(1 + 2 * (first % 2))]
    rng = np.random.default_rng(0)
    tokens = np.stack([firsts, rng.integers(0, 40, len(firsts)), rng.integers(0, 40, 80)], axis=1)
    index, (model, head) = TrieIndex.build(tokens, 40), random_case(0, 3, 40)
    over = normalise_over == "children"
    for count, width in ((3, 1), (9, 4)):
        check(
            tokens,
            index,
            model,
            head,
            1,
            log_prob=(lambda user: over_children(model, user, tokens)) if over else None,
            temperature=TEMPERATURE if over else 1.0,
            normalise_over=normalise_over,
            budget=6,
            num_candidates=count,
            width=width,
            **options,
        )


@pytest.mark.parametrize("normalise_over", ["vocabulary", "children"])
@pytest.mark.parametrize("kind", tries.CONSTRAINTS)
@settings(max_examples=4, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_best_first_under_constraints(kind, normalise_over, tokens, seed):
    options = BEST_FIRST | {"budget": 9, "normalise_over": normalise_over}
    if normalise_over == "children":
        options["temperature"] = TEMPERATURE
        options["log_prob_of"] = over_children
    check_under_constraint(kind, tries.MIXES[2], tokens, seed, **options)


def test_what_needs_one_trie_is_refused_on_an_index_with_changes():
    tokens, _, model, head = case(6)
    index = EditableIndex.build(tokens, tries.VOCAB).add(tokens[:1])[0].index
    with pytest.raises(DecodingError, match="compact it first"):
        ved(
            model,
            head,
            index,
            HISTORY,
            key=jax.random.key(0),
            **OPTIONS | {"normalise_over": "children"},
        )


@pytest.mark.parametrize("over", [pytest.param("vocabulary", marks=pytest.mark.long), "children"])
@pytest.mark.parametrize("name", [pytest.param("ved", marks=pytest.mark.long), "best_first"])
def test_many_levels_at_once_are_those_one_by_one(name, over, monkeypatch):
    rng = np.random.default_rng(11)
    tokens = rng.integers(0, 5, (40, 6))
    tokens[:9, :4] = tokens[0, :4]  # Some items part late.
    index = TrieIndex.build(tokens, 5)
    assert index.layout.scan_depth <= 1
    model, head = random_case(11, 6, 5)
    options = {"name": name, "budget": 40, "num_candidates": 12, "initial_beams": 3, "width": 4}
    options |= {"normalise_over": over, "crowding": 0.3, "prior_weight": 0.5}
    if over == "children":
        options |= {"temperature": TEMPERATURE}
        options |= {"log_prob": lambda user: over_children(model, user, tokens)}
    for many in (0, 8):
        for module in (ved_module, ved_step, ved_selection):
            monkeypatch.setattr(module, "MANY", many)
        ved_module._ved_search.clear_cache()
        check(tokens, index, model, head, 11, **options)
    ved_module._ved_search.clear_cache()
