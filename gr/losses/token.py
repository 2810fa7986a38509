"""Losses on the tokens of the target's semantic ID.

Logits may be -inf, or as low and high as float32 goes: a token of logit -inf has log-probability -inf, also where no
logit is above -inf, and no gradient becomes NaN by it. What is NaN or +inf among logits stays NaN, to be noticed.
"""

import jax
import jax.numpy as jnp

from gr.trie import TrieIndex, child_logits, descend, root

Metrics = dict[str, jax.Array]


def token_log_probs(
    logits: jax.Array, tokens: jax.Array, temperature: float | jax.Array | None = None
) -> jax.Array:
    """Log-probability of each token, `[..., V]` and `[...]` to `[...]` float32.

    A gather and a log-sum-exp: the log-softmax over V is never written out. None is a temperature of 1.
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
        tokens: the semantic IDs `[..., L]`; at padding, where the trie has no such prefix, the result is 0.
        index: the trie of all valid semantic IDs.
        tau: temperature, by which logits are divided.

    Returns:
        `[..., L]` float32.
    """
    logits = logits.astype(jnp.float32)
    log_probs = []
    for depth, (rivals, exists) in enumerate(allowed_logits(logits, tokens, index)):
        # What the trie does not have is masked before anything is computed of it, lest gradients be 0 times NaN.
        rivals = jnp.where(exists[..., None], rivals, -jnp.inf)
        chosen = jnp.take_along_axis(logits[..., depth, :], tokens[..., depth, None], axis=-1)
        log_probs.append(jnp.where(exists, _log_share(chosen, rivals, tau)[..., 0], 0.0))
    return jnp.stack(log_probs, axis=-1)


def token_entropies(logits: jax.Array) -> jax.Array:
    """Entropy of the softmax of logits, `[..., V]` to `[...]` float32, in nats; 0 where all are -inf."""
    logits = logits.astype(jnp.float32)
    logits = logits - _largest(logits)
    shares = jnp.exp(logits)
    total = _or_one(shares.sum(axis=-1))
    # A share of 0 may be that of a logit of -inf.
    mean = jnp.where(shares == 0.0, 0.0, shares * logits).sum(axis=-1) / total
    return jnp.log(total) - mean


def allowed_logits(
    logits: jax.Array, tokens: jax.Array, index: TrieIndex
) -> list[tuple[jax.Array, jax.Array]]:
    """For each depth, the logits of the tokens that the trie has behind the prefix, and whether it has the token too.

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


def _log_share(
    chosen: jax.Array, logits: jax.Array, temperature: float | jax.Array | None = None
) -> jax.Array:
    """Log-softmax, never above 0, of the `chosen [..., C]` among `logits [..., K]`; None is a temperature of 1."""
    largest = _largest(logits)
    # The largest is taken away first: beside 1e30 the logarithm of the total would be lost, and so would digits in a
    # division.
    chosen, logits = chosen - largest, logits - largest
    if temperature is not None:
        chosen, logits = chosen / temperature, logits / temperature
    return chosen - jnp.log(_or_one(jnp.exp(logits).sum(axis=-1, keepdims=True)))


def _largest(logits: jax.Array) -> jax.Array:
    """The largest logit `[..., 1]`, without gradient; 0 where all are -inf: -inf less -inf is no number."""
    largest = jax.lax.stop_gradient(logits).max(axis=-1, keepdims=True)
    return jnp.where(largest == -jnp.inf, 0.0, largest)


def _or_one(total: jax.Array) -> jax.Array:
    """1 in place of 0, whose logarithm has an infinite slope; what is NaN stays NaN."""
    return jnp.where(total == 0.0, 1.0, total)
