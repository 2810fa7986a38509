"""A backbone that is a table, and the comparison of what is decoded with it."""

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

    def latest(self, cache):
        return ()

    def assemble(self, cache, stored, paths, depths):
        return depths, cache[1]

    def log_prob(self, user, temperature=1.0):
        table = np.asarray(self.table[user]) / temperature

        def of(prefix):
            return oracles.log_softmax(table[len(prefix), prefix[-1] if prefix else 0])

        return of


def random_model(rng, length, vocab_size, num_users=3):
    shape = (num_users, length, vocab_size, vocab_size)
    return TableModel(jnp.asarray(rng.normal(size=shape) * 2, jnp.float32))


def rows(candidates, user):
    """The valid candidates of one user as (score, sid, items), best first."""
    valid = np.asarray(candidates.valid[user])
    count = int(valid.sum())
    assert valid[:count].all(), "valid candidates come first"
    assert (np.asarray(candidates.tokens[user, count:]) == -1).all()
    assert (np.asarray(candidates.items[user, count:]) == -1).all()
    assert (np.asarray(candidates.scores[user, count:]) == -np.inf).all()
    return [
        (score, tuple(tokens), [item for item in items if item >= 0])
        for score, tokens, items in zip(
            np.asarray(candidates.scores[user, :count]).tolist(),
            np.asarray(candidates.tokens[user, :count]).tolist(),
            np.asarray(candidates.items[user, :count]).tolist(),
            strict=True,
        )
    ]


def assert_same_ranking(found, expected):
    assert len(found) == len(expected)
    np.testing.assert_allclose(
        [f[0] for f in found], [e[0] for e in expected], rtol=1e-5, atol=1e-4
    )
    assert [f[1:] for f in found] == [e[1:] for e in expected]


def assert_searches_as_slow_ones(found, user, tokens, model, num_beams, demands=(), scan_depth=0):
    """Beam search over dictionaries finds the same, and with enough beams so does scoring every item."""
    by_sid = oracles.items_by_sid(tokens)
    log_prob = model.log_prob(user)
    beams = oracles.beam_search(tokens, log_prob, num_beams, demands, scan_depth)
    expected = [(score, sid, oracles.allowed_items(by_sid[sid], demands)) for score, sid in beams]
    assert_same_ranking(rows(found, user), expected)
    if num_beams >= len(tokens):
        ranking = oracles.brute_force_ranking(tokens, log_prob, demands)
        assert_same_ranking(rows(found, user), ranking)
