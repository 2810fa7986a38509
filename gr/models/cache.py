"""The key-value cache of the backbones: once per user for the history, per beam only for its codes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Keys = tuple[jax.Array, jax.Array]  # Keys and values of one layer.
# The same of a beam's own S positions, one array `[B, M, H * D]` each. Apart from one another, they are not moved when
# one is added; and a TPU, which keeps the last two axes of an array in tiles of 8 x 128, would pad S, H and D.
OwnKeys = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of a decoder stack: stored once per user for the history, and per beam only for its codes.

    Heads H, head width D, P shared positions, S codes decoded so far.
    """

    # Per layer, of the history (decoder-only) or its encoding (cross-attention): keys `[B, H, D, P]` and values
    # `[B, H, P, D]`, as every step needs them (`layers.heads_first`).
    shared: tuple[Keys, ...]
    shared_mask: jax.Array  # [B, P] bool: True where there is a key.
    lengths: jax.Array  # [B] int32: tokens of the history.
    own: tuple[OwnKeys, ...]  # Per layer; M = 1 straight after prefill.
    # [B, M] int32 where beams differ, else [1, 1]: number of a beam's own positions, the last ones of S. None: all S.
    decoded: jax.Array | None = None
    # Whether S is fixed, so that one compiled step serves all codes; see `own_fields`.
    fixed: bool = dataclasses.field(metadata={"static": True}, default=False)

    @property
    def num_own(self) -> int:
        """S, own positions that there are arrays of."""
        return len(self.own[0][0])

    @property
    def num_decoded(self) -> jax.Array:
        """Own positions of each beam, int32 `[B, M]`, or `[1, 1]` where all beams have as many."""
        return jnp.full((1, 1), self.num_own, jnp.int32) if self.decoded is None else self.decoded

    def grown(self, own: list[OwnKeys]) -> "Cache":
        """The cache one own position later."""
        decoded = None if self.decoded is None else self.decoded + 1
        if self.fixed:  # The first one was empty.
            own = [(keys[1:], values[1:]) for keys, values in own]
        return dataclasses.replace(self, own=tuple(own), decoded=decoded)

    def own_mask(self, masked: float) -> jax.Array | None:
        """What to add to attention over a beam's own positions and the next, `[B, M, S + 1]`; None for nothing."""
        if self.decoded is None:
            return None
        there = jnp.arange(self.num_own + 1) >= self.num_own - self.decoded[..., None]
        return jnp.where(there, 0.0, masked)


_LONG = 8  # Codes: below, growing keys are faster; above, a program per length compiles slowly.


def own_fields(shared: tuple[Keys, ...], length: int) -> dict[str, Any]:
    """The fields of `Cache` per beam, before the first code of semantic IDs of `length` codes.

    `shared`: as in `Cache`. For long semantic IDs all keys are allocated from the beginning.
    """
    if length <= _LONG:
        return {"own": (((), ()),) * len(shared)}
    room = ((_nothing(shared),) * length,) * 2
    return {"own": (room,) * len(shared), "decoded": jnp.zeros((1, 1), jnp.int32), "fixed": True}


def _nothing(shared: tuple[Keys, ...]) -> jax.Array:
    """Keys `[B, 1, H * D]` of no position."""
    keys = shared[0][0]
    batch, heads, width, _ = keys.shape
    return jnp.zeros((batch, 1, heads * width), keys.dtype)


def extend(own: OwnKeys, key: jax.Array, value: jax.Array) -> OwnKeys:
    """Appends one position `[B, M, H * D]` to a layer's own keys and values."""
    return (*own[0], key), (*own[1], value)


def reorder_cache(cache: Cache, parents: jax.Array) -> Cache:
    """Keeps the beams `parents [B, M']`; the parts per user are not moved."""

    def moved(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, parents[..., None], axis=1, mode="promise_in_bounds")

    return dataclasses.replace(cache, own=jax.tree.map(moved, cache.own))


def latest_keys(cache: Cache) -> tuple[Keys, ...]:
    """Each layer's own keys and values of the last position `[B, M, H * D]`; zeros where there is none yet."""
    if not cache.num_own:
        return ((_nothing(cache.shared),) * 2,) * len(cache.own)
    return tuple((keys[-1], values[-1]) for keys, values in cache.own)


def assemble_cache(
    cache: Cache, stored: tuple[Keys, ...], paths: jax.Array, depths: jax.Array, at_root: int
) -> Cache:
    """See `TreeBackbone.assemble`; own positions are aligned to the right end, which keeps their distances right.

    `at_root`: own positions of the empty prefix, 0 or 1.
    """
    size = paths.shape[-1]
    shift = size - 1 - depths[..., None]
    order = jnp.maximum(jnp.arange(size) - shift, 0)
    places = jnp.take_along_axis(paths, order, axis=-1)[..., 1 - at_root :]
    user = jnp.arange(len(paths))[:, None]

    def along_paths(of_layer: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(of_layer[user, places[..., i]] for i in range(places.shape[-1]))

    own = tuple((along_paths(keys), along_paths(values)) for keys, values in stored)
    return dataclasses.replace(cache, own=own, decoded=depths + at_root, fixed=False)
