"""`MixedBackbone`: two backbones stepped side by side as one, whose distribution is exactly their mixture."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr.models.backbone import (
    ItemHistory,
    ModelError,
    check_no_tower,
    reads_items,
    scores_children,
    scores_items,
)


class MixedCache(NamedTuple):
    """The caches of two models, and what each of them thinks of the beams."""

    caches: tuple[Any, Any]
    # Of each model, its weight included: log-probabilities of the beams, and of their next tokens.
    prefixes: tuple[jax.Array, jax.Array]  # [B, M] each.
    following: tuple[jax.Array, jax.Array]  # [B, M, V] each.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixedBackbone:
    """A `Backbone` with the probability `weight * P1 + (1 - weight) * P2` of each semantic ID.

    A mixture of whole semantic IDs is no mixture of next tokens: after a prefix that one model finds unlikely, that
    model counts less. With p_k the probability of the prefix under model k, the next token has

        (w p_1 P1(token | prefix) + (1 - w) p_2 P2(token | prefix)) / (w p_1 + (1 - w) p_2),

    so that the product over the tokens is the mixture. Each model's distribution is over its whole vocabulary, as
    trained by cross-entropy: search with `normalise_over="vocabulary"` and without a temperature. Both need one
    vocabulary, that of the index. One may read items and the other tokens. Models that score children are mixed through
    `OverVocabulary`. Hidden states are those of the first.

    Raises:
        ModelError: for a model that scores children or items instead of tokens.
    """

    first: Any
    second: Any
    weight: jax.Array | float  # Of the first model, 0 to 1, for all users or each `[B]`.

    def __post_init__(self) -> None:
        for name, model in (("first", self.first), ("second", self.second)):
            check_no_tower(model)
            if scores_children(model) or scores_items(model):
                remedy = (
                    "mix models of semantic IDs"
                    if scores_items(model)
                    else "mix OverVocabulary(model, index)"
                )
                raise ModelError(
                    f"{name}={type(model).__name__} has no probabilities of tokens: {remedy}"
                )

    @property
    def reads_items(self) -> bool:
        """Whether histories are `ItemHistory`: if one of the models reads items."""
        return reads_items(self.first) or reads_items(self.second)

    def prefill(self, history: Any) -> tuple[jax.Array, jax.Array, MixedCache]:
        """See `Backbone.prefill`."""
        found = [model.prefill(of) for model, of in self._with_histories(history)]
        shares = self._log_shares(len(found[0][0]))
        prefixes = tuple(share[:, None] for share in shares)
        following = tuple(
            prefix[..., None] + _log_probs(logits)[:, None]
            for prefix, (logits, _, _) in zip(prefixes, found, strict=True)
        )
        cache = MixedCache((found[0][2], found[1][2]), prefixes, following)
        return _mixed(cache)[:, 0], found[0][1], cache

    def step(self, tokens: jax.Array, cache: MixedCache) -> tuple[jax.Array, jax.Array, MixedCache]:
        """See `Backbone.step`."""
        found = [
            model.step(tokens, of)
            for model, of in zip((self.first, self.second), cache.caches, strict=True)
        ]
        prefixes = tuple(
            jnp.take_along_axis(before, tokens[..., None], axis=-1, mode="clip")[..., 0]
            for before in cache.following
        )
        following = tuple(
            prefix[..., None] + _log_probs(logits)
            for prefix, (logits, _, _) in zip(prefixes, found, strict=True)
        )
        cache = MixedCache((found[0][2], found[1][2]), prefixes, following)
        return _mixed(cache), found[0][1], cache

    def reorder(self, cache: MixedCache, parents: jax.Array) -> MixedCache:
        """See `Backbone.reorder`."""
        caches = [
            model.reorder(of, parents)
            for model, of in zip((self.first, self.second), cache.caches, strict=True)
        ]
        kept = [jnp.take_along_axis(of, parents, axis=1) for of in cache.prefixes]
        following = [jnp.take_along_axis(of, parents[..., None], axis=1) for of in cache.following]
        return MixedCache(tuple(caches), tuple(kept), tuple(following))

    def target_logits(self, history: Any, target: jax.Array) -> jax.Array:
        """The log-probabilities of every code `[B, L, V]` behind the codes of one target `[B, L]` before it."""
        prefixes, following = [], []
        shares = self._log_shares(len(target))
        for (model, of), share in zip(self._with_histories(history), shares, strict=True):
            log_probs = _log_probs(model.target_logits(of, target))
            of_codes = jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]
            before = jnp.pad(jnp.cumsum(of_codes, axis=1)[:, :-1], ((0, 0), (1, 0)))
            prefixes.append(share[:, None] + before)
            following.append(prefixes[-1][..., None] + log_probs)
        return _mixed(MixedCache((None, None), tuple(prefixes), tuple(following)))

    def _with_histories(self, history: Any) -> list[tuple[Any, Any]]:
        """Each model with the history as it reads it."""
        tokens = history.tokens if isinstance(history, ItemHistory) else history
        models = (self.first, self.second)
        return [(model, history if reads_items(model) else tokens) for model in models]

    def _log_shares(self, num_users: int) -> tuple[jax.Array, jax.Array]:
        weight = jnp.broadcast_to(jnp.asarray(self.weight, jnp.float32), (num_users,))
        return jnp.log(weight), jnp.log1p(-weight)


def _log_probs(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def _mixed(cache: MixedCache) -> jax.Array:
    """The mixture's log-probabilities of the next token; of a prefix that neither model can make, -inf."""
    before = jnp.logaddexp(*cache.prefixes)[..., None]
    mixed = jnp.logaddexp(*cache.following) - before
    return jnp.where(jnp.isneginf(before), -jnp.inf, mixed)
