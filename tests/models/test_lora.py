"""Frozen parameters and LoRA: what is trained, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    ModelError,
    add_lora,
    freeze,
    merge_lora,
    trained_part,
    with_trained,
)
from gr.models.layers import Frozen, Linear
from gr.models.lora import named_parameters
from gr.training import TrainingError, TrainState, make_optimizer, make_train_step

pytestmark = pytest.mark.usefixtures("compile_in_haste")

CONFIG = DecoderOnlyConfig(
    11, 2, d_model=8, num_heads=2, d_ff=12, num_layers=2, num_text_tokens=5, dropout=0.0
)
HISTORY, TARGET = jnp.array([[[2, 3], [4, 5]], [[6, 7], [0, 0]]]), jnp.array([[3, 8], [9, 4]])


@pytest.fixture(scope="module")
def model():
    return DecoderOnly(CONFIG, rngs=nnx.Rngs(0))


target_logits = jax.jit(lambda model: model.target_logits(HISTORY, TARGET))


def loss(model, batch, key, loss_state):
    logp = jax.nn.log_softmax(model.target_logits(batch, TARGET))
    return -jnp.take_along_axis(logp, TARGET[..., None], -1).mean(), ({}, loss_state)


def stepped(model, steps=2, **options):
    """The model after some steps of a high rate, and their state."""
    optimizer, _ = make_optimizer(learning_rate=0.1, total_steps=9, weight_decay=0.5, **options)
    state = TrainState.create(model, optimizer, jax.random.key(0))
    step = make_train_step(loss, optimizer)
    for _ in range(steps):
        state, metrics = step(state, HISTORY)
    return state, metrics


def changed(before, after):
    before, after = named_parameters(before), named_parameters(after)
    return {name for name, array in before.items() if not np.array_equal(array, after[name])}


def test_frozen_parameters_stay_and_have_no_moments(model):
    frozen = freeze(model, nnx.Any(nnx.PathContains("layers"), nnx.PathContains("embedding")))
    state, _ = stepped(frozen)
    assert changed(model, state.model) == {"norm.scale", "text_embedding", "head.kernel"}
    moments = {leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
    assert moments == {(8,), (5, 8), (8, 11)}
    assert {"layers.0.qkv.kernel", "norm.scale"} <= changed(model, stepped(model)[0].model)


def test_a_model_without_frozen_parameters_is_its_trained_part(model):
    bare = freeze(model, nnx.Nothing())
    bare.text_head = nnx.Param(bare.text_head[...])
    assert jax.tree.structure(trained_part(bare)) == jax.tree.structure(bare)
    part = trained_part(model)  # The text's head is never trained.
    assert len(jax.tree.leaves(part)) == len(jax.tree.leaves(model)) - 1
    jax.tree.map(np.testing.assert_array_equal, with_trained(model, part), model)
    table = {"table": jnp.ones(3), "more": None}
    assert jax.tree.structure(trained_part(table)) == jax.tree.structure(table)


def test_lora_changes_nothing_at_first_and_is_a_change_of_kernels_later(model):
    before = target_logits(model)
    tuned = add_lora(model, 2, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(target_logits(tuned), before)
    state, _ = stepped(tuned)
    names = changed(tuned, state.model)
    projections = {
        f"layers.{i}.{name}" for i in range(2) for name in ("qkv", "out", "gate_up", "down")
    }
    factors = {f"{name}.lora.{factor}" for name in projections for factor in ("down", "up")}
    assert names == factors | {"embedding", "head.kernel"}
    after = target_logits(state.model)
    assert np.abs(after - before).max() > 0.1
    merged = merge_lora(state.model)
    np.testing.assert_allclose(target_logits(merged), after, atol=1e-5)
    assert changed(model, merged) == {f"{n}.kernel" for n in projections} | {
        "embedding",
        "head.kernel",
    }
    assert named_parameters(merged).keys() == named_parameters(model).keys()


def test_gradients_of_the_factors_are_those_of_the_kernel_by_the_chain_rule(model):
    tuned = add_lora(model, 2, alpha=3.0, where=nnx.PathContains("qkv"), rngs=nnx.Rngs(1))
    rng = np.random.default_rng(0)
    for layer in tuned.layers:
        layer.qkv.lora.up[...] = jnp.asarray(rng.normal(size=layer.qkv.lora.up.shape), "f4")
    found = jax.grad(lambda part: loss(with_trained(tuned, part), HISTORY, None, ())[0])(
        trained_part(tuned)
    )
    whole = jax.grad(lambda model: loss(model, HISTORY, None, ())[0])(merge_lora(tuned))
    for layer, grads, of_kernel in zip(tuned.layers, found.layers, whole.layers, strict=True):
        lora, to_kernel = layer.qkv.lora, 1.5 * of_kernel.qkv.kernel[...]
        np.testing.assert_allclose(grads.qkv.lora.down[...], to_kernel @ lora.up[...].T, atol=1e-5)
        np.testing.assert_allclose(grads.qkv.lora.up[...], lora.down[...].T @ to_kernel, atol=1e-5)


def test_a_frozen_kernel_may_be_bfloat16_while_factors_are_float32(model):
    tuned = add_lora(model, 2, trained=nnx.Nothing(), rngs=nnx.Rngs(1))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tuned)
    with pytest.raises(TrainingError, match="parameter layers.0.down.lora.down is bfloat16"):
        stepped(half)
    mixed = with_trained(half, trained_part(tuned))
    state, metrics = stepped(mixed)
    assert np.isfinite(metrics["loss"]) and state.model.norm.scale[...].dtype == jnp.bfloat16
    assert all(".lora." in name for name in changed(mixed, state.model))


def test_what_cannot_be_is_refused(model):
    with pytest.raises(ModelError, match="lora_rank=0 must be at least 1"):
        add_lora(model, 0, rngs=nnx.Rngs(0))
    with pytest.raises(ModelError, match="no projection"):
        add_lora(model, 1, where=nnx.Nothing(), rngs=nnx.Rngs(0))
    assert not any(isinstance(m, Linear) and m.lora for _, m in nnx.iter_modules(model))
    assert isinstance(model.text_head, Frozen)
