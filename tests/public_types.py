"""Read by mypy alone: a user's program, to which the library's exports must have the types that they say."""

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np

import gr
from gr.data import Sequences, Splits, leave_one_out, load_sequences
from gr.decoding import Candidates, beam_search
from gr.losses import cross_entropy
from gr.models import Backbone, DecoderOnly, EncoderDecoder
from gr.semantic_ids import SemanticIds
from gr.trie import Constraint, ExcludeItems, ItemMask, TrieError, TrieIndex


def splits_of(path: str) -> Splits:
    sequences = load_sequences("table", path)
    assert_type(sequences, Sequences)
    return leave_one_out(sequences)


def candidates(
    backbone: Backbone, history: Any, ids: SemanticIds, seen: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    index = TrieIndex.build(ids.tokens, vocab_size=32)
    assert_type(index, TrieIndex)
    constraint: tuple[Constraint, ...] = (ItemMask.deny(index, np.array([0])), ExcludeItems(seen))
    found = beam_search(backbone, index, history, num_beams=20, constraint=constraint)
    assert_type(found, Candidates)
    return found.items, found.scores


def both_models_are_backbones(one: EncoderDecoder, other: DecoderOnly) -> list[Backbone]:
    return [one, other]


def a_room_on_first_use(path: str) -> gr.GrError:
    assert_type(gr.data.load_sequences("table", path), Sequences)
    assert_type(gr.__version__, str)
    loss, metrics = cross_entropy(jnp.zeros((2, 3)), jnp.ones(2), 2.0)
    assert_type(metrics, dict[str, jax.Array])
    return TrieError(f"{loss}")
