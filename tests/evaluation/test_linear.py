"""EASE and SLIST beside regressions written out with loops, and their tuning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data import Histories, Sequences, leave_one_out, synthetic_sequences, training_interactions
from gr.evaluation import EvaluationError, fit_ease, fit_slist, ndcg, tune_linear
from gr.evaluation.linear import EASE_GRID, SLIST_GRID, ease_weights, slist_weights
from gr.evaluation.rankings import item_ranks_of_lists

N = 6
ROWS = st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=9), min_size=1, max_size=6)


def splits_of(rows):
    return leave_one_out(
        Sequences(
            items=np.array([item for row in rows for item in row], dtype=np.int32),
            offsets=np.cumsum([0] + [len(row) for row in rows]),
            user_ids=np.arange(len(rows)).astype(str),
            item_ids=np.arange(N).astype(str),
        )
    )


def training_rows(splits):
    learnt, sequences = training_interactions(splits), splits.sequences
    parts = np.split(np.arange(len(learnt)), sequences.offsets[1:-1])
    return [sequences.items[part[learnt[part]]].tolist() for part in parts]


def binary(rows):
    matrix = np.zeros((len(rows), N))
    for row, items in zip(matrix, rows, strict=True):
        row[items] = 1
    return matrix


def ease_by_columns(x, l2):
    """Each item's regression on the others, by itself."""
    weights = np.zeros((N, N))
    for item in range(N):
        others = [j for j in range(N) if j != item]
        gram = x[:, others].T @ x[:, others] + l2 * np.eye(N - 1)
        weights[others, item] = np.linalg.solve(gram, x[:, others].T @ x[:, item])
    return weights


def slist_by_rows(rows, l2, alpha, decay):
    """The regression with a row for each cut of each sequence."""
    x, past, future = binary(rows), [], []
    for row in rows:
        for cut in range(1, len(row)):
            past.append(np.zeros(N))
            future.append(np.zeros(N))
            for place, item in enumerate(reversed(row[:cut])):
                past[-1][item] += decay**place
            for place, item in enumerate(row[cut:]):
                future[-1][item] += decay**place
    s, t = np.array(past).reshape(-1, N), np.array(future).reshape(-1, N)
    inputs = np.concatenate([alpha**0.5 * x, (1 - alpha) ** 0.5 * s])
    outputs = np.concatenate([alpha**0.5 * x, (1 - alpha) ** 0.5 * t])
    return np.linalg.solve(inputs.T @ inputs + l2 * np.eye(N), inputs.T @ outputs)


@settings(deadline=None)
@given(ROWS, st.sampled_from([0.5, 3.0, 50.0]))
def test_ease_is_each_items_regression_on_the_others(rows, l2):
    splits = splits_of(rows)
    expected = ease_by_columns(binary(training_rows(splits)), l2)
    np.testing.assert_allclose(ease_weights(splits, l2), expected, atol=1e-5)


@settings(deadline=None)
@given(
    ROWS,
    st.sampled_from([1.0, 20.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.3, 0.9]),
)
def test_slist_is_the_regression_of_futures_on_pasts(rows, l2, alpha, decay):
    splits = splits_of(rows)
    expected = slist_by_rows(training_rows(splits), l2, alpha, decay)
    np.testing.assert_allclose(slist_weights(splits, l2, alpha, decay), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["ease", "slist"])
@pytest.mark.parametrize("chunk", [2**22, 100])
def test_lists_descend_in_the_scores_and_then_in_popularity(name, chunk, monkeypatch):
    monkeypatch.setattr("gr.evaluation.linear._CHUNK", chunk)
    splits = leave_one_out(synthetic_sequences(num_users=60, num_items=40, mean_length=8))
    past = Histories.of(splits.sequences, splits.test)
    if name == "ease":
        ranker, weights = fit_ease(splits, l2=20.0), ease_weights(splits, 20.0)
    else:
        ranker, weights = fit_slist(splits, decay=0.7), slist_weights(splits, 100.0, 0.5, 0.7)
    for top_k in (5, 40):
        for exclude in (False, True):
            lists = ranker.rank(past, top_k, exclude=exclude)
            for row, items in enumerate(lists):
                history = past.items[past.starts[row] : past.stops[row]].tolist()
                inputs = np.zeros(40, np.float32)
                for place, item in enumerate(reversed(history)):
                    inputs[item] += 1.0 if name == "ease" else 0.7**place  # Nothing comes twice.
                scores = inputs @ weights
                scores[history] *= not exclude
                items = items[items >= 0]
                scored = [item for item in items if scores[item] > 1e-6]
                others = [item for item in items if scores[item] <= 1e-6]
                assert items.tolist() == scored + others  # Scored ones first.
                best = np.sort(scores[scores > 1e-6])[::-1][: len(items)]
                np.testing.assert_allclose(scores[scored], best, atol=1e-5)
                places = [ranker.popular.tolist().index(item) for item in others]
                assert places == sorted(places)
                assert not exclude or not set(history) & set(items.tolist())


@pytest.mark.parametrize("seed", [0, 1])
def test_tuning_takes_the_best_of_a_line_of_the_grid_for_each_rule(seed):
    splits = leave_one_out(
        synthetic_sequences(num_users=80, num_items=40, mean_length=8, seed=seed)
    )
    past = Histories.of(splits.sequences, splits.validation)
    wanted = splits.sequences.items[splits.validation.positions]
    found = tune_linear(splits, past, wanted, rules=(True, False))

    def quality(ranker, rule):
        return ndcg(item_ranks_of_lists(ranker.rank(past, 10, exclude=rule), wanted), 10).mean()

    for rule, settings_of in found.items():
        best = quality(fit_ease(splits, **settings_of["ease"]), rule)
        for l2 in EASE_GRID["l2"]:  # Up to the back-off to popularity, which the tuning leaves out.
            assert quality(fit_ease(splits, l2=l2), rule) <= best + 0.02
        best = quality(fit_slist(splits, **settings_of["slist"]), rule)
        for decay in SLIST_GRID["decay"]:
            changed = settings_of["slist"] | {"decay": decay}
            assert quality(fit_slist(splits, **changed), rule) <= best + 0.02


def test_what_cannot_be_used_is_refused():
    splits = splits_of([[0, 1, 2, 3, 4]])
    for call, message in (
        (lambda: fit_ease(splits, l2=0.0), "l2=0.0: expected a number above 0"),
        (lambda: fit_slist(splits, decay=1.0), "decay=1.0: expected l2 above 0"),
        (
            lambda: tune_linear(splits, np.zeros((0, 1), int), np.zeros(0), rules=(True,)),
            "is empty",
        ),
    ):
        with pytest.raises(EvaluationError, match=message):
            call()
