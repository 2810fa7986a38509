"""The published form of the vectorised trie (STATIC, arXiv 2602.22647), as a baseline: dense tables, then a CSR matrix.

Written from the paper's description and a reading of its reference implementation, youtube/static-constraint-decoding;
its slow or inexact parts are kept, since it is the baseline of `gr.trie`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.trie_baselines import Beams
from gr.models import Backbone
from gr.trie.sorting import SortedIds

_END = 0  # The state behind a complete semantic ID; it has no edges.
DENSE_LEVELS = (
    2  # The first token has a mask, the second a table of V * V; edges are listed for the rest.
)
BYTES_PER_PAIR = 5  # Of the table: a truth value and a state.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PublishedTrie:
    """A trie whose states are numbered: `_END`, token + 1 for each first token, then depth after depth."""

    first: jax.Array  # [V] bool: tokens that a semantic ID begins with.
    pair_exists: jax.Array  # [V, V] bool: the first two tokens.
    pair_state: jax.Array  # [V, V] int32: the state behind them.
    row_start: jax.Array  # [S + 1] int32: where each state's edges begin.
    edges: jax.Array  # [E, 2] int32: token and next state.
    branching: tuple[int, ...] = dataclasses.field(
        metadata={"static": True}
    )  # [L - 2]: most edges of one state, for depths 2..L-1.

    @staticmethod
    def build(ids: SortedIds, vocab_size: int) -> "PublishedTrie":
        """From sorted semantic IDs of at least three tokens."""
        length = len(ids.columns)
        starts = [ids.starts(depth) for depth in range(length + 1)]
        first_state = {1: 1, 2: vocab_size + 1}
        for depth in range(2, length - 1):
            first_state[depth + 1] = first_state[depth] + len(starts[depth])

        counts = [np.zeros(1, np.int64)]
        edges = np.empty((sum(map(len, starts[2:])), 2), np.int32)
        done = 0
        for depth in range(1, length):
            nodes = starts[depth + 1]
            children = np.diff(np.searchsorted(nodes, starts[depth]), append=len(nodes))
            if depth == 1:  # Unlike deeper states, these have numbers even if they do not occur.
                by_token = np.zeros(vocab_size, np.int64)
                by_token[ids.columns[0][starts[1]]] = children
                children = by_token
            counts.append(children)
            part = edges[done : done + len(nodes)]
            part[:, 0] = ids.columns[depth][nodes]
            if depth + 1 == length:
                part[:, 1] = _END
            else:
                part[:, 1] = first_state[depth + 1] + np.arange(len(nodes))
            done += len(nodes)
        row_start = np.append(0, np.cumsum(np.concatenate(counts))).astype(np.int32)

        pairs = (ids.columns[0][starts[2]], ids.columns[1][starts[2]])
        pair_exists = np.zeros((vocab_size, vocab_size), bool)
        pair_exists[pairs] = True
        pair_state = np.zeros((vocab_size, vocab_size), np.int32)
        pair_state[pairs] = first_state[2] + np.arange(len(starts[2]))
        first = np.zeros(vocab_size, bool)
        first[ids.columns[0][starts[1]]] = True
        arrays = jax.device_put((first, pair_exists, pair_state, row_start, edges))
        return PublishedTrie(*arrays, tuple(int(children.max()) for children in counts[2:]))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


@functools.partial(jax.jit, static_argnames=("num_beams", "tokens_per_beam"))
def published_search(
    backbone: Backbone,
    trie: PublishedTrie,
    history: Any,
    *,
    num_beams: int,
    tokens_per_beam: int,
) -> Beams:
    """Its beam search; inexact where `tokens_per_beam` is less than a beam's children among the second tokens.

    Args:
        backbone: see `gr.decoding.beam_search`.
        trie: the semantic IDs.
        history: the input of the backbone's `prefill`.
        num_beams: M.
        tokens_per_beam: children of one beam that may survive the second step.
    """
    logits, _, cache = backbone.prefill(history)
    log_probs = jnp.where(trie.first, jax.nn.log_softmax(logits), -jnp.inf)
    scores, tokens = jax.lax.top_k(log_probs, min(num_beams, log_probs.shape[-1]))
    paths, states = tokens[..., None], tokens + 1
    parents = jnp.zeros_like(tokens)
    for depth in range(1, len(trie.branching) + DENSE_LEVELS):
        logits, _, cache = backbone.step(tokens, backbone.reorder(cache, parents))
        log_probs = jax.nn.log_softmax(logits)
        if depth < DENSE_LEVELS:
            gains, next_tokens, next_states = _by_table(trie, states, log_probs, tokens_per_beam)
        else:
            width = trie.branching[depth - DENSE_LEVELS]
            gains, next_tokens, next_states = _by_edges(trie, states, log_probs, width)
        batch, beams, width = gains.shape
        total = (scores[..., None] + gains).reshape(batch, -1)
        scores, chosen = jax.lax.top_k(total, min(num_beams, beams * width))
        tokens = jnp.take_along_axis(next_tokens.reshape(batch, -1), chosen, axis=1)
        states = jnp.take_along_axis(next_states.reshape(batch, -1), chosen, axis=1)
        parents = chosen // width
        paths = jnp.concatenate([_one_hot_gather(paths, parents), tokens[..., None]], axis=-1)
    return Beams(paths, scores)


def _by_table(
    trie: PublishedTrie, states: jax.Array, log_probs: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities, tokens and states `[B, M, count]` of the best children of states of depth 1."""
    before = states - 1
    masked = jnp.where(trie.pair_exists[before], log_probs, -jnp.inf)
    gains, tokens = jax.lax.top_k(masked, min(count, masked.shape[-1]))
    return gains, tokens, trie.pair_state[before[..., None], tokens]


def _by_edges(
    trie: PublishedTrie, states: jax.Array, log_probs: jax.Array, width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities, tokens and states `[B, M, width]` of all children of deeper states."""
    begin, end = trie.row_start[states], trie.row_start[states + 1]
    place = begin[..., None] + jnp.arange(width)
    edge = trie.edges.at[place].get(mode="fill", fill_value=0)
    tokens = edge[..., 0]
    gains = jnp.take_along_axis(log_probs, tokens, axis=-1)
    return jnp.where(place < end[..., None], gains, -jnp.inf), tokens, edge[..., 1]


def _one_hot_gather(paths: jax.Array, parents: jax.Array) -> jax.Array:
    """Histories `[B, M, t]` of the beams' parents, as a product with one-hot rows."""
    chosen = jax.nn.one_hot(parents, paths.shape[1], dtype=paths.dtype)
    return jnp.einsum("bmp,bpt->bmt", chosen, paths)
