"""Figures of a run of reinforcement learning: its training curves, and the calibration of its value head."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gr.evaluation.calibration import ValueCalibration
from gr.reports.numbers import signed
from gr.reports.plots import (
    BLUE,
    DASHES,
    GREY,
    INK,
    MARKERS,
    SERIES,
    figure_of,
    metric_label,
    series,
    style,
    thinned,
    top_legend,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Label of each panel -> its series: (split, name) -> label.
_PANELS = (
    ("reward (mean)", {("train", "reward/mean"): "reward"}),
    (f"{metric_label('ndcg@10')}, validation", {("validation", "ndcg@10"): "validation"}),
    ("KL to reference (nats)", {("train", "policy/kl"): "KL"}),
    ("policy entropy (nats)", {("train", "policy/entropy"): "entropy"}),
    (
        "advantage (std)",
        {
            ("train", "advantage/std"): "all prefixes",
            ("train", "advantage/sibling_std"): "within siblings",
        },
    ),
    ("groups with differing rewards", {("train", "reward/spread_share"): "share"}),
    ("distinct candidates", {("train", "candidates/distinct"): "distinct"}),
    ("value loss", {("train", "value/loss"): "value loss"}),
)

_TITLE_WIDTH = 24  # Letters above one of two panels side by side.
_LEGEND_ROW = 17  # Points.


def training_curves_of_policy(records: Sequence[Mapping]) -> Figure:
    """Rewards, validation, KL, entropy, advantages, candidates and value loss over steps, a panel each.

    `records` are lines of a `metrics.jsonl`; missing series and empty panels are left out.
    """
    panels = []
    for label, names in _PANELS:
        curves = {text: series(records, *name) for name, text in names.items()}
        curves = {text: curve for text, curve in curves.items() if len(curve[0])}
        if curves:
            panels.append((label, curves))
    figure, all_axes = figure_of(len(panels), 1.9, columns=2)
    if not panels:
        all_axes[0].set_axis_off()
    for axes, (label, curves) in zip(all_axes, panels, strict=False):
        for index, (text, (steps, values)) in enumerate(curves.items()):
            marker = MARKERS[index] if len(steps) <= 30 else None
            look = {"color": SERIES[index], "ls": DASHES[index], "marker": marker}
            axes.plot(*thinned(steps, values), lw=1.5, ms=3.5, label=text, **look)
        style(axes, xlabel="step")
        # A legend stands above the axes, where it covers no curve, and the title above it.
        rows = len(curves) if len(curves) > 1 else 0
        if rows:
            top_legend(axes, columns=1)
        title = textwrap.fill(label, _TITLE_WIDTH)
        axes.set_title(title, fontsize=10, color=INK, loc="left", pad=6 + _LEGEND_ROW * rows)
        axes.locator_params(axis="x", nbins=3, integer=True)
        axes.locator_params(axis="y", nbins=5)
    return figure


def calibration_plot(calibration: ValueCalibration) -> Figure:
    """One panel a depth: mean return over mean value of each bin, with standard errors, beside the line of equality.

    A rising line of any slope means that V ranks prefixes correctly; on the dashed line V is calibrated.
    """
    depths = len(calibration.counts)
    figure, panels = figure_of(depths, 2.7, columns=2)
    for place, axes in enumerate(panels[:depths]):
        values, returns = calibration.bin_values[place], calibration.bin_returns[place]
        errors = np.nan_to_num(calibration.bin_errors[place])
        known = np.isfinite(values)
        if known.any():
            ends = [values[known].min(), values[known].max()]
            axes.plot(ends, ends, "--", color=GREY, lw=1.4, label="return = value")
            axes.errorbar(
                values[known],
                returns[known],
                errors[known],
                fmt="-o",
                color=BLUE,
                ms=4.5,
                lw=1.6,
                elinewidth=1.0,
                capsize=2.5,
                label="prefixes, in bins of equal size",
            )
        style(axes, xlabel="value", ylabel="return" if place % 2 == 0 else "", grid="both")
        depth = calibration.first_depth + place
        name = "root" if depth == 0 else "1 code" if depth == 1 else f"{depth} codes"
        axes.set_title(
            f"{name}\nrank correlation {signed(calibration.correlation[place], 2)}"
            f"\nwithin users {signed(calibration.within_users[place], 2)}",
            fontsize=10.5,
            color=INK,
            loc="left",
        )
    handles, labels = panels[0].get_legend_handles_labels()
    if labels:
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=2,
            frameon=False,
            fontsize=10.5,
            labelcolor=INK,
        )
    return figure
