"""Intervals in cases whose width is known."""

import numpy as np
import pytest

from gr.evaluation import EvaluationError, bootstrap_interval, bootstrap_intervals, paired_bootstrap
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
