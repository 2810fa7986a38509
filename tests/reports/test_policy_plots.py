"""Curves of reinforcement learning: every series in its panel, and none that is missing."""

import numpy as np

from gr.reports import training_curves_of_policy
from gr.reports.plots import to_data_uri


def lines(names, steps=(10, 20, 30)):
    train = [{"step": s, "split": "train", "values": {n: s / 10 for n in names}} for s in steps]
    validation = [{"step": 20, "split": "validation", "values": {"ndcg@10": 0.05}}]
    return train + validation


NAMES = ["reward/mean", "reward/spread_share", "policy/kl", "policy/entropy", "advantage/std"]
NAMES += ["advantage/sibling_std", "candidates/distinct", "value/loss", "loss"]


def test_every_series_has_its_panel():
    figure = training_curves_of_policy(lines(NAMES))
    assert len(figure.axes) == 8
    counts = [len(axes.lines) for axes in figure.axes]
    assert counts == [1, 1, 1, 1, 2, 1, 1, 1]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), [[10, 1], [20, 2], [30, 3]])
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xydata(), [[20, 0.05]])
    assert to_data_uri(figure, kind="png")


def test_titles_and_legends_lie_inside_the_figure_and_beside_the_curves():
    figure = training_curves_of_policy(lines(NAMES))
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [axes._left_title, *filter(None, [axes.get_legend()])]
        for box in [part.get_window_extent() for part in boxes]:
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
    advantages = figure.axes[4]
    legend, title = (
        advantages.get_legend().get_window_extent(),
        advantages._left_title.get_window_extent(),
    )
    assert advantages.bbox.y1 <= legend.y0 + 1 and legend.y1 <= title.y0 + 4
    # Steps are whole numbers.
    assert all(float(tick).is_integer() for axes in figure.axes for tick in axes.get_xticks())


def test_missing_series_are_skipped():
    figure = training_curves_of_policy(lines(["policy/kl", "advantage/sibling_std"]))
    used = [axes for axes in figure.axes if axes.lines]
    labels = [axes.get_title(loc="left") for axes in used]
    assert labels == ["NDCG@10, validation", "KL to reference (nats)", "advantage (std)"]
    assert [len(axes.lines) for axes in used] == [1, 1, 1]
    assert not any(axes.lines for axes in training_curves_of_policy([]).axes)
