"""Calibration of values: rank correlations and bins by hand and against scipy, and the figure."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from gr.evaluation import EvaluationError, value_calibration
from gr.evaluation.calibration import rank_correlation
from gr.reports import calibration_plot
from gr.reports.plots import figure_to_svg


def random_arrays(seed=0, users=7, group=6, depths=3):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(users, group, depths))
    returns = (values + rng.normal(size=values.shape)).round(1)  # With ties.
    return values, returns, rng.random(values.shape) < 0.7


def test_rank_correlation_by_hand():
    assert rank_correlation(np.array([1, 2, 9]), np.array([0.1, 0.2, 0.3])) == pytest.approx(1.0)
    assert rank_correlation(np.array([1, 2, 9]), np.array([3, 2, 1])) == pytest.approx(-1.0)
    # Ranks 1, 2, 3 and 1.5, 1.5, 3: covariance 1.5, variances 2 and 1.5.
    tied = rank_correlation(np.array([1, 2, 9]), np.array([5, 5, 6]))
    assert tied == pytest.approx(1.5 / np.sqrt(2 * 1.5))
    for nothing in ([], [4.0], [4.0, 4.0]):
        assert np.isnan(rank_correlation(np.array(nothing), np.arange(len(nothing))))


def test_correlations_equal_loops_over_depths_and_users():
    values, returns, counted = random_arrays()
    found = value_calibration(values, returns, counted)
    for depth in range(3):
        mask = counted[..., depth]
        assert found.counts[depth] == mask.sum()
        pooled = spearmanr(values[..., depth][mask], returns[..., depth][mask]).statistic
        assert found.correlation[depth] == pytest.approx(pooled)
        each = [
            spearmanr(v[m], r[m]).statistic
            for v, r, m in zip(values[..., depth], returns[..., depth], mask, strict=True)
            if m.sum() > 1
        ]
        assert found.within_users[depth] == pytest.approx(np.mean(each))
        assert found.users[depth] == len(each)


def test_differences_between_users_alone_do_not_help_a_search():
    # The value knows how easy a user is, and nothing of the user's prefixes.
    rng = np.random.default_rng(0)
    easy = np.arange(40.0)[:, None, None]
    values = easy + 0.1 * rng.normal(size=(40, 8, 1))
    returns = easy + 0.1 * rng.normal(size=(40, 8, 1))
    found = value_calibration(values, returns, np.ones((40, 8, 1), bool))
    assert found.correlation[0] > 0.99 and abs(found.within_users[0]) < 0.15


def test_bins_by_hand():
    # Six prefixes in three bins; the last place does not count, whatever stands there.
    values = np.array([[[3.0], [1.0], [2.0], [6.0], [5.0], [4.0], [np.nan]]])
    returns = np.array([[[0.0], [1.0], [3.0], [8.0], [8.0], [2.0], [np.inf]]])
    counted = np.array([[[True]] * 6 + [[False]]]).reshape(1, 7, 1)
    found = value_calibration(values, returns, counted, num_bins=3)
    np.testing.assert_allclose(found.bin_values, [[1.5, 3.5, 5.5]])
    np.testing.assert_allclose(found.bin_returns, [[2.0, 1.0, 8.0]])
    # Of two numbers at distance d the standard error is d / 2.
    np.testing.assert_allclose(found.bin_errors, [[1.0, 1.0, 0.0]])
    assert found.counts.tolist() == [6]


def test_what_does_not_exist_is_nan_and_null():
    # One prefix at the root, none at depth 1; more bins than prefixes.
    values, counted = np.ones((1, 2, 2)), np.zeros((1, 2, 2), bool)
    counted[0, 0, 0] = True
    found = value_calibration(values, values, counted, num_bins=3, first_depth=0)
    assert found.users.tolist() == [0, 0]
    assert np.isfinite(found.bin_values).sum() == 1 and np.isnan(found.bin_errors).all()
    flat = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert flat["prefixes/0"] == 1 and flat["prefixes/1"] == 0
    assert flat["spearman/0"] is None and flat["spearman_within/1"] is None
    figure_to_svg(calibration_plot(found))


def test_the_figure_has_a_panel_a_depth():
    found = value_calibration(*random_arrays(), num_bins=4, first_depth=0)
    figure = calibration_plot(found)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert [title.split("\n")[0] for title in titles] == ["root", "1 code", "2 codes"]
    assert f"{found.correlation[1]:+.2f}" in titles[1]
    assert f"{found.within_users[2]:+.2f}" in titles[2]
    points = figure.axes[0].containers[0].lines[0]
    np.testing.assert_allclose(points.get_xdata(), found.bin_values[0])
    np.testing.assert_allclose(points.get_ydata(), found.bin_returns[0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "return = value",
        "prefixes, in bins of equal size",
    ]


def test_what_does_not_fit_is_refused():
    values, returns, counted = random_arrays()
    with pytest.raises(EvaluationError, match=r"must all be \[B, G, S\]"):
        value_calibration(values, returns[:1], counted)
    with pytest.raises(EvaluationError, match="not finite"):
        value_calibration(np.full_like(values, np.nan), returns, counted)
