"""All that changes from one training step to the next, as one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gr.training.errors import TrainingError
from gr.training.reward_fault import RewardFault

NO_BAD_STEP = -1  # `TrainState.bad_step` while every loss and gradient has been finite.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run after `step` train steps; a train step is one batch, whether or not the optimiser updates.

    Once `bad_step` is set the state is frozen: all else stays as it was before that step, so that it is the last
    good state by construction.
    """

    step: jax.Array  # [] int32, train steps done.
    model: Any  # Any pytree of parameters, such as an `nnx.Module`.
    opt_state: Any  # The optimiser's moments and counts.
    key: jax.Array  # Typed PRNG key of the run; step `s` uses `fold_in(key, s)`.
    loss_state: (
        Any  # What the loss carries across steps, such as adaptive weights; `()` if nothing.
    )
    bad_step: (
        jax.Array
    )  # [] int32, the first step with a loss, gradient or reward not finite, or NO_BAD_STEP.
    reward_fault: RewardFault  # What that step had to say of its rewards, if it has any.

    @classmethod
    def create(
        cls,
        model: Any,
        optimizer: optax.GradientTransformation,
        key: jax.Array,
        loss_state: Any = (),
    ) -> "TrainState":
        """Returns the state before the first step.

        The arrays are copied: train steps donate their input state, and the caller's model and key must outlive that.

        Raises:
            TrainingError: for a key that is not typed, or parameters of less than float32.
        """
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise TrainingError("key must be a typed PRNG key; make it with jax.random.key(seed)")
        for path, leaf in jax.tree_util.tree_leaves_with_path(model):
            if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
                name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
                raise TrainingError(
                    f"parameter {name} is {leaf.dtype}: small updates would round to nothing; keep parameters in "
                    "float32 and set the model's computing dtype instead"
                )
        model, key, loss_state = jax.tree.map(jnp.copy, (model, key, loss_state))
        return cls(
            step=jnp.zeros((), jnp.int32),
            model=model,
            opt_state=optimizer.init(model),
            key=key,
            loss_state=loss_state,
            bad_step=jnp.full((), NO_BAD_STEP, jnp.int32),
            reward_fault=RewardFault.none(),
        )
