"""Policy losses of sampled candidates: GRPO, Sibling-GRPO and TEMPO, clipped as in PPO or masked as in CPPO.

Only the policy's own log-probabilities carry a gradient.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from gr.fields import NotNegative, OneOf, Positive, ShareAboveZero, check_fields
from gr.losses.advantages import (
    distinct_candidates,
    grpo_advantages,
    root_mean_square,
    sibling_advantages,
    sibling_weights,
    tempo_advantages,
)
from gr.losses.errors import LossError
from gr.losses.token import Metrics

METHODS = ("grpo", "sibling_grpo", "tempo")
AGGREGATIONS = ("group", "token")
MAX_LOG_RATIO = (
    20.0  # Beyond it e^x only overflows; verl has the same bound. There the gradient is 0.
)


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The policy loss and its settings. Raises `LossError` for a value out of range.

    Attributes:
        name: "grpo", "sibling_grpo" (V-STAR; adds a loss among siblings) or "tempo" (other advantages).
        clip_low: the ratio is clipped to 1 - clip_low .. 1 + clip_high; in (0, 1].
        clip_high: see clip_low; above 0.
        kl_weight: weight of the KL divergence from the reference policy; 0 or more.
        sibling_weight: weight of the Sibling-GRPO loss; 0 or more.
        aggregation: "group" or "token"; see `policy_loss`.
        cppo: whether codes are masked by `cppo_mask` instead of clipped.
        cppo_threshold: above 0; published: 0.15 for dense models, 0.2 for mixtures of experts.
        cppo_budget: 0 or more; published for models that were trained before.
        cppo_floor: in (0, 1].
    """

    name: Annotated[str, OneOf(METHODS)] = "grpo"
    clip_low: ShareAboveZero = 0.2
    clip_high: Positive = 0.2
    kl_weight: NotNegative = 1e-3
    sibling_weight: NotNegative = 1.0
    aggregation: Annotated[str, OneOf(AGGREGATIONS)] = "group"
    cppo: bool = False
    cppo_threshold: Positive = 0.15
    cppo_budget: NotNegative = 0.015
    cppo_floor: ShareAboveZero = 0.8

    def __post_init__(self):
        check_fields(self, "policy.", LossError)


def policy_objective(
    config: PolicyConfig,
    logp: jax.Array,
    old_logp: jax.Array,
    reference_logp: jax.Array,
    codes: jax.Array,
    rewards: jax.Array,
    valid: jax.Array,
    *,
    importance: jax.Array | None = None,
    entropy: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The configured policy loss of one batch of candidates, with metrics.

    Args:
        config: the method.
        logp: log-probabilities of the candidates' codes under the policy `[B, G, L]`.
        old_logp: those under the policy that proposed the candidates.
        reference_logp: those under the reference policy.
        codes: the candidates `[B, G, L]`.
        rewards: `[B, G]`.
        valid: `[B, G]` bool. Values at invalid candidates, even NaN, are ignored.
        importance: weights of the candidates `[B, G]`, for those that were not drawn from the old policy (searched
            for, or sampled without replacement: probability / inclusion probability, arXiv 1903.06059); None: all 1.
            Advantages, and the Sibling-GRPO loss, which counts each node of the tree once, do not use them.
        entropy: of the policy at each code `[B, G, L]`; only logged.

    Returns:
        The loss `[]` and metrics, means over users with valid candidates or over their codes:
        `reward/mean`; `reward/std` in the group, `reward/spread_share` (of groups with unequal rewards);
        `candidates/distinct` a user; `advantage/std` over all codes and, for Sibling-GRPO, `advantage/sibling_std`
        over the nodes with siblings; `policy/loss`, `policy/kl`, `policy/clip_share` of `policy_loss`;
        `policy/sibling_loss`, which the returned loss has in addition; `policy/entropy`.
    """
    if config.name == "tempo":
        advantages = tempo_advantages(codes, rewards, valid)
    else:
        advantages = jnp.broadcast_to(grpo_advantages(rewards, valid)[..., None], logp.shape)
    weight = jnp.broadcast_to(valid[..., None], logp.shape).astype(jnp.float32)
    clips = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    loss, parts = policy_loss(
        logp,
        old_logp,
        reference_logp,
        advantages,
        weight,
        importance=importance,
        keep=_keep(config, logp, old_logp, advantages),
        kl_weight=config.kl_weight,
        aggregation=config.aggregation,
        **clips,
    )
    metrics = {f"policy/{name}": value for name, value in parts.items()}
    metrics["policy/loss"] = loss
    metrics["advantage/std"] = _std(advantages, weight)
    if config.name == "sibling_grpo":
        advantages, once = sibling_advantages(codes, rewards, valid), sibling_weights(codes, valid)
        keep = _keep(config, logp, old_logp, advantages)
        sibling = sibling_loss(logp, old_logp, advantages, once, valid, keep=keep, **clips)
        loss = loss + config.sibling_weight * sibling
        metrics["policy/sibling_loss"] = sibling
        metrics["advantage/sibling_std"] = _std(advantages, once)
    if entropy is not None:
        metrics["policy/entropy"] = _mean(entropy, weight)
    return loss, metrics | _group_metrics(codes, rewards, valid)


def policy_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    reference_logp: jax.Array,
    advantages: jax.Array,
    weight: jax.Array,
    *,
    importance: jax.Array | None = None,
    keep: jax.Array | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_weight: float = 1e-3,
    aggregation: str = "group",
) -> tuple[jax.Array, Metrics]:
    """`-min(r A, clip(r) A) + kl_weight KL`, averaged, with `r = p / p_old` (GRPO, arXiv 2402.03300, equation 3).

    KL to the reference is estimated at each code as `e^d - d - 1` with `d = log p_reference - log p` (k3). Log-ratios
    are clipped at -20 and 20; beyond, the gradient is 0.

    Args:
        logp: log-probabilities of the candidates' codes under the policy `[B, G, L]`.
        old_logp: those under the policy that proposed the candidates.
        reference_logp: those under the reference policy.
        advantages: `[B, G, L]`, or `[B, G]` for all codes of a candidate.
        weight: of each code `[B, G, L]`, 0 for invalid candidates, where even NaN has no influence.
        importance: of each candidate `[B, G]`; None: all 1.
        keep: `[B, G, L]` bool: clip nothing, but drop the policy's term (not KL) where False.
        clip_low: the ratio is clipped at 1 - this.
        clip_high: and at 1 + this.
        kl_weight: weight of KL.
        aggregation: "group": the mean over a candidate's codes, then over a user's candidates, then over users (GRPO);
            "token": the mean over all codes of the batch (DAPO, arXiv 2503.14476). Importance weights apply to either
            mean and are normalised: doubling all of them changes nothing.

    Returns:
        The loss `[]`, and `kl` and `clip_share`: the share of codes whose policy gradient was cut off, by clipping or
        by `keep`. Both are averaged like the loss.

    Raises:
        LossError: for an unknown aggregation.
    """
    _check_aggregation(aggregation)
    weight = jax.lax.stop_gradient(weight)
    counted = weight > 0
    if advantages.ndim == weight.ndim - 1:
        advantages = advantages[..., None]
    values, cut = _surrogate(logp, old_logp, advantages, counted, keep, clip_low, clip_high)
    divergence = _k3(logp, reference_logp, counted)

    def average(terms: jax.Array) -> jax.Array:
        return _aggregate(terms, weight, importance, aggregation)

    kl = average(divergence)
    return average(-values) + kl_weight * kl, {"kl": kl, "clip_share": average(cut)}


def sibling_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    weight: jax.Array,
    valid: jax.Array,
    *,
    keep: jax.Array | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> jax.Array:
    """`-(1 / |C|)` times the sum of `r A` over the children of all branching prefixes, averaged over users.

    Sibling-GRPO (V-STAR, arXiv 2602.10699, section 4.3, equation 19), clipped like GRPO's loss: `|C|` is the number of
    a user's valid candidates, duplicates among them. KL is left to GRPO's loss, which has each of these codes.

    Args:
        logp: log-probabilities of the candidates' codes under the policy `[B, G, L]`.
        old_logp: those under the policy that proposed the candidates.
        advantages: `[B, G, L]`, of `sibling_advantages`.
        weight: `[B, G, L]`, of `sibling_weights`, by which each child counts once.
        valid: `[B, G]` bool.
        keep: see `policy_loss`.
        clip_low: see there.
        clip_high: see there.

    Returns:
        `[]`.
    """
    values, _ = _surrogate(logp, old_logp, advantages, weight > 0, keep, clip_low, clip_high)
    counts = valid.sum(axis=1)
    users = (values * weight).sum(axis=(1, 2)) / jnp.maximum(counts, 1)
    return -users.sum() / jnp.maximum((counts > 0).sum(), 1)


def cppo_mask(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    *,
    threshold: float = 0.15,
    budget: float = 0.015,
    floor: float = 0.8,
) -> jax.Array:
    """Which codes keep their policy gradient (CPPO, arXiv 2606.10968, equations 8-10 and algorithm 1).

    With `D_t = |p - p_old|` and `w_t` falling linearly from 1 at the first code to `floor` at the last, a code is kept
    if `w_t D_t <= min(threshold, threshold + budget * sum_{j<t} w_j - sum_{j<t} w_j D_j)`: early codes may change less,
    and a prefix that has already changed leaves less room for later codes. An update that moves the ratio back towards
    1, `A (r - 1) <= 0`, is always kept.

    Args:
        logp: log-probabilities of the candidates' codes under the policy `[B, G, L]`.
        old_logp: those under the policy that proposed the candidates.
        advantages: `[B, G, L]`.
        threshold: the change of probability that one code may make.
        budget: the weighted mean change that a prefix may make.
        floor: the last code's weight.

    Returns:
        `[B, G, L]` bool, for `keep` of `policy_loss`.
    """
    logp, old_logp = logp.astype(jnp.float32), old_logp.astype(jnp.float32)
    positions = jnp.linspace(0.0, 1.0, logp.shape[-1], dtype=jnp.float32)
    weights = 1.0 - (1.0 - floor) * positions
    changes = weights * jnp.abs(jnp.exp(logp) - jnp.exp(old_logp))
    spent_before = jnp.cumsum(changes, axis=-1) - changes
    allowed_before = budget * (jnp.cumsum(weights) - weights)
    allowed = jnp.minimum(threshold, threshold + allowed_before - spent_before)
    returns = advantages * _log_ratio(logp, old_logp, jnp.ones(logp.shape, bool)) <= 0
    return jax.lax.stop_gradient(returns | (changes <= allowed))


def _check_aggregation(name: str) -> None:
    if name not in AGGREGATIONS:
        raise LossError(f"aggregation {name!r} is unknown; use one of {', '.join(AGGREGATIONS)}")


def _keep(
    config: PolicyConfig, logp: jax.Array, old_logp: jax.Array, advantages: jax.Array
) -> jax.Array | None:
    if not config.cppo:
        return None
    return cppo_mask(
        logp,
        old_logp,
        advantages,
        threshold=config.cppo_threshold,
        budget=config.cppo_budget,
        floor=config.cppo_floor,
    )


def _surrogate(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    counted: jax.Array,
    keep: jax.Array | None,
    clip_low: float,
    clip_high: float,
) -> tuple[jax.Array, jax.Array]:
    """The surrogate objective of each code `[B, G, L]`, and where its gradient is cut off (0 or 1)."""
    advantages = jax.lax.stop_gradient(jnp.where(counted, advantages, 0.0))
    ratio = jnp.exp(_log_ratio(logp, jax.lax.stop_gradient(old_logp), counted))
    if keep is not None:
        cut = ~keep & (advantages != 0)
        return jnp.where(cut, 0.0, ratio * advantages), cut.astype(jnp.float32)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    cut = (ratio - clipped) * advantages > 0
    return jnp.where(cut, clipped, ratio) * advantages, cut.astype(jnp.float32)


def _k3(logp: jax.Array, reference_logp: jax.Array, counted: jax.Array) -> jax.Array:
    """An estimate of KL(policy || reference) that is never negative (Schulman 2020, "k3"), `[B, G, L]`."""
    difference = _log_ratio(jax.lax.stop_gradient(reference_logp), logp, counted)
    return jnp.expm1(difference) - difference


def _log_ratio(above: jax.Array, below: jax.Array, counted: jax.Array) -> jax.Array:
    """`above - below`, clipped so that e^x stays finite; 0 without a gradient where nothing is counted.

    Also 0 where both are -inf: a code that is impossible under both policies has ratio 1.
    """
    counted = counted & ~((above == -jnp.inf) & (below == -jnp.inf))
    above = jnp.where(counted, above, 0.0).astype(jnp.float32)
    below = jnp.where(counted, below, 0.0).astype(jnp.float32)
    return jnp.clip(above - below, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _aggregate(
    terms: jax.Array, weight: jax.Array, importance: jax.Array | None, aggregation: str
) -> jax.Array:
    """The mean `[]` of `[B, G, L]` that `policy_loss` describes."""
    counted = weight.sum(axis=-1) > 0
    importance = jax.lax.stop_gradient(1.0 if importance is None else importance)
    share = jnp.where(counted, importance, 0.0)
    if aggregation == "token":
        return _mean(terms, weight * share[..., None])
    candidates = _mean(terms, weight, axis=2)
    return _mean(_mean(candidates, share, axis=1), (share.sum(axis=1) > 0).astype(jnp.float32))


def _mean(values: jax.Array, weight: jax.Array, axis: int | None = None) -> jax.Array:
    """Weighted mean; 0 where all weights are 0."""
    total = weight.sum(axis=axis)
    values = jnp.where(weight > 0, values, 0.0)
    return (values * weight).sum(axis=axis) / jnp.where(total > 0, total, 1.0)


def _std(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted standard deviation over everything, `[]`."""
    values, share = values.reshape(-1), weight.reshape(-1) / jnp.maximum(weight.sum(), 1e-30)
    return root_mean_square(values - _mean(values, share), share, axis=0)[0]


def _group_metrics(codes: jax.Array, rewards: jax.Array, valid: jax.Array) -> Metrics:
    """Metrics of the groups of candidates, averaged over users with valid candidates."""
    here = valid.astype(jnp.float32)
    users = valid.any(axis=1).astype(jnp.float32)
    mean = _mean(rewards, here, axis=1)
    share = here / jnp.maximum(here.sum(axis=1, keepdims=True), 1.0)
    std = root_mean_square(rewards - mean[:, None], share, axis=1)[:, 0]
    lowest = jnp.where(valid, rewards, jnp.inf).min(axis=1)
    highest = jnp.where(valid, rewards, -jnp.inf).max(axis=1)
    return {
        "reward/mean": _mean(mean, users),
        "reward/std": _mean(std, users),
        "reward/spread_share": _mean((highest > lowest).astype(jnp.float32), users),
        "candidates/distinct": _mean(distinct_candidates(codes, valid), users),
    }
