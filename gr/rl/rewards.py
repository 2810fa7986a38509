"""Rewards of recommended candidates: functions of one type, summed with weights.

Your own reward is any function `Outcome -> [B, G]` that runs under `jit`. Wrap one that needs arrays, such as prices,
as `jax.tree_util.Partial(function, prices)`: then they are arguments of the compiled step, not constants in it.
"""

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from gr.training.own_loss import tracing_own
from gr.training.state import LARGEST_REWARD, TrainingError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """Each user's candidates, best first, and the target item.

    Tokens of candidates and of the target are those of the model's vocabulary.
    """

    tokens: jax.Array  # [B, G, L] integers; the place in G is the rank.
    valid: jax.Array  # [B, G] bool.
    target: jax.Array  # [B, L] integers: the target's tokens.
    items: jax.Array | None = None  # [B, G]: the candidates' item rows; negative: none.
    target_items: jax.Array | None = None  # [B]: the targets' item rows; negative: none.


Reward = Callable[[Outcome], jax.Array]


def exact_match(outcome: Outcome) -> jax.Array:
    """1 for a candidate that is the target, else 0: `[B, G]` float32 (V-STAR, MiniOneRec)."""
    return _hits(outcome).astype(jnp.float32)


def rank_aware(outcome: Outcome) -> jax.Array:
    """Penalises wrong candidates, more at higher ranks: `[B, G]` float32.

    If the target is among a user's candidates, a wrong one at rank k = 1..G gets
    `-(1 / log2(k + 1)) / sum_j 1 / log2(j + 1)` and the right one 0; else all get 0. As in the published code
    (MiniOneRec, arXiv 2510.24431; also used by V-STAR) the sum is over all G ranks, including the right one's, so each
    rank has a constant penalty. Invalid candidates get 0 but keep their rank.
    """
    hits = _hits(outcome)
    discounts = 1.0 / jnp.log2(jnp.arange(2, hits.shape[1] + 2, dtype=jnp.float32))
    counts = hits.any(axis=1, keepdims=True) & ~hits & outcome.valid
    return jnp.where(counts, -discounts / discounts.sum(), 0.0)


def prefix_depth(outcome: Outcome) -> jax.Array:
    """The share of leading codes that a candidate has in common with the target: `[B, G]` float32 in 0..1."""
    equal = outcome.tokens == outcome.target[:, None]
    depth = jnp.cumprod(equal.astype(jnp.float32), axis=-1).mean(axis=-1)
    return jnp.where(outcome.valid, depth, 0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Semantic:
    """The reward that `semantic` returns."""

    vectors: jax.Array  # [N, E] float32, of length 1 or 0.

    def __call__(self, outcome: Outcome) -> jax.Array:
        """The cosines `[B, G]`."""
        if outcome.items is None or outcome.target_items is None:
            raise TrainingError(
                "the semantic reward compares items: give Outcome its items and target_items"
            )
        wanted = self.vectors[outcome.target_items][:, None]
        cosines = (self.vectors[outcome.items] * wanted).sum(axis=-1)
        known = (outcome.items >= 0) & (outcome.target_items >= 0)[:, None]
        return jnp.where(outcome.valid & known, cosines, 0.0)


def semantic(item_vectors: jax.Array) -> Reward:
    """The cosine of a candidate's and the target's item vectors (MiniOneRec's semantic reward).

    Args:
        item_vectors: `[N, E]`, one row an item.

    Returns:
        A reward; it is 0 for candidates that are invalid, and where an item is missing or its vector is 0.

    Raises:
        TrainingError: raised by the reward itself for an outcome without item rows.
    """
    vectors = jnp.asarray(item_vectors, jnp.float32)
    largest = jnp.abs(vectors).max(axis=-1, keepdims=True)
    vectors = vectors / jnp.where(largest > 0, largest, 1.0)  # Squares cannot overflow.
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return Semantic(vectors / jnp.maximum(norms, 1e-12))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class WeightedSum:
    """The reward that `weighted_sum` returns; each part has a name."""

    rewards: tuple[Reward, ...]  # Pytrees, so that their arrays are arguments of the compiled step.
    weights: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, outcome: Outcome) -> jax.Array:
        """The sum `[B, G]` float32."""
        return self.apart(outcome).sum(axis=-1)

    def apart(self, outcome: Outcome) -> jax.Array:
        """The R weighted rewards separately, `[B, G, R]` float32.

        Raises:
            TrainingError: if a reward does not return `[B, G]` numbers, naming it.
        """
        parts = [
            weight * _scores(reward, name, outcome)
            for reward, weight, name in zip(self.rewards, self.weights, self.names, strict=True)
        ]
        return jnp.stack(parts, axis=-1)


def weighted_sum(
    rewards: Mapping[Reward, float] | Sequence[tuple[Reward, float]],
    names: Sequence[str] | None = None,
) -> WeightedSum:
    """One reward of several.

    Args:
        rewards: function -> weight, or pairs of them.
        names: used in errors; None: the functions' names.

    Raises:
        TrainingError: if there are no rewards, one is not a function, or a weight is not a finite number. The reward
            itself raises it if one of them does not return `[B, G]` numbers.
    """
    if not rewards:
        raise TrainingError(
            "no rewards to sum: name at least one, such as exact_match with weight 1"
        )
    pairs = list(rewards.items() if isinstance(rewards, Mapping) else rewards)
    names = [_name(reward) for reward, _ in pairs] if names is None else names
    for name, (reward, weight) in zip(names, pairs, strict=True):
        if not callable(reward):
            raise TrainingError(
                f"reward {name!r} is no function but {_kind(reward)}: a reward is a function {_TYPE}"
            )
        if not isinstance(weight, numbers.Real) or not abs(weight) <= LARGEST_REWARD:
            raise TrainingError(
                f"the weight of reward {name!r} is {weight}: use a finite number, of at most {LARGEST_REWARD:g}"
            )
    return WeightedSum(
        tuple(
            jax.tree_util.Partial(reward) if jax.tree_util.all_leaves([reward]) else reward
            for reward, _ in pairs
        ),
        weights=tuple(float(weight) for _, weight in pairs),
        names=tuple(names),
    )


_TYPE = "Outcome -> [B, G]"  # Of every reward.


def _scores(reward: Reward, name: str, outcome: Outcome) -> jax.Array:
    """A reward's result as `[B, G]` float32, checked."""
    with tracing_own("reward", name, _TYPE):
        values = reward(outcome)
    wanted = outcome.valid.shape
    try:
        scores = jnp.asarray(values)
        scores = scores if jnp.isrealobj(scores) else None
    except (TypeError, ValueError):
        scores = None
    if scores is None or scores.shape != wanted:
        raise TrainingError(
            f"reward {name!r} returned {_kind(values)}: a reward is a function {_TYPE}, here a number for each of "
            f"{list(wanted)} candidates"
        )
    return scores.astype(jnp.float32)


def _name(reward: Reward) -> str:
    function = getattr(reward, "func", reward)  # Of a `Partial`.
    return getattr(function, "__name__", type(function).__name__)


def _kind(value: object) -> str:
    """A value's type, and its shape if it has one."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _hits(outcome: Outcome) -> jax.Array:
    """Which candidates are the target, `[B, G]` bool."""
    return (outcome.tokens == outcome.target[:, None]).all(axis=-1) & outcome.valid
