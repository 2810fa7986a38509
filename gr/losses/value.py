"""The value head's rewards, targets and loss (V-STAR, arXiv 2602.10699), and statistics of a group's prefixes.

A group is the G candidates of one user; depth t = 1..L counts the codes of a prefix, depth 0 is the root. The reward
`r_t` belongs to the state `s_t`, the prefix of t codes, and adds to the value below: `V(s_t) ~ r_t + gamma V(s_{t+1})`,
so that `V(s_L) ~ r_L`. The root has no reward of its own: `V(s_0) ~ gamma V(s_1)`. Semantic rewards train the value
head only and never enter a policy loss.
"""

import jax
import jax.numpy as jnp

from gr.losses.advantages import shared_prefixes, sum_over_group
from gr.losses.errors import LossError
from gr.losses.token import Metrics

GAMMA = 0.99
_FIRST_WEIGHT, _STEP = 0.3, 0.2  # First weight and step of `depth_weights`.
_TINY = 1e-6  # A mean of unit vectors of this length has no direction.


def depth_weights(length: int) -> jax.Array:
    """`omega_t`: the weight of a prefix of t codes, `[L]` float32, rising from 0.3 to 1.

    The paper gives (0.3, 0.5, .., 1); for L = 3 this is (0.3, 0.5, 1), as in public code. For more codes we use steps
    of 0.2 before the last code, or equal steps if those would exceed 1: (0.3, 0.5, 0.7, 1) for L = 4.
    """
    step = min(_STEP, (1.0 - _FIRST_WEIGHT) / max(length - 1, 1))
    return jnp.array([_FIRST_WEIGHT + step * t for t in range(length - 1)] + [1.0], jnp.float32)


def semantic_rewards(
    codes: jax.Array,
    target: jax.Array,
    prefix_vectors: jax.Array,
    target_vectors: jax.Array,
    weights: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> jax.Array:
    """`r_t = omega_t` if a candidate's prefix is the target's, else `-omega_t (1 - cos(e(prefix), e(target)))`.

    The cosine with a zero vector, of an item without text or interactions, is 0: it counts as unrelated.

    Args:
        codes: the candidates' `[B, G, L]`.
        target: the target's `[B, L]`, of the same kind.
        prefix_vectors: `e(prefix)` `[B, G, L, E]`: `group_prefix_vectors`, or `NodeVectors.of_prefixes`. (Public code
            for V-STAR has the finished candidate's own vector at every depth.)
        target_vectors: `[B, E]`.
        weights: `omega` `[L]`; None for `depth_weights`.
        valid: `[B, G]` bool; None: all are.

    Returns:
        `[B, G, L]` float32, without gradient; 0 for invalid candidates.

    Raises:
        LossError: if there are not L weights.
    """
    length = codes.shape[-1]
    weights = depth_weights(length) if weights is None else jnp.asarray(weights, jnp.float32)
    if weights.shape != (length,):
        raise LossError(f"depth weights of shape {weights.shape} for {length} codes: give one each")
    same = jnp.cumprod(codes == target[:, None], axis=-1) > 0
    apart = 1.0 - _cosine(prefix_vectors, target_vectors[:, None, None])
    rewards = weights * jnp.where(same, 1.0, -apart)
    if valid is not None:
        rewards = jnp.where(valid[..., None], rewards, 0.0)
    return jax.lax.stop_gradient(rewards)


def group_prefix_vectors(
    codes: jax.Array, vectors: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """Mean vectors of the distinct candidates below each candidate's prefixes.

    Args:
        codes: `[B, G, L]`.
        vectors: of the candidates' items `[B, G, E]`, of length 1 each.
        valid: `[B, G]` bool; None: all are.

    Returns:
        `[B, G, L, E]` float32; 0 for invalid candidates.
    """
    shared = shared_prefixes(codes, valid)
    once = _first(shared)[..., -1].astype(jnp.float32)
    members = shared[..., 1:] * once[:, None, :, None]
    vectors = jnp.where(once[..., None] > 0, vectors, 0.0)
    # "highest": accelerators would otherwise round the vectors to 8 or 11 bits.
    total = jnp.einsum("bgjl,bje->bgle", members, vectors, precision="highest")
    return total / jnp.maximum(members.sum(axis=2), 1.0)[..., None]


def distinct_prefixes(codes: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """The first occurrence of each prefix in its group: `[B, G, L]` to `[B, G, L + 1]` bool, of 0..L codes."""
    return _first(shared_prefixes(codes, valid))


def prefix_means(codes: jax.Array, values: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Means over the candidates that share a prefix, the same for each of them.

    Args:
        codes: `[B, G, L]`.
        values: of the prefixes of 1..L or 0..L codes, `[B, G, L]` or `[B, G, L + 1]`; values at invalid candidates,
            even NaN, are ignored.
        valid: `[B, G]` bool; None: all are.

    Returns:
        Like `values`; 0 for invalid candidates.
    """
    shared = shared_prefixes(codes, valid)[..., -values.shape[-1] :]
    if valid is not None:
        values = jnp.where(valid[..., None], values, 0.0)
    return sum_over_group(shared, values) / jnp.maximum(shared.sum(axis=2), 1.0)


def td_targets(
    rewards: jax.Array, values: jax.Array, gamma: float = GAMMA, lam: float = 0.0
) -> jax.Array:
    """`sg[r_t + gamma V(s_{t+1})]`, with V = 0 beyond the last depth.

    With `lam` above 0 the targets of TD(lambda), which look further down: `G_t = r_t + gamma ((1 - lam) V(s_{t+1}) +
    lam G_{t+1})` (Sutton and Barto, "Reinforcement Learning", 2018, section 12.1). Public code for V-STAR bootstraps
    only below a wrong first code; here all depths do.

    Args:
        rewards: `[..., S]` of consecutive depths down to L.
        values: of the same states `[..., S]`.
        gamma: discount.
        lam: 0 for one step, 1 for `monte_carlo_returns`.

    Returns:
        `[..., S]`, without gradient.
    """
    below = jnp.zeros_like(values[..., 0])
    targets, found = [], below
    for depth in reversed(range(rewards.shape[-1])):
        found = rewards[..., depth] + gamma * ((1.0 - lam) * below + lam * found)
        below = values[..., depth]
        targets.append(found)
    return jax.lax.stop_gradient(jnp.stack(targets[::-1], axis=-1))


def monte_carlo_returns(rewards: jax.Array, gamma: float = GAMMA) -> jax.Array:
    """`sum of gamma^(k - t) r_k over k >= t`: the return of each prefix, `[..., S]` to `[..., S]`."""
    return td_targets(rewards, jnp.zeros_like(rewards), gamma, lam=1.0)


def td_loss(
    values: jax.Array,
    targets: jax.Array,
    weight: jax.Array,
    *,
    normaliser: float | jax.Array | None = None,
    first_depth: int = 1,
) -> tuple[jax.Array, Metrics]:
    """`(V(s_t) - target)^2`, averaged over states.

    Args:
        values: `[..., S]`.
        targets: `[..., S]`; no gradient flows through them.
        weight: `[..., S]`, 0 for states that do not count; values there, even NaN, are ignored.
        normaliser: divisor of the weighted sum over states; None: the sum of weights.
        first_depth: depth of the first state, for the metrics' names.

    Returns:
        The loss `[]`; and by depth t the means over this batch's states `value_t/loss`, `value_t/mean` (of V) and
        `value_t/target`.
    """
    counts = weight > 0
    targets = jnp.where(counts, jax.lax.stop_gradient(targets), 0.0)
    values = jnp.where(counts, values, 0.0)
    weight = jnp.where(counts, weight, 0.0)

    def by_depth(x: jax.Array) -> jax.Array:
        return (weight * x).reshape(-1, x.shape[-1]).sum(axis=0)

    totals, weights = by_depth(jnp.square(values - targets)), by_depth(jnp.ones_like(values))
    loss = totals.sum() / (jnp.maximum(weights.sum(), 1.0) if normaliser is None else normaliser)
    means = {"loss": totals, "mean": by_depth(values), "target": by_depth(targets)}
    metrics = {
        f"value_{first_depth + t}/{name}": total[t] / jnp.maximum(weights[t], 1.0)
        for name, total in means.items()
        for t in range(values.shape[-1])
    }
    return loss, jax.lax.stop_gradient(metrics)


def _first(shared: jax.Array) -> jax.Array:
    """Which candidates are the first with their prefix, `[B, G, L + 1]` bool, of `shared_prefixes`."""
    earlier = jnp.tri(shared.shape[1], k=-1)[:, :, None]
    repeated = (shared * earlier).any(axis=2)
    return (jnp.diagonal(shared, axis1=1, axis2=2).swapaxes(1, 2) > 0) & ~repeated


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine `[...]` of vectors `[..., E]`; 0 where one of them is 0 up to rounding."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    lengths = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    known = lengths > _TINY
    cosine = (a * b).sum(axis=-1) / jnp.where(known, lengths, 1.0)
    return jnp.where(known, jnp.clip(cosine, -1.0, 1.0), 0.0)
