"""The decoder-only backbone: Llama style, with rotary positions, SwiGLU and RMS norm (docs/methods.md, section 3).

With the settings of `DecoderOnlyConfig` it is the model of public checkpoints of the families Llama, Qwen2 and Qwen3
(`gr.models.load_hf`), and its histories may be prompts, of text and semantic IDs.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gr.data.prompts import PromptPieces
from gr.models.backbone import ModelError, check_sizes
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
from gr.models.layers import (
    MASKED,
    Frozen,
    Linear,
    RMSNorm,
    attend,
    attend_shared_and_own,
    attend_suffixes,
    dropout,
    dropout_seed,
    heads_first,
    merge_heads,
    rotate,
    side_by_side,
    split_seed,
)
from gr.models.prompts import Prompt, as_prompt, embed_prompt
from gr.models.rope import Rope
from gr.models.trie_head import Headed, TrieHead, check_head, check_vocabulary_head


@dataclasses.dataclass(frozen=True)
class DecoderOnlyConfig:
    """Sizes of the decoder-only backbone; the defaults are the published reference size."""

    vocab_size: int  # Of semantic-ID tokens, the only ones that are predicted.
    code_length: int  # L, codes of a semantic ID.
    d_model: int = 128
    num_heads: int = 8
    num_kv_heads: int = 0  # Heads of keys and values, a divisor of num_heads; 0: num_heads.
    head_dim: int = 0  # Width of a head; 0: d_model / num_heads.
    d_ff: int = 1024
    num_layers: int = 8
    dropout: float = 0.1
    qkv_bias: bool = False  # Of queries, keys and values (Qwen2).
    qk_norm: bool = False  # Whether each head's queries and keys are normed (Qwen3).
    rope: Rope = Rope()
    norm_epsilon: float = 1e-6
    # Text tokens, 0 .. num_text_tokens - 1 in a `Prompt`; the semantic-ID token t is num_text_tokens + t there.
    num_text_tokens: int = 0
    pieces: PromptPieces = PromptPieces()  # The text around a history's items.
    tied_head: bool = False
    head: str = "vocabulary"  # Or "trie": a softmax over a node's children.
    num_nodes: int = 0  # Rows of `gr.trie.node_rows` that the trie head has an embedding for.
    dtype: str = "float32"  # Of activations; parameters, norms, softmax and logits stay float32.

    def __post_init__(self):
        if not self.num_kv_heads:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if not self.head_dim and self.num_heads > 0:
            if self.d_model % (2 * self.num_heads):
                raise ModelError(
                    f"d_model={self.d_model} must be a multiple of 2 * num_heads={2 * self.num_heads}: "
                    "rotary positions turn pairs of numbers"
                )
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        check_sizes(self)
        check_head(self)
        if self.head_dim % 2:
            raise ModelError(
                f"head_dim={self.head_dim} must be even: rotary positions turn pairs of numbers"
            )
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}: as many query heads share "
                "each of them"
            )
        self.pieces.check(self.num_text_tokens, ModelError)


class Layer(nnx.Module):
    """Self-attention and a SwiGLU feed-forward, each behind a norm and a residual."""

    def __init__(self, config: DecoderOnlyConfig, *, rngs: nnx.Rngs):
        d, f = config.d_model, config.d_ff
        dtype = jnp.dtype(config.dtype)
        depth_scale = (
            2 * config.num_layers
        ) ** -0.5  # Keeps the residual stream's variance near 1 at the top.
        width, epsilon = config.head_dim, config.norm_epsilon
        inner, kv = config.num_heads * width, config.num_kv_heads * width
        self.config = config
        self.attention_norm = RMSNorm(d, dtype=dtype, epsilon=epsilon)
        self.qkv = Linear(d, inner + 2 * kv, rngs=rngs, dtype=dtype, bias=config.qkv_bias)
        if config.qk_norm:
            self.query_norm = RMSNorm(width, dtype=dtype, epsilon=epsilon)
            self.key_norm = RMSNorm(width, dtype=dtype, epsilon=epsilon)
        self.out = Linear(inner, d, rngs=rngs, dtype=dtype, scale=depth_scale)
        self.ffn_norm = RMSNorm(d, dtype=dtype, epsilon=epsilon)
        self.gate_up = Linear(d, 2 * f, rngs=rngs, dtype=dtype)
        self.down = Linear(f, d, rngs=rngs, dtype=dtype, scale=depth_scale)

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated query and key, and value, each `[B, S, H, D]` with its own H, of `x [B, S, D]`."""
        config = self.config
        inner, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        # Split, not indexed: the backward pass then lays the three gradients side by side, instead of adding them up.
        qkv = jnp.split(self.qkv(self.attention_norm(x)), (inner, inner + kv), axis=-1)
        query, key, value = (part.reshape(*x.shape[:-1], -1, config.head_dim) for part in qkv)
        if config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        return rotate(query, positions, config.rope), rotate(key, positions, config.rope), value

    def finish(self, x: jax.Array, mixed: jax.Array, seed: jax.Array | None) -> jax.Array:
        """Adds the attention's output `[..., H * D]` and the feed-forward to the residual stream `[..., D]`."""
        attention_seed, inner_seed, ffn_seed = split_seed(seed, 3)
        rate = self.config.dropout
        x = x + dropout(self.out(mixed), rate, attention_seed)
        gate, up = jnp.split(self.gate_up(self.ffn_norm(x)), 2, axis=-1)
        inner = dropout(jax.nn.silu(gate) * up, rate, inner_seed)
        return x + dropout(self.down(inner), rate, ffn_seed)


def run_layers(
    layers: Sequence[Layer],
    x: jax.Array,
    seeds: Sequence[jax.Array | None],
    each: Callable[..., Any] = at_once,
) -> tuple[jax.Array, list[Keys]]:
    """Causal layers over right-padded `x [B, S, D]`: the outputs `[B, S, D]`, and each layer's keys and values.

    Causality alone keeps real positions from seeing the padding, which lies to their right. `each` runs what treats
    tokens apart: for all users at once, or `in_blocks`.
    """
    positions = jnp.arange(x.shape[1])
    causal = positions[None, :] <= positions[:, None]
    bias = jnp.where(causal, 0.0, MASKED)[None, None]
    kept = []
    for layer, seed in zip(layers, seeds, strict=True):
        attention_seed, finish_seed = split_seed(seed, 2)
        query, keys, values = layer.project(x, positions)
        mixed = attend(query, keys, values, bias, rate=layer.config.dropout, seed=attention_seed)
        x = each(functools.partial(layer.finish, seed=finish_seed), x, merge_heads(mixed))
        kept.append((keys, values))
    return x, kept


def continue_layers(
    layers: Sequence[Layer],
    x: jax.Array,
    kept: Sequence[Keys],
    ends: jax.Array,
    seeds: Sequence[jax.Array | None],
) -> jax.Array:
    """Outputs `[R, n, S, D]` of suffixes `x [R, n, S, D]`, each behind the first `ends [R]` positions of `kept`."""
    rows, num, length, _ = x.shape
    seen = jnp.arange(kept[0][0].shape[1]) < ends[:, None]
    bias = jnp.where(seen, 0.0, MASKED)[:, None, None, None, :]
    positions = jnp.tile(ends[:, None] + jnp.arange(length), (1, num))
    shape = x.shape[:3]
    x = x.reshape(rows, num * length, -1)
    for layer, shared, seed in zip(layers, kept, seeds, strict=True):
        attention_seed, finish_seed = split_seed(seed, 2)
        query, *own = (z.reshape(*shape, *z.shape[2:]) for z in layer.project(x, positions))
        rate = layer.config.dropout
        mixed = attend_suffixes(query, shared, bias, own, rate=rate, seed=attention_seed)
        x = layer.finish(x, mixed.reshape(*x.shape[:2], -1), finish_seed)
    return x.reshape(*shape, -1)


def step_layers(
    layers: Sequence[Layer],
    x: jax.Array,
    positions: jax.Array,
    cache: Cache,
    each: Callable[..., Any] = at_once,
) -> tuple[jax.Array, Cache]:
    """One more position of each beam, `x [B, M, D]` at `positions [B, M]`: the outputs, and the cache.

    `each`: see `run_layers`.
    """
    mask = cache.own_mask(MASKED)
    own_bias = None if mask is None else mask[:, None]
    bias = jnp.where(cache.shared_mask, 0.0, MASKED)[:, None, None, :]
    own = []
    for layer, shared, mine in zip(layers, cache.shared, cache.own, strict=True):
        query, key, value = layer.project(x, positions)
        mine = extend(mine, merge_heads(key), merge_heads(value))
        keys = tuple(side_by_side(x, query.shape[-1]) for x in mine)
        mixed = merge_heads(attend_shared_and_own(query, shared, bias, keys, own_bias))
        x = each(functools.partial(layer.finish, seed=None), x, mixed)
        own.append(mine)
    return x, cache.grown(own)


class DecoderOnly(Headed, nnx.Module):
    """History and target as one token sequence; every item is predicted from all before it in a single pass.

    Histories are the items' tokens `[B, T, L]`, around which `config.pieces` are put, or a `Prompt`.
    """

    def __init__(self, config: DecoderOnlyConfig, *, rngs: nnx.Rngs):
        self.config = config
        std = 0.02 if not config.tied_head else config.d_model**-0.5
        self.embedding = nnx.Param(
            std * jax.random.normal(rngs.params(), (config.vocab_size, config.d_model))
        )
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(
            config.d_model, dtype=jnp.dtype(config.dtype), epsilon=config.norm_epsilon
        )
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
        """See `ChildScorer.sequence_states`."""
        return self._sequence_states(items, dropout_seed(key))[0]

    def target_states(
        self, history: jax.Array, target: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """See `ChildScorer.target_states`."""
        return self._target_states(history, target, dropout_seed(key))[0]

    def group_states(
        self, history: jax.Array, codes: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """See `Trainable.group_states`."""
        history_seed, group_seed = split_seed(dropout_seed(key), 2)
        tokens, ends = self._prompt(history)
        hidden, kept = self._run(tokens, history_seed)
        root = jnp.take_along_axis(hidden, (ends - 1)[:, None, None], axis=1)[:, 0]
        return root, self._continue(kept, ends, codes, group_seed)

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
        target_seed, group_seed = split_seed(dropout_seed(key), 2)
        states, kept = self._target_states(history, target, target_seed)
        kept = [tuple(x[rows] for x in keys) for keys in kept]
        ends = self._prompt(history).lengths[rows]
        return states, self._continue(kept, ends, codes, group_seed)

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
        kept = [tuple(x[rows] for x in keys) for keys in kept]
        ends = places * self.config.code_length
        return states, self._continue(kept, ends, codes, group_seed)

    # Decoding.

    def prefill(self, history: Any) -> tuple[jax.Array | None, jax.Array, Cache]:
        """See `Backbone.prefill`; `history` is tokens `[B, T, L]`, right-padded with 0, or a `Prompt`.

        A user has at least one item.
        """
        tokens, lengths = self._prompt(history)
        hidden, keys = self._run(tokens, None, in_blocks)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        shared = tuple(heads_first(*of_layer) for of_layer in keys)
        cache = Cache(
            shared=shared,
            shared_mask=jnp.arange(tokens.shape[1]) < lengths[:, None],
            lengths=lengths,
            **own_fields(shared, self.config.code_length),
        )
        return self.logits_or_none(last), last, cache

    def step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array | None, jax.Array, Cache]:
        """See `Backbone.step`."""
        positions = cache.lengths[:, None] + cache.num_decoded
        x = self._embed(tokens, None)
        x, cache = step_layers(self.layers, x, positions, cache, in_blocks)
        hidden = self.norm(x)
        return self.logits_or_none(hidden), hidden, cache

    def reorder(self, cache: Cache, parents: jax.Array) -> Cache:
        """See `Backbone.reorder`."""
        return reorder_cache(cache, parents)

    def latest(self, cache: Cache) -> tuple[Keys, ...]:
        """See `TreeBackbone.latest`."""
        return latest_keys(cache)

    def assemble(
        self, cache: Cache, stored: tuple[Keys, ...], paths: jax.Array, depths: jax.Array
    ) -> Cache:
        """See `TreeBackbone.assemble`; the empty prefix lies in the history."""
        return assemble_cache(cache, stored, paths, depths, at_root=0)

    # Parts.

    def _prompt(self, history: Any) -> Prompt:
        return as_prompt(history, self.config.pieces, self.config.num_text_tokens)

    def _run(
        self, tokens: jax.Array, seed: jax.Array | None, each: Callable[..., Any] = at_once
    ) -> tuple[jax.Array, list[Keys]]:
        """Hidden states `[B, S, D]` of a prompt's tokens `[B, S]`, and each layer's keys and values."""
        embed_seed, *layer_seeds = split_seed(seed, 1 + len(self.layers))
        x = self._embed_prompt(tokens, embed_seed)
        x, kept = run_layers(self.layers, x, layer_seeds, each)
        return self.norm(x), kept

    def _target_states(
        self, history: jax.Array, target: jax.Array, seed: jax.Array | None
    ) -> tuple[jax.Array, list[Keys]]:
        """States `[B, L, D]` that predict one target per history, and the keys and values of `_run`."""
        batch, length = target.shape
        tokens, lengths = self._prompt(history)
        places = lengths[:, None] + jnp.arange(length)
        tokens = jnp.pad(tokens, ((0, 0), (0, length)))
        tokens = tokens.at[jnp.arange(batch)[:, None], places].set(
            target + self.config.num_text_tokens
        )
        hidden, kept = self._run(tokens[:, :-1], seed)
        return jnp.take_along_axis(hidden, (places - 1)[..., None], axis=1), kept

    def _sequence_states(
        self, items: jax.Array, seed: jax.Array | None
    ) -> tuple[jax.Array, list[Keys]]:
        """States `[B, T - 1, L, D]` that predict items 1..T-1 of each sequence, and the keys and values of `_run`."""
        if self.config.pieces:
            raise ModelError(
                "user-level training predicts an item from the items before it, without the text of a prompt: train "
                "with training.level='target', or without a template"
            )
        batch, num_items, length = items.shape
        tokens = items.reshape(batch, -1)[:, :-1] + self.config.num_text_tokens
        hidden, kept = self._run(tokens, seed)
        return hidden[:, length - 1 :].reshape(batch, num_items - 1, length, -1), kept

    def _continue(
        self, kept: list[Keys], ends: jax.Array, codes: jax.Array, seed: jax.Array | None
    ) -> jax.Array:
        """States `[R, n, S, D]` of candidates `codes [R, n, S]` that follow the first `ends [R]` tokens of `kept`."""
        embed_seed, *layer_seeds = split_seed(seed, 1 + len(self.layers))
        x = self._embed(codes.reshape(len(codes), -1), embed_seed)
        x = x.reshape(*codes.shape, -1)
        return self.norm(continue_layers(self.layers, x, kept, ends, layer_seeds))

    def _embed_prompt(self, tokens: jax.Array, seed: jax.Array | None) -> jax.Array:
        """Inputs `[B, S, D]` of a prompt's tokens."""
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
        return hidden @ self.embedding[...].T if self.config.tied_head else self.head(hidden)
