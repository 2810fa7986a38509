"""A backbone whose logits are a table, and what decoding tests compare."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableModel:
    """Logits that depend on the last token and the depth only: `table[depth, last token]`, per user."""

    table: jax.Array  # [B, L, V, V].

    def prefill(self, history):
        return self.table[:, 0, 0], jnp.zeros((self.table.shape[0], 1)), (0, history)

    def step(self, tokens, cache):
        depth = cache[0] + 1
        user = jnp.arange(tokens.shape[0])[:, None]
        return self.table[user, depth, tokens], jnp.zeros((*tokens.shape, 1)), (depth, cache[1])

    def reorder(self, cache, parents):
        return cache

    def log_prob(self, user):
        table = np.asarray(self.table[user])

        def of(prefix):
            return oracles.log_softmax(table[len(prefix), prefix[-1] if prefix else 0])

        return of


def rows(candidates, user):
    """The valid candidates of one user as (score, sid, items), best first; items ascending."""
    valid = np.asarray(candidates.valid[user])
    count = int(valid.sum())
    assert valid[:count].all(), "valid candidates come first"
    for beam in range(count, len(valid)):
        assert (np.asarray(candidates.codes[user, beam]) == -1).all()
        assert (np.asarray(candidates.items[user, beam]) == -1).all()
        assert candidates.scores[user, beam] == -np.inf
    found = []
    for beam in range(count):
        items = np.asarray(candidates.items[user, beam]).tolist()
        there = [item for item in items if item >= 0]
        assert items[: len(there)] == there, "items come first, then -1"
        sid = tuple(np.asarray(candidates.codes[user, beam]).tolist())
        found.append((float(candidates.scores[user, beam]), sid, sorted(there)))
    return found


def assert_same_ranking(found, expected):
    assert len(found) == len(expected)
    np.testing.assert_allclose(
        [f[0] for f in found], [e[0] for e in expected], rtol=1e-5, atol=1e-4
    )
    assert [f[1:] for f in found] == [e[1:] for e in expected]
