"""Content-kNN, and the metrics of cold targets, beside loops."""

import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from gr.data import Histories, Sequences, leave_one_out
from gr.evaluation import (
    EvaluationError,
    bootstrap_intervals,
    fit_content_knn,
    random_recall,
    rankings_of_beams,
    recall_table,
    select_rankings,
    training_counts,
    tune_content_knn,
)

N = 7
SPLITS = leave_one_out(
    Sequences(
        items=np.array([0, 1, 2, 3, 1, 0, 4, 5, 2, 1, 6, 0], np.int32),
        offsets=np.array([0, 4, 8, 12]),
        user_ids=np.arange(3).astype(str),
        item_ids=np.arange(N).astype(str),
    )
)
# Whole numbers of equal length, so that sums of cosines have no rounding.
VECTORS = hnp.arrays(np.int64, (N, 2), elements=st.sampled_from([-1, 1]))
HISTORY = st.lists(st.integers(0, N - 1), min_size=1, max_size=5)


@hypothesis.given(
    VECTORS,
    HISTORY,
    st.sampled_from([1, 2, None]),
    st.booleans(),
    st.one_of(st.none(), st.sets(st.integers(0, N - 1), min_size=1)),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_content_knn_is_what_a_loop_gives(vectors, history, recent, exclude, only):
    allowed = None if only is None else np.isin(np.arange(N), list(only))
    ranker = fit_content_knn(SPLITS, vectors, recent=recent, allowed=allowed)
    counts = training_counts(SPLITS)
    used = history[-recent:] if recent else history
    scores = {
        item: sum(round(float(vectors[item] @ vectors[past])) for past in used)
        for item in range(N)
        if (only is None or item in only) and not (exclude and item in history)
    }
    best = sorted(scores, key=lambda item: (-scores[item], -counts[item], item))
    found = ranker.rank(np.array([history]), N, exclude=exclude)[0]
    assert [item for item in found.tolist() if item >= 0] == best


def test_the_number_of_recent_items_is_that_of_the_best_ranking():
    # The first item of each history points at its target, the last one away from it.
    vectors = np.eye(N)
    vectors[1] = vectors[0] = [1, 0, 0, 0, 0, 0, 0]
    vectors[3] = vectors[2] = [0, 1, 0, 0, 0, 0, 0]
    past = Histories.of_rows(np.array([[0, 4, 5], [2, 4, 5]]))
    _, recent = tune_content_knn(
        SPLITS, vectors, past, np.array([1, 3]), recents=(1, 3), exclude=True
    )
    assert recent == 3
    with pytest.raises(EvaluationError, match="without targets"):
        tune_content_knn(SPLITS, vectors, past[:0], np.zeros(0, int))


def test_refusals():
    with pytest.raises(EvaluationError, match="a vector for each of 7 items"):
        fit_content_knn(SPLITS, np.zeros((6, 2)))
    with pytest.raises(EvaluationError, match="1 or more recent"):
        fit_content_knn(SPLITS, np.zeros((N, 2)), recent=0)


def rankings(rng, count, depth=6):
    beams = np.stack([rng.permutation(20)[:depth] for _ in range(count)])[:, :, None]
    return beams, rng.integers(0, 20, count)


def test_the_table_is_what_a_loop_gives():
    rng = np.random.default_rng(0)
    beams, targets = rankings(rng, 40)
    other, _ = rankings(rng, 40)
    ranked = {
        name: rankings_of_beams(of, targets, depth=6)
        for name, of in (("model", beams), ("other", other))
    }
    table = recall_table(ranked, ks=(1, 5), num_resamples=200)
    values = {}
    for name, of in (("model", beams), ("other", other)):
        for k in (1, 5):
            places = [
                list(row[:, 0]).index(target) if target in row[:k, 0] else None
                for row, target in zip(of, targets, strict=True)
            ]
            values[name, f"recall@{k}"] = [float(place is not None) for place in places]
            values[name, f"ndcg@{k}"] = [
                0.0 if place is None else 1 / np.log2(place + 2) for place in places
            ]
    for (name, metric), of_users in values.items():
        assert table[name]["users"] == 40
        assert table[name][metric] == pytest.approx(np.mean(of_users))
    difference = np.array(values["model", "recall@5"]) - values["other", "recall@5"]
    low, high = bootstrap_intervals(difference[:, None], num_resamples=200, seed=0)
    found = table["other"]["first_minus_this"]["recall@5"]
    assert found == pytest.approx([difference.mean(), low[0], high[0]])
    low, high = bootstrap_intervals(
        np.array(values["model", "ndcg@5"])[:, None], num_resamples=200, seed=0
    )
    assert table["model"]["intervals"]["ndcg@5"] == pytest.approx([low[0], high[0]])
    assert "first_minus_this" not in table["model"]


def test_some_of_the_targets_have_the_rankings_of_a_table_of_them():
    beams, targets = rankings(np.random.default_rng(1), 10)
    whole = rankings_of_beams(beams, targets, depth=6, seen=targets < 5, exclude=True)
    some = targets % 2 == 0
    part = rankings_of_beams(
        beams[some], targets[some], depth=6, seen=targets[some] < 5, exclude=True
    )
    picked = select_rankings(whole, some)
    for name in ("targets", "item_ranks", "sid_ranks", "items", "candidates", "seen"):
        np.testing.assert_array_equal(getattr(picked, name), getattr(part, name))
    assert picked.exclude is True and picked.depth == 6
    with pytest.raises(EvaluationError, match="rank the same ones"):
        recall_table({"whole": whole, "part": picked}, ks=(1,))
    with pytest.raises(EvaluationError, match="beyond the depth 6"):
        recall_table({"whole": whole}, ks=(10,))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_random_order_is_the_mean_over_all_orders(size):
    orders = list(itertools.permutations(range(size)))
    found = random_recall(np.array([size]), ks=(1, 3))
    for k in (1, 3):
        places = [order.index(0) for order in orders]
        assert found[f"recall@{k}"] == pytest.approx(np.mean([place < k for place in places]))
        gains = [1 / np.log2(place + 2) if place < k else 0 for place in places]
        assert found[f"ndcg@{k}"] == pytest.approx(np.mean(gains))
    assert random_recall(np.array([0, size]), ks=(1,))["recall@1"] == pytest.approx(0.5 / size)
