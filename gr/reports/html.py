"""Shared parts of the HTML pages: templates and inline figures."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gr.reports.numbers import NOT_MEASURED
from gr.reports.plots import POINTS, THEME

if TYPE_CHECKING:
    import jinja2


def render_comparison(
    *,
    title: str,
    notes: Sequence[str],
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]],
    figures: Mapping[str, str],
    date: str = "",
    commands: Sequence[str] = (),
    details: Mapping[str, str] | None = None,
) -> str:
    """A page of a comparison, as a string of HTML.

    Args:
        title: of the page.
        notes: sentences below the title.
        tables: title and rows, the header first.
        figures: caption -> `<svg>`.
        date: of the comparison.
        commands: that make it again.
        details: heading -> long text, folded away.
    """
    figures = {
        caption: inline_svg(svg, f"figure{i}") for i, (caption, svg) in enumerate(figures.items())
    }
    return (
        environment()
        .get_template("comparison.html.jinja")
        .render(
            title=title,
            notes=notes,
            tables=tables,
            figures=figures,
            date=date,
            commands=commands,
            details=details or {},
            not_measured=NOT_MEASURED,
        )
    )


def environment() -> "jinja2.Environment":
    """The templates of this folder; values are escaped, and a missing value is an error."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.tests["wide"] = _is_wide
    return made


def _is_wide(svg: str) -> bool:
    """Whether a figure is wider than those of `figure_of`: on a phone it scrolls rather than shrinks."""
    found = re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)
    return found is not None and float(found[1]) > 1.1 * POINTS


def inline_svg(svg: str, name: str) -> str:
    """SVG that can stand beside others in one page: with unique ids, and colours that follow the page's theme."""
    import markupsafe

    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{re.sub(r'[^a-z0-9]', '-', name)}-", svg)
    for variable, colour in THEME.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    return markupsafe.Markup(svg)
