"""How tables and pages write numbers. What was not measured is written here, so that no table shows a NaN."""

import math
from collections.abc import Mapping

import numpy as np

NOT_MEASURED = "–"


def is_measured(value: object) -> bool:
    """Whether a value is a finite number; None, NaN and infinities are not."""
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def number(value: float | None, digits: int = 4) -> str:
    """A number with thousands separated, such as 4,905.25; `NOT_MEASURED` where there is none."""
    return f"{value:,.{digits}f}" if is_measured(value) else NOT_MEASURED


def signed(value: float | None, digits: int = 4) -> str:
    """A number with its sign, such as +0.0120; `NOT_MEASURED` where there is none."""
    return f"{value:+,.{digits}f}" if is_measured(value) else NOT_MEASURED


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 in percent, such as 48.9%; `NOT_MEASURED` where there is none."""
    return f"{number(100 * share, digits)}%" if is_measured(share) else NOT_MEASURED


def bounds(low: float | None, high: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """An interval, such as [0.0699, 0.0817]; `NOT_MEASURED` where a bound is missing."""
    write = signed if sign else number
    if not (is_measured(low) and is_measured(high)):
        return NOT_MEASURED
    return f"[{write(low, digits)}, {write(high, digits)}]"


def best_first(rows: Mapping[str, Mapping], name: str) -> dict[str, Mapping]:
    """Rows of metrics with the highest value of one of them first; those without it come last, in their order."""

    def worst_last(row: str) -> float:
        value = rows[row].get(name)
        return -value if is_measured(value) else math.inf

    return {row: rows[row] for row in sorted(rows, key=worst_last)}


def fact(value: object) -> str:
    """A number in short: thousands separated or four digits; a mapping as a list; anything else as it is."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {fact(of)}" for name, of in value.items())
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    if not is_measured(value):
        return NOT_MEASURED
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"
