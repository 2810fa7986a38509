"""What figures say about places: the values that were drawn, at the places where matplotlib drew them."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from gr.reports import plots, search_tree_plot, training_curves_of_policy
from gr.reports.comparison_plots import prefix_survival_plot, seeds_plot
from gr.reports.hover import as_json, marks_of, tell
from tests.reports.test_prefix_plots import COMPARED
from tests.reports.test_search_trees import tree

SVG = "{http://www.w3.org/2000/svg}"
METRICS = {
    "model": {"ndcg@10": 0.06, "head/ndcg@10": 0.08, "tail/ndcg@10": 0.02},
    "pop $x$": {"ndcg@10": 0.01, "head/ndcg@10": 0.02, "tail/ndcg@10": 0.0},
}
METRICS["model"]["intervals"] = {"ndcg@10": [0.05, 0.075]}


def told(figure):
    """Heading and text of all marks of a figure, as its SVG holds them."""
    (root,) = [ElementTree.fromstring(plots.figure_to_svg(figure))]
    return [
        (heading, text)
        for heading, series in json.loads(root.get("data-marks"))
        for text, *_ in series
    ]


def test_bars_tell_their_row_value_and_interval():
    name = "NDCG@10 (mean over users)"
    assert told(plots.metric_bars(METRICS, names=["ndcg@10"], main_row="model")) == [
        ("model", f"{name}: 0.06 (0.05 to 0.075)"),
        ("pop $x$", f"{name}: 0.01"),
    ]
    assert told(plots.slice_bars(METRICS, slices=("head", "tail"))) == [
        ("head · model", f"{name}: 0.08"),
        ("tail · model", f"{name}: 0.02"),
        ("head · pop $x$", f"{name}: 0.02"),
        ("tail · pop $x$", f"{name}: 0"),
    ]
    differences = {"pop": {"ndcg@10": (0.05, 0.04, 0.0625)}}
    assert told(plots.difference_plot(differences)) == [
        ("against pop", "NDCG@10, model minus baseline: 0.05 (0.04 to 0.0625)")
    ]


def test_curves_tell_their_points_and_no_lines_across():
    curves = [
        {"step": step, "split": split, "values": {"loss": step / 1000, "ndcg@10": 0.5}}
        for split in ("train", "validation")
        for step in (1000, 2000)
    ]
    found = told(plots.learning_curves(curves, references={"line": 0.3}, best=2000))
    assert found == [
        ("training · loss (nats)", "step 1,000: 1"),
        ("training · loss (nats)", "step 2,000: 2"),
        ("validation · loss (nats)", "step 1,000: 1"),
        ("validation · loss (nats)", "step 2,000: 2"),
        ("validation · NDCG@10 (mean)", "step 1,000: 0.5"),
        ("validation · NDCG@10 (mean)", "step 2,000: 0.5"),
    ]
    policy = [{"step": 3, "split": "train", "values": {"policy/kl": 0.25}}]
    assert told(training_curves_of_policy(policy)) == [
        ("KL · KL to reference (nats)", "step 3: 0.25")
    ]


def test_named_ticks_are_told_for_seeds_and_depths():
    seeds = told(seeds_plot(COMPARED))
    axis = "NDCG@10 (dots: seeds, bar: mean)"
    assert ("CE · seed", f"{axis}: 0.03") in seeds and ("CE · mean", f"{axis}: 0.035") in seeds
    recall = told(plots.prefix_recall_plot({"beam": [0.5, 0.25]}))
    assert recall == [
        ("codes decoded 1 · beam", "prefix in beam (% of users): 50"),
        ("codes decoded 2 · beam", "prefix in beam (% of users): 25"),
    ]
    survival = told(prefix_survival_plot(COMPARED, beams=9, reference="CE"))
    for panel, value in (("prefix in 9 beams (%)", "30"), ("of those, still in (%)", "50")):
        for name in ("APAO", "APAO, a seed"):
            assert (f"codes decoded 2 · {name}", f"{panel}: {value}") in survival


def test_equal_codes_of_a_codebook_are_told_together():
    book = {"level": 1, "counts": [5, 2, 0, 2]}
    assert told(plots.codebook_usage([book])) == [
        ("level 1", "codes, most used first, 1: 5 items"),
        ("level 1", "codes, most used first, 2 to 3: 2 items"),
        ("level 1", "codes, most used first, 4: 0 items"),
    ]


def test_prefixes_of_a_search_tree_tell_their_value_and_visits():
    whole = tree()

    found = dict(told(search_tree_plot(whole, [])))
    assert "root" in found
    for n, prefix in enumerate(whole.prefixes()):
        text = found["codes " + " ".join(map(str, prefix)) if prefix else "root"]
        assert f"{whole.visits[n]} visits" in text
        assert text.startswith("V ") == (whole.depths[n] < whole.depths.max())


def test_places_are_those_of_the_drawn_markers_and_bars():
    svg = plots.figure_to_svg(
        plots.prefix_recall_plot({"a": [0.9, 0.2, 0.1], "b": [0.5, 0.4, 0.3]})
    )
    root = ElementTree.fromstring(svg)
    width, height = map(float, root.get("viewBox").split()[2:])
    drawn = [(float(u.get("x")), float(u.get("y"))) for u in root.iter(f"{SVG}use")]
    for _, series in json.loads(root.get("data-marks")):
        for _, x, y in series:
            distances = [np.hypot(x * width - a, y * height - b) for a, b in drawn]
            assert min(distances) < 0.1  # Points; places have four digits.
    bars = plots.metric_bars(METRICS, names=["ndcg@10"])
    svg = plots.figure_to_svg(bars)
    width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split()[2:])
    for mark in marks_of(bars):
        left, top, right, bottom = mark.box
        assert left < right == mark.place[0] and top < mark.place[1] < bottom
        corners = re.compile(r"M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+)")
        boxes = [list(map(float, found)) for found in corners.findall(svg)]
        expected = [left * width, bottom * height, right * width, bottom * height]
        assert any(
            np.allclose(box[:4], expected, atol=0.1)
            or np.allclose([box[0], box[5], box[2], box[5]], expected, atol=0.1)
            for box in boxes
        )


def test_own_texts_draw_nothing_and_values_that_are_not_finite_tell_nothing():
    figure, (axes,) = plots.figure_of(1, 2)
    axes.plot([1, 2, 3], [1, np.nan, 3], label="a")
    axes.errorbar([1, 2], [np.nan, np.nan], [0.1, np.nan], color="none")
    plots.style(axes, xlabel="x", ylabel="y")
    before = plots.figure_to_svg(figure).count("<path")
    tell(axes, 2, 2, "heading", "text: $1")
    plots.top_legend(axes, 1)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a"]
    axes.get_legend().remove()
    assert told(figure) == [("a · y", "x 1: 1"), ("a · y", "x 3: 3"), ("heading", "text: $1")]
    assert plots.figure_to_svg(figure).count("<path") == before
    first, second, third = marks_of(figure)
    assert third.place == pytest.approx(np.mean([first.place, second.place], axis=0), abs=1e-4)
    assert as_json([first, second]) == [
        ["a · y", [["x 1: 1", *first.place], ["x 3: 3", *second.place]]]
    ]


def test_markup_in_labels_stays_text():
    figure, (axes,) = plots.figure_of(1, 2)
    axes.plot([1], [1], label='"><script>&')
    svg = plots.figure_to_svg(figure)
    assert "<script" not in svg
    assert json.loads(ElementTree.fromstring(svg).get("data-marks"))[0][0].startswith('"><script>&')
