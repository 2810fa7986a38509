"""Random numbers of a search, the same whether the users of a batch are searched together or in parts."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyOfPart:
    """A random key for consecutive users of a batch, who draw the numbers that they draw when all are searched at once.

    Searches take it in place of a key; so each device can search its own users.
    """

    key: jax.Array  # Of the whole batch.
    first: jax.Array  # [] int32: place of the part's first user in the batch.
    users: int = dataclasses.field(metadata={"static": True})  # Of the whole batch.


def gumbel(key: jax.Array | KeyOfPart, step: int, shape: tuple[int, ...]) -> jax.Array:
    """The noise `[B, ...]` of a step: 0 perturbs the roots, t the codes at place t."""
    if isinstance(key, KeyOfPart):
        of_batch = gumbel(key.key, step, (key.users, *shape[1:]))
        return jax.lax.dynamic_slice_in_dim(of_batch, key.first, shape[0])
    return jax.random.gumbel(jax.random.fold_in(key, step), shape)


def batch_places(key: jax.Array | KeyOfPart, users: int) -> tuple[jax.Array, jax.Array]:
    """The key of the whole batch, and the places `[B]` int32 of these users in it."""
    places = jnp.arange(users, dtype=jnp.int32)
    return (key.key, key.first + places) if isinstance(key, KeyOfPart) else (key, places)
