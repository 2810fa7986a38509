"""What decoding may know of a model, and the cache that both backbones carry from step to step."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class ModelError(ValueError):
    """Raised for model settings or inputs that cannot work; the message names the field and the remedy."""


def check_sizes(config: Any) -> None:
    """Checks what both backbones' configs have in common.

    Raises:
        ModelError: naming the first field that cannot work.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type in (int, "int") and value < 1:
            raise ModelError(f"{field.name}={value} must be at least 1")
    if not 0 <= config.dropout < 1:
        raise ModelError(f"dropout={config.dropout} must lie in [0, 1)")
    if config.dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype={config.dtype!r} is unknown: use float32 or bfloat16")


class Backbone(Protocol):
    """A model that spells out items code by code; the only thing a decoder knows of it.

    Must be a pytree (every `nnx.Module` is), so that it passes through `jit`. `history` and `cache` are opaque
    to the decoder. Letters: B users, M beams, V vocabulary, D width.
    """

    def prefill(self, history: Any) -> tuple[jax.Array, jax.Array, Any]:
        """Encodes each user's history once: logits of the first code `[B, V]`, hidden `[B, D]`, cache."""
        ...

    def step(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
        """Appends `tokens [B, M]`: logits of the next code `[B, M, V]`, hidden `[B, M, D]`, cache."""
        ...

    def reorder(self, cache: Any, parents: jax.Array) -> Any:
        """The cache of the beams `parents [B, M']` (indices into the beams of the last step, 0 after `prefill`)."""
        ...


Keys = tuple[jax.Array, jax.Array]  # Keys and values of one layer.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of a decoder stack: the user's exist once per user, a beam's own only for its codes.

    Heads H, head width D, P shared positions, S codes decoded so far.
    """

    shared: tuple[
        Keys, ...
    ]  # Per layer `[B, P, H, D]`: the history (decoder-only) or its encoding (cross-attention).
    shared_mask: jax.Array  # [B, P] bool: True where there is a key.
    lengths: jax.Array  # [B] int32: history items.
    own: tuple[Keys, ...]  # Per layer `[B, M, S, H, D]`; `[B, 1, S, H, D]` straight after prefill.


def extend(own: Keys, key: jax.Array, value: jax.Array) -> Keys:
    """Appends one position `[B, M, H, D]` to a layer's own keys and values."""
    return (
        jnp.concatenate([own[0], key[:, :, None]], axis=2),
        jnp.concatenate([own[1], value[:, :, None]], axis=2),
    )


def reorder_cache(cache: Cache, parents: jax.Array) -> Cache:
    """Keeps the beams `parents [B, M']`; what belongs to the user stays where it is."""
    index = parents[:, :, None, None, None]
    own = jax.tree.map(lambda x: jnp.take_along_axis(x, index, axis=1), cache.own)
    return dataclasses.replace(cache, own=own)
