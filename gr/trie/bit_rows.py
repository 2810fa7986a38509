"""Rows of bits: the children of a node at a DENSE level, in an order that suits vector units.

Token `base + v` of a level with span S is bit `v // O` of octet `v % O`, where `O = S / 8` is the number of octets:
bit plane 0 of all octets holds the first eighth of the tokens, plane 1 the second, and so on. So piece i of a logit
vector cut into eight equal pieces lines up with plane i, without any shuffling. Four octets make a word.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from gr.trie.traced import traced_once

PLANES = 8
_WORD = 32
_ONES = 0x01010101  # The lowest bit of each octet of a word.


def make_rows(parents: np.ndarray, offsets: np.ndarray, num_rows: int, span: int) -> np.ndarray:
    """Rows `[num_rows, span / 32]` uint32 on the host with one bit for each pair of a parent and `token - base`."""
    octets = np.zeros(num_rows * (span // PLANES), np.uint8)
    plane, octet = np.divmod(offsets.astype(np.int64), span // PLANES)
    place = parents.astype(np.int64) * (span // PLANES) + octet
    for bit in range(PLANES):
        octets[place[plane == bit]] |= np.uint8(1 << bit)  # All distinct within a plane.
    return octets.view("<u4").astype(np.uint32).reshape(num_rows, span // 32)


def octets_of(rows: jax.Array) -> jax.Array:
    """Octets `[..., S / 8]` uint8 of rows `[..., S / 32]`."""
    octets = jax.lax.bitcast_convert_type(rows, jnp.uint8)
    return jax.lax.collapse(octets, rows.ndim - 1)


@traced_once
def expand(rows: jax.Array) -> jax.Array:
    """Bits `[..., S]` bool of rows `[..., S / 32]`, in token order."""
    return jax.lax.platform_dependent(rows, tpu=_expand_by_product, default=_expand_by_octets)


def _expand_by_octets(rows: jax.Array) -> jax.Array:
    octets = octets_of(rows)
    planes = [octets & np.uint8(1 << plane) for plane in range(PLANES)]
    return jnp.concatenate(planes, axis=-1) != 0


def _expand_by_product(rows: jax.Array) -> jax.Array:
    """The same for a TPU."""
    return (_moved(rows, PLANES).astype(jnp.int32) & 1) != 0


def octets_by_product(rows: jax.Array) -> jax.Array:
    """`octets_of` for a TPU, int32."""
    return _moved(rows, 1).astype(jnp.int32)


def _moved(rows: jax.Array, planes: int) -> jax.Array:
    """Octets `[..., planes * O]` float32 of rows, those of plane p divided by 2 ** p.

    By a product: a TPU's unit for these copies octets to their places, while moving bytes would take it far longer.
    """
    num_octets = rows.shape[-1] * 4
    shifts = 8 * jax.lax.broadcasted_iota(jnp.uint32, (4,) + (1,) * rows.ndim, 0)
    octets = (rows[None] >> shifts) & 0xFF  # [4, ..., S / 32].
    # Token `plane * O + 4 * word + i` reads octet i of the word, shifted by the plane.
    octet_of = np.arange(num_octets, dtype=np.int32).reshape(4, -1).T.reshape(-1)
    octet_of = np.tile(octet_of, planes)
    shifted = np.repeat(np.float32(0.5) ** np.arange(planes, dtype=np.float32), num_octets)
    sources = jax.lax.broadcasted_iota(jnp.int32, (num_octets, num_octets * planes), 0)
    moves = jnp.where(sources == octet_of, shifted, 0.0).astype(jnp.bfloat16)
    # Exact: bfloat16 holds an octet and a power of 2, and of each sum only one term is not 0.
    return jnp.einsum(
        "i...w,iwt->...t",
        octets.astype(jnp.int32).astype(jnp.bfloat16),
        moves.reshape(4, rows.shape[-1], -1),
        preferred_element_type=jnp.float32,
    )


def collapse(bits: jax.Array) -> jax.Array:
    """Rows `[..., S / 32]` uint32 of bits `[..., S]`; the inverse of `expand`."""
    span = bits.shape[-1]
    planes = bits.reshape(*bits.shape[:-1], PLANES, span // PLANES).astype(jnp.uint32)
    octets = sum(planes[..., plane, :] << plane for plane in range(PLANES))
    octets = octets.reshape(*octets.shape[:-1], span // _WORD, 4)
    return sum(octets[..., i] << (8 * i) for i in range(4))


def locate(offset: jax.Array, span: int) -> tuple[jax.Array, jax.Array]:
    """Word and bit within it, uint32, of `offset = token - base`."""
    num_octets = span // PLANES
    plane, octet = offset // num_octets, offset % num_octets
    return octet // 4, (jnp.uint32(1) << (8 * (octet % 4) + plane).astype(jnp.uint32))


@traced_once
def rank(rows: jax.Array, offset: jax.Array) -> jax.Array:
    """How many set bits of rows `[..., S / 32]` stand before `offset [...]`, int32 `[...]`."""
    return jax.lax.platform_dependent(rows, offset, tpu=_rank_by_octets, default=_rank_by_words)


def _rank_by_words(rows: jax.Array, offset: jax.Array) -> jax.Array:
    num_words = rows.shape[-1]
    plane, octet = jnp.divmod(offset, num_words * 4)
    plane = plane.astype(jnp.uint32)[..., None]
    word, place = octet // 4, (octet % 4).astype(jnp.uint32)
    lower_planes = (jnp.uint32(_ONES) << plane) - _ONES
    own_plane = jnp.uint32(_ONES) << plane
    # Within the bit's own plane: all octets of earlier words, and earlier octets of the same word.
    within = own_plane & ((jnp.uint32(1) << (8 * place[..., None])) - 1)
    words = jnp.arange(num_words, dtype=jnp.int32)
    before, here = words < word[..., None], words == word[..., None]
    counted = lower_planes | jnp.where(before, own_plane, jnp.where(here, within, 0))
    return jax.lax.population_count(rows & counted).astype(jnp.int32).sum(-1)


def _rank_by_octets(rows: jax.Array, offset: jax.Array) -> jax.Array:
    """The same for a TPU in one operation: all that is taken along words is the offset itself."""
    num_octets = rows.shape[-1] * 4
    word = jax.lax.broadcasted_iota(jnp.int32, rows.shape, rows.ndim - 1)
    # The offset less the word's first octet.
    ahead = 4 * ((offset >> 2)[..., None] - word) + (offset & 3)[..., None]
    counted = jnp.zeros_like(rows)
    for i in range(4):
        # Of octet q, so many planes p have a token `p * O + q` before the offset.
        planes = (ahead + (num_octets - 1 - i)).astype(jnp.uint32) // num_octets
        counted |= ((jnp.uint32(1) << planes) - 1) << (8 * i)
    return jax.lax.population_count(rows & counted).astype(jnp.int32).sum(-1)


def select(rows: jax.Array, number: jax.Array) -> jax.Array:
    """The offset of set bit `number [...]` (0 the first in token order) of rows `[..., S / 32]`; inverse of `rank`.

    The row must have more than `number` set bits. The bit's plane is found first, then its word, then its octet.
    """
    num_words = rows.shape[-1]
    masks = jnp.uint32(_ONES) << jnp.arange(PLANES, dtype=jnp.uint32)
    counts = jax.lax.population_count(rows[..., None, :] & masks[:, None]).astype(jnp.int32)
    plane, left = _cell_of(counts.sum(-1), number)
    in_plane = jnp.take_along_axis(counts, plane[..., None, None], axis=-2)[..., 0, :]
    # About the square root of the words per block: two short searches instead of one long one.
    size = max(1, math.isqrt(num_words))
    blocks = -(-num_words // size)
    padding = [(0, 0)] * (in_plane.ndim - 1) + [(0, blocks * size - num_words)]
    in_blocks = jnp.pad(in_plane, padding).reshape(*number.shape, blocks, size)
    block, left = _cell_of(in_blocks.sum(-1), left)
    in_block = jnp.take_along_axis(in_blocks, block[..., None, None], axis=-2)[..., 0, :]
    place, left = _cell_of(in_block, left)
    word = block * size + place
    here = jnp.take_along_axis(rows, word[..., None], axis=-1)
    shifts = (8 * jnp.arange(4) + plane[..., None]).astype(jnp.uint32)
    octet, _ = _cell_of(((here >> shifts) & 1).astype(jnp.int32), left)
    return plane * (num_words * 4) + word * 4 + octet


def _cell_of(counts: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cell that holds element `number [...]`, and its place in it, for cells of `counts [..., n]` elements."""
    size = counts.shape[-1]
    earlier = np.tri(size, k=-1, dtype=bool)  # [cell, earlier cells].
    before = jnp.where(earlier, counts[..., None, :], 0).sum(-1)
    started = before <= number[..., None]
    # The last cell that starts at or before it; empty cells are skipped by their counts.
    cell = (started & (before + counts > number[..., None])).argmax(-1).astype(jnp.int32)
    return cell, number - jnp.take_along_axis(before, cell[..., None], axis=-1)[..., 0]
