"""What every decoder returns."""

import dataclasses

import jax


class DecodingError(ValueError):
    """Raised for decoding requests that cannot be met; the message names the argument and the remedy."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """The semantic IDs decoded for each user, best first, all distinct and all in the trie.

    Letters: B users, M beams, L code depth, C the most items that share a semantic ID (1 where all are unique).
    Where fewer than M valid semantic IDs exist, the rest is marked invalid: token, item -1 and score -inf.
    """

    codes: jax.Array  # [B, M, L] int32 vocabulary tokens.
    items: (
        jax.Array
    )  # [B, M, C] int32: the rows of all items with that semantic ID, in row order, -1-padded.
    scores: jax.Array  # [B, M] float32 log-probabilities, in descending order.
    valid: jax.Array  # [B, M] bool.
    # beams[t] [B, M_t] int32, if asked for: names of the trie nodes of depth t + 1 alive after step t, -1-padded.
    beams: tuple[jax.Array, ...] = ()
