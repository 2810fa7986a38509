"""The tree that a few semantic IDs form, as a figure: what a constraint leaves of it, or what advantages it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gr.evaluation.rankings import EvaluationError
from gr.reports.plots import BLUE, GREY, GRID, INK, MUTED, VERMILLION, figure_of, plain_text
from gr.reports.search_trees import _edge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _ROW, _AROUND = 6.0, 0.27, 0.75  # Inches.
_TITLE_LETTERS = 40


def id_tree_plot(
    tokens: np.ndarray,
    titles: Sequence[str] | None = None,
    *,
    level_offsets: Sequence[int] | None = None,
    values: np.ndarray | None = None,
    label: str = "",
    pale: np.ndarray | None = None,
) -> Figure:
    """Semantic IDs as a tree from left to right: a circle for each prefix, a row for each semantic ID.

    Args:
        tokens: the semantic IDs `[n, L]`; those that are equal share a row.
        titles: texts `[n]` behind them.
        level_offsets: the token of code 0 of each level `[L]`; None: tokens are shown as they are.
        values: numbers `[n, L]` of the prefixes of 1..L codes, which colour the circles: blue above 0, red below.
            Semantic IDs that share a prefix give it the same number, or NaN.
        label: what the numbers are.
        pale: which semantic IDs are drawn pale `[n]` bool, as one that a constraint forbids; None: none is. A prefix is
            pale if all below it are.

    Raises:
        EvaluationError: for no semantic ID, or arguments whose shapes do not fit together.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise EvaluationError(f"tokens {list(tokens.shape)}: give semantic IDs [n, L], at least 1")
    (count, length), pale = tokens.shape, np.zeros(len(tokens), bool) if pale is None else pale
    shapes = {"titles": (titles, (count,)), "values": (values, (count, length))}
    for name, (given, wanted) in (shapes | {"pale": (pale, (count,))}).items():
        if given is not None and np.shape(given) != wanted:
            raise EvaluationError(f"{name} {list(np.shape(given))}: give {list(wanted)}, as tokens")
    offsets = np.zeros(length, int) if level_offsets is None else np.asarray(level_offsets)

    distinct, row_of = np.unique(tokens, axis=0, return_inverse=True)
    row_of = row_of.reshape(-1)
    figure, (axes,) = figure_of(1, _ROW * len(distinct) + _AROUND)
    figure.set_figwidth(_WIDTH)
    norm, palette = _scale(values)
    parents = np.full(len(distinct), (len(distinct) - 1) / 2)  # Height of each row's prefix.
    for depth in range(length + 1):
        _, prefix_of = np.unique(distinct[:, :depth], axis=0, return_inverse=True)
        prefix_of, heights = prefix_of.reshape(-1), parents.copy()
        for prefix in range(prefix_of.max() + 1):
            rows = np.flatnonzero(prefix_of == prefix)
            below = np.flatnonzero(np.isin(row_of, rows))
            height, first = (rows[0] + rows[-1]) / 2, below[0]
            alive = not np.all(np.asarray(pale)[below])
            if depth:
                _edge(axes, depth - 1, depth, parents[rows[0]], height, False)
            value = np.nan if values is None or not depth else float(values[first][depth - 1])
            fill = palette(norm(value)) if np.isfinite(value) else "white"
            colour = INK if alive else GREY
            axes.scatter(depth, height, s=190, color=fill if alive else GRID, zorder=3)
            axes.scatter(depth, height, s=190, facecolors="none", edgecolors=colour, zorder=4)
            if depth:
                code = str(tokens[first][depth - 1] - offsets[depth - 1])
                text = "white" if np.isfinite(value) and abs(norm(value) - 0.5) > 0.36 else colour
                look = {"ha": "center", "va": "center_baseline", "fontsize": 8}
                axes.text(depth, height, code, color=text if alive else MUTED, zorder=5, **look)
            heights[rows] = height
        parents = heights
    for row in range(len(distinct)) if titles is not None else ():
        members = np.flatnonzero(row_of == row)
        text = " · ".join(str(titles[n]) for n in members.tolist())
        text = text if len(text) <= _TITLE_LETTERS else text[: _TITLE_LETTERS - 1] + "…"
        colour = GREY if np.all(np.asarray(pale)[members]) else INK
        look = {"va": "center_baseline", "fontsize": 9, "color": colour}
        axes.text(length + 0.22, row, plain_text(text), **look)

    for depth in range(length + 1):
        name = "root" if depth == 0 else "1 code" if depth == 1 else f"{depth} codes"
        axes.text(depth, -0.8, name, ha="center", va="bottom", fontsize=9, color=MUTED)
    axes.set_xlim(-0.4, length + (0.4 if titles is None else 2.4))
    axes.set_ylim(len(distinct) - 0.4, -1.5)
    axes.set_axis_off()
    if values is not None:
        from matplotlib.cm import ScalarMappable

        bar = figure.colorbar(
            ScalarMappable(norm, palette), ax=axes, location="bottom", shrink=0.5, aspect=30
        )
        bar.set_label(plain_text(label), fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8, colors=MUTED)
    return figure


def _scale(values: np.ndarray | None) -> tuple:
    """Colours of numbers, white at 0."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    finite = np.zeros(0) if values is None else np.abs(np.asarray(values, float))
    most = np.max(finite[np.isfinite(finite)], initial=0.0) or 1.0
    palette = LinearSegmentedColormap.from_list("advantage", (VERMILLION, "#f7f7f7", BLUE))
    return Normalize(-most, most), palette
