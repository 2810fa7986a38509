"""Advantages of candidates over their group, and of codes in the tree that a group's semantic IDs form.

A group is the G candidates of one user. Its tree has a node for each distinct prefix of a valid candidate; duplicates
run through the same nodes, and invalid candidates are not in it. Depths 0..L count the codes of a prefix.
"""

import jax
import jax.numpy as jnp

EPSILON = 1e-4  # Added to standard deviations: GRPO's value in TRL and MiniOneRec, and V-STAR's among siblings.


def grpo_advantages(rewards: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """`A_i = (R_i - mean) / (std + 1e-4)` in each user's group (GRPO, arXiv 2402.03300, section 4.1.2).

    The standard deviation is the sample's (divisor n - 1), as `torch.std` in TRL and MiniOneRec. Unlike there, a group
    of one gets 0, not NaN.

    Args:
        rewards: `[B, G]`; values at invalid candidates, even NaN, are ignored.
        valid: `[B, G]` bool; None: all are.

    Returns:
        `[B, G]` float32; 0 for invalid candidates, and where all rewards of a group are equal.
    """
    valid = jnp.ones(rewards.shape, bool) if valid is None else valid
    rewards = _above_lowest(rewards, valid)
    count = valid.sum(axis=1, keepdims=True)
    mean = rewards.sum(axis=1, keepdims=True) / jnp.maximum(count, 1)
    deviation = jnp.where(valid, rewards - mean, 0.0)
    std = root_mean_square(deviation, valid / jnp.maximum(count - 1, 1), axis=1)
    return jax.lax.stop_gradient(deviation / (std + EPSILON))


def sibling_advantages(
    codes: jax.Array, rewards: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """How much better a code is than its siblings (Sibling-GRPO: V-STAR, arXiv 2602.10699, section 4.3, eq. 15-18).

    A child's score is the mean reward of the candidates that run through it; its advantage is (score - mean) / (std +
    1e-4) over the distinct children of its parent. Each child counts once, whatever its number of candidates. The
    standard deviation is the population's (divisor n), as in the published code: of two siblings with different scores
    one gets about 1, the other about -1.

    Args:
        codes: `[B, G, L]`.
        rewards: `[B, G]`; values at invalid candidates, even NaN, are ignored.
        valid: `[B, G]` bool; None: all are.

    Returns:
        `[B, G, L]` float32: at each candidate's code of depth t its advantage over the other children of the
        candidate's prefix of t - 1 codes; 0 where there are none.
    """
    shared = shared_prefixes(codes, valid)
    scores = _prefix_values(shared, rewards)[..., 1:]
    parents, once, children = _siblings(shared)
    # Sums over a parent's children are computed over its candidates; the weights of one child's candidates add up to 1.
    mean = sum_over_group(parents, once * scores) / jnp.maximum(children, 1.0)
    deviation = scores - mean
    share = parents * (once / jnp.maximum(children, 1.0))[:, None]
    std = root_mean_square(deviation[:, None], share, axis=2)[:, :, 0]
    advantages = deviation / (std + EPSILON)
    return jax.lax.stop_gradient(jnp.where(children > 1, advantages, 0.0))


def sibling_weights(codes: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Weights of candidates' codes such that each child of a branching prefix counts once in total.

    The weight is 1 / (number of candidates that run through the child). These share the code's probability, so their
    mean is the child's own term. It is 0 where the parent has one child, and for invalid candidates.

    Args:
        codes: `[B, G, L]`.
        valid: `[B, G]` bool; None: all are.

    Returns:
        `[B, G, L]` float32; a user's weights add up to the number of the tree's nodes that have siblings.
    """
    _, once, children = _siblings(shared_prefixes(codes, valid))
    return jnp.where(children > 1, once, 0.0)


def tempo_advantages(
    codes: jax.Array, rewards: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """GRPO's advantage plus the change of value at each code (TEMPO with prefix-to-tree values, arXiv 2509.18314).

    The value `V(s)` of a prefix is the mean reward of the candidates that begin with it; choosing code t + 1 adds the
    temporal difference `V(s_{t+1}) - V(s_t)`, in units of the reward. Where the prefix does not branch, the difference
    is 0.

    Args:
        codes: `[B, G, L]`.
        rewards: `[B, G]`; values at invalid candidates, even NaN, are ignored.
        valid: `[B, G]` bool; None: all are.

    Returns:
        `[B, G, L]` float32; 0 for invalid candidates.
    """
    values = _prefix_values(shared_prefixes(codes, valid), rewards)
    differences = jax.lax.stop_gradient(values[..., 1:] - values[..., :-1])
    return grpo_advantages(rewards, valid)[..., None] + differences


def distinct_candidates(codes: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """The number of distinct valid candidates of each user: `[B, G, L]` to `[B]` float32."""
    sharing = shared_prefixes(codes, valid)[..., -1].sum(axis=2)
    return jnp.where(sharing > 0, 1.0 / jnp.maximum(sharing, 1.0), 0.0).sum(axis=1)


def shared_prefixes(codes: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Which candidates have which prefix in common, `[B, G, G, L + 1]` float32 of 0 and 1, for prefixes of 0..L codes.

    Compares all pairs: for G of some dozens this is cheaper than sorting.
    """
    valid = jnp.ones(codes.shape[:2], bool) if valid is None else valid
    both = (valid[:, :, None] & valid[:, None, :])[..., None]
    equal = codes[:, :, None] == codes[:, None, :]
    return jnp.cumprod(jnp.concatenate([both, equal], axis=-1).astype(jnp.float32), axis=-1)


def _prefix_values(shared: jax.Array, rewards: jax.Array) -> jax.Array:
    """Mean reward of the candidates below each prefix, above the group's lowest, `[B, G, L + 1]`; 0 if invalid."""
    valid = jnp.diagonal(shared[..., 0], axis1=1, axis2=2) > 0
    rewards = _above_lowest(rewards, valid)
    return sum_over_group(shared, rewards[..., None]) / jnp.maximum(shared.sum(axis=2), 1.0)


def _siblings(shared: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each code: who shares its parent `[B, G, G, L]`, its weight, and the parent's number of children.

    The weight `[B, G, L]` is 1 / (number of candidates with the same child), 0 if invalid. The number of children
    `[B, G, L]` is rounded to a whole number, since sums of such weights are not exact.
    """
    parents, counts = shared[..., :-1], shared[..., 1:].sum(axis=2)
    once = jnp.where(counts > 0, 1.0 / jnp.maximum(counts, 1.0), 0.0)
    return parents, once, jnp.round(sum_over_group(parents, once))


def sum_over_group(shared: jax.Array, values: jax.Array) -> jax.Array:
    """For each candidate the sum over those that share its prefix, `[B, G, L]`; not a matmul, which may round."""
    return (shared * values[:, None]).sum(axis=2)


def root_mean_square(values: jax.Array, share: jax.Array, axis: int) -> jax.Array:
    """`sqrt(sum of share * values^2)` over an axis, which is kept; no square of 1e30 overflows.

    Values whose share is 0 are ignored, even NaN.
    """
    values = jnp.where(share > 0, values, 0.0)
    largest = jnp.abs(values).max(axis=axis, keepdims=True)
    values = values / jnp.where(largest > 0, largest, 1.0)
    return largest * jnp.sqrt((share * jnp.square(values)).sum(axis=axis, keepdims=True))


def _above_lowest(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    """Rewards less the lowest of each group, 0 if invalid: equal rewards become exactly 0, whatever is averaged."""
    rewards = rewards.astype(jnp.float32)
    lowest = jnp.where(valid, rewards, jnp.inf).min(axis=1, keepdims=True)
    return jnp.where(valid, rewards - lowest, 0.0)
