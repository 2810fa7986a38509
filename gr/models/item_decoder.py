"""The item-level backbone: items in, codes out (docs/methods.md, section 3).

A causal transformer runs over the items of the history, one position each. A small second transformer, the depth
decoder, spells out the next item from the last position's state (RQ-Transformer, arXiv 2203.01941). A decoding step
therefore never touches the history.

Beside it may stand an item tower, a transformer of its own with a softmax over whole items (SASRec, arXiv 1808.09781).
It is trained together with the rest and shares nothing with it, so that the two err differently; what they know is
mixed as whole items: P = (1 - share) P_codes + share P_items.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from gr.models.backbone import ItemHistory, ModelError, check_sizes
from gr.models.cache import Cache, Keys, assemble_cache, latest_keys, own_fields, reorder_cache
from gr.models.decoder_only import (
    DecoderOnlyConfig,
    Layer,
    continue_layers,
    run_layers,
    step_layers,
)
from gr.models.layers import (
    Linear,
    RMSNorm,
    dropout,
    dropout_seed,
    heads_first,
    item_lengths,
    split_seed,
)
from gr.models.trie_head import Headed, TrieHead, check_head, check_vocabulary_head

HEADS = ("trie", "vocabulary", "items")


@dataclasses.dataclass(frozen=True)
class ItemDecoderConfig:
    """Sizes of the item-level backbone."""

    vocab_size: int
    code_length: int  # L, codes of a semantic ID.
    num_items: int  # N; a history may hold other items, which are read by their codes alone.
    num_nodes: int = (
        0  # Trie nodes that the trie head has an embedding for: rows 0.. of `gr.trie.node_rows`.
    )
    num_first: int = 0  # Trie nodes of depth 1 that have facets.
    num_facets: int = 16  # Facets of each of them; see `gr.models.trie_head.TrieHead`.
    d_model: int = 128
    num_heads: int = 4
    d_ff: int = 256
    num_layers: int = 2  # Over the items.
    num_depth_layers: int = 1  # Over the codes.
    head: str = "trie"  # "trie", "vocabulary", or "items": a softmax over the items, without codes.
    item_share: float = 0.0  # Of an item tower, in [0, 1); 0: none, as for the head "items".
    item_embeddings: bool = (
        True  # Whether items have embeddings of their own, beside those of their codes.
    )
    dropout: float = 0.3
    item_dropout: float = 0.0  # Share of a history's items that are hidden in training.
    dtype: str = "float32"  # Of activations; parameters, norms, softmax and logits stay float32.

    def __post_init__(self):
        check_sizes(self)
        check_head(self, HEADS)
        if not 0 <= self.item_share < 1:
            raise ModelError(f"item_share={self.item_share}: use a number in [0, 1)")
        _ = self.layer  # Checks the width.

    @property
    def layer(self) -> DecoderOnlyConfig:
        """Sizes of the layers."""
        return DecoderOnlyConfig(
            vocab_size=self.vocab_size,
            code_length=self.code_length,
            d_model=self.d_model,
            num_heads=self.num_heads,
            d_ff=self.d_ff,
            num_layers=self.num_layers,
            dropout=self.dropout,
            dtype=self.dtype,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemCache:
    """What the depth decoder keeps of a user: nothing of the history but its last state."""

    of_codes: Cache  # Its shared position is the item state's.
    last: (
        jax.Array
    )  # [B, D]: the state behind the history's last item, which is added to every code.


class ItemDecoder(Headed, nnx.Module):
    """Reads a history as items and predicts the next one code by code, or as a whole.

    With the trie head it has no logits over the vocabulary; it scores the children that it is asked for.
    """

    reads_items = True  # Histories are `ItemHistory`.

    def __init__(self, config: ItemDecoderConfig, *, rngs: nnx.Rngs):
        width, dtype = config.d_model, jnp.dtype(config.dtype)

        def table(rows: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, width)))

        self.config = config
        self.codes_in = table(config.vocab_size)
        if config.item_embeddings:
            self.items_in = table(config.num_items)
        self.layers = nnx.List([Layer(config.layer, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(width, dtype=dtype)
        if config.head == "items":
            self.items_out = table(config.num_items)
            return
        self.codes_before = table(config.vocab_size)
        depth = dataclasses.replace(config.layer, num_layers=config.num_depth_layers)
        self.depth_layers = nnx.List([Layer(depth, rngs=rngs) for _ in range(depth.num_layers)])
        self.depth_norm = RMSNorm(width, dtype=dtype)
        if config.head == "trie":
            facets = (config.num_facets, config.num_first)
            self.head = TrieHead(width, config.vocab_size, config.num_nodes, facets, rngs=rngs)
        else:
            self.head = Linear(width, config.vocab_size, rngs=rngs, dtype=jnp.float32)
        if self.item_share:
            tower = dataclasses.replace(
                config, head="items", item_share=0.0, num_nodes=0, num_first=0
            )
            self.tower = ItemDecoder(tower, rngs=rngs)

    @property
    def item_share(self) -> float:
        """Share of the item tower `tower` in the model's distribution; see `gr.models.item_share`."""
        return 0.0 if self.config.head == "items" else self.config.item_share

    @property
    def scores_items(self) -> bool:
        """Whether it scores whole items; see `gr.models.scores_items`."""
        return self.config.head == "items"

    # Scores.

    def logits(self, hidden: jax.Array) -> jax.Array:
        """See `Trainable.logits`; for the vocabulary head."""
        check_vocabulary_head(self.config)
        return self.head(hidden.astype(jnp.float32))

    def item_logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[..., N]` float32 of all items, for head "items", of states `[..., D]`."""
        return hidden.astype(jnp.float32) @ self.items_out[...].T

    # Training.

    def item_states(self, history: ItemHistory, *, key: jax.Array | None = None) -> jax.Array:
        """The state `[B, T, D]` behind each item of the histories, from which the next item is predicted."""
        return self._item_states(history, dropout_seed(key))

    def last_state(self, history: ItemHistory, *, key: jax.Array | None = None) -> jax.Array:
        """The state `[B, D]` behind the last item of each history."""
        return self._last(self._item_states(history, dropout_seed(key)), history)

    def target_states(
        self, history: ItemHistory, target: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """See `ChildScorer.target_states`."""
        item_seed, depth_seed = split_seed(dropout_seed(key), 2)
        last = self._last(self._item_states(history, item_seed), history)
        return self._depth_states(last, target[:, None, :-1], depth_seed)[:, 0]

    def sequence_states(self, items: ItemHistory, *, key: jax.Array | None = None) -> jax.Array:
        """See `ChildScorer.sequence_states`."""
        item_seed, depth_seed = split_seed(dropout_seed(key), 2)
        states = self._item_states(_all_but_last(items), item_seed)
        return self._of_places(states, items, depth_seed)

    def group_states(
        self, history: ItemHistory, codes: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """See `Trainable.group_states`."""
        item_seed, depth_seed = split_seed(dropout_seed(key), 2)
        last = self._last(self._item_states(history, item_seed), history)
        return self._depth(last, codes, depth_seed)

    def target_and_group_states(
        self,
        history: ItemHistory,
        target: jax.Array,
        rows: jax.Array,
        codes: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """See `Trainable.target_and_group_states`."""
        item_seed, target_seed, group_seed = split_seed(dropout_seed(key), 3)
        last = self._last(self._item_states(history, item_seed), history)
        states = self._depth_states(last, target[:, None, :-1], target_seed)[:, 0]
        return states, self._depth(last[rows], codes, group_seed)[1]

    def sequence_and_group_states(
        self,
        items: ItemHistory,
        rows: jax.Array,
        places: jax.Array,
        codes: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """See `Trainable.sequence_and_group_states`."""
        item_seed, target_seed, group_seed = split_seed(dropout_seed(key), 3)
        states = self._item_states(_all_but_last(items), item_seed)
        of_places = self._of_places(states, items, target_seed)
        return of_places, self._depth(states[rows, places - 1], codes, group_seed)[1]

    # Decoding.

    def prefill(self, history: ItemHistory) -> tuple[jax.Array | None, jax.Array, ItemCache]:
        """See `Backbone.prefill`, or `ChildScorer.prefill` with the trie head; at least one item per user."""
        last = self.last_state(history)
        hidden, kept = self._begin(last, [None] * len(self.depth_layers))
        shared = tuple(heads_first(*of_layer) for of_layer in kept)
        cache = Cache(
            shared=shared,
            shared_mask=jnp.ones((len(last), 1), bool),
            lengths=jnp.ones(len(last), jnp.int32),
            **own_fields(shared, self.config.code_length),
        )
        hidden = hidden[:, 0]
        return self.logits_or_none(hidden), hidden, ItemCache(cache, last)

    def step(
        self, tokens: jax.Array, cache: ItemCache
    ) -> tuple[jax.Array | None, jax.Array, ItemCache]:
        """See `Backbone.step`, or `ChildScorer.step` with the trie head."""
        x, of_codes = self._embed_codes(tokens, None) + cache.last[:, None], cache.of_codes
        x, of_codes = step_layers(self.depth_layers, x, 1 + of_codes.num_decoded, of_codes)
        hidden = self.depth_norm(x)
        return self.logits_or_none(hidden), hidden, ItemCache(of_codes, cache.last)

    def reorder(self, cache: ItemCache, parents: jax.Array) -> ItemCache:
        """See `Backbone.reorder`."""
        return ItemCache(reorder_cache(cache.of_codes, parents), cache.last)

    def latest(self, cache: ItemCache) -> tuple[Keys, ...]:
        """See `TreeBackbone.latest`."""
        return latest_keys(cache.of_codes)

    def assemble(
        self, cache: ItemCache, stored: tuple[Keys, ...], paths: jax.Array, depths: jax.Array
    ) -> ItemCache:
        """See `TreeBackbone.assemble`; the empty prefix is the item's state, which all beams share."""
        of_codes = assemble_cache(cache.of_codes, stored, paths, depths, at_root=0)
        return ItemCache(of_codes, cache.last)

    # Parts.

    def _item_states(self, history: ItemHistory, seed: jax.Array | None) -> jax.Array:
        """States `[B, T, D]` of right-padded histories."""
        _check_history(history)
        hide_seed, embed_seed, *layer_seeds = split_seed(seed, 2 + len(self.layers))
        x = self.codes_in[...][history.tokens].sum(axis=-2)
        if self.config.item_embeddings:
            known = (history.rows >= 0) & (history.rows < self.config.num_items)
            own = self.items_in[...][jnp.where(known, history.rows, 0)]
            x = x + jnp.where(known[..., None], own, 0.0)
        x = x * hidden_items(history.rows, self.config.item_dropout, hide_seed)[..., None]
        x = dropout(x.astype(self.config.dtype), self.config.dropout, embed_seed)
        return self.norm(run_layers(self.layers, x, layer_seeds)[0])

    def _last(self, states: jax.Array, history: ItemHistory) -> jax.Array:
        last = item_lengths(history.tokens) - 1
        return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]

    def _of_places(
        self, states: jax.Array, items: ItemHistory, seed: jax.Array | None
    ) -> jax.Array:
        """States `[B, T - 1, L, D]` that predict items 1..T-1, each from its place in `states [B, T - 1, D]`."""
        batch, places, width = states.shape
        codes = items.tokens[:, 1:, :-1].reshape(batch * places, 1, -1)
        found = self._depth_states(states.reshape(-1, width), codes, seed)
        return found.reshape(batch, places, -1, width)

    def _depth_states(self, last: jax.Array, codes: jax.Array, seed: jax.Array | None) -> jax.Array:
        """States `[R, n, S + 1, D]` behind item states `last [R, D]` and each of the first codes `[R, n, S]`."""
        first, later = self._depth(last, codes, seed)
        first = jnp.broadcast_to(first[:, None, None], (*codes.shape[:2], 1, first.shape[-1]))
        return jnp.concatenate([first, later], axis=2)

    def _depth(
        self, last: jax.Array, codes: jax.Array, seed: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The depth decoder's state behind item states `[R, D]`, and behind each of the codes `[R, n, S]`."""
        embed_seed, first_seed, later_seed = split_seed(seed, 3)
        count = len(self.depth_layers)
        first, kept = self._begin(last, split_seed(first_seed, count))
        x = self._embed_codes(codes, embed_seed) + last[:, None, None]
        ends = jnp.ones(len(codes), jnp.int32)
        if codes.shape[-1] == 0:
            return first[:, 0], x
        later = continue_layers(self.depth_layers, x, kept, ends, split_seed(later_seed, count))
        return first[:, 0], self.depth_norm(later)

    def _begin(
        self, last: jax.Array, seeds: list[jax.Array | None]
    ) -> tuple[jax.Array, list[Keys]]:
        """The depth decoder on item states `[R, D]`: `[R, 1, D]`, and its keys and values `[R, 1, H, D]`."""
        x, kept = run_layers(self.depth_layers, last[:, None], seeds)
        return self.depth_norm(x), kept

    def _embed_codes(self, tokens: jax.Array, seed: jax.Array | None) -> jax.Array:
        x = self.codes_before[...][tokens].astype(self.config.dtype)
        return dropout(x, self.config.dropout, seed)


def hidden_items(rows: jax.Array, rate: float, seed: jax.Array | None) -> jax.Array:
    """1 for items `[B, T]` that are seen, 0 for those hidden, with probability `rate`; all 1 without a seed."""
    return (dropout(jnp.ones(rows.shape), rate, seed) > 0).astype(jnp.float32)


def _check_history(history: ItemHistory) -> None:
    if not isinstance(history, ItemHistory):
        raise ModelError(
            f"a history must be an ItemHistory(rows [B, T], tokens [B, T, L]), got {type(history).__name__}: "
            "make it by `gr.models.histories_for`"
        )


def _all_but_last(items: ItemHistory) -> ItemHistory:
    _check_history(items)
    return ItemHistory(items.rows[:, :-1], items.tokens[:, :-1])
