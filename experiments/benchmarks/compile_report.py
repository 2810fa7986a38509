"""Tables of compiled programs."""

from collections.abc import Mapping
from typing import Any

from gr.reports import format_table
from gr.runs.compile_for import CHIPS, ON_SEVERAL, SHARDED

NOTES = """\
cycles: the compiler's estimates; what has none counts nothing. of floor: over the fastest program that does only what
cannot be left out. GB: operands and results of all operations, a loop's once. gathers, sorts, copies: how many are
executed, and their elements. transfers: between the chip's memories, while it computes. constants: arrays that are
part of the program. peak: share of the chip's memory."""


def text(results: Mapping[str, Mapping[str, Any]], lines: int) -> str:
    """All tables.

    Args:
        results: of `gr.runs.compile_for.compile_programs`.
        lines: most expensive lines of code to show for each program.
    """
    blocks = [format_table(_programs(results)), NOTES]
    blocks += [format_table(rows) for rows in (_split(results), _on_slice(results)) if rows]
    for name, result in results.items():
        blocks.append(format_table(_kinds(name, result)))
        if lines:
            blocks.append(format_table(_lines(name, result, lines)))
    return "\n\n".join(["", *blocks])


def _programs(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    header = ["program", "compile s", "cycles", "of floor", "estimated us", "of floor", "GB"]
    header += [
        "of floor",
        "temporary MB",
        "peak",
        "gathers",
        "sorts",
        "copies",
        "transfers MB",
        "constants",
    ]
    rows = [header]
    for name, of in results.items():
        seconds = of["optimal_seconds"]
        rows.append(
            [
                name,
                f"{of['compile_seconds']:.1f}",
                _number(of["cycles"], ",.0f"),
                _number(of["cycles_over_floor"], ".2f"),
                _number(seconds and 1e6 * seconds, ",.1f"),
                _number(of["optimal_seconds_over_floor"], ".2f"),
                _number(of["bytes"] and of["bytes"] / 1e9, ",.3f"),
                _number(of["bytes_over_floor"], ",.1f"),
                f"{of['temp_bytes'] / 1e6:,.1f}",
                f"{of['share_of_memory']:.1%}",
                *(
                    f"{of[kind]['count']:,} of {of[kind]['elements']:,}"
                    for kind in ("gathers", "sorts", "copies")
                ),
                f"{of['transfers']['bytes'] / 1e6:,.1f}",
                f"{of['constant_bytes']:,} B" if of["constant_bytes"] else "none",
            ]
        )
    return rows


def _split(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One chip beside several; empty if nothing was compiled for several."""
    rows = []
    forms = [(name, of, form) for name, of in results.items() for form in (ON_SEVERAL, SHARDED)]
    for name, of, form in forms:
        several = of.get(form)
        if several is None:
            continue
        rows.append(
            [
                f"{name}, state split" if form == SHARDED else name,
                *(f"{one['argument_bytes'] / 1e6:,.1f}" for one in (of, several)),
                *(f"{one['temp_bytes'] / 1e6:,.1f}" for one in (of, several)),
                *(_number(one["cycles"], ",.0f") for one in (of, several)),
                f"{several['collectives']['count']:,}",
                f"{several['collectives']['bytes'] / 1e6:,.3f}",
            ]
        )
    header = [
        f"a chip of 1, of {CHIPS}",
        "arguments MB",
        "of 4",
        "temporary MB",
        "of 4",
        "cycles",
        "of 4",
    ]
    return [[*header, "collectives", "MB"], *rows] if rows else []


def _on_slice(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What a chip of a slice holds; empty if nothing was compiled for one."""
    rows = [
        [
            name,
            ", ".join(f"{axis}={size}" for axis, size in of["mesh"].items()),
            *(f"{of[held] / 1e9:.2f}" for held in ("argument_bytes", "temp_bytes", "peak_bytes")),
            f"{of['share_of_memory']:.1%}",
            f"{of['collectives']['count']:,}",
            f"{of['collectives']['bytes'] / 1e6:,.3f}",
        ]
        for name, of in results.items()
        if "mesh" in of
    ]
    header = ["a chip of the slice", "mesh", "arguments GB", "temporary GB", "peak GB"]
    return [[*header, "of the chip's memory", "collectives", "MB"], *rows] if rows else []


def _kinds(name: str, result: Mapping[str, Any]) -> list[list[str]]:
    rows = [[name, "cycles", "share", "operations", "no estimate", "elements"]]
    for kind, cost in result["kinds"].items():
        share = cost["cycles"] / result["cycles"] if result["cycles"] else None
        rows.append(
            [
                kind,
                f"{cost['cycles']:,}",
                _number(share, ".0%"),
                f"{cost['count']:,}",
                f"{cost['unestimated']:,}",
                f"{cost['elements']:,}",
            ]
        )
    if result["open_loops"]:
        rounds = f"({result['open_loops']} open loops, {result['rounds_of_open_loops']} rounds)"
        rows.append([rounds, "", "", "", "", ""])
    return rows


def _lines(name: str, result: Mapping[str, Any], count: int) -> list[list[str]]:
    rows = [[f"lines of {name}", "kind", "cycles", "operations", "no estimate", "elements"]]
    for cost in result["lines"][:count]:
        rows.append(
            [
                cost["source"] or "(no line)",
                cost["kind"],
                *(f"{cost[field]:,}" for field in ("cycles", "count", "unestimated", "elements")),
            ]
        )
    return rows


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
