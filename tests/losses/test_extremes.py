"""Logits and log-probabilities as low and high as float32 goes: right values, and no NaN in values or gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from gr import losses
from gr.losses import PolicyConfig
from gr.testing import random_tokens
from gr.trie import TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

LOWEST = float(np.finfo(np.float32).min)
# What a mask or a model that has run away puts in place of a logit.
EXTREMES = np.array([-np.inf, LOWEST, -1e30, 1e30, 0.0, -LOWEST], np.float32)
USERS, GROUP, LENGTH = 3, 4, 3


def extreme_logits(rng, shape):
    """Ordinary logits with extreme ones among them, some equal, and some rows of one extreme alone."""
    logits = rng.normal(size=shape).astype(np.float32) * 3
    logits = np.where(rng.random(shape) < 0.4, rng.choice(EXTREMES, shape), logits)
    alone = rng.random(shape[:-1]) < 0.2
    return np.where(alone[..., None], rng.choice(EXTREMES, shape[:-1])[..., None], logits)


def log_softmax(logits):
    """In float64, which can bear their differences; -inf where nothing is above -inf."""
    logits = np.asarray(logits, np.float64)
    largest = logits.max(axis=-1, keepdims=True)
    logits = logits - np.where(largest == -np.inf, 0.0, largest)
    total = np.exp(logits).sum(axis=-1, keepdims=True)
    return logits - np.log(np.where(total == 0, 1.0, total))


def assert_equal_in_float32(found, expected):
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(found, expected.astype(np.float32), rtol=1e-5, atol=1e-5)


@jax.jit
def shares_and_slopes(logits, tokens):
    """Log-probabilities, their gradients, and entropies."""
    found, slopes = jax.vjp(lambda x: losses.token_log_probs(x, tokens), logits)
    return found, slopes(jnp.ones_like(found))[0], losses.token_entropies(logits)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_log_probs_are_those_of_float64(seed):
    rng = np.random.default_rng(seed)
    logits, tokens = extreme_logits(rng, (8, 5)), rng.integers(0, 5, 8)
    found, slopes, entropies = map(np.asarray, shares_and_slopes(logits, tokens))
    expected = log_softmax(logits)
    assert_equal_in_float32(found, np.take_along_axis(expected, tokens[:, None], -1)[:, 0])
    assert (found <= 0).all()
    chances = np.exp(expected)
    np.testing.assert_allclose(slopes, np.eye(5)[tokens] - chances, atol=1e-5)
    terms = np.where(chances > 0, chances * np.where(chances > 0, expected, 0), 0)
    np.testing.assert_allclose(entropies, -terms.sum(-1), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_the_group_shares_the_first_prediction(seed):
    rng = np.random.default_rng(seed)
    first, later = extreme_logits(rng, (4, 5)), extreme_logits(rng, (4, 2, 2, 5))
    tokens = rng.integers(0, 5, (4, 2, 3))
    found = jax.jit(losses.group_token_log_probs)(first, later, tokens)
    together = np.concatenate([np.repeat(first[:, None, None], 2, axis=1), later], axis=2)
    expected = np.take_along_axis(log_softmax(together), tokens[..., None], -1)[..., 0]
    assert_equal_in_float32(found, expected)


CATALOGUE = random_tokens(np.random.default_rng(0), 20)
INDEX = TrieIndex.build(CATALOGUE, tries.VOCAB)


@jax.jit
def masked_and_slopes(logits, tokens):
    found, slopes = jax.vjp(lambda x: losses.masked_token_log_probs(x, tokens, INDEX), logits)
    return found, slopes(jnp.ones_like(found))[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_masked_log_probs_are_those_of_float64(seed):
    rng = np.random.default_rng(seed)
    tokens = CATALOGUE[rng.integers(0, 20, 6)]
    logits = extreme_logits(rng, (6, 3, tries.VOCAB))
    tokens = np.concatenate(
        [tokens, np.zeros((2, 3), int)]
    )  # And padding, of which nothing may be known.
    logits = np.concatenate([logits, np.full((2, 3, tries.VOCAB), np.nan, np.float32)])
    logits[-1] = -np.inf
    found, slopes = map(np.asarray, masked_and_slopes(logits, tokens))
    for user, row in enumerate(tokens[:6]):
        for depth, token in enumerate(row):
            allowed = sorted(
                {r[depth] for r in CATALOGUE.tolist() if r[:depth] == row[:depth].tolist()}
            )
            expected = log_softmax(logits[user, depth, allowed])
            assert_equal_in_float32(found[user, depth], expected[allowed.index(token)])
    assert not found[6:].any() and not slopes[6:].any()
    assert np.isfinite(slopes).all()


def test_a_loss_of_what_is_impossible_is_infinite_and_of_padding_nothing():
    logits = jnp.full((3, 2, 4), -jnp.inf).at[0].set(0.0).at[1, :, 1].set(0.0)
    weight = jnp.array(
        [1.0, 0.0, 0.0]
    )  # The second's target is impossible, for the third everything is.
    tokens = jnp.zeros((3, 2), int)

    def loss(logits, weight):
        return losses.cross_entropy(losses.token_log_probs(logits, tokens), weight, 1.0)[0]

    value, slopes = jax.value_and_grad(loss)(logits, weight)
    assert float(value) == pytest.approx(np.log(4)) and not slopes[1:].any()
    for user in (1, 2):
        value, slopes = jax.value_and_grad(loss)(logits, weight.at[user].set(1.0))
        assert float(value) == np.inf and np.isfinite(slopes).all()


# Prefix losses.


def random_log_probs(rng, shape):
    """Log-probabilities, many of them very low or -inf."""
    values = -rng.exponential(size=shape)
    low = rng.choice([-np.inf, -1e37, -1e30, -200.0, 0.0], shape)
    return np.where(rng.random(shape) < 0.4, low, values).astype(np.float32)


@jax.jit
def prefix_losses(own, others, nodes, other_nodes, weight):
    def of(own, others):
        pointwise = losses.pointwise_prefix_losses(own, weight)
        counts = jnp.array([5, 9, 12])
        pairwise = losses.pairwise_prefix_losses(
            own, others, nodes, other_nodes, counts, weight=weight
        )
        return pointwise, pairwise

    found, slopes = jax.vjp(of, own, others)
    return found, slopes(jax.tree.map(jnp.ones_like, found))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_prefix_losses_are_those_of_float64(seed):
    rng = np.random.default_rng(seed)
    own, others = random_log_probs(rng, (4, LENGTH)), random_log_probs(rng, (4, 5, LENGTH))
    # Names of nodes such that equal prefixes are equal numbers.
    codes = rng.integers(0, 2, (4, 6, LENGTH))
    names = np.cumsum(codes * 2 ** np.arange(LENGTH), axis=-1)
    nodes, other_nodes = names[:, 0], names[:, 1:]
    weight = np.array([1, 0, 1, 1], np.float32)
    own[1], others[1] = np.nan, np.nan  # Padding.
    (pointwise, pairwise), slopes = prefix_losses(own, others, nodes, other_nodes, weight)
    expected = np.zeros((2, LENGTH))
    with np.errstate(over="ignore"):  # Sums beyond float32 are -inf there.
        scores, negative = (
            np.cumsum(x, -1, dtype=np.float64).astype(np.float32).astype(np.float64)
            for x in (own, others)
        )
    for user in (0, 2, 3):
        for depth in range(LENGTH):
            expected[0, depth] += -scores[user, depth] / (depth + 1) / 3
            met = {
                name: score
                for name, score in zip(
                    other_nodes[user, ::-1, depth], negative[user, ::-1, depth], strict=True
                )
                if name != nodes[user, depth]
            }
            total = np.logaddexp.reduce([*met.values(), -np.inf])
            if total == -np.inf:
                continue
            total += np.log([4, 8, 11][depth] / (len(met) + 1))
            mine = scores[user, depth]
            loss = np.inf if mine == -np.inf else np.logaddexp(0, total - mine)
            expected[1, depth] += loss / (depth + 1) / 3
    assert_equal_in_float32(pointwise, expected[0])
    np.testing.assert_allclose(pairwise, expected[1].astype(np.float32), rtol=1e-4, atol=1e-4)
    for slope in slopes:
        assert np.isfinite(slope).all() and not slope[1].any()


@pytest.mark.parametrize("eta", [0.0, 1e-4, 1e3, 1e30])
def test_weights_of_prefixes_stay_on_the_simplex(eta):
    for values in ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [1.0, np.inf, 2.0], [1e30, 1e30, 0.0]):
        values = jnp.array(values)
        begun = jnp.array([0.2, 0.3, 0.5])
        for weights in (
            losses.stateless_prefix_weights(values, eta),
            losses.update_prefix_weights(begun, values, eta),
            losses.update_prefix_weights(jnp.zeros(3), values, eta),
        ):
            assert float(weights.sum()) == pytest.approx(1.0, rel=1e-5) and (weights >= 0).all()
    largest = losses.stateless_prefix_weights(jnp.array([1.0, 2.0, 3.0]), 1e3)
    np.testing.assert_allclose(largest, [0, 0, 1], atol=1e-6)


# Policies and values.


@jax.jit
def policy_losses(logp, old, reference, codes, rewards, valid):
    """Values, gradients and metrics of every method."""
    importance = jnp.exp(jnp.where(valid, logp.sum(-1), -jnp.inf))

    def loss(logp, config):
        return losses.policy_objective(
            config, logp, old, reference, codes, rewards, valid, importance=importance
        )

    return [
        jax.value_and_grad(loss, has_aux=True)(logp, PolicyConfig(name, cppo=cppo, kl_weight=0.1))
        for name in ("grpo", "sibling_grpo", "tempo")
        for cppo in (False, True)
    ]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_policies_of_impossible_codes_are_numbers(seed):
    rng = np.random.default_rng(seed)
    shape = (USERS, GROUP, LENGTH)
    logp, old, reference = (random_log_probs(rng, shape) for _ in range(3))
    both = rng.random(shape) < 0.3
    old = np.where(both, logp, old)
    valid = rng.random(shape[:2]) < 0.7
    valid[0] = False  # A user without any candidate.
    rewards = rng.normal(size=shape[:2]).astype(np.float32)
    rewards[1] = 0.5  # A constant group.
    for x in (logp, old, reference):
        x[~valid] = np.nan
    rewards[~valid] = np.nan
    codes = rng.integers(0, 2, shape)
    for (loss, metrics), slopes in policy_losses(logp, old, reference, codes, rewards, valid):
        assert np.isfinite(loss) and np.isfinite(slopes).all()
        assert not np.asarray(slopes)[~valid].any()
        assert all(np.isfinite(value) for value in metrics.values())


def test_what_both_policies_hold_impossible_has_not_changed():
    logp = jnp.array([[[-jnp.inf, -1.0]], [[-jnp.inf, -1.0]]])
    advantages, weight = jnp.ones((2, 1, 2)), jnp.ones((2, 1, 2))
    loss, metrics = losses.policy_loss(logp, logp, logp, advantages, weight)
    assert float(loss) == -1.0 and float(metrics["kl"]) == 0.0  # Ratios of 1.
    kept = losses.cppo_mask(logp, logp, advantages, threshold=1e-6, budget=0.0)
    assert kept.all()


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15, 1e30])
def test_advantages_at_any_scale_of_rewards(scale):
    rewards = jnp.array([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0]]) * scale
    codes = jnp.array([[[0, 0], [0, 1], [1, 0], [1, 1]]] * 2)
    expected = np.array([-1.5, -0.5, 0.5, 1.5]) * scale
    expected = expected / (np.std(expected, ddof=1) + 1e-4)
    found = losses.grpo_advantages(rewards)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    siblings = losses.sibling_advantages(codes, rewards)
    for depth, halves in ((0, [-1, -1, 1, 1]), (1, [-0.5, 0.5, -0.5, 0.5])):
        expected = np.array(halves) * scale / (abs(halves[0]) * scale + 1e-4)
        np.testing.assert_allclose(siblings[0, :, depth], expected, rtol=1e-5)
    tempo = losses.tempo_advantages(codes, rewards)
    assert np.isfinite(tempo).all()
    for nothing in (found[1], siblings[1], tempo[1]):
        assert not nothing.any()


def test_one_candidate_has_nothing_to_be_compared_with():
    codes, rewards = jnp.zeros((2, 1, 3), int), jnp.array([[1e30], [-2.0]])
    assert not losses.grpo_advantages(rewards).any()
    assert not losses.sibling_advantages(codes, rewards).any()
    assert not losses.tempo_advantages(codes, rewards).any()


@pytest.mark.parametrize("stands_there", [np.nan, np.inf, -np.inf, 1e30])
def test_values_at_padding_have_no_influence(stands_there):
    values, targets = jnp.ones((2, 3, 2)), jnp.zeros((2, 3, 2))
    weight = jnp.ones((2, 3, 2)).at[1].set(0.0)

    def loss(values):
        return losses.td_loss(values, targets.at[1].set(stands_there), weight)[0]

    value, slopes = jax.value_and_grad(loss)(values.at[1].set(stands_there))
    assert float(value) == 1.0
    assert np.isfinite(slopes).all() and not slopes[1].any()
