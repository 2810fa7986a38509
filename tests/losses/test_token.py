import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tries

from gr import losses
from gr.testing import random_tokens
from gr.trie import TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

# Compiled as a whole, which is faster than operation by operation.
cross_entropy = jax.jit(losses.cross_entropy)
token_log_probs = jax.jit(losses.token_log_probs)
masked_token_log_probs = jax.jit(losses.masked_token_log_probs, static_argnames="tau")

LOG2 = 0.69314718
LOG4 = 2 * LOG2


def test_log_probs_by_hand():
    # Softmax of (0, log 3) is (1/4, 3/4); of equal logits, 1/V.
    logits = jnp.array([[0.0, jnp.log(3.0)], [5.0, 5.0]])
    found = token_log_probs(logits, jnp.array([1, 0]))
    np.testing.assert_allclose(found, [np.log(0.75), -LOG2], rtol=1e-6)


def test_log_probs_are_those_of_scipy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 9)).astype(np.float32) * 10
    tokens = rng.integers(0, 9, (3, 4))
    expected = np.take_along_axis(
        logits - scipy.special.logsumexp(logits.astype(np.float64), axis=-1, keepdims=True),
        tokens[..., None],
        axis=-1,
    )[..., 0]
    np.testing.assert_allclose(token_log_probs(logits, tokens), expected, rtol=1e-5, atol=1e-5)


def test_log_probs_of_extreme_logits():
    logits = jnp.array([[1e4, -1e4, 1e4], [0.0, 200.0, -1e4], [1e4, 1e4, 1e4]])
    found = token_log_probs(logits, jnp.array([0, 0, 2]))
    # Neighbouring float32 numbers at 1e4 are 1e-3 apart.
    np.testing.assert_allclose(found, [-LOG2, -200.0, -np.log(3)], atol=1e-3)
    assert float(token_log_probs(logits[0], jnp.array(1))) == pytest.approx(-2e4 - LOG2, abs=2e-3)


def test_log_probs_of_bfloat16_logits_are_float32():
    logits = jnp.zeros((256,), jnp.bfloat16)  # A bfloat16 cannot hold log 256 = 5.545.
    found = token_log_probs(logits, jnp.array(3))
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(-8 * LOG2, rel=1e-6)


def test_the_gradient_is_softmax_minus_one_hot():
    logits = jnp.array([[1.0, 2.0, -1.0, 0.5], [1e4, 0.0, -1e4, 1e4]])
    tokens = jnp.array([2, 1])
    grad = jax.grad(lambda x: -token_log_probs(x, tokens).sum())(logits)
    expected = scipy.special.softmax(np.asarray(logits), axis=-1) - np.eye(4)[np.asarray(tokens)]
    np.testing.assert_allclose(grad, expected, atol=1e-6)
    assert grad[1].tolist() == [0.5, -1.0, 0.0, 0.5]


def log_probs_of(shares):
    return jnp.log(jnp.array(shares, jnp.float32))


def test_cross_entropy_by_hand():
    # Targets of two codes: -log p is (log 2, log 4) and (0, log 4), so 1.5 log 2 and log 2 a target.
    token_logp = log_probs_of([[1 / 2, 1 / 4], [1, 1 / 4]])
    loss, metrics = cross_entropy(token_logp, jnp.ones(2), 2)
    assert float(loss) == pytest.approx(1.25 * LOG2, rel=1e-6)
    assert {name: float(value) for name, value in metrics.items()} == {
        "level_1/loss": pytest.approx(0.5 * LOG2, rel=1e-6),
        "level_2/loss": pytest.approx(LOG4, rel=1e-6),
    }


def test_the_normaliser_is_the_callers_and_levels_are_means_of_the_batch():
    token_logp = log_probs_of([[1 / 2, 1 / 4], [1, 1 / 4]])
    loss, metrics = cross_entropy(token_logp, jnp.ones(2), 5.0)
    assert float(loss) == pytest.approx(2.5 * LOG2 / 5, rel=1e-6)
    assert float(metrics["level_2/loss"]) == pytest.approx(LOG4, rel=1e-6)


def test_losses_of_batches_add_up_to_the_loss_of_all():
    rng = np.random.default_rng(0)
    token_logp = -jnp.asarray(rng.exponential(size=(6, 3)), jnp.float32)
    whole, _ = cross_entropy(token_logp, jnp.ones(6), 6)
    parts = [cross_entropy(token_logp[a:b], jnp.ones(b - a), 6)[0] for a, b in [(0, 1), (1, 6)]]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


@pytest.mark.parametrize("padding", [0.0, -5.0, -1e30, -np.inf])
def test_padding_has_no_influence(padding):
    token_logp = log_probs_of([[1 / 2, 1 / 4], [1, 1 / 4]])
    plain = cross_entropy(token_logp, jnp.ones(2), 2.0)
    padded = jnp.full((2, 2, 2), padding).at[0].set(token_logp)
    weight = jnp.array([[1.0, 1.0], [0.0, 0.0]])
    jax.tree.map(np.testing.assert_array_equal, cross_entropy(padded, weight, 2.0), plain)
    grad = jax.grad(lambda x: cross_entropy(x, weight, 2.0)[0])(padded)
    np.testing.assert_array_equal(grad[0], -0.25)
    np.testing.assert_array_equal(grad[1], 0.0)


def test_a_batch_of_padding_alone_costs_nothing():
    loss, metrics = cross_entropy(jnp.full((2, 3), -4.0), jnp.zeros(2), 2.0)
    assert float(loss) == 0.0
    assert [float(metrics[f"level_{level}/loss"]) for level in (1, 2, 3)] == [0.0] * 3


def test_very_unlikely_targets_stay_finite():
    logits = jnp.array([[[0.0, 200.0], [0.0, 1e4]]])
    loss, grad = jax.value_and_grad(
        lambda x: cross_entropy(token_log_probs(x, jnp.zeros((1, 2), int)), jnp.ones(1), 1)[0]
    )(logits)
    assert float(loss) == pytest.approx((200 + 1e4) / 2, rel=1e-6)
    np.testing.assert_allclose(grad, [[[-0.5, 0.5], [-0.5, 0.5]]], atol=1e-6)


# Masked softmax.


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
def test_masked_log_probs_are_those_among_the_children(kinds):
    rng = np.random.default_rng(0)
    tokens = random_tokens(rng, 20)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    targets = tokens[rng.integers(0, 20, (2, 3))]
    logits = rng.normal(size=(2, 3, 3, tries.VOCAB)) * 3
    found = masked_token_log_probs(jnp.asarray(logits), jnp.asarray(targets), index, tau=2.0)
    for place in np.ndindex(2, 3):
        for depth, token in enumerate(targets[place]):
            prefix = targets[place][:depth].tolist()
            allowed = {row[depth] for row in tokens.tolist() if row[:depth] == prefix}
            scaled = logits[place][depth] / 2.0
            expected = scaled[token] - np.log(sum(np.exp(scaled[other]) for other in allowed))
            assert found[place][depth] == pytest.approx(expected, abs=1e-5)


def test_masked_log_probs_at_padding_are_harmless():
    index = TrieIndex.build(np.array([[2, 3], [2, 4], [5, 3]]), 6)
    tokens = jnp.array([[2, 4], [0, 0]])
    loss = lambda logits: masked_token_log_probs(logits, tokens, index).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.zeros((2, 2, 6)))
    # Two first tokens, and two behind the first of them.
    assert value == pytest.approx(2 * np.log(0.5))
    assert (gradient[1] == 0).all()
    np.testing.assert_allclose(gradient[0], [[0, 0, 0.5, 0, 0, -0.5], [0, 0, 0, -0.5, 0.5, 0]])
