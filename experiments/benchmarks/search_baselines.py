"""Value-guided search as a walk over Python objects, one node of one user at a time."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.decoding import SearchConfig
from gr.models import ValueHead, path_states


@dataclasses.dataclass(eq=False)
class Node:
    """A prefix that the model has evaluated."""

    prefix: tuple[int, ...]  # Tokens.
    parent: "Node | None"
    log_prob: float
    log_probs: np.ndarray  # [V], of the next token.
    states: jax.Array  # [L - 1, D]: the hidden states of its prefixes.
    cache: Any  # The backbone's, of this prefix alone; or the history, where nothing is cached.
    merit: float = 0.0  # G.
    priority: dict[int, float] = dataclasses.field(default_factory=dict)  # Of tokens not yet tried.
    visits: int = 0
    children: list["Node"] = dataclasses.field(default_factory=list)

    def up(self) -> Iterator["Node"]:
        """The node and those above it."""
        yield self
        if self.parent is not None:
            yield from self.parent.up()


class PythonWalk:
    """The published search, "ved" of `ved_search`, with W = 1; the model's part is compiled, one program a depth.

    A node keeps the keys and values of its prefix; or, where they are not `cached`, it costs a forward pass over the
    history and the prefix, as in the plainest program that is right.
    """

    def __init__(
        self,
        model: Any,
        value_head: ValueHead,
        tokens: np.ndarray,
        config: SearchConfig,
        *,
        cached: bool = True,
    ):
        self._model, self._value_head, self._config = model, value_head, config
        self._cached = cached
        self._longest = tokens.shape[1] - 1
        children: dict[tuple[int, ...], set[int]] = {}
        for row in tokens.tolist():
            for depth, token in enumerate(row):
                children.setdefault(tuple(row[:depth]), set()).add(token)
        self._children = {prefix: sorted(tokens) for prefix, tokens in children.items()}
        self._rng = np.random.default_rng(0)

    def __call__(self, history: jax.Array) -> tuple[list[tuple[float, tuple[int, ...]]], int]:
        """`(score, semantic ID)` of one user, `history [1, T, L]`, best first, and how many nodes were evaluated."""
        outputs = _prefill(self._model, self._value_head, history, longest=self._longest)
        if not self._cached:
            outputs = (*outputs[:-1], history)
        tree = [self._node((), None, 0.0, outputs)]
        self._beam_search(tree)
        while len(tree) <= self._config.budget and any(node.priority for node in tree):
            node = self._descend(tree)
            self._grow(tree, node, max(node.priority, key=node.priority.__getitem__))
        found = [
            (node.log_prob + float(node.log_probs[token]), (*node.prefix, token))
            for node in tree
            if len(node.prefix) == self._longest
            for token in self._children[node.prefix]
        ]
        return sorted(found, reverse=True)[: self._config.num_candidates], len(tree) - 1

    def _node(
        self, prefix: tuple[int, ...], parent: Node | None, log_prob: float, outputs: tuple
    ) -> Node:
        log_probs, value, states, cache = outputs
        log_probs = np.asarray(log_probs)
        node = Node(prefix, parent, log_prob, log_probs, states, cache)
        allowed = self._children[prefix]
        among = log_probs[allowed]
        among = among - np.logaddexp.reduce(among)
        entropy = -float((np.exp(among) * among).sum())
        node.merit = self._config.entropy_weight * entropy
        if len(prefix) < self._longest:
            node.merit += float(value)
            noisy = among + self._rng.gumbel(size=len(allowed))
            node.priority = dict(zip(allowed, noisy.tolist(), strict=True))
        return node

    def _grow(self, tree: list[Node], node: Node, token: int) -> Node:
        """Evaluates the prefix that is a token longer."""
        del node.priority[token]
        for above in node.up():
            above.visits += 1
        prefix = (*node.prefix, token)
        outputs = self._evaluated(node, prefix)
        log_prob = node.log_prob + float(node.log_probs[token])
        child = self._node(prefix, node, log_prob, outputs)
        node.children.append(child)
        tree.append(child)
        return child

    def _evaluated(self, node: Node, prefix: tuple[int, ...]) -> tuple:
        """The model's outputs for the prefix that continues a node."""
        if self._cached:
            return _step(
                self._model,
                self._value_head,
                prefix[-1],
                node.cache,
                node.states,
                depth=len(prefix),
            )
        return _forward(self._model, self._value_head, node.cache, jnp.array([[prefix]], jnp.int32))

    def _beam_search(self, tree: list[Node]) -> None:
        alive = list(tree)
        for _ in range(self._longest):
            grown = [
                (node.log_prob + float(node.log_probs[token]), node, token)
                for node in alive
                for token in self._children[node.prefix]
            ]
            grown.sort(key=lambda entry: -entry[0])
            best = grown[: self._config.initial_beams]
            alive = [self._grow(tree, node, token) for _, node, token in best]

    def _descend(self, tree: list[Node]) -> Node:
        """The node that grows next."""
        by_depth: dict[int, list[float]] = {}
        for node in tree:
            by_depth.setdefault(len(node.prefix), []).append(node.merit)
        means = {depth: sum(merits) / len(merits) for depth, merits in by_depth.items()}
        able = [node for node in tree if node.priority]
        fit = {node for node in able if node.merit >= means[len(node.prefix)] - 1e-6} or set(able)
        below = {above for node in fit for above in node.up()}
        root = tree[0]

        def priority(node: Node) -> float:
            spread = math.sqrt(math.log(root.visits + 1) / (node.visits + 1))
            return node.merit + self._config.exploration * spread

        node = root
        while True:
            onward = [child for child in node.children if child in below]
            best = max(onward, key=priority, default=None)
            if best is None or (node in fit and priority(node) >= priority(best)):
                return node
            node = best


@functools.partial(jax.jit, static_argnames="longest")
def _prefill(model: Any, value_head: ValueHead, history: jax.Array, *, longest: int) -> tuple:
    logits, hidden, cache = model.prefill(history)
    states = jnp.zeros((longest, hidden.shape[-1]), hidden.dtype).at[0].set(hidden[0])
    return jax.nn.log_softmax(logits[0]), value_head(states)[0], states, cache


@functools.partial(jax.jit, static_argnames="depth")
def _step(
    model: Any,
    value_head: ValueHead,
    token: jax.Array,
    cache: Any,
    states: jax.Array,
    *,
    depth: int,
) -> tuple:
    logits, hidden, cache = model.step(jnp.reshape(token, (1, 1)), cache)
    value = 0.0
    if depth < len(states):
        states = states.at[depth].set(hidden[0, 0])
        value = value_head(states)[depth]
    return jax.nn.log_softmax(logits[0, 0]), value, states, cache


@jax.jit
def _forward(model: Any, value_head: ValueHead, history: jax.Array, prefix: jax.Array) -> tuple:
    states = path_states(model, history, prefix)[0, 0]
    value = value_head(states)[-1]
    return jax.nn.log_softmax(model.logits(states[-1])), value, states, history
