"""The figure of a run of reinforcement learning while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gr.reports.plots import (
    DASHES,
    INK,
    MARKERS,
    SERIES,
    figure_of,
    metric_label,
    series,
    style,
    thinned,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The label of each panel, and its series: split and name -> label.
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
    ("groups whose rewards differ", {("train", "reward/spread_share"): "share"}),
    ("distinct candidates", {("train", "candidates/distinct"): "distinct"}),
    ("value loss", {("train", "value/loss"): "value loss"}),
)


def training_curves_of_policy(records: Sequence[Mapping]) -> Figure:
    """Rewards, validation, KL, entropy, advantages, candidates and value loss over steps, a panel each.

    `records` are lines of a `metrics.jsonl`; series that they lack are left out, and panels without any.
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
        axes.set_title(label, fontsize=10, color=INK, loc="left")
        axes.locator_params(axis="x", nbins=3)
        axes.locator_params(axis="y", nbins=5)
        if len(curves) > 1:  # Inside: above the axes stands the title.
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure
