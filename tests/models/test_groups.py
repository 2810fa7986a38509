"""Candidates that share a history: encoded once, and yet as if each stood there alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr.models import ModelError, layers
from tests.models.test_backbones import (
    CONFIGS,
    FLOAT32,
    LENGTH,
    VOCAB,
    make_model,
    random_items,
    tolerance,
)

pytestmark = pytest.mark.usefixtures("compile_in_haste")

LENGTHS = (1, 3, 2, 3)
NUM = 5  # Candidates of a group.


def candidates(seed, *shape):
    return np.random.default_rng(seed).integers(2, VOCAB, (*shape, LENGTH))


@jax.jit
def group_logits(model, history, group):
    """All L codes' logits `[B, n, L, V]` by the shared pass."""
    root, states = model.group_states(history, group[..., :-1])
    first = jnp.broadcast_to(root[:, None, None], (*states.shape[:2], 1, states.shape[-1]))
    return model.logits(jnp.concatenate([first, states], axis=2))


@jax.jit
def naive_logits(model, history, group):
    """The same with the history encoded anew for each candidate."""
    batch, num, _ = group.shape
    logits = model.target_logits(jnp.repeat(history, num, axis=0), group.reshape(-1, LENGTH))
    return logits.reshape(batch, num, LENGTH, -1)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_group_gets_the_logits_of_each_candidate_alone(name):
    model, history = make_model(name), random_items(0, LENGTHS, 4)
    group = candidates(1, len(LENGTHS), NUM)
    found, expected = group_logits(model, history, group), naive_logits(model, history, group)
    np.testing.assert_allclose(found, expected, **tolerance(name))


@pytest.mark.parametrize("name", FLOAT32)
def test_a_group_gets_the_gradients_of_each_candidate_alone(name):
    model, history = make_model(name), random_items(0, LENGTHS, 4)
    group = candidates(1, len(LENGTHS), NUM)
    direction = np.random.default_rng(2).normal(size=(len(LENGTHS), NUM, LENGTH, VOCAB))

    def slopes(logits):
        return jax.grad(lambda model: (logits(model, history, group) * direction).sum())(model)

    for found, expected in zip(
        jax.tree.leaves(slopes(group_logits)), jax.tree.leaves(slopes(naive_logits)), strict=True
    ):
        scale = np.abs(expected).max() + 1e-6
        np.testing.assert_allclose(found / scale, expected / scale, atol=2e-5)


@pytest.mark.parametrize("name", list(CONFIGS)[1:])
def test_candidates_at_places_of_a_sequence_are_items_that_stand_there(name):
    model = make_model(name)
    items = random_items(3, (5, 3, 4, 2), 5)
    rows, places = np.array([0, 0, 1, 3, 2, 2]), np.array([4, 1, 2, 1, 3, 1])
    group = candidates(4, len(rows), NUM)

    @jax.jit
    def shared(model, items, rows, places, group):
        states, later = model.sequence_and_group_states(items, rows, places, group[..., :-1])
        first = states[rows, places - 1, 0][:, None, None]
        first = jnp.broadcast_to(first, (len(rows), NUM, 1, states.shape[-1]))
        return model.logits(states), model.logits(jnp.concatenate([first, later], axis=2))

    logits, found = shared(model, items, rows, places, group)
    np.testing.assert_allclose(logits, model.sequence_logits(items), **tolerance(name))
    history = np.where(np.arange(5)[:, None] < places[:, None, None], items[rows], 0)[:, :4]
    np.testing.assert_allclose(found, naive_logits(model, history, group), **tolerance(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_candidates_in_place_of_targets_are_targets(name):
    model, history = make_model(name), random_items(0, LENGTHS, 4)
    target, rows = candidates(5, len(LENGTHS)), np.array([0, 2, 2])
    group = candidates(6, len(rows), NUM)

    @jax.jit
    def shared(model, history, target, rows, group):
        states, later = model.target_and_group_states(history, target, rows, group[..., :-1])
        states = states.reshape(*target.shape, -1)
        first = jnp.broadcast_to(states[rows, :1][:, None], (len(rows), NUM, 1, states.shape[-1]))
        return model.logits(states), model.logits(jnp.concatenate([first, later], axis=2))

    logits, found = shared(model, history, target, rows, group)
    expected = model.target_logits(history, target)
    np.testing.assert_allclose(logits, expected, **tolerance(name))
    expected = naive_logits(model, history[rows], group)
    np.testing.assert_allclose(found, expected, **tolerance(name))


@pytest.mark.parametrize("name", FLOAT32)
def test_the_state_behind_the_last_code_can_be_had_too(name):
    model, history = make_model(name), random_items(0, LENGTHS, 4)
    group = candidates(1, len(LENGTHS), NUM)
    root, states = model.group_states(history, group)
    _, hidden, cache = model.prefill(history)
    np.testing.assert_allclose(root, hidden, **tolerance(name))
    parents = jnp.zeros((len(LENGTHS), NUM), int)
    for place in range(LENGTH):
        cache = model.reorder(cache, parents)
        _, hidden, cache = model.step(jnp.asarray(group[:, :, place]), cache)
        np.testing.assert_allclose(states[:, :, place], hidden, **tolerance(name))
        parents = jnp.tile(jnp.arange(NUM), (len(LENGTHS), 1))


@pytest.mark.parametrize("name", ["causal, tied", "decoder-only"])
def test_dropout_of_a_group_is_a_function_of_the_key(name):
    model, history = make_model(name), random_items(0, LENGTHS, 4)
    group = candidates(1, len(LENGTHS), NUM)
    run = jax.jit(lambda key: model.group_states(history, group, key=key)[1])
    first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max(axis=-1).min() > 1e-3


def test_places_of_a_bidirectional_encoder_are_refused():
    items = random_items(0, (3, 3), 3)
    with pytest.raises(ModelError, match="causal_encoder=True"):
        make_model("bidirectional").sequence_and_group_states(
            items, np.arange(2), np.ones(2, int), candidates(0, 2, NUM)
        )


@pytest.mark.parametrize("num_shared", [1, 3])
def test_attention_of_suffixes_is_attention_over_the_joined_keys(num_shared):
    rng = np.random.default_rng(0)
    rows, num, length, heads, width = 2, 3, 3, 2, 5
    query, key, value = rng.normal(size=(3, rows, num, length, heads, width)).astype(np.float32)
    far_key, far_value = rng.normal(size=(2, rows, num_shared, heads, width)).astype(np.float32)
    far_bias = rng.normal(size=(rows, heads, num, length, num_shared)).astype(np.float32)
    far_bias[0, :, :, :, -1] = layers.MASKED
    near_bias = rng.normal(size=(heads, length, length)).astype(np.float32)
    suffixes = functools.partial(
        layers.attend_suffixes,
        shared=(far_key, far_value),
        shared_bias=far_bias,
        own=(key, value),
        own_bias=near_bias,
    )
    found = suffixes(query)
    causal = np.where(np.tri(length, dtype=bool), near_bias, layers.MASKED)
    for n in range(num):
        bias = np.concatenate(
            [far_bias[:, :, n], np.broadcast_to(causal, (rows, *causal.shape))], -1
        )
        keys = np.concatenate([far_key, key[:, n]], axis=1)
        values = np.concatenate([far_value, value[:, n]], axis=1)
        expected = layers.attend(query[:, n], keys, values, bias)
        np.testing.assert_allclose(found[:, n], expected, atol=1e-5)

    # Dropout leaves the mean as it is.
    draws = jax.vmap(lambda seed: suffixes(query, rate=0.3, seed=seed))(
        jnp.arange(4000, dtype=jnp.uint32) * jnp.uint32(2654435761)
    )
    spread = np.std(draws, axis=0) / 4000**0.5
    assert (np.abs(np.mean(draws, axis=0) - found) < 5 * spread + 1e-5).all()
