"""The encoder-decoder backbone: TIGER's T5, with relative position bias and RMS norm (docs/methods.md, section 3)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gr.models.backbone import ModelError
from gr.models.blocks import at_once, in_blocks
from gr.models.cache import (
    Cache,
    Keys,
    assemble_cache,
    extend,
    latest_keys,
    own_fields,
    reorder_cache,
)
from gr.models.encoder_decoder_layers import DecoderLayer, EncoderDecoderConfig, EncoderLayer
from gr.models.layers import (
    MASKED,
    Frozen,
    Linear,
    RelativeBias,
    RMSNorm,
    attend,
    attend_own,
    attend_suffixes,
    dropout,
    dropout_seed,
    merge_heads,
    split_seed,
)
from gr.models.prompts import Prompt, as_prompt, embed_prompt
from gr.models.trie_head import Headed, TrieHead, check_vocabulary_head


class EncoderDecoder(Headed, nnx.Module):
    """The history is encoded once; a decoder that attends to it generates the targets."""

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        std = 0.02 if not config.tied_head else config.d_model**-0.5
        self.config = config
        self.embedding = nnx.Param(
            std * jax.random.normal(rngs.params(), (config.vocab_size, config.d_model))
        )
        buckets = {"num_buckets": config.num_buckets, "max_distance": config.max_distance}
        self.encoder_bias = RelativeBias(config.num_heads, rngs=rngs, bidirectional=True, **buckets)
        self.encoder = nnx.List(
            [EncoderLayer(config, rngs=rngs) for _ in range(config.num_encoder_layers)]
        )
        self.encoder_norm = RMSNorm(config.d_model, dtype=dtype, epsilon=config.norm_epsilon)
        self.decoder_bias = RelativeBias(
            config.num_heads, rngs=rngs, bidirectional=False, **buckets
        )
        if config.recency_bias:
            self.cross_bias = RelativeBias(
                config.num_heads, rngs=rngs, bidirectional=False, **buckets
            )
        self.decoder = nnx.List(
            [DecoderLayer(config, rngs=rngs) for _ in range(config.num_decoder_layers)]
        )
        self.decoder_norm = RMSNorm(config.d_model, dtype=dtype, epsilon=config.norm_epsilon)
        if config.num_text_tokens:
            shape = (config.num_text_tokens, config.d_model)
            self.text_embedding = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        if config.head == "trie":
            self.head = TrieHead(config.d_model, config.vocab_size, config.num_nodes, rngs=rngs)
        elif not config.tied_head:
            self.head = Linear(config.d_model, config.vocab_size, rngs=rngs, dtype=jnp.float32)
            if config.num_text_tokens:  # Text is not predicted: only to be written back.
                self.text_head = Frozen(jnp.zeros((config.num_text_tokens, config.d_model)))

    # Training.

    def sequence_states(self, items: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """See `ChildScorer.sequence_states`: one causal encoder pass; item t attends to the items before it.

        Raises:
            ModelError: if the encoder is not causal, which would show it the targets.
        """
        return self._sequence_states(items, dropout_seed(key))[0]

    def target_states(
        self, history: jax.Array, target: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """See `ChildScorer.target_states`."""
        encoder_seed, decoder_seed = split_seed(dropout_seed(key), 2)
        encoded, prompt = self._encode(history, encoder_seed)
        bias = self._history_bias(prompt, jnp.arange(target.shape[1]))
        return self._teacher_force(target, encoded, bias, decoder_seed)[0]

    def group_states(
        self, history: jax.Array, codes: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """See `Trainable.group_states`."""
        encoder_seed, start_seed, group_seed = split_seed(dropout_seed(key), 3)
        encoded, prompt = self._encode(history, encoder_seed)
        nothing = jnp.zeros((len(encoded), 1), codes.dtype)
        bias = self._history_bias(prompt, jnp.arange(1))
        root, kept = self._teacher_force(nothing, encoded, bias, start_seed)
        bias = self._history_bias(prompt, jnp.arange(1, codes.shape[2] + 1))
        return root[:, 0], self._continue(kept, codes, bias, group_seed)

    def target_and_group_states(
        self,
        history: jax.Array,
        target: jax.Array,
        rows: jax.Array,
        codes: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """See `Trainable.target_and_group_states`."""
        encoder_seed, target_seed, group_seed = split_seed(dropout_seed(key), 3)
        encoded, prompt = self._encode(history, encoder_seed)
        bias = self._history_bias(prompt, jnp.arange(target.shape[1]))
        states, kept = self._teacher_force(target, encoded, bias, target_seed)
        kept, prompt = jax.tree.map(lambda x: x[rows], (kept, prompt))
        bias = self._history_bias(prompt, jnp.arange(1, codes.shape[2] + 1))
        return states, self._continue(kept, codes, bias, group_seed)

    def sequence_and_group_states(
        self,
        items: jax.Array,
        rows: jax.Array,
        places: jax.Array,
        codes: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """See `Trainable.sequence_and_group_states`."""
        sequence_seed, group_seed = split_seed(dropout_seed(key), 2)
        states, kept = self._sequence_states(items, sequence_seed)
        num_items, length = items.shape[1:]
        targets = rows * (num_items - 1) + places - 1
        kept = [
            (tuple(x[targets] for x in own), tuple(x[rows] for x in history_keys))
            for own, history_keys in kept
        ]
        keys = jnp.arange((num_items - 1) * length)
        bias = jnp.where(keys < places[:, None] * length, 0.0, MASKED)[:, None, None, :]
        if self.config.recency_bias:
            positions = places[:, None] * length + jnp.arange(1, codes.shape[-1] + 1)
            bias = bias + self.cross_bias(positions, keys)
        return states, self._continue(kept, codes, bias, group_seed)

    # Decoding.

    def prefill(self, history: Any) -> tuple[jax.Array | None, jax.Array, Cache]:
        """See `Backbone.prefill`; `history` is tokens `[B, T, L]`, right-padded with 0, or a `Prompt`."""
        encoded, prompt = self._encode(history, None, in_blocks)
        shared = tuple(layer.cross.keys(encoded) for layer in self.decoder)
        cache = Cache(
            shared=shared,
            shared_mask=_real(prompt),
            lengths=prompt.lengths,
            **own_fields(shared, self.config.code_length),
        )
        start = jnp.full((len(encoded), 1), self.config.start_token)
        logits, hidden, cache = self._step(self._embed_prompt(start, None), cache)
        return None if logits is None else logits[:, 0], hidden[:, 0], cache

    def step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array | None, jax.Array, Cache]:
        """See `Backbone.step`."""
        return self._step(self._embed(tokens, None), cache)

    def _step(self, x: jax.Array, cache: Cache) -> tuple[jax.Array | None, jax.Array, Cache]:
        """`step` of the tokens' embeddings `[B, M, D]`."""
        size = cache.num_own
        own_bias = self.decoder_bias(jnp.array([size]), jnp.arange(size + 1))[:, 0]
        mask = cache.own_mask(MASKED)
        if mask is not None:
            own_bias = own_bias + mask[:, :, None, :]
        bias = jnp.where(cache.shared_mask, 0.0, MASKED)[:, None, None, :]
        if self.config.recency_bias:
            bias = bias + self._recency(cache)
        own = []
        for layer, shared, mine in zip(self.decoder, cache.shared, cache.own, strict=True):
            query, key, value = layer.attention.project(x)
            mine = extend(mine, merge_heads(key), merge_heads(value))
            mixed = attend_own(query, mine, own_bias)
            x = layer.finish(x, mixed, shared, bias, None, in_blocks)
            own.append(mine)
        hidden = self.decoder_norm(x)
        return self.logits_or_none(hidden), hidden, cache.grown(own)

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

    def _encode(
        self, history: Any, seed: jax.Array | None, each: Callable[..., Any] = at_once
    ) -> tuple[jax.Array, Prompt]:
        """Encoder states `[B, P, D]` of histories `[B, T, L]`, or of prompts, and the prompts.

        `each` runs a layer: for all users at once, or `in_blocks`.
        """
        config = self.config
        if isinstance(history, Prompt) and (config.causal_encoder or config.recency_bias):
            raise ModelError(
                "a Prompt needs causal_encoder=False and recency_bias=False, which know items alone"
            )
        prompt = as_prompt(history, config.pieces, config.num_text_tokens)
        tokens = prompt.tokens
        positions = jnp.arange(tokens.shape[1])
        bias = self.encoder_bias(positions, positions)[None]
        bias = bias + jnp.where(_real(prompt), 0.0, MASKED)[:, None, None, :]
        if config.causal_encoder:
            item = positions // history.shape[2]
            bias = bias + jnp.where(item[None, :] <= item[:, None], 0.0, MASKED)
        embed_seed, *layer_seeds = split_seed(seed, 1 + len(self.encoder))
        x = self._embed_prompt(tokens, embed_seed)
        for layer, layer_seed in zip(self.encoder, layer_seeds, strict=True):
            x = each(functools.partial(layer, seed=layer_seed), x, bias)
        return self.encoder_norm(x), prompt

    def _recency(self, cache: Cache) -> jax.Array:
        """Recency bias `[B, H, M or 1, P]` of the next position of each beam."""
        first = cache.lengths[:, None]
        keys = jnp.arange(cache.shared_mask.shape[1])
        if cache.decoded is None:
            return self.cross_bias(first + cache.num_decoded, keys)
        # Beams differ, but there are fewer depths than beams.
        sizes = jnp.arange(cache.num_own + 1)
        by_size = self.cross_bias(first + sizes, keys)
        return jnp.take_along_axis(by_size, cache.decoded[:, None, :, None], axis=2)

    def _history_bias(self, prompt: Prompt, within: jax.Array) -> jax.Array:
        """Cross-attention bias `[B, H or 1, Q, P]` of a target's tokens `within [Q]` right behind the history."""
        bias = jnp.where(_real(prompt), 0.0, MASKED)[:, None, None, :]
        if self.config.recency_bias:
            positions = prompt.lengths[:, None] + within
            bias = bias + self.cross_bias(positions, jnp.arange(prompt.tokens.shape[1]))
        return bias

    def _sequence_states(
        self, items: jax.Array, seed: jax.Array | None
    ) -> tuple[jax.Array, list[tuple[Keys, Keys]]]:
        """States `[B, T - 1, L, D]` of items 1..T-1 of each sequence, and the keys and values of `_teacher_force`."""
        if not self.config.causal_encoder:
            raise ModelError(
                "user-level training needs causal_encoder=True: a bidirectional encoder would see the targets"
            )
        batch, num_items, length = items.shape
        encoder_seed, decoder_seed = split_seed(seed, 2)
        encoded, _ = self._encode(items[:, :-1], encoder_seed)
        item = jnp.arange(1, num_items)
        query_item = jnp.repeat(item, length)  # Decoder token -> index of the item it belongs to.
        key_item = jnp.repeat(jnp.arange(num_items - 1), length)
        bias = jnp.where(key_item[None, :] < query_item[:, None], 0.0, MASKED)[None, None]
        if self.config.recency_bias:
            within = jnp.tile(jnp.arange(length), num_items - 1)
            bias = bias + self.cross_bias(query_item * length + within, jnp.arange(key_item.size))
        targets = items[:, 1:].reshape(-1, length)
        hidden, kept = self._teacher_force(targets, encoded, bias, decoder_seed)
        return hidden.reshape(batch, num_items - 1, length, -1), kept

    def _teacher_force(
        self, targets: jax.Array, encoded: jax.Array, bias: jax.Array, seed: jax.Array | None
    ) -> tuple[jax.Array, list[tuple[Keys, Keys]]]:
        """Decoder states `[B, n * L, D]` of `targets [B * n, L]`; a target's codes attend only to each other.

        `bias [B or 1, H or 1, n * L, P]` masks and biases attention to `encoded [B, P, D]`. Also returns each layer's
        keys and values of the target `[B * n, L, H, D]`, and of the history, `heads_first`.
        """
        num_targets, length = targets.shape
        batch = encoded.shape[0]
        start = jnp.full((num_targets, 1), self.config.start_token, jnp.int32)
        tokens = jnp.asarray(targets[:, :-1], jnp.int32) + self.config.num_text_tokens
        tokens = jnp.concatenate([start, tokens], axis=1).reshape(batch, -1)
        positions = jnp.arange(length)
        causal = jnp.where(positions[None, :] <= positions[:, None], 0.0, MASKED)
        own_bias = (self.decoder_bias(positions, positions) + causal)[None]
        embed_seed, *layer_seeds = split_seed(seed, 1 + len(self.decoder))
        x = self._embed_prompt(tokens, embed_seed)
        kept = []
        for layer, layer_seed in zip(self.decoder, layer_seeds, strict=True):
            weight_seed, finish_seed = split_seed(layer_seed, 2)
            query, *own = (
                z.reshape(num_targets, length, *z.shape[2:]) for z in layer.attention.project(x)
            )
            mixed = attend(query, *own, own_bias, rate=self.config.dropout, seed=weight_seed)
            mixed = mixed.reshape(*x.shape[:2], *mixed.shape[2:])
            history_keys = layer.cross.keys(encoded)
            x = layer.finish(x, mixed, history_keys, bias, finish_seed)
            kept.append((tuple(own), history_keys))
        return self.decoder_norm(x), kept

    def _continue(
        self,
        kept: list[tuple[Keys, Keys]],
        codes: jax.Array,
        bias: jax.Array,
        seed: jax.Array | None,
    ) -> jax.Array:
        """Decoder states `[R, n, S, D]` of candidates `codes [R, n, S]` behind the start tokens of R targets.

        `kept` holds the keys and values of `_teacher_force` for those targets `[R, ...]`, of which only the start
        tokens count, and for their histories, `heads_first`; `bias [R, H or 1, S or 1, P]` masks and biases attention
        to the history.
        """
        batch, num, length = codes.shape
        seen = (*bias.shape[:2], num, length, bias.shape[-1])
        history_bias = jnp.broadcast_to(bias[:, :, None], seen)
        history_bias = history_bias.reshape(*bias.shape[:2], num * length, -1)
        own_bias = self.decoder_bias(jnp.arange(1, length + 1), jnp.arange(length + 1))
        start_bias, own_bias = own_bias[None, :, None, :, :1], own_bias[:, :, 1:]
        embed_seed, *layer_seeds = split_seed(seed, 1 + len(self.decoder))
        x = self._embed(codes.reshape(batch, -1), embed_seed)
        for layer, (target, history_keys), layer_seed in zip(
            self.decoder, kept, layer_seeds, strict=True
        ):
            weight_seed, finish_seed = split_seed(layer_seed, 2)
            query, *own = (
                z.reshape(*codes.shape, *z.shape[2:]) for z in layer.attention.project(x)
            )
            start = tuple(z[:, :1] for z in target)
            mixed = attend_suffixes(
                query, start, start_bias, own, own_bias, rate=self.config.dropout, seed=weight_seed
            )
            mixed = mixed.reshape(*x.shape[:2], *mixed.shape[3:])
            x = layer.finish(x, mixed, history_keys, history_bias, finish_seed)
        return self.decoder_norm(x).reshape(*codes.shape, -1)

    def _embed_prompt(self, tokens: jax.Array, seed: jax.Array | None) -> jax.Array:
        """Inputs `[..., D]` of a prompt's tokens."""
        x = embed_prompt(self, tokens).astype(self.config.dtype)
        return dropout(x, self.config.dropout, seed)

    def _embed(self, tokens: jax.Array, seed: jax.Array | None) -> jax.Array:
        """Inputs `[..., D]` of semantic-ID tokens."""
        x = jnp.take(self.embedding[...], tokens, axis=0).astype(self.config.dtype)
        return dropout(x, self.config.dropout, seed)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """See `Trainable.logits`; not for the trie head."""
        check_vocabulary_head(self.config)
        hidden = hidden.astype(jnp.float32)
        if self.config.scaled_head:
            hidden = hidden * self.config.d_model**-0.5
        return hidden @ self.embedding[...].T if self.config.tied_head else self.head(hidden)


def _real(prompt: Prompt) -> jax.Array:
    """Where a prompt has tokens, bool `[B, P]`."""
    return jnp.arange(prompt.tokens.shape[1]) < prompt.lengths[:, None]
