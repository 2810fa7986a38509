"""What a run's model starts from: vectors of the items' text and of their interactions."""

import dataclasses

import numpy as np
import pytest

from gr.data import leave_one_out, synthetic_sequences, training_interactions
from gr.models import start_from_vectors, unit_vectors
from gr.runs import ConfigError, Experiment, build
from gr.runs.content import from_vectors
from gr.semantic_ids import (
    SemanticIdError,
    SemanticIds,
    interaction_vectors,
    item_texts,
    text_vectors,
)

ITEMS, WIDTH = 20, 8
WORDS = np.array("pen ink paper desk lamp chair".split())


def made(texts=True, **fields):
    """An untrained model, and all that `from_vectors` needs."""
    fields = {"backbone": "item_decoder"} | {
        f"item_decoder.{name}": value
        for name, value in ({"d_model": WIDTH, "num_heads": 2, "d_ff": 8} | fields).items()
    }
    config = Experiment().override(fields)
    splits = leave_one_out(synthetic_sequences(num_users=30, num_items=ITEMS, mean_length=8))
    titles = WORDS[np.random.default_rng(0).integers(0, 6, (ITEMS, 2))]
    named = {"title": np.array([" ".join(of) for of in titles])} if texts else {}
    splits = dataclasses.replace(
        splits, sequences=dataclasses.replace(splits.sequences, item_fields=named)
    )
    codes = np.stack(np.unravel_index(np.arange(ITEMS), (3, 3, 3)), axis=1)
    ids = SemanticIds(codes, (3, 3, 3), splits.sequences.item_ids)
    model, catalogue = build.make_model(config, ids), build.make_catalogue(config, ids)
    return config, model, splits, ids, catalogue


def text(splits, width):
    return text_vectors(item_texts(splits.sequences), width, 0)


def interactions(splits, width):
    return interaction_vectors(splits.sequences, training_interactions(splits), width, 0)


def check(found, model, splits, ids, catalogue, blocks, scale):
    vectors = unit_vectors(blocks)
    expected = start_from_vectors(model, catalogue.index, ids.tokens, vectors, scale)
    for name in ("items_in", "head"):
        one, other = (getattr(of, name) for of in (found, expected))
        one, other = (of.nodes[...] if name == "head" else of[...] for of in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "texts", "blocks"),
    [
        ("all", True, lambda splits: [text(splits, 4), interactions(splits, 4)]),
        ("all", False, lambda splits: [interactions(splits, 8)]),
        ("text", True, lambda splits: [text(splits, 8)]),
        ("interactions", True, lambda splits: [interactions(splits, 8)]),
    ],
)
def test_a_model_starts_from_what_the_data_have(kind, texts, blocks):
    config, model, splits, ids, catalogue = made(texts, start_from=kind, start_scale=0.7)
    found = from_vectors(config, model, splits, ids, catalogue)
    check(found, model, splits, ids, catalogue, blocks(splits), 0.7)


def test_it_may_start_at_random():
    config, model, splits, ids, catalogue = made(start_from="none")
    assert from_vectors(config, model, splits, ids, catalogue) is model


def test_validation_and_test_count_for_nothing():
    config, model, splits, ids, catalogue = made()
    sequences = splits.sequences
    other = sequences.items.copy()
    for held in (splits.validation, splits.test):
        other[held.positions] = (other[held.positions] + 7) % ITEMS
    changed = dataclasses.replace(splits, sequences=dataclasses.replace(sequences, items=other))
    one, same = (from_vectors(config, model, of, ids, catalogue) for of in (splits, changed))
    np.testing.assert_array_equal(one.items_in[...], same.items_in[...])


def test_what_the_data_lack_is_left_out_with_a_note_or_refused(capsys):
    config, model, splits, ids, catalogue = made(start_scale=0.5)
    wordless = {"title": np.full(ITEMS, "the")}
    splits = dataclasses.replace(
        splits, sequences=dataclasses.replace(splits.sequences, item_fields=wordless)
    )
    found = from_vectors(config, model, splits, ids, catalogue)
    assert "start_from='all' goes without text: no usable words" in capsys.readouterr().out
    # In its half of the width, as beside a text.
    vectors = np.pad(unit_vectors([interactions(splits, 4)]), ((0, 0), (0, 4)))
    expected = start_from_vectors(model, catalogue.index, ids.tokens, vectors, 0.5)
    np.testing.assert_allclose(found.items_in[...], expected.items_in[...], rtol=1e-6)
    config, model, splits, ids, catalogue = made(texts=False, start_from="text")
    with pytest.raises(SemanticIdError, match="the items have no text"):
        from_vectors(config, model, splits, ids, catalogue)
    with pytest.raises(ConfigError, match="item_decoder.start_from='texts' is unknown"):
        made(start_from="texts")
