"""Prefix losses and their adaptive weights: adaptive prefix-aware optimisation (APAO, arXiv 2603.02730).

Beam search keeps the right item only while each of its prefixes ranks among the best. So each prefix gets its own loss,
and the weights move towards the prefix with the largest loss. Depths t = 1..L are places 0..L-1 of arrays.
"""

import jax
import jax.numpy as jnp


def prefix_scores(token_logp: jax.Array) -> jax.Array:
    """Log-probabilities of the prefixes, `s_t = sum of log p_i over i <= t`: `[..., L]` to `[..., L]`."""
    return jnp.cumsum(token_logp, axis=-1)


def pointwise_prefix_losses(
    token_logp: jax.Array,
    weight: jax.Array | None = None,
    normaliser: float | jax.Array | None = None,
) -> jax.Array:
    """`l_t = -(1 / t) s_t`, averaged over targets (APAO, pointwise).

    Args:
        token_logp: log-probabilities of the targets' tokens `[..., L]`.
        weight: `[...]`, 1 for a target, 0 for padding; None: all are targets.
        normaliser: divisor of the sum over targets; None: their number.

    Returns:
        `[L]`.
    """
    (token_logp,) = _without_padding(weight, token_logp)
    return _mean(-prefix_scores(token_logp) / _depths(token_logp), weight, normaliser)


def pairwise_prefix_losses(
    target_logp: jax.Array,
    negative_logp: jax.Array,
    target_nodes: jax.Array,
    negative_nodes: jax.Array,
    num_nodes: jax.Array,
    *,
    tau: float = 1.0,
    weight: jax.Array | None = None,
    normaliser: float | jax.Array | None = None,
) -> jax.Array:
    """`l_t = -(1 / t) log(e^{s_t(y) / tau} / (e^{s_t(y) / tau} + c_t sum_z e^{s_t(z) / tau}))` (APAO, pairwise).

    The sum is over those of n sampled items whose prefix of t tokens is not the target's, each distinct prefix once;
    `c_t = (n_t - 1) / (m_t + 1)` scales it from the `m_t` sampled prefixes to all `n_t` nodes of depth t except the
    target's own, which the published implementation counts among the sampled ones. Everything is computed from
    logarithms, so scores of -200 and below, or negatives of -inf, are safe. `l_t` is 0 if all negatives are -inf;
    otherwise it is infinite where the target's own score is -inf.

    Args:
        target_logp: log-probabilities of the targets' tokens `[..., L]`.
        negative_logp: those of the sampled items `[..., n, L]`.
        target_nodes: names of the trie nodes of the targets' prefixes `[..., L]`, as `walk` gives them.
        negative_nodes: those of the sampled items `[..., n, L]`.
        num_nodes: nodes of depth 1..L of the trie `[L]`.
        tau: temperature.
        weight: see `pointwise_prefix_losses`.
        normaliser: see `pointwise_prefix_losses`.

    Returns:
        `[L]`.
    """
    target_logp, negative_logp = _without_padding(weight, target_logp, negative_logp)
    counts = distinct_negatives(target_nodes, negative_nodes)
    scores = jnp.where(counts, prefix_scores(negative_logp) / tau, -jnp.inf)
    met = counts.sum(axis=-2)
    scale = jnp.log(jnp.maximum(num_nodes - 1, 1).astype(jnp.float32)) - jnp.log(met + 1.0)
    own = prefix_scores(target_logp) / tau
    others, none = _log_sum_exp(scores)
    # An impossible target (-inf) has an infinite loss: -inf minus -inf would be NaN.
    impossible = own == -jnp.inf
    own = jnp.where(impossible, 0.0, own)
    loss = jax.nn.softplus(jnp.where(none, 0.0, others + scale - own))
    loss = jnp.where(none, 0.0, jnp.where(impossible, jnp.inf, loss))
    return _mean(loss / _depths(target_logp), weight, normaliser)


def distinct_negatives(target_nodes: jax.Array, negative_nodes: jax.Array) -> jax.Array:
    """The negatives that count at each depth, `[..., n, L]` bool: the first of each prefix other than the target's."""
    num_negatives = negative_nodes.shape[-2]
    by_depth = jnp.swapaxes(negative_nodes, -1, -2)  # [..., L, n].
    same = by_depth[..., :, None] == by_depth[..., None, :]
    earlier = jnp.tri(num_negatives, k=-1, dtype=bool)
    repeated = jnp.swapaxes((same & earlier).any(-1), -1, -2)
    return ~repeated & (negative_nodes != target_nodes[..., None, :])


def uniform_prefix_weights(losses: jax.Array) -> jax.Array:
    """Equal weights `[L]`: the ablation without adaptation."""
    return jnp.full_like(losses, 1.0 / losses.shape[0])


def stateless_prefix_weights(losses: jax.Array, eta: float) -> jax.Array:
    """`w_t` proportional to `l_t e^{eta l_t}`, anew at every step: the published implementation's weights `[L]`."""
    losses = jax.lax.stop_gradient(losses)
    growth = jnp.where(jnp.isinf(losses), losses, eta * losses)  # Since 0 * inf is NaN.
    return _normalised(losses * _exp_of_differences(growth))


def init_prefix_weights(length: int) -> jax.Array:
    """Weights before the first step `[L]`: zeros, so that the first losses decide."""
    return jnp.zeros(length, jnp.float32)


def update_prefix_weights(weights: jax.Array, losses: jax.Array, eta: float) -> jax.Array:
    """`w <- w e^{eta l / sum l}`, renormalised: exponentiated-gradient ascent on the worst prefix.

    Args:
        weights: `[L]` on the simplex, of the step before; zeros before the first step, which begins with `w`
            proportional to `losses`.
        losses: `[L]`; no gradient flows through them.
        eta: step size.

    Returns:
        `[L]`, on the simplex.
    """
    losses = jax.lax.stop_gradient(losses)
    shares = _normalised(losses)
    begun = weights.sum() > 0
    return _normalised(jnp.where(begun, weights, shares) * _exp_of_differences(eta * shares))


def _exp_of_differences(values: jax.Array) -> jax.Array:
    """`e^values` up to a factor: the largest is 1, so nothing overflows."""
    largest = values.max()
    # Beside infinite values, finite ones count as 0.
    return jnp.exp(jnp.where(values == largest, 0.0, values - largest))


def _normalised(values: jax.Array) -> jax.Array:
    """Normalised to sum 1; uniform if all are 0, and uniform over infinite values."""
    values = jnp.where(jnp.isinf(values).any(), jnp.isinf(values).astype(values.dtype), values)
    total = values.sum()
    return jnp.where(total == 0, 1.0 / values.shape[0], values / jnp.where(total == 0, 1.0, total))


def _depths(token_logp: jax.Array) -> jax.Array:
    return jnp.arange(1, token_logp.shape[-1] + 1, dtype=jnp.float32)


def _log_sum_exp(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-sum-exp over the negatives `[..., n, L]`, 0 without gradient where all are -inf; and where that is so."""
    none = (scores == -jnp.inf).all(axis=-2)
    total = jax.nn.logsumexp(jnp.where(none[..., None, :], 0.0, scores), axis=-2)
    return jnp.where(none, 0.0, total), none


def _without_padding(weight: jax.Array | None, *token_logp: jax.Array) -> list[jax.Array]:
    """Sets padding to 0 before anything is computed from it: 0 times inf or NaN would be NaN."""
    if weight is None:
        return list(token_logp)
    dimensions = [tuple(range(weight.ndim, x.ndim)) for x in token_logp]
    return [
        jnp.where(jnp.expand_dims(weight, axes) > 0, x, 0.0)
        for axes, x in zip(dimensions, token_logp, strict=True)
    ]


def _mean(
    values: jax.Array, weight: jax.Array | None, normaliser: float | jax.Array | None
) -> jax.Array:
    """Weighted mean `[L]` of `[..., L]`; values at padding, even NaN, are ignored."""
    if weight is None:
        weight = jnp.ones(values.shape[:-1])
    kept = jnp.where(weight[..., None] > 0, values * weight[..., None], 0.0)
    total = kept.reshape(-1, values.shape[-1]).sum(axis=0)
    return total / (jnp.maximum(weight.sum(), 1.0) if normaliser is None else normaliser)
