"""Exact top-k over many values in blocks, computed in stages so that few values have to be sorted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gr.trie.traced import traced_once

_COUNTED = 1 << 23  # Up to so many pairs of values are compared by a GPU, rather than sorted.
_COMPARED = 512  # So many places are compared by a TPU, rather than gathered from.


@functools.partial(traced_once, static_argnames="k")
def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest values of each row `[B, n]` float32, descending, and their places, `[B, k]` each.

    Of equal values the first come first.
    """
    rows, count = values.shape
    k = min(k, count)
    # By the bits of a float32.
    counted = values.dtype == jnp.float32 and rows * count * count <= _COUNTED
    return jax.lax.platform_dependent(
        values,
        tpu=functools.partial(_by_heap, k=k),
        cuda=functools.partial(_by_counting if counted else _by_heap, k=k),
        default=functools.partial(_by_heap if k < count else _by_heap_of_one_more, k=k),
    )


def _by_heap(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return tuple(jax.lax.top_k(values, k))


def _by_heap_of_one_more(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """On a CPU a top-k of all values is a full heap sort, several times slower than a top-k of all but one."""
    values = jnp.pad(values, ((0, 0), (0, 1)), constant_values=-jnp.inf)
    best, places = jax.lax.top_k(values, k)
    return best, jnp.minimum(places, k - 1)  # Padding is chosen only in place of another -inf.


def _by_counting(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The same for a GPU, which compares a thousand numbers with each other sooner than it sorts them."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    # Integers in the order in which `lax.top_k` puts the floats, NaN included: ranks have to be all different.
    order = bits ^ (jax.lax.shift_right_arithmetic(bits, 31) & np.int32(0x7FFFFFFF))
    place = jnp.arange(values.shape[1], dtype=jnp.int32)
    mine, others = order[:, :, None], order[:, None]
    before = (others > mine) | ((others == mine) & (place < place[:, None]))
    rank = before.sum(-1, dtype=jnp.int32)
    here = rank[:, None] == jnp.arange(k, dtype=jnp.int32)[:, None]
    places = jnp.where(here, place, 0).sum(-1, dtype=jnp.int32)
    return take_along(values, places), places


def best_of_blocks(
    maxima: jax.Array, blocks: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k largest values within blocks of s values, `[B, c, s]`, whose maxima `[B, c]` are known.

    The k largest of all values lie in the k blocks with the largest maxima: any other block has k blocks before it,
    each with a value as large as all of its own. So a search goes from the maxima to the blocks, and sorts only a few
    values at each stage.

    Returns:
        The values, descending, the block of each, and its place within the block, `[B, k]` each; for -inf any block
        and place.
    """
    batch, count, size = blocks.shape
    # Maxima first: a heap that starts with large values rarely changes later.
    peak = jnp.argmax(blocks, axis=-1).astype(jnp.int32)
    others = jnp.where(jnp.arange(size) == peak[:, :, None], -jnp.inf, blocks)
    values = jnp.concatenate([maxima, jax.lax.collapse(others, 1)], axis=1)
    best, places = top_k(values, k)
    other_block, other_within = split(jnp.maximum(places - count, 0), size)
    block = jnp.where(places < count, places, other_block)
    within = jnp.where(places < count, take_along(peak, block), other_within)
    return best, block, within


def first_largest(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest of each row `[B, n]` and its place, the first of equals, `[B]` each; for values without NaN."""
    return jax.lax.platform_dependent(values, cpu=_by_comparing, default=_by_argmax)


def _by_argmax(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return values.max(axis=1), jnp.argmax(values, axis=1).astype(jnp.int32)


def _by_comparing(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same for a CPU, which runs through numbers much faster than through pairs of a number and its place."""
    largest, last = values.max(axis=1), values.shape[1] - 1
    place = jnp.arange(last + 1, dtype=jnp.int32)
    return largest, jnp.where(values == largest[:, None], place, last).min(axis=1)


def split(places: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Row and column of non-negative places in rows of `size`; plainer than `//` and `%`, which mind the sign."""
    return jax.lax.div(places, jnp.int32(size)), jax.lax.rem(places, jnp.int32(size))


@traced_once
def take_along(values: jax.Array, places: jax.Array) -> jax.Array:
    """Elements of each row `[B, n]` at `places [B, ...]`, which are known to lie in range."""
    flat = jax.lax.collapse(places, 1)
    found = jax.lax.platform_dependent(
        values,
        flat,
        tpu=_by_comparison if values.shape[1] <= _COMPARED else _by_gather,
        default=_by_gather,
    )
    return found.reshape(places.shape)


def _by_gather(values: jax.Array, places: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, places, axis=1, mode="promise_in_bounds")


def _by_comparison(values: jax.Array, places: jax.Array) -> jax.Array:
    """The same for a TPU, which compares a few places sooner than it gathers elements one by one."""
    here = places[:, :, None] == jnp.arange(values.shape[1], dtype=places.dtype)
    return jnp.where(here, values[:, None], jnp.zeros((), values.dtype)).sum(-1, dtype=values.dtype)


def first_of_sorted(costs: jax.Array, k: int, *others: jax.Array) -> list[jax.Array]:
    """The `min(k, n)` smallest of `costs [B, n]`, ascending, and others' elements in their places, by a full sort.

    That is what a TPU does for a top-k as well; here all moves together, and nothing is read afterwards. Of equal
    costs, those come first whose element in the first of the others is smaller.
    """
    moved = jax.lax.sort((costs, *others), num_keys=2, is_stable=False)
    return [part[:, :k] for part in moved]
