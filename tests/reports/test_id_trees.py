"""Semantic IDs drawn as a tree: every prefix once, every semantic ID with its items, colours by value."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba

from gr.evaluation import EvaluationError
from gr.losses import sibling_advantages
from gr.reports import id_tree_plot
from gr.reports.plots import BLUE, GREY, VERMILLION, to_data_uri

TOKENS = np.array([[2, 5, 9], [3, 5, 9], [2, 6, 9], [2, 5, 9]])  # The first and the last are one.
TITLES = ["a pen", "ink", "costs $5", "another pen"]


def circles(axes):
    """Place -> colour of each drawn prefix."""
    found = [part for part in axes.collections if isinstance(part, PathCollection)]
    fills = [part for part in found if len(part.get_facecolor())]
    return {tuple(part.get_offsets()[0].tolist()): part.get_facecolor()[0] for part in fills}


def texts(axes):
    return {text.get_text(): text for text in axes.texts}


def test_each_prefix_has_one_circle_and_each_semantic_id_its_items():
    (axes,) = id_tree_plot(TOKENS, TITLES, level_offsets=[2, 5, 9]).axes
    # Rows: (2, 5, 9), (2, 6, 9), (3, 5, 9); a prefix is in the middle of its rows.
    assert set(circles(axes)) == {
        *((0, 1.0), (1, 0.5), (1, 2.0)),
        *((2, 0.0), (2, 1.0), (2, 2.0), (3, 0.0), (3, 1.0), (3, 2.0)),
    }
    shown = [text.get_text() for text in axes.texts]
    assert {"a pen · another pen", r"costs \$5", "ink", "root", "1 code", "3 codes"} <= set(shown)
    assert sorted(text for text in shown if text.isdigit()) == list("000000") + ["1", "1"]


def test_values_colour_the_prefixes():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0]])
    advantages = np.asarray(sibling_advantages(TOKENS[None], rewards)[0])
    axes = id_tree_plot(TOKENS, values=advantages, label="advantage").axes[0]
    found = circles(axes)
    # Children of the root: the mean rewards 2/3 and 0; of (2,): 1 and 0; the others have no siblings.
    for better, worse in (((1, 0.5), (1, 2.0)), ((2, 0.0), (2, 1.0))):
        np.testing.assert_allclose(found[better], to_rgba(BLUE), atol=0.02)
        np.testing.assert_allclose(found[worse], to_rgba(VERMILLION), atol=0.02)
    np.testing.assert_allclose(found[3, 0.0], to_rgba("#f7f7f7"), atol=0.02)


def test_a_prefix_is_pale_if_all_below_it_are():
    pale = np.array([False, False, True, True])
    (axes,) = id_tree_plot(TOKENS, TITLES, pale=pale).axes
    found = circles(axes)
    assert tuple(found[2, 1.0]) != to_rgba("white")  # (2, 6)
    assert tuple(found[1, 0.5]) == tuple(found[2, 0.0]) == to_rgba("white")  # (2,) and (2, 5).
    assert texts(axes)[r"costs \$5"].get_color() == GREY
    assert texts(axes)["a pen · another pen"].get_color() != GREY


def test_long_titles_are_cut_and_the_figure_is_drawn():
    figure = id_tree_plot(TOKENS[:1], ["x" * 90])
    assert to_data_uri(figure).startswith("data:image/svg+xml")
    assert max(len(text.get_text()) for text in figure.axes[0].texts) == 40


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"tokens": TOKENS[:0]}, r"tokens \[0, 3\]: give semantic IDs \[n, L\]"),
        ({"tokens": TOKENS, "titles": TITLES[:2]}, r"titles \[2\]: give \[4\]"),
        ({"tokens": TOKENS, "values": np.zeros((4, 2))}, r"values \[4, 2\]: give \[4, 3\]"),
        ({"tokens": TOKENS, "pale": np.zeros(3, bool)}, r"pale \[3\]: give \[4\]"),
    ],
)
def test_shapes_that_do_not_fit_are_told(arguments, said):
    with pytest.raises(EvaluationError, match=said):
        id_tree_plot(**arguments)
