"""Log-probabilities and losses of the tokens of semantic IDs.

Logits may be -inf or any finite float32. A token of logit -inf has log-probability -inf, even if all logits are -inf,
and causes no NaN gradient. A logit of NaN or +inf gives NaN, so that it is noticed.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gr.models import score_children_below
from gr.trie import TrieIndex, child_logits, descend, few_children, node_rows, root

Metrics = dict[str, jax.Array]


def token_log_probs(
    logits: jax.Array, tokens: jax.Array, temperature: float | jax.Array | None = None
) -> jax.Array:
    """Log-probability of each token, `[..., V]` and `[...]` to `[...]` float32.

    A gather and a log-sum-exp: the log-softmax over V is never stored. None is a temperature of 1.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)
    return _log_share(chosen, logits, temperature)[..., 0]


def group_token_log_probs(
    first: jax.Array,
    later: jax.Array,
    tokens: jax.Array,
    temperature: float | jax.Array | None = None,
) -> jax.Array:
    """Log-probability of each token of a group's n candidates, which share the prediction of the first code.

    Args:
        first: logits of the first code `[..., V]`.
        later: logits of the others `[..., n, L - 1, V]`.
        tokens: `[..., n, L]`.
        temperature: see `token_log_probs`.

    Returns:
        `[..., n, L]` float32.
    """
    first = first.astype(jnp.float32)
    chosen = _log_share(jnp.take_along_axis(first, tokens[..., 0], axis=-1), first, temperature)
    others = token_log_probs(later, tokens[..., 1:], temperature)
    return jnp.concatenate([chosen[..., None], others], axis=-1)


def masked_token_log_probs(
    logits: jax.Array, tokens: jax.Array, index: TrieIndex, tau: float = 1.0
) -> jax.Array:
    """Log-probability of each token among those that the trie allows behind its prefix (masked softmax loss, MSL).

    Args:
        logits: `[..., L, V]`.
        tokens: the semantic IDs `[..., L]`; at padding, which is no prefix of the trie, the result is 0.
        index: the trie of all valid semantic IDs.
        tau: temperature, which divides the logits.

    Returns:
        `[..., L]` float32.
    """
    logits = logits.astype(jnp.float32)
    log_probs = []
    for depth, (rivals, exists) in enumerate(allowed_logits(logits, tokens, index)):
        # Tokens that the trie does not have are masked first, so that no gradient is 0 times NaN.
        rivals = jnp.where(exists[..., None], rivals, -jnp.inf)
        chosen = jnp.take_along_axis(logits[..., depth, :], tokens[..., depth, None], axis=-1)
        log_probs.append(jnp.where(exists, _log_share(chosen, rivals, tau)[..., 0], 0.0))
    return jnp.stack(log_probs, axis=-1)


def scored_log_probs(
    model: Any,
    states: jax.Array,
    tokens: jax.Array,
    index: TrieIndex,
    temperature: float | jax.Array | None = None,
) -> jax.Array:
    """`masked_token_log_probs` of a model that scores the children it is asked for.

    Args:
        model: a `gr.models.ChildScorer`.
        states: the states before each token `[..., L, D]`.
        tokens: the semantic IDs `[..., L]`; at padding, which is no prefix of the trie, the result is 0.
        index: the trie of all valid semantic IDs.
        temperature: divides the logits; None is 1.

    Returns:
        `[..., L]` float32.
    """
    log_probs = []
    for rivals, is_token in scored_children(model, states, tokens, index):
        exists = is_token.any(-1)
        rivals = jnp.where(exists[..., None], rivals, -jnp.inf)
        chosen = jnp.where(is_token, rivals, 0.0).sum(-1, keepdims=True)
        log_probs.append(jnp.where(exists, _log_share(chosen, rivals, temperature)[..., 0], 0.0))
    return jnp.stack(log_probs, axis=-1)


def scored_children(
    model: Any, states: jax.Array, tokens: jax.Array, index: TrieIndex
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """For each depth, the logits of the children of the prefix before the token, and which of them is the token.

    Args:
        model: a `gr.models.ChildScorer`.
        states: `[..., L, D]`.
        tokens: `[..., L]`.
        index: the trie.

    Yields:
        L pairs `[..., K]`: logits, -inf where there is no child, and bool.
    """
    # All semantic IDs share the root, so its children are listed once.
    nodes, shape = root(index, (1,) * (tokens.ndim - 1)), tokens.shape[:-1]
    for depth in range(tokens.shape[-1]):
        below, child = few_children(index, depth, nodes)
        rows = node_rows(index, depth + 1, below)
        scores = score_children_below(model, depth == 0, states[..., depth, :], child, rows)
        token = tokens[..., depth]
        yield jnp.where(below.exist, scores, -jnp.inf), below.exist & (child == token[..., None])
        if depth == 0:
            nodes = root(index, shape)
        nodes = descend(index, depth, nodes, token)


def token_entropies(logits: jax.Array) -> jax.Array:
    """Entropy of the softmax of logits, `[..., V]` to `[...]` float32, in nats; 0 where all are -inf."""
    logits = logits.astype(jnp.float32)
    logits = logits - _largest(logits)
    shares = jnp.exp(logits)
    total = _or_one(shares.sum(axis=-1))
    # A probability of 0 may stem from a logit of -inf.
    mean = jnp.where(shares == 0.0, 0.0, shares * logits).sum(axis=-1) / total
    return jnp.log(total) - mean


def allowed_logits(
    logits: jax.Array, tokens: jax.Array, index: TrieIndex
) -> list[tuple[jax.Array, jax.Array]]:
    """For each depth, the logits of the tokens behind the prefix in the trie, and whether the given one is among them.

    Args:
        logits: `[..., L, V]`.
        tokens: the semantic IDs `[..., L]`.
        index: the trie.

    Returns:
        L pairs `[..., K]` (-inf beyond a prefix's own tokens, and behind a prefix that the trie lacks) and `[...]`.
    """
    nodes, found = root(index, tokens.shape[:-1]), []
    for depth in range(tokens.shape[-1]):
        rivals = child_logits(index, depth, nodes, logits[..., depth, :])
        nodes = descend(index, depth, nodes, tokens[..., depth])
        found.append((rivals, nodes.exist))
    return found


def cross_entropy(
    token_logp: jax.Array, weight: jax.Array, normaliser: float | jax.Array
) -> tuple[jax.Array, Metrics]:
    """Cross-entropy of semantic IDs, averaged over their codes.

    Args:
        token_logp: log-probabilities of the target's tokens `[..., L]`, float32; values at padding, even -inf, are
            ignored.
        weight: `[...]`, 1 for a target, 0 for padding.
        normaliser: divisor of the weighted sum over targets: the number of targets, or its mean over batches, so that
            every target counts the same in any batch.

    Returns:
        The loss `[]`, and `level_t/loss`: the mean over this batch's targets of -log p of code t = 1..L.
    """
    token_logp = jnp.where(weight[..., None] > 0, token_logp, 0.0)  # Since 0 * inf is NaN.
    per_target = -token_logp.mean(axis=-1)
    loss = (per_target * weight).sum() / normaliser
    count = jnp.maximum(weight.sum(), 1.0)
    levels = -(token_logp * weight[..., None]).reshape(-1, token_logp.shape[-1]).sum(axis=0) / count
    return loss, {f"level_{t + 1}/loss": levels[t] for t in range(token_logp.shape[-1])}


def _log_share(
    chosen: jax.Array, logits: jax.Array, temperature: float | jax.Array | None = None
) -> jax.Array:
    """Log-softmax, never above 0, of the `chosen [..., C]` among `logits [..., K]`; None is a temperature of 1."""
    largest = _largest(logits)
    # The largest is subtracted first: beside 1e30 the logarithm of the total would be lost, and a division would lose
    # digits.
    chosen, logits = chosen - largest, logits - largest
    if temperature is not None:
        chosen, logits = chosen / temperature, logits / temperature
    return chosen - jnp.log(_or_one(jnp.exp(logits).sum(axis=-1, keepdims=True)))


def _largest(logits: jax.Array) -> jax.Array:
    """The largest logit `[..., 1]`, without gradient; 0 where all are -inf, since -inf minus -inf is NaN."""
    largest = jax.lax.stop_gradient(logits).max(axis=-1, keepdims=True)
    return jnp.where(largest == -jnp.inf, 0.0, largest)


def _or_one(total: jax.Array) -> jax.Array:
    """Replaces 0 by 1, since the logarithm's slope at 0 is infinite; NaN stays NaN."""
    return jnp.where(total == 0.0, 1.0, total)
