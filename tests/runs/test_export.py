"""The memory's share of a candidate beside a sum over dictionaries."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.memory import ItemPrior
from gr.runs.export import memory_shares


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 2**16))
def test_shares_are_those_of_a_sum(users, size, seed):
    rng = np.random.default_rng(seed)
    items = rng.integers(-1, 9, (users, size)).astype(np.int32)  # Some twice, some padding.
    weights = rng.choice([0.0, 0.5, 2.0], (users, size)).astype(np.float32)
    weight = rng.uniform(size=users)
    found = np.stack([rng.permuted(np.arange(-3, 9))[:8].reshape(4, 2) for _ in range(users)])
    found = np.maximum(found, -1)
    scores = np.where(rng.uniform(size=(users, 4)) < 0.2, -np.inf, rng.uniform(-9, 0, (users, 4)))
    shares = memory_shares(ItemPrior(items, weights), weight, found, scores)
    assert shares.shape == (users, 4)
    for user in range(users):
        mass, total = {}, 0.0
        for item, of_item in zip(items[user], weights[user], strict=True):
            if item >= 0:
                mass[item] = mass.get(item, 0.0) + of_item
                total += of_item
        for beam in range(4):
            of_beam = sum(mass.get(item, 0.0) for item in found[user, beam] if item >= 0)
            expected = 0.0
            if np.isfinite(scores[user, beam]) and total:
                expected = weight[user] * of_beam / total / np.exp(scores[user, beam])
            np.testing.assert_allclose(shares[user, beam], min(expected, 1.0), rtol=1e-6)
