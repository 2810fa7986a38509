"""Histories as models read them; as prompts, text and semantic IDs in one row of tokens, for language models."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr.data.prompts import PromptPieces, TitledPieces
from gr.models.backbone import ItemHistory, ModelError, reads_items
from gr.models.layers import item_lengths


class Prompt(NamedTuple):
    """Histories as plain rows of tokens, such as `gr.data.encode_prompts` makes.

    Text tokens are the tokenizer's. The semantic-ID token t, of `SemanticIds.tokens`, is the offset + t, where the
    offset is the backbone's `config.num_text_tokens`.
    """

    tokens: jax.Array  # [B, P] int32, right-padded with anything.
    lengths: jax.Array  # [B] int32: tokens of each, at least 1.


def histories_for(
    model: Any, table: jax.Array, rows: jax.Array, pieces: TitledPieces | None = None
) -> Any:
    """Histories of item rows `[B, T]` as a model reads them: tokens `[B, T, L]`, an `ItemHistory`, or a `Prompt`.

    Args:
        model: the backbone.
        table: `[N + 1, L]`, the tokens of each item, and padding in its last row, see `gr.trie.item_token_table`.
        rows: oldest first, right-padded with -1.
        pieces: a template with titles, as `Catalogue.pieces` has it: histories are prompts; None: there is none.
    """
    tokens = table[rows]
    if pieces is not None:
        return titled_prompt(rows, tokens, pieces, model.config.num_text_tokens)
    return ItemHistory(rows, tokens) if reads_items(model) else tokens


def titled_prompt(rows: jax.Array, history: jax.Array, pieces: TitledPieces, offset: int) -> Prompt:
    """The prompts `[B, P]` of item rows `[B, T]` and their tokens `[B, T, L]` by a template that writes titles.

    P is that of T items with the longest titles. `offset` is the number of text tokens.
    """
    if pieces.num_text_tokens > offset:
        raise ModelError(
            f"titles have token {pieces.num_text_tokens - 1}, and num_text_tokens={offset}: the model needs the "
            "tokenizer's text tokens"
        )
    rows = jnp.asarray(rows)
    before, between, after = map(jnp.asarray, (pieces.before, pieces.between, pieces.after))
    real = rows >= 0
    of_items = jnp.where(real[..., None], jnp.asarray(history, jnp.int32) + offset, -1)
    gaps = between[rows[:, 1:] if pieces.of_second else rows[:, :-1]]
    gaps = jnp.where(real[:, 1:, None], gaps, -1)
    last = jnp.take_along_axis(rows, jnp.maximum(real.sum(1, keepdims=True) - 1, 0), axis=1)
    later = jnp.concatenate([gaps, of_items[:, 1:]], axis=2).reshape(len(rows), -1)
    tokens = jnp.concatenate([before[rows[:, 0]], of_items[:, 0], later, after[last[:, 0]]], axis=1)
    # The tokens that are there move together.
    there = tokens >= 0
    places = jnp.where(there, jnp.cumsum(there, axis=1) - 1, tokens.shape[1])
    packed = jnp.zeros_like(tokens)
    packed = packed.at[jnp.arange(len(rows))[:, None], places].set(tokens, mode="drop")
    return Prompt(packed, jnp.maximum(there.sum(axis=1, dtype=jnp.int32), 1))


def as_prompt(history: Any, pieces: PromptPieces, offset: int) -> Prompt:
    """The prompt of a history: itself, or that of items' tokens `[B, T, L]` by a template's pieces.

    Args:
        history: a `Prompt`, or the items' tokens, right-padded with 0.
        pieces: the template's tokens.
        offset: number of text tokens, which is added to semantic-ID tokens.

    Returns:
        The pieces around and between the items, of every user behind each other: `[B, P]`.

    Raises:
        ModelError: for items of which the template writes titles, which are not among the tokens.
    """
    if isinstance(history, Prompt):
        return history
    if pieces.titled:
        raise ModelError(
            "the template writes titles, so a history must be a Prompt: gr.models.histories_for makes it with "
            "gr.data.titled_pieces, which a run's catalogue has if backbone_options.template names the template"
        )
    batch, num_items, length = history.shape
    before, between, after = (
        jnp.array(piece, jnp.int32) for piece in (pieces.before, pieces.between, pieces.after)
    )
    shape = (batch, num_items, between.size)
    of_items = [jnp.asarray(history, jnp.int32) + offset, jnp.broadcast_to(between, shape)]
    stride = length + between.size
    # Behind the last item stands `after`, over what was laid out for padding.
    tokens = jnp.concatenate(
        [
            jnp.broadcast_to(before, (batch, before.size)),
            jnp.concatenate(of_items, axis=2).reshape(batch, -1)[
                :, : num_items * stride - between.size
            ],
            jnp.zeros((batch, after.size), jnp.int32),
        ],
        axis=1,
    )
    ends = before.size + item_lengths(history) * stride - between.size
    place = ends[:, None] + jnp.arange(after.size)
    tokens = tokens.at[jnp.arange(batch)[:, None], place].set(after)
    return Prompt(tokens, ends + after.size)


def embed_prompt(model: Any, tokens: jax.Array) -> jax.Array:
    """Embeddings `[..., D]` of a prompt's tokens: of text, and of semantic IDs behind it."""
    codes, num_text = model.embedding[...], model.config.num_text_tokens
    if not num_text:
        return jnp.take(codes, tokens, axis=0)
    return jnp.where(
        (tokens < num_text)[..., None],
        model.text_embedding[...].at[tokens].get(mode="clip"),
        codes.at[jnp.maximum(tokens - num_text, 0)].get(mode="clip"),
    )
