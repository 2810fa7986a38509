"""Intervals in cases whose width is known, p-values, and Holm's beside its procedure."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr.evaluation import (
    EvaluationError,
    bootstrap_interval,
    bootstrap_intervals,
    bootstrap_tests,
    holm,
    paired_bootstrap,
)
from gr.evaluation import bootstrap as bootstrap_module


def test_width_is_that_of_the_normal_approximation():
    # 400 hits among 1000 users: standard error sqrt(.4 * .6 / 1000) = .01549, so .4 +- .03036.
    values = np.repeat([1.0, 0.0], [400, 600])
    low, high = bootstrap_interval(values, seed=0)
    assert low == pytest.approx(0.4 - 0.03036, abs=0.003)
    assert high == pytest.approx(0.4 + 0.03036, abs=0.003)
    low80, high80 = bootstrap_interval(values, level=0.8, seed=0)
    assert high80 - low80 == pytest.approx(2 * 1.2816 * 0.01549, abs=0.004)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        values = rng.exponential(1.0, size=100)
        low, high = bootstrap_interval(values, num_resamples=400, seed=trial)
        covered += low <= 1.0 <= high
    # 95 % of 200 is 190 with a standard deviation of 3.1; a skewed sample of 100 costs a few.
    assert 176 <= covered <= 199


def test_two_users_by_enumeration():
    # Resamples of {0, 1} have mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval(np.array([0.0, 1.0]), level=0.9, seed=3) == (0.0, 1.0)
    assert bootstrap_interval(np.array([0.0, 1.0]), level=0.4, seed=3) == (0.5, 0.5)


def test_same_seed_same_interval_whatever_the_company():
    values = np.random.default_rng(0).random((50, 3))
    low, high = bootstrap_intervals(values, seed=7)
    again = bootstrap_intervals(values, seed=7)
    np.testing.assert_array_equal((low, high), again)
    assert not np.array_equal(low, bootstrap_intervals(values, seed=8)[0])
    np.testing.assert_allclose(bootstrap_interval(values[:, 1], seed=7), (low[1], high[1]))


def test_many_chunks_draw_as_many_resamples(monkeypatch):
    drawn = []
    resampled_means = bootstrap_module._resampled_means

    def counted(values, num_resamples, rng):
        drawn.append(num_resamples)
        return resampled_means(values, num_resamples, rng)

    monkeypatch.setattr(bootstrap_module, "_CHUNK", 30)
    monkeypatch.setattr(bootstrap_module, "_resampled_means", counted)
    bootstrap_interval(np.arange(10.0), num_resamples=7, seed=0)
    assert drawn == [3, 3, 1]


def test_pairing_removes_what_users_have_in_common():
    rng = np.random.default_rng(0)
    b = rng.normal(0, 10, 500)
    a = b + 0.1
    result = paired_bootstrap(a, b, seed=0)
    assert result == pytest.approx((0.1, 0.1, 0.1))
    assert paired_bootstrap(a, b[::-1], seed=0).low < 0 < paired_bootstrap(a, b[::-1], seed=0).high


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_interval(np.array([]), seed=0),
        lambda: bootstrap_interval(np.array([1.0, np.nan]), seed=0),
        lambda: bootstrap_interval(np.ones(3), level=1.0, seed=0),
        lambda: bootstrap_interval(np.ones(3), num_resamples=0, seed=0),
        lambda: paired_bootstrap(np.ones(3), np.ones(4), seed=0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(EvaluationError):
        call()


def test_p_values_are_those_of_the_resamples_and_of_the_normal_approximation():
    rng = np.random.default_rng(0)
    values = rng.normal([0.0, 0.08, 0.2], 1.0, size=(1000, 3))
    low, high, p = bootstrap_tests(values, num_resamples=4000, seed=3)
    expected_low, expected_high = bootstrap_intervals(values, num_resamples=4000, seed=3)
    np.testing.assert_array_equal([low, high], [expected_low, expected_high])
    z = np.abs(values.mean(axis=0)) / (values.std(axis=0, ddof=1) / np.sqrt(1000))
    np.testing.assert_allclose(p, [math.erfc(one / math.sqrt(2)) for one in z], atol=0.02)
    assert ((p < 0.05) == ((low > 0) | (high < 0))).all()
    # The other sign has the same p; what is 0 everywhere has 1; the least there can be is 2 / (R + 1).
    np.testing.assert_array_equal(bootstrap_tests(-values, num_resamples=4000, seed=3)[2], p)
    extremes = bootstrap_tests(np.array([[0.0, 1.0]] * 5), num_resamples=99, seed=0)[2]
    np.testing.assert_allclose(extremes, [1.0, 0.02])


@given(st.lists(st.sampled_from([0.001, 0.01, 0.02, 0.04, 0.3, 1.0]), min_size=1, max_size=8))
def test_holm_rejects_as_its_step_by_step_procedure(p):
    adjusted = holm(np.array(p))
    for level in (0.0015, 0.013, 0.05, 0.09, 0.7):  # None of them is a multiple of a p.
        rejected, left = set(), sorted(range(len(p)), key=lambda place: p[place])
        while left and p[left[0]] <= level / len(left):
            rejected.add(left.pop(0))
        assert {place for place, value in enumerate(adjusted) if value <= level} == rejected
    assert adjusted.max() <= 1
    both = np.stack([p, p[::-1]], axis=1)
    np.testing.assert_array_equal(holm(both)[:, 0], adjusted)
    np.testing.assert_array_equal(holm(both)[:, 1], adjusted[::-1])
