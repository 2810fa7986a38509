"""`Candidates`: what every decoder returns."""

import dataclasses

import jax
import jax.numpy as jnp

from gr.errors import GrError


class DecodingError(GrError):
    """Raised for decoding requests that cannot be met; the message names the argument and the remedy."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """Inclusion probabilities of candidates drawn without replacement (arXiv 1903.06059, section 4).

    Let p be the probability of a candidate, and q its probability of being among the candidates, given the threshold.
    The sum of p / q * f over a user's candidates is an unbiased estimate of the mean of f over all semantic IDs.
    """

    threshold: jax.Array  # [B] float32: kappa; -inf where all semantic IDs are candidates.
    perturbed: jax.Array  # [B, M] float32: Gumbel-perturbed log-probabilities, above the threshold.
    log_inclusion: jax.Array  # [B, M] float32: log q.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SearchTree:
    """The prefixes that a tree search evaluated, in the order in which it did; number 0 is the empty one.

    Letters: B users, C the most prefixes of a user.
    """

    exist: jax.Array  # [B, C] bool.
    parents: jax.Array  # [B, C] int32: number of the prefix without the last token; 0 for the root.
    tokens: jax.Array  # [B, C] int32: last token; 0 for the root.
    depths: jax.Array  # [B, C] int32.
    log_probs: jax.Array  # [B, C] float32, of the whole prefix.
    values: jax.Array  # [B, C] float32: V; 0 at depth L - 1, where it is not used.
    entropies: jax.Array  # [B, C] float32: H, in nats.
    visits: jax.Array  # [B, C] int32: N, prefixes evaluated below.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """The semantic IDs decoded for each user, best first, all distinct and all in the trie.

    Letters: B users, M beams, L code depth, C the most items that share a semantic ID (1 where all are unique).
    A user with fewer than M valid semantic IDs has invalid candidates at the end: token and item -1, score -inf. If the
    model returned NaN for a user, their ranking is unknown: scores are NaN, and no candidate is valid.
    """

    tokens: jax.Array  # [B, M, L] int32, of the vocabulary.
    items: (
        jax.Array
    )  # [B, M, C] int32: the rows of all items with that semantic ID, in row order, -1-padded.
    scores: jax.Array  # [B, M] float32 log-probabilities, in descending order.
    valid: jax.Array  # [B, M] bool.
    # beams[t] [B, M_t] int32, if asked for: names of the trie nodes of depth t + 1 alive after step t, -1-padded.
    beams: tuple[jax.Array, ...] = ()
    draws: Draws | None = None  # If drawn without replacement.
    evaluations: jax.Array | None = None  # [B] int32: tokens that a budgeted search gave the model.
    tree: SearchTree | None = None  # If asked for.
    # [B] int32: place of the first code at which the model's numbers, those that the user's candidates depend on, were
    # NaN or +inf (a value head's: not finite); -1 if there is none. None: nothing was decoded by a model.
    bad_step: jax.Array | None = None

    @property
    def finite(self) -> jax.Array:
        """Users whose candidates rest on finite numbers of the model, `[B]` bool; logits of -inf are allowed."""
        if self.bad_step is None:
            return jnp.ones(self.tokens.shape[0], bool)
        return self.bad_step < 0
