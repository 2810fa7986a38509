"""The tree of one user's value-guided search: as arrays, and as a figure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gr.decoding import SearchTree
from gr.evaluation.rankings import EvaluationError
from gr.reports.hover import tell
from gr.reports.numbers import fact
from gr.reports.plots import BLUE, CARD, GREY, INK, MUTED, VERMILLION, figure_of, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

Prefix = tuple[int, ...]

# Inches.
_WIDTH, _TITLES = 6.6, 2.75
_ROW = 0.205
_AROUND = 1.3  # Legend, colour bar and note.

_AREAS = (155.0, 560.0)  # Circle areas in square points: without visits, and with the most visits.
_TITLE_LETTERS = 40
# Of no theme: filled circles keep their shades on a dark page.
ON_DARK, ON_LIGHT = "#fcfcfc", "#16202b"
_PALETTE = ("#d3e5f2", "#7fb2d6", BLUE, "#00395c")


@dataclasses.dataclass(frozen=True)
class TreeOfUser:
    """The n prefixes that the search of one user evaluated, a parent before its children; number 0 is the empty one."""

    parents: np.ndarray  # [n] int32; 0 for the root.
    tokens: np.ndarray  # [n] int32: last token; 0 for the root.
    depths: np.ndarray  # [n] int32.
    log_probs: np.ndarray  # [n] float32.
    values: np.ndarray  # [n] float32: V; 0 at depth L - 1, where it is not used.
    entropies: np.ndarray  # [n] float32.
    visits: np.ndarray  # [n] int32.

    def __len__(self) -> int:
        return len(self.depths)

    def prefixes(self) -> list[Prefix]:
        """The tokens of every prefix."""
        found: list[Prefix] = [()]
        for parent, token in zip(self.parents[1:], self.tokens[1:], strict=True):
            found.append((*found[parent], int(token)))
        return found


@dataclasses.dataclass(frozen=True)
class TreeCandidate:
    """A complete semantic ID, labelled beside its longest evaluated prefix."""

    tokens: Prefix  # All L of them.
    title: str


@dataclasses.dataclass(frozen=True)
class PlacedCandidate:
    """A candidate in a figure."""

    candidate: TreeCandidate
    rank: int  # From 1.
    prefix: int  # Number of its longest evaluated prefix.
    row: int


@dataclasses.dataclass(frozen=True)
class TreeLayout:
    """The prefixes and candidates of a tree that are shown, and their rows, counted from the top."""

    rows: dict[int, float]  # By the prefix's number; a parent is centred on its children.
    candidates: list[PlacedCandidate]
    num_rows: int


def tree_of_user(tree: SearchTree, user: int) -> TreeOfUser:
    """The tree of one user of a batch."""
    exist = np.asarray(tree.exist[user])
    names = [field.name for field in dataclasses.fields(TreeOfUser)]
    return TreeOfUser(**{name: np.asarray(getattr(tree, name)[user])[exist] for name in names})


def search_tree_plot(
    tree: TreeOfUser,
    candidates: Sequence[TreeCandidate],
    *,
    beam: Collection[Prefix] = (),
    target: Sequence[int] = (),
    level_offsets: Sequence[int] | None = None,
    labels: Mapping[Prefix, str] | None = None,
    max_prefixes: int = 40,
    max_candidates: int = 16,
) -> Figure:
    """The tree from left to right, a column for each depth, with the candidates on the right.

    A circle is a prefix: its area shows the visits, its colour V, its label the last code. Prefixes of L - 1 codes
    are unfilled: their V is not used.

    Args:
        tree: the evaluated prefixes.
        candidates: the candidates found, best first.
        beam: tokens of the prefixes that plain beam search keeps; they get a thick outline.
        target: tokens of the target, whose path is coloured; empty if unknown.
        level_offsets: the token of code 0 of each level; None: tokens are shown as they are.
        labels: prefix -> label instead of its last code.
        max_prefixes: number of prefixes shown: those with the most visits, ties by best candidate; the target's path is
            always shown.
        max_candidates: number of candidates shown: the best whose prefix is shown; the target is always shown.

    Raises:
        EvaluationError: for a tree with the empty prefix only.
    """
    if len(tree) < 2:
        raise EvaluationError("a tree of the empty prefix alone shows nothing: search with L > 1")
    target, prefixes = tuple(target), tree.prefixes()
    layout = lay_out(
        tree, candidates, target=target, max_prefixes=max_prefixes, max_candidates=max_candidates
    )
    longest = int(tree.depths.max())
    offsets = np.zeros(longest + 1, int) if level_offsets is None else level_offsets
    figure, (axes,) = figure_of(1, _ROW * layout.num_rows + _AROUND)
    figure.set_figwidth(_WIDTH)

    # Prefixes.
    hits = {n for n in layout.rows if on_path(prefixes[n], target)}
    for n, row in layout.rows.items():
        if n > 0:
            parent, depth = int(tree.parents[n]), tree.depths[n]
            _edge(axes, depth - 1, depth, layout.rows[parent], row, n in hits)
    norm, palette = _circles(
        axes,
        tree,
        layout,
        hits=hits,
        heavy={n for n in layout.rows if prefixes[n] in set(beam)},
        longest=longest,
    )
    for n, row in layout.rows.items():
        depth = int(tree.depths[n])
        code = str(tree.tokens[n] - offsets[depth - 1]) if n > 0 else ""
        shade = norm(tree.values[n]) if depth < longest else None
        colour = INK if shade is None else ON_DARK if shade > 0.45 else ON_LIGHT
        _label(axes, (labels or {}).get(prefixes[n], code), depth, row, colour)
        tell(
            axes,
            depth,
            row,
            *_told(tree, n, [c - offsets[t] for t, c in enumerate(prefixes[n])], longest),
        )

    # Candidates.
    for placed in layout.candidates:
        codes, title = placed.candidate.tokens, placed.candidate.title
        hit = codes == target
        known = int(tree.depths[placed.prefix])
        _edge(axes, known, longest + 0.42, layout.rows[placed.prefix], placed.row, hit)
        code = " ".join(str(codes[t] - offsets[t]) for t in range(known, len(codes)))
        look = {"va": "center", "color": VERMILLION if hit else INK}
        axes.text(longest + 0.45, placed.row, code, fontsize=7, **look | {"color": MUTED})
        axes.annotate(
            plain_text(f"{placed.rank}. {_cut(title)}"),
            (longest + 0.45, placed.row),
            (17 + 4.2 * max(0, len(code) - 3), 0),
            textcoords="offset points",
            fontsize=8.5,
            weight="bold" if hit else "normal",
            **look,
        )

    # Legend, colour bar and note.
    for depth in range(longest + 1):
        name = "root" if depth == 0 else "1 code" if depth == 1 else f"{depth} codes"
        axes.text(depth, -0.9, name, ha="center", va="bottom", fontsize=9, color=MUTED)
    axes.text(
        longest + 0.45, -0.9, "remaining codes, rank, title", va="bottom", fontsize=9, color=MUTED
    )
    unit = (_WIDTH - _TITLES) / (longest + 0.85)
    axes.set_xlim(-0.4, longest + 0.45 + _TITLES / unit)
    axes.set_ylim(layout.num_rows - 0.4, -1.8)
    axes.set_axis_off()
    _legend(axes, with_beam=bool(beam), with_target=bool(target))
    _colour_bar(figure, axes, norm, palette)
    figure.supxlabel(
        _note(tree, layout, candidates, target), x=0.02, ha="left", fontsize=8.5, color=MUTED
    )
    return figure


def on_path(prefix: Prefix, target: Prefix) -> bool:
    """Whether a prefix is one of the target's; False without a target."""
    return bool(target) and prefix == target[: len(prefix)]


def lay_out(
    tree: TreeOfUser,
    candidates: Sequence[TreeCandidate],
    *,
    target: Prefix = (),
    max_prefixes: int,
    max_candidates: int,
) -> TreeLayout:
    """Chooses the prefixes and candidates to show and places them; see `search_tree_plot`."""
    prefixes = tree.prefixes()
    shown = _most_visited(tree, prefixes, candidates, target, max_prefixes)
    number = {prefix: n for n, prefix in enumerate(prefixes)}

    def known_by(candidate: TreeCandidate) -> int:
        lengths = reversed(range(len(candidate.tokens)))
        return next(number[candidate.tokens[:i]] for i in lengths if candidate.tokens[:i] in number)

    found = [(rank, c) for rank, c in enumerate(candidates, start=1) if known_by(c) in shown]
    late = [pair for pair in found[max_candidates:] if pair[1].tokens == target]
    children, completions = {n: [] for n in shown}, {n: [] for n in shown}
    for n in shown[1:]:
        children[int(tree.parents[n])].append(n)
    for rank, candidate in found[:max_candidates] + late:
        completions[known_by(candidate)].append((rank, candidate))

    rows: dict[int, float] = {}
    placed: list[PlacedCandidate] = []
    num_rows = 0

    def place(n: int) -> None:
        nonlocal num_rows
        below = []
        for child in sorted(children[n], key=lambda child: -tree.log_probs[child]):
            place(child)
            below.append(rows[child])
        for rank, candidate in completions[n]:
            placed.append(PlacedCandidate(candidate, rank, n, num_rows))
            below.append(num_rows)
            num_rows += 1
        if not below:
            below.append(num_rows)
            num_rows += 1
        rows[n] = (below[0] + below[-1]) / 2

    place(0)
    return TreeLayout(rows, placed, num_rows)


def _most_visited(
    tree: TreeOfUser,
    prefixes: Sequence[Prefix],
    candidates: Sequence[TreeCandidate],
    target: Prefix,
    count: int,
) -> list[int]:
    """Numbers of at most `count` prefixes and of all of the target's, together with their ancestors."""
    ranks: dict[Prefix, int] = {}  # Rank of the best candidate below.
    for rank, candidate in enumerate(candidates):
        for depth in range(len(candidate.tokens)):
            ranks.setdefault(candidate.tokens[:depth], rank)

    def order(n: int) -> tuple:
        return -tree.visits[n], ranks.get(prefixes[n], math.inf), -tree.log_probs[n]

    shown = {0} | {n for n, prefix in enumerate(prefixes) if on_path(prefix, target)}
    for n in sorted(range(len(tree)), key=order):
        missing = []
        while n not in shown:
            missing.append(n)
            n = int(tree.parents[n])
        if len(shown) + len(missing) <= count:
            shown.update(missing)
    return sorted(shown)


def _edge(axes: Axes, left: float, right: float, start: float, end: float, hit: bool) -> None:
    """A curve with horizontal ends, in the target's colour if it is on the target's path."""
    t = np.linspace(0, 1, 24)
    colour, width = (VERMILLION, 2.0) if hit else (GREY, 0.8)
    heights = start + (end - start) * t * t * (3 - 2 * t)
    axes.plot(left + (right - left) * t, heights, color=colour, lw=width, zorder=2 if hit else 1)


def _circles(
    axes: Axes,
    tree: TreeOfUser,
    layout: TreeLayout,
    *,
    hits: set[int],
    heavy: set[int],
    longest: int,
) -> tuple[Normalize, Colormap]:
    """Draws the prefixes; returns the colour scale of V."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba

    numbers = np.array(list(layout.rows))
    decided = tree.depths[numbers] < longest
    low, high = tree.values[numbers][decided].min(), tree.values[numbers][decided].max()
    if low == high:  # Without a value head all values are 0.
        low, high = low - 1, high + 1
    norm, palette = Normalize(low, high), LinearSegmentedColormap.from_list("V", _PALETTE)
    share = tree.visits[numbers] / max(tree.visits.max(), 1)
    axes.scatter(
        tree.depths[numbers],
        list(layout.rows.values()),
        s=_AREAS[0] + (_AREAS[1] - _AREAS[0]) * share,
        c=[
            palette(norm(value)) if known else to_rgba(CARD)
            for value, known in zip(tree.values[numbers], decided, strict=True)
        ],
        edgecolors=[VERMILLION if n in hits else INK for n in numbers],
        linewidths=[2.6 if n in heavy else 0.7 for n in numbers],
        zorder=3,
    )
    return norm, palette


def _label(axes: Axes, text: str, depth: int, row: float, colour: str) -> None:
    """A code inside its circle; a longer label below it."""
    if len(text) <= 3:
        axes.text(
            depth,
            row,
            plain_text(text),
            ha="center",
            va="center_baseline",
            fontsize=7,
            color=colour,
        )
        axes.texts[-1].set_zorder(4)
    else:
        from matplotlib.patheffects import withStroke

        halo = [withStroke(linewidth=2, foreground=CARD)]
        axes.annotate(
            plain_text(text),
            (depth, row),
            (0, -9),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=6.5,
            color=INK,
            path_effects=halo,
            zorder=4,
        )


def _told(tree: TreeOfUser, n: int, codes: Sequence[int], longest: int) -> tuple[str, str]:
    """Heading and text for readers who point at a prefix."""
    value = [f"V {fact(float(tree.values[n]))}"] if len(codes) < longest else []
    facts = [
        *value,
        f"{tree.visits[n]} visits",
        f"log-probability {fact(float(tree.log_probs[n]))}",
        f"entropy {fact(float(tree.entropies[n]))}",
    ]
    return f"codes {' '.join(map(str, codes))}" if codes else "root", ", ".join(facts)


def _legend(axes: Axes, *, with_beam: bool, with_target: bool) -> None:
    from matplotlib.lines import Line2D

    circle = {"marker": "o", "ls": "", "ms": 9, "mfc": CARD, "mec": INK}
    handles = [Line2D([], [], mew=0.7, label="evaluated prefix", **circle)]
    if with_beam:
        handles.append(Line2D([], [], mew=2.6, label="also in plain beam search", **circle))
    if with_target:
        look = {"color": VERMILLION, "lw": 2, "marker": "o", "ms": 9, "mfc": CARD}
        handles.append(Line2D([], [], label="path of the target", **look))
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        borderaxespad=0.1,
        columnspacing=1.2,
        handlelength=1.8,
    )


def _colour_bar(figure: Figure, axes: Axes, norm: Normalize, palette: Colormap) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(
        ScalarMappable(norm, palette),
        ax=axes,
        orientation="horizontal",
        fraction=0.02,
        aspect=22,
        shrink=0.34,
        anchor=(0.0, 0.0),
        pad=0.01,
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=2)
    bar.ax.locator_params(nbins=3)
    bar.set_label("value V (unfilled: not used)", loc="left", fontsize=8.5, color=MUTED)


def _note(
    tree: TreeOfUser, layout: TreeLayout, candidates: Sequence[TreeCandidate], target: Prefix
) -> str:
    """Explains the circles and counts the omitted prefixes and candidates."""
    parts = ["Circle area: number of visits."]
    hidden = len(tree) - len(layout.rows)
    if hidden:
        parts.append(f"{hidden} of {len(tree)} prefixes, the least visited, are not shown.")
    left_out = len(candidates) - len(layout.candidates)
    if left_out:
        parts.append(f"{left_out} of {len(candidates)} candidates are not shown.")
    if target and all(candidate.tokens != target for candidate in candidates):
        known = max(len(prefix) for prefix in tree.prefixes() if on_path(prefix, target))
        parts.append(
            f"The target was not found: its first {known} of {len(target)} codes are in the tree."
        )
    return plain_text("\n".join(parts))


def _cut(title: str) -> str:
    return title if len(title) <= _TITLE_LETTERS else title[: _TITLE_LETTERS - 1].rstrip() + "…"
