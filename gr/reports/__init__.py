"""Figures, tables of text and HTML pages of what `gr.evaluation` counted.

`write_report` makes the self-contained report of a run, `render_comparison` a page of tables and figures;
`format_metrics` and `format_table` make text for a terminal. matplotlib is loaded when something is drawn.
"""

from gr.reports.calibration_plots import calibration_plot
from gr.reports.html import render_comparison
from gr.reports.policy_plots import training_curves_of_policy
from gr.reports.report import (
    Candidate,
    Example,
    ReportData,
    render_report,
    write_report,
)
from gr.reports.search_tree_plots import search_tree_plot
from gr.reports.search_trees import TreeCandidate, TreeOfUser, tree_of_user
from gr.reports.searches import format_searches, searches_plot
from gr.reports.tables import format_metrics, format_table, seen_note, target_notes

__all__ = [
    "Candidate",
    "Example",
    "ReportData",
    "TreeCandidate",
    "TreeOfUser",
    "calibration_plot",
    "format_metrics",
    "format_searches",
    "format_table",
    "render_comparison",
    "render_report",
    "search_tree_plot",
    "searches_plot",
    "seen_note",
    "target_notes",
    "training_curves_of_policy",
    "tree_of_user",
    "write_report",
]
