"""Figures of a run, for the report and for notebooks; and the style that all figures share.

Every function returns a `matplotlib.figure.Figure` and leaves pyplot's global state alone; show one in a notebook with
`IPython.display.SVG(figure_to_svg(figure))`. Figures are narrow, to be readable on a phone. Colours are those of Okabe
and Ito ("Color Universal Design", 2008), which colour-blind readers can distinguish; lines also differ in dash and
marker.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import numpy as np

from gr.evaluation.rankings import EvaluationError
from gr.reports.hover import as_json, marks_of

if TYPE_CHECKING:  # matplotlib is slow to import, so it is imported only for drawing.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2a37"
MUTED = "#5b6675"
GRID = "#dde2e8"
CARD = "#ffffff"  # What figures stand on.
BLUE, SKY, ORANGE, GREEN = "#0072b2", "#56b4e9", "#e69f00", "#009e73"
VERMILLION, PURPLE, GREY = "#d55e00", "#cc79a7", "#8a929c"
# CSS variables of the colours, so that a page can set shades for dark backgrounds.
THEME = {"ink": INK, "muted": MUTED, "grid": GRID, "blue": BLUE, "sky": SKY, "orange": ORANGE}
THEME |= {"green": GREEN, "vermillion": VERMILLION, "purple": PURPLE, "grey": GREY, "card": CARD}
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY)
_OTHERS = (ORANGE, PURPLE, GREEN, VERMILLION, GREY)
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH = 5.0  # Inches; 480 pixels in a browser.
POINTS = 72 * _WIDTH  # The same in points, the unit of an SVG.
_FONT = 11
_LEGEND_WIDTH = 44  # Letters beside each other.
_MAX_POINTS = 400  # A longer curve is drawn as the means of so many segments.


def metric_label(name: str) -> str:
    """A metric's name as readers write it: `ndcg@10` -> `NDCG@10`, `prefix_recall/2` -> `prefix recall 2`."""
    if name.startswith("prefix_recall/"):
        return name.replace("_", " ").replace("/", " ")
    known = {"ndcg": "NDCG", "mrr": "MRR", "hit": "Hit", "coverage": "Coverage", "gini": "Gini"}
    head, _, cutoff = name.partition("@")
    level = "item " if head.startswith("item_") else ""
    head = head.removeprefix("item_")
    return f"{level}{known.get(head, head.replace('_', ' ').capitalize())}{'@' if cutoff else ''}{cutoff}"


def row_colours(rows: Sequence[str], main_row: str | None) -> dict:
    """The colour of each row in every figure: main row blue, baselines the others in turn."""
    others = [row for row in rows if row != main_row]
    colours = {row: _OTHERS[index % len(_OTHERS)] for index, row in enumerate(others)}
    return {row: BLUE if row == main_row else colours[row] for row in rows}


def metric_bars(
    metrics: Mapping[str, Mapping],
    *,
    names: Sequence[str] = ("ndcg@10", "hit@10"),
    main_row: str | None = None,
) -> Figure:
    """Horizontal bars of each metric in `names` (one panel each) for each row, with 95% intervals as error bars.

    `metrics` maps a row's name to its flat metrics, whose `intervals` may hold `[low, high]` for a metric. Rows
    without a metric are left out of its panel.
    """
    colours = row_colours(list(metrics), main_row)
    figure, panels = figure_of(len(names), 0.7 + 0.34 * max(len(metrics), 1))
    for axes, name in zip(panels, names, strict=True):
        rows = [row for row in metrics if _number(metrics[row].get(name)) is not None]
        values = np.array([float(metrics[row][name]) for row in rows])
        bounds = [_interval(metrics[row], name) for row in rows]
        bars = axes.barh(
            range(len(rows)), values, height=0.66, color=[colours[row] for row in rows]
        )
        ends = values.copy()
        for index, interval in enumerate(bounds):
            if interval is not None:
                low, high = interval
                ends[index] = max(high, values[index])
                error = [[max(values[index] - low, 0)], [max(high - values[index], 0)]]
                axes.errorbar(values[index], index, xerr=error, color=INK, capsize=3, lw=1.2)
        for index, (bar, row) in enumerate(zip(bars, rows, strict=True)):
            axes.annotate(
                f"{values[index]:.4f}",
                (ends[index], bar.get_y() + bar.get_height() / 2),
                (5, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                fontsize=_FONT - 1,
                weight="bold" if row == main_row else "normal",
            )
        axes.set_yticks(range(len(rows)), [plain_text(row) for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.22 * max(ends.max(initial=0), 1e-9))
        style(axes, xlabel=f"{metric_label(name)} (mean over users)", grid="x")
        axes.tick_params(axis="y", length=0, labelcolor=INK)
    return figure


def difference_plot(differences: Mapping[str, Mapping], *, name: str = "ndcg@10") -> Figure:
    """Paired differences to each baseline, `differences[baseline][name] = (mean, low, high)`, beside a line at 0."""
    rows = [row for row in differences if name in differences[row]]
    figure, (axes,) = figure_of(1, 1.0 + 0.34 * max(len(rows), 1))
    for index, row in enumerate(rows):
        mean, low, high = (float(value) for value in differences[row][name])
        colour = BLUE if low > 0 else VERMILLION if high < 0 else MUTED
        error = [[max(mean - low, 0)], [max(high - mean, 0)]]
        axes.errorbar(mean, index, xerr=error, fmt="o", ms=6, color=colour, capsize=4, lw=1.8)
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks(range(len(rows)), [plain_text(f"against {row}") for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    style(
        axes,
        xlabel=f"{metric_label(name)}, model minus baseline",
        grid="x",
    )
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    return figure


def slice_bars(
    metrics: Mapping[str, Mapping],
    *,
    name: str = "ndcg@10",
    slices: Sequence[str] = ("head", "torso", "tail"),
    main_row: str | None = None,
) -> Figure:
    """Grouped bars: for each slice of the catalogue, one bar for each row that has `<slice>/<name>`."""
    rows = [row for row in metrics if any(f"{part}/{name}" in metrics[row] for part in slices)]
    colours = row_colours(list(metrics), main_row)
    figure, (axes,) = figure_of(1, 2.4 + 0.22 * len(rows))  # Room for the legend, a line a row.
    width, drawn = 0.82 / max(len(rows), 1), []
    for index, row in enumerate(rows):
        values = [_number(metrics[row].get(f"{part}/{name}")) or 0.0 for part in slices]
        places = np.arange(len(slices)) + (index - (len(rows) - 1) / 2) * width
        look = {"color": colours[row], "label": plain_text(row)}
        if colours[row] in drawn:  # Colours begin again, with stripes.
            look |= {"hatch": "////", "edgecolor": CARD, "linewidth": 0}
        drawn.append(colours[row])
        axes.bar(places, values, width=0.9 * width, **look)
    axes.set_xticks(range(len(slices)), slices)
    style(
        axes,
        xlabel="target's popularity in training",
        ylabel=f"{metric_label(name)} (mean over users)",
    )
    axes.tick_params(axis="x", length=0, labelcolor=INK)
    top_legend(axes, columns=1)  # Row names are long.
    return figure


def learning_curves(
    curves: Sequence[Mapping],
    *,
    name: str = "ndcg@10",
    references: Mapping[str, float] | None = None,
    best: float | None = None,
    x: str = "step",
) -> Figure:
    """Training and validation loss, and below them the validation metric, over steps (or `x="epoch"`).

    `curves` are lines `{"step": 10, "split": "train" | "validation", "values": {"loss": 1.0, ...}}`; `references` are
    horizontal lines by label in the metric's panel; `best` is the step whose weights were kept.
    """
    with_metric = len(series(curves, "validation", name, x)[0]) > 0
    figure, panels = figure_of(2 if with_metric else 1, 2.3)
    for split, colour, dash in (("train", GREY, "-"), ("validation", BLUE, "-")):
        steps, losses = series(curves, split, "loss", x)
        if len(steps):
            steps, losses = thinned(steps, losses)
            marker = "o" if split == "validation" and len(steps) <= 60 else None
            label = "training" if split == "train" else split
            panels[0].plot(
                steps, losses, dash, color=colour, lw=1.6, marker=marker, ms=3.5, label=label
            )
    style(panels[0], xlabel=x, ylabel="loss (nats)")
    _mark_best(panels[0], best, x)
    top_legend(panels[0], columns=3)
    if with_metric:
        axes = panels[1]
        axes.sharex(panels[0])
        steps, values = thinned(*series(curves, "validation", name, x))
        marker = "o" if len(steps) <= 60 else None
        axes.plot(steps, values, color=BLUE, lw=1.8, marker=marker, ms=3.5, label="validation")
        for index, (label, value) in enumerate((references or {}).items()):
            colour, dash = _OTHERS[index % len(_OTHERS)], DASHES[1 + index % 3]
            axes.axhline(float(value), color=colour, ls=dash, lw=1.6, label=plain_text(label))
        axes.set_ylim(bottom=0)
        style(axes, xlabel=x, ylabel=f"{metric_label(name)} (mean)")
        _mark_best(axes, best, x)
        top_legend(axes, columns=2)
    return figure


def rate_curves(
    curves: Sequence[Mapping],
    *,
    names: Mapping[str, str],
    x: str = "step",
) -> Figure:
    """Small panels of training values: `names` maps a key of the training lines to its axis label with unit."""
    shown = {key: label for key, label in names.items() if len(series(curves, "train", key, x)[0])}
    figure, panels = figure_of(max(len(shown), 1), 1.55)
    for axes, (key, label) in zip(panels, shown.items(), strict=False):
        axes.plot(*thinned(*series(curves, "train", key, x)), color=BLUE, lw=1.4)
        axes.set_ylim(bottom=0)
        style(axes, xlabel=x, ylabel=label)
    return figure


def prefix_recall_plot(
    prefix_recall: Mapping[str, Sequence[float]], *, beams: int | None = None
) -> Figure:
    """Share of users whose target's prefix is still in the beam after each code, one line for each label."""
    figure, (axes,) = figure_of(1, 3.1)
    for index, (label, shares) in enumerate(prefix_recall.items()):
        depths = np.arange(1, len(shares) + 1)
        axes.plot(
            depths,
            100 * np.asarray(shares, dtype=float),
            color=SERIES[index % len(SERIES)],
            ls=DASHES[index % len(DASHES)],
            marker=MARKERS[index % len(MARKERS)],
            lw=1.8,
            label=plain_text(label),
        )
    deepest = max((len(shares) for shares in prefix_recall.values()), default=1)
    axes.set_xticks(range(1, deepest + 1))
    axes.set_ylim(bottom=0)
    beam = "beam" if beams is None else f"{beams} beams"
    style(axes, xlabel="codes decoded", ylabel=f"prefix in {beam} (% of users)")
    top_legend(axes, columns=2)
    return figure


def prefix_recall_curves(
    lines: Sequence[Mapping], *, beams: int | None = None, best: float | None = None
) -> Figure:
    """Prefix recall on validation over steps, a line for each depth; `best` is the step whose weights were kept."""
    figure, (axes,) = figure_of(1, 3.1)
    found = _by_depth(lines, "validation", "prefix_recall/{}")
    for depth, (steps, shares) in enumerate(found, start=1):
        colour, dash = _look(depth)
        marker = MARKERS[(depth - 1) % len(MARKERS)]
        label = f"{depth} code" + "s" * (depth > 1)
        axes.plot(
            steps, 100 * shares, color=colour, ls=dash, marker=marker, ms=4, lw=1.6, label=label
        )
    if best is not None:
        axes.axvline(best, color=INK, ls=":", lw=1.2, label=f"best step: {best:,.0f}")
    axes.set_ylim(bottom=0)
    beam = "beam" if beams is None else f"{beams} beams"
    style(axes, xlabel="step", ylabel=plain_text(f"prefix in {beam} (% of users)"))
    top_legend(axes, columns=3)
    return figure


def prefix_weight_plot(curves: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Prefix losses and adaptive weights over steps: a pair of panels for each run (name -> its metrics' lines)."""
    figure, axes = figure_of(2 * len(curves), 2.0)
    for index, (name, lines) in enumerate(curves.items()):
        for panel, kind in zip(axes[2 * index : 2 * index + 2], ("loss", "weight"), strict=True):
            found = _by_depth(lines, "train", "prefix_{}/" + kind)
            for depth, (steps, values) in enumerate(found, start=1):
                colour, dash = _look(depth)
                label = f"prefix of {depth}"
                panel.plot(*thinned(steps, values), color=colour, ls=dash, lw=1.5, label=label)
            style(panel, xlabel="step", ylabel=f"{name}\nprefix {kind}")
        axes[2 * index].set_ylim(bottom=0)
        # Weights start equal; the axis shows how far they move apart.
        if found:
            steps = found[0][0]
            equal = 1 / len(found)
            axes[2 * index + 1].hlines(equal, steps[0], steps[-1], color=INK, ls=":", lw=1)
        top_legend(axes[2 * index], columns=2)
    return figure


def codebook_usage(codebooks: Sequence[Mapping]) -> Figure:
    """Items of each code, most used code first, one panel for each level; the dashed line is an even spread.

    A level is `{"level": 1, "size": K, "counts": [K], "perplexity": P}`.
    """
    figure, panels = figure_of(len(codebooks), 1.6, columns=2)
    for axes, book in zip(panels, codebooks, strict=False):
        counts = np.sort(np.asarray(book["counts"], dtype=float))[::-1]
        edges = np.arange(len(counts) + 1)
        axes.stairs(counts, edges, fill=True, color=BLUE, lw=0)
        axes.axhline(counts.mean() if len(counts) else 0, color=VERMILLION, ls="--", lw=1.2)
        axes.set_xlim(0, max(len(counts), 1))
        style(axes, xlabel="codes, most used first", ylabel="items")
        perplexity = f", perplexity {float(book['perplexity']):.0f}" if "perplexity" in book else ""
        axes.set_title(f"level {book['level']}{perplexity}", fontsize=_FONT, color=INK, loc="left")
    return figure


def series(
    curves: Sequence[Mapping], split: str, name: str, x: str = "step"
) -> tuple[np.ndarray, np.ndarray]:
    """The finite values of one quantity over steps (or epochs): `[n]`, `[n]`, in order of the step."""
    points = [
        (line.get(x, line["values"].get(x)), line["values"].get(name))
        for line in curves
        if line.get("split") == split and "values" in line
    ]
    points = [(_number(at), _number(value)) for at, value in points]
    kept = sorted(point for point in points if None not in point)
    steps, values = zip(*kept, strict=True) if kept else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def _by_depth(
    lines: Sequence[Mapping], split: str, name: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps and values of `name`, in which `{}` is the depth, for all depths 1, 2, ... with values."""
    found = []
    while len((of_depth := series(lines, split, name.format(len(found) + 1)))[0]):
        found.append(of_depth)
    return found


def _look(depth: int) -> tuple[str, str]:
    """Colour and dash of a depth, the same in every figure."""
    return SERIES[(depth - 1) % len(SERIES)], DASHES[(depth - 1) % len(DASHES)]


def figure_to_svg(figure: Figure) -> str:
    """The figure as one `<svg>` element without prologue, with text as text; the same figure gives the same string.

    The attribute `data-marks` holds what `gr.reports.hover` says about places of the figure.
    """
    import matplotlib

    buffer = io.StringIO()
    # These two can only be set by a context; it ends before anything else is drawn.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gr"}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    marks = json.dumps(as_json(marks_of(figure)), ensure_ascii=False, separators=(",", ":"))
    return f"<svg data-marks={quoteattr(marks)}{text[text.index('<svg') + 4 :].rstrip()}"


def to_data_uri(figure: Figure, *, kind: str = "svg", dpi: int = 160) -> str:
    """The figure as a `data:` address for an `<img>`, as `kind="svg"` or `"png"`."""
    if kind == "svg":
        content, media = figure_to_svg(figure).encode(), "image/svg+xml"
    elif kind == "png":
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        content, media = buffer.getvalue(), "image/png"
    else:
        raise EvaluationError(f"kind={kind!r} is no image format here: choose 'svg' or 'png'.")
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def figure_of(count: int, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each `height` inches high."""
    from matplotlib.figure import Figure

    columns = min(columns, max(count, 1))
    rows = max(math.ceil(count / columns), 1)
    figure = Figure(figsize=(_WIDTH, rows * height + 0.15), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in panels[max(count, 1) :]:
        empty.set_axis_off()
    return figure, panels


def style(axes: Axes, *, xlabel: str = "", ylabel: str = "", grid: str = "y") -> None:
    """Labels, a grid behind the data, and no frame."""
    axes.set_xlabel(plain_text(xlabel), fontsize=_FONT, color=INK)
    axes.set_ylabel(plain_text(ylabel), fontsize=_FONT, color=INK)
    axes.tick_params(labelsize=_FONT - 0.5, colors=MUTED)
    axes.grid(axis=grid, color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)


def top_legend(axes: Axes, columns: int) -> None:
    """A legend above the axes, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=_columns_that_fit(labels, columns),
            frameon=False,
            fontsize=_FONT - 0.5,
            labelcolor=INK,
            borderaxespad=0.2,
            columnspacing=1.2,
            handlelength=1.8,
        )


def _columns_that_fit(labels: Sequence[str], columns: int) -> int:
    """The number of legend columns, at most `columns`, that fit without squeezing the axes."""
    for count in range(min(columns, len(labels)), 1, -1):
        rows = math.ceil(len(labels) / count)
        starts = range(0, len(labels), rows)
        if sum(max(map(len, labels[at : at + rows])) for at in starts) <= _LEGEND_WIDTH:
            return count
    return 1


def _mark_best(axes: Axes, best: float | None, x: str) -> None:
    if best is not None:
        axes.axvline(best, color=INK, ls=":", lw=1.2, label=f"best {x}: {best:,.0f}")


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MAX_POINTS` points, each the mean of its segment."""
    if len(steps) <= _MAX_POINTS:
        return steps, values
    starts = np.linspace(0, len(steps), _MAX_POINTS, endpoint=False).astype(int)
    sizes = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(values, starts) / sizes


def _interval(metrics: Mapping, name: str) -> tuple[float, float] | None:
    bounds = [_number(value) for value in metrics.get("intervals", {}).get(name, ())]
    return (bounds[0], bounds[1]) if len(bounds) == 2 and None not in bounds else None


def _number(value: object) -> float | None:
    """The value as a finite float, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def plain_text(text: str) -> str:
    """Escapes text so that matplotlib finds no formula in it."""
    return text.replace("$", r"\$")
