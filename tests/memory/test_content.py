"""Items of like content, and a memory that adds them to its counts, beside loops."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from users import sequences_of

from gr.data import Histories, leave_one_out
from gr.memory import (
    ItemMemoryError,
    Memory,
    MemorySettings,
    fit_memory,
    similar_by_codes,
    similar_by_vectors,
    tune_memory,
)

NUM_ITEMS = 6


def shares(weights):
    """Rows without the diagonal, divided by their sums."""
    weights = np.array(weights, dtype=float)
    np.fill_diagonal(weights, 0)
    sums = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)


def in_common(one, other):
    """How many first codes two semantic IDs share."""
    count = 0
    while count < len(one) and one[count] == other[count]:
        count += 1
    return count


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=12))
def test_codes_in_common_count_as_their_square(codes):
    found = similar_by_codes(np.array(codes))
    expected = shares([[in_common(one, other) ** 2 for other in codes] for one in codes])
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-6)
    assert found.dtype == np.float32 and found.has_sorted_indices


def test_a_first_code_that_too_many_share_does_not_count(monkeypatch):
    codes = np.array([[0, item // 2] for item in range(8)])  # All share the first, pairs both.
    found = similar_by_codes(codes, neighbours=7)
    np.testing.assert_array_equal(
        found.toarray(), [[float(i != j and i // 2 == j // 2) for j in range(8)] for i in range(8)]
    )
    everyone = similar_by_codes(codes, neighbours=8).toarray()
    np.testing.assert_allclose(everyone[0], [0, 0.4] + [0.1] * 6, rtol=1e-6)
    monkeypatch.setattr("gr.memory.content.MAX_PAIRS", 63)
    assert (similar_by_codes(codes) != found).nnz == 0


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 0.5, 2.0])] * 3), min_size=1, max_size=9),
    st.integers(1, 10),
    st.sampled_from([1.0, 2.0]),
)
def test_vectors_of_the_largest_cosine_count_as_its_power(vectors, neighbours, power):
    found = similar_by_vectors(np.array(vectors), neighbours=neighbours, power=power).toarray()
    lengths = [math.sqrt(sum(x * x for x in of)) for of in vectors]
    unit = [
        [x / length if length else 0.0 for x in of]
        for of, length in zip(vectors, lengths, strict=True)
    ]
    cosine = np.array(
        [[sum(a * b for a, b in zip(one, other, strict=True)) for other in unit] for one in unit]
    )
    np.fill_diagonal(cosine, 0)
    for row, of_row in zip(found, cosine, strict=True):
        best = np.sort(of_row[of_row > 1e-6])[::-1][:neighbours] ** power
        kept = np.sort(row[row > 0])[::-1]
        np.testing.assert_allclose(kept, best / (best.sum() or 1), rtol=1e-5)
        np.testing.assert_allclose(row[row > 0] * best.sum(), of_row[row > 0] ** power, rtol=1e-5)


def test_equal_vectors_are_taken_in_the_order_of_items_and_in_parts_as_at_once(monkeypatch):
    vectors = np.array([[1.0, 0], [1, 0], [1, 0], [1, 0], [0, 1]])
    found = similar_by_vectors(vectors, neighbours=2)
    assert [found[[item]].tocoo().col.tolist() for item in range(5)] == [
        [1, 2],
        [0, 2],
        [0, 1],
        [0, 1],
        [],
    ]
    monkeypatch.setattr("gr.memory.content._CHUNK", 1)
    np.testing.assert_array_equal(
        similar_by_vectors(vectors, neighbours=2).toarray(), found.toarray()
    )


ROWS = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=7), min_size=1, max_size=6)


@settings(deadline=None)
@given(
    ROWS,
    st.lists(st.tuples(*[st.integers(0, 1)] * 2), min_size=NUM_ITEMS, max_size=NUM_ITEMS),
    st.integers(1, NUM_ITEMS),
    st.sampled_from([0.0, 0.5]),
)
def test_content_is_added_in_units_of_the_median_row(rows, codes, neighbours, discount):
    similar = {"codes": similar_by_codes(np.array(codes))}
    counted = fit_memory(sequences_of(rows, NUM_ITEMS), discount=discount).weights.toarray()
    how = MemorySettings(content=0.4, content_of="codes", neighbours=neighbours, discount=discount)
    found = fit_memory(sequences_of(rows, NUM_ITEMS), **dataclasses.asdict(how), similar=similar)
    sums = [sum(row) for row in counted if sum(row) > 0]
    expected = counted + 0.4 * (np.median(sums) if sums else 1.0) * similar["codes"].toarray()
    for row, of_row in zip(found.weights.toarray(), expected, strict=True):
        best = np.sort(of_row[of_row > 0])[::-1][:neighbours]
        np.testing.assert_allclose(np.sort(row[row > 0])[::-1], best, rtol=1e-5)
        np.testing.assert_allclose(row[row > 0], of_row[row > 0], rtol=1e-5)
    assert found.settings == how


def walks():
    """Users stay within a pair of items of one first code, which training never shows for half of the pairs."""
    train = [[2 * pair, 2 * pair + 1, 2 * pair] for pair in range(4)] * 5
    unseen = [[2 * pair, 2 * pair + 1, 2 * pair] for pair in range(4, 8)]
    rows = [row[:1] * 2 + row for row in train] + [[0, 1, *row[:1], *row[1:]] for row in unseen]
    return leave_one_out(sequences_of(rows, 16)), np.arange(16) // 2


def test_tuning_takes_the_content_that_ranks_best_and_none_that_does_not():
    splits, pair = walks()
    past = Histories.of(splits.sequences, splits.validation)
    wanted = splits.sequences.items[splits.validation.positions]
    shuffled = np.random.default_rng(0).permutation(16)
    similar = {
        "noise": similar_by_codes(shuffled[:, None] // 3),
        "codes": similar_by_codes(np.stack([pair, np.arange(16)], axis=1)),
    }
    plain, before = tune_memory(splits, past, wanted)
    memory, found = tune_memory(splits, past, wanted, similar=similar)
    assert (plain.settings.content, plain.settings.content_of) == (0.0, "")
    assert memory.settings.content > 0 and memory.settings.content_of == "codes"
    assert found > before
    again = fit_memory(splits, **dataclasses.asdict(memory.settings), similar=similar)
    assert (again.weights != memory.weights).nnz == 0
    # A matrix that says nothing about what follows is not taken.
    useless = {"noise": sparse.csr_array((16, 16), dtype=np.float32)}
    assert tune_memory(splits, past, wanted, similar=useless)[0].settings == plain.settings


def test_an_item_without_interactions_is_proposed_and_explained_by_its_content(tmp_path):
    similar = {"codes": similar_by_codes(np.array([[0], [1], [2], [3], [4], [0]]))}
    memory = fit_memory(
        sequences_of([[0, 1, 2], [0, 1]], NUM_ITEMS),
        content=0.1,
        content_of="codes",
        similar=similar,
    )
    assert memory.counts[5] == 0
    prior = memory.prior(np.array([[2, 0]]), exclude=True)
    assert 5 in prior.items[0]
    sources, share = memory.because(np.array([[2, 0]]), np.array([[5]]))
    assert sources[0, 0].tolist()[:2] == [0, -1] and share[0, 0, 0] == 1
    assert set(memory.prior(np.array([[5]])).items[0].tolist()) == {0, -1}
    memory.save(tmp_path / "memory.npz")
    again = Memory.load(tmp_path / "memory.npz")
    assert again.settings == memory.settings and (again.weights != memory.weights).nnz == 0


def test_an_old_file_has_no_content_and_no_discount_and_nothing_else_may_be_missing(tmp_path):
    memory = fit_memory(sequences_of([[0, 1, 2]], NUM_ITEMS), reach=3)
    memory.save(tmp_path / "memory.npz")
    arrays = dict(np.load(tmp_path / "memory.npz"))
    for name in ("content", "content_of", "discount"):
        del arrays[f"settings/{name}"]
    np.savez(tmp_path / "old.npz", **arrays)
    assert Memory.load(tmp_path / "old.npz").settings == memory.settings
    del arrays["settings/reach"]
    np.savez(tmp_path / "broken.npz", **arrays)
    with pytest.raises(ItemMemoryError, match="settings/reach"):
        Memory.load(tmp_path / "broken.npz")


def test_a_similarity_that_is_missing_or_of_other_items_is_refused():
    data = sequences_of([[0, 1]], NUM_ITEMS)
    codes = similar_by_codes(np.zeros((3, 1), int))
    for options, message in (
        ({"content": 0.1}, "give both, a weight above 0 and the name"),
        ({"content_of": "text"}, "give both"),
        ({"content": -1.0, "content_of": "text"}, "memory.content=-1.0: use 0 or more"),
        ({"content": 0.1, "content_of": "text"}, "'text' is not given: the data offer no content"),
        (
            {"content": 0.1, "content_of": "text", "similar": {"codes": codes}},
            "'text' is not given: the data offer codes",
        ),
        (
            {"content": 0.1, "content_of": "codes", "similar": {"codes": codes}},
            r"similar\['codes'\] has shape \[3, 3\]: give one row and one column for each of the 6",
        ),
    ):
        with pytest.raises(ItemMemoryError, match=message):
            fit_memory(data, **options)
