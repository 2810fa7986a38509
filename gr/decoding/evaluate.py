"""One step of a value-guided search: what is to be known of prefixes that the model has just evaluated."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from gr.decoding.candidates import DecodingError
from gr.decoding.checked import Checked
from gr.decoding.choose import CHILDREN, check_normalisation, check_weights
from gr.decoding.sampling import conditionals, logits_of
from gr.decoding.selection import MANY, Weights, check_selection
from gr.decoding.softmax import LOWEST, Softmax, softmax
from gr.decoding.sources import Listing, emptied
from gr.decoding.tree import Prefixes, Tree, rows
from gr.trie.transitions import Depth


class ValueHead(Protocol):
    """What a search knows of a value head; must be a pytree."""

    def at(self, states: jax.Array, depths: jax.Array) -> jax.Array:
        """Values `[...]` of the prefixes of `depths [...]` codes, from the states of their positions.

        `states [..., S, D]`: place t has the state of the prefix of t codes, of which place 0 predicts the first code.
        Places beyond a prefix's depth hold anything.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Options:
    """What `ved_search` may be asked for; static under `jit`."""

    budget: int
    num_candidates: int
    initial_beams: int
    selection: str
    weights: Weights
    sampling_temperature: float
    crowding: float
    width: int
    normalise_over: str
    keep_tree: bool

    def __post_init__(self):
        for name in ("num_candidates", "width"):
            if getattr(self, name) < 1:
                raise DecodingError(f"{name} must be at least 1, got {getattr(self, name)}")
        names = ("budget", "initial_beams", "sampling_temperature", "crowding")
        check_weights(**{name: getattr(self, name) for name in names})
        check_selection(self.selection, self.weights)
        check_normalisation(self.normalise_over)

    @property
    def limit(self) -> int:
        """Most prefixes in a tree, the empty one included."""
        return self.budget + 1

    def check_budget(self, length: int) -> None:
        """Raises DecodingError unless the beam search can be paid for."""
        least = self.initial_beams * (length - 1)
        if self.budget < least:
            raise DecodingError(
                f"budget={self.budget} must be at least {least}, what a beam search with "
                f"{self.initial_beams} beams over {length} codes takes: raise it or lower initial_beams"
            )


@dataclasses.dataclass(frozen=True)
class Search:
    """What stays the same throughout."""

    backbone: Checked
    value_head: ValueHead | None
    source: Listing
    first: tuple  # What `prefill` returned.
    key: jax.Array
    inverse: jax.Array | None  # 1 / T; None for 1.
    options: Options

    @property
    def longest(self) -> int:
        """S = L - 1, codes of the longest prefixes that are evaluated."""
        return self.source.length - 1

    @property
    def over_children(self) -> bool:
        """Whether scores are over a prefix's children, so that a code that is the only one has probability 1."""
        return self.options.normalise_over == CHILDREN

    def fan_out(self, levels: range) -> int:
        """The most codes that may follow a prefix of these depths."""
        return max(self.source.fan_out(depth) for depth in levels)

    @property
    def root_ends(self) -> int:
        """How many of the root's codes behind which one semantic ID is left can be candidates."""
        return self.options.num_candidates if self.over_children and self.longest else 0

    @property
    def places(self) -> int:
        """K, places that the tree has for the codes that may follow a prefix.

        Many codes may follow the root, of which no more can be tried than the budget allows. What may follow a longest
        prefix is a candidate, and all of it has a place.
        """
        first = self.source.fan_out(0)
        if self.longest == 0:
            return first
        first = min(first, self.options.budget + self.root_ends)
        return max(first, self.fan_out(range(1, self.source.length)))


def evaluated(
    search: Search,
    levels: range,
    tree: Tree | None,
    *,
    depths: jax.Array,
    parents: jax.Array,
    paths: jax.Array,
    codes: jax.Array,
    states: Any,
    log_probs: jax.Array,
    outputs: tuple,
) -> Prefixes:
    """Prefixes `[B, n]` that the model has just evaluated, to be appended to the tree.

    Args:
        search: the search.
        levels: the depths there may be among them; static.
        tree: the tree before; None if there is none.
        depths: of the prefixes; like `parents`, `log_probs` `[B, n]`.
        parents: see `Prefixes`.
        paths: `[B, n, S]`.
        codes: `[B, n, S]`.
        states: the source's.
        log_probs: see `Prefixes`.
        outputs: logits `[B, n, V]`, hidden `[B, n, D]`, and what the backbone stores.
    """
    logits, hidden, stored = outputs
    logits = logits.astype(jnp.float32)
    if search.over_children:
        chances = _over_children(search, levels, states, depths, logits)
    else:
        chances = softmax(logits, search.inverse)
    values = _values(search, levels, tree, depths, paths, hidden)
    nan = chances.nan | jnp.isnan(values)
    ways, exist, sizes = _continuations(search, levels, states, depths)
    exist &= ~nan[..., None]  # Nothing follows where nothing is known.
    lone = search.over_children & (sizes == 1)
    ends = exist & (lone | (depths == search.longest)[..., None])
    logits = logits_of(logits, ways)
    turns, _ = conditionals(logits, exist, search.inverse)
    entropies = -jnp.where(exist, jnp.exp(turns) * turns, 0.0).sum(-1)
    grows = exist & ~ends
    if search.options.sampling_temperature:
        noise = _noise(search.key, depths.shape, tree, ways.shape[-1])
        turns = turns + search.options.sampling_temperature * noise
    if search.options.crowding:
        turns = turns - search.options.crowding * jnp.log(jnp.maximum(sizes, 1).astype(jnp.float32))
    return Prefixes(
        depths=depths,
        parents=parents,
        paths=paths,
        codes=codes,
        log_probs=log_probs,
        values=jnp.where(nan, 0.0, jnp.clip(values, LOWEST, -LOWEST)),
        entropies=entropies,
        visits=jnp.zeros_like(depths),
        unexpanded=grows.sum(-1, dtype=jnp.int32),
        ways=ways,
        gains=jnp.where(exist, chances.of(logits), -jnp.inf),
        ends=ends,
        turns=jnp.where(grows, turns, -jnp.inf),
        states=states,
        hidden=hidden,
        stored=stored,
        nan=nan,
        flawed=chances.flawed | ~jnp.isfinite(values),
    )


def fitted(search: Search, block: Prefixes) -> Prefixes:
    """A root with no more codes than the tree has places: those whose turn comes first, and the most probable ends."""
    if block.ways.shape[-1] <= search.places:
        return block
    turns, of_turns = jax.lax.top_k(block.turns, search.places - search.root_ends)
    ends, of_ends = jax.lax.top_k(jnp.where(block.ends, block.gains, -jnp.inf), search.root_ends)
    kept = jnp.concatenate([turns, ends], axis=-1) > -jnp.inf
    chosen = jnp.concatenate([of_turns, of_ends], axis=-1)
    gains = jnp.take_along_axis(block.gains, chosen, axis=-1)
    behind = jnp.arange(search.places) >= turns.shape[-1]
    return dataclasses.replace(
        block,
        unexpanded=(turns > -jnp.inf).sum(-1, dtype=jnp.int32),
        ways=jnp.take_along_axis(block.ways, chosen, axis=-1),
        gains=jnp.where(kept, gains, -jnp.inf),
        ends=kept & behind,
        turns=jnp.concatenate([turns, jnp.full_like(ends, -jnp.inf)], axis=-1),
    )


def _continuations(
    search: Search, levels: range, states: Any, depths: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens `[B, n, K]` that may follow prefixes of several depths, which of them do, and how many items are behind.

    Numbers of items are 0 where nothing depends on them.
    """
    shape = (*depths.shape, search.fan_out(levels))
    ways = sizes = jnp.zeros(shape, jnp.int32)
    exist = jnp.zeros(shape, bool)

    def fit(listed: jax.Array) -> jax.Array:
        """K places; the prefixes have nothing in those left out."""
        missing = shape[-1] - listed.shape[-1]
        if missing < 0:
            return listed[..., : shape[-1]]
        return jnp.pad(listed, ((0, 0), (0, 0), (0, missing)))

    for depth, here in each_level(search.source, levels, depths):
        of_depth = emptied(states, here)
        tokens, there = search.source.continuations(depth, of_depth)
        ways = jnp.where(here[..., None], fit(tokens), ways)
        exist |= fit(there) & here[..., None]
        if search.over_children or search.options.crowding:
            sizes += fit(search.source.sizes(depth, of_depth))
    return ways, exist, sizes


def each_level(
    source: Listing, levels: range, depths: jax.Array
) -> Iterator[tuple[Depth, jax.Array]]:
    """The static `levels` one by one, each with the prefixes `[B, n]` that are at it; many scanned ones all at once.

    One by one no prefix scans more slots than its level has; but every level makes the program longer.
    """
    first = max(levels.start, source.scanned)
    if levels.stop - first <= MANY:
        first = levels.stop
    for depth in range(levels.start, first):
        yield depth, depths == depth
    if first < levels.stop:
        yield jnp.clip(depths, first, levels.stop - 1), depths >= first


def _over_children(
    search: Search, levels: range, states: Any, depths: jax.Array, logits: jax.Array
) -> Softmax:
    """The distributions `[B, n]` over what the trie has behind prefixes of several depths."""
    found = Softmax(jnp.zeros(depths.shape), jnp.zeros(depths.shape), search.inverse)
    for depth, here in each_level(search.source, levels, depths):
        mine = search.source.softmax(depth, emptied(states, here), logits, search.inverse)
        largest = jnp.where(here, mine.largest, found.largest)
        log_total = jnp.where(here, mine.log_total, found.log_total)
        found = Softmax(largest, log_total, search.inverse)
    return found


def _noise(key: jax.Array, shape: tuple[int, int], tree: Tree | None, fan_out: int) -> jax.Array:
    """Gumbel variables `[B, n, K]` of the next prefixes; see `prefix_noise`."""
    batch, count = shape
    first = jnp.zeros(batch, jnp.int32) if tree is None else tree.size
    number = first[:, None] + jnp.arange(count, dtype=jnp.int32)
    user = jnp.broadcast_to(jnp.arange(batch)[:, None], number.shape)
    return jnp.vectorize(lambda u, n: prefix_noise(key, u, n, fan_out), signature="(),()->(k)")(
        user, number
    )


def prefix_noise(key: jax.Array, user: jax.Array, number: jax.Array, fan_out: int) -> jax.Array:
    """The Gumbel variables `[K]` of one prefix's codes, by its user's place in the batch and its number."""
    key = jax.random.fold_in(jax.random.fold_in(key, user), number)
    return jax.random.gumbel(key, (fan_out,))


def _values(
    search: Search,
    levels: range,
    tree: Tree | None,
    depths: jax.Array,
    paths: jax.Array,
    hidden: jax.Array,
) -> jax.Array:
    """V `[B, n]` of prefixes with these last hidden states; 0 where they do not grow."""
    if search.value_head is None or levels.start >= search.longest:
        return jnp.zeros(depths.shape)
    # Positions behind all of these prefixes need no states: values are causal.
    place = jnp.arange(min(levels.stop, search.longest))
    last = place == depths[..., None]
    along = hidden[:, :, None, :]
    if tree is not None:
        before = rows(tree.prefixes.hidden, paths[..., : len(place)])
        along = jnp.where(last[..., None], along, before)
    along = jnp.broadcast_to(along, (*last.shape, hidden.shape[-1]))
    values = search.value_head.at(along, jnp.minimum(depths, len(place) - 1))
    return jnp.where(depths < search.longest, values, 0.0)
