"""The gate beside loops over users, weights and folds."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.memory import GATE_INPUTS, Gate, ItemMemoryError, best_weight, fit_gate

GRID = (0.0, 0.25, 0.5, 1.0)


def best_by_loops(gains):
    """Place of the weight with the largest sum of gains, the first of equal ones."""
    sums = [sum(float(row[place]) for row in gains) for place in range(len(GRID))]
    return sums.index(max(sums))


def gate_by_loops(column, gains):
    """`(edges, place of each interval's weight)` of one input."""
    edges = sorted({float(np.quantile(column, share)) for share in (0.2, 0.4, 0.6, 0.8)})
    groups = [[] for _ in range(len(edges) + 1)]
    for value, row in zip(column.tolist(), gains, strict=True):
        groups[sum(edge <= value for edge in edges)].append(row)
    return edges, [best_by_loops(group if group else gains) for group in groups]


def held_out_by_loops(column, gains):
    """The sum of all users' gains, each under the weights of the users of the other parity."""
    total = 0.0
    for fold in (0, 1):
        edges, places = gate_by_loops(column[1 - fold :: 2], gains[1 - fold :: 2])
        for value, row in zip(column[fold::2].tolist(), gains[fold::2], strict=True):
            total += row[places[sum(edge <= value for edge in edges)]]
    return total


@st.composite
def users(draw, least=2):
    """Inputs and gains of a few users, with many ties; sums of gains are exact."""
    count = draw(st.integers(least, 14))
    row = st.lists(st.integers(0, 4), min_size=3, max_size=3)
    inputs = draw(st.lists(row, min_size=count, max_size=count))
    row = st.lists(st.integers(0, 8), min_size=len(GRID), max_size=len(GRID))
    gains = draw(st.lists(row, min_size=count, max_size=count))
    return np.array(inputs, np.float32), np.array(gains) / 8


@settings(deadline=None)
@given(users())
def test_the_gate_is_the_one_with_the_best_gain_on_held_out_users(made):
    inputs, gains = made
    expected = best_weight(gains, GRID)
    assert expected == Gate((GRID[best_by_loops(gains)],))
    most = sum(gains[fold::2][:, best_by_loops(gains[1 - fold :: 2])].sum() for fold in (0, 1))
    for name, column in zip(GATE_INPUTS, inputs.T, strict=True):
        gain = held_out_by_loops(column, gains)
        if gain > most:
            edges, places = gate_by_loops(column, gains)
            edges = tuple(np.float32(edges).tolist())
            expected, most = Gate(tuple(GRID[place] for place in places), edges, name), gain
    assert fit_gate(inputs, gains, GRID) == expected


@given(users(least=1), st.sampled_from(GATE_INPUTS), st.lists(st.integers(0, 4), unique=True))
def test_a_user_has_the_weight_of_the_interval_of_their_input(made, name, edges):
    inputs, edges = made[0], sorted(edges)
    weights = tuple(np.linspace(0, 1, len(edges) + 1).tolist())
    gate = Gate(weights, tuple(map(float, edges)), name)
    column = inputs[:, GATE_INPUTS.index(name)].tolist()
    expected = [weights[sum(edge <= value for edge in edges)] for value in column]
    found = gate(inputs)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32(expected))
    assert Gate.from_dict(json.loads(json.dumps(gate.to_dict()))) == gate
    assert Gate((0.3,))(inputs).tolist() == [np.float32(0.3)] * len(inputs)


@pytest.mark.parametrize("name", GATE_INPUTS)
def test_an_input_that_tells_users_apart_is_used(name):
    rng = np.random.default_rng(0)
    inputs = rng.random((200, 3)).astype(np.float32)
    high = inputs[:, GATE_INPUTS.index(name)] > 0.6
    gains = np.where(high[:, None], np.array(GRID), 1 - np.array(GRID))
    gate = fit_gate(inputs, gains, GRID)
    assert gate.input == name and gate.weights[0] == 0 and gate.weights[-1] == 1
    assert gains[np.arange(200), [GRID.index(weight) for weight in gate(inputs)]].mean() > 0.9


def test_without_a_gain_on_held_out_users_there_is_one_weight():
    rng = np.random.default_rng(1)
    inputs, gains = rng.random((200, 3)).astype(np.float32), rng.random((200, len(GRID)))
    gains[:, 2] += 0.03  # A little better for everybody, whatever the inputs.
    alone = gains.mean(axis=0).max()
    for column in inputs.T:  # On the users they were fitted on, five weights are always better.
        edges, places = gate_by_loops(column, gains)
        chosen = [places[sum(edge <= value for edge in edges)] for value in column.tolist()]
        assert gains[np.arange(200), chosen].mean() > alone
    assert fit_gate(inputs, gains, GRID) == best_weight(gains, GRID)
    assert fit_gate(inputs[:1], gains[:1], GRID) == best_weight(gains[:1], GRID)


def test_of_equal_weights_the_smaller_one_is_taken():
    assert best_weight(np.ones((3, 4)), GRID) == Gate((0.0,))
    assert best_weight(np.array([[0, 1, 1, 0]]), GRID) == Gate((0.25,))


def test_what_cannot_be_fitted_is_refused():
    inputs, gains = np.zeros((2, 3), np.float32), np.zeros((2, 4))
    for call, told in (
        (lambda: fit_gate(inputs[:0], gains[:0], GRID), r"inputs of 0 users.*give gains \[n, A\]"),
        (lambda: fit_gate(inputs, gains[:1], GRID), r"gains of shape \(1, 4\) and 4 weights"),
        (lambda: fit_gate(inputs, gains, GRID[:3]), r"gains of shape \(2, 4\) and 3 weights"),
        (lambda: fit_gate(inputs, gains, (0.5, 0.5, 0.7, 1.0)), "must rise"),
    ):
        with pytest.raises(ItemMemoryError, match=told):
            call()
    assert not math.isnan(fit_gate(inputs, gains, GRID).weights[0])
