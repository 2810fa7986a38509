"""A backbone that is a table of logits, so that decoding can be computed by hand."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableModel:
    """A `TreeBackbone` whose logits depend on user, depth and last token only.

    The logits of a user's first code are `table[user, 0, 0]`, those behind token v at depth t are `table[user, t, v]`.
    The history is ignored; the table sets the number of users.
    """

    table: jax.Array  # [B, L, V, V] float32.

    def prefill(self, history: Any) -> tuple[jax.Array, jax.Array, Any]:
        """See `Backbone.prefill`; hidden states are one zero each."""
        return self.table[:, 0, 0], jnp.zeros((self.table.shape[0], 1)), (0, history)

    def step(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
        """See `Backbone.step`; the cache is the depth, and the history."""
        depth = cache[0] + 1
        user = jnp.arange(tokens.shape[0])[:, None]
        return self.table[user, depth, tokens], jnp.zeros((*tokens.shape, 1)), (depth, cache[1])

    def reorder(self, cache: Any, parents: jax.Array) -> Any:
        """See `Backbone.reorder`; the cache holds nothing per beam."""
        return cache

    def latest(self, cache: Any) -> tuple[()]:
        """See `TreeBackbone.latest`; a step adds nothing."""
        return ()

    def assemble(self, cache: Any, stored: Any, paths: jax.Array, depths: jax.Array) -> Any:
        """See `TreeBackbone.assemble`; only the depth is needed."""
        return depths, cache[1]

    def log_prob(
        self, user: int, temperature: float = 1.0
    ) -> Callable[[Sequence[int]], np.ndarray]:
        """A function from a prefix (any number of tokens) to log-probabilities of the next token, `[V]` float64."""
        table = np.asarray(self.table[user], np.float64) / temperature

        def of(prefix: Sequence[int]) -> np.ndarray:
            logits = table[len(prefix), prefix[-1] if len(prefix) else 0]
            logits = logits - logits.max()
            return logits - np.log(np.exp(logits).sum())

        return of


def random_table_model(
    rng: np.random.Generator, length: int, vocab_size: int, num_users: int = 3
) -> TableModel:
    """A table of normal logits, of standard deviation 2.

    Args:
        rng: random generator.
        length: L.
        vocab_size: V; the table has `B * L * V * V` numbers.
        num_users: B.
    """
    shape = (num_users, length, vocab_size, vocab_size)
    return TableModel(jnp.asarray(rng.normal(size=shape) * 2, jnp.float32))
