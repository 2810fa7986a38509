"""Every metric on lists small enough to compute by hand."""

import numpy as np
import pytest

from gr.evaluation import coverage, gini, hit, mrr, ndcg, novelty, popularity_slices
from gr.evaluation.popularity import HEAD, TAIL, TORSO

RANKS = np.array([0, 1, 2, 9, 10, -1])


def test_hit():
    assert hit(RANKS, 1).tolist() == [1, 0, 0, 0, 0, 0]
    assert hit(RANKS, 3).tolist() == [1, 1, 1, 0, 0, 0]
    assert hit(RANKS, 10).tolist() == [1, 1, 1, 1, 0, 0]


def test_ndcg():
    # 1 / log2(rank + 2): ranks 0, 2 and 6 give 1, 1/2 and 1/3.
    np.testing.assert_allclose(ndcg(np.array([0, 2, 6, 7, -1]), 7), [1, 1 / 2, 1 / 3, 0, 0])
    np.testing.assert_allclose(ndcg(np.array([1]), 10), [0.6309297535714574])


def test_mrr():
    np.testing.assert_allclose(mrr(RANKS, 10), [1, 1 / 2, 1 / 3, 1 / 10, 0, 0])
    np.testing.assert_allclose(mrr(RANKS, 2), [1, 1 / 2, 0, 0, 0, 0])


LISTS = np.array([[0, 1], [0, 2], [0, -1]])  # Item 0 three times, items 1 and 2 once, item 3 never.


def test_coverage_counts_recommended_items():
    assert coverage(LISTS, 4) == 3 / 4


def test_gini():
    # Counts upwards 0, 1, 1, 3 with weights -3, -1, 1, 3: 9 / (4 * 5).
    assert gini(LISTS, 4) == pytest.approx(9 / 20)
    assert gini(np.array([[0, 1], [2, 3]]), 4) == 0
    assert gini(np.array([[2], [2]]), 4) == 3 / 4


def test_novelty_is_mean_self_information():
    # Shares (count + 1) / (12 + 4): 1/2, 1/4, 1/8, 1/8, which are 1, 2, 3 and 3 bits.
    counts = np.array([7, 3, 1, 1])
    assert novelty(LISTS, counts) == pytest.approx((3 * 1 + 2 + 3) / 5)


def test_list_metrics_of_empty_lists():
    nothing = np.full((2, 3), -1)
    assert (coverage(nothing, 4), gini(nothing, 4), novelty(nothing, np.ones(4))) == (0, 0, 0)


def test_popularity_slices_by_share_of_interactions():
    # Sorted: 50, 30, 10, 6, 4, 0. Share above each: 0, .5, .8, .9, .96, 1.
    counts = np.array([6, 50, 0, 10, 30, 4])
    assert popularity_slices(counts).tolist() == [TAIL, HEAD, TAIL, TAIL, TORSO, TAIL]
    assert popularity_slices(np.full(10, 3)).tolist() == [HEAD] * 2 + [TORSO] * 6 + [TAIL] * 2


def test_items_without_interactions_are_tail():
    assert popularity_slices(np.zeros(3, dtype=int)).tolist() == [TAIL] * 3
