import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    ModelError,
    decoder_only,
    encoder_decoder,
    encoder_decoder_layers,
    layers,
)

pytestmark = pytest.mark.usefixtures("compile_in_haste")

VOCAB, LENGTH, ITEMS, ROWS = 11, 4, 3, 16
NUM_BEAMS = (3, 4, 4)  # Of the steps behind prefill.

TINY_ENCODER_DECODER = EncoderDecoderConfig(
    VOCAB,
    LENGTH,
    d_model=16,
    num_heads=2,
    head_dim=6,
    d_ff=24,
    num_encoder_layers=1,
    num_decoder_layers=2,
)
TINY_CAUSAL = dataclasses.replace(TINY_ENCODER_DECODER, causal_encoder=True, recency_bias=True)
TINY_DECODER_ONLY = DecoderOnlyConfig(VOCAB, LENGTH, d_model=16, num_heads=2, d_ff=24, num_layers=2)

CONFIGS = {
    "bidirectional": TINY_ENCODER_DECODER,
    "causal, tied": dataclasses.replace(TINY_CAUSAL, tied_head=True),
    "decoder-only": TINY_DECODER_ONLY,
    "decoder-only, tied, bfloat16": dataclasses.replace(
        TINY_DECODER_ONLY, tied_head=True, dtype="bfloat16"
    ),
}
FLOAT32 = list(CONFIGS)[:3]


def create(config, seed=0):
    model = DecoderOnly if isinstance(config, DecoderOnlyConfig) else EncoderDecoder
    return model(config, rngs=nnx.Rngs(seed))


@functools.cache
def make_model(name):
    """A tiny model with random parameters, larger than at initialisation so that every part of it counts."""
    rng = np.random.default_rng(0)

    def draw(path, parameter):
        last = path[-2].name  # The leaf itself is the parameter's value.
        scale = {
            "embedding": 0.5,
            "table": 0.5,
            "scale": 0.2,
            "kernel": 1.5 / parameter.shape[0] ** 0.5,
        }[last]
        return jnp.asarray(
            (last == "scale") + scale * rng.normal(size=parameter.shape), jnp.float32
        )

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: create(CONFIGS[name])))


def tolerance(name):
    return {"atol": 0.25 if name.endswith("bfloat16") else 1e-4}


# Compiled once for each model and shape.
target_logits = jax.jit(lambda model, *inputs, key=None: model.target_logits(*inputs, key=key))
sequence_logits = jax.jit(lambda model, items, key=None: model.sequence_logits(items, key=key))


@jax.jit
def decode(model, history, tokens, parents):
    """Logits and hidden states of prefill and of each step behind a reorder, and the last cache."""
    logits, hidden, cache = model.prefill(history)
    results = [(logits, hidden)]
    for token, parent in zip(tokens, parents, strict=True):
        cache = model.reorder(cache, parent)
        logits, hidden, cache = model.step(token, cache)
        results.append((logits, hidden))
    return results, cache


def random_items(seed, lengths, num_items):
    """Tokens `[B, T, L]` of users with so many items, right-padded with 0."""
    rng = np.random.default_rng(seed)
    items = rng.integers(2, VOCAB, (len(lengths), num_items, LENGTH))
    return np.where(np.arange(num_items)[:, None] < np.array(lengths)[:, None, None], items, 0)


LENGTHS = (1, 3, 2, 3)  # Of four histories.


@pytest.fixture(scope="module")
def decoded_beams():
    """Histories `[4, T + 1, L]`, the last item padding, and random tokens and parents of every step."""
    rng = np.random.default_rng(1)
    history = random_items(0, LENGTHS, ITEMS + 1)
    tokens = [rng.integers(2, VOCAB, (4, beams)) for beams in NUM_BEAMS]
    choices = (1, *NUM_BEAMS[:-1])
    parents = [rng.integers(0, n, (4, m)) for n, m in zip(choices, NUM_BEAMS, strict=True)]
    parents[1][0], parents[2][0] = (2, 0, 2, 1), (3, 3, 0, 1)  # Swaps, repeats and leaves out.
    return history, tokens, parents


@pytest.mark.parametrize("name", CONFIGS)
def test_step_by_step_decoding_is_teacher_forcing(name, decoded_beams):
    history, tokens, parents = decoded_beams
    model = make_model(name)
    results, _ = decode(model, history, tokens, parents)

    # Whatever stands at the codes to be predicted and behind them must not matter: it is random.
    rng = np.random.default_rng(2)
    paths = np.zeros((4, 1, 0), int)
    results[0] = jax.tree.map(lambda x: x[:, None], results[0])
    for depth, (logits, _) in enumerate(results):
        if depth > 0:
            kept = np.take_along_axis(paths, parents[depth - 1][..., None], axis=1)
            paths = np.concatenate([kept, tokens[depth - 1][..., None]], axis=2)
        assert logits.shape == (4, paths.shape[1], VOCAB)
        sids = rng.integers(2, VOCAB, (4, 4, LENGTH))
        sids[:, : paths.shape[1], :depth] = paths
        histories = np.repeat(history[:, :ITEMS], 4, axis=0)
        forced = target_logits(model, histories, sids.reshape(-1, LENGTH))
        forced = forced.reshape(4, 4, LENGTH, VOCAB)[:, : paths.shape[1], depth]
        np.testing.assert_allclose(logits, forced, **tolerance(name))


@pytest.mark.parametrize("name", FLOAT32)
def test_keys_that_have_their_room_from_the_beginning_give_the_same(
    name, decoded_beams, monkeypatch
):
    history, tokens, parents = decoded_beams
    model = make_model(name)
    growing, _ = decode(model, history, tokens, parents)
    monkeypatch.setattr("gr.models.cache._LONG", LENGTH - 1)
    results, cache = decode.__wrapped__(model, history, tokens, parents)
    for (logits, hidden), expected in zip(results, growing, strict=True):
        np.testing.assert_allclose(logits, expected[0], atol=1e-4)
        np.testing.assert_allclose(hidden, expected[1], atol=1e-4)
    # So that steps of long semantic IDs can be one loop.
    _, _, longer = jax.eval_shape(model.step, tokens[-1], cache)
    assert jax.tree.map(jnp.shape, longer) == jax.tree.map(jnp.shape, cache)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_belongs_to_a_user_is_stored_once_per_user(name, decoded_beams):
    history, tokens, parents = decoded_beams
    results, cache = decode(make_model(name), history, tokens, parents)
    config = CONFIGS[name]
    heads, positions = (config.num_heads, config.head_dim), (ITEMS + 1) * LENGTH
    assert len(cache.shared) == len(cache.own) == 2
    for keys, values in cache.shared:
        assert keys.shape == (4, *heads, positions)
        assert values.shape == (4, heads[0], positions, heads[1])
    codes = 3 if isinstance(config, DecoderOnlyConfig) else 4  # A decoder also reads BOS.
    for array in jax.tree.leaves(cache.own):
        assert array.shape == (4, NUM_BEAMS[-1], heads[0] * heads[1])
    assert {len(arrays) for of_layer in cache.own for arrays in of_layer} == {codes}
    hidden = [hidden.shape for _, hidden in results]
    assert hidden == [(4, 16), *((4, beams, 16) for beams in NUM_BEAMS)]
    assert cache.lengths.tolist() == [LENGTH * length for length in LENGTHS]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [TINY_CAUSAL, TINY_DECODER_ONLY])
def test_parameters_and_logits_are_float32_and_activations_as_configured(
    config, dtype, decoded_beams
):
    model = jax.eval_shape(lambda: create(dataclasses.replace(config, dtype=dtype)))
    results, cache = jax.eval_shape(decode, model, *decoded_beams)
    float32 = {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(model)} == float32
    assert {logits.dtype for logits, _ in results} == float32
    activations = {x.dtype for x in jax.tree.leaves((cache.shared, cache.own))}
    activations |= {hidden.dtype for _, hidden in results}
    assert activations == {jnp.dtype(dtype)}
    items = jnp.zeros((2, 3, LENGTH), int)
    assert jax.eval_shape(sequence_logits, model, items).dtype == jnp.float32
    assert jax.eval_shape(target_logits, model, items, items[:, 0]).dtype == jnp.float32


def test_bfloat16_is_close_to_float32():
    model = make_model("causal, tied")
    config = dataclasses.replace(model.config, dtype="bfloat16")
    structure = jax.tree.structure(jax.eval_shape(lambda: create(config)))
    rounded = jax.tree.unflatten(structure, jax.tree.leaves(model))
    history, target = random_items(5, LENGTHS * 4, ITEMS), random_items(6, [1] * ROWS, 1)[:, 0]
    difference = target_logits(rounded, history, target) - target_logits(model, history, target)
    assert 1e-4 < np.abs(difference).mean() < 0.05


@pytest.mark.parametrize("name", list(CONFIGS)[1:])
def test_one_pass_over_a_sequence_gives_each_item_its_own_logits(name):
    model = make_model(name)
    lengths = [4, 2, 3, 4, 1, 4, 2, *[3] * 9]
    items = random_items(3, lengths, ITEMS + 2)  # The last item is padding.
    found = np.asarray(sequence_logits(model, items))
    assert found.shape == (ROWS, ITEMS + 1, LENGTH, VOCAB)
    for place in range(1, ITEMS + 1):
        history = items[:, :ITEMS].copy()
        history[:, place:] = 0
        expected = target_logits(model, history, items[:, place])
        real = np.array(lengths) > place
        assert real.any()
        np.testing.assert_allclose(
            found[real, place - 1], np.asarray(expected)[real], **tolerance(name)
        )


@pytest.mark.parametrize("name", ["causal, tied", "decoder-only"])
def test_no_code_sees_itself_or_what_comes_after_it(name):
    model = make_model(name)
    items = np.repeat(random_items(4, [ITEMS + 1], ITEMS + 2), ROWS, axis=0)
    changed = items.copy()  # In row p, token p is another one.
    for row, token in enumerate(changed.reshape(ROWS, -1).T[:ROWS].T):
        token[row] = 2 + (token[row] - 1) % (VOCAB - 2)
    plain, found = sequence_logits(model, items), sequence_logits(model, changed)
    difference = np.abs(np.asarray(found) - np.asarray(plain)).max(axis=-1)
    difference = difference[:, :ITEMS].reshape(ROWS, -1)
    predicted = LENGTH + np.arange(ITEMS * LENGTH)  # The token that each column is about.
    for token in range(ROWS):
        assert (difference[token, predicted <= token] < 1e-4).all()
        # And it is seen by everything after it.
        assert (difference[token, predicted > token] > 1e-3).all()


@pytest.mark.parametrize("name", FLOAT32)
def test_longer_padding_changes_nothing(name):
    # Decoding and whole sequences are padded above, and compared with histories that are padded less.
    model = make_model(name)
    history, target = random_items(5, LENGTHS * 4, ITEMS), random_items(6, [1] * ROWS, 1)[:, 0]
    padded = np.pad(history, ((0, 0), (0, 2), (0, 0)))
    plain = target_logits(model, history, target)
    np.testing.assert_allclose(target_logits(model, padded, target), plain, atol=1e-4)


@pytest.mark.parametrize("name", FLOAT32)
def test_every_item_of_the_history_and_its_place_count(name):
    model = make_model(name)
    history = np.repeat(random_items(7, [ITEMS], ITEMS), ROWS, axis=0)
    target = np.repeat(random_items(8, [1], 1)[:, 0], ROWS, axis=0)
    for place in range(ITEMS):
        history[1 + place, place] = history[0, place, ::-1]  # Another item.
    history[4] = history[0, ::-1]  # The same items in another order.
    history[5, 0], history[5, 1:] = history[0, -1], 0  # The last item only.
    logits = np.asarray(target_logits(model, history, target))
    for row in range(1, 6):
        assert np.abs(logits[row] - logits[0]).max(axis=-1).min() > 1e-3


def test_user_level_training_of_a_bidirectional_encoder_is_refused():
    items = random_items(0, [3], 3)
    with pytest.raises(ModelError, match="needs causal_encoder=True"):
        make_model("bidirectional").sequence_logits(items)


# Settings.


def test_heads_must_divide_the_width_into_pairs():
    with pytest.raises(ModelError, match="d_model=24 must be a multiple of 2 \\* num_heads=16"):
        DecoderOnlyConfig(VOCAB, LENGTH, d_model=24)


@pytest.mark.parametrize("config", [DecoderOnlyConfig, EncoderDecoderConfig])
@pytest.mark.parametrize(
    "wrong",
    [{"dropout": 1.0}, {"dropout": -0.1}, {"dtype": "float33"}, {"d_ff": 0}, {"num_heads": 0}],
)
def test_settings_that_cannot_work_are_named(config, wrong):
    (field,) = wrong
    with pytest.raises(ModelError, match=field):
        config(VOCAB, LENGTH, **wrong)


def count_parameters(config):
    shapes = jax.eval_shape(lambda: create(config))
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_parameters_of_the_reference_encoder_decoder():
    # V = 1000, D = 128, 6 heads of 64 = 384 wide, F = 1024, 4 + 4 layers.
    embedding = 1000 * 128
    attention = 128 + 4 * 128 * 384  # Norm; query, key, value and output.
    feed_forward = 128 + 2 * 128 * 1024
    encoder = 4 * (attention + feed_forward) + 128  # And the last norm.
    decoder = 4 * (2 * attention + feed_forward) + 128
    bias = 32 * 6  # Buckets by heads.
    tied = embedding + encoder + decoder + 2 * bias
    assert tied == 4_587_648
    config = EncoderDecoderConfig(1000, 3, tied_head=True)
    assert count_parameters(config) == tied
    assert count_parameters(dataclasses.replace(config, tied_head=False)) == tied + embedding
    causal = dataclasses.replace(config, causal_encoder=True, recency_bias=True)
    assert count_parameters(causal) == tied + bias


def test_parameters_of_the_reference_decoder_only():
    # V = 1000, D = 128, F = 1024, 8 layers of attention (4 D^2), SwiGLU (3 D F) and two norms.
    tied = 1000 * 128 + 8 * (4 * 128**2 + 3 * 128 * 1024 + 2 * 128) + 128
    assert tied == 3_800_192
    config = DecoderOnlyConfig(1000, 3, tied_head=True)
    assert count_parameters(config) == tied
    assert count_parameters(dataclasses.replace(config, tied_head=False)) == tied + 128_000


# Dropout. Its masks are tested in test_layers.py.


@pytest.mark.parametrize("name", ["causal, tied", "decoder-only"])
def test_dropout_is_a_function_of_the_key(name):
    model = make_model(name)
    items = random_items(9, [ITEMS + 1] * ROWS, ITEMS + 2)

    def run(key):
        if name == "causal, tied":
            return sequence_logits(model, items, key)[:, :ITEMS]
        return target_logits(model, items[:, :ITEMS], items[:, ITEMS], key=key)

    first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max(axis=-1).min() > 1e-2
    without = run(None)
    np.testing.assert_array_equal(without, run(None))
    assert np.abs(first - without).max(axis=-1).min() > 1e-2


def test_every_dropout_site_draws_a_mask_of_its_own(monkeypatch):
    seeds = []

    def recorded(x, rate, seed):
        seeds.append((rate, seed))
        return dropout(x, rate, seed)

    dropout = layers.dropout
    for module in (layers, encoder_decoder, encoder_decoder_layers, decoder_only):
        monkeypatch.setattr(module, "dropout", recorded)
    items = jnp.asarray(random_items(0, [2], 2))

    def seeds_of(name, key):
        seeds.clear()
        model = make_model(name)
        model.sequence_logits(items, key=key)
        model.target_logits(items[:, :1], items[:, 1], key=jax.random.fold_in(key, 1))
        assert all(rate == 0.1 for rate, _ in seeds)
        return [seed for _, seed in seeds]

    # Embedding; an encoder layer has 4 sites, a decoder layer 6: weights and output of each attention, inside the
    # feed-forward, its output. A layer of the decoder-only model has 4.
    for name, sites in {"causal, tied": 1 + 4 + 1 + 2 * 6, "decoder-only": 1 + 2 * 4}.items():
        found = jax.jit(functools.partial(seeds_of, name))(jax.random.key(0))
        assert len(found) == 2 * sites
        assert len({int(seed) for seed in found}) == 2 * sites


# Gradients.


@pytest.mark.parametrize("name", ["causal, tied", "decoder-only"])
def test_gradients_are_the_slopes_of_the_loss(name):
    model = make_model(name)
    items = jnp.asarray(random_items(10, [4, 2, 3, 4], ITEMS + 1))
    weight = (items[:, 1:] != 0).astype(jnp.float32)

    @jax.jit
    @jax.value_and_grad
    def loss_and_grads(model):
        log_probs = jax.nn.log_softmax(model.sequence_logits(items))
        chosen = jnp.take_along_axis(log_probs, items[:, 1:, :, None], axis=-1)[..., 0]
        return -(chosen * weight).sum() / weight.sum()

    grads = [np.asarray(grad) for grad in jax.tree.leaves(loss_and_grads(model)[1])]
    leaves, structure = jax.tree.flatten(model)
    step = 1e-3  # Small, for the sake of the kinks of ReLU.
    for place, grad in enumerate(grads):
        assert np.abs(grad).max() > 0
        # The steepest entry of every parameter, and a random one.
        some = np.random.default_rng(place).integers(grad.size)
        for entry in {int(np.abs(grad).argmax()), int(some)}:
            losses = []
            for change in (step, -step):
                moved = np.array(leaves[place])
                moved.flat[entry] += change
                moved = [*leaves[:place], jnp.asarray(moved), *leaves[place + 1 :]]
                losses.append(float(loss_and_grads(jax.tree.unflatten(structure, moved))[0]))
            slope = (losses[0] - losses[1]) / (2 * step)
            assert slope == pytest.approx(grad.flat[entry], rel=0.02, abs=1e-3)


def test_the_models_differ():
    """What the tests above compare is not the same number everywhere."""
    history, target = random_items(5, LENGTHS * 4, ITEMS), random_items(6, [1] * ROWS, 1)[:, 0]
    logits = [np.asarray(target_logits(make_model(name), history, target)) for name in FLOAT32]
    for one, other in itertools.combinations(logits, 2):
        assert np.abs(one - other).max() > 0.1
