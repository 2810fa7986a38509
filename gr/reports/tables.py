"""Metrics as plain text for a terminal."""

from collections.abc import Mapping, Sequence

from gr.evaluation.rankings import EvaluationError
from gr.reports.numbers import best_first, bounds, number, signed


def format_metrics(metrics: dict, *, model_name: str = "model", k: int = 10) -> str:
    """Aligned tables of the dictionary of `evaluate_with_baselines`, and `target_notes`.

    The first table has a row for the model and each baseline, the best NDCG@k first, with its interval. The second has
    the paired difference of the model to each baseline (absent without baselines), with p-values adjusted for the
    number of baselines. The third has the hits by class of target, if there is a `breakdown`. `metrics` may name its
    `rule`, and hold the dictionaries of other rules as `variants`: each has a table of its own. Where its `hit` is
    `item`, a hit is the target itself in all columns, and there are no others for items.

    Raises:
        EvaluationError: if the metrics were not computed at k.
    """
    if f"ndcg@{k}" not in metrics:
        raise EvaluationError(f"the metrics hold no ndcg@{k}: evaluate with ks that contain {k}.")
    columns = [f"Hit@{k}", f"NDCG@{k}", "95% interval", f"MRR@{k}"]
    of_items = metrics.get("hit") != "item"
    columns += [f"item Hit@{k}", f"item NDCG@{k}"] * of_items
    columns += [f"coverage@{k}", f"Gini@{k}", f"novelty@{k}"]
    by_rule = {metrics.get("rule", ""): metrics, **metrics.get("variants", {})}
    blocks = []
    for rule, of_rule in by_rule.items():
        rows = [[rule, *columns]]
        rows += [
            [name, *_cells(of, k, of_items)] for name, of in _rows(of_rule, model_name, k).items()
        ]
        blocks.append(format_table(rows))
    differences = metrics.get("differences", {})
    if differences:
        keys = (f"hit@{k}", f"ndcg@{k}", *[f"item_ndcg@{k}"] * of_items)
        rows = [[metrics.get("rule", "")]]
        for label in (f"Hit@{k}", f"NDCG@{k}", *[f"item NDCG@{k}"] * of_items):
            rows[0] += [label, "95% interval", "p (Holm)"]
        for name in (name for name in _rows(metrics, model_name, k) if name in differences):
            row = [f"{model_name} - {name}"]
            for key in keys:
                mean, low, high = differences[name][key]
                _, adjusted = metrics["p_values"][name][key]
                row += [signed(mean), bounds(low, high, sign=True), number(adjusted, 3)]
            rows.append(row)
        blocks.insert(1, format_table(rows))
    if "breakdown" in metrics:
        blocks.append(_breakdown_table(metrics, model_name, k))
    for name, why in metrics.get("baselines_left_out", {}).items():
        blocks.append(f"{name} was left out: {why}.")
    blocks += target_notes(metrics)
    hit = "the target's Semantic ID; in item columns it is the item itself"
    blocks.append(
        f"{metrics['users']:,} users; a hit is {hit if of_items else 'the target itself'}."
    )
    return "\n\n".join(blocks)


def _rows(metrics: Mapping, model_name: str, k: int) -> dict[str, Mapping]:
    """The metrics of the model and of each baseline, best first."""
    return best_first({model_name: metrics, **metrics.get("baselines", {})}, f"ndcg@{k}")


def _breakdown_table(metrics: Mapping, model_name: str, k: int) -> str:
    """NDCG@k of every row for each class of targets, and beneath it what the classes are."""
    classes = {name: of for name, of in metrics["breakdown"].items() if of["targets"]}
    rows = [[f"NDCG@{k} by target", *classes]]
    for name, of_row in _rows(metrics, model_name, k).items():
        rows.append([name, *(number(of_row["breakdown"][one][f"ndcg@{k}"]) for one in classes)])
    rows.append(["targets", *(f"{of['targets']:,}" for of in classes.values())])
    told = [f"{name}: {text}" for name, text in metrics["breakdown_classes"].items()]
    return "\n".join([format_table(rows), "; ".join(told) + "."])


def target_notes(metrics: Mapping) -> list[str]:
    """Notes on the targets: how many are in the history, cannot be hit, or are not in the catalogue.

    Args:
        metrics: the result of `evaluate_rankings`.

    Returns:
        Sentences; none if no target is special.
    """
    users, notes = metrics["users"], []
    if seen := metrics.get("targets_seen"):
        note = seen_note(seen, users, impossible=metrics.get("targets_impossible") == seen)
        others = [
            r for r, of in metrics.get("variants", {}).items() if of.get("targets_impossible")
        ]
        notes.append(" ".join([note, *(f"With {rule} they can never be hit." for rule in others)]))
    if outside := metrics.get("targets_outside"):
        notes.append(
            f"Warning: {outside:,} of {users:,} targets are no item of the catalogue and count as "
            "misses of every ranker."
        )
    return notes


def seen_note(
    seen: int,
    users: int,
    *,
    impossible: bool,
    split: str = "",
    remedy: str = "--exclude_seen=false",
) -> str:
    """One sentence: how many of the targets of `users` users of a split are in the user's history.

    With `impossible` they cannot be hit, since seen items are removed; `remedy` names the setting that allows them.
    """
    share = f"{seen:,} of {users:,} {f'{split} targets'.strip()} ({seen / users:.1%}) are in the user's history"
    if not impossible:
        return f"{share}."
    return (
        f"Warning: {share} and can never be hit while seen items are removed; {remedy} allows them."
    )


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned plain text: header first; the first column left-aligned, the others right-aligned.

    Raises:
        EvaluationError: for rows of different lengths.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise EvaluationError(
            f"rows of {sorted(lengths)} cells make no table: give at least one row, and all the same "
            "number of cells."
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _cells(metrics: dict, k: int, of_items: bool) -> list[str]:
    """The cells of one ranker, in the order of the columns of `format_metrics`."""
    quality = [number(metrics[key]) for key in (f"hit@{k}", f"ndcg@{k}")]
    rest = [f"mrr@{k}", *[f"item_hit@{k}", f"item_ndcg@{k}"] * of_items]
    rest = [number(metrics[key]) for key in rest]
    lists = [number(metrics[key], 3) for key in (f"coverage@{k}", f"gini@{k}")]
    interval = bounds(*metrics["intervals"][f"ndcg@{k}"])
    return [*quality, interval, *rest, *lists, number(metrics[f"novelty@{k}"], 2)]
