"""The figure of a value head's calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gr.evaluation.calibration import ValueCalibration
from gr.reports.plots import BLUE, GREY, INK, figure_of, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def calibration_plot(calibration: ValueCalibration) -> Figure:
    """One panel a depth: mean return over mean value of each bin, with standard errors, beside the line of equality.

    Points on a rising line rank prefixes rightly, whatever its slope; on the dashed line they are what they say.
    """
    depths = len(calibration.counts)
    figure, panels = figure_of(depths, 2.7, columns=2)
    for place, axes in enumerate(panels[:depths]):
        values, returns = calibration.bin_values[place], calibration.bin_returns[place]
        errors = np.nan_to_num(calibration.bin_errors[place])
        known = np.isfinite(values)
        if known.any():
            ends = [values[known].min(), values[known].max()]
            axes.plot(ends, ends, "--", color=GREY, lw=1.4, label="return = value")
            axes.errorbar(
                values[known],
                returns[known],
                errors[known],
                fmt="-o",
                color=BLUE,
                ms=4.5,
                lw=1.6,
                elinewidth=1.0,
                capsize=2.5,
                label="prefixes, in bins of equal size",
            )
        style(axes, xlabel="value", ylabel="return" if place % 2 == 0 else "", grid="both")
        depth = calibration.first_depth + place
        name = "root" if depth == 0 else "1 code" if depth == 1 else f"{depth} codes"
        axes.set_title(
            f"{name}\nrank correlation {_signed(calibration.correlation[place])}"
            f"\nwithin users {_signed(calibration.within_users[place])}",
            fontsize=10.5,
            color=INK,
            loc="left",
        )
    handles, labels = panels[0].get_legend_handles_labels()
    if labels:
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=2,
            frameon=False,
            fontsize=10.5,
            labelcolor=INK,
        )
    return figure


def _signed(value: float) -> str:
    return f"{value:+.2f}" if np.isfinite(value) else "–"
