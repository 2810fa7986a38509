"""The largest of many values against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.decoding import top_k as top_k_module
from gr.decoding.top_k import best_of_blocks, take_along, top_k

pytestmark = pytest.mark.usefixtures("compile_in_haste")


def values(seed, shape, num_distinct):
    """Random values with ties, and some of -inf."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, num_distinct, shape).astype(np.float32)
    return np.where(rng.random(shape) < rng.choice([0, 0.3, 1]), -np.inf, found)


def descending(array):
    return -np.sort(-array, axis=-1)


top_k_jit = jax.jit(top_k, static_argnums=1)
by_counting = jax.jit(top_k_module._by_counting, static_argnums=1)
best_jit = jax.jit(best_of_blocks, static_argnums=2)

seeds = st.integers(0, 10**6)
distinct = st.sampled_from([2, 10, 10**6])


@settings(max_examples=60, deadline=None)
@given(seed=seeds, num_distinct=distinct, k=st.sampled_from([1, 4, 11, 12]))
def test_top_k(seed, num_distinct, k):
    array = values(seed, (3, 12), num_distinct)
    best, places = top_k_jit(jnp.asarray(array), k)
    np.testing.assert_array_equal(best, descending(array)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(array, np.asarray(places), 1), best)
    for row, of_row in zip(array, np.asarray(places), strict=True):
        real = of_row[row[of_row] > -np.inf]
        assert len(set(real.tolist())) == len(real)
        assert (0 <= of_row).all() and (of_row < 12).all()


def test_of_equal_values_the_first_comes_first():
    array = jnp.array([[1.0, 3.0, 3.0, 1.0, 3.0]])
    for k in (3, 5):
        assert top_k(array, k)[1][0, :3].tolist() == [1, 2, 4]


def test_one_value():
    best, places = top_k(jnp.array([[-jnp.inf], [2.0]]), 1)
    assert best.tolist() == [[-np.inf], [2.0]] and places.tolist() == [[0], [0]]


@settings(max_examples=60, deadline=None)
@given(seed=seeds, num_distinct=distinct, k=st.sampled_from([1, 4, 12]))
def test_by_counting_as_a_gpu_does(seed, num_distinct, k):
    array = values(seed, (3, 12), num_distinct)
    array[0, :2] = 0.0, -0.0
    best, places = by_counting(jnp.asarray(array), k)
    expected = jax.lax.top_k(jnp.asarray(array), k)
    np.testing.assert_array_equal(best, expected[0])
    np.testing.assert_array_equal(places, expected[1])


def test_counting_gives_every_nan_a_place_of_its_own():
    array = jnp.array([[1.0, np.nan, np.inf, -np.nan, np.nan, -np.inf]])
    _, places = by_counting(array, 6)
    assert sorted(places[0].tolist()) == list(range(6))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, num_distinct=distinct, shape=st.sampled_from([(1, 1), (5, 8), (20, 3)]))
def test_best_of_blocks(seed, num_distinct, shape):
    array = values(seed, (3, *shape), num_distinct)
    flat = array.reshape(3, -1)
    for k in {1, min(7, flat.shape[1]), flat.shape[1]}:
        found = best_jit(jnp.asarray(array.max(axis=-1)), jnp.asarray(array), k)
        best, block, within = map(np.asarray, found)
        np.testing.assert_array_equal(best, descending(flat)[:, :k])
        user = np.arange(3)[:, None]
        real = best > -np.inf  # Of -inf no place is told.
        np.testing.assert_array_equal(array[user, block, within][real], best[real])
        for row in range(3):
            taken = list(zip(block[row][real[row]], within[row][real[row]], strict=True))
            assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 5)])
def test_take_along(shape):
    rng = np.random.default_rng(0)
    array, places = rng.random((2, 9)), rng.integers(0, 9, shape)
    expected = np.stack([row[place] for row, place in zip(array, places, strict=True)])
    np.testing.assert_allclose(take_along(jnp.asarray(array), jnp.asarray(places)), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 70), num_distinct=st.integers(1, 5))
def test_first_largest(seed, count, num_distinct):
    rng = np.random.default_rng(seed)
    values = rng.choice([-np.inf, *rng.normal(size=num_distinct)], (3, count)).astype(np.float32)
    for found in (
        top_k_module.first_largest(jnp.asarray(values)),
        top_k_module._by_argmax(jnp.asarray(values)),  # As all but a CPU do.
    ):
        np.testing.assert_array_equal(found[0], values.max(axis=1))
        np.testing.assert_array_equal(found[1], values.argmax(axis=1))
