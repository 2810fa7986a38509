"""Numbers in tables and pages, and that none of them shows a NaN."""

import math
import re

import numpy as np
import pytest

from gr.evaluation import value_calibration
from gr.reports import calibration_plot, format_metrics, format_searches, render_comparison
from gr.reports.numbers import NOT_MEASURED, bounds, fact, number, percent, signed
from gr.reports.plots import figure_to_svg
from gr.runs.rl_report import _gain, _ranks


def test_numbers_by_hand():
    assert (number(4905.25, 1), number(np.float32(0.5)), number(3, 0)) == ("4,905.2", "0.5000", "3")
    assert (signed(0.01), signed(-12.0, 1), signed(0, 0)) == ("+0.0100", "-12.0", "+0")
    assert (percent(0.4887), percent(1, 0)) == ("48.9%", "100%")
    assert bounds(0.1, 0.25, 2) == "[0.10, 0.25]" and bounds(-1, 1, 0, sign=True) == "[-1, +1]"
    assert fact({"jax": "0.10.2", "cores": 4000}) == "jax 0.10.2, cores 4,000"
    assert [fact(v) for v in (4905, 0.123456, 3.0, "x", True)] == [
        "4,905",
        "0.1235",
        "3",
        "x",
        "True",
    ]


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_was_not_measured_is_written_alike(missing):
    written = {number(missing), signed(missing, 2), percent(missing)}
    written |= {bounds(missing, 1), bounds(0, missing)}
    assert written == {NOT_MEASURED}
    assert fact(missing) == ("None" if missing is None else NOT_MEASURED)


def holds_nan(text):
    return re.search(r"\b(nan|inf)\b", text, re.I) is not None


def test_the_pages_of_reinforcement_learning_show_no_nan():
    # A root has one prefix a user, so there is no rank correlation within users.
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 4, 3))
    counted = np.ones(values.shape, bool)
    counted[:, 1:, 0] = False
    found = value_calibration(values, values + 1, counted, first_depth=0)
    assert np.isnan(found.within_users[0])
    ranks = _ranks(found)
    assert ranks[1] == ["root", "9", "+1.000", NOT_MEASURED]
    assert ranks[2] == ["1 code", "36", "+1.000", "+1.000"]
    gain = _gain(
        {"ndcg@10": math.nan, "prefix_recall/1": 0.5}, {"ndcg@10": 0.5, "prefix_recall/1": 1}
    )
    assert gain[:2] == [
        ["policy", "NDCG@10", "prefix recall 1"],
        ["supervised start", "–", "0.5000"],
    ]
    svg = figure_to_svg(calibration_plot(found))
    for rows, told in ((ranks, 1), (gain, 1), ([["a", "b"], ["c", "1"]], 0)):
        page = render_comparison(title="t", notes=[], tables=[("t", rows)], figures={"f": svg})
        assert not holds_nan(page) and page.count("–: not measured.") == told
    assert holds_nan(">+nan<")


def test_text_tables_show_no_nan():
    row = {f"{name}@10": math.nan for name in ("hit", "ndcg", "mrr", "item_hit", "item_ndcg")}
    row |= {"coverage@10": math.nan, "gini@10": 0.5, "novelty@10": math.nan, "users": 3}
    row["intervals"] = {"ndcg@10": [math.nan, math.nan]}
    metrics = row | {
        "baselines": {"popularity": row},
        "differences": {
            "popularity": dict.fromkeys(("hit@10", "ndcg@10", "item_ndcg@10"), [math.nan] * 3)
        },
        "p_values": {
            "popularity": dict.fromkeys(("hit@10", "ndcg@10", "item_ndcg@10"), [math.nan] * 2)
        },
    }
    text = format_metrics(metrics)
    assert not holds_nan(text) and "0.500" in text
    names = ("hit@10", "ndcg@10", "recall", "known_recall", "coverage@10", "diversity@10")
    search = dict.fromkeys(names, math.nan) | {"known_recall": None, "intervals": row["intervals"]}
    search |= {"decoder": "beam", "budget": 4, "evaluations": 4.0, "candidates": 2, "known": 3}
    text = format_searches([search])
    assert not holds_nan(text) and text.splitlines()[2].split().count(NOT_MEASURED) == 7
