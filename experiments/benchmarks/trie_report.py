"""Tables and figures of the trie benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.trie_cases import METHODS, Case, swept_axes
from gr.reports import format_table
from gr.reports.plots import BLUE, GREY, GRID, INK, MUTED, SERIES, SKY

if TYPE_CHECKING:  # matplotlib is slow to import: only who draws pays for it.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# V = 2048, L = 8, M = 70 on two CPU cores: the most of the floor's time that ours may take.
TARGETS = {
    Case(1_000_000, 2048, 8, 2, 70): 1.6,
    Case(1_000_000, 2048, 8, 16, 70): 1.25,
    Case(10_000_000, 2048, 8, 2, 70): 1.6,
}
CONSTRAINED_TARGET = 1.15  # Of the time of ours without a constraint.

_LABELS = {
    "num_items": "items",
    "vocab_size": "vocabulary",
    "length": "tokens of a semantic ID",
    "batch": "users in a batch",
    "beams": "beams",
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def method_table(case: Case, result: Mapping[str, Any]) -> str:
    """The time of each method in one case, beside its floor and its target."""
    rows = [["method", "ms a step", "ms a decode", "of floor", "of ours", "target"]]
    ours = result["ratio_to_floor"].get("ours")
    for method, ratio in result["ratio_to_floor"].items():
        # Through the floor, which was timed beside both.
        of_ours = f"{ratio / ours:.2f}" if ours else ""
        cells = [
            f"{result[quantity][method]:,.3f}" for quantity in ("ms_per_step", "ms_per_decode")
        ]
        rows.append([method, *cells, f"{ratio:.2f}", of_ours, _target(method, case)])
    lines = [str(case), "", format_table(rows)]
    lines += [f"{method}: skipped, {why}" for method, why in result["skipped"].items()]
    return "\n".join(lines)


def index_table(cases: Sequence[Case], results: Sequence[Mapping[str, Any]]) -> str:
    """Sizes and building times of the indexes, one row each."""
    rows = [["index", "bytes an item", "published", "floor", "build s", "mask s", "peak GiB"]]
    seen = set()
    for case, result in zip(cases, results, strict=True):
        if case.corpus not in seen:
            seen.add(case.corpus)
            published = result.get("published_bytes_per_item")
            rows.append(
                [
                    f"N={case.num_items:,}, V={case.vocab_size:,}, L={case.length}",
                    f"{result['bytes_per_item']:.2f}",
                    "" if published is None else f"{published:.1f}",
                    f"{result['information_floor_bytes']:.2f}",
                    f"{result['build_seconds']:.2f}",
                    f"{result['mask_seconds']:.3f}",
                    f"{result['peak_rss_gib']:.1f}",
                ]
            )
    return format_table(rows)


def _target(method: str, case: Case) -> str:
    if method == "ours" and case in TARGETS:
        return f"<= {TARGETS[case]} of floor"
    if method in ("ours_attribute_filter", "ours_item_mask"):
        return f"<= {CONSTRAINED_TARGET} of ours"
    return ""


def draw(path: str, cases: Sequence[Case], results: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Draws the base case and each swept axis into PNG files beside the JSON file, and returns their paths."""
    stem = Path(path).with_suffix("")
    figures = {f"{stem}_methods.png": method_bars(cases[0], results[0])}
    for axis in swept_axes(cases):
        figures[f"{stem}_{axis}.png"] = sweep_lines(axis, cases, results)
    for name, figure in figures.items():
        figure.savefig(name, dpi=150)
    return [Path(name) for name in figures]


def method_bars(case: Case, result: Mapping[str, Any]) -> Figure:
    """Milliseconds a step of each method, fastest first, on a logarithmic axis; the dashed line is the floor."""
    from matplotlib.figure import Figure

    times = sorted(result["ms_per_step"].items(), key=lambda row: row[1])
    methods, values = zip(*times, strict=True)
    figure = Figure(figsize=(6.4, 1.2 + 0.34 * len(times)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(times)), values, height=0.66, color=[_colour(m) for m in methods])
    for place, value in enumerate(values):
        axes.annotate(
            f"{value:.3g}",
            (value, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=10,
        )
    axes.axvline(result["ms_per_step"]["floor"], color=INK, ls="--", lw=1)
    axes.set_yticks(range(len(times)), methods)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(values[0] / 2, values[-1] * 3)
    _style(axes, "milliseconds a step", "", "x")
    axes.set_title(str(case), fontsize=10, color=INK, loc="left")
    return figure


def sweep_lines(axis: str, cases: Sequence[Case], results: Sequence[Mapping[str, Any]]) -> Figure:
    """Each method along one axis, everything else as in the first case: its time, and its time over the floor's.

    A shared machine drifts from one case to the next; the second panel does not, since a floor was timed beside each.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    along = {}
    for case, result in zip(cases, results, strict=True):
        if set(swept_axes([cases[0], case])) <= {axis}:
            along[getattr(case, axis)] = result
    ticks = sorted(along)
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    quantities = {"ms_per_step": "milliseconds a step", "ratio_to_floor": "time over the floor's"}
    for axes, (quantity, label) in zip(panels, quantities.items(), strict=True):
        for place, method in enumerate(METHODS):
            points = [(at, along[at][quantity].get(method)) for at in ticks]
            points = [point for point in points if point[1] is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=_colour(method),
                    marker=_MARKERS[place % len(_MARKERS)],
                    ls="--" if method == "floor" else "-",
                    lw=2.2 if method == "ours" else 1.3,
                    label=method,
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(ticks, [f"{at:,}" if at < 10**5 else f"{at:.3g}" for at in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        _style(axes, _LABELS[axis], label, "both")
    figure.suptitle(f"base case: {cases[0]}", fontsize=10, color=INK, x=0.01, ha="left")
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _colour(method: str) -> str:
    """Ours blue, ours under a constraint sky blue, what has no constraint grey, baselines the others in turn."""
    if method == "ours":
        return BLUE
    if method.startswith("ours"):
        return SKY
    if method in ("floor", "unconstrained"):
        return {"floor": INK, "unconstrained": GREY}[method]
    baselines = [name for name in METHODS if _is_baseline(name)]
    others = [colour for colour in SERIES if colour not in (BLUE, SKY, GREY)]
    return [*others, MUTED][baselines.index(method) % (len(others) + 1)]


def _is_baseline(method: str) -> bool:
    return not method.startswith("ours") and method not in ("floor", "unconstrained")


def _style(axes: Axes, xlabel: str, ylabel: str, grid: str) -> None:
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.tick_params(colors=MUTED, labelcolor=INK)
    axes.grid(axis=grid, color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
