"""Moves on the trie, on the device: the nodes of prefixes, their children, their slots and items.

The depth of nodes is a static number, since each kind of level has its own algorithm. All SCAN levels share one
algorithm: for them the depth may be an array.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gr.trie.bit_rows import expand, locate, rank, select
from gr.trie.index import NO_NODE, ROOT, TrieIndex
from gr.trie.inputs import NO_ITEM, as_int32, integers
from gr.trie.layout import DENSE, SCAN, SPARSE, TrieError
from gr.trie.packed import take

Depth = int | jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nodes:
    """Nodes of one depth t, `[...]`: number `begin` alone if t < D, else the slots `begin` to `end` (exclusive).

    An empty interval is no node. If t < D, `end` is `begin + 1`.
    """

    begin: jax.Array  # int32.
    end: jax.Array  # int32.

    @property
    def exist(self) -> jax.Array:
        """Which of them exist, bool."""
        return self.end > self.begin

    @property
    def names(self) -> jax.Array:
        """Names, unique within a depth: a node's number, or its first slot; `NO_NODE` where there is none."""
        return jnp.where(self.exist, self.begin, NO_NODE)


def root(index: TrieIndex, shape: tuple[int, ...]) -> Nodes:
    """The root, repeated in `shape`."""
    last = index.item_count if index.layout.scan_depth == 0 else 1
    begin = jnp.full(shape, ROOT, jnp.int32)
    return Nodes(begin, jnp.broadcast_to(last, shape).astype(jnp.int32))


def enter(index: TrieIndex, depth: int, numbers: jax.Array, exist: jax.Array) -> Nodes:
    """The nodes with these numbers `[...]` at `depth` <= D; where they do not exist, number 0 must be given."""
    if depth < index.layout.scan_depth:
        begin, end = numbers, numbers + 1
    else:
        begin, end = index.first_slot.interval(numbers)
    return Nodes(jnp.where(exist, begin, 0), jnp.where(exist, end, 0))


def child_numbers(index: TrieIndex, depth: int, nodes: Nodes) -> tuple[jax.Array, jax.Array]:
    """Numbers `[..., K]` of the children of nodes at a SPARSE level, K = `max_children`, and which exist."""
    level = index.layout.levels[depth]
    begin, end = index.first_child[depth].interval(nodes.begin)
    child = begin[..., None] + jnp.arange(level.max_children, dtype=jnp.int32)
    exists = (child < end[..., None]) & nodes.exist[..., None]
    return jnp.minimum(child, level.max_nodes - 1), exists


def listed_tokens(index: TrieIndex, depth: int, numbers: jax.Array) -> jax.Array:
    """Tokens of the nodes with these numbers at depth + 1, below a SPARSE level."""
    return index.children[depth][numbers] + index.layout.levels[depth].base


def kind_of(index: TrieIndex, depth: Depth) -> str:
    """How the level behind nodes of this depth is stored."""
    return index.layout.levels[depth].kind if isinstance(depth, int) else SCAN


def scanned_slots(index: TrieIndex, depth: Depth, nodes: Nodes) -> tuple[jax.Array, jax.Array]:
    """Slots `[..., W]` of nodes at SCAN levels, W = `max_slots`, and which of them are theirs."""
    layout = index.layout
    # Of several levels, the first has the nodes with most slots.
    level = layout.levels[depth if isinstance(depth, int) else layout.scan_depth]
    slots = nodes.begin[..., None] + jnp.arange(level.max_slots, dtype=jnp.int32)
    return jnp.minimum(slots, layout.max_items - 1), slots < nodes.end[..., None]


def slot_tokens(index: TrieIndex, depth: Depth, slots: jax.Array) -> jax.Array:
    """Tokens of a SCAN level of the semantic IDs in these slots; `[..., W]` for `[...]` depths."""
    layout = index.layout
    if isinstance(depth, int):
        level = layout.levels[depth]
        return index.table.part(slots, layout.place_in_table(depth), level.bits) + level.base
    places = [
        (layout.place_in_table(level), layout.levels[level].bits, layout.levels[level].base)
        for level in range(layout.scan_depth, layout.length)
    ]
    of_depth = jnp.asarray(places, jnp.int32)[depth - layout.scan_depth]
    first, bits, base = jnp.moveaxis(of_depth[..., None, :], -1, 0)
    return index.table.part(slots, first, bits) + base


def children(index: TrieIndex, depth: Depth, nodes: Nodes) -> tuple[Nodes, jax.Array]:
    """All children of nodes of one depth, in token order.

    Args:
        index: the trie.
        depth: depth t of `nodes`, 0..L-1; static, or `[...]` at SCAN levels.
        nodes: `[...]`.

    Returns:
        The children `[..., K]`, and their tokens `[..., K]` int32. K is the level's span, `max_children` or
        `max_slots`, by its kind; some of them may not exist.
    """
    tokens, exist = child_tokens(index, depth, nodes)
    if kind_of(index, depth) == SCAN:
        slots, inside = scanned_slots(index, depth, nodes)
        same = (tokens[..., :, None] == tokens[..., None, :]) & inside[..., None, :]
        end = slots + same.sum(-1, dtype=jnp.int32)
        return Nodes(jnp.where(exist, slots, 0), jnp.where(exist, end, 0)), tokens
    place = jnp.cumsum(exist, axis=-1, dtype=jnp.int32) - 1
    number = _first_child_of(index, depth, nodes) + place
    return enter(index, depth + 1, jnp.where(exist, number, 0), exist), tokens


def few_children(index: TrieIndex, depth: int, nodes: Nodes) -> tuple[Nodes, jax.Array]:
    """`children` in as few places as a node has children: a SCAN level has a place for every item below it."""
    below, tokens = children(index, depth, nodes)
    most = index.layout.levels[depth].max_children
    if kind_of(index, depth) != SCAN or most >= tokens.shape[-1]:
        return below, tokens
    _, first = jax.lax.top_k(below.exist.astype(jnp.float32), most)  # Of equals, those to the left.
    return jax.tree.map(lambda x: jnp.take_along_axis(x, first, axis=-1), (below, tokens))


def child_tokens(index: TrieIndex, depth: Depth, nodes: Nodes) -> tuple[jax.Array, jax.Array]:
    """Tokens that may follow nodes of one depth, and which exist; `children` also finds the nodes.

    Args:
        index: the trie.
        depth: depth t of `nodes`, 0..L-1; static, or `[...]` at SCAN levels.
        nodes: `[...]`.

    Returns:
        Tokens `[..., K]` int32, repeated where a SCAN level meets several items of one child; which exist, `[..., K]`.
    """
    kind = kind_of(index, depth)
    if kind == DENSE:
        level = index.layout.levels[depth]
        bits = expand(take(index.children[depth], nodes.begin)) & nodes.exist[..., None]
        return jnp.broadcast_to(jnp.arange(level.span) + level.base, bits.shape), bits
    if kind == SPARSE:
        number, exists = child_numbers(index, depth, nodes)
        return listed_tokens(index, depth, number), exists
    slots, inside = scanned_slots(index, depth, nodes)
    tokens = slot_tokens(index, depth, slots)
    differs = jnp.concatenate(
        [jnp.ones_like(inside[..., :1]), tokens[..., 1:] != tokens[..., :-1]], axis=-1
    )
    return tokens, inside & differs


def node_rows(index: TrieIndex, depth: Depth, nodes: Nodes) -> jax.Array:
    """Rows `[...]` int32 of nodes of `depth` 1..L in arrays with a row for every node; `NO_NODE` where there is none.

    See `Layout.node_offsets`. Equal prefixes have equal rows in all indexes of the same semantic IDs and layout.
    """
    offsets = index.layout.node_offsets
    first = offsets[depth - 1] if isinstance(depth, int) else jnp.asarray(offsets)[depth - 1]
    return jnp.where(nodes.exist, nodes.begin + first, NO_NODE)


def child_sizes(index: TrieIndex, depth: Depth, nodes: Nodes) -> jax.Array:
    """How many items are below each child of nodes of one depth, `[..., K]` int32, as `child_tokens` lists them."""
    below, _ = children(index, depth, nodes)
    begin, end = slots_of(index, depth + 1, below)
    return jnp.where(below.exist, end - begin, 0)


def _first_child_of(index: TrieIndex, depth: int, nodes: Nodes) -> jax.Array:
    """Number `[..., 1]` of the first child of nodes above the scan depth."""
    return index.first_child[depth][nodes.begin][..., None]


def child_logits(index: TrieIndex, depth: Depth, nodes: Nodes, logits: jax.Array) -> jax.Array:
    """The logits `[..., K]`, of `[..., V]`, of tokens that may follow nodes `[...]` of one depth; -inf at no child."""
    tokens, exist = child_tokens(index, depth, nodes)
    rivals = jnp.take_along_axis(logits, tokens, axis=-1, mode="clip")
    return jnp.where(exist, rivals, -jnp.inf)


def child_log_sum_exp(index: TrieIndex, depth: Depth, nodes: Nodes, logits: jax.Array) -> jax.Array:
    """Log-sum-exp of the logits of tokens that may follow nodes of one depth; arbitrary where there is no node.

    Args:
        index: the trie.
        depth: depth t of `nodes`, 0..L-1; static, or `[...]` at SCAN levels.
        nodes: `[...]`.
        logits: `[..., V]` float32.

    Returns:
        `[...]`.
    """
    rivals = child_logits(index, depth, nodes, logits)
    # Prevents NaN gradients from an empty sum.
    return jax.nn.logsumexp(jnp.where(nodes.exist[..., None], rivals, 0.0), axis=-1)


def descend(index: TrieIndex, depth: Depth, nodes: Nodes, tokens: jax.Array) -> Nodes:
    """The child of each node `[...]` of one depth by one token `[...]`; none where there is no such child."""
    kind, tokens = kind_of(index, depth), as_int32(tokens)
    if kind == DENSE:
        level = index.layout.levels[depth]
        offset = tokens - level.base
        known = nodes.exist & (offset >= 0) & (offset < level.span)
        offset = jnp.where(known, offset, 0)
        rows = take(index.children[depth], nodes.begin)
        word, bit = locate(offset, level.span)
        here = jnp.take_along_axis(rows, word[..., None], axis=-1)[..., 0]
        exists = known & ((here & bit) != 0)
        number = _first_child_of(index, depth, nodes)[..., 0] + rank(rows, offset)
        return enter(index, depth + 1, jnp.where(exists, number, 0), exists)
    if kind == SPARSE:
        number, exists = _find_listed(index, depth, nodes, tokens)
        return enter(index, depth + 1, jnp.where(exists, number, 0), exists)
    slots, inside = scanned_slots(index, depth, nodes)
    found = inside & (slot_tokens(index, depth, slots) == tokens[..., None])
    begin = nodes.begin + found.argmax(-1).astype(jnp.int32)
    count = found.sum(-1, dtype=jnp.int32)
    return Nodes(jnp.where(count > 0, begin, 0), jnp.where(count > 0, begin + count, 0))


def _find_listed(
    index: TrieIndex, depth: int, nodes: Nodes, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Binary search among the sorted children of a SPARSE level: the child's number, and whether there is one."""
    level = index.layout.levels[depth]
    low, end = index.first_child[depth].interval(nodes.begin)
    high = end
    for _ in range(level.max_children.bit_length()):
        middle = jnp.minimum(
            low + ((high - low) >> 1), level.max_nodes - 1
        )  # Their sum may overflow.
        below = (listed_tokens(index, depth, middle) < tokens) & (low < high)
        low, high = jnp.where(below, middle + 1, low), jnp.where(below, high, middle)
    found = jnp.minimum(low, level.max_nodes - 1)
    exists = nodes.exist & (low < end) & (listed_tokens(index, depth, found) == tokens)
    return found, exists


def walk(index: TrieIndex, tokens: jax.Array) -> jax.Array:
    """The node of every prefix of semantic IDs.

    Args:
        index: the trie.
        tokens: `[..., t]` with t <= L, of any integer type.

    Returns:
        Names `[..., t]` int32 of the nodes of depth 1..t, `NO_NODE` where the trie has no such prefix.

    Raises:
        TrieError: if tokens are no integers, or more than L.
    """
    tokens = check_prefixes(index, tokens)
    nodes = root(index, tokens.shape[:-1])
    names = []
    for depth in range(tokens.shape[-1]):
        nodes = descend(index, depth, nodes, tokens[..., depth])
        names.append(nodes.names)
    return jnp.stack(names, axis=-1) if names else tokens  # No token, no name.


def check_prefixes(index: TrieIndex, tokens: jax.Array) -> jax.Array:
    """Prefixes `[..., t]` as int32; a TrieError unless they are integers and t <= L."""
    tokens = integers(tokens, "tokens", f"[..., t] with t <= {index.length}")
    if tokens.ndim == 0 or tokens.shape[-1] > index.length:
        raise TrieError(
            f"tokens must be [..., t] with t <= {index.length}, got shape {list(tokens.shape)}"
        )
    return jnp.asarray(as_int32(tokens))


def slots_of(index: TrieIndex, depth: Depth, nodes: Nodes) -> tuple[jax.Array, jax.Array]:
    """The slots `[begin, end)` of the items below each node of `depth` (0..L), `[...]` each."""
    begin, end = nodes.begin, nodes.end
    if isinstance(depth, int) and depth < index.layout.scan_depth:
        for first in (*index.first_child[depth:], index.first_slot):
            begin, end = first[begin], first[end]
    return begin, end


def ancestors(index: TrieIndex, slots: jax.Array) -> list[jax.Array]:
    """Numbers `[...]` int32 of the nodes of depth 0..D above each slot."""
    number = index.first_slot.first_above(slots) - 1
    numbers = [number]
    for first in reversed(index.first_child):
        number = first.first_above(number) - 1
        numbers.append(number)
    return numbers[::-1]


def paths_of(index: TrieIndex, slots: jax.Array) -> tuple[jax.Array, ...]:
    """The tokens of the semantic IDs in `slots [...]`, level by level: L of `[...]` int32."""
    layout, above = index.layout, ancestors(index, slots)
    tokens = []
    for depth, level in enumerate(layout.levels):
        if level.kind == SCAN:
            tokens.append(slot_tokens(index, depth, slots))
        elif level.kind == SPARSE:
            tokens.append(listed_tokens(index, depth, above[depth + 1]))
        else:
            ordinal = above[depth + 1] - index.first_child[depth][above[depth]]
            row = take(index.children[depth], above[depth])
            tokens.append(select(row, ordinal) + level.base)
    return tuple(tokens)


def items_of(index: TrieIndex, nodes: Nodes) -> jax.Array:
    """Item numbers `[..., C]` of depth-L nodes `[...]`, C = `max_items_per_sid`, `NO_ITEM`-padded, in row order."""
    slots, inside = item_slots(index, nodes)
    return jnp.where(inside, index.item_of_slot[slots], NO_ITEM)


def item_slots(index: TrieIndex, nodes: Nodes) -> tuple[jax.Array, jax.Array]:
    """Slots `[..., C]` of depth-L nodes `[...]`, and which of them are theirs."""
    slots = nodes.begin[..., None] + jnp.arange(index.max_items_per_sid, dtype=jnp.int32)
    return jnp.minimum(slots, index.layout.max_items - 1), slots < nodes.end[..., None]
