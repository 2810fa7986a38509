"""Losses on the tokens of the target's semantic ID."""

import jax
import jax.numpy as jnp

from gr.trie import TrieIndex, child_log_sum_exp, child_logits, descend, root

Metrics = dict[str, jax.Array]


def token_log_probs(
    logits: jax.Array, tokens: jax.Array, temperature: float | jax.Array | None = None
) -> jax.Array:
    """Log-probability of each token, `[..., V]` and `[...]` to `[...]` float32.

    A gather and a log-sum-exp: the log-softmax over V is never written out. None is a temperature of 1.
    """
    logits = logits.astype(jnp.float32)
    if temperature is not None:
        logits = (logits - _largest(logits)) / temperature
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _largest(logits: jax.Array) -> jax.Array:
    """The largest of logits `[..., V]`, taken away before they are divided, or few digits would be left."""
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    return jnp.where(largest == -jnp.inf, 0.0, largest)


def group_token_log_probs(first: jax.Array, later: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probability of each token of a group's n candidates, which share the prediction of the first code.

    Args:
        first: logits of the first code `[..., V]`.
        later: logits of the others `[..., n, L - 1, V]`.
        tokens: `[..., n, L]`.

    Returns:
        `[..., n, L]` float32.
    """
    first = first.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(first, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(first, tokens[..., 0], axis=-1) - normaliser
    return jnp.concatenate([chosen[..., None], token_log_probs(later, tokens[..., 1:])], axis=-1)


def masked_token_log_probs(
    logits: jax.Array, tokens: jax.Array, index: TrieIndex, tau: float = 1.0
) -> jax.Array:
    """Log-probability of each token among those that the trie allows behind its prefix (masked softmax loss, MSL).

    Args:
        logits: `[..., L, V]`.
        tokens: the semantic IDs `[..., L]`; at padding, where the trie has no such prefix, the result is 0.
        index: the trie of all valid semantic IDs.
        tau: temperature, by which logits are divided.

    Returns:
        `[..., L]` float32.
    """
    logits = logits.astype(jnp.float32)
    nodes = root(index, tokens.shape[:-1])
    log_probs = []
    for depth in range(tokens.shape[-1]):
        here = logits[..., depth, :]
        here = (here - _largest(child_logits(index, depth, nodes, here))) / tau
        normaliser = child_log_sum_exp(index, depth, nodes, here)
        nodes = descend(index, depth, nodes, tokens[..., depth])
        chosen = jnp.take_along_axis(here, tokens[..., depth, None], axis=-1)[..., 0]
        log_probs.append(jnp.where(nodes.exist, chosen - normaliser, 0.0))
    return jnp.stack(log_probs, axis=-1)


def cross_entropy(
    token_logp: jax.Array, weight: jax.Array, normaliser: float | jax.Array
) -> tuple[jax.Array, Metrics]:
    """Cross-entropy of semantic IDs, averaged over their codes.

    Args:
        token_logp: log-probabilities of the target's tokens `[..., L]`, float32; what stands at padding, even
            -inf, has no influence.
        weight: `[...]`, 1 for a target, 0 for padding.
        normaliser: what the weighted sum over targets is divided by: the number of targets, or its mean over
            batches, so that every target counts the same in whichever batch it falls.

    Returns:
        The loss `[]`, and `level_t/loss`: the mean over this batch's targets of -log p of code t = 1..L.
    """
    token_logp = jnp.where(weight[..., None] > 0, token_logp, 0.0)  # Since 0 * inf is not a number.
    per_target = -token_logp.mean(axis=-1)
    loss = (per_target * weight).sum() / normaliser
    count = jnp.maximum(weight.sum(), 1.0)
    levels = -(token_logp * weight[..., None]).reshape(-1, token_logp.shape[-1]).sum(axis=0) / count
    return loss, {f"level_{t + 1}/loss": levels[t] for t in range(token_logp.shape[-1])}
