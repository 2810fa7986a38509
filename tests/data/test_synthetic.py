import numpy as np
import pytest

from gr.data import DataError, leave_one_out, synthetic_sequences


@pytest.fixture(scope="module")
def sequences():
    return synthetic_sequences()


def test_sizes_times_and_texts(sequences):
    assert (sequences.num_users, sequences.num_items) == (2000, 500)
    assert 18 < sequences.lengths.mean() < 22
    assert sequences.lengths.min() >= 5
    for user in range(0, 2000, 97):
        start, end = sequences.offsets[user : user + 2]
        assert (np.diff(sequences.times[start:end]) > 0).all()
    assert len(np.unique(sequences.titles())) == 500
    assert len(np.unique(sequences.item_fields["categories"])) == 20


def test_no_user_takes_an_item_twice(sequences):
    users = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    assert len(np.unique(np.stack((users, sequences.items)), axis=1).T) == len(sequences.items)


def test_same_seed_same_log():
    first, same, other = (synthetic_sequences(num_users=50, seed=seed) for seed in (3, 3, 4))
    assert first.items.tolist() == same.items.tolist()
    assert first.times.tolist() == same.times.tolist()
    assert first.items.tolist() != other.items.tolist()


def test_popularity_is_long_tailed(sequences):
    counts = np.sort(np.bincount(sequences.items, minlength=500))[::-1]
    assert counts[:100].sum() > 2 * counts[-250:].sum()
    assert counts[0] > 4 * np.median(counts)


def test_small_and_crowded_logs_end():
    sequences = synthetic_sequences(num_users=30, num_items=20, num_categories=1, mean_length=10)
    assert sequences.lengths.max() <= 10
    assert sequences.num_items == 20


def test_what_came_last_predicts_better_than_popularity(sequences):
    """Hit@10 of popularity, of a Markov chain, and of popularity within the last item's category."""
    splits = leave_one_out(sequences)
    positions, items = splits.train.positions, sequences.items
    popularity = np.bincount(items[positions], minlength=500) / len(positions)
    follows = np.zeros((500, 500))
    np.add.at(follows, (items[positions - 1], items[positions]), 1)
    categories = sequences.item_fields["categories"]
    hits = np.zeros(3)
    for user, position in zip(splits.test.users, splits.test.positions, strict=True):
        history, last = items[sequences.offsets[user] : position], items[position - 1]
        scores = np.stack(
            (
                popularity,
                follows[last] + popularity,
                (categories == categories[last]) + popularity,
            )
        )
        scores[:, history] = -1
        hits += (scores > scores[:, [items[position]]]).sum(axis=1) < 10
    by_popularity, by_markov, by_category = hits / len(splits.test)
    assert by_markov > 3 * by_popularity
    assert by_category > 3 * by_popularity


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_users": 0},
        {"num_items": 19},
        {"num_items": 30, "num_categories": 31},
        {"mean_length": 4},
        {"mean_length": 251},
    ],
)
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(DataError, match=next(iter(sizes))):
        synthetic_sequences(**sizes)
