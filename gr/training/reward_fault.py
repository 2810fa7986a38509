"""What a step of reinforcement learning had to say of its rewards: kept in the train state, told by the loop."""

import dataclasses

import jax
import jax.numpy as jnp

LARGEST_REWARD = 1e36  # Beyond it, sums over a group could overflow.
NO_REWARD = -1  # `RewardFault.reward` where all rewards are numbers.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RewardFault:
    """The first reward that gave something other than a usable number, and where; `[]` each."""

    reward: jax.Array  # int32: its place in the sum; NO_REWARD: there is none such.
    count: jax.Array  # int32: of how many valid candidates.
    valid: jax.Array  # int32: how many of these there are.
    user: jax.Array  # int32: the first one's row in the batch.
    item: jax.Array  # int32: and its item row.
    value: (
        jax.Array
    )  # float32: what it got, times the weight; without a fault the largest absolute value.

    @staticmethod
    def none() -> "RewardFault":
        """Before any step."""
        # Arrays of their own, since a train step donates each of them.
        numbers = [jnp.full((), value, jnp.int32) for value in (NO_REWARD, 0, 0, 0, 0)]
        return RewardFault(*numbers, value=jnp.zeros(()))

    @staticmethod
    def of(apart: jax.Array, valid: jax.Array, items: jax.Array) -> "RewardFault":
        """Of weighted rewards `[B, G, R]` of candidates that are `valid [B, G]` and have these `items [B, G]`."""
        apart = jnp.where(valid[..., None], apart, 0.0)
        wrong = ~(jnp.abs(apart) <= LARGEST_REWARD)  # So that NaN is wrong too.
        counts = wrong.sum(axis=(0, 1), dtype=jnp.int32)
        reward = jnp.argmax(counts > 0)
        place = jnp.argmax(wrong[..., reward])
        value = jnp.where(
            counts.any(), apart[..., reward].reshape(-1)[place], jnp.abs(apart).max(initial=0.0)
        )
        return RewardFault(
            reward=jnp.where(counts.any(), reward, NO_REWARD).astype(jnp.int32),
            count=counts[reward],
            valid=valid.sum(dtype=jnp.int32),
            user=(place // valid.shape[1]).astype(jnp.int32),
            item=items.reshape(-1)[place].astype(jnp.int32),
            value=value,
        )
