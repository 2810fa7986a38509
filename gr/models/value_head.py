"""The value head: predicts the value of a prefix of a semantic ID from a backbone's hidden states (V-STAR)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gr.models.backbone import ModelError, check_sizes
from gr.models.cache import Keys
from gr.models.layers import (
    MASKED,
    Linear,
    RMSNorm,
    attend,
    dropout,
    dropout_seed,
    split_seed,
)


@dataclasses.dataclass(frozen=True)
class ValueHeadConfig:
    """Sizes of the value head.

    Raises `ModelError` for invalid sizes.
    """

    d_model: int  # D, the width of the backbone's hidden states.
    code_length: int  # L, codes of a semantic ID; there are L + 1 depths.
    num_heads: int = 4
    d_ff: int = 512
    dropout: float = 0.1
    # Whether a transformer block reads the prefix's states. Without it the MLP reads the last one alone, which has the
    # prefix in it already: the states of a depth decoder come from such a block.
    block: bool = True
    dtype: str = "float32"  # Of activations; parameters, norms, softmax and values stay float32.

    def __post_init__(self):
        check_sizes(self)
        if self.d_model % self.num_heads:
            raise ModelError(
                f"d_model={self.d_model} must be a multiple of num_heads={self.num_heads}"
            )


class ValueHead(nnx.Module):
    """`V(s_t)` of prefix states: one causal transformer block over the prefix, then an MLP (V-STAR, arXiv 2602.10699).

    The block can be left out, see `ValueHeadConfig`.

    Depth t = 0..L counts the codes of a prefix: state 0 is the root's, which predicts the first code; state t is the
    one behind code t. The last layer is initialised to zero: an untrained head gives V = 0 everywhere.
    """

    def __init__(self, config: ValueHeadConfig, *, rngs: nnx.Rngs):
        d, f = config.d_model, config.d_ff
        dtype = jnp.dtype(config.dtype)
        self.config = config
        self.depth_embedding = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (config.code_length + 1, d))
        )
        # Normalises the backbone's states, whose scale is unknown.
        self.state_norm = RMSNorm(d, dtype=dtype)
        if config.block:
            self.attention_norm = RMSNorm(d, dtype=dtype)
            self.qkv = Linear(d, 3 * d, rngs=rngs, dtype=dtype)
            self.out = Linear(d, d, rngs=rngs, dtype=dtype, scale=2**-0.5)
            self.ffn_norm = RMSNorm(d, dtype=dtype)
            self.gate_up = Linear(d, 2 * f, rngs=rngs, dtype=dtype)
            self.down = Linear(f, d, rngs=rngs, dtype=dtype, scale=2**-0.5)
            self.value_norm = RMSNorm(d, dtype=dtype)
        self.hidden = Linear(d, d, rngs=rngs, dtype=dtype)
        self.value = Linear(d, 1, rngs=rngs, dtype=jnp.float32, scale=0.0)
        # One bias per depth for its mean reward, so that the layers need not learn it.
        self.depth_mean = nnx.Param(jnp.zeros(config.code_length + 1))

    def __call__(self, states: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Values of a path's prefixes.

        Entry t depends on states 0..t only. So a node's value, at its depth, does not depend on the (finite) states
        beyond it.

        Args:
            states: hidden states `[..., S, D]` of depths 0..S-1, S <= L + 1.
            key: for dropout; None for none.

        Returns:
            `[..., S]` float32.

        Raises:
            ModelError: if the states' width or number does not fit.
        """
        rate = self.config.dropout
        weight_seed, *seeds = split_seed(dropout_seed(key), 5)
        length, width = states.shape[-2:]
        self._check(length, width)
        x = self._normed(states.reshape(-1, length, width), self.depth_embedding[...][:length])
        if self.config.block:
            query, keys, values = map(self._heads, self._projected(x))
            bias = jnp.where(jnp.tri(length, dtype=bool), 0.0, MASKED)[None, None]
            mixed = attend(query, keys, values, bias, rate=rate, seed=weight_seed)
            x = self._finish(x, mixed, seeds)
        found = self._value(x, seeds[-1]) + self.depth_mean[...][:length]
        return found.reshape(states.shape[:-1])

    def step(
        self, hidden: jax.Array, depths: jax.Array, before: Keys | tuple[()] | None = None
    ) -> tuple[jax.Array, Keys | tuple[()]]:
        """Values of prefixes that are a code longer than others, from what was kept of those.

        Args:
            hidden: last states of the prefixes `[..., D]`.
            depths: their depths, int32 `[...]`.
            before: keys and values `[..., S, D]` that `step` returned for the prefixes of 0..S-1 codes above each;
                those from its own depth on are arbitrary. None for prefixes of depth 0.

        Returns:
            `[...]` float32, and the keys and values `[..., D]` of the prefixes, heads side by side: kept apart, a TPU
            would pad each to a tile. No arrays without the block.

        Raises:
            ModelError: see `__call__`.
        """
        self._check(1 + before[0].shape[-2] if before else 1, hidden.shape[-1])
        x = self._normed(hidden, self.depth_embedding[...][depths])
        if not self.config.block:
            return self._value(x, None) + self.depth_mean[...][depths], ()
        query, *own = self._projected(x)
        path = [part[..., None, :] for part in own]
        if before:
            path = [jnp.concatenate(parts, axis=-2) for parts in zip(before, path, strict=True)]
        query, keys, values = map(self._heads, (query, *path))
        # One query and few keys: sums of products are faster than a matrix product per head.
        logits = (query[..., None, :, :] * keys).astype(jnp.float32).sum(-1)
        place = jnp.arange(keys.shape[-3])
        there = (place < depths[..., None]) | (place == len(place) - 1)
        logits = jnp.where(there[..., None], logits * query.shape[-1] ** -0.5, MASKED)
        weights = jax.nn.softmax(logits, axis=-2).astype(values.dtype)
        x = self._finish(x, (weights[..., None] * values).sum(-3), [None] * 4)
        return self._value(x, None) + self.depth_mean[...][depths], tuple(own)

    def _check(self, length: int, width: int) -> None:
        if width != self.config.d_model or length > self.config.code_length + 1:
            raise ModelError(
                f"states of shape [.., {length}, {width}] do not fit d_model={self.config.d_model}, "
                f"code_length={self.config.code_length}: give [.., at most L + 1, d_model]"
            )

    def _normed(self, states: jax.Array, depth: jax.Array) -> jax.Array:
        """Inputs `[..., D]` from states and the embeddings of their depths."""
        return self.state_norm(states) + depth.astype(self.config.dtype)

    def _projected(self, x: jax.Array) -> list[jax.Array]:
        """Queries, keys and values `[..., D]` of inputs `[..., D]`."""
        return jnp.split(self.qkv(self.attention_norm(x)), 3, -1)

    def _heads(self, part: jax.Array) -> jax.Array:
        """`[..., H, D / H]` of `[..., D]`."""
        return part.reshape(*part.shape[:-1], self.config.num_heads, -1)

    def _finish(
        self, x: jax.Array, mixed: jax.Array, seeds: Sequence[jax.Array | None]
    ) -> jax.Array:
        """The block's outputs `[..., D]`, normed, from inputs `[..., D]` and mixed values `[..., H, D / H]`."""
        rate, (out_seed, inner_seed, ffn_seed, _) = self.config.dropout, seeds
        x = x + dropout(self.out(mixed.reshape(x.shape)), rate, out_seed)
        gate, up = jnp.split(self.gate_up(self.ffn_norm(x)), 2, axis=-1)
        inner = dropout(jax.nn.silu(gate) * up, rate, inner_seed)
        return self.value_norm(x + dropout(self.down(inner), rate, ffn_seed))

    def _value(self, x: jax.Array, seed: jax.Array | None) -> jax.Array:
        """The MLP: values `[...]`, without the depth biases, from normed states `[..., D]`."""
        hidden = dropout(jax.nn.silu(self.hidden(x)), self.config.dropout, seed)
        return self.value(hidden)[..., 0].astype(jnp.float32)


def path_states(
    backbone: Any, history: jax.Array, codes: jax.Array, *, key: jax.Array | None = None
) -> jax.Array:
    """Teacher-forced hidden states of all prefixes of candidates, the input of the value head.

    Args:
        backbone: offers `group_states`.
        history: tokens `[B, T, L]`, oldest first, right-padded with 0.
        codes: the candidates' tokens `[B, G, L]`.
        key: for dropout; None for none.

    Returns:
        `[B, G, L + 1, D]`: the root's state, the same for all candidates of a user, and the one behind each code.
    """
    root, states = backbone.group_states(history, codes, key=key)
    first = jnp.broadcast_to(root[:, None, None], (*states.shape[:2], 1, states.shape[-1]))
    return jnp.concatenate([first, states], axis=2)
