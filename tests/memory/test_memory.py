"""The memory beside an oracle of loops and dictionaries, on random sequences; its file; its tuning."""

import collections
import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from users import sequences_of

from gr.data import Histories, leave_one_out, synthetic_sequences, training_interactions
from gr.memory import GATE_INPUTS, ItemMemoryError, Memory, MemorySettings, fit_memory, tune_memory
from gr.memory.cooccurrence import best_entries
from gr.memory.tuning import STARTS, target_ranks

NUM_ITEMS = 7


def weights_by_loops(rows, how):
    """`What` before its rows are cut, as a dictionary of pairs."""
    counts = collections.Counter(item for row in rows for item in row)
    pairs = collections.Counter()
    for row in rows:
        for place, first in enumerate(row):
            for distance in range(1, how.window + 1):
                if place + distance < len(row):
                    second = row[place + distance]
                    pairs[first, second] += how.decay ** (distance - 1)
                    pairs[second, first] += how.back * how.decay ** (distance - 1)
    return {
        (i, j): value
        / math.sqrt((counts[i] + how.shrink) * (counts[j] + how.shrink))
        / (counts[j] + how.shrink) ** how.discount
        for (i, j), value in pairs.items()
        if value > 0
    }


def scores_by_loops(weights, history, how, exclude):
    """The score of each item after one history, from the weights of a fitted memory `[N, N]`."""
    scores = [0.0] * NUM_ITEMS
    for place, item in enumerate(history[::-1][: how.reach]):
        for other in range(NUM_ITEMS):
            scores[other] += how.recency**place * weights[item, other]
    scores = [0.0 if exclude and j in history else score for j, score in enumerate(scores)]
    return np.array(scores) / (sum(scores) or 1)


ROWS = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=9), min_size=1, max_size=8)
SETTINGS = st.builds(
    MemorySettings,
    window=st.integers(1, 10),
    decay=st.sampled_from([0.5, 0.8, 1.0]),
    back=st.sampled_from([0.0, 0.5, 2.0]),
    shrink=st.sampled_from([0.0, 1.0, 10.0]),
    neighbours=st.integers(1, NUM_ITEMS),
    recency=st.sampled_from([0.3, 0.9, 1.0]),
    reach=st.integers(1, 6),
    discount=st.sampled_from([0.0, 0.2, 1.0]),
)


@settings(deadline=None)
@given(ROWS, SETTINGS)
def test_weights_are_those_of_loops_cut_to_the_largest_of_each_row(rows, how):
    memory = fit_memory(sequences_of(rows, NUM_ITEMS), **dataclasses.asdict(how))
    expected = weights_by_loops(rows, how)
    assert memory.counts.tolist() == [sum(row.count(i) for row in rows) for i in range(NUM_ITEMS)]
    for item in range(NUM_ITEMS):
        of_row = {j: value for (i, j), value in expected.items() if i == item}
        found = memory.weights[[item]].tocoo()
        kept = dict(zip(found.col.tolist(), found.data.tolist(), strict=True))
        best = sorted(of_row.values(), reverse=True)[: how.neighbours]
        np.testing.assert_allclose(sorted(kept.values(), reverse=True), best, rtol=1e-5)
        for other, value in kept.items():
            assert value == pytest.approx(of_row[other], rel=1e-5)


def test_ties_at_the_cut_go_to_the_items_that_come_first():
    memory = fit_memory(
        sequences_of([[0, 3], [0, 1], [0, 2], [0, 2]], NUM_ITEMS), neighbours=2, window=1, back=0
    )
    assert memory.weights[[0]].tocoo().col.tolist() == [1, 2]


@settings(deadline=None)
@given(ROWS, ROWS, SETTINGS, st.booleans(), st.integers(1, NUM_ITEMS + 2))
def test_scores_and_priors_are_those_of_loops(rows, histories, how, exclude, size):
    memory = fit_memory(sequences_of(rows, NUM_ITEMS), **dataclasses.asdict(how))
    weights = memory.weights.toarray()
    padded = np.full((len(histories), 9), -1)
    for row, history in zip(padded, histories, strict=True):
        row[9 - len(history) :] = history  # Padding on the left is as good as on the right.
    expected = np.array([scores_by_loops(weights, h, how, exclude) for h in histories])
    np.testing.assert_allclose(
        memory.scores(padded, exclude=exclude).toarray(), expected, rtol=1e-4, atol=1e-7
    )
    prior = memory.prior(padded, size=size, exclude=exclude)
    assert prior.items.shape == prior.weights.shape == (len(histories), size)
    for items, of_prior, scores in zip(prior.items, prior.weights, expected, strict=True):
        best = sorted(scores[scores > 0], reverse=True)[:size]
        np.testing.assert_allclose(
            of_prior[: len(best)], np.array(best) / (sum(best) or 1), rtol=1e-4
        )
        used = items[: len(best)]
        assert len(set(used.tolist())) == len(best) and (used >= 0).all()
        np.testing.assert_allclose(scores[used], best, rtol=1e-4)
        assert (items[len(best) :] == -1).all() and not of_prior[len(best) :].any()
    inputs = memory.gate_inputs(padded, prior)
    assert inputs.shape == (len(histories), len(GATE_INPUTS))
    for found, history, of_prior in zip(inputs, histories, prior.weights, strict=True):
        support = sum(row.count(history[-1]) for row in rows) if history else 0
        assert found.tolist() == [of_prior.max(), support, len(history)]


@settings(deadline=None)
@given(ROWS, ROWS, SETTINGS, st.data())
def test_shares_of_the_history_are_those_of_loops(rows, histories, how, data):
    memory = fit_memory(sequences_of(rows, NUM_ITEMS), **dataclasses.asdict(how))
    weights = memory.weights.toarray()
    items = np.array(
        [
            data.draw(st.lists(st.integers(-1, NUM_ITEMS - 1), min_size=3, max_size=3))
            for _ in histories
        ]
    )
    taken = Histories(
        np.array([item for history in histories for item in history], dtype=np.int32),
        np.cumsum([0] + [len(history) for history in histories])[:-1],
        np.cumsum([len(history) for history in histories]),
    )
    sources, shares = memory.because(taken, items)
    assert sources.shape == shares.shape == (len(histories), 3, how.reach)
    for history, of_user, sources_of_user, shares_of_user in zip(
        histories, items, sources, shares, strict=True
    ):
        for item, source, share in zip(of_user, sources_of_user, shares_of_user, strict=True):
            expected = collections.Counter()
            for place, earlier in enumerate(history[::-1][: how.reach]):
                if item >= 0 and weights[earlier, item] > 0:
                    expected[earlier] += how.recency**place * weights[earlier, item]
            total = sum(expected.values())
            found = {
                s: value for s, value in zip(source.tolist(), share.tolist(), strict=True) if s >= 0
            }
            assert found.keys() == expected.keys()
            for earlier, value in expected.items():
                assert found[earlier] == pytest.approx(value / total, rel=1e-4)
            assert (np.diff(share) <= 0).all() and not share[source < 0].any()


def test_only_training_interactions_are_counted():
    rows = [[0, 1, 2, 5, 6], [3, 0, 1, 6, 5], [4, 2]]
    splits = leave_one_out(sequences_of(rows, NUM_ITEMS))
    trained = training_interactions(splits)
    parts, start = [], 0
    for row in rows:
        parts.append([item for place, item in enumerate(row) if trained[start + place]])
        start += len(row)
    assert parts == [[0, 1, 2], [3, 0, 1], []]
    found, expected = fit_memory(splits), fit_memory(sequences_of(parts, NUM_ITEMS))
    assert (found.weights != expected.weights).nnz == 0
    assert found.counts.tolist() == expected.counts.tolist() == [2, 2, 1, 1, 0, 0, 0]


def test_a_chunk_of_users_or_pairs_changes_nothing(monkeypatch):
    splits = leave_one_out(synthetic_sequences(num_users=60, num_items=40, seed=1))
    past = Histories.of(splits.sequences, splits.test)

    def made():
        memory = fit_memory(splits)
        return memory, memory.prior(past, size=9, exclude=True)

    memory, prior = made()
    monkeypatch.setattr("gr.memory.cooccurrence._CHUNK", 50)
    monkeypatch.setattr("gr.memory.counts._CHUNK", 50)
    again, in_chunks = made()
    np.testing.assert_allclose(again.weights.toarray(), memory.weights.toarray(), rtol=1e-6)
    np.testing.assert_allclose(in_chunks.weights, prior.weights, rtol=1e-5)


def test_so_many_users_at_a_time_as_64_bits_can_number(monkeypatch):
    sequences = synthetic_sequences(num_users=60, num_items=40)
    memory, past = fit_memory(sequences), Histories.of(sequences, leave_one_out(sequences).test)
    prior = memory.prior(past, size=9)
    monkeypatch.setattr("gr.memory.cooccurrence._column_bits", lambda num_items: 31)
    assert {rows.stop - rows.start for rows in memory.chunks(past)} == {2}
    few_at_a_time = memory.prior(past, size=9)
    np.testing.assert_array_equal(few_at_a_time.items, prior.items)
    np.testing.assert_array_equal(few_at_a_time.weights, prior.weights)


def test_small_weights_sum_to_1_too():
    """Those of the earlier places of a long history, whose last items have come with nothing."""
    rows = [[0, 1], [0, 1], [2], [3], [4]]
    memory = fit_memory(sequences_of(rows, 5), recency=1e-10, reach=5, shrink=1.0)
    prior = memory.prior(np.array([[0, 2, 3, 4, 2]]), size=3)
    assert prior.items[0].tolist() == [1, -1, -1]
    np.testing.assert_allclose(prior.weights[0], [1, 0, 0])


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_weights_by_which_items_would_be_ranked_wrongly_are_refused(wrong):
    memory = fit_memory(synthetic_sequences(num_users=20, num_items=40))
    weights = memory.weights.copy()
    weights.data[1] = wrong
    with pytest.raises(ItemMemoryError, match="1 weights of the memory are negative or not finite"):
        dataclasses.replace(memory, weights=weights)


@pytest.mark.parametrize("num_items", [1, 2, 300])
@pytest.mark.parametrize("largest", [3.0, 1e38])
def test_best_entries_are_those_of_a_sort_by_row_number_and_column(num_items, largest):
    """Of columns in any order, many of equal numbers, from 0 to the largest."""
    rng = np.random.default_rng(num_items)
    lengths = rng.integers(0, num_items + 1, 20)
    columns = np.concatenate([rng.permutation(num_items)[:n] for n in lengths])
    numbers = (rng.integers(0, 4, len(columns)) / 3 * largest).astype(np.float32)
    pointers = np.concatenate([[0], np.cumsum(lengths)])
    scores = sparse.csr_array((numbers, columns, pointers), shape=(20, num_items))
    expected = [
        (row, place, scores.indices[entry], scores.data[entry])
        for row, (first, stop) in enumerate(itertools.pairwise(pointers))
        for place, entry in enumerate(
            sorted(range(first, stop), key=lambda e: (-numbers[e], columns[e]))[:50]
        )
    ]
    found = list(zip(*best_entries(scores, 50), strict=True))
    assert found == expected


def test_a_memory_is_read_as_it_was_written(tmp_path):
    memory = fit_memory(synthetic_sequences(num_users=50, num_items=40), shrink=3.0, reach=2)
    memory.save(tmp_path / "memory.npz")
    read = Memory.load(tmp_path / "memory.npz")
    assert read.settings == memory.settings
    assert (read.weights != memory.weights).nnz == 0
    np.testing.assert_array_equal(read.counts, memory.counts)
    with pytest.raises(FileNotFoundError):
        Memory.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", data=np.zeros(3))
    (tmp_path / "text.npz").write_text("no zip")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(
            ItemMemoryError, match=f"{name} is not the file of a memory .*fit it again"
        ):
            Memory.load(tmp_path / name)


@given(st.integers(0, 2**32 - 1))
def test_ranks_of_targets_are_those_of_sorted_scores(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=(6, 8)).astype(np.float32)
    targets = rng.integers(0, 8, size=6)
    found = target_ranks(sparse.csr_array(scores), targets)
    for row, target, rank in zip(scores, targets, found, strict=True):
        order = sorted(np.flatnonzero(row), key=lambda j: (-row[j], j))
        assert rank == (order.index(target) if row[target] else -1)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100), st.booleans())
def test_tuning_finds_the_best_of_a_small_grid(seed, exclude):
    splits = leave_one_out(
        synthetic_sequences(num_users=80, num_items=30, mean_length=8, seed=seed)
    )
    past = Histories.of(splits.sequences, splits.validation)
    wanted = splits.sequences.items[splits.validation.positions]

    def quality(how):
        scores = fit_memory(splits, **dataclasses.asdict(how)).scores(past, exclude=exclude)
        ranks = target_ranks(scores, wanted)
        return np.mean([1 / math.log2(r + 2) if 0 <= r < 10 else 0.0 for r in ranks])

    values = (0.5, 1.0)
    memory, found = tune_memory(
        splits, past, wanted, exclude=exclude, starts=STARTS[:1], grid={"decay": values}
    )
    assert found == pytest.approx(quality(memory.settings))
    for value in (STARTS[0].decay, *values):
        assert quality(dataclasses.replace(STARTS[0], decay=value)) <= found + 1e-9
    start = max(map(quality, STARTS))
    memory, found = tune_memory(splits, past, wanted, exclude=exclude)
    assert found == pytest.approx(quality(memory.settings)) and found >= start - 1e-9


def test_what_cannot_be_used_is_refused():
    sequences = sequences_of([[0, 1, 2, 3, 4], [1, 2, 3, 4]], NUM_ITEMS)
    memory, splits = fit_memory(sequences), leave_one_out(sequences)
    history = np.array([[0, 1]])
    for call, message in (
        (lambda: fit_memory(sequences, decay=0.0), r"memory.decay=0.0: use a number above 0"),
        (lambda: fit_memory(sequences, reach=0), "memory.reach=0: use 1 or more"),
        (lambda: memory.scores(np.array([0, 1])), r"shape \(2,\).*give Histories, or rows"),
        (lambda: memory.scores(np.array([[0.5]])), "type float64.*give Histories, or rows"),
        (lambda: memory.scores(np.array([[7]])), "item 7, and the memory was fitted on 7 items"),
        (lambda: memory.prior(history, size=0), "size=0: give at least one slot"),
        (lambda: memory.because(history, np.array([[7]])), "one for each of 1 histories"),
        (lambda: memory.because(history, np.array([1])), "give rows"),
        (lambda: tune_memory(splits, history[:0], np.array([])), "the validation split is empty"),
        (
            lambda: tune_memory(splits, history, np.array([2]), grid={"widnow": (1,)}),
            "grid names 'widnow': a memory has window",
        ),
    ):
        with pytest.raises(ItemMemoryError, match=message):
            call()
