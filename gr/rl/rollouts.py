"""Rollouts: candidates that the current policy finds for a batch of users, with rewards and log-probabilities."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gr.decoding import Candidates, SearchConfig, search
from gr.decoding.draws import KeyOfPart
from gr.losses import (
    group_prefix_vectors,
    group_token_log_probs,
    masked_token_log_probs,
    scored_log_probs,
    semantic_rewards,
    token_entropies,
)
from gr.losses.token import allowed_logits, scored_children
from gr.models import codes_alone, histories_for, path_states, scores_children
from gr.rl.actor_critic import ActorCritic
from gr.rl.rewards import Outcome, Reward, WeightedSum, weighted_sum
from gr.training import TrainingError, on_own_rows
from gr.trie import Catalogue, ExcludeItems, TrieIndex

PREFIX_VECTORS = ("node", "group")


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How rollouts are made.

    Raises `TrainingError` for an unknown name.
    """

    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    exclude_seen: bool = True  # Items of the history are not proposed.
    temperature: float | None = None  # Of the policy; see `beam_search`, as for the next field.
    normalise_over: str = "vocabulary"
    # Whether candidates are importance-weighted in the policy's loss, since they are not independent draws. Those drawn
    # without replacement get probability / inclusion probability; those found by a search get their probability,
    # normalised over the candidates.
    importance: bool = False
    # What a prefix's vector is the mean of, for rewards of the value head: all items below its "node" of the trie, or
    # the "group" of candidates that share it.
    prefix_vectors: str = "node"

    def __post_init__(self):
        if self.prefix_vectors not in PREFIX_VECTORS:
            raise TrainingError(
                f"value.prefix_vectors={self.prefix_vectors!r} is unknown: use one of {', '.join(PREFIX_VECTORS)}"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollouts:
    """A batch of users with G candidates each; nothing in it carries a gradient."""

    history: Any  # [B, T] items, as the backbone reads them.
    target: jax.Array  # [B, L] int32 tokens.
    weight: jax.Array  # [B] float32: 0 for filler rows.
    tokens: jax.Array  # [B, G, L] int32; 0 where not valid.
    valid: jax.Array  # [B, G] bool; False for filler rows too.
    items: jax.Array  # [B, G] int32 item rows; -1 where not valid.
    rewards: jax.Array  # [B, G] float32, the policy's rewards.
    rewards_apart: jax.Array  # [B, G, R] float32: the weighted parts of that sum.
    value_rewards: jax.Array  # [B, G, L] float32, for the value head only.
    logp: (
        jax.Array
    )  # [B, G, L] float32: log-probability of each code under the policy that found them.
    reference_logp: jax.Array  # [B, G, L]: under the reference policy.
    entropy: jax.Array  # [B, G, L] float32: of the policy's distribution of each code, in nats.
    importance: jax.Array  # [B, G] float32; all 1 unless asked for.


def roll_out(
    config: RolloutConfig,
    catalogue: Catalogue,
    reward: Reward,
    model: ActorCritic,
    reference: Any,
    batch: dict[str, jax.Array],
    key: jax.Array,
    mesh: Mesh | None = None,
) -> tuple[Rollouts, dict[str, jax.Array]]:
    """Searches candidates for each user of a batch, rewards them, and scores them under policy and reference.

    Args:
        config: how rollouts are made.
        catalogue: the items, with vectors.
        reward: the reward of candidates; the parts of a `weighted_sum` are kept too.
        model: the policy and the value head that guides its search.
        reference: the reference policy, a backbone.
        batch: `history [B, T]`, `target [B]` and `weight [B]`, as `train_batches_by_target` makes them.
        key: random key of the search.
        mesh: each of its devices searches its own users, with the random numbers of one device; None: one device. Its
            size divides B.

    Returns:
        The rollouts, and means over users: `search/tokens` (evaluated by the search), `candidates/valid` and
        `candidates/target_share` (users whose target is among their candidates).
    """
    batch = {name: batch[name] for name in ("history", "target", "weight")}

    def of_users(whole: Any, batch: Any, key: Any) -> tuple[Rollouts, dict[str, jax.Array]]:
        catalogue, reward, model, reference = whole
        return _of_users(config, catalogue, reward, model, reference, batch, key)

    reward = reward if isinstance(reward, WeightedSum) else weighted_sum({reward: 1.0})
    whole = (catalogue, reward, model, reference)
    rollouts, per_user = on_own_rows(of_users, mesh, whole, batch, key)
    real = batch["weight"] > 0
    users = jnp.maximum(real.sum(), 1)
    metrics = {name: (value * real).sum() / users for name, value in per_user.items()}
    return jax.lax.stop_gradient(rollouts), metrics


def _of_users(
    config: RolloutConfig,
    catalogue: Catalogue,
    reward: WeightedSum,
    model: ActorCritic,
    reference: Any,
    batch: dict[str, jax.Array],
    key: jax.Array | KeyOfPart,
) -> tuple[Rollouts, dict[str, jax.Array]]:
    """The rollouts, and what `roll_out` gives the means of for each user `[B]`."""
    history = histories_for(model.backbone, catalogue.tokens, batch["history"], catalogue.pieces)
    target = catalogue.tokens[batch["target"]]
    found = search(
        config.search,
        codes_alone(model.backbone),  # The policy is that of codes.
        model.value_head,
        catalogue.index,
        history,
        key=key,
        constraint=ExcludeItems(batch["history"]) if config.exclude_seen else None,
        temperature=config.temperature,
        normalise_over=config.normalise_over,
    )
    real = batch["weight"] > 0
    valid = found.valid & real[:, None]
    tokens = jnp.where(valid[..., None], found.tokens, 0)
    items = jnp.where(valid, found.items[..., 0], -1)
    outcome = Outcome(tokens, valid, target, items, batch["target"])
    logp, entropy = scored_candidates(config, catalogue, model.backbone, history, tokens)
    reference_logp, _ = scored_candidates(config, catalogue, reference, history, tokens)
    rewards_apart = jnp.where(valid[..., None], reward.apart(outcome), 0.0)
    rollouts = Rollouts(
        history=history,
        target=target,
        weight=batch["weight"],
        tokens=tokens,
        valid=valid,
        items=items,
        rewards=rewards_apart.sum(axis=-1),
        rewards_apart=rewards_apart,
        value_rewards=_value_rewards(config, catalogue, outcome),
        logp=logp,
        reference_logp=reference_logp,
        entropy=entropy,
        importance=_importance(found, logp, valid) if config.importance else jnp.ones(valid.shape),
    )
    hit = ((tokens == target[:, None]).all(-1) & valid).any(-1)
    per_user = {
        "search/tokens": found.evaluations,
        "candidates/valid": valid.sum(-1),
        "candidates/target_share": hit,
    }
    return rollouts, per_user


def scored_candidates(
    config: RolloutConfig,
    catalogue: Catalogue,
    backbone: Any,
    history: jax.Array,
    tokens: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each of the `tokens [B, G, L]`, and the entropy of its distribution, both `[B, G, L]`."""
    states = path_states(backbone, history, tokens[..., :-1])
    logp = log_probs_of_states(config, catalogue.index, backbone, states, tokens)
    return logp, _entropies(config, catalogue.index, backbone, states, tokens)


def log_probs_of_states(
    config: RolloutConfig, index: TrieIndex, backbone: Any, states: jax.Array, tokens: jax.Array
) -> jax.Array:
    """Log-probability of each token `[B, G, L]` from the states before it `[B, G, L, D]`, under the policy."""
    if scores_children(backbone):
        return scored_log_probs(backbone, states, tokens, index, config.temperature)
    if config.normalise_over == "children":
        return masked_token_log_probs(backbone.logits(states), tokens, index, config.temperature)
    # The state before the first code is the same for the whole group.
    first, later = backbone.logits(states[:, 0, 0]), backbone.logits(states[:, :, 1:])
    return group_token_log_probs(first, later, tokens, config.temperature)


def _entropies(
    config: RolloutConfig, index: TrieIndex, backbone: Any, states: jax.Array, tokens: jax.Array
) -> jax.Array:
    """Entropy `[B, G, L]` of the distribution that each token was chosen from, by the states before them."""
    inverse = 1.0 if config.temperature is None else 1.0 / config.temperature
    if scores_children(backbone):
        listed = scored_children(backbone, states, tokens, index)
        return jnp.stack([token_entropies(rivals * inverse) for rivals, _ in listed], axis=-1)
    logits = backbone.logits(states)
    if config.temperature is not None:
        logits = logits / config.temperature
    if config.normalise_over != "children":
        return token_entropies(logits)
    allowed = allowed_logits(logits, tokens, index)
    return jnp.stack([token_entropies(rivals) for rivals, _ in allowed], axis=-1)


def _value_rewards(config: RolloutConfig, catalogue: Catalogue, outcome: Outcome) -> jax.Array:
    """The dense semantic rewards of the value head `[B, G, L]`."""
    if catalogue.item_vectors is None:
        raise TrainingError(
            "the catalogue has no item vectors, of which rewards of the value head are made: give them by "
            "`catalogue.with_vectors(item_vectors)`"
        )
    if config.prefix_vectors == "node":
        vectors = catalogue.node_vectors.of_prefixes(catalogue.index, outcome.tokens)
    else:
        of_items = catalogue.item_vectors[outcome.items]
        vectors = group_prefix_vectors(outcome.tokens, of_items, outcome.valid)
    return semantic_rewards(
        outcome.tokens,
        outcome.target,
        vectors,
        catalogue.item_vectors[outcome.target_items],
        valid=outcome.valid,
    )


def _importance(found: Candidates, logp: jax.Array, valid: jax.Array) -> jax.Array:
    """Importance weights of candidates `[B, G]`, 0 where not valid.

    * Drawn without replacement: probability / inclusion probability (arXiv 1903.06059, section 4). The loss divides by
      the sum of weights. This estimates the mean over independent draws; its bias vanishes as G grows, and its variance
      is far below that of the unbiased sum.
    * Found by a search: probability, normalised over the candidates. This gives the mean over the policy's draws
      among these candidates.

    Without weights an unlikely candidate counts as much as a likely one, and improbable candidates are pushed down at
    every step.
    """
    log_weight = jnp.where(valid, logp.sum(-1), -jnp.inf)
    if found.draws is not None:
        log_weight = found.scores - found.draws.log_inclusion
    largest = jnp.where(valid, log_weight, -jnp.inf).max(axis=1, keepdims=True, initial=-1e30)
    return jnp.where(valid, jnp.exp(log_weight - largest), 0.0)
