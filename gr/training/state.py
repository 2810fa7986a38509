"""`TrainState`: everything that changes from one training step to the next, as one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gr.errors import GrError
from gr.models import trained_part

NO_BAD_STEP = -1  # `TrainState.bad_step` while every loss and gradient has been finite.
LARGEST_REWARD = 1e36  # Beyond it, sums over a group could overflow.
NO_REWARD = -1  # `RewardFault.reward` where all rewards are numbers.


class TrainingError(GrError):
    """Raised for a run that cannot start, resume or be restored; names the field or folder and the remedy."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RewardFault:
    """The first reward that was not a usable number, and where; `[]` each."""

    reward: jax.Array  # int32: its place in the sum; NO_REWARD: there is no fault.
    count: jax.Array  # int32: number of valid candidates with a fault.
    valid: jax.Array  # int32: number of valid candidates.
    user: jax.Array  # int32: the first one's row in the batch.
    item: jax.Array  # int32: and its item row.
    # float32: the weighted reward; without a fault the largest absolute value.
    value: jax.Array

    @staticmethod
    def none() -> "RewardFault":
        """No fault, as before the first step."""
        # Separate arrays, since a train step donates each of them.
        numbers = [jnp.full((), value, jnp.int32) for value in (NO_REWARD, 0, 0, 0, 0)]
        return RewardFault(*numbers, value=jnp.zeros(()))

    @staticmethod
    def of(apart: jax.Array, valid: jax.Array, items: jax.Array) -> "RewardFault":
        """The first fault in weighted rewards `[B, G, R]` of candidates, `valid [B, G]` with `items [B, G]`."""
        apart = jnp.where(valid[..., None], apart, 0.0)
        wrong = ~(jnp.abs(apart) <= LARGEST_REWARD)  # True for NaN too.
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MasterCopy:
    """The state of an optimiser that updates parameters in float32, of which the model's are roundings."""

    params: Any  # The parameters in float32.
    state: Any  # Of the optimiser itself.


def is_low_precision(leaf: Any) -> bool:
    """Whether an array's numbers are floating, of less than float32."""
    return jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4


def _has_master_copy(opt_state: Any) -> bool:
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, MasterCopy))
    return any(isinstance(part, MasterCopy) for part in parts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run after `step` train steps; a train step is one batch, whether or not the optimiser updates.

    Once `bad_step` is set, the state is frozen: everything else stays as before that step, so it is the last finite
    state by construction.
    """

    step: jax.Array  # [] int32, train steps done.
    model: Any  # Any pytree of parameters, such as an `nnx.Module`.
    opt_state: Any  # The optimiser's moments and counts, of what is not frozen.
    key: jax.Array  # Typed PRNG key of the run; step `s` uses `fold_in(key, s)`.
    loss_state: Any  # What the loss carries across steps, such as adaptive weights; or `()`.
    # [] int32, the first step with a loss, gradient or reward not finite, or NO_BAD_STEP.
    bad_step: jax.Array
    reward_fault: RewardFault  # The rewards' fault at that step, if any.

    @classmethod
    def create(
        cls,
        model: Any,
        optimizer: optax.GradientTransformation,
        key: jax.Array,
        loss_state: Any = (),
    ) -> "TrainState":
        """Returns the state before the first step.

        The arrays are copied, since train steps donate their input state while the caller keeps model and key.

        Raises:
            TrainingError: for a key that is not typed, or parameters of less than float32 without a master copy.
        """
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise TrainingError("key must be a typed PRNG key; make it with jax.random.key(seed)")
        trained = trained_part(model)
        opt_state = optimizer.init(trained)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
            if is_low_precision(leaf) and not _has_master_copy(opt_state):
                name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
                raise TrainingError(
                    f"parameter {name} is {leaf.dtype}: small updates would round to nothing; keep parameters in "
                    "float32 and set the model's computing dtype instead, or make the optimiser with master_copy=True"
                )
        model, key, loss_state = jax.tree.map(jnp.copy, (model, key, loss_state))
        return cls(
            step=jnp.zeros((), jnp.int32),
            model=model,
            opt_state=opt_state,
            key=key,
            loss_state=loss_state,
            bad_step=jnp.full((), NO_BAD_STEP, jnp.int32),
            reward_fault=RewardFault.none(),
        )
