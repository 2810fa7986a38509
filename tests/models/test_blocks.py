"""Layers over blocks of users, as a TPU runs them, against all users at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from platforms import of_tpu

from gr.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder, EncoderDecoderConfig, blocks
from gr.models.blocks import in_blocks

pytestmark = pytest.mark.usefixtures("compile_in_haste")
USERS, BEAMS = 6, 12  # As many beams as a history has tokens.


@pytest.fixture
def on_tpu(monkeypatch):
    """Chooses what a TPU would run, in blocks of so few rows that small batches have several."""
    monkeypatch.setattr(jax.lax, "platform_dependent", of_tpu)
    monkeypatch.setattr(blocks, "_ROWS", 2 * BEAMS)


def sizes_of(users, each):
    """Users of the blocks that `in_blocks` runs, as it traces them."""
    seen = []

    def run(x, y):
        seen.append(len(x))
        return x + y[:, None, None], {"twice": 2 * y}

    x = jnp.arange(users * each * 3.0).reshape(users, each, 3)
    y = jnp.arange(float(users))
    total, others = in_blocks(run, x, y)
    np.testing.assert_array_equal(total, x + y[:, None, None])
    np.testing.assert_array_equal(others["twice"], 2 * y)
    return set(seen)


@pytest.mark.usefixtures("on_tpu")
@pytest.mark.parametrize(
    ("users", "each", "block"),
    [
        (6, 12, 2),  # 24 rows.
        (6, 4, 6),  # All fit.
        (2, 12, 2),  # So do these, exactly.
        (6, 6, 3),  # Four users would fit, but do not divide six.
        (7, 8, 7),  # A block could only be one user: too few rows.
        (3, 25, 3),  # A user alone has more rows than a block.
    ],
)
def test_blocks_are_the_largest_that_fit(users, each, block):
    assert sizes_of(users, each) == {block}


@pytest.mark.usefixtures("on_tpu")
def test_blocks_of_a_share_of_the_users():
    """As where each device of a mesh decodes users of its own."""
    mesh = Mesh(jax.devices()[:1], ("data",))
    kernel = jnp.arange(3.0)

    def share(x, kernel):
        return in_blocks(lambda rows: rows @ kernel, x)

    split = jax.shard_map(share, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    x = jnp.arange(USERS * BEAMS * 3.0).reshape(USERS, BEAMS, 3)
    assert "scan" in str(jax.make_jaxpr(split)(x, kernel))
    np.testing.assert_allclose(jax.jit(split)(x, kernel), x @ kernel)


def test_other_platforms_have_no_loop():
    assert "scan" in str(jax.make_jaxpr(lambda x: in_blocks(jnp.sin, x))(jnp.ones((1024, 20, 1))))
    text = jax.jit(lambda x: in_blocks(jnp.sin, x)).lower(jnp.ones((1024, 20, 1))).as_text()
    assert "while" not in text


SIZES = {
    "vocab_size": 13,
    "code_length": 3,
    "d_model": 8,
    "num_heads": 2,
    "head_dim": 4,
    "d_ff": 16,
}
# Loops of a prefill and of a step: a layer of the encoder has one, of the decoder two, of the decoder-only model one.
MODELS = {
    "causal": (lambda rngs: encoder_decoder(True, rngs), (2, 4)),
    "bidirectional": (lambda rngs: encoder_decoder(False, rngs), (2, 4)),
    "decoder-only": (
        lambda rngs: DecoderOnly(DecoderOnlyConfig(num_layers=2, **SIZES), rngs=rngs),
        (2, 2),
    ),
}


def encoder_decoder(causal, rngs):
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    config = EncoderDecoderConfig(causal_encoder=causal, recency_bias=causal, **layers, **SIZES)
    return EncoderDecoder(config, rngs=rngs)


@pytest.mark.usefixtures("on_tpu")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_blocks_computes_the_same(name, monkeypatch):
    make, (of_prefill, of_step) = MODELS[name]
    model = make(nnx.Rngs(0))
    numbers = np.random.default_rng(0)
    history = numbers.integers(1, 13, (USERS, 4, 3)).astype(np.int32)
    history[::2, 2:] = 0
    tokens = numbers.integers(1, 13, (2, USERS, BEAMS)).astype(np.int32)
    parents = numbers.integers(0, BEAMS, (USERS, BEAMS)).astype(np.int32)

    def decoded(model):
        logits, hidden, cache = model.prefill(history)
        cache = model.reorder(cache, jnp.zeros_like(parents))
        found = [logits, hidden]
        for step, order in zip(tokens, (parents, parents), strict=True):
            logits, hidden, cache = model.step(step, cache)
            cache = model.reorder(cache, order)
            found += [logits, hidden]
        return found

    # Functions are made anew, since JAX keeps what it traced of the same one.
    def num_loops():
        return str(jax.make_jaxpr(lambda model: decoded(model))(model)).count("scan[")

    assert num_loops() == of_prefill + 2 * of_step
    blocked = jax.jit(lambda model: decoded(model))(model)
    monkeypatch.setattr(blocks, "_ROWS", USERS * BEAMS)
    assert num_loops() == 0
    at_once_decoded = jax.jit(lambda model: decoded(model))(model)
    for ours, expected in zip(blocked, at_once_decoded, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
