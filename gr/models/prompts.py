"""Histories as prompts: text and semantic IDs in one row of tokens, for language models."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr.data.prompts import PromptPieces
from gr.models.layers import item_lengths


class Prompt(NamedTuple):
    """Histories as plain rows of tokens, such as `gr.data.encode_prompts` makes.

    Text tokens are the tokenizer's. The semantic-ID token t, of `SemanticIds.tokens`, is the offset + t, where the
    offset is the backbone's `config.num_text_tokens`.
    """

    tokens: jax.Array  # [B, P] int32, right-padded with anything.
    lengths: jax.Array  # [B] int32: tokens of each, at least 1.


def as_prompt(history: Any, pieces: PromptPieces, offset: int) -> Prompt:
    """The prompt of a history: itself, or that of items' tokens `[B, T, L]` by a template's pieces.

    Args:
        history: a `Prompt`, or the items' tokens, right-padded with 0.
        pieces: the template's tokens.
        offset: number of text tokens, which is added to semantic-ID tokens.

    Returns:
        The pieces around and between the items, of every user behind each other: `[B, P]`.
    """
    if isinstance(history, Prompt):
        return history
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
