"""The encoder-decoder's sizes and layers: T5's attention and feed-forward, each behind an RMS norm."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gr.data.prompts import PromptPieces
from gr.models.backbone import ModelError, check_sizes
from gr.models.blocks import at_once
from gr.models.cache import Keys
from gr.models.layers import (
    Linear,
    RMSNorm,
    attend,
    attend_heads_first,
    dropout,
    heads_first,
    merge_heads,
    split_seed,
)
from gr.models.trie_head import check_head
from gr.semantic_ids import BOS_TOKEN

ACTIVATIONS = ("relu", "gated-gelu")


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """Sizes of the encoder-decoder backbone; the defaults are the published reference size.

    `causal_encoder`: a history token sees its own item and earlier ones only, so that one encoder pass serves
    every position of a user's sequence (user-level training). `recency_bias`: cross-attention carries a relative
    position bias too, as if the target stood right behind the history; a causal encoder needs it, because its
    states cannot know how far from the end of the history they are. T5's checkpoints have neither.

    Raises:
        ModelError: naming the field that is unknown or out of range.
    """

    vocab_size: int  # Of semantic-ID tokens, the only ones that are predicted.
    code_length: int  # L, codes of a semantic ID.
    d_model: int = 128
    num_heads: int = 6
    head_dim: int = 64
    d_ff: int = 1024
    num_encoder_layers: int = 4
    num_decoder_layers: int = 4
    dropout: float = 0.1
    tied_head: bool = False
    causal_encoder: bool = False
    recency_bias: bool = False
    activation: str = "relu"  # Of the feed-forward: "relu" or "gated-gelu".
    scaled_attention: bool = (
        True  # Whether queries are divided by the root of head_dim; T5 does not.
    )
    scaled_head: bool = False  # Whether states are divided by the root of d_model before the head.
    num_buckets: int = 32  # Of relative positions.
    max_distance: int = 128  # Beyond which these are all alike.
    norm_epsilon: float = 1e-6
    start_token: int = BOS_TOKEN  # The decoder's first input, as a `Prompt` numbers tokens.
    num_text_tokens: int = 0  # See `DecoderOnlyConfig`, as for the next field.
    pieces: PromptPieces = PromptPieces()
    head: str = "vocabulary"  # Or "trie": a softmax over a node's children.
    num_nodes: int = 0  # Rows of `gr.trie.node_rows` that the trie head has an embedding for.
    dtype: str = "float32"  # Of activations; parameters, norms, softmax and logits stay float32.

    def __post_init__(self):
        check_sizes(self)
        check_head(self)
        if self.activation not in ACTIVATIONS:
            raise ModelError(
                f"activation={self.activation!r} is unknown: use one of {', '.join(ACTIVATIONS)}"
            )
        self.pieces.check(self.num_text_tokens, ModelError)
        if self.pieces and (self.causal_encoder or self.recency_bias):
            raise ModelError(
                "a prompt's pieces need causal_encoder=False and recency_bias=False, which know items alone"
            )

    @property
    def query_factor(self) -> float:
        """What queries are multiplied by, so that attention, which divides by it, leaves them unscaled."""
        return 1.0 if self.scaled_attention else self.head_dim**0.5


class SelfAttention(nnx.Module):
    """Projections of multi-head self-attention behind a norm."""

    def __init__(self, config: EncoderDecoderConfig, *, depth_scale: float, rngs: nnx.Rngs):
        inner = config.num_heads * config.head_dim
        dtype = jnp.dtype(config.dtype)
        self.heads = (config.num_heads, config.head_dim)
        self.query_factor = config.query_factor
        self.norm = RMSNorm(config.d_model, dtype=dtype, epsilon=config.norm_epsilon)
        self.qkv = Linear(config.d_model, 3 * inner, rngs=rngs, dtype=dtype)
        self.out = Linear(inner, config.d_model, rngs=rngs, dtype=dtype, scale=depth_scale)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query, key and value, each `[..., H, D]`."""
        qkv = self.qkv(self.norm(x)).reshape(*x.shape[:-1], 3, *self.heads)
        query = qkv[..., 0, :, :]
        if self.query_factor != 1.0:
            query = query * self.query_factor
        return query, qkv[..., 1, :, :], qkv[..., 2, :, :]


class CrossAttention(nnx.Module):
    """Projections of attention from the target's codes to the encoded history."""

    def __init__(self, config: EncoderDecoderConfig, *, depth_scale: float, rngs: nnx.Rngs):
        inner = config.num_heads * config.head_dim
        dtype = jnp.dtype(config.dtype)
        self.heads = (config.num_heads, config.head_dim)
        self.query_factor = config.query_factor
        self.norm = RMSNorm(config.d_model, dtype=dtype, epsilon=config.norm_epsilon)
        self.query = Linear(config.d_model, inner, rngs=rngs, dtype=dtype)
        self.kv = Linear(config.d_model, 2 * inner, rngs=rngs, dtype=dtype)
        self.out = Linear(inner, config.d_model, rngs=rngs, dtype=dtype, scale=depth_scale)

    def keys(self, encoded: jax.Array) -> Keys:
        """Keys and values of the encoded history, `heads_first`, computed once per user."""
        kv = self.kv(encoded).reshape(*encoded.shape[:-1], 2, *self.heads)
        return heads_first(kv[..., 0, :, :], kv[..., 1, :, :])

    def queries(self, x: jax.Array) -> jax.Array:
        """Queries of all heads side by side, `[..., H * D]`."""
        query = self.query(self.norm(x))
        return query if self.query_factor == 1.0 else query * self.query_factor

    def attend(
        self, queries: jax.Array, keys: Keys, bias: jax.Array, rate: float, seed: jax.Array | None
    ) -> jax.Array:
        """What `queries [B, Q, H * D]` attend to, in their shape; `out` makes of it what the caller adds to `x`."""
        query = queries.reshape(*queries.shape[:-1], *self.heads)
        return attend_heads_first(query, keys, bias, rate=rate, seed=seed).reshape(queries.shape)


class FeedForward(nnx.Module):
    """T5's feed-forward behind a norm: two layers with ReLU, or its version 1.1's gated form (arXiv 2002.05202)."""

    def __init__(self, config: EncoderDecoderConfig, *, depth_scale: float, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.rate = config.dropout
        self.norm = RMSNorm(config.d_model, dtype=dtype, epsilon=config.norm_epsilon)
        if config.activation == "relu":
            self.up = Linear(config.d_model, config.d_ff, rngs=rngs, dtype=dtype)
        else:
            self.gate_up = Linear(config.d_model, 2 * config.d_ff, rngs=rngs, dtype=dtype)
        self.down = Linear(config.d_ff, config.d_model, rngs=rngs, dtype=dtype, scale=depth_scale)

    def __call__(self, x: jax.Array, seed: jax.Array | None) -> jax.Array:
        """The residual to be added to `x [..., D]`."""
        if hasattr(self, "up"):
            inner = jax.nn.relu(self.up(self.norm(x)))
        else:
            gate, up = jnp.split(self.gate_up(self.norm(x)), 2, axis=-1)
            inner = jax.nn.gelu(gate) * up
        return self.down(dropout(inner, self.rate, seed))


class EncoderLayer(nnx.Module):
    """Self-attention over the history, then the feed-forward."""

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
        depth_scale = (2 * config.num_encoder_layers) ** -0.5
        self.rate = config.dropout
        self.attention = SelfAttention(config, depth_scale=depth_scale, rngs=rngs)
        self.ffn = FeedForward(config, depth_scale=depth_scale, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array, seed: jax.Array | None) -> jax.Array:
        """`[B, P, D] -> [B, P, D]` under the additive `bias [B or 1, H or 1, P, P]`."""
        weight_seed, out_seed, inner_seed, ffn_seed = split_seed(seed, 4)
        mixed = attend(*self.attention.project(x), bias, rate=self.rate, seed=weight_seed)
        x = x + dropout(self.attention.out(merge_heads(mixed)), self.rate, out_seed)
        return x + dropout(self.ffn(x, inner_seed), self.rate, ffn_seed)


class DecoderLayer(nnx.Module):
    """Self-attention over the target's codes, cross-attention to the history, then the feed-forward."""

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
        depth_scale = (3 * config.num_decoder_layers) ** -0.5
        self.rate = config.dropout
        self.attention = SelfAttention(config, depth_scale=depth_scale, rngs=rngs)
        self.cross = CrossAttention(config, depth_scale=depth_scale, rngs=rngs)
        self.ffn = FeedForward(config, depth_scale=depth_scale, rngs=rngs)

    def finish(
        self,
        x: jax.Array,
        mixed: jax.Array,
        keys: Keys,
        bias: jax.Array,
        seed: jax.Array | None,
        each: Callable[..., Any] = at_once,
    ) -> jax.Array:
        """Residual updates after self-attention has mixed: `x [B, Q, D]`, `mixed [B, Q, H, D]`.

        `each` runs what treats rows apart: all of them at once, or `in_blocks`.
        """
        out_seed, weight_seed, cross_seed, inner_seed, ffn_seed = split_seed(seed, 5)

        def before(x: jax.Array, mixed: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = x + dropout(self.attention.out(mixed), self.rate, out_seed)
            return x, self.cross.queries(x)

        def behind(x: jax.Array, mixed: jax.Array) -> jax.Array:
            x = x + dropout(self.cross.out(mixed), self.rate, cross_seed)
            return x + dropout(self.ffn(x, inner_seed), self.rate, ffn_seed)

        x, queries = each(before, x, merge_heads(mixed))
        return each(behind, x, self.cross.attend(queries, keys, bias, self.rate, weight_seed))
