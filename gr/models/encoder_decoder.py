"""The encoder-decoder backbone: TIGER's T5, with relative position bias and RMS norm (methods, section 3)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from gr.models.backbone import (
    Cache,
    Keys,
    ModelError,
    assemble_cache,
    check_sizes,
    extend,
    latest_keys,
    reorder_cache,
)
from gr.models.layers import (
    MASKED,
    Linear,
    RelativeBias,
    RMSNorm,
    attend,
    attend_own,
    dropout,
    dropout_seed,
    item_lengths,
    split_seed,
)
from gr.semantic_ids import BOS_TOKEN


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """Sizes of the encoder-decoder backbone; the defaults are the published reference size.

    `causal_encoder`: a history token sees its own item and earlier ones only, so that one encoder pass serves
    every position of a user's sequence (user-level training). `recency_bias`: cross-attention carries a relative
    position bias too, as if the target stood right behind the history; a causal encoder needs it, because its
    states cannot know how far from the end of the history they are.
    """

    vocab_size: int
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
    dtype: str = "float32"  # Of activations; parameters, norms, softmax and logits stay float32.

    def __post_init__(self):
        check_sizes(self)


class SelfAttention(nnx.Module):
    """Projections of multi-head self-attention behind a norm."""

    def __init__(self, config: EncoderDecoderConfig, *, depth_scale: float, rngs: nnx.Rngs):
        inner = config.num_heads * config.head_dim
        dtype = jnp.dtype(config.dtype)
        self.heads = (config.num_heads, config.head_dim)
        self.norm = RMSNorm(config.d_model, dtype=dtype)
        self.qkv = Linear(config.d_model, 3 * inner, rngs=rngs, dtype=dtype)
        self.out = Linear(inner, config.d_model, rngs=rngs, dtype=dtype, scale=depth_scale)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query, key and value, each `[..., H, D]`."""
        qkv = self.qkv(self.norm(x)).reshape(*x.shape[:-1], 3, *self.heads)
        return qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]

    def merge(self, mixed: jax.Array) -> jax.Array:
        """Back to the residual stream's width."""
        return self.out(mixed.reshape(*mixed.shape[:-2], -1))


class CrossAttention(nnx.Module):
    """Projections of attention from the target's codes to the encoded history."""

    def __init__(self, config: EncoderDecoderConfig, *, depth_scale: float, rngs: nnx.Rngs):
        inner = config.num_heads * config.head_dim
        dtype = jnp.dtype(config.dtype)
        self.heads = (config.num_heads, config.head_dim)
        self.norm = RMSNorm(config.d_model, dtype=dtype)
        self.query = Linear(config.d_model, inner, rngs=rngs, dtype=dtype)
        self.kv = Linear(config.d_model, 2 * inner, rngs=rngs, dtype=dtype)
        self.out = Linear(inner, config.d_model, rngs=rngs, dtype=dtype, scale=depth_scale)

    def keys(self, encoded: jax.Array) -> Keys:
        """Keys and values `[B, P, H, D]` of the encoded history, computed once per user."""
        kv = self.kv(encoded).reshape(*encoded.shape[:-1], 2, *self.heads)
        return kv[..., 0, :, :], kv[..., 1, :, :]

    def __call__(
        self, x: jax.Array, keys: Keys, bias: jax.Array, rate: float, seed: jax.Array | None
    ) -> jax.Array:
        """Attends from `x [B, Q, D]`; what it returns is added to `x` by the caller."""
        query = self.query(self.norm(x)).reshape(*x.shape[:-1], *self.heads)
        mixed = attend(query, *keys, bias, rate=rate, seed=seed)
        return self.out(mixed.reshape(*x.shape[:-1], -1))


class FeedForward(nnx.Module):
    """T5's two-layer ReLU feed-forward behind a norm."""

    def __init__(self, config: EncoderDecoderConfig, *, depth_scale: float, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.rate = config.dropout
        self.norm = RMSNorm(config.d_model, dtype=dtype)
        self.up = Linear(config.d_model, config.d_ff, rngs=rngs, dtype=dtype)
        self.down = Linear(config.d_ff, config.d_model, rngs=rngs, dtype=dtype, scale=depth_scale)

    def __call__(self, x: jax.Array, seed: jax.Array | None) -> jax.Array:
        """What is added to `x [..., D]`."""
        return self.down(dropout(jax.nn.relu(self.up(self.norm(x))), self.rate, seed))


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
        x = x + dropout(self.attention.merge(mixed), self.rate, out_seed)
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
        self, x: jax.Array, mixed: jax.Array, keys: Keys, bias: jax.Array, seed: jax.Array | None
    ) -> jax.Array:
        """Residual updates after self-attention has mixed: `x [B, Q, D]`, `mixed [B, Q, H, D]`."""
        out_seed, weight_seed, cross_seed, inner_seed, ffn_seed = split_seed(seed, 5)
        x = x + dropout(self.attention.merge(mixed), self.rate, out_seed)
        x = x + dropout(self.cross(x, keys, bias, self.rate, weight_seed), self.rate, cross_seed)
        return x + dropout(self.ffn(x, inner_seed), self.rate, ffn_seed)


class EncoderDecoder(nnx.Module):
    """The history is encoded once; targets are spelled out by a decoder that attends to it."""

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        std = 0.02 if not config.tied_head else config.d_model**-0.5
        self.config = config
        self.embedding = nnx.Param(
            std * jax.random.normal(rngs.params(), (config.vocab_size, config.d_model))
        )
        self.encoder_bias = RelativeBias(config.num_heads, rngs=rngs, bidirectional=True)
        self.encoder = nnx.List(
            [EncoderLayer(config, rngs=rngs) for _ in range(config.num_encoder_layers)]
        )
        self.encoder_norm = RMSNorm(config.d_model, dtype=dtype)
        self.decoder_bias = RelativeBias(config.num_heads, rngs=rngs, bidirectional=False)
        if config.recency_bias:
            self.cross_bias = RelativeBias(config.num_heads, rngs=rngs, bidirectional=False)
        self.decoder = nnx.List(
            [DecoderLayer(config, rngs=rngs) for _ in range(config.num_decoder_layers)]
        )
        self.decoder_norm = RMSNorm(config.d_model, dtype=dtype)
        if not config.tied_head:
            self.head = Linear(config.d_model, config.vocab_size, rngs=rngs, dtype=jnp.float32)

    # Training.

    def sequence_logits(self, items: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Teacher-forced logits `[B, T - 1, L, V]` of items 1..T-1 of each sequence (user-level training).

        One causal encoder pass; the decoder of item t attends to the items before t.

        Args:
            items: tokens `[B, T, L]`, oldest first, right-padded with 0.
            key: for dropout; None for none.

        Raises:
            ModelError: if the encoder is not causal, which would show it the targets.
        """
        if not self.config.causal_encoder:
            raise ModelError(
                "user-level training needs causal_encoder=True: a bidirectional encoder would see the targets"
            )
        batch, num_items, length = items.shape
        encoder_seed, decoder_seed = split_seed(dropout_seed(key), 2)
        encoded = self._encode(items[:, :-1], encoder_seed)
        item = jnp.arange(1, num_items)
        query_item = jnp.repeat(item, length)  # Decoder token -> index of the item it belongs to.
        key_item = jnp.repeat(jnp.arange(num_items - 1), length)
        bias = jnp.where(key_item[None, :] < query_item[:, None], 0.0, MASKED)[None, None]
        if self.config.recency_bias:
            within = jnp.tile(jnp.arange(length), num_items - 1)
            bias = bias + self.cross_bias(query_item * length + within, jnp.arange(key_item.size))
        targets = items[:, 1:].reshape(-1, length)
        hidden = self._teacher_force(targets, encoded, bias, decoder_seed)
        return self._logits(hidden).reshape(batch, num_items - 1, length, -1)

    def target_logits(
        self, history: jax.Array, target: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Teacher-forced logits `[B, L, V]` of one target per history (interaction-level training).

        Args:
            history: tokens `[B, T, L]`, oldest first, right-padded with 0.
            target: tokens `[B, L]`.
            key: for dropout; None for none.
        """
        encoder_seed, decoder_seed = split_seed(dropout_seed(key), 2)
        encoded = self._encode(history, encoder_seed)
        length = target.shape[1]
        bias = self._history_bias(history, jnp.arange(length))
        hidden = self._teacher_force(target, encoded, bias, decoder_seed)
        return self._logits(hidden).reshape(*target.shape, -1)

    # Decoding.

    def prefill(self, history: jax.Array) -> tuple[jax.Array, jax.Array, Cache]:
        """See `Backbone.prefill`; `history` is tokens `[B, T, L]`, right-padded with 0."""
        encoded = self._encode(history, None)
        batch = history.shape[0]
        empty = jnp.zeros((batch, 1, 0, self.config.num_heads, self.config.head_dim), encoded.dtype)
        cache = Cache(
            shared=tuple(layer.cross.keys(encoded) for layer in self.decoder),
            shared_mask=history.reshape(batch, -1) != 0,
            lengths=item_lengths(history),
            own=((empty, empty),) * len(self.decoder),
        )
        logits, hidden, cache = self.step(jnp.full((batch, 1), BOS_TOKEN), cache)
        return logits[:, 0], hidden[:, 0], cache

    def step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, jax.Array, Cache]:
        """See `Backbone.step`."""
        size = cache.own[0][0].shape[2]
        own_bias = self.decoder_bias(jnp.array([size]), jnp.arange(size + 1))[:, 0]
        mask = cache.own_mask(MASKED)
        if mask is not None:
            own_bias = own_bias + mask[:, :, None, :]
        bias = jnp.where(cache.shared_mask, 0.0, MASKED)[:, None, None, :]
        if self.config.recency_bias:
            positions = cache.lengths[:, None] * self.config.code_length + cache.num_decoded
            bias = bias + self.cross_bias(positions, jnp.arange(cache.shared_mask.shape[1]))
        x = self._embed(tokens, None)
        own = []
        for layer, shared, mine in zip(self.decoder, cache.shared, cache.own, strict=True):
            query, key, value = layer.attention.project(x)
            mine = extend(mine, key, value)
            x = layer.finish(x, attend_own(query, mine, own_bias), shared, bias, None)
            own.append(mine)
        hidden = self.decoder_norm(x)
        return self._logits(hidden), hidden, cache.grown(own)

    def reorder(self, cache: Cache, parents: jax.Array) -> Cache:
        """See `Backbone.reorder`."""
        return reorder_cache(cache, parents)

    def latest(self, cache: Cache) -> tuple[Keys, ...]:
        """See `TreeBackbone.latest`."""
        return latest_keys(cache)

    def assemble(
        self, cache: Cache, stored: tuple[Keys, ...], paths: jax.Array, depths: jax.Array
    ) -> Cache:
        """See `TreeBackbone.assemble`; the empty prefix has BOS."""
        return assemble_cache(cache, stored, paths, depths, at_root=1)

    # Parts.

    def _encode(self, history: jax.Array, seed: jax.Array | None) -> jax.Array:
        """Encoder states `[B, T * L, D]` of histories `[B, T, L]`."""
        batch, num_items, length = history.shape
        tokens = history.reshape(batch, -1)
        positions = jnp.arange(tokens.shape[1])
        bias = self.encoder_bias(positions, positions)[None]
        bias = bias + jnp.where(tokens != 0, 0.0, MASKED)[:, None, None, :]
        if self.config.causal_encoder:
            item = positions // length
            bias = bias + jnp.where(item[None, :] <= item[:, None], 0.0, MASKED)
        embed_seed, *layer_seeds = split_seed(seed, 1 + len(self.encoder))
        x = self._embed(tokens, embed_seed)
        for layer, layer_seed in zip(self.encoder, layer_seeds, strict=True):
            x = layer(x, bias, layer_seed)
        return self.encoder_norm(x)

    def _history_bias(self, history: jax.Array, within: jax.Array) -> jax.Array:
        """Cross-attention bias `[B, H or 1, Q, P]` of a target's tokens `within [Q]` right behind the history."""
        batch, _, length = history.shape
        tokens = history.reshape(batch, -1)
        bias = jnp.where(tokens != 0, 0.0, MASKED)[:, None, None, :]
        if self.config.recency_bias:
            positions = item_lengths(history)[:, None] * length + within
            bias = bias + self.cross_bias(positions, jnp.arange(tokens.shape[1]))
        return bias

    def _teacher_force(
        self, targets: jax.Array, encoded: jax.Array, bias: jax.Array, seed: jax.Array | None
    ) -> jax.Array:
        """Decoder states `[B, n * L, D]` of `targets [B * n, L]`; a target's codes see only one another.

        `bias [B or 1, H or 1, n * L, P]` says what each code sees of `encoded [B, P, D]`.
        """
        num_targets, length = targets.shape
        batch = encoded.shape[0]
        start = jnp.full((num_targets, 1), BOS_TOKEN, targets.dtype)
        tokens = jnp.concatenate([start, targets[:, :-1]], axis=1).reshape(batch, -1)
        positions = jnp.arange(length)
        causal = jnp.where(positions[None, :] <= positions[:, None], 0.0, MASKED)
        own_bias = (self.decoder_bias(positions, positions) + causal)[None]
        embed_seed, *layer_seeds = split_seed(seed, 1 + len(self.decoder))
        x = self._embed(tokens, embed_seed)
        for layer, layer_seed in zip(self.decoder, layer_seeds, strict=True):
            weight_seed, finish_seed = split_seed(layer_seed, 2)
            blocks = [
                z.reshape(num_targets, length, *z.shape[2:]) for z in layer.attention.project(x)
            ]
            mixed = attend(*blocks, own_bias, rate=self.config.dropout, seed=weight_seed)
            mixed = mixed.reshape(*x.shape[:2], *mixed.shape[2:])
            x = layer.finish(x, mixed, layer.cross.keys(encoded), bias, finish_seed)
        return self.decoder_norm(x)

    def _embed(self, tokens: jax.Array, seed: jax.Array | None) -> jax.Array:
        x = jnp.take(self.embedding[...], tokens, axis=0).astype(self.config.dtype)
        return dropout(x, self.config.dropout, seed)

    def _logits(self, hidden: jax.Array) -> jax.Array:
        hidden = hidden.astype(jnp.float32)
        return hidden @ self.embedding[...].T if self.config.tied_head else self.head(hidden)
