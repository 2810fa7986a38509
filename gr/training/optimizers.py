"""AdamW with warm-up, clipping and gradient accumulation."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gr.training.state import MasterCopy, TrainingError, is_low_precision

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]

# Decay name -> function from the elapsed share of the decay, in [0, 1], to the share of the peak learning rate.
DECAYS = {
    "constant": optax.constant_schedule(1.0),
    "cosine": optax.cosine_decay_schedule(1.0, decay_steps=1),
    "linear": optax.linear_schedule(1.0, 0.0, transition_steps=1),
}


def make_schedule(
    learning_rate: float, *, schedule: str, total_steps: int, warmup_steps: int
) -> Schedule:
    """Learning rate of optimiser update `t = 0, 1, ..`: linear warm-up to the peak, then decay to 0 at `total_steps`.

    The first update of the warm-up uses `learning_rate / warmup_steps`; update `warmup_steps - 1` uses the peak.

    Raises:
        TrainingError: for an unknown schedule or step counts that leave nothing to decay over.
    """
    if schedule not in DECAYS:
        raise TrainingError(f"schedule {schedule!r} is unknown; use one of {', '.join(DECAYS)}")
    if total_steps < 1 or not 0 <= warmup_steps <= total_steps:
        raise TrainingError(
            f"warmup_steps={warmup_steps} and total_steps={total_steps} do not fit; "
            "use 0 <= warmup_steps <= total_steps and at least one step"
        )

    # Not `optax.join_schedules` of a warm-up and a decay: it rounds differently, by up to 1e-5 of the rate in the
    # warm-up and 5e-4 near the end, so earlier runs would not be reproducible.
    def rate(update: jax.typing.ArrayLike) -> jax.Array:
        update = jnp.asarray(update, jnp.float32)
        warmup = jnp.minimum((update + 1.0) / max(warmup_steps, 1), 1.0)
        progress = (update - warmup_steps) / max(total_steps - warmup_steps, 1)
        return learning_rate * warmup * DECAYS[schedule](jnp.clip(progress, 0.0, 1.0))

    return rate


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: matrices and embeddings, not the vectors (norm scales, biases).

    The rule is `ndim >= 2`, so do not stack parameters of several layers into one array.
    """
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def with_master_copy(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser of parameters of less than float32, such as bfloat16.

    It keeps them in float32 (arXiv 1710.03740, section 3.1): small updates, which would round to nothing, add up there.
    After each update the parameters are that copy, rounded.
    """

    def init(params: Any) -> MasterCopy:
        # Copied, since a train step donates parameters and state.
        master = jax.tree.map(
            lambda p: jnp.array(p, jnp.float32 if is_low_precision(p) else p.dtype), params
        )
        return MasterCopy(master, optimizer.init(master))

    def update(grads: Any, state: MasterCopy, params: Any) -> tuple[Any, MasterCopy]:
        grads = jax.tree.map(lambda grad, p: grad.astype(p.dtype), grads, state.params)
        updates, inner = optimizer.update(grads, state.state, state.params)
        master = optax.apply_updates(state.params, updates)
        # Differences of rounded numbers: added to the parameters, they give exactly the rounded copy.
        changes = jax.tree.map(
            lambda new, old: new.astype(old.dtype).astype(new.dtype) - old.astype(new.dtype),
            master,
            params,
        )
        return changes, MasterCopy(master, inner)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    *,
    learning_rate: float,
    schedule: str = "cosine",
    total_steps: int,
    warmup_steps: int = 0,
    weight_decay: float = 0.01,
    clip_norm: float | None = 1.0,
    accumulation_steps: int = 1,
    b1: float = 0.9,
    b2: float = 0.999,
    master_copy: bool = False,
) -> tuple[optax.GradientTransformation, Schedule]:
    """Returns AdamW (arXiv 1711.05101) with global-norm clipping, and the learning rate of each train step.

    `accumulation_steps = k` train steps (batches) make one optimiser update from the mean of their gradients;
    clipping sees that mean. `total_steps` and `warmup_steps` count optimiser *updates*, that is train steps divided by
    `k`. The returned schedule takes *train steps*, as counted by the train state. Moments are float32. Parameters of
    less than float32 need a `master_copy`, see `with_master_copy`.

    Raises:
        TrainingError: for values out of range.
    """
    if accumulation_steps < 1:
        raise TrainingError(f"accumulation_steps={accumulation_steps}; use 1 or more")
    if clip_norm is not None and not clip_norm > 0:
        raise TrainingError(f"clip_norm={clip_norm}; use a positive norm, or None for no clipping")
    if not 0 < learning_rate < math.inf or not 0 <= weight_decay < math.inf:
        raise TrainingError(
            f"learning_rate={learning_rate} must be positive and weight_decay={weight_decay} not negative, both finite"
        )
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise TrainingError(f"b1={b1} and b2={b2} must lie in [0, 1)")
    rate_of_update = make_schedule(
        learning_rate, schedule=schedule, total_steps=total_steps, warmup_steps=warmup_steps
    )
    adamw = optax.adamw(
        rate_of_update,
        b1=b1,
        b2=b2,
        mu_dtype=jnp.float32,
        weight_decay=weight_decay,
        mask=decay_mask,
    )
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    optimizer = optax.chain(clip, adamw)
    if accumulation_steps > 1:
        optimizer = optax.MultiSteps(optimizer, accumulation_steps).gradient_transformation()

    def rate_of_train_step(step: jax.typing.ArrayLike) -> jax.Array:
        return rate_of_update(step // accumulation_steps)

    if master_copy:
        optimizer = with_master_copy(optimizer)
    return optimizer, rate_of_train_step
