"""What a figure says about the places that a reader points at.

`marks_of(figure)` reads lines, bars, error bars and stairs off a drawn figure; `tell` adds a text of its own.
`figure_to_svg` writes the marks into the SVG, and the script of the HTML pages shows the one nearest to the pointer.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gr.reports.numbers import fact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.container import BarContainer, ErrorbarContainer
    from matplotlib.figure import Figure

_TOLD = "_told:"  # Before the label of an artist that `tell` made.
_NO_NAME = re.compile(r"_(child|container)\d+|_nolegend_")  # Labels that matplotlib made.


@dataclasses.dataclass(frozen=True)
class Mark:
    """A place of a figure and its text; places are shares of the figure, from its upper left corner."""

    heading: str
    text: str
    place: tuple[float, ...]  # x, y.
    box: tuple[float, ...] = ()  # Left, top, right, bottom of what is larger than a point.


def tell(axes: Axes, x: float, y: float, heading: str, text: str) -> None:
    """Adds a text for readers who point at (x, y); draws nothing."""
    axes.plot([x], [y], ls="", label=f"{_TOLD}{heading}\n{text}")


def marks_of(figure: Figure) -> list[Mark]:
    """The marks of a figure that has been drawn, which places its axes; what is not finite has none."""
    from matplotlib.container import BarContainer, ErrorbarContainer
    from matplotlib.patches import StepPatch

    marks = []
    for axes in figure.axes:
        bars, inside = {}, set()
        for container in axes.containers:
            if isinstance(container, BarContainer):
                bars |= {mark.place: mark for mark in _bars(axes, container)}
            elif isinstance(container, ErrorbarContainer):
                data, caps, _ = container.lines
                inside |= {data, *caps}
                for mark in _error_bars(axes, container):
                    box = bars[mark.place].box if mark.place in bars else ()
                    bars[mark.place] = dataclasses.replace(mark, box=box)
        marks += bars.values()
        for line in axes.lines:
            if line not in inside and line.get_transform() == axes.transData:  # Else it is no data.
                marks += _points(axes, str(line.get_label()), np.asarray(line.get_xydata(), float))
        for patch in axes.patches:
            if isinstance(patch, StepPatch):
                marks += _stairs(axes, *patch.get_data()[:2])
    return [
        dataclasses.replace(mark, heading=mark.heading.replace(r"\$", "$"))  # See `plain_text`.
        for mark in marks
        if np.isfinite([*mark.place, *mark.box]).all()
    ]


def as_json(marks: list[Mark]) -> list:
    """Marks as JSON values: `[heading, [[text, x, y], [text, x, y, left, top, right, bottom], ...]]` of each series."""
    return [
        [heading, [[mark.text, *mark.place, *mark.box] for mark in series]]
        for heading, series in itertools.groupby(marks, key=lambda mark: mark.heading)
    ]


def _points(axes: Axes, label: str, points: np.ndarray) -> Iterator[Mark]:
    """A mark for each of `points [n, 2]`."""
    for x, y in points:
        if label.startswith(_TOLD):
            heading, _, text = label.removeprefix(_TOLD).partition("\n")
        else:
            heading, text = _said(axes, label, x, y)
        yield Mark(heading, text, _place(axes, x, y))


def _bars(axes: Axes, bars: BarContainer) -> Iterator[Mark]:
    for bar in bars:
        left, bottom, right, top = bar.get_bbox().extents
        lies = bars.orientation == "horizontal"
        x, y = (right, (bottom + top) / 2) if lies else ((left + right) / 2, top)
        yield Mark(
            *_said(axes, str(bars.get_label()), x, y),
            _place(axes, x, y),
            _box(axes, left, bottom, right, top),
        )


def _error_bars(axes: Axes, bars: ErrorbarContainer) -> Iterator[Mark]:
    """Marks of the values, with the ends of their bars."""
    data, _, ranges = bars.lines
    along = 0 if bars.has_xerr else 1
    points = np.asarray(data.get_xydata(), float)
    ends: Any = ranges[0].get_segments() if ranges else points[:, None]
    for (x, y), of_bar in zip(points, ends, strict=True):
        heading, text = _said(axes, str(bars.get_label()), x, y)
        reach = np.reshape(of_bar, (-1, 2))[:, along]
        if len(reach) and reach.min() < reach.max():
            text += f" ({fact(reach.min())} to {fact(reach.max())})"
        yield Mark(heading, text, _place(axes, x, y))


def _stairs(axes: Axes, values: np.ndarray, edges: np.ndarray) -> Iterator[Mark]:
    """A mark for each run of equal values."""
    starts = [0, *(np.flatnonzero(np.diff(values)) + 1), len(values)]
    for start, stop in itertools.pairwise(starts):
        if stop > start:
            at = f"{start + 1}" if stop == start + 1 else f"{start + 1} to {stop}"
            left, right, value = edges[start], edges[stop], float(values[start])
            yield Mark(
                axes.get_title(loc="left"),
                f"{axes.get_xlabel()}, {at}: {fact(value)} {axes.get_ylabel()}",
                _place(axes, (left + right) / 2, value),
                _box(axes, left, 0, right, value),
            )


def _said(axes: Axes, label: str, x: float, y: float) -> tuple[str, str]:
    """Heading and text of a value, by the labels of its axes; an axis with fixed ticks holds names, not numbers.

    A label with an underscore before it is told, though matplotlib leaves it out of legends.
    """
    across, up = _name(axes.xaxis, x), _name(axes.yaxis, y)
    named = [label.removeprefix("_")] if label and not _NO_NAME.fullmatch(label) else []
    panel = " ".join((axes.get_ylabel() or axes.get_title(loc="left")).split("\n"))
    if up:
        return " · ".join([up, *named]), f"{axes.get_xlabel()}: {fact(x)}"
    if across:
        return " · ".join([across, *named]), f"{panel}: {fact(y)}"
    return " · ".join([*named, panel]), f"{axes.get_xlabel()} {fact(x)}: {fact(y)}"


def _name(axis: Axis, value: float) -> str:
    """The name of the nearest of an axis' fixed ticks; empty if the axis holds numbers."""
    from matplotlib.ticker import FixedLocator

    ticks = np.asarray(axis.get_majorticklocs(), float)
    if not isinstance(axis.get_major_locator(), FixedLocator) or not len(ticks):
        return ""
    names = axis.get_major_formatter().format_ticks(ticks)
    name = " ".join(names[int(np.abs(ticks - value).argmin())].split("\n"))
    return f"{axis.get_label_text()} {name}" if name.isdigit() else name


def _place(axes: Axes, x: float, y: float) -> tuple[float, ...]:
    figure = axes.get_figure(root=True)
    across, up = figure.transFigure.inverted().transform(axes.transData.transform((x, y)))
    return round(float(across), 4), round(float(1 - up), 4)


def _box(axes: Axes, left: float, bottom: float, right: float, top: float) -> tuple[float, ...]:
    (x, other_x), (y, other_y) = (
        sorted(pair)
        for pair in zip(_place(axes, left, top), _place(axes, right, bottom), strict=True)
    )
    return x, y, other_x, other_y
