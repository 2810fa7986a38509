"""Figures: what is drawn, how it is labelled, and that it stands alone."""

import base64
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from gr.evaluation.rankings import EvaluationError
from gr.reports import plots

METRICS = {
    "model": {"ndcg@10": 0.06, "hit@10": 0.1, "head/ndcg@10": 0.08, "tail/ndcg@10": 0.02},
    "other decoding": {"ndcg@10": 0.05, "hit@10": 0.09, "head/ndcg@10": 0.07, "tail/ndcg@10": 0.01},
    "popularity": {"ndcg@10": 0.01, "head/ndcg@10": 0.02, "tail/ndcg@10": 0.0},
}
METRICS["model"]["intervals"] = {"ndcg@10": [0.05, 0.075]}
CURVES = [
    *(
        {"step": s, "split": "train", "values": {"loss": 9 - s, "learning_rate": 0.1}}
        for s in (1, 2)
    ),
    {"step": 2, "split": "validation", "values": {"loss": 8.0, "ndcg@10": 0.03, "epoch": 1}},
    {"step": 1, "split": "validation", "values": {"loss": 8.5, "ndcg@10": 0.02, "epoch": 0.5}},
]


def _tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def _legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_metric_bars_has_a_panel_a_metric_and_a_bar_a_row():
    figure = plots.metric_bars(METRICS, main_row="model")
    first, second = figure.axes
    assert [bar.get_width() for bar in first.containers[0].patches] == [0.06, 0.05, 0.01]
    assert _tick_labels(first.yaxis) == list(METRICS)
    assert _tick_labels(second.yaxis) == ["model", "other decoding"]  # popularity has no hit@10.
    assert (first.get_xlabel(), second.get_xlabel()) == (
        "NDCG@10 (mean over users)",
        "Hit@10 (mean over users)",
    )
    assert [text.get_text() for text in first.texts] == ["0.0600", "0.0500", "0.0100"]


def test_metric_bars_draws_the_interval_and_only_where_there_is_one():
    figure = plots.metric_bars(METRICS, names=["ndcg@10"])
    (axes,) = figure.axes
    whiskers = [segment for bars in axes.collections for segment in bars.get_segments()]
    np.testing.assert_allclose(whiskers, [[[0.05, 0], [0.075, 0]]])
    assert axes.get_xlim()[1] > 0.075


def test_colours_are_the_same_in_every_figure():
    colours = plots.row_colours(["p", "model", "q"], "model")
    assert colours["model"] == plots.BLUE and len(set(colours.values())) == 3


def test_difference_plot_places_a_point_a_baseline():
    differences = {"kNN": {"ndcg@10": (0.02, 0.01, 0.03)}, "pop": {"ndcg@10": (-0.01, -0.02, 0.0)}}
    (axes,) = plots.difference_plot(differences).axes
    assert _tick_labels(axes.yaxis) == ["against kNN", "against pop"]
    means = [container[0].get_xdata()[0] for container in axes.containers]
    assert means == [0.02, -0.01]
    assert axes.get_xlabel() == "NDCG@10, model minus baseline"


def test_slice_bars_groups_rows_by_slice():
    (axes,) = plots.slice_bars(METRICS, slices=("head", "tail"), main_row="model").axes
    heights = [[bar.get_height() for bar in group] for group in axes.containers]
    assert heights == [[0.08, 0.02], [0.07, 0.01], [0.02, 0.0]]
    assert _tick_labels(axes.xaxis) == ["head", "tail"]
    assert _legend(axes) == list(METRICS)
    places = sorted(bar.get_x() for group in axes.containers for bar in group)
    assert np.all(np.diff(places) > 0.9 * axes.containers[0][0].get_width())  # No bar on another.


def test_learning_curves_marks_the_best_step_and_the_references():
    figure = plots.learning_curves(CURVES, references={"Markov": 0.04}, best=2)
    loss, metric = figure.axes
    assert _legend(loss) == ["training", "validation", "best step: 2"]
    assert _legend(metric) == ["validation", "Markov", "best step: 2"]
    training, validation, best = loss.lines
    np.testing.assert_array_equal(training.get_xydata(), [[1, 8], [2, 7]])
    np.testing.assert_array_equal(
        validation.get_xydata(), [[1, 8.5], [2, 8.0]]
    )  # In order of step.
    assert list(best.get_xdata()) == [2, 2]
    assert list(metric.lines[1].get_ydata()) == [0.04, 0.04]
    assert loss.get_ylabel() == "loss (nats)" and loss.get_xlabel() == "step"
    assert metric.get_ylabel() == "NDCG@10 (mean)"


def test_learning_curves_leaves_out_a_metric_that_was_not_measured():
    figure = plots.learning_curves(CURVES[:2])
    assert len(figure.axes) == 1 and _legend(figure.axes[0]) == ["training"]


def test_long_curves_are_drawn_as_means_of_stretches():
    curves = [
        {"step": s, "split": "train", "values": {"loss": float(s % 2)}} for s in range(100_000)
    ]
    (axes,) = plots.learning_curves(curves).axes
    steps, losses = axes.lines[0].get_data()
    assert len(steps) == 400
    np.testing.assert_allclose(losses, 0.5)
    assert steps.mean() == pytest.approx(49_999.5)


def test_rate_curves_draws_what_was_recorded():
    names = {"learning_rate": "learning rate", "examples_per_second": "examples / s"}
    (axes,) = plots.rate_curves(CURVES, names=names).axes
    assert axes.get_ylabel() == "learning rate" and list(axes.lines[0].get_ydata()) == [0.1, 0.1]


def test_series_skips_what_is_not_finite_and_reads_other_axes():
    curves = [
        *CURVES,
        {"step": 3, "split": "validation", "values": {"loss": float("nan")}},
        {"step": 4},
    ]
    steps, losses = plots.series(curves, "validation", "loss")
    assert list(steps) == [1, 2] and list(losses) == [8.5, 8.0]
    assert list(plots.series(curves, "validation", "loss", "epoch")[0]) == [0.5, 1]
    assert len(plots.series(curves, "validation", "absent")[0]) == 0


def test_prefix_recall_plot_has_a_line_a_label_in_percent():
    recall = {"beam": [0.5, 0.25, 0.125], "sampling": np.array([0.4, 0.2, 0.1])}
    (axes,) = plots.prefix_recall_plot(recall, beams=20).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 50], [2, 25], [3, 12.5]])
    assert _legend(axes) == ["beam", "sampling"]
    assert axes.get_ylabel() == "prefix in 20 beams (% of users)"
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()  # Not by colour alone.
    assert axes.lines[0].get_marker() != axes.lines[1].get_marker()


def test_codebook_usage_sorts_the_counts_of_each_level():
    books = [
        {"level": 1, "counts": [1, 4, 0, 3], "perplexity": 2.6},
        {"level": 2, "counts": [2, 2]},
    ]
    first, second = plots.codebook_usage(books).axes
    assert list(first.patches[0].get_data().values) == [4, 3, 1, 0]
    assert list(first.lines[0].get_ydata()) == [2, 2]  # The even spread: 8 items over 4 codes.
    assert first.get_title(loc="left") == "level 1, perplexity 3"
    assert second.get_title(loc="left") == "level 2"


def test_an_odd_number_of_levels_leaves_an_empty_place():
    books = [{"level": level, "counts": [1, 1]} for level in (1, 2, 3)]
    assert [axes.axison for axes in plots.codebook_usage(books).axes] == [True, True, True, False]


@pytest.mark.parametrize(
    "name, label",
    [
        ("ndcg@10", "NDCG@10"),
        ("item_hit@5", "item Hit@5"),
        ("item_ndcg@10", "item NDCG@10"),
        ("gini@10", "Gini@10"),
        ("duplicate_share", "Duplicate share"),
    ],
)
def test_metric_label(name, label):
    assert plots.metric_label(name) == label


def test_svg_is_one_element_with_text_that_is_escaped_and_no_formula():
    metrics = {'<b> & "$x$"': {"ndcg@10": 0.1}}
    svg = plots.figure_to_svg(plots.metric_bars(metrics, names=["ndcg@10"]))
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "metadata" not in svg
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert '<b> & "$x$"' in texts


def test_the_same_figure_gives_the_same_svg():
    first, second = (plots.figure_to_svg(plots.slice_bars(METRICS)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "kind, media, start",
    [("svg", "image/svg+xml", b"<svg"), ("png", "image/png", b"\x89PNG")],
)
def test_data_uri_holds_the_image(kind, media, start):
    uri = plots.to_data_uri(plots.prefix_recall_plot({"a": [0.5]}), kind=kind)
    head, _, body = uri.partition(",")
    assert head == f"data:{media};base64"
    assert base64.b64decode(body).startswith(start)


def test_data_uri_refuses_other_formats():
    with pytest.raises(EvaluationError, match="choose 'svg' or 'png'"):
        plots.to_data_uri(plots.prefix_recall_plot({"a": [0.5]}), kind="gif")


def test_drawing_leaves_no_global_state():
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    plots.figure_to_svg(plots.learning_curves(CURVES))
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
