"""Rewards of recommended candidates: functions of one type, that are summed with weights.

A reward of one's own is any function `Outcome -> [B, G]` that runs under `jit`; it is weighted like those below.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from gr.losses.errors import LossError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """Each user's candidates, best first, and the item that was wanted.

    Codes of candidates and targets are of the same kind: tokens with tokens, or codes of levels with the like.
    """

    codes: jax.Array  # [B, G, L] integers; the place in G is the rank.
    valid: jax.Array  # [B, G] bool.
    target: jax.Array  # [B, L] integers.
    items: jax.Array | None = None  # [B, G]: the candidates' item rows; negative: none.
    target_items: jax.Array | None = None  # [B]: the targets' item rows; negative: none.


Reward = Callable[[Outcome], jax.Array]


def exact_match(outcome: Outcome) -> jax.Array:
    """1 for a candidate that is the target, else 0: `[B, G]` float32 (V-STAR, MiniOneRec)."""
    return _hits(outcome).astype(jnp.float32)


def rank_aware(outcome: Outcome) -> jax.Array:
    """Wrong candidates cost the more, the higher they rank: `[B, G]` float32.

    If the target is among a user's candidates, a wrong one at rank k = 1..G gets
    `-(1 / log2(k + 1)) / sum_j 1 / log2(j + 1)` and the right one 0; else all get 0. As in the published code
    (MiniOneRec, arXiv 2510.24431, taken over by V-STAR) the sum is over all G ranks, the right one's among them, so
    that the penalty of a rank is a constant. Invalid candidates get 0 but keep their rank.
    """
    hits = _hits(outcome)
    discounts = 1.0 / jnp.log2(jnp.arange(2, hits.shape[1] + 2, dtype=jnp.float32))
    counts = hits.any(axis=1, keepdims=True) & ~hits & outcome.valid
    return jnp.where(counts, -discounts / discounts.sum(), 0.0)


def prefix_depth(outcome: Outcome) -> jax.Array:
    """The share of leading codes that a candidate has in common with the target: `[B, G]` float32 in 0..1."""
    equal = outcome.codes == outcome.target[:, None]
    depth = jnp.cumprod(equal.astype(jnp.float32), axis=-1).mean(axis=-1)
    return jnp.where(outcome.valid, depth, 0.0)


def semantic(item_vectors: jax.Array) -> Reward:
    """The cosine of a candidate's and the target's item vectors (MiniOneRec's semantic reward).

    Args:
        item_vectors: `[N, E]`, one row an item.

    Returns:
        A reward; it is 0 for candidates that are invalid, and where an item is missing or its vector is 0.

    Raises:
        LossError: by the reward, for an outcome without item rows.
    """
    norms = jnp.linalg.norm(item_vectors.astype(jnp.float32), axis=-1, keepdims=True)
    vectors = item_vectors / jnp.maximum(norms, 1e-12)

    def cosine(outcome: Outcome) -> jax.Array:
        if outcome.items is None or outcome.target_items is None:
            raise LossError(
                "the semantic reward compares items: give Outcome its items and target_items"
            )
        wanted = vectors[outcome.target_items][:, None]
        cosines = (vectors[outcome.items] * wanted).sum(axis=-1)
        known = (outcome.items >= 0) & (outcome.target_items >= 0)[:, None]
        return jnp.where(outcome.valid & known, cosines, 0.0)

    return cosine


def weighted_sum(rewards: Mapping[Reward, float]) -> Reward:
    """One reward of several.

    Args:
        rewards: function -> weight.

    Raises:
        LossError: if there are none.
    """
    if not rewards:
        raise LossError("no rewards to sum: name at least one, such as exact_match with weight 1")
    parts = tuple(rewards.items())

    def total(outcome: Outcome) -> jax.Array:
        return sum(weight * reward(outcome) for reward, weight in parts)

    return total


def _hits(outcome: Outcome) -> jax.Array:
    """Which candidates are the target, `[B, G]` bool."""
    return (outcome.codes == outcome.target[:, None]).all(axis=-1) & outcome.valid
