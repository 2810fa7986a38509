"""Beam search, sampling and VED of a trained run at equal budgets of token evaluations."""

import dataclasses
import functools
import io
import json
import os
from collections.abc import Mapping, Sequence

from gr.data import Histories
from gr.data.files import write_atomically
from gr.decoding import PRESETS, SearchConfig
from gr.evaluation import compare_searches
from gr.reports import format_searches, searches_plot, seen_note
from gr.runs import build
from gr.runs.evaluate import VARIANTS
from gr.runs.run import Run


def compare(
    run: Run,
    split: str,
    budgets: Sequence[int],
    *,
    num_users: int = 1024,
    searches: Mapping[str, SearchConfig] = PRESETS,
) -> dict:
    """Compares searches at equal budgets and prints a table; returns the content of `searches_SPLIT.json`.

    Args:
        run: the trained run.
        split: "validation" or "test".
        budgets: tokens per user.
        num_users: evenly spaced users of the split; 0: all.
        searches: the searches to compare, by name.

    Raises:
        EvaluationError: for a budget too small for two beams.
    """
    sequences = run.splits.sequences
    targets = build.spread_targets(run.targets(split), num_users)
    rows = compare_searches(
        functools.partial(
            build.decode,
            run.config,
            run.catalogue,
            run.model,
            run.splits,
            targets,
            value_head=run.value_head,
            progress=True,
        ),
        budgets,
        code_length=run.semantic_ids.num_levels,
        targets=sequences.items[targets.positions],
        num_items=sequences.num_items,
        searches=searches,
    )
    guide = "a trained value head" if run.value_head else "no value head"
    exclude = run.config.decoding.exclude_seen
    print(format_searches(rows))
    print(f"{len(targets):,} users of {split}, {VARIANTS[exclude]}; tree searches have {guide}")
    seen = int(Histories.of(sequences, targets).hold(sequences.items[targets.positions]).sum())
    if seen:
        remedy = "a run with decoding.exclude_seen=false"
        print(seen_note(seen, len(targets), impossible=exclude, remedy=remedy))

    result = {
        "split": split,
        "checkpoint_step": run.step,
        "users": len(targets),
        "exclude_seen": exclude,
        "targets_seen": seen,
        "value_head": run.value_head is not None,
        "configs": {name: dataclasses.asdict(search) for name, search in searches.items()},
        "searches": rows,
    }
    stem = os.path.join(run.workdir, f"searches_{split}")
    write_atomically(f"{stem}.json", json.dumps(result, indent=2).encode())
    drawn = io.BytesIO()
    searches_plot(rows).savefig(drawn, format="png", dpi=130)
    write_atomically(f"{stem}.png", drawn.getvalue())
    print(f"wrote {stem}.json and {stem}.png")
    return result
