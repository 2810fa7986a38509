"""The value head's loss, from states and rewards of candidates (V-STAR, arXiv 2602.10699).

To train a head on a frozen backbone, make its states by `path_states` and pass `value_objective()` to
`make_train_step`, with the head as the model. A loop that trains both adds `value_loss` to its other losses.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gr.fields import Share, check_fields
from gr.losses import GAMMA, distinct_prefixes, prefix_means, td_loss, td_targets
from gr.losses.token import Metrics
from gr.training import LossFn, TrainingError


@dataclasses.dataclass(frozen=True)
class ValueConfig:
    """How values are learnt. Raises `TrainingError` for a value out of range.

    Attributes:
        gamma: discount of a code, in [0, 1].
        lam: lambda of TD(lambda), in [0, 1]: 0 looks one code ahead, as published; 1 to the end.
        with_root: whether the state before the first code, which has no reward, learns too.
        stop_gradient: whether the value loss leaves the backbone unchanged.
    """

    gamma: Share = GAMMA
    lam: Share = 0.0
    with_root: bool = True
    stop_gradient: bool = True

    def __post_init__(self):
        check_fields(self, "value.", TrainingError)


def value_loss(
    head: Any,
    states: jax.Array,
    rewards: jax.Array,
    weight: jax.Array,
    config: ValueConfig | None = None,
    *,
    tokens: jax.Array | None = None,
    normaliser: float | jax.Array | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The TD loss of a value head on groups of candidates.

    Args:
        head: a `ValueHead`.
        states: hidden states of all prefixes of the candidates `[B, G, L + 1, D]`, as `path_states` gives them.
        rewards: of the prefixes of 1..L codes `[B, G, L]`, as `semantic_rewards` gives them.
        weight: `[B, G]`, 1 for candidates, 0 for invalid ones and padding, which are ignored even if NaN.
        config: how values are learnt; None: as published.
        tokens: the candidates' tokens `[B, G, L]`: each distinct prefix of a group then counts once, and its target is
            the mean over the candidates below it. None: each candidate counts for itself.
        normaliser: divisor of the sum over prefixes; None: their number.
        key: for dropout; None for none.

    Returns:
        The loss `[]` and metrics; see `td_loss`.
    """
    config = config or ValueConfig()
    if config.stop_gradient:
        states = jax.lax.stop_gradient(states)
    # Masked before the head sees them: otherwise the gradient of its weights would be 0 times NaN.
    states = jnp.where(weight[..., None, None] > 0, states, 0)
    values = head(states, key=key)
    if config.with_root:
        rewards = jnp.pad(rewards, ((0, 0), (0, 0), (1, 0)))
    else:
        values = values[..., 1:]
    targets = td_targets(rewards, values, config.gamma, config.lam)
    weight = jnp.broadcast_to(weight[..., None], values.shape)
    if tokens is not None:
        valid = weight[..., 0] > 0
        targets = prefix_means(tokens, targets, valid)
        weight = weight * distinct_prefixes(tokens, valid)[..., -values.shape[-1] :]
    return td_loss(
        values,
        targets,
        weight,
        normaliser=normaliser,
        first_depth=0 if config.with_root else 1,
    )


def value_objective(config: ValueConfig | None = None) -> LossFn:
    """The loss of a value head alone, for `make_train_step`.

    Batches are dictionaries of `states`, `rewards`, `weight` and, if each distinct prefix is to count once, `tokens`;
    see `value_loss`.
    """

    def of_batch(head: Any, batch: Any, key: jax.Array, loss_state: Any):
        loss, metrics = value_loss(
            head,
            batch["states"],
            batch["rewards"],
            batch["weight"],
            config,
            tokens=batch.get("tokens"),
            key=key,
        )
        return loss, (metrics, loss_state)

    return of_batch
