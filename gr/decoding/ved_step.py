"""One step of a value-guided search: scores and expands new prefixes."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from gr.decoding.checked import Checked
from gr.decoding.draws import KeyOfPart, batch_places
from gr.decoding.prior import WithPrior, log_conditionals, mixes
from gr.decoding.sampling import conditionals, logits_of
from gr.decoding.softmax import CHILDREN, LOWEST, Softmax, softmax
from gr.decoding.sources import Listing, emptied
from gr.decoding.ved_config import VedConfig
from gr.decoding.ved_selection import MANY
from gr.decoding.ved_tree import Prefixes, Tree, numbers, rows
from gr.trie import NO_NODE
from gr.trie.transitions import Depth


class ValueHead(Protocol):
    """The interface of a value head; must be a pytree."""

    def step(
        self, hidden: jax.Array, depths: jax.Array, before: Any | None
    ) -> tuple[jax.Array, Any]:
        """Values of new prefixes, from their last hidden states and what was kept of the prefixes above them.

        Args:
            hidden: `[B, n, D]`.
            depths: `[B, n]` int32.
            before: `[B, n, S, ...]` each: at place t what this method kept of the prefix of t codes; arbitrary from the
                prefix's own depth on. None where all depths are 0.

        Returns:
            Values `[B, n]`, and what is to be kept of these prefixes: a pytree of arrays `[B, n, ...]`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Search:
    """Everything that stays constant during a search."""

    backbone: Checked
    value_head: ValueHead | None
    source: Listing
    first: tuple  # The outputs of `prefill`.
    key: jax.Array | KeyOfPart
    inverse: jax.Array | None  # 1 / T; None for 1.
    config: VedConfig
    noise: jax.Array | None = None  # [B, C, K]: see `noise_of_prefixes`.

    @property
    def longest(self) -> int:
        """S = L - 1, the length of the longest evaluated prefixes."""
        return self.source.length - 1

    @property
    def over_children(self) -> bool:
        """Whether scores are normalised over a prefix's children, so that an only child has probability 1."""
        return self.config.normalise_over == CHILDREN or self.backbone.scores_children

    @property
    def has_prior(self) -> bool:
        """Whether a prior is mixed into the model's probabilities."""
        return isinstance(self.source, WithPrior)

    def fan_out(self, levels: range) -> int:
        """K, places for the children of a prefix of these depths, as `each_level` handles them."""
        most = max(self.source.fan_out(depth) for depth in levels)
        if first_at_once(self.source, levels) < levels.stop:
            most = max(most, self.source.scanned_fan_out)
        return most

    @property
    def root_terminals(self) -> int:
        """Maximum number of the root's terminal children that become candidates."""
        return self.config.num_candidates if self.over_children and self.longest else 0

    @property
    def places(self) -> int:
        """K, places that the tree has for a prefix's children.

        The root may have many children, but the budget limits how many are tried. Children of the longest prefixes are
        candidates, so each has a place.
        """
        first = self.source.fan_out(0)
        if self.longest == 0:
            return first
        first = min(first, self.config.budget + self.root_terminals)
        return max(first, self.fan_out(range(1, self.source.length)))


def expanded(
    search: Search,
    levels: range,
    tree: Tree | None,
    *,
    depths: jax.Array,
    parents: jax.Array,
    paths: jax.Array,
    tokens: jax.Array,
    states: Any,
    log_probs: jax.Array,
    model_log_probs: jax.Array | None,
    outputs: tuple,
) -> Prefixes:
    """Scores and expands new prefixes `[B, n]`, to be appended to the tree.

    Args:
        search: the search.
        levels: the depths that may occur among them; static.
        tree: the tree before; None if there is none.
        depths: of the prefixes; like `parents`, `log_probs` `[B, n]`.
        parents: see `Prefixes`.
        paths: `[B, n, S]`.
        tokens: `[B, n, S]`.
        states: the source's.
        log_probs: see `Prefixes`.
        model_log_probs: see `Prefixes`.
        outputs: logits `[B, n, V]`, hidden `[B, n, D]`, and the backbone's `latest`.
    """
    logits, hidden, stored = outputs
    child_tokens, exist, sizes = _continuations(search, levels, states, depths)
    if search.backbone.scores_children:
        child_rows, there = _child_rows(search, levels, states, depths)
        asked = child_tokens, child_rows
        if levels == range(1):  # All users share the root's children.
            asked = child_tokens[:1], child_rows[:1]
        logits = search.backbone.score_children(hidden, *asked, root=0 in levels)
        distributions = softmax(jnp.where(there, logits, -jnp.inf), search.inverse)
    else:
        logits = logits.astype(jnp.float32)
        if search.over_children:
            distributions = _over_children(search, levels, states, depths, logits)
        else:
            distributions = softmax(logits, search.inverse)
        logits = logits_of(logits, child_tokens)
    values, of_value = _values(search, levels, tree, depths, paths, hidden)
    nan = distributions.nan | jnp.isnan(values)
    exist &= ~nan[..., None]  # A prefix with NaN has no children.
    lone = search.over_children & (sizes == 1)
    terminal = exist & (lone | (depths == search.longest)[..., None])
    of_model = child_log_probs = jnp.where(exist, distributions.of(logits), -jnp.inf)
    priority, _ = conditionals(logits, exist, search.inverse)
    if model_log_probs is not None:
        child_log_probs = log_conditionals(
            search.source, depths, states, child_tokens, model_log_probs, of_model
        )
        mixed, _ = conditionals(child_log_probs, exist, None)
        priority = jnp.where(mixes(search.source)[:, None, None], mixed, priority)
    entropies = -jnp.where(exist, jnp.exp(priority) * priority, 0.0).sum(-1)
    grows = exist & ~terminal
    if search.config.sampling_temperature:
        users, count = depths.shape
        if tree is None:
            noise = _noise(search.key, users, count, child_tokens.shape[-1])
        else:
            noise = rows(search.noise, numbers(tree, count))[..., : child_tokens.shape[-1]]
        priority = priority + search.config.sampling_temperature * noise
    if search.config.crowding:
        sizes = jnp.maximum(sizes, 1).astype(jnp.float32)
        priority = priority - search.config.crowding * jnp.log(sizes)
    return Prefixes(
        depths=depths,
        parents=parents,
        paths=paths,
        tokens=tokens,
        log_probs=log_probs,
        values=jnp.where(nan, 0.0, jnp.clip(values, LOWEST, -LOWEST)),
        entropies=entropies,
        visits=jnp.zeros_like(depths),
        unexpanded=grows.sum(-1, dtype=jnp.int32),
        child_tokens=child_tokens,
        child_log_probs=child_log_probs,
        terminal=terminal,
        priority=jnp.where(grows, priority, -jnp.inf),
        states=states,
        of_value=of_value,
        stored=stored,
        model_log_probs=model_log_probs,
        child_model_log_probs=None if model_log_probs is None else of_model,
        nan=nan,
        flawed=distributions.flawed | ~jnp.isfinite(values),
    )


def fitted(search: Search, block: Prefixes) -> Prefixes:
    """Cuts the root's children to the tree's places: those of highest priority, and the likeliest terminal ones."""
    if block.child_tokens.shape[-1] <= search.places:
        return block
    priority, to_try = jax.lax.top_k(block.priority, search.places - search.root_terminals)
    of_terminal = jnp.where(block.terminal, block.child_log_probs, -jnp.inf)
    terminal, likeliest = jax.lax.top_k(of_terminal, search.root_terminals)
    kept = jnp.concatenate([priority, terminal], axis=-1) > -jnp.inf
    chosen = jnp.concatenate([to_try, likeliest], axis=-1)
    log_probs = jnp.take_along_axis(block.child_log_probs, chosen, axis=-1)
    behind = jnp.arange(search.places) >= priority.shape[-1]
    return dataclasses.replace(
        block,
        unexpanded=(priority > -jnp.inf).sum(-1, dtype=jnp.int32),
        child_tokens=jnp.take_along_axis(block.child_tokens, chosen, axis=-1),
        child_log_probs=jnp.where(kept, log_probs, -jnp.inf),
        terminal=kept & behind,
        priority=jnp.concatenate([priority, jnp.full_like(terminal, -jnp.inf)], axis=-1),
        child_model_log_probs=jax.tree.map(
            lambda part: jnp.take_along_axis(part, chosen, axis=-1), block.child_model_log_probs
        ),
    )


def _continuations(
    search: Search, levels: range, states: Any, depths: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Children of prefixes of several depths: tokens `[B, n, K]`, which exist, and their numbers of items.

    Numbers of items are 0 where nothing depends on them.
    """
    shape = (*depths.shape, search.fan_out(levels))
    child_tokens = sizes = jnp.zeros(shape, jnp.int32)
    exist = jnp.zeros(shape, bool)
    fit = functools.partial(_padded, places=shape[-1])
    for depth, here in each_level(search.source, levels, depths):
        of_depth = emptied(states, here)
        tokens, there = search.source.continuations(depth, of_depth)
        child_tokens = jnp.where(here[..., None], fit(tokens), child_tokens)
        exist |= fit(there) & here[..., None]
        if search.over_children or search.config.crowding:
            sizes += fit(search.source.sizes(depth, of_depth))
    return child_tokens, exist, sizes


def _child_rows(
    search: Search, levels: range, states: Any, depths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Listing.child_rows` of prefixes of several depths, `[B, n, K]` each."""
    shape = (*depths.shape, search.fan_out(levels))
    found, exist = jnp.full(shape, NO_NODE), jnp.zeros(shape, bool)
    for depth, here in each_level(search.source, levels, depths):
        of_depth, there = search.source.child_rows(depth, emptied(states, here))
        of_depth = _padded(of_depth, places=shape[-1])
        found = jnp.where(here[..., None], of_depth, found)
        exist |= _padded(there, places=shape[-1]) & here[..., None]
    return found, exist


def _padded(listed: jax.Array, places: int) -> jax.Array:
    """`[B, n, K']` with `places >= K'` places."""
    return jnp.pad(listed, ((0, 0), (0, 0), (0, places - listed.shape[-1])))


def first_at_once(source: Listing, levels: range) -> int:
    """The first of the scanned levels that are handled all at once; `levels.stop` if there are not many."""
    first = max(levels.start, source.scan_depth)
    return first if levels.stop - first > MANY else levels.stop


def each_level(
    source: Listing, levels: range, depths: jax.Array
) -> Iterator[tuple[Depth, jax.Array]]:
    """The static `levels` one by one, each with its prefixes `[B, n]`; many scanned levels all at once.

    One by one, no prefix scans more slots than its level has, but every level makes the program longer.
    """
    first = first_at_once(source, levels)
    for depth in range(levels.start, first):
        yield depth, depths == depth
    if first < levels.stop:
        yield jnp.clip(depths, first, levels.stop - 1), depths >= first


def _over_children(
    search: Search, levels: range, states: Any, depths: jax.Array, logits: jax.Array
) -> Softmax:
    """The distributions `[B, n]` over the trie's children of prefixes of several depths."""
    found = Softmax(jnp.zeros(depths.shape), jnp.zeros(depths.shape), search.inverse)
    for depth, here in each_level(search.source, levels, depths):
        mine = search.source.softmax(depth, emptied(states, here), logits, search.inverse)
        largest = jnp.where(here, mine.largest, found.largest)
        log_total = jnp.where(here, mine.log_total, found.log_total)
        found = Softmax(largest, log_total, search.inverse)
    return found


def noise_of_prefixes(search: Search, users: int) -> jax.Array | None:
    """Gumbel noise `[B, C, K]` of all prefixes that a tree has room for; see `prefix_noise`. None without sampling.

    Drawn once for all steps: the program of a random generator is long, and each step would have one.
    """
    if not search.config.sampling_temperature or not search.longest:
        return None
    fan_out = search.fan_out(range(1, search.source.length))
    return _noise(search.key, users, search.config.capacity, fan_out)


def _noise(key: jax.Array | KeyOfPart, users: int, count: int, fan_out: int) -> jax.Array:
    """Gumbel noise `[B, n, K]` of the first n prefixes of each user."""
    key, places = batch_places(key, users)
    of_user = jax.vmap(prefix_noise, in_axes=(None, None, 0, None))
    of_users = jax.vmap(of_user, in_axes=(None, 0, None, None))
    return of_users(key, places, jnp.arange(count, dtype=jnp.int32), fan_out)


def prefix_noise(key: jax.Array, user: jax.Array, number: jax.Array, fan_out: int) -> jax.Array:
    """Gumbel noise `[K]` of one prefix's codes, keyed by its user's place in the batch and its number."""
    key = jax.random.fold_in(jax.random.fold_in(key, user), number)
    return jax.random.gumbel(key, (fan_out,))


def _values(
    search: Search,
    levels: range,
    tree: Tree | None,
    depths: jax.Array,
    paths: jax.Array,
    hidden: jax.Array,
) -> tuple[jax.Array, Any]:
    """V `[B, n]` of prefixes with these last hidden states, and what is kept for longer ones; 0 if they do not grow."""
    if search.value_head is None:
        return jnp.zeros(depths.shape), ()
    if levels.start >= search.longest:
        kept = () if tree is None else tree.prefixes.of_value
        return jnp.zeros(depths.shape), jax.tree.map(
            lambda part: jnp.zeros_like(part, shape=(*depths.shape, *part.shape[2:])), kept
        )
    places = min(levels.stop, search.longest) - 1  # Of the prefixes above.
    before = None
    if tree is not None:
        before = jax.tree.map(lambda part: rows(part, paths[..., :places]), tree.prefixes.of_value)
    values, kept = search.value_head.step(hidden, jnp.minimum(depths, places), before)
    return jnp.where(depths < search.longest, values, 0.0), kept
