"""Rows of bits: which tokens of a DENSE level are children of a node, in the order that suits vector units.

Token `base + v` of a level with span S is bit `v // O` of octet `v % O`, where `O = S / 8` is the number of octets:
plane 0 of all octets holds the first eighth of the tokens, plane 1 the second, and so on. A vector of logits cut
into eight equal pieces then lies under the eight planes without any shuffling. Four octets make a word.
"""

import jax
import jax.numpy as jnp
import numpy as np

PLANES = 8
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
    return octets.reshape(*rows.shape[:-1], -1)


def expand(rows: jax.Array) -> jax.Array:
    """Bits `[..., S]` bool of rows `[..., S / 32]`, in token order."""
    octets = octets_of(rows)
    planes = [octets & np.uint8(1 << plane) for plane in range(PLANES)]
    return jnp.concatenate(planes, axis=-1) != 0


def collapse(bits: jax.Array) -> jax.Array:
    """Rows `[..., S / 32]` uint32 of bits `[..., S]`; the inverse of `expand`."""
    planes = bits.reshape(*bits.shape[:-1], PLANES, -1).astype(jnp.uint32)
    octets = sum(planes[..., plane, :] << plane for plane in range(PLANES))
    octets = octets.reshape(*octets.shape[:-1], -1, 4)
    return sum(octets[..., i] << (8 * i) for i in range(4))


def locate(offset: jax.Array, span: int) -> tuple[jax.Array, jax.Array]:
    """Word and bit within it, uint32, of `offset = token - base`."""
    num_octets = span // PLANES
    plane, octet = offset // num_octets, offset % num_octets
    return octet // 4, (jnp.uint32(1) << (8 * (octet % 4) + plane).astype(jnp.uint32))


def rank(rows: jax.Array, offset: jax.Array) -> jax.Array:
    """How many set bits of rows `[..., S / 32]` stand before `offset [...]`, int32 `[...]`."""
    num_words = rows.shape[-1]
    plane, octet = jnp.divmod(offset, num_words * 4)
    plane = plane.astype(jnp.uint32)[..., None]
    word, place = octet // 4, (octet % 4).astype(jnp.uint32)
    lower_planes = (jnp.uint32(_ONES) << plane) - _ONES
    own_plane = jnp.uint32(_ONES) << plane
    # Of the own plane: all octets of the words before, and the octets before within the word.
    within = own_plane & ((jnp.uint32(1) << (8 * place[..., None])) - 1)
    words = jnp.arange(num_words, dtype=jnp.int32)
    before, here = words < word[..., None], words == word[..., None]
    counted = lower_planes | jnp.where(before, own_plane, jnp.where(here, within, 0))
    return jax.lax.population_count(rows & counted).astype(jnp.int32).sum(-1)


def select(rows: jax.Array, number: jax.Array) -> jax.Array:
    """The offset of set bit `number [...]` (0 the first in token order) of rows `[..., S / 32]`; inverse of `rank`."""
    num_octets = rows.shape[-1] * 4
    planes = jnp.uint32(_ONES) << jnp.arange(PLANES, dtype=jnp.uint32)
    counts = jax.lax.population_count(rows[..., None, :] & planes[:, None]).astype(jnp.int32)
    upto = jnp.cumsum(counts.sum(-1), axis=-1)
    plane = (upto <= number[..., None]).sum(-1)
    before = jnp.take_along_axis(upto, jnp.maximum(plane - 1, 0)[..., None], axis=-1)[..., 0]
    left = number - jnp.where(plane == 0, 0, before)
    bits = (octets_of(rows) >> plane[..., None].astype(jnp.uint8)) & 1
    octet = (jnp.cumsum(bits.astype(jnp.int32), axis=-1) <= left[..., None]).sum(-1)
    return (plane * num_octets + octet).astype(jnp.int32)
