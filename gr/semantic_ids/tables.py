"""Quality reports of Semantic IDs as text for a terminal."""

from typing import Any

import numpy as np

from gr.data.sequences import Sequences
from gr.semantic_ids.semantic_ids import SemanticIds


def report_table(report: dict[str, Any]) -> str:
    """The report of `make_semantic_ids` as a table, one line per level, and the collisions."""
    lines = [
        f"Semantic IDs: {report['source']}",
        f"{'level':>5} {'codes':>6} {'used':>6} {'used %':>7} {'perplexity':>10} "
        f"{'of possible':>11} {'largest code':>12}",
    ]
    for level in report["levels"]:
        lines.append(
            f"{level['level']:>5} {level['size']:>6} {level['used']:>6} "
            f"{level['used_share']:>7.1%} {level['perplexity']:>10.1f} "
            f"{level['relative_perplexity']:>11.3f} {level['largest_share']:>12.1%}"
        )
    for name, counts in (
        ("before", report["before_policy"]),
        (f"after {report['collision']!r}", report["after_policy"]),
    ):
        lines.append(
            f"{name}: {counts['distinct_sids']} distinct SIDs of {counts['items']} items, "
            f"{counts['colliding_items']} items share one, at most {counts['largest_group']} each"
        )
    return "\n".join(lines)


def example_table(
    sequences: Sequences, semantic_ids: SemanticIds, num_codes: int = 5, num_items: int = 6
) -> str:
    """The most popular items of a few first codes, by title, to judge whether they belong together."""
    popularity = np.bincount(sequences.items, minlength=sequences.num_items)
    first = semantic_ids.codes[:, 0]
    codes = np.unique(first)
    shown = codes[np.linspace(0, len(codes) - 1, min(num_codes, len(codes))).astype(int)]
    titles = sequences.titles()
    lines = ["Items that share a first code:"]
    for code in shown:
        rows = np.flatnonzero(first == code)
        top = rows[np.argsort(-popularity[rows], kind="stable")][:num_items]
        names = "; ".join(str(title)[:40] for title in titles[top])
        lines.append(f"{code:>5} ({len(rows)} items) {names}")
    return "\n".join(lines)
