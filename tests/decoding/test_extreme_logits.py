"""Searches under logits and temperatures of any size, against float64; NaN and infinities are told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import rows

from gr.decoding import (
    VedConfig,
    beam_search,
    sample,
    sample_without_replacement,
    ved_search,
)
from gr.decoding.softmax import Softmax, inverse_of, softmax
from gr.testing import TableModel, random_table_model, random_tokens
from gr.trie import EditableIndex, ExcludeItems, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS, LENGTH, VOCAB = 2, 3, tries.VOCAB
HISTORY = jnp.zeros((USERS, 1))
KEY = jax.random.key(0)
LARGEST = float(np.finfo(np.float32).max)
EXTREMES = (np.inf, -np.inf, 1e30, -1e30, LARGEST, -LARGEST, -1e32, 0.0)
TEMPERATURES = (1e-10, 1e-3, 0.7, 1.0, 30.0, 1e10)
# As good as impossible: float32 cannot tell how far below the rest such a score is.
HOPELESS = -1e27


def extreme_table(rng, dtype):
    """Logits some of which are extreme, some equal, and some the same in a whole row."""
    shape = (USERS, LENGTH, VOCAB, VOCAB)
    table = rng.normal(size=shape) * rng.choice([1e-3, 2.0, 100.0])
    table = np.where(rng.random(shape) < 0.2, np.round(table), table)
    extreme = rng.choice(EXTREMES, shape)
    table = np.where(rng.random(shape) < rng.choice([0.0, 0.05, 0.5]), extreme, table)
    same = rng.random(shape[:3]) < rng.choice([0.0, 0.2])
    table = np.where(same[..., None], rng.choice(EXTREMES, shape[:3])[..., None], table)
    return jnp.asarray(table, jnp.float32).astype(dtype)


def chances_of(model, user, temperature, tokens=None, lone_are_free=False):
    """`log_prob(prefix) -> [V]`; with tokens, over what they have behind the prefix.

    `lone_are_free`: behind a prefix of a single item nothing is evaluated.
    """
    table = np.asarray(model.table[user].astype(jnp.float32), np.float64)
    children = None if tokens is None else oracles.live_children(tokens, (), 0)

    def of(prefix):
        if lone_are_free and prefix:
            if sum(tuple(row[: len(prefix)]) == prefix for row in tokens) == 1:
                return np.zeros(VOCAB)
        among = None if children is None else children.get(prefix, [])
        return oracles.log_chances(
            table[len(prefix), prefix[-1] if prefix else 0], temperature, among
        )

    return of


def assert_ranks(found, user, ranking, everything=True):
    """The ranking `(score, sid, items)`, except for the order of those that are as good."""
    mine = rows(found, user)
    of_sid = {sid: (score, items) for score, sid, items in ranking}
    assert len({sid for _, sid, _ in mine}) == len(mine)
    assert len(mine) == len(ranking) or not everything
    scores = np.array([score for score, _, _ in mine])
    assert (scores <= 0).all() and (np.diff(scores) <= 0).all()
    expected = np.array([of_sid[sid][0] for _, sid, _ in mine])
    np.testing.assert_allclose(
        np.maximum(scores, HOPELESS), np.maximum(expected, HOPELESS), rtol=2e-5, atol=2e-3
    )
    assert [items for _, _, items in mine] == [of_sid[sid][1] for _, sid, _ in mine]


def beams_over(normalise_over):
    def search(model, index, count, temperature, constraint=None):
        return beam_search(
            model,
            index,
            HISTORY,
            count,
            temperature=temperature,
            constraint=constraint,
            normalise_over=normalise_over,
        )

    return search


def tree_over(normalise_over):
    def search(model, index, count, temperature, constraint=None):
        return ved_search(
            model,
            None,
            index,
            HISTORY,
            VedConfig(
                "best_first",
                budget=2 * tries.MAX_ITEMS,
                num_candidates=count,
                initial_beams=0,
                prior_weight=1.0,
                normalise_over=normalise_over,
            ),
            key=KEY,
            temperature=temperature,
            constraint=constraint,
        )

    return search


def drawn(model, index, count, temperature, constraint=None):
    return sample_without_replacement(
        model, index, HISTORY, count, key=KEY, temperature=temperature, constraint=constraint
    )


SEARCHES = {
    "beam": (beams_over("vocabulary"), "vocabulary"),
    "beam over children": (beams_over("children"), "children"),
    "tree": (tree_over("vocabulary"), "vocabulary"),
    "tree over children": (tree_over("children"), "children"),
    "drawn": (drawn, "allowed"),
}
CASES = [
    ("beam", tries.MIXES[0], jnp.float32),
    ("beam", tries.MIXES[3], jnp.bfloat16),
    pytest.param("beam", tries.MIXES[5], jnp.float16, marks=pytest.mark.long),
    pytest.param("beam over children", tries.MIXES[0], jnp.float32, marks=pytest.mark.long),
    ("beam over children", tries.MIXES[3], jnp.float32),
    ("tree", tries.MIXES[3], jnp.float32),
    pytest.param("tree over children", tries.MIXES[3], jnp.float32, marks=pytest.mark.long),
    ("drawn", tries.MIXES[3], jnp.float32),
]


@pytest.mark.parametrize(("name", "kinds", "dtype"), CASES)
@settings(max_examples=5, deadline=None)
@given(
    tokens=tries.token_sets(),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from(TEMPERATURES),
    excluded=st.booleans(),
)
def test_any_logits_are_ranked_as_in_float64(
    name, kinds, dtype, tokens, seed, temperature, excluded
):
    index = TrieIndex.build(tokens, VOCAB, layout=tries.roomy_layout(kinds))
    rng = np.random.default_rng(seed)
    model = TableModel(extreme_table(rng, dtype))
    search, over = SEARCHES[name]
    items = rng.integers(-1, len(tokens), (USERS, 4)) if excluded else np.full((USERS, 4), -1)
    constraint = ExcludeItems(jnp.asarray(items))
    # All, and few of which it is known only that each is right.
    for count in (tries.MAX_ITEMS, 3):
        found = search(model, index, count, temperature, constraint)
        for user in range(USERS):
            demands = oracles.excluding(set(items[user].tolist()))
            left = [row for item, row in enumerate(tokens) if item not in items[user]]
            among = {"vocabulary": None, "children": tokens, "allowed": left}[over]
            if len(left) == 0:
                assert not found.valid[user].any()
                continue
            free = name == "tree over children"
            log_prob = chances_of(model, user, temperature, among, free)
            ranking = oracles.brute_force_ranking(tokens, log_prob, demands)
            everything = count == tries.MAX_ITEMS and (name != "drawn")
            assert_ranks(found, user, ranking, everything)


def with_row(value, columns=slice(None)):
    """Logits of which those of one row of depth 1 are the same, that behind token 0."""
    table = np.random.default_rng(0).normal(size=(USERS, LENGTH, 6, 6)).astype(np.float32)
    table[:, 1, 0, columns] = value
    return TableModel(jnp.asarray(table))


SIX = np.array([[0, 2, 4], [0, 3, 4], [1, 2, 5], [1, 3, 4], [1, 3, 5]])


@pytest.mark.parametrize("name", ["beam", "beam over children", "tree", "drawn"])
@pytest.mark.parametrize("value", [-LARGEST, -1e32, LARGEST, 0.0])
def test_where_all_logits_are_the_same_none_is_likelier(name, value):
    index = TrieIndex.build(SIX, 6)
    search, _ = SEARCHES[name]
    found = search(with_row(value), index, 5, 1.0)
    plain = search(with_row(7.0), index, 5, 1.0)
    np.testing.assert_array_equal(found.items, plain.items)
    np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-5)
    assert found.finite.all() and found.valid.all()


@pytest.mark.parametrize("name", ["beam", "beam over children", "tree", "drawn"])
def test_where_all_logits_are_minus_infinity_it_ranks_last(name):
    found = SEARCHES[name][0](with_row(-np.inf), TrieIndex.build(SIX, 6), 5, 1.0)
    assert (np.sort(found.items[:, -2:, 0], axis=1) == [0, 1]).all()
    assert found.valid.all() and found.finite.all() and (found.scores[:, -1] > -np.inf).all()


def test_diverse_groups_under_extremes():
    index = TrieIndex.build(SIX, 6)
    for value in (-np.inf, -LARGEST, -1e32, np.inf, LARGEST):
        for columns in (slice(None), slice(2, 4), 2):
            model = with_row(value, columns)
            found = beam_search(model, index, HISTORY, 4, num_groups=2, diversity=0.5)
            for user in range(USERS):
                log_prob = chances_of(model, user, 1.0)
                expected = oracles.diverse_beam_search(
                    SIX, log_prob, 4, 2, 0.5, unique_depth=index.layout.unique_depth
                )
                mine = rows(found, user)
                assert len(mine) == len(expected)
                scores = [[row[0] for row in ranking] for ranking in (mine, expected)]
                np.testing.assert_allclose(*scores, rtol=1e-5)
                assert max(scores[0]) <= 0


# Numbers that are none.


def flawed_model(value, user, depth, last, token):
    model = random_table_model(np.random.default_rng(1), LENGTH, VOCAB, USERS)
    return TableModel(model.table.at[user, depth, last, token].set(value))


TRIE = random_tokens(np.random.default_rng(2), 20)


@pytest.mark.parametrize("name", list(SEARCHES))
@pytest.mark.parametrize("depth", range(LENGTH))
def test_nan_is_told_apart_from_nothing_allowed(name, depth):
    search, over = SEARCHES[name]
    index = TrieIndex.build(TRIE, VOCAB, layout=tries.roomy_layout(tries.MIXES[3]))
    last = int(TRIE[0, depth - 1]) if depth else 0
    token = int(TRIE[0, depth])
    plain = search(flawed_model(0.0, 1, depth, last, token), index, 9, 0.8)
    found = search(flawed_model(np.nan, 1, depth, last, token), index, 9, 0.8)
    assert plain.finite.all() and plain.bad_step.tolist() == [-1, -1]
    assert found.finite.tolist() == [True, False] and found.bad_step.tolist() == [-1, depth]
    assert np.isnan(found.scores[1]).all() and not found.valid[1].any()
    assert (found.items[1] == -1).all() and (found.tokens[1] == -1).all()
    for field in ("items", "tokens", "scores", "valid"):
        np.testing.assert_array_equal(getattr(found, field)[0], getattr(plain, field)[0])
    if found.draws is not None:
        assert np.isnan(found.draws.log_inclusion[1]).all() and np.isnan(found.draws.threshold[1])
    found = search(flawed_model(np.inf, 1, depth, last, token), index, 9, 0.8)
    assert found.bad_step.tolist() == [-1, depth] and found.valid[1].any()
    assert (found.scores[1][found.valid[1]] <= 0).all()
    # No other code of that prefix comes before it, where the prefix is among the best.
    prefix = TRIE[0, :depth].tolist()
    behind = [code[depth] for code in found.tokens[1].tolist() if code[:depth] == prefix]
    assert behind[:1] in ([], [token]) and (depth or behind)


def test_what_no_score_depends_on_may_be_anything():
    index = TrieIndex.build(SIX, 6)
    # Of token 0 nothing is behind 2; of depth 1 no row belongs to token 4; over children 0 is no child of token 1.
    for name, depth, last, token in (("beam", 1, 4, 0), ("beam over children", 1, 1, 0)):
        model = with_row(0.0)
        model = TableModel(model.table.at[:, depth, last, token].set(np.nan))
        assert SEARCHES[name][0](model, index, 5, 1.0).finite.all()
    # An unused token counts where probabilities are over the vocabulary.
    model = TableModel(with_row(0.0).table.at[:, 0, 0, 5].set(np.nan))
    assert beam_search(model, index, HISTORY, 5).bad_step.tolist() == [0, 0]
    # A prefix that the constraint closes is not decoded.
    model = TableModel(with_row(0.0).table.at[:, 1, 0].set(np.nan))
    seen = ExcludeItems(jnp.array([[0, 1], [0, -1]]))
    found = beam_search(model, index, HISTORY, 5, constraint=seen)
    assert found.bad_step.tolist() == [-1, 1]
    assert found.valid.sum(axis=1).tolist() == [3, 0]


def test_samples_and_edited_indexes_tell_of_it_too():
    model = flawed_model(np.nan, 0, 1, int(TRIE[0, 0]), int(TRIE[0, 1]))
    everything = jnp.full((USERS, VOCAB, VOCAB), np.nan)
    index = EditableIndex.build(TRIE, VOCAB).add(TRIE[:2])[0].remove(np.array([5])).index
    found = beam_search(model, index, HISTORY, 20)
    assert found.bad_step.tolist() == [1, -1] and found.valid[1].any()
    found = sample(
        TableModel(model.table.at[:1, 1].set(everything[:1])), index, HISTORY, 5, key=KEY
    )
    assert found.bad_step.tolist() == [1, -1]
    assert np.isnan(found.scores[0]).all() and found.valid[1].all()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConstantHead:
    """The same value everywhere but for one depth."""

    value: jax.Array
    depth: jax.Array

    def step(self, hidden, depths, before):
        return jnp.where(depths == self.depth, self.value, 0.5), ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "options",
    [{}, {"name": "best_first", "prior_weight": 1.0, "initial_beams": 0}],
    ids=["ved", "best_first"],
)
def test_values_that_are_none_end_the_search_and_are_told(value, options):
    index = TrieIndex.build(TRIE, VOCAB)
    model = random_table_model(np.random.default_rng(1), LENGTH, VOCAB, USERS)
    head = ConstantHead(jnp.float32(value), jnp.int32(1))
    config = VedConfig(**{"budget": 12, "num_candidates": 6, "initial_beams": 2} | options)
    found = ved_search(model, head, index, HISTORY, config, key=KEY, keep_tree=True)
    assert found.bad_step.tolist() == [1, 1]
    assert found.valid.any() == (not np.isnan(value))
    assert np.isnan(found.tree.log_probs).all() == np.isnan(value)


def test_softmax_over_nothing_and_shares():
    logits = jnp.array([[[np.inf, 1.0, np.inf, -np.inf], [-np.inf] * 4, [3e38, 3e38, -3e38, 0.0]]])
    for temperature in (0.5, 1.0):
        found = jax.jit(softmax)(logits, inverse_of(temperature))
        expected = [oracles.log_chances(row, temperature) for row in np.asarray(logits[0])]
        np.testing.assert_allclose(found.of(logits)[0], expected, rtol=1e-6)
    assert found.flawed.tolist() == [[True, False, False]] and not found.nan.any()
    assert isinstance(found, Softmax)


# Temperature.


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-20, 1e-37])
def test_small_temperatures_rank_by_the_sum_of_distances(temperature):
    model = random_table_model(np.random.default_rng(0), LENGTH, 6, USERS)
    index = TrieIndex.build(SIX, 6)
    found = beam_search(model, index, HISTORY, 5, temperature=temperature)
    for user in range(USERS):
        # Scaled, so that no number of the slow version leaves its range.
        def log_prob(prefix, user=user):
            table = np.asarray(model.table[user], np.float64)
            row = table[len(prefix), prefix[-1] if prefix else 0]
            return row - row.max()

        ranking = oracles.brute_force_ranking(SIX, log_prob)
        assert [sid for _, sid, _ in rows(found, user)] == [sid for _, sid, _ in ranking]
    assert (found.scores <= 0).all() and found.finite.all()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Traced(TableModel):
    """A table that counts how often it is traced."""

    traces: list = dataclasses.field(metadata={"static": True}, default=None)

    def prefill(self, history):
        self.traces.append(1)
        return super().prefill(history)


class Once(list):
    """A list that goes as static data: equal to itself alone."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


OVER_CHILDREN = ("beam over children", "tree over children")


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in SEARCHES if name not in OVER_CHILDREN),
        *(pytest.param(name, marks=pytest.mark.long) for name in OVER_CHILDREN),
    ],
)
def test_another_temperature_is_not_another_program(name):
    traces = Once()
    model = Traced(random_table_model(np.random.default_rng(0), LENGTH, 6, USERS).table, traces)
    index = TrieIndex.build(SIX, 6)
    found = [SEARCHES[name][0](model, index, 5, t) for t in (0.5, 1e10, 2, np.float64(0.1), 1.0)]
    assert len(traces) == 1
    assert not np.allclose(found[0].scores, found[-1].scores)
    # None has none in its program, and is 1.
    plain = SEARCHES[name][0](model, index, 5, None)
    assert len(traces) == 2
    np.testing.assert_array_equal(plain.tokens, found[-1].tokens)
    np.testing.assert_allclose(plain.scores, found[-1].scores, rtol=1e-6)


def test_a_traced_temperature():
    model = random_table_model(np.random.default_rng(0), LENGTH, 6, USERS)
    index = TrieIndex.build(SIX, 6)
    decode = jax.jit(lambda t: beam_search(model, index, HISTORY, 5, temperature=t))
    plain = beam_search(model, index, HISTORY, 5, temperature=0.3)
    np.testing.assert_allclose(decode(0.3).scores, plain.scores, rtol=1e-5)
    assert decode(jnp.nan).bad_step.tolist() == [0, 0]
