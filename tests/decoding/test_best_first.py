"""Value-guided search by best-first selection, and what is free when scores are over children, against dictionaries."""

import jax
import numpy as np
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.decoding import DecodingError, ved_search
from gr.trie import EditableIndex, TrieIndex
from tests.decoding.test_normalisation import TEMPERATURE, over_children
from tests.decoding.test_ved import HISTORY, OPTIONS, USERS, case, check, random_case

pytestmark = pytest.mark.usefixtures("compile_in_haste")

BEST_FIRST = {
    "selection": "best_first",
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
@settings(max_examples=6, deadline=None)
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


@pytest.mark.parametrize("normalise_over", ["vocabulary", "children"])
@pytest.mark.parametrize("kind", ["exclude", "mask", "attributes"])
@settings(max_examples=6, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_best_first_under_constraints(kind, normalise_over, tokens, seed):
    rng = np.random.default_rng(seed)
    attributes = rng.random((len(tokens), 5)) < 0.6
    layout = tries.roomy_layout(tries.MIXES[2], 5)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    constraint, demands, handover = tries.random_constraint(kind, rng, index, attributes, USERS)
    model, head = random_case(seed)
    over = over_children if normalise_over == "children" else None
    check(
        tokens,
        index,
        model,
        head,
        seed,
        log_prob=over and (lambda user: over(model, user, tokens)),
        temperature=TEMPERATURE if over else 1.0,
        normalise_over=normalise_over,
        demands=demands,
        handover=handover,
        constraint=constraint,
        budget=9,
        num_candidates=10,
        width=4,
        **BEST_FIRST,
    )


@pytest.mark.parametrize(
    "options",
    [{"normalise_over": "children"}, {"crowding": 0.5}],
    ids=["children", "crowding"],
)
def test_what_needs_one_trie_is_refused_on_an_index_with_changes(options):
    tokens, _, model, head = case(6)
    index = EditableIndex.build(tokens, tries.VOCAB).add(tokens[:1])[0].index
    with pytest.raises(DecodingError, match="compact it first"):
        ved_search(
            model,
            head,
            index,
            HISTORY,
            key=jax.random.key(0),
            **OPTIONS | options,
        )
