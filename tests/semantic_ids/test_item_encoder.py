"""The saved fit gives old items their codes again and new ones theirs; cold items take no part in it."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from gr.data import Sequences, cold_start, leave_one_out
from gr.data.files import read_arrays, write_arrays
from gr.semantic_ids import (
    ItemEncoder,
    SemanticIdError,
    content_vectors,
    fit_semantic_ids,
    item_texts,
    with_new_items,
)
from gr.semantic_ids.item_vectors import TextEncoder
from gr.semantic_ids.terms import terms

WORDS = "pen ink paper glossy phone cordless desk lamp chair stapler blue red large small".split()
RNG = np.random.default_rng(0)
NUM_ITEMS, NUM_USERS, LENGTH = 120, 60, 8
SMALL = {"dim": 6, "num_levels": 2, "codebook_size": 6, "min_perplexity": 0.0}


def text(count):
    return " ".join(RNG.choice(WORDS, count))


SEQUENCES = Sequences(
    items=np.concatenate([RNG.permutation(NUM_ITEMS)[:LENGTH] for _ in range(NUM_USERS)]).astype(
        np.int32
    ),
    offsets=np.arange(NUM_USERS + 1) * LENGTH,
    user_ids=np.arange(NUM_USERS).astype(str),
    item_ids=np.array([f"i{i}" for i in range(NUM_ITEMS)]),
    item_fields={
        "title": np.array([text(4) for _ in range(NUM_ITEMS)], object),
        "brand": np.array([text(1) for _ in range(NUM_ITEMS)], object),
    },
)
SPLITS = leave_one_out(SEQUENCES)


@pytest.fixture(scope="module")
def of_text():
    return fit_semantic_ids(SPLITS, vectors="text", **SMALL)


def saved(encoder, tmp_path):
    encoder.save(tmp_path / "fit.npz")
    return ItemEncoder.load(tmp_path / "fit.npz")


def test_items_of_the_fit_get_its_codes_again_also_from_the_file(of_text, tmp_path):
    loaded = saved(of_text.encoder, tmp_path)
    for encoder in (of_text.encoder, loaded):
        codes = encoder.encode_fields(SEQUENCES.item_fields)
        np.testing.assert_array_equal(codes, of_text.semantic_ids.codes[:, :2])
    assert (loaded.fields, loaded.vectors, loaded.text_model) == (
        ("title", "brand"),
        "text",
        "tfidf",
    )
    # One item alone gets what it gets among others.
    one = {name: column[[7]] for name, column in SEQUENCES.item_fields.items()}
    assert loaded.encode_fields(one).tolist() == [of_text.semantic_ids.codes[7, :2].tolist()]


def test_the_vector_of_a_text_is_that_of_a_dictionary(of_text):
    texts = item_texts(SEQUENCES)
    encoder, vectors = TextEncoder.fit(texts, 6, 0)
    np.testing.assert_allclose(encoder.encode(texts), vectors, atol=1e-6)
    place = {term: number for number, term in enumerate(encoder.terms)}
    for new in ("red pen and a red lamp", "blue whale", "unheard of"):
        weights = np.zeros(len(place))
        for term, count in collections.Counter(terms(new)).items():
            if term in place:
                weights[place[term]] = (1 + np.log(count)) * encoder.idf[place[term]]
        row = (weights / (np.linalg.norm(weights) or 1.0)) @ encoder.components
        row /= np.linalg.norm(row) or 1.0
        np.testing.assert_allclose(encoder.encode([new])[0], row, atol=1e-6)
    assert not encoder.encode(["unheard of"]).any()


def test_items_without_interactions_count_as_such_where_the_fit_saw_some(tmp_path):
    fitted = fit_semantic_ids(SPLITS, vectors="both", **SMALL)
    encoder = saved(fitted.encoder, tmp_path)
    blocks = encoder.text_blocks(SEQUENCES.item_fields)
    assert [block.shape for block in blocks] == [(NUM_ITEMS, 6), (NUM_ITEMS, 6)]
    assert not blocks[1].any()
    np.testing.assert_array_equal(
        encoder.encode_fields(SEQUENCES.item_fields), encoder.encode_blocks(blocks)
    )


def test_ready_vectors_are_encoded_in_the_space_of_the_fit(tmp_path):
    vectors = RNG.normal(size=(NUM_ITEMS, 5))
    np.savez(tmp_path / "v.npz", vectors=vectors, item_ids=SEQUENCES.item_ids)
    path = str(tmp_path / "v.npz")
    fitted = fit_semantic_ids(SPLITS, vectors=path, **SMALL)
    encoder = saved(fitted.encoder, tmp_path)
    np.testing.assert_array_equal(encoder.encode_vectors(vectors), fitted.semantic_ids.codes[:, :2])
    np.testing.assert_array_equal(content_vectors(encoder, SPLITS), vectors)
    with pytest.raises(SemanticIdError, match="width 4, those of the fit 5"):
        encoder.encode_vectors(vectors[:, :4])
    with pytest.raises(SemanticIdError, match=r"vectors of .*v\.npz; give the new items' vectors"):
        encoder.encode_fields(SEQUENCES.item_fields)


def test_refusals(of_text, tmp_path):
    with pytest.raises(SemanticIdError, match="no item field 'brand'.*title, brand"):
        of_text.encoder.encode_fields({"title": np.array(["pen"])})
    with pytest.raises(SemanticIdError, match="made from text, not from ready vectors"):
        of_text.encoder.encode_vectors(np.zeros((1, 6)))
    by_use = fit_semantic_ids(SPLITS, vectors="interactions", **SMALL).encoder
    with pytest.raises(SemanticIdError, match=r"interactions alone.*semantic_ids\.vectors=text"):
        by_use.encode_fields(SEQUENCES.item_fields)
    path = tmp_path / "fit.npz"
    of_text.encoder.save(path)
    arrays = read_arrays(path)
    header = json.loads(arrays["header"].tobytes()) | {"format_version": 99}
    write_arrays(path, arrays | {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)})
    with pytest.raises(SemanticIdError, match="99 is newer"):
        ItemEncoder.load(path)
    for content in (b"", b"PK\x03\x04", b"{}"):
        path.write_bytes(content)
        with pytest.raises(SemanticIdError, match="not a saved fit"):
            ItemEncoder.load(path)


@pytest.mark.parametrize("vectors", ["text", "ready"])
def test_cold_items_are_those_of_a_fit_without_them(vectors, tmp_path):
    if vectors == "ready":
        vectors = str(tmp_path / "v.npz")
        np.savez(vectors, vectors=RNG.normal(size=(NUM_ITEMS, 5)), item_ids=SEQUENCES.item_ids)
    splits = cold_start(SEQUENCES, 0.2, seed=3)
    fitted = fit_semantic_ids(splits, vectors=vectors, **SMALL)
    # The same fit on a catalogue that never held the cold items. Whose interactions they are is of no matter to it.
    cold, warm = np.flatnonzero(splits.cold), np.flatnonzero(~splits.cold)
    sequences = dataclasses.replace(
        splits.sequences,
        items=splits.sequences.items % len(warm),
        item_ids=SEQUENCES.item_ids[warm],
        item_fields=fields_of(warm),
    )
    without = fit_semantic_ids(leave_one_out(sequences), vectors=vectors, **SMALL)
    if vectors == "text":
        codes = without.encoder.encode_fields(fields_of(cold))
    else:
        codes = without.encoder.encode_vectors(content_vectors(without.encoder, SPLITS)[cold])
    added = with_new_items(without.semantic_ids, codes, SEQUENCES.item_ids[cold], grow=True)
    np.testing.assert_array_equal(added.select(SEQUENCES.item_ids).codes, fitted.semantic_ids.codes)
    assert fitted.report["cold_items"] == len(cold) == 24


def fields_of(rows):
    return {name: column[rows] for name, column in SEQUENCES.item_fields.items()}


@pytest.mark.parametrize("vectors", ["text", "both"])
def test_cold_items_move_no_code_of_another_item(vectors):
    splits = cold_start(SEQUENCES, 0.2, seed=3)
    before = fit_semantic_ids(splits, vectors=vectors, **SMALL).semantic_ids
    # Other texts of cold items, and other cold items in place of each held-out one.
    fields = {
        name: np.where(splits.cold, "quite another thing", column)
        for name, column in SEQUENCES.item_fields.items()
    }
    items = splits.sequences.items
    other = np.where(splits.cold[items], np.flatnonzero(splits.cold)[0], items).astype(np.int32)
    changed = dataclasses.replace(splits.sequences, items=other, item_fields=fields)
    after = fit_semantic_ids(
        dataclasses.replace(splits, sequences=changed), vectors=vectors, **SMALL
    ).semantic_ids
    np.testing.assert_array_equal(before.codes[~splits.cold], after.codes[~splits.cold])
    assert (before.codes[splits.cold] != after.codes[splits.cold]).any()


def test_cold_items_have_no_ids_of_interactions_or_of_a_finished_file():
    splits = cold_start(SEQUENCES, 0.2)
    for options in ({"vectors": "interactions"}, {"path": "x.index.json"}):
        with pytest.raises(SemanticIdError, match=r"the split has cold items.*vectors=text"):
            fit_semantic_ids(splits, **options)
