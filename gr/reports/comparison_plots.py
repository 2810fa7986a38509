"""Figures of a comparison: variants side by side, seeds as dots."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gr.evaluation.comparison import Compared, survival
from gr.reports.numbers import number
from gr.reports.plots import (
    GREY,
    INK,
    MUTED,
    SERIES,
    figure_of,
    metric_label,
    plain_text,
    series,
    style,
    top_legend,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABEL_WIDTH = 18  # Characters of a variant's name per line.
_LINE_DASHES = ("--", ":", "-.", "-")


def seeds_plot(
    compared: Mapping[str, Compared],
    metric: str = "ndcg@10",
    *,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """One row a variant: its seeds as dots, their mean as a bar.

    `lines` are baselines, drawn as vertical lines. A baseline below half of the variants' smallest value, or above
    twice their largest, is only named in the legend, so that differences between variants stay visible.
    """
    figure, (axes,) = figure_of(1, 1.0 + 0.6 * len(compared))
    for row, variant in enumerate(compared.values()):
        values = list(variant.by_seed[metric].values())
        colour = SERIES[row % len(SERIES)]
        axes.plot(
            [np.mean(values)] * 2, [row - 0.22, row + 0.22], color=colour, lw=3, label="_mean"
        )
        axes.plot(
            values,
            [row] * len(values),
            "o",
            color=colour,
            ms=6,
            alpha=0.75,
            mec="none",
            label="_seed",
        )
        axes.annotate(
            number(np.mean(values)),
            (np.mean(values), row - 0.22),
            (0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            color=INK,
        )
    found = [value for of in compared.values() for value in of.by_seed[metric].values()]
    low, high = min(found), max(found)
    for index, (label, value) in enumerate((lines or {}).items()):
        if low / 2 <= value <= 2 * high:
            dash = _LINE_DASHES[index % len(_LINE_DASHES)]
            axes.axvline(value, color=GREY, ls=dash, lw=1.4, label=plain_text(label), zorder=0)
        else:
            axes.plot([], [], " ", label=plain_text(f"{label} ({value:.4f})"))
    axes.margins(x=0.08)
    names = [textwrap.fill(plain_text(name), _LABEL_WIDTH) for name in compared]
    axes.set_yticks(range(len(compared)), names)
    axes.set_ylim(len(compared) - 0.5, -0.7)
    style(axes, xlabel=f"{metric_label(metric)} (dots: seeds, bar: mean)", grid="x")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.locator_params(axis="x", nbins=5)
    # Beside wide labels, a legend of two columns would not fit above the plot.
    wide = max(map(len, compared)) >= _LABEL_WIDTH
    top_legend(axes, columns=1 if wide else 2)
    return figure


def prefix_survival_plot(
    compared: Mapping[str, Compared], *, beams: int, reference: str | None = None
) -> Figure:
    """Where the target leaves the beam: prefix recall after each code, and below it the share that survived that step.

    With a `reference` a third panel shows the prefix recall relative to the reference's, in percent.
    """
    depth = sum(
        metric.startswith("prefix_recall/") for metric in next(iter(compared.values())).by_seed
    )
    with_ratio = reference in compared and len(compared) > 1
    figure, axes = figure_of(3 if with_ratio else 2, 2.3)
    steps = np.arange(1, depth + 1)
    means = {
        name: [variant.mean(f"prefix_recall/{t}") for t in steps]
        for name, variant in compared.items()
    }
    width = 0.8 / len(compared)
    for index, (name, variant) in enumerate(compared.items()):
        colour, place = SERIES[index % len(SERIES)], steps - 0.4 + (index + 0.5) * width
        look = {"width": 0.92 * width, "color": colour, "label": plain_text(name)}
        dots = {"ls": "", "marker": ".", "color": INK, "ms": 3.5}
        dots["label"] = f"_{plain_text(name)}, a seed"
        axes[0].bar(place, 100 * np.array(means[name]), **look)
        by_depth = [variant.by_seed[f"prefix_recall/{t}"].values() for t in steps]
        for recalls in zip(*by_depth, strict=True):  # One for each seed.
            axes[0].plot(place, 100 * np.array(recalls), **dots)
            axes[1].plot(place, 100 * np.array(survival(recalls)), **dots)
        axes[1].bar(place, 100 * np.array(survival(means[name])), **look)
        if with_ratio:
            ratio = np.array(means[name]) / np.maximum(means[reference], 1e-12) - 1
            axes[2].bar(place, 100 * ratio, **look)
            for ratios in _ratios_by_seed(variant, compared[reference], depth):
                axes[2].plot(place, 100 * ratios, **dots)
    for panel, label in zip(
        axes,
        (f"prefix in {beams} beams (%)", "of those, still in (%)", f"against {reference} (%)"),
        strict=False,
    ):
        panel.set_xticks(steps)
        style(panel, xlabel="codes decoded", ylabel=label)
    if with_ratio:
        axes[2].axhline(0, color=INK, lw=1)
    top_legend(axes[0], columns=2)
    return figure


def _ratios_by_seed(variant: Compared, reference: Compared, depth: int) -> list[np.ndarray]:
    """Prefix recall over the reference's of the same seed, minus 1: `[L]` for each seed that both have."""
    if variant is reference:
        return []
    recalls = [f"prefix_recall/{t + 1}" for t in range(depth)]
    seeds = variant.by_seed[recalls[0]].keys() & reference.by_seed[recalls[0]].keys()
    return [
        np.array([variant.by_seed[m][s] / max(reference.by_seed[m][s], 1e-12) for m in recalls]) - 1
        for s in sorted(seeds)
    ]


def validation_plot(
    curves: Mapping[str, Mapping[int, Sequence[Mapping]]], metric: str = "ndcg@10"
) -> Figure:
    """The validation metric over steps: a thin line each seed, their mean thick where all have the step."""
    figure, (axes,) = figure_of(1, 3.0)
    for index, (name, by_seed) in enumerate(curves.items()):
        colour = SERIES[index % len(SERIES)]
        found = [series(lines, "validation", metric) for lines in by_seed.values()]
        for steps, values in found:
            axes.plot(steps, values, color=colour, lw=0.8, alpha=0.5)
        shared = sorted(set.intersection(*(set(steps) for steps, _ in found))) if found else []
        mean = [
            np.mean([values[list(steps).index(at)] for steps, values in found]) for at in shared
        ]
        axes.plot(shared, mean, color=colour, lw=2, marker="o", ms=3, label=plain_text(name))
    axes.set_ylim(bottom=0)
    style(axes, xlabel="step", ylabel=f"{metric_label(metric)}, validation")
    axes.tick_params(colors=MUTED)
    top_legend(axes, columns=2)
    return figure
