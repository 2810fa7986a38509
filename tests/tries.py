"""Tries for tests: sets of semantic IDs with shared prefixes, and layouts that force how each level is stored."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gr.testing import LEVEL_TOKENS
from gr.trie import AttributeFilter, ExcludeItems, ItemMask, Layout
from gr.trie.layout import DENSE, SCAN, SPARSE, Level

# Small tries are scanned throughout unless they are told otherwise: each mix stands for a path through the code.
MIXES = [
    (DENSE, DENSE, DENSE),
    (SPARSE, SPARSE, SPARSE),
    (SPARSE, DENSE, SPARSE),
    (DENSE, SPARSE, SCAN),
    (DENSE, SCAN, SCAN),
    (SCAN, SCAN, SCAN),
]

VOCAB = 50
RANGES = (
    (2, 10),
    (10, 45),
    (45, 50),
)  # Rows of bits begin before, and end behind, what they cover.
MAX_ITEMS = 24


def with_kinds(layout, kinds):
    """The layout with these kinds of levels instead of its own."""
    levels = []
    for level, kind in zip(layout.levels, kinds, strict=True):
        base, span = level.base, level.span
        if kind == DENSE:
            span = -(-span // 32) * 32
            base = max(0, min(base, layout.vocab_size - span))
        levels.append(dataclasses.replace(level, kind=kind, base=base, span=span))
    assert kinds == tuple(sorted(kinds, key=lambda kind: kind == SCAN)), "SCAN comes last"
    return dataclasses.replace(layout, levels=tuple(levels))


def roomy_layout(kinds, num_attributes=0, max_items=MAX_ITEMS):
    """One layout for all sets of `token_sets`: whatever is compiled for one of them serves all."""
    levels = [
        Level(SPARSE, low, high - low, min(high - low, max_items), max_items, max_items)
        for low, high in RANGES
    ]
    layout = Layout(
        vocab_size=VOCAB,
        max_items=max_items,
        max_item=max_items + 3,
        max_items_per_sid=max_items,
        levels=tuple(levels),
        num_attributes=num_attributes,
    )
    return with_kinds(layout, kinds)


def token_sets(max_items=MAX_ITEMS):
    """Tokens `[n, 3]` with many shared prefixes and duplicates."""
    places = st.integers(1, max_items).flatmap(
        lambda count: hnp.arrays(np.int64, (count, 3), elements=st.integers(0, 3))
    )
    return places.map(lambda place: LEVEL_TOKENS[np.arange(3), place])


# Of `random_constraint`. Searches that share their step with beam search have them all in one program, since each
# program compiles for seconds; `make test-long` has one at a time.
KINDS = ("exclude", "mask", "attributes")
CONSTRAINTS = ["several", *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS)]


def random_constraint(kind, rng, index, attributes, num_users, share=0.5):
    """A constraint, what the oracle demands of each user's items instead, and the level behind which it is exact.

    A mask allows so large a `share` of the items.
    """
    n = len(attributes)
    if kind == "several":
        # Each of them leaves enough for the others to choose from.
        made = [random_constraint(one, rng, index, attributes, num_users, 0.9) for one in KINDS]
        constraints, demands, depths = zip(*made, strict=True)
        of_users = [sum(of_user, []) for of_user in zip(*demands, strict=True)]
        return constraints, of_users, max(depths)
    if kind == "exclude":
        items = rng.integers(-1, n, (num_users, 6))
        demands = [oracles.excluding(set(row.tolist())) for row in items]
        return ExcludeItems(jnp.asarray(items)), demands, 0
    if kind == "mask":
        allowed = rng.random((num_users, n)) < share
        return ItemMask.build(index, jnp.asarray(allowed)), [[r.__getitem__] for r in allowed], 0
    wanted = rng.integers(0, attributes.shape[1], (num_users, 2))
    all_of = np.zeros((num_users, attributes.shape[1]), bool)
    np.put_along_axis(all_of, wanted, True, axis=1)
    demands = [
        [lambda i, a=a: attributes[i, a] for a in np.flatnonzero(all_of[user])]
        for user in range(num_users)
    ]
    return AttributeFilter(all_of=jnp.asarray(all_of)), demands, index.layout.scan_depth
