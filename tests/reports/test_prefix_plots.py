"""Prefixes while a run trains, seeds of a comparison as dots, and how long a run trained."""

import numpy as np
import pytest

from gr.evaluation import Compared, training_seconds
from gr.evaluation.comparison import survival
from gr.reports.comparison_plots import prefix_survival_plot, seeds_plot
from gr.reports.plots import prefix_recall_curves, prefix_recall_plot, prefix_weight_plot
from gr.reports.report import ReportData, render_report


def lines_of(*wall_times):
    return [
        {"step": i, "split": "train", "wall_time": at, "values": {}}
        for i, at in enumerate(wall_times)
    ]


@pytest.mark.parametrize(
    ("wall_times", "seconds"),
    [
        ((), 0),
        ((5.0,), 0),
        ((0, 2, 4, 14, 16), 16),  # Validation, ten seconds.
        ((0, 2, 4, 4004, 4006), 8),  # Stopped for an hour, and that gap counts as a usual one.
        ((0, 40, 80, 1080, 1120), 1120),  # Slow steps: 25 of them are no stop.
    ],
)
def test_training_time_leaves_out_only_the_time_that_a_run_was_stopped(wall_times, seconds):
    assert training_seconds(lines_of(*wall_times)) == pytest.approx(seconds)


COMPARED = {
    "CE": Compared(
        {
            "ndcg@10": {0: 0.03, 1: 0.04},
            "prefix_recall/1": {0: 0.5, 1: 0.4},
            "prefix_recall/2": {0: 0.25, 1: 0.3},
        },
        {},
    ),
    "APAO": Compared(
        {
            "ndcg@10": {1: 0.05},
            "prefix_recall/1": {1: 0.6},
            "prefix_recall/2": {1: 0.3},
        },
        {},
    ),
}


def dots(axes):
    """Heights of the seeds' dots, a list for each seed."""
    return [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "."]


def test_each_seed_is_a_dot_in_every_panel_of_prefix_recall():
    recall, left, ratio = prefix_survival_plot(COMPARED, beams=9, reference="CE").axes
    by_seed = [[0.5, 0.25], [0.4, 0.3], [0.6, 0.3]]
    np.testing.assert_allclose(dots(recall), 100 * np.array(by_seed))
    np.testing.assert_allclose(dots(left), [100 * np.array(survival(of)) for of in by_seed])
    # Only seed 1 is in both: .6 / .4 and .3 / .3 of it, though the bars are of all seeds' means.
    np.testing.assert_allclose(dots(ratio), [[50, 0]], atol=1e-9)
    bars = [bar.get_height() for bar in ratio.containers[1]]
    np.testing.assert_allclose(bars, [100 * (0.6 / 0.45 - 1), 100 * (0.3 / 0.275 - 1)])


def test_a_baseline_far_away_does_not_squeeze_the_variants():
    (axes,) = seeds_plot(COMPARED, lines={"popularity": 0.0004, "Markov": 0.06}).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "popularity (0.0004)",
        "Markov",
    ]
    low, high = axes.get_xlim()
    assert 0.025 < low < 0.03 and 0.06 < high < 0.07


def test_long_names_do_not_squeeze_the_axes():
    names = [
        f"{loss}, {rule}"
        for loss in ("apao_pointwise", "ce")
        for rule in ("seen items removed", "all items allowed")
    ]
    widths = []
    for labels, columns in ((["a", "b", "c", "d"], 2), (names, 1)):
        figure = prefix_recall_plot({label: [0.5, 0.25] for label in labels}, beams=20)
        figure.canvas.draw()  # Which lays it out.
        (axes,) = figure.axes
        assert axes.get_legend()._ncols == columns
        widths.append(axes.get_position().width)
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


CURVES = [
    {
        "step": step,
        "split": split,
        "values": {
            "ndcg@10": 0.01 * step,
            **{f"prefix_{t}/loss": 6.0 / t / step for t in (1, 2) if split == "train"},
            **{f"prefix_{t}/weight": 0.5 for t in (1, 2) if split == "train"},
            **{f"prefix_recall/{t}": 0.1 * step / t for t in (1, 2) if split == "validation"},
        },
    }
    for step in (1, 2, 3)
    for split in ("train", "validation")
]


def test_prefix_recall_over_steps_has_a_line_for_each_depth_and_the_best_step():
    (axes,) = prefix_recall_curves(CURVES, beams=20, best=2).axes
    first, second, best = axes.lines
    np.testing.assert_allclose(first.get_ydata(), [10, 20, 30])
    np.testing.assert_allclose(second.get_ydata(), [5, 10, 15])
    assert best.get_xdata()[0] == 2
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["1 code", "2 codes", "best step: 2"]
    assert axes.get_ylabel() == "prefix in 20 beams (% of users)"


def test_weights_are_drawn_beside_equal_ones():
    losses, weights = prefix_weight_plot({"APAO": CURVES}).axes
    np.testing.assert_allclose([line.get_ydata()[0] for line in losses.lines], [6, 3])
    (equal,) = weights.collections
    np.testing.assert_allclose(equal.get_segments()[0][:, 1], [0.5, 0.5])
    assert losses.get_ylim()[0] == 0


def test_the_report_shows_prefixes_while_training_where_there_are_any():
    both = render_report(ReportData(title="run", curves=CURVES))
    assert "While training" in both and "equal weights" in both
    plain = [
        line | {"values": {k: v for k, v in line["values"].items() if not k.startswith("prefix_")}}
        for line in CURVES
    ]
    assert "While training" not in render_report(ReportData(title="run", curves=plain))
    only_recall = [line for line in CURVES if line["split"] == "validation"]
    found = render_report(ReportData(title="run", curves=only_recall))
    assert "While training" in found and "equal weights" not in found
