"""What beam search promises where matrix products round their operands: exact for the model as it computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import MANTISSA_BITS, products_of

from gr.decoding import beam_search
from gr.models import path_states
from gr.trie import TrieIndex
from tests.models.test_backbones import LENGTH, VOCAB, make_model, random_items

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS, BEAMS = 64, 20
HISTORY = jnp.asarray(random_items(0, [1 + user % 3 for user in range(USERS)], 3))
TOKENS = np.unique(np.random.default_rng(1).integers(2, VOCAB, (60, LENGTH)), axis=0)
INDEX = TrieIndex.build(TOKENS, VOCAB)

# How far a beam's score may be from the teacher-forced one: rounding before a product makes a difference of float32's
# last bit one of the rounded operand's.
BOUNDS = {("tpu", "default"): 0.3, ("tpu", "high"): 2e-3, ("gpu", "default"): 0.03}
CASES = [
    ("decoder-only", "tpu", "default"),
    ("decoder-only", "tpu", "high"),
    ("decoder-only", "gpu", "default"),
    ("causal, tied", "tpu", "default"),
]


@jax.jit
def teacher_forced(model, history):
    """Log-probabilities `[B, N, L]` of the codes of all semantic IDs, each behind those before it."""
    codes = jnp.broadcast_to(jnp.asarray(TOKENS), (len(history), *TOKENS.shape))
    log_probs = jax.nn.log_softmax(model.logits(path_states(model, history, codes)[:, :, :-1]))
    return jnp.take_along_axis(log_probs, codes[..., None], axis=-1)[..., 0]


@functools.cache
def searched(name, device, precision):
    """Items and scores `[B, M]` of the search, and the sums `[B, N, L]` of what teacher forcing gives every prefix."""
    model = make_model(name)
    with products_of(device), jax.default_matmul_precision(precision):
        found = beam_search(model, INDEX, HISTORY, BEAMS)
        log_probs = teacher_forced(model, HISTORY)
    assert np.asarray(found.valid).all()
    return (
        np.asarray(found.items)[..., 0],
        np.asarray(found.scores),
        np.cumsum(np.asarray(log_probs, np.float64), axis=-1),
    )


def exact_product(a, b, bits):
    """The product of operands that keep so many mantissa bits, by numbers of 64 bits."""

    def rounded(x):
        unit = 2.0 ** (np.floor(np.log2(np.abs(x))) - bits)
        return np.round(x / unit) * unit  # To even.

    return rounded(a.astype(np.float64)) @ rounded(b.astype(np.float64))


@pytest.mark.parametrize("device", ["tpu", "gpu"])
def test_products_are_rounded_as_the_device_does(device):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 64), (64, 7)))
    product = jax.jit(jnp.matmul)
    with products_of(device):
        for level, bits in MANTISSA_BITS[device].items():
            with jax.default_matmul_precision(level.name.lower()):
                found = product(a, b)
            np.testing.assert_allclose(found, exact_product(a, b, bits), atol=2e-5)
            assert np.abs(found - a.astype(np.float64) @ b).max() > 2.0 ** -(bits + 2)
        with jax.default_matmul_precision("highest"):
            highest = np.asarray(product(a, b))
    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(product(a, b), highest)


@pytest.mark.parametrize(("name", "device", "precision"), CASES)
def test_scores_are_those_of_teacher_forcing_within_the_bound(name, device, precision):
    items, scores, sums = searched(name, device, precision)
    expected = np.take_along_axis(sums[..., -1], items, axis=1)
    error = np.abs(scores - expected).max()
    assert error < BOUNDS[device, precision]
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize(("name", "device", "precision"), CASES)
def test_the_search_is_exact_for_the_model_as_it_computes(name, device, precision):
    """An item whose every prefix is clearly among the best of its depth is found; all prefixes are enumerated."""
    items, _, sums = searched(name, device, precision)
    doubt = 2 * BOUNDS[device, precision]
    sure = np.ones((USERS, len(TOKENS)), bool)
    for depth in range(LENGTH):
        _, first, prefix = np.unique(
            TOKENS[:, : depth + 1], axis=0, return_index=True, return_inverse=True
        )
        of_prefixes = sums[:, first, depth]
        rivals = (of_prefixes[:, None, :] > of_prefixes[:, :, None] - doubt).sum(-1) - 1
        sure &= (rivals < BEAMS)[:, prefix.reshape(-1)]
    found = (items[:, :, None] == np.arange(len(TOKENS))).any(axis=1)
    assert found[sure].all()
    # The tolerance does not empty the test.
    assert sure.sum(axis=1).mean() > BEAMS / 3


def test_highest_precision_is_that_of_a_cpu_bit_by_bit_and_others_change_rankings():
    def ranked(precision):
        with jax.default_matmul_precision(precision):
            found = beam_search(make_model("decoder-only"), INDEX, HISTORY, BEAMS)
        return np.asarray(found.items)[..., 0], np.asarray(found.scores)

    plain = ranked("highest")
    with products_of("tpu"):
        on_device = ranked("highest")
    np.testing.assert_array_equal(on_device[0], plain[0])
    np.testing.assert_array_equal(on_device[1], plain[1])
    changed = {
        case[1:]: int((searched(*case)[0] != plain[0]).any(axis=1).sum())
        for case in CASES
        if case[0] == "decoder-only"
    }
    assert changed["tpu", "default"] > changed["gpu", "default"] > changed["tpu", "high"]
