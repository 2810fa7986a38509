"""Baselines on logs small enough to fit by hand, and the Markov chain on real data."""

import dataclasses
import json
import os
import pathlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data import Histories, leave_one_out, synthetic_sequences
from gr.data.sequences import Sequences, Splits, Targets
from gr.evaluation import (
    EvaluationError,
    fit_item_knn,
    fit_markov_chain,
    fit_own_baseline,
    fit_popularity,
    hit,
    memory_ranker,
    ndcg,
    rankings_of_baseline,
    training_counts,
    tune_item_knn,
)
from gr.evaluation import baselines as baselines_module
from gr.evaluation import ranker as ranker_module
from gr.memory import fit_memory


def splits_of(rows, num_items):
    """Leave-one-out: last test, last but one validation, the rest from the second on training."""
    offsets = np.cumsum([0] + [len(row) for row in rows])
    sequences = Sequences(
        items=np.concatenate(rows).astype(np.int32),
        offsets=offsets,
        user_ids=np.arange(len(rows)).astype(str),
        item_ids=np.arange(num_items).astype(str),
    )
    train = [(u, offsets[u] + j) for u, row in enumerate(rows) for j in range(1, len(row) - 2)]
    held_out = [
        Targets(np.arange(len(rows), dtype=np.int32), offsets[1:] - back) for back in (2, 1)
    ]
    users, positions = np.array(train).reshape(-1, 2).T
    return Splits(sequences, Targets(users.astype(np.int32), positions), *held_out)


def histories_of(splits, targets, width):
    """Right-aligned histories of the targets, `[n, width]`."""
    offsets = splits.sequences.offsets[targets.users]
    places = targets.positions[:, None] - width + np.arange(width)
    items = splits.sequences.items[np.maximum(places, 0)]
    return np.where(places >= offsets[:, None], items, -1).astype(np.int32)


# Training parts: 0 1 2 | 0 1 0 2 | 3 1. Counts: item 0 and 1 three times, 2 twice, 3 once, 4 never.
SPLITS = splits_of([[0, 1, 2, 4, 4], [0, 1, 0, 2, 4, 4], [3, 1, 4, 4]], num_items=5)


def own(splits):
    return fit_popularity(splits)


def not_a_ranker(splits):
    return splits.train


def test_an_own_baseline_is_fitted_by_module_and_name():
    ranker = fit_own_baseline(f"{__name__}:own", SPLITS)
    assert ranker.popular.tolist() == fit_popularity(SPLITS).popular.tolist()
    for name, message in (
        (f"{__name__}:not_a_ranker", "returned a Targets; a baseline is a function"),
        (f"{__name__}:owm", "has no 'owm'; did you mean own"),
        ("markov", "baseline 'markov' is unknown; use module:name"),
    ):
        with pytest.raises(EvaluationError, match=message):
            fit_own_baseline(name, SPLITS)


def test_only_training_interactions_are_counted():
    assert training_counts(SPLITS).tolist() == [3, 3, 2, 1, 0]


def test_a_user_without_training_targets_teaches_nothing():
    splits = splits_of([[0, 1, 2, 0], [3, 3, 3]], num_items=4)
    assert training_counts(splits).tolist() == [1, 1, 0, 0]


def test_popularity():
    ranker = fit_popularity(SPLITS)
    histories = np.array([[-1, -1], [0, 2]], dtype=np.int32)
    assert ranker.rank(histories, 3).tolist() == [[0, 1, 2], [0, 1, 2]]
    excluded = ranker.rank(histories, 4, exclude=True).tolist()
    assert excluded == [[0, 1, 2, 3], [1, 3, 4, -1]]  # Only three items are left for the second.


def test_markov_chain_backs_off_to_popularity():
    # Transitions: 0->1 twice, 0->2, 1->2, 1->0, 3->1; from 2 and 4 none.
    ranker = fit_markov_chain(SPLITS)
    histories = np.array([[3, 0], [0, 1], [1, 2], [-1, 3], [3, -1], [-1, -1]], dtype=np.int32)
    assert ranker.rank(histories, 5).tolist() == [
        [1, 2, 0, 3, 4],
        [0, 2, 1, 3, 4],  # Once each: the more popular item 0 first.
        [0, 1, 2, 3, 4],
        [1, 0, 2, 3, 4],
        [1, 0, 2, 3, 4],  # Padding may stand on either side.
        [0, 1, 2, 3, 4],
    ]
    assert ranker.rank(histories, 2, exclude=True).tolist()[:2] == [[1, 2], [2, 3]]


def test_markov_chain_without_backoff_lists_only_followers():
    ranker = fit_markov_chain(SPLITS, backoff=False)
    histories = np.array([[-1, 1], [-1, 2], [-1, -1]], dtype=np.int32)
    # 1->2 (first user) was seen before 1->0 (second user).
    assert ranker.rank(histories, 3).tolist() == [[2, 0, -1], [-1] * 3, [-1] * 3]


def test_transitions_do_not_cross_users():
    splits = splits_of([[0, 1, 4, 4], [2, 3, 4, 4]], num_items=5)
    ranker = fit_markov_chain(splits, backoff=False)
    assert ranker.rank(np.array([[1], [0], [2]]), 1).tolist() == [[-1], [1], [3]]


def test_item_knn():
    # Users of 0: {a, b}; of 1: {a, b, c}; of 2: {a, b}; of 3: {c}.
    # cos(0, 1) = 2 / sqrt(6) = .816, cos(0, 2) = 1, cos(1, 2) = .816, cos(1, 3) = 1 / sqrt(3) = .577.
    ranker = fit_item_knn(SPLITS)
    histories = np.array([[-1, 0], [-1, 1], [0, 1], [-1, -1]], dtype=np.int32)
    assert ranker.rank(histories, 4).tolist() == [
        [2, 1, 0, 3],  # Then 0 and 3 by popularity.
        [0, 2, 3, 1],  # Items 0 and 2 are equally similar.
        [2, 0, 1, 3],  # 2: 1.816; 0 and 1: .816 each; 3: .577.
        [0, 1, 2, 3],
    ]
    assert ranker.rank(histories[2:3], 2, exclude=True).tolist() == [[2, 3]]


def test_item_knn_neighbours_shrinkage_and_recency():
    history = np.array([[3, 0]], dtype=np.int32)
    assert fit_item_knn(SPLITS, recent=1).rank(history, 2).tolist() == [[2, 1]]
    # With both: 1 has .816 + .577, 2 has 1.
    assert fit_item_knn(SPLITS).rank(history, 2).tolist() == [[1, 2]]
    # With one neighbour each, item 0 gives 2 (1.0) and item 3 gives 1 (.577).
    assert fit_item_knn(SPLITS, neighbours=1).rank(history, 2).tolist() == [[2, 1]]
    # Shrinkage 10: 2 / (2 + 10) for item 2; 2 / (sqrt(6) + 10) + 1 / (sqrt(3) + 10) for item 1.
    shrunk = fit_item_knn(SPLITS, shrinkage=10.0)
    assert shrunk.rank(np.array([[0]]), 2).tolist() == [[2, 1]]  # .1667 and .1607.


def test_tuning_picks_the_recency_that_validates_best():
    # Item 2 follows only item 1; item 3 only item 0.
    rows = [[1, 2, 4, 4], [0, 3, 4, 4]] * 3
    splits = splits_of(rows, num_items=5)
    histories, targets = np.array([[0, 1], [1, 0]] * 5), np.array([2, 3] * 5)
    grid = {"neighbours": (10,), "shrinkages": (0.0,), "recents": (None, 1)}
    ranker, chosen = tune_item_knn(splits, histories, targets, exclude=True, **grid)
    assert chosen == {"neighbours": 10, "shrinkage": 0.0, "recent": 1}
    assert ranker.rank(histories[:2], 1, exclude=True).tolist() == [[2], [3]]


def test_histories_of_other_items_are_refused():
    with pytest.raises(EvaluationError, match="5 items"):
        fit_popularity(SPLITS).rank(np.array([[5]]), 3)
    with pytest.raises(EvaluationError, match="neighbours=0"):
        fit_item_knn(SPLITS, neighbours=0)


@st.composite
def logs(draw):
    num_items = draw(st.integers(2, 8))
    item = st.integers(0, num_items - 1)
    rows = draw(st.lists(st.lists(item, min_size=4, max_size=9), min_size=1, max_size=6))
    histories = st.lists(st.integers(-1, num_items - 1), min_size=4, max_size=4)
    return (
        splits_of(rows, num_items),
        np.array(draw(st.lists(histories, min_size=1, max_size=5)), dtype=np.int32),
    )


def _loop_rank(scores, popular, history, top_k, exclude):
    """The order by score, then popularity, of a dictionary of scores."""
    order = sorted(popular, key=lambda item: (-scores.get(item, 0.0), popular.index(item)))
    order = [item for item in order if not (exclude and item in history)][:top_k]
    return order + [-1] * (top_k - len(order))


@settings(deadline=None)
@given(logs(), st.integers(1, 10), st.booleans())
def test_markov_chain_and_popularity_equal_the_loops(log, top_k, exclude):
    splits, histories = log
    counts = training_counts(splits)
    popular = sorted(range(len(counts)), key=lambda item: (-counts[item], item))
    transitions = {}
    for user in range(splits.sequences.num_users):
        trained = splits.sequences.of(user)[:-2].tolist()
        for previous, following in zip(trained[:-1], trained[1:], strict=True):
            row = transitions.setdefault(previous, {})
            row[following] = row.get(following, 0) + 1
    markov, popularity = [], []
    for history in histories.tolist():
        known = [item for item in history if item >= 0]
        scores = transitions.get(known[-1], {}) if known else {}
        markov.append(_loop_rank(scores, popular, known, top_k, exclude))
        popularity.append(_loop_rank({}, popular, known, top_k, exclude))
    assert fit_markov_chain(splits).rank(histories, top_k, exclude=exclude).tolist() == markov
    assert fit_popularity(splits).rank(histories, top_k, exclude=exclude).tolist() == popularity


def _loop_cosines(splits, shrinkage):
    """The shrunk cosine of every two items with a common training user, `{j: {i: cosine}}`."""
    users = {item: set() for item in range(splits.sequences.num_items)}
    for user in range(splits.sequences.num_users):
        for item in splits.sequences.of(user)[:-2].tolist():
            users[item].add(user)
    return {
        j: {
            i: len(users[i] & users[j]) / ((len(users[i]) * len(users[j])) ** 0.5 + shrinkage)
            for i in users
            if i != j and users[i] & users[j]
        }
        for j in users
    }


# Scores that should be equal may differ by rounding, and then stand in any order: so these two tests
# compare the scores down the list rather than the items.
@settings(deadline=None)
@given(logs(), st.sampled_from([0.0, 1.0]), st.sampled_from([None, 1, 2]))
def test_item_knn_lists_descend_in_the_scores_of_the_loop(log, shrinkage, recent):
    splits, histories = log
    num_items = splits.sequences.num_items
    cosines = _loop_cosines(splits, shrinkage)
    ranker = fit_item_knn(splits, neighbours=num_items, shrinkage=shrinkage, recent=recent)
    lists = ranker.rank(histories, num_items)
    for history, listed in zip(histories.tolist(), lists.tolist(), strict=True):
        known = [item for item in history if item >= 0]
        used = set(known[-recent:] if recent else known)
        scores = [sum(cosines[j].get(i, 0.0) for j in used) for i in listed]
        assert sorted(listed) == list(range(num_items))
        np.testing.assert_allclose(scores, sorted(scores, reverse=True), atol=1e-12)


@settings(deadline=None)
@given(logs(), st.integers(1, 4))
def test_item_knn_keeps_the_largest_similarities(log, neighbours):
    splits, _ = log
    # After a history of one item the list begins with its kept neighbours, best first.
    cosines = _loop_cosines(splits, 0.0)
    ranker = fit_item_knn(splits, neighbours=neighbours)
    for j, of_item in cosines.items():
        (listed,) = ranker.scored(np.array([[j]]), splits.sequences.num_items).tolist()
        kept = [of_item[i] for i in listed if i >= 0]
        expected = sorted(of_item.values(), reverse=True)[:neighbours]
        np.testing.assert_allclose(kept, expected, atol=1e-12)


@pytest.mark.parametrize("fit", [fit_popularity, fit_markov_chain, fit_item_knn])
@settings(deadline=None, max_examples=50)
@given(log=logs(), top_k=st.integers(1, 10))
def test_lists_are_distinct_and_exclusion_leaves_no_item_of_the_history(fit, log, top_k):
    splits, histories = log
    num_items = splits.sequences.num_items
    for exclude in (False, True):
        lists = fit(splits).rank(histories, top_k, exclude=exclude)
        for history, row in zip(histories, lists, strict=True):
            listed = row[row >= 0].tolist()
            banned = set(history[history >= 0].tolist()) if exclude else set()
            assert len(set(listed)) == len(listed) == min(top_k, num_items - len(banned))
            assert not banned & set(listed)


@pytest.mark.parametrize("fit", [fit_popularity, fit_markov_chain, fit_item_knn])
def test_chunks_of_users_change_nothing(fit, monkeypatch):
    rng = np.random.default_rng(0)
    splits = splits_of(rng.integers(0, 30, (40, 9)), num_items=30)
    histories = rng.integers(-1, 30, (25, 6)).astype(np.int32)
    whole = fit(splits).rank(histories, 7, exclude=True)
    monkeypatch.setattr(ranker_module, "_CHUNK", 100)  # Three rows at a time.
    np.testing.assert_array_equal(fit(splits).rank(histories, 7, exclude=True), whole)


# Whole histories, of which one may be long.


@pytest.mark.parametrize("fit", [fit_popularity, fit_markov_chain, fit_item_knn])
@settings(deadline=None, max_examples=50)
@given(log=logs(), top_k=st.integers(1, 10), exclude=st.booleans(), chunk=st.integers(1, 40))
def test_histories_rank_as_their_rows_in_chunks_of_any_size(fit, log, top_k, exclude, chunk):
    splits, rows = log
    ranker = fit(splits)
    whole = ranker.rank(rows, top_k, exclude=exclude)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranker_module, "_CHUNK", chunk)
        found = fit(splits).rank(Histories.of_rows(rows), top_k, exclude=exclude)
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("fit", [fit_popularity, fit_markov_chain, fit_item_knn])
@pytest.mark.parametrize("exclude", [True, False])
def test_memory_does_not_grow_with_users_times_the_longest_history(fit, exclude, monkeypatch):
    monkeypatch.setattr(ranker_module, "_CHUNK", 2**14)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 300, n) for n in (20_000, *[6] * 2000)]  # 153 MiB if padded.
    splits = splits_of(rows, num_items=300)
    ranker, wanted = fit(splits), splits.sequences.items[splits.test.positions]
    tracemalloc.start()
    past = Histories.of(splits.sequences, splits.test)
    rankings = rankings_of_baseline(ranker, past, wanted, np.arange(300), exclude=exclude)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rankings) == 2001
    assert peak < 8 * 2**20


def test_fitting_does_not_hold_items_times_items(monkeypatch):
    monkeypatch.setattr(ranker_module, "_CHUNK", 2**14)
    splits = splits_of([np.arange(1500), *np.arange(1500).reshape(-1, 6)], num_items=1500)
    tracemalloc.start()
    fit_item_knn(splits, neighbours=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20  # A dense float64 matrix would have 17 MiB, all sparse cosines more.


def test_a_seen_target_is_a_miss_where_seen_items_are_removed():
    # Items 2 and 3 share a SID; item 2 was seen, item 3 is listed first.
    ranker = fit_popularity(splits_of([[3, 3, 3, 3, 2, 0, 0]], num_items=4))
    past, targets, sids = np.array([[2, -1]] * 2), np.array([2, 3]), np.array([0, 1, 2, 2])
    removed = rankings_of_baseline(ranker, past, targets, sids, depth=2, exclude=True)
    assert (removed.seen.tolist(), removed.exclude) == ([True, False], True)
    assert removed.sid_ranks.tolist() == [-1, 0]
    allowed = rankings_of_baseline(ranker, past, targets, sids, depth=2)
    assert (allowed.seen.tolist(), allowed.exclude) == ([True, False], False)
    assert allowed.sid_ranks.tolist() == [0, 0]


def test_rankings_of_a_baseline_are_joined_of_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    splits = splits_of(rng.integers(0, 30, (40, 9)), num_items=30)
    past, targets = Histories.of(splits.sequences, splits.test), rng.integers(-1, 32, 40)

    def ranked():
        return rankings_of_baseline(fit_markov_chain(splits), past, targets, np.arange(30), depth=7)

    whole = ranked()
    monkeypatch.setattr(ranker_module, "_CHUNK", 20)
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(ranked(), field.name), getattr(whole, field.name))
    assert whole.sid_ranks[(targets < 0) | (targets >= 30)].tolist().count(-1) > 0
    empty = rankings_of_baseline(fit_markov_chain(splits), past[:0], [], np.arange(30), depth=7)
    assert (len(empty), empty.depth) == (0, 7)


@pytest.mark.parametrize(
    ("histories", "targets"), [([[0]], [1, 2]), ([0], [1]), ([[0.5]], [1]), ([[2**40]], [1])]
)
def test_histories_and_targets_that_do_not_fit_are_refused(histories, targets):
    with pytest.raises(EvaluationError, match="expected|give one"):
        rankings_of_baseline(fit_popularity(SPLITS), np.array(histories), targets, np.arange(5))


def test_of_equally_good_settings_the_first_are_taken():
    splits = splits_of([[0, 1, 2, 4, 4]] * 3, num_items=5)
    grid = {"neighbours": (7, 2), "shrinkages": (3.0, 1.0), "recents": (2, None)}
    _, chosen = tune_item_knn(splits, np.array([[0, 1]]), np.array([9]), **grid)
    assert chosen == {"neighbours": 7, "shrinkage": 3.0, "recent": 2}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=25), st.integers(1, 4))
def test_the_best_of_rows_are_those_of_sorting(entries, count):
    entries.sort(key=lambda entry: entry[0])
    rows, scores = np.array(entries, int).reshape(-1, 2).T
    ties = np.random.default_rng(0).permutation(len(rows))
    kept = baselines_module._best_of_rows(rows, scores.astype(float), ties, count)
    for row in range(4):
        mine = np.flatnonzero(rows == row)
        best = sorted(mine, key=lambda entry: (-scores[entry], ties[entry]))[:count]
        assert set(mine[kept[mine]]) == set(best)


# Hit@10 and NDCG@10 of a plain chain (no back-off), whole histories removed; measured independently
# with dictionaries and `Counter.most_common` on these two data sets.
@pytest.mark.parametrize(
    ("folder", "expected_hit", "expected_ndcg"),
    [("amazon-office", 0.0760, 0.0477), ("amazon-beauty", 0.0600, 0.0413)],
)
def test_markov_chain_on_real_data(folder, expected_hit, expected_ndcg):
    if "GR_DATA" not in os.environ:
        pytest.skip("GR_DATA, the folder of the Amazon data sets, is not set")
    (path,) = pathlib.Path(os.environ["GR_DATA"], folder).glob("*.inter.json")
    rows = list(json.loads(path.read_text()).values())
    num_items = 1 + max(map(max, rows))
    splits = splits_of(rows, num_items)
    targets = splits.sequences.items[splits.test.positions]
    histories = histories_of(splits, splits.test, max(map(len, rows)) - 1)
    ranks = rankings_of_baseline(
        fit_markov_chain(splits, backoff=False),
        histories,
        targets,
        np.arange(num_items),
        depth=10,
        exclude=True,
    ).item_ranks
    assert hit(ranks, 10).mean() == pytest.approx(expected_hit, abs=5e-5)
    assert ndcg(ranks, 10).mean() == pytest.approx(expected_ndcg, abs=5e-5)


@pytest.mark.parametrize("exclude", [True, False])
def test_the_memorys_lists_descend_in_its_scores_and_then_in_popularity(exclude):
    splits = leave_one_out(synthetic_sequences(num_users=60, num_items=50, mean_length=8))
    past = Histories.of(splits.sequences, splits.test)
    memory = fit_memory(splits, neighbours=7)
    ranker = memory_ranker(splits, memory)
    scores = memory.unsorted_scores(past, exclude=False).toarray()
    place = {item: rank for rank, item in enumerate(ranker.popular.tolist())}
    for row, items in enumerate(ranker.rank(past, 20, exclude=exclude)):
        history = set(past.items[past.starts[row] : past.stops[row]].tolist())
        allowed = [item for item in range(50) if not (exclude and item in history)]
        expected = sorted(allowed, key=lambda item: (-scores[row, item], place[item]))[:20]
        assert items.tolist() == expected
