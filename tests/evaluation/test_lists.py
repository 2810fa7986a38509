"""Rankings of lists given by ids beside a slow count and beside trec_eval; lists that are special."""

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, Success, nDCG

from gr.data import DataError, Sequences, Targets
from gr.data.ranked_lists import RankedLists
from gr.data.splits import with_test_targets
from gr.evaluation import evaluate_rankings, user_metrics
from gr.evaluation.lists import list_facts, list_notes, match_lists, rankings_of_matched

KS = (1, 3, 5, 10)
ITEMS = np.array([f"i{item}" for item in range(12)])


def make_sequences(rows):
    return Sequences(
        items=np.array(sum(rows, []), np.int32),
        offsets=np.cumsum([0, *map(len, rows)]),
        user_ids=np.array([f"u{user}" for user in range(len(rows))]),
        item_ids=ITEMS,
    )


def last_of_each(sequences):
    users = np.flatnonzero(sequences.lengths)
    return Targets(users.astype(np.int32), sequences.offsets[users + 1] - 1)


def make_lists(rows):
    columns = dict(zip(("user", "item", "score"), map(list, zip(*rows, strict=True)), strict=True))
    return RankedLists.from_table(pa.table(columns), "a table")


HISTORIES = st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=6), min_size=1, max_size=6)
# Some users and items are not in the data.
ROWS = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 14), st.integers(0, 4)), min_size=1, max_size=60
)


def named_rows(rows):
    """With ids, and one more row, so that some user and item are known."""
    return [*((f"u{user}", f"i{item}", score) for user, item, score in rows), ("u0", "i0", -1)]


@settings(max_examples=60, deadline=None)
@given(HISTORIES, ROWS, st.booleans())
def test_ranks_are_those_of_a_slow_count(histories, rows, exclude):
    sequences, lists = make_sequences(histories), make_lists(named_rows(rows))
    targets = last_of_each(sequences)
    found = rankings_of_matched(
        match_lists(lists, sequences), sequences, targets, exclude=exclude, depth=4
    )
    assert found.exclude is exclude and found.items.shape == (len(targets), 4)
    for row, history in enumerate(histories):
        user = f"u{row}"
        of_user = lists.of(user) if user in lists.users else []
        seen = {f"i{item}" for item in history[:-1]} if exclude else set()
        kept = [item for item in of_user if item not in seen]
        target = f"i{history[-1]}"
        expected = kept.index(target) if target in kept else -1
        assert found.item_ranks[row] == found.sid_ranks[row] == expected
        top = [f"i{item}" if item >= 0 else None for item in found.items[row]]
        known = [item if item in ITEMS else None for item in kept]
        assert top == (known + [None] * 4)[:4]
        assert found.candidates[row] == len(kept)
        assert found.duplicates[row] == len(kept) - len(set(kept))
        assert found.seen[row] == (history[-1] in history[:-1])


@settings(max_examples=60, deadline=None)
@given(HISTORIES, ROWS)
def test_metrics_are_those_of_trec_eval(histories, rows):
    """With ties, short lists, users without a list, unknown users and items, for each user and on average."""
    sequences = make_sequences(histories)
    # No list names an item twice, which trec_eval cannot read.
    rows = [(*pair, score) for pair, score in {row[:2]: row[2] for row in named_rows(rows)}.items()]
    targets = last_of_each(sequences)
    matched = match_lists(make_lists(rows), sequences)
    rankings = rankings_of_matched(matched, sequences, targets, exclude=False, depth=max(KS))
    ours = user_metrics(rankings, KS)
    wanted = sequences.items[targets.positions]
    qrels = [ir_measures.Qrel(f"u{user}", f"i{item}", 1) for user, item in enumerate(wanted)]
    run = [ir_measures.ScoredDoc(*row) for row in rows]
    # With one relevant item average precision is the reciprocal rank.
    measures = {
        f"{name}@{k}": of @ k
        for name, of in (("hit", Success), ("ndcg", nDCG), ("mrr", AP))
        for k in KS
    }
    theirs = {measure: {} for measure in measures.values()}
    for metric in ir_measures.iter_calc(list(measures.values()), qrels, run):
        theirs[metric.measure][int(metric.query_id[1:])] = metric.value
    means = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    evaluated = evaluate_rankings(rankings, np.ones(len(ITEMS), int), ks=KS, num_resamples=10)
    for name, measure in measures.items():
        expected = [theirs[measure].get(user, 0.0) for user in range(len(targets))]
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(ours[f"item_{name}"], expected, rtol=0, atol=1e-9)
        assert evaluated[name] == pytest.approx(means[measure], abs=1e-9)


def test_what_is_special_is_counted():
    sequences = make_sequences([[0, 1, 2], [3, 4], [5, 6], [7], []])
    lists = make_lists(
        [
            *(("u0", item, 0.5) for item in ("i1", "i9")),  # Seen, tied, short.
            *(("u1", f"i{item}", -item) for item in (4, 5, 5, 6)),  # Repeats one.
            *(("u3", "i7", 1), ("u4", "i1", 1)),  # The last user has no target.
            *(("x", "i1", 1), ("y", "new", 1)),
        ]
    )
    matched = match_lists(lists, sequences)
    facts = list_facts(matched, sequences, last_of_each(sequences), depth=3)
    assert facts == {
        "lists": 6,
        "rows": 10,
        "skipped_rows": 0,
        "longest": 4,
        "unknown_users": [2, ["x", "y"]],
        "unknown_items": [1, ["new"]],
        "users": 4,
        "without_list": 1,
        "without_target": 1,
        "with_seen": 1,
        "tied": 2,
        "repeating": 1,
        "short": 2,
    }
    notes = list_notes("theirs", facts, depth=3)
    assert all(note.removeprefix("Warning: ").startswith("theirs: ") for note in notes)
    for told in (
        "2 users are not in the data (x, y): their lists are not used.",
        "1 items are not in the data (new): they keep their places.",
        "Warning: theirs: 1 of 4 users with a target have no list: misses.",
        "1 lists are of users without a target: not used.",
        "2 lists have fewer than 3 items that the user had not seen",
        "1 lists name items that the user had seen: where seen items are removed",
        "2 lists have equal scores: ordered by item id, from Z to A.",
        "1 lists name an item twice: each place counts.",
    ):
        assert sum(told in note for note in notes) == 1, told
    assert len(notes) == 8
    clean = make_lists([("u1", "i4", 1), ("u2", "i6", 1)])
    facts = list_facts(match_lists(clean, sequences), sequences, Targets(*_rows([1, 2], sequences)))
    notes = list_notes("theirs", facts)
    assert len(notes) == 2 and "No list has more than 1 items" in notes[0]
    assert "No list names an item that the user had seen" in notes[1]


def _rows(users, sequences):
    return np.array(users, np.int32), sequences.offsets[np.array(users) + 1] - 1


def test_ids_of_something_else_are_refused():
    sequences = make_sequences([[0, 1]])
    with pytest.raises(DataError, match=r"^FILE: none of its 1 users are .* like 0, .* like u0; "):
        match_lists(make_lists([("0", "i1", 1)]), sequences, "FILE")
    with pytest.raises(
        DataError, match=r"^FILE: none of its 1 items are .* like i0, i1, .*\.\.\.; "
    ):
        match_lists(make_lists([("u0", "1", 1)]), sequences, "FILE")


@settings(max_examples=80, deadline=None)
@given(HISTORIES, st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11)), min_size=1))
def test_given_targets_are_a_split(histories, pairs):
    """Beside a slow one: nothing from the first target on is learnt from, whatever its place."""
    sequences = make_sequences(histories)
    pairs = [(user % len(histories), item) for user, item in pairs]
    users, items = np.array(pairs).T
    splits = with_test_targets(sequences, users, items)
    rows = [list(history) for history in histories]
    for user, item in dict.fromkeys(pairs):
        if item not in histories[user]:
            rows[user].append(item)
    assert [splits.sequences.of(user).tolist() for user in range(len(rows))] == rows
    expected = {"train": [], "validation": [], "test": []}
    for user, row in enumerate(rows):
        last = {item: place for place, item in enumerate(row)}
        tested = sorted(last[item] for item in {item for other, item in pairs if other == user})
        stop = tested[0] if tested else len(row)
        expected["test"] += [(user, place) for place in tested]
        for place in range(1, stop):
            part = "validation" if tested and place == stop - 1 else "train"
            expected[part].append((user, place))
    for part, of_part in expected.items():
        targets = getattr(splits, part)
        places = targets.positions - splits.sequences.offsets[targets.users]
        assert list(zip(targets.users.tolist(), places.tolist(), strict=True)) == of_part
