"""A pytree as arrays by name, the form in which checkpoints hold it, and checksums."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path; empty arrays hold nothing and are left out."""
    return {
        _name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.size
    }


def with_leaves(like: Any, arrays: Mapping[str, jax.Array]) -> Any:
    """A tree like `like` with the arrays named by `named_leaves` in its leaves' places."""

    def pick(path: Any, leaf: Any) -> jax.Array:
        if not leaf.size:
            return jnp.zeros(leaf.shape, leaf.dtype)
        return arrays[_name(path)]

    return jax.tree_util.tree_map_with_path(pick, like)


def _name(path: Any) -> str:
    # An nnx.Param's array is its "value", which says nothing to a reader.
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def sharding_of(leaf: Any) -> jax.sharding.Sharding:
    """Where a leaf lies, or the first device for an abstract one."""
    sharding = getattr(leaf, "sharding", None)
    return sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])


@jax.jit
def checksum(array: jax.Array) -> jax.Array:
    """Sum of the array's words with odd weights, modulo 2^32: a change of one word shows (zarr lets it pass)."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32).ravel()
    return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)
