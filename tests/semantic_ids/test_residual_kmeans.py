"""Residual k-means, balanced assignment and the codebook report."""

import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from gr.semantic_ids import (
    ResidualCodebooks,
    SemanticIdError,
    assign_balanced,
    check_codebooks,
    codebook_report,
    fit_residual_kmeans,
)


def two_level_clusters():
    """12 points: 3 far clusters at 0, 100, 200, each with 2 inner groups at -1 and +1, twice."""
    outer = np.repeat([0.0, 100.0, 200.0], 4)
    inner = np.tile([-1.0, -1.0, 1.0, 1.0], 3)
    return np.stack([outer, inner], axis=1)


def test_known_clusters_are_found_level_by_level():
    _, codes = fit_residual_kmeans(two_level_clusters(), num_levels=2, codebook_size=3, seed=0)
    outer, inner = np.repeat([0, 1, 2], 4), np.tile([0, 0, 1, 1], 3)
    # The same code exactly where the cluster is the same, whatever its number.
    np.testing.assert_array_equal(
        codes[:, 0, None] == codes[None, :, 0], outer[:, None] == outer[None, :]
    )
    np.testing.assert_array_equal(
        codes[:, 1, None] == codes[None, :, 1], inner[:, None] == inner[None, :]
    )


def test_centroids_by_hand():
    codebooks, codes = fit_residual_kmeans(
        two_level_clusters(), num_levels=2, codebook_size=3, seed=0
    )
    first, second = codebooks.centroids
    np.testing.assert_allclose(np.sort(first[:, 0]), [0, 100, 200])
    np.testing.assert_allclose(first[:, 1], 0, atol=1e-9)
    # Only two residuals are left, (0, -1) and (0, 1): two centroids, not three.
    np.testing.assert_allclose(second[np.argsort(second[:, 1])], [[0, -1], [0, 1]], atol=1e-9)
    rebuilt = first[codes[:, 0]] + second[codes[:, 1]]
    np.testing.assert_allclose(rebuilt, two_level_clusters(), atol=1e-9)


def random_vectors(num_items=300, dim=8, seed=0):
    return np.random.default_rng(seed).normal(size=(num_items, dim)).astype(np.float32)


@pytest.mark.parametrize("balanced", [False, True])
def test_same_seed_same_codes_on_any_number_of_threads(balanced):
    vectors = random_vectors()
    results = []
    for threads in (1, 2, 4):
        with threadpool_limits(limits=threads):
            results.append(
                fit_residual_kmeans(
                    vectors, num_levels=3, codebook_size=16, seed=3, balanced=balanced
                )[1]
            )
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    other = fit_residual_kmeans(vectors, num_levels=3, codebook_size=16, seed=4, balanced=balanced)[
        1
    ]
    assert (other != results[0]).any()


def test_encoding_known_items_gives_their_codes_in_any_batch():
    vectors = random_vectors()
    codebooks, codes = fit_residual_kmeans(vectors, num_levels=3, codebook_size=16, seed=0)
    assert codes.dtype == np.int32 and codes.shape == (300, 3)
    np.testing.assert_array_equal(codebooks.encode(vectors), codes)
    np.testing.assert_array_equal(codebooks.encode(vectors[::-1]), codes[::-1])
    np.testing.assert_array_equal(
        np.concatenate([codebooks.encode(v[None]) for v in vectors]), codes
    )


@hypothesis.given(
    hnp.arrays(np.float64, (7, 3), elements=st.integers(-4, 4) | st.floats(-3, 3)),
    st.sampled_from([0.0, 1e6, -1e8]),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_no_code_depends_on_the_rest_of_the_batch(vectors, offset):
    codebooks = ResidualCodebooks(
        # A lattice, so that ties are many, and a level with equal centroids.
        (np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [-2, 0, 1]]) + offset, np.eye(3)[[0, 0, 1]])
    )
    vectors = vectors + offset
    together = codebooks.encode(vectors)
    alone = np.concatenate([codebooks.encode(vector[None]) for vector in vectors])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(codebooks.encode(np.repeat(vectors, 50, 0))[::50], alone)


def places(kind):
    rng = np.random.default_rng(1)
    return {
        "normal": rng.normal(size=(150, 5)),
        "uniform": rng.uniform(0, 1000, size=(150, 2)),
        "lattice": rng.integers(0, 6, size=(120, 3)).astype(float),  # Ties, and equal rows.
        "tenths": rng.integers(0, 6, size=(120, 3)) * 0.1,
    }[kind]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("kind", ["normal", "uniform", "lattice", "tenths"])
def test_codes_depend_neither_on_the_origin_nor_on_the_unit(kind, balanced):
    def fit(vectors):
        codebooks, codes = fit_residual_kmeans(
            vectors, num_levels=2, codebook_size=12, seed=0, balanced=balanced
        )
        if not balanced:
            np.testing.assert_array_equal(codebooks.encode(vectors), codes)
        return codes

    vectors = places(kind)
    spread = vectors.std()
    expected = fit(vectors)
    assert len(np.unique(expected[:, 0])) == 12
    for unit in (1e-12, 3.0, 1e12):
        np.testing.assert_array_equal(fit(vectors * unit), expected)
    # Beyond 1e5 deviations tenths are no longer as far from each other as they were.
    for distance in (1e3, 1e5) if kind == "tenths" else (1e3, 1e5, -1e8):
        shifted = vectors + round(distance * spread)
        np.testing.assert_array_equal(fit(shifted), expected)
    single = (vectors + round(1e5 * spread)).astype(np.float32)
    np.testing.assert_array_equal(fit(single), fit(single - np.float64(round(1e5 * spread))))


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9])
def test_every_vector_has_its_nearest_centroid(offset):
    vectors = np.random.default_rng(0).uniform(0, 1000, size=(200, 2)) + [offset, 9 * offset]
    codebooks, codes = fit_residual_kmeans(vectors, num_levels=1, codebook_size=64, seed=0)
    distances = np.linalg.norm(vectors[:, None] - codebooks.centroids[0], axis=2)
    np.testing.assert_array_equal(distances.argmin(axis=1), codes[:, 0])
    assert len(np.unique(codes)) == 64


def test_an_outlier_leaves_the_others_their_codes():
    vectors = np.random.default_rng(0).normal(size=(100, 3))
    vectors[7] = 1e7
    _, codes = fit_residual_kmeans(vectors, num_levels=2, codebook_size=16, seed=0)
    assert len(np.unique(codes[:, 0])) == 16 and (codes[:, 0] == codes[7, 0]).sum() == 1


def test_encoding_new_items_goes_to_the_nearest_of_frozen_centroids():
    codebooks = ResidualCodebooks(
        (np.array([[0.0, 0.0], [10.0, 0.0]]), np.array([[0.0, 1.0], [0.0, -1.0], [2.0, 0.0]]))
    )
    # (9, -3) -> centroid 1, rest (-1, -3) -> centroid 1; (2, 0) -> 0, rest (2, 0) -> 2;
    # (5, 0) is as far from both: the first, rest (5, 0) -> 2.
    codes = codebooks.encode(np.array([[9.0, -3.0], [2.0, 0.0], [5.0, 0.0]]))
    assert codes.tolist() == [[1, 1], [0, 2], [0, 2]]
    with pytest.raises(SemanticIdError, match="width 3, the codebooks 2"):
        codebooks.encode(np.zeros((1, 3)))


@pytest.mark.parametrize("balanced", [False, True])
def test_fewer_items_than_codes(balanced):
    vectors = random_vectors(5)
    codebooks, codes = fit_residual_kmeans(
        vectors, num_levels=2, codebook_size=64, seed=0, balanced=balanced
    )
    assert len(set(codes[:, 0].tolist())) == 5  # Each item has a code to itself.
    assert [len(c) for c in codebooks.centroids] == [5, 1]  # Nothing is left for level 1.
    assert codes[:, 1].tolist() == [0] * 5


def test_one_item_and_equal_items():
    _, codes = fit_residual_kmeans(np.ones((1, 3)), num_levels=2, codebook_size=4, seed=0)
    assert codes.tolist() == [[0, 0]]
    _, codes = fit_residual_kmeans(np.zeros((6, 3)), num_levels=2, codebook_size=4, seed=0)
    assert codes.tolist() == [[0, 0]] * 6


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.array([[0.0], [np.nan]]), "item row 1 is not finite"),
        (np.array([[np.inf], [0.0]]), "item row 0 is not finite"),
        (np.zeros(3), r"must be \[N, D\]"),
        (np.zeros((0, 3)), r"must be \[N, D\]"),
        (np.array([["a"]]), "real numbers"),
        (np.array([[1e120], [0.0]]), r"item row 0 has numbers beyond 1e\+100; scale"),
        (np.array([[1e-120], [0.0]]), "no number of the vectors is beyond 1e-100; scale"),
    ],
)
def test_bad_vectors(vectors, message):
    with pytest.raises(SemanticIdError, match=message):
        fit_residual_kmeans(vectors, num_levels=1, codebook_size=2, seed=0)


def test_bad_sizes():
    with pytest.raises(SemanticIdError, match="at least 1"):
        fit_residual_kmeans(np.zeros((2, 2)), num_levels=0, codebook_size=2, seed=0)


def greedy(distances, capacity):
    """The rule of `assign_balanced`, pair by pair."""
    num_items, num_codes = distances.shape
    pairs = sorted(
        (distances[item, code], item, code)
        for item in range(num_items)
        for code in range(num_codes)
    )
    codes, room = [None] * num_items, [capacity] * num_codes
    for _, item, code in pairs:
        if codes[item] is None and room[code]:
            codes[item], room[code] = code, room[code] - 1
    return codes


def test_balanced_by_hand():
    # All three are nearest to code 0, which takes the closest two.
    distances = np.array([[1.0, 5.0], [3.0, 4.0], [2.0, 9.0]])
    assert assign_balanced(distances, 2).tolist() == [0, 1, 0]
    with pytest.raises(SemanticIdError, match="2 codes of 1 cannot hold 3"):
        assign_balanced(distances, 1)


@hypothesis.given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 25), st.integers(1, 6)),
        elements=st.floats(0, 1, width=16),
    ),
    st.integers(0, 3),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_balanced_is_the_greedy_rule(distances, slack):
    capacity = math.ceil(distances.shape[0] / distances.shape[1]) + slack
    codes = assign_balanced(distances, capacity)
    assert np.bincount(codes).max() <= capacity
    assert codes.tolist() == greedy(distances, capacity)


@pytest.mark.parametrize("num_items", [256, 300])
def test_balanced_levels_keep_to_their_capacity(num_items):
    # One crowd and a few strays: plain k-means gives the crowd few codes.
    vectors = random_vectors(num_items) * 0.01
    vectors[:10] += 5 * random_vectors(10, seed=1)
    _, plain = fit_residual_kmeans(vectors, num_levels=2, codebook_size=16, seed=0)
    _, codes = fit_residual_kmeans(vectors, num_levels=2, codebook_size=16, seed=0, balanced=True)
    capacity = math.ceil(num_items / 16)
    assert np.bincount(plain[:, 0]).max() > capacity
    for level in range(2):
        counts = np.bincount(codes[:, level], minlength=16)
        assert counts.max() <= capacity and counts.sum() == num_items


def test_report_by_hand():
    # Level 0: each of 4 codes once: perplexity 4. Level 1: one of 4 codes. Level 2: shares 1/2,
    # 1/4, 1/4 of 8 codes: entropy 1.5 bits, perplexity 2^1.5; at most min(8, 4) = 4 is possible.
    codes = np.array([[0, 2, 5], [1, 2, 5], [2, 2, 0], [3, 2, 1]])
    uniform, collapsed, skewed = codebook_report(codes, (4, 4, 8))
    assert uniform["perplexity"] == pytest.approx(4)
    assert (uniform["used"], uniform["used_share"], uniform["largest_share"]) == (4, 1.0, 0.25)
    assert collapsed["perplexity"] == pytest.approx(1)
    assert collapsed["relative_perplexity"] == pytest.approx(1 / 4)
    assert (collapsed["used"], collapsed["used_share"]) == (1, 0.25)
    assert collapsed["largest_share"] == 1.0
    assert skewed["perplexity"] == pytest.approx(2**1.5)
    assert skewed["relative_perplexity"] == pytest.approx(2**1.5 / 4)
    assert (skewed["level"], skewed["size"], skewed["used_share"]) == (2, 8, 3 / 8)


def test_collapse_is_refused_with_remedies():
    report = codebook_report(np.array([[0, 2], [1, 2], [2, 2], [3, 2]]), (4, 4))
    check_codebooks(report, 0.25)
    with pytest.raises(SemanticIdError, match=r"collapse at level 1: perplexity 1\.0 .*balanced"):
        check_codebooks(report, 0.3)
