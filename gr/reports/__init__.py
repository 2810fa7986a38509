"""Figures, text tables and HTML pages of the results of `gr.evaluation`.

* Pages: `write_report` makes the self-contained HTML report of a run, `render_comparison` a page of tables and figures.
  Their script sorts columns, shows the values of plots (`gr.reports.hover`) and searches users; without it they are
  whole.
* Text: `format_metrics`, `format_searches` and `format_table` make tables for a terminal; `target_notes` and
  `seen_note` are the sentences that belong beside them.
* Figures: `searches_plot` (searches at equal budgets), `search_tree_plot` (a value-guided search of one user),
  `id_tree_plot` (semantic IDs as a tree), `training_curves_of_policy` and `calibration_plot` (reinforcement learning);
  more in `gr.reports.plots` and `gr.reports.comparison_plots`. matplotlib is imported when something is drawn.
"""

from gr.reports.html import render_comparison
from gr.reports.id_trees import id_tree_plot
from gr.reports.policy_plots import calibration_plot, training_curves_of_policy
from gr.reports.report import Candidate, Example, ReportData, render_report, write_report
from gr.reports.search_trees import TreeCandidate, TreeOfUser, search_tree_plot, tree_of_user
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
    "id_tree_plot",
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
