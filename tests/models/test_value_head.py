"""The value head: what a value may depend on, and what it is at first."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.models import (
    DecoderOnlyConfig,
    EncoderDecoderConfig,
    ModelError,
    ValueHead,
    ValueHeadConfig,
    path_states,
)
from tests.models.test_backbones import FLOAT32, LENGTH, make_model, random_items

pytestmark = pytest.mark.usefixtures("compile_in_haste")

DEPTHS, WIDTH = 4, 8
CONFIG = ValueHeadConfig(WIDTH, code_length=DEPTHS - 1, num_heads=2, d_ff=12, dropout=0.25)
ALONE = dataclasses.replace(CONFIG, block=False)
with_and_without_block = pytest.mark.parametrize("config", [CONFIG, ALONE], ids=["block", "alone"])


@jax.jit
def values_of(head, states, key=None):
    return head(states, key=key)


def make_head(config=CONFIG):
    """Larger numbers than at initialisation, so that every part counts."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32),
        jax.eval_shape(lambda: ValueHead(config, rngs=nnx.Rngs(0))),
    )


def random_states(*batch, seed=1):
    shape = (*batch, DEPTHS, WIDTH)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@with_and_without_block
def test_values_code_by_code_are_those_of_the_path(config):
    head, states = make_head(config), random_states(3, 5)
    expected, step = (
        np.asarray(values_of(head, states)),
        jax.jit(lambda head, *args: head.step(*args)),
    )
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(3, 5, DEPTHS, WIDTH)))
    kept = (noise, noise) if config.block else ()

    def above():
        return tuple(part[:, :, : DEPTHS - 1] for part in kept)

    for depth in range(DEPTHS):
        depths = jnp.full((3, 5), depth)
        found, own = step(head, states[:, :, depth], depths, above() if depth else None)
        np.testing.assert_allclose(found, expected[..., depth], rtol=1e-5, atol=1e-6)
        kept = tuple(x.at[:, :, depth].set(y) for x, y in zip(kept, own, strict=True))
    # Prefixes of several depths at once; what is kept of longer ones does not count.
    depths = jnp.asarray(np.random.default_rng(3).integers(0, DEPTHS, (3, 5)))
    last = jnp.take_along_axis(states, depths[..., None, None], axis=2)[:, :, 0]
    found, _ = step(head, last, depths, above())
    among = np.take_along_axis(expected, depths[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found, among, rtol=1e-5, atol=1e-6)


def test_without_the_block_a_value_is_that_of_its_state_and_depth_alone():
    head, states = make_head(ALONE), random_states(5)
    slopes = jax.jit(jax.jacobian(lambda states: head(states)))(states[0])  # [S, S, D].
    reach = np.abs(slopes).max(axis=-1)
    assert (np.diag(reach) > 1e-5).all()
    np.testing.assert_array_equal(reach[~np.eye(DEPTHS, dtype=bool)], 0.0)
    x = np.asarray(states, np.float64)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(head.state_norm.scale[...])
    x = (x + np.asarray(head.depth_embedding[...])) @ np.asarray(head.hidden.kernel[...])
    expected = (x / (1 + np.exp(-x))) @ np.asarray(head.value.kernel[...])
    expected = expected[..., 0] + np.asarray(head.depth_mean[...])
    np.testing.assert_allclose(values_of(head, states), expected, rtol=1e-4, atol=1e-4)


@with_and_without_block
def test_an_untrained_head_has_no_opinion_but_learns_from_the_first_step(config):
    head, states = ValueHead(config, rngs=nnx.Rngs(0)), random_states(3)
    np.testing.assert_array_equal(values_of(head, states), np.zeros((3, DEPTHS)))
    grads = jax.jit(jax.grad(lambda head: ((head(states) - 1.0) ** 2).sum()))(head)
    assert np.abs(grads.value.kernel[...]).max() > 0.01
    np.testing.assert_allclose(grads.depth_mean[...], np.full(DEPTHS, -6.0))


def test_a_value_depends_on_its_own_prefix_alone():
    head, states = make_head(), random_states(5)
    values = values_of(head, states)
    for depth in range(DEPTHS - 1):
        other = states.at[:, depth + 1 :].set(1e6 * random_states(5, seed=2)[:, depth + 1 :])
        changed = values_of(head, other)
        np.testing.assert_array_equal(changed[:, : depth + 1], values[:, : depth + 1])
        assert (np.abs(changed - values)[:, depth + 1 :] > 1e-4).all()


def test_a_value_depends_on_every_state_of_its_prefix():
    head, states = make_head(), random_states()
    slopes = jax.jit(jax.jacobian(lambda states: head(states)))(states)  # [S, S, D].
    reach = np.abs(slopes).max(axis=-1)
    assert (reach[np.tril_indices(DEPTHS)] > 1e-5).all()
    np.testing.assert_array_equal(reach[np.triu_indices(DEPTHS, 1)], 0.0)


def test_shorter_paths_have_the_values_of_longer_ones():
    head, states = make_head(), random_states(2, 3)
    values = values_of(head, states)
    assert values.shape == (2, 3, DEPTHS) and values.dtype == jnp.float32
    for length in range(1, DEPTHS):
        shorter = values_of(head, states[:, :, :length])
        np.testing.assert_allclose(shorter, values[:, :, :length], rtol=1e-5, atol=1e-6)


def test_depths_are_told_apart():
    states = jnp.broadcast_to(random_states(1)[:, :1], (1, DEPTHS, WIDTH))
    values = values_of(make_head(), states)[0]
    assert len({round(float(value), 4) for value in values}) == DEPTHS


@with_and_without_block
def test_every_parameter_gets_a_gradient_and_states_too(config):
    head, states = make_head(config), random_states(3)
    loss = jax.jit(jax.grad(lambda head, states: (head(states) ** 2).sum(), argnums=(0, 1)))
    for leaf in jax.tree.leaves(loss(head, states)):
        assert np.abs(leaf).max() > 1e-6


def test_it_compiles_once_per_shape():
    compiled = jax.jit(lambda head, states: head(states))
    for seed in range(3):
        compiled(make_head(), random_states(2, seed=seed))
    assert compiled._cache_size() == 1


@with_and_without_block
def test_dropout_needs_a_key(config):
    head, states = make_head(config), random_states(4)
    plain, dropped = values_of(head, states), values_of(head, states, jax.random.key(0))
    np.testing.assert_array_equal(values_of(head, states), plain)
    assert np.abs(plain - dropped).max() > 0.01
    assert np.abs(values_of(head, states, jax.random.key(1)) - dropped).max() > 0.01


def test_values_are_float32_whatever_computes_them():
    config = ValueHeadConfig(WIDTH, DEPTHS - 1, num_heads=2, d_ff=12, dtype="bfloat16")
    states = random_states(3)
    values = values_of(make_head(config), states.astype(jnp.bfloat16))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, values_of(make_head(), states), atol=0.2)


@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: ValueHeadConfig(8, 3, dtype=dtype),
        lambda dtype: DecoderOnlyConfig(8, 3, dtype=dtype),
        lambda dtype: EncoderDecoderConfig(8, 3, dtype=dtype),
    ],
)
def test_types_that_would_need_a_scaled_loss_are_refused(make):
    make("bfloat16")
    with pytest.raises(ModelError, match="dtype='float16' is not offered: .* use bfloat16"):
        make("float16")
    for dtype in ("float64", "int8", "bf16", ""):
        with pytest.raises(
            ModelError, match=f"dtype='{dtype}' is unknown: use float32 or bfloat16"
        ):
            make(dtype)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="d_model=8 must be a multiple of num_heads=3"):
        ValueHeadConfig(8, 3, num_heads=3)
    with pytest.raises(ModelError, match=r"dropout=1.5 must lie in \[0, 1\)"):
        ValueHeadConfig(8, 3, dropout=1.5)
    with pytest.raises(ModelError, match=r"states of shape \[.., 5, 8\] do not fit"):
        make_head()(jnp.zeros((1, DEPTHS + 1, WIDTH)))
    with pytest.raises(ModelError, match="code_length=3: give"):
        make_head()(jnp.zeros((1, DEPTHS, WIDTH + 1)))


@pytest.mark.parametrize("name", FLOAT32)
def test_path_states_are_those_of_decoding(name):
    model, history = make_model(name), random_items(0, (1, 3), 4)
    codes = np.random.default_rng(1).integers(2, 9, (2, 3, LENGTH))

    @jax.jit
    def decoded(model, history, codes):
        _, hidden, cache = model.prefill(history)
        cache = model.reorder(cache, jnp.zeros(codes.shape[:2], jnp.int32))
        states = [jnp.broadcast_to(hidden[:, None], (*codes.shape[:2], hidden.shape[-1]))]
        for depth in range(LENGTH):
            _, hidden, cache = model.step(codes[..., depth], cache)
            states.append(hidden)
        return jnp.stack(states, axis=2)

    found = jax.jit(path_states)(model, history, codes)
    np.testing.assert_allclose(found, decoded(model, history, codes), rtol=1e-3, atol=1e-4)
