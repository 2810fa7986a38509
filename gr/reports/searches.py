"""Searches at equal budgets, as a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gr.reports.numbers import bounds, number
from gr.reports.plots import (
    DASHES,
    INK,
    MARKERS,
    SERIES,
    figure_of,
    metric_label,
    style,
    top_legend,
)
from gr.reports.tables import format_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "beam": "beam search",
    "sample": "sampling without replacement",
    "ved": "VED (published)",
    "best_first": "best first (ours)",
}


def format_searches(rows: Sequence[Mapping], *, k: int = 10) -> str:
    """A table of the results of `compare_searches`, by budget."""
    names = [f"hit@{k}", f"ndcg@{k}", "recall", "known_recall", f"coverage@{k}", f"diversity@{k}"]
    header = ["decoder", "budget", "tokens", "candidates", "known", f"Hit@{k}", f"NDCG@{k}"]
    header += [
        "95% interval",
        "recall",
        "recall - beam's",
        "known recall",
        f"coverage@{k}",
        f"diversity@{k}",
    ]
    table = [header]
    for row in sorted(rows, key=lambda row: row["budget"]):
        cells = [number(row[name]) for name in names]
        cells.insert(2, bounds(*row["intervals"][f"ndcg@{k}"]))
        less = row.get("recall_minus_beam")
        cells.insert(4, bounds(less["low"], less["high"], sign=True) if less else "")
        counts = [str(row["budget"]), f"{row['evaluations']:.1f}", str(row["candidates"])]
        counts.append(f"{row['known']:.0f}")
        table.append([row["decoder"], *counts, *cells])
    return format_table(table)


def searches_plot(rows: Sequence[Mapping], *, k: int = 10) -> Figure:
    """One panel per metric over token evaluations, one line per decoder; bars are 95% intervals over users."""
    metrics = {
        f"hit@{k}": metric_label(f"hit@{k}"),
        f"ndcg@{k}": metric_label(f"ndcg@{k}"),
        "recall": "recall (candidates)",
        "known_recall": "recall (all known)",
        f"coverage@{k}": f"coverage@{k}",
        f"diversity@{k}": f"diversity@{k}",
    }
    figure, panels = figure_of(len(metrics), 1.95)
    decoders = list(dict.fromkeys(row["decoder"] for row in rows))
    for axes, (name, label) in zip(panels, metrics.items(), strict=True):
        for index, decoder in enumerate(decoders):
            mine = [row for row in rows if row["decoder"] == decoder and row[name] is not None]
            mine.sort(key=lambda row: row["evaluations"])
            values = np.array([row[name] for row in mine])
            bounds = np.array([row["intervals"].get(name, (row[name],) * 2) for row in mine])
            errors = (
                np.abs(bounds.reshape(-1, 2).T - values) if name in rows[0]["intervals"] else None
            )
            axes.errorbar(
                [row["evaluations"] for row in mine],
                values,
                errors,
                color=SERIES[index],
                ls=DASHES[index],
                marker=MARKERS[index],
                lw=1.8,
                ms=5,
                elinewidth=0.9,
                capsize=2.5,
                label=NAMES.get(decoder, decoder),
            )
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
        style(axes, ylabel=label)
    panels[-1].set_xlabel("token evaluations a user (mean)", fontsize=11, color=INK)
    top_legend(panels[0], columns=2)
    return figure
