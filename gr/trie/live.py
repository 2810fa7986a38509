"""The nodes that have an allowed item below them, computed bottom-up on the device in one pass."""

import dataclasses

import jax
import jax.numpy as jnp

from gr.trie.bit_rows import collapse, expand
from gr.trie.index import TrieIndex
from gr.trie.layout import DENSE
from gr.trie.packed import PackedInts, take

_WORD = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LiveNodes:
    """The slots that hold allowed items, and the nodes above the scan depth with such slots below them."""

    slots: jax.Array  # [ceil(N / 32) + 1] uint32, one bit per slot.
    # [D]: DENSE: rows [n_t, words] of the live children; SPARSE: [ceil(n_{t+1} / 32) + 1], one bit per child.
    levels: tuple[jax.Array, ...]


@jax.jit
def live_nodes(index: TrieIndex, allowed: jax.Array) -> LiveNodes:
    """The nodes with an allowed item below them.

    Args:
        index: the trie.
        allowed: `[n]` bool by item number; items from n on are not allowed.
    """
    layout = index.layout
    items = index.item_of_slot[jnp.arange(layout.max_items, dtype=jnp.int32)]
    here = take(allowed, jnp.minimum(items, len(allowed) - 1)) & (items < len(allowed))
    here &= jnp.arange(layout.max_items) < index.item_count
    slots = pack_bits(here)

    # From the deepest level up; `live` belongs to the nodes of depth + 1.
    live = _any_within(slots, *_intervals(index.first_slot))
    levels = []
    for depth in reversed(range(layout.scan_depth)):
        if layout.levels[depth].kind == DENSE:
            bits = expand(index.children[depth])
            # Children of consecutive nodes have consecutive numbers: a row begins where the one before ends.
            first = index.first_child[depth][jnp.arange(len(bits), dtype=jnp.int32)]
            number = first[:, None] + jnp.cumsum(bits, axis=1, dtype=jnp.int32) - 1
            bits &= take(live, jnp.maximum(number, 0))
            levels.append(collapse(bits))
            live = bits.any(axis=1)
        else:
            words = pack_bits(live)
            levels.append(words)
            live = _any_within(words, *_intervals(index.first_child[depth]))
    return LiveNodes(slots, tuple(levels[::-1]))


def pack_bits(flags: jax.Array) -> jax.Array:
    """Words `[ceil(n / 32) + 1]` uint32 of flags `[n]`, the lowest bit first; the last word is 0."""
    padded = jnp.pad(flags, (0, -len(flags) % _WORD + _WORD)).reshape(-1, _WORD)
    return (padded.astype(jnp.uint32) << jnp.arange(_WORD, dtype=jnp.uint32)).sum(
        1, dtype=jnp.uint32
    )


def has_bit(words: jax.Array, places: jax.Array) -> jax.Array:
    """Bits at `places [...]` of words made by `pack_bits`, bool."""
    return ((take(words, places >> 5) >> (places & 31).astype(jnp.uint32)) & 1) != 0


def _intervals(starts: PackedInts) -> tuple[jax.Array, jax.Array]:
    bounds = starts[jnp.arange(starts.size, dtype=jnp.int32)]
    return bounds[:-1], bounds[1:]


def _any_within(words: jax.Array, begin: jax.Array, end: jax.Array) -> jax.Array:
    """Whether any bit of each interval `[begin, end)` is set: its ends have different ranks."""
    counts = jax.lax.population_count(words).astype(jnp.int32)
    before = jnp.cumsum(counts) - counts

    def rank(place: jax.Array) -> jax.Array:
        below = (jnp.uint32(1) << (place & 31).astype(jnp.uint32)) - 1
        here = jax.lax.population_count(take(words, place >> 5) & below).astype(jnp.int32)
        return take(before, place >> 5) + here

    return rank(end) > rank(begin)
