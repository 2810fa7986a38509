"""Item vectors from text and from interactions."""

import sys

import numpy as np
import pytest

from gr.data import training_interactions
from gr.data.sequences import Sequences, Splits, Targets
from gr.semantic_ids import (
    SemanticIdError,
    catalogue_vectors,
    concatenate_vectors,
    interaction_vectors,
    item_texts,
    load_vectors,
    sentence_vectors,
    text_vectors,
)


def sequences_of(histories, num_items, **fields):
    return Sequences(
        items=np.concatenate([np.array(h, np.int32) for h in histories]),
        offsets=np.cumsum([0] + [len(h) for h in histories]),
        user_ids=np.array([f"u{u}" for u in range(len(histories))]),
        item_ids=np.array([f"i{i}" for i in range(num_items)]),
        item_fields={name: np.array(values) for name, values in fields.items()},
    )


def targets(*pairs):
    users, positions = zip(*pairs, strict=True) if pairs else ((), ())
    return Targets(np.array(users, np.int32), np.array(positions, np.int64))


def everything(sequences):
    return np.ones(len(sequences.items), bool)


def test_texts_join_fields_and_resolve_entities():
    data = sequences_of(
        [[0, 1]], 2, title=["AT&amp;T  phone", "pen &quot;x&quot;"], brand=["AT&T", ""]
    )
    assert item_texts(data) == ["AT&T phone AT&T", 'pen "x"']
    assert item_texts(data, ["brand"]) == ["AT&T", ""]
    with pytest.raises(SemanticIdError, match="no item field 'price'"):
        item_texts(data, ["price"])
    with pytest.raises(SemanticIdError, match="no text; use vectors='interactions'"):
        item_texts(sequences_of([[0, 1]], 2))
    with pytest.raises(SemanticIdError, match="no text"):
        item_texts(sequences_of([[0]], 1, title=[" "]))


TEXTS = ["red ink pen", "blue ink pen", "corded phone", "cordless phone handset", "", "the"]


def test_text_vectors_put_like_with_like():
    vectors = text_vectors(TEXTS, dim=4, seed=0)
    assert vectors.shape == (6, 4) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 1, 0, 0], atol=1e-6)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.3 and similarity[2, 3] > 0.1
    np.testing.assert_allclose(similarity[:2, 2:4], 0, atol=1e-6)  # No common word.
    np.testing.assert_array_equal(vectors, text_vectors(TEXTS, dim=4, seed=0))


def test_text_vectors_beyond_the_rank_are_zero():
    vectors = text_vectors(["a1 b1", "c1"], dim=5, seed=0)
    assert vectors.shape == (2, 5)
    np.testing.assert_array_equal(vectors[:, 2:], 0)
    with pytest.raises(SemanticIdError, match="no usable words"):
        text_vectors(["the", "and"], dim=2, seed=0)
    with pytest.raises(SemanticIdError, match="dim must be at least 1"):
        text_vectors(TEXTS, dim=0, seed=0)


def test_sentence_vectors_name_the_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SemanticIdError, match=r"pip install -e '\.\[text\]'"):
        sentence_vectors(["x"], "all-MiniLM-L6-v2")


def test_interaction_vectors_put_companions_together():
    # Items 0, 1, 2 are taken together, so are 3, 4, 5; 6 only after training; 7 by nobody.
    histories = [[0, 1, 2], [2, 1, 0], [1, 0, 2], [3, 4, 5], [5, 4, 3], [4, 3, 5, 6]]
    data = sequences_of(histories, 8)
    training = everything(data)
    training[-1] = False
    vectors = interaction_vectors(data, training, dim=4, seed=0)
    assert vectors.shape == (8, 4) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1] * 6 + [0] * 2, atol=1e-6)
    similarity = vectors @ vectors.T
    np.testing.assert_allclose(similarity[:3, 3:6], 0, atol=1e-6)
    assert similarity[:3, :3].min() > 0.1 and similarity[3:6, 3:6].min() > 0.1
    np.testing.assert_array_equal(vectors, interaction_vectors(data, training, dim=4, seed=0))


def test_held_out_interactions_change_nothing():
    rng = np.random.default_rng(0)
    histories = [rng.permutation(20)[:8].tolist() for _ in range(30)]
    data = sequences_of(histories, 20)
    training = np.tile(np.arange(8) < 6, 30)
    shuffled = [h[:6] + rng.permutation(20)[:2].tolist() for h in histories]
    np.testing.assert_array_equal(
        interaction_vectors(data, training, dim=8, seed=0),
        interaction_vectors(sequences_of(shuffled, 20), training, dim=8, seed=0),
    )


def test_pairs_stay_within_users_and_window():
    # 0 and 1 belong to different users; 2 and 4 are two apart.
    data = sequences_of([[2, 0], [1, 3, 4]], 5)
    near = interaction_vectors(data, everything(data), dim=5, seed=0, window=1)
    far = interaction_vectors(data, everything(data), dim=5, seed=0, window=2)
    # With window 1, items 1 and 4 have the same only neighbour 3, so they point the same way.
    assert near[1] @ near[4] == pytest.approx(1, abs=1e-5)
    assert far[1] @ far[4] < 0.99
    np.testing.assert_allclose(near[[0, 2]] @ near[[1, 3, 4]].T, 0, atol=1e-6)


def test_interaction_vectors_need_pairs():
    data = sequences_of([[0], [1, 1]], 2)
    with pytest.raises(SemanticIdError, match="use vectors='text'"):
        interaction_vectors(data, everything(data), dim=2, seed=0)
    with pytest.raises(SemanticIdError, match="mask of shape"):
        interaction_vectors(data, np.ones(2, bool), dim=2, seed=0)


def test_blocks_contribute_equally_unless_weighted():
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=(50, 3)), 1000 + 40 * rng.normal(size=(50, 7))
    both = concatenate_vectors([small, large])
    assert both.shape == (50, 10) and both.dtype == np.float32
    np.testing.assert_allclose(np.var(both[:, :3], axis=0).sum(), 1, rtol=1e-3)
    np.testing.assert_allclose(np.var(both[:, 3:], axis=0).sum(), 1, rtol=1e-3)
    weighted = concatenate_vectors([small, large], [1, 2])
    np.testing.assert_allclose(weighted[:, 3:], 2 * both[:, 3:], rtol=1e-5)
    with pytest.raises(SemanticIdError, match="2 blocks of vectors and 1 weights"):
        concatenate_vectors([small, large], [1])
    with pytest.raises(SemanticIdError, match="49 rows where the first has 50"):
        concatenate_vectors([small, large[1:]])
    with pytest.raises(SemanticIdError, match="item row 3 is not finite"):
        concatenate_vectors([small, np.where(np.arange(50)[:, None] == 3, np.nan, large)])


CONSTANT = "all items have the same vector in one block; leave it out"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("steps", [0, 1, 2], ids=lambda steps: f"{steps} steps of rounding")
def test_blocks_that_are_constant_but_for_rounding_are_refused(dtype, magnitude, steps):
    rng = np.random.default_rng(0)
    row = (magnitude * rng.normal(size=3)).astype(dtype)
    block = row + rng.integers(-steps, steps + 1, size=(50, 3)) * np.spacing(np.abs(row))
    block = block.astype(dtype)
    with pytest.raises(SemanticIdError, match=CONSTANT):
        concatenate_vectors([rng.normal(size=(50, 2)), block])
    # One item apart is no rounding, wherever the others are.
    block = np.tile(row, (50, 1))
    block[7, 0] += dtype(0.01 * magnitude)
    scaled = concatenate_vectors([block])
    assert np.abs(scaled).max() == pytest.approx(np.sqrt(50 * 50 / 49), rel=1e-3)
    assert (np.delete(scaled, 7, axis=0) == scaled[0]).all()


def test_a_constant_column_stays_out_of_the_scale():
    rng = np.random.default_rng(0)
    good = rng.normal(size=(50, 2))
    constant = np.full((50, 1), 1e9)
    constant[::2] = np.nextafter(1e9, 2e9)
    scaled = concatenate_vectors([np.hstack([good, constant])])
    assert (scaled[:, 2] == 0).all()
    np.testing.assert_allclose(np.var(scaled, axis=0).sum(), 1, rtol=1e-5)


def test_a_block_far_from_the_origin_keeps_its_digits():
    block = np.random.default_rng(0).normal(size=(50, 2))
    near, far = (concatenate_vectors([block + offset]) for offset in (0, 1e8))
    np.testing.assert_allclose(near - near.mean(axis=0), far - far.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("text", ["Beauty", "Office Products, Office & School Supplies", "商品 鞋"])
def test_equal_texts_have_equal_vectors_and_make_no_block(text):
    vectors = text_vectors([text] * 60, 8, 0)
    assert (vectors == vectors[0]).all() and np.linalg.norm(vectors[0]) == pytest.approx(1)
    with pytest.raises(SemanticIdError, match=CONSTANT):
        concatenate_vectors([vectors])


def test_vectors_from_a_file(tmp_path):
    path = tmp_path / "v.npy"
    np.save(path, np.arange(6).reshape(3, 2))
    vectors = load_vectors(path, ["a", "b", "c"], order="items")
    assert vectors.tolist() == [[0, 1], [2, 3], [4, 5]]
    np.save(path, np.array([[1.0], [np.nan]]))
    with pytest.raises(SemanticIdError, match=r"v\.npy: the vector of item row 1 is not finite"):
        load_vectors(path, ["a", "b"], order="items")
    with pytest.raises(SemanticIdError, match=r"none\.npy: cannot be read"):
        load_vectors(tmp_path / "none.npy", ["a", "b"], order="items")


def all_but_the_last_two(histories, num_items, **fields):
    """Splits of which each user's last two items are held out."""
    data = sequences_of(histories, num_items, **fields)
    ends = data.offsets[1:]
    places = [list(enumerate(ends - back)) for back in (3, 2, 1)]
    return Splits(data, *(targets(*pairs) for pairs in places))


HISTORIES = [[0, 1, 2, 3], [2, 1, 0, 3], [1, 0, 3, 2]]


def test_catalogue_vectors_are_of_text_where_most_items_have_any():
    titles = ["red shoe", "red boot", "green tea", ""]
    splits = all_but_the_last_two(HISTORIES, 4, title=titles)
    vectors = catalogue_vectors(splits, dim=3)
    np.testing.assert_array_equal(vectors, text_vectors(titles, 3, 0))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.2 > abs(vectors[0] @ vectors[2])


@pytest.mark.parametrize(
    "fields", [{}, {"title": [""] * 4}, {"title": ["red shoe", "", "", ""]}], ids=str
)
def test_catalogue_vectors_are_of_interactions_otherwise(fields):
    splits = all_but_the_last_two(HISTORIES, 4, **fields)
    expected = interaction_vectors(splits.sequences, training_interactions(splits), 2, 0)
    vectors = catalogue_vectors(splits, dim=2)
    np.testing.assert_array_equal(vectors, expected)
    # Item 3 is nobody's neighbour in training.
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)


def test_catalogue_vectors_of_a_sentence_model_leave_items_without_text_at_zero(monkeypatch):
    monkeypatch.setattr(
        "gr.semantic_ids.item_vectors.sentence_vectors",
        lambda texts, model: np.ones((len(texts), 1), np.float32),
    )
    splits = all_but_the_last_two(HISTORIES, 4, title=["a", "b", "", "d"])
    vectors = catalogue_vectors(splits, text_model="some model")
    np.testing.assert_array_equal(vectors[:, 0], [1, 1, 0, 1])
