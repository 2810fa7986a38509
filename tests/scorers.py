"""A model that scores children and can be computed by hand, and its log-probabilities over dictionaries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from gr.testing import TableModel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableScorer(TableModel):
    """A `ChildScorer` whose hidden states are the rows of the table: a child's logit is `hidden[token] + nodes[row]`.

    Nodes without a row, or beyond the last one, count 0. `states`: what tests of tree searches call hidden states.
    """

    nodes: jax.Array  # [rows] float32.

    scores_children = True

    @property
    def states(self):
        return self.table

    def prefill(self, history):
        logits, _, cache = super().prefill(history)
        return None, logits, cache

    def step(self, tokens, cache):
        logits, _, cache = super().step(tokens, cache)
        return None, logits, cache

    def score_children(self, hidden, tokens, rows):
        tokens, rows = (
            jnp.broadcast_to(x, (*hidden.shape[:-1], x.shape[-1])) for x in (tokens, rows)
        )
        known = (rows >= 0) & (rows < len(self.nodes))
        of_nodes = jnp.where(known, self.nodes[jnp.where(known, rows, 0)], 0.0)
        return jnp.take_along_axis(hidden, tokens, axis=-1, mode="clip") + of_nodes

    def value(self, user, head):
        """V of prefixes by `test_ved.SumHead`."""
        states = np.asarray(self.table[user], np.float64)

        def of(prefix):
            path = [states[0, 0], *(states[i + 1, token] for i, token in enumerate(prefix))]
            return sum(np.tanh(s @ np.asarray(head.weights)) * (i + 1) for i, s in enumerate(path))

        return of


def random_scorer(rng, length, vocab_size, num_rows, num_users=3):
    """A scorer of random numbers, of standard deviation 2."""
    shape = (num_users, length, vocab_size, vocab_size)
    return TableScorer(
        jnp.asarray(rng.normal(size=shape) * 2, jnp.float32),
        jnp.asarray(rng.normal(size=num_rows) * 2, jnp.float32),
    )


def node_rows(tokens, layout):
    """Prefix -> its row, by counting."""
    offsets, found = [0], {}
    for depth in range(1, layout.length + 1):
        level = layout.levels[depth - 1]
        names = oracles.names(tokens, depth, layout.scan_depth)
        prefixes = oracles.prefixes(tokens)[depth]
        found |= {
            tuple(map(int, prefix)): offsets[-1] + name
            for prefix, name in zip(prefixes, names, strict=True)
        }
        named = level.max_nodes if depth < layout.scan_depth else layout.max_items
        offsets.append(offsets[-1] + named)
    assert tuple(offsets) == layout.node_offsets
    return found


def over_siblings(scorer, user, tokens, layout, temperature=1.0, siblings=None):
    """Prefix -> log-probabilities `[V]` of its children, -inf for what is none.

    Args:
        scorer: the model.
        user: one of its users.
        tokens: the semantic IDs that the model's rows are of.
        layout: of the index over these.
        temperature: divides the logits.
        siblings: the semantic IDs that are normalised over; None: `tokens`.
    """
    table, nodes = np.asarray(scorer.table[user], np.float64), np.asarray(scorer.nodes, np.float64)
    row_of = node_rows(tokens, layout)
    ids = set(map(tuple, (tokens if siblings is None else siblings).tolist()))

    def of(prefix):
        depth, prefix = len(prefix), tuple(map(int, prefix))
        children = sorted({sid[depth] for sid in ids if sid[:depth] == prefix})
        values = np.full(table.shape[-1], -np.inf)
        if children:
            logits = []
            for child in children:
                row = row_of.get((*prefix, child), -1)
                of_node = nodes[row] if 0 <= row < len(nodes) else 0.0
                logits.append(table[depth, prefix[-1] if prefix else 0, child] + of_node)
            values[children] = oracles.log_softmax(np.array(logits) / temperature)
        return values

    return of
