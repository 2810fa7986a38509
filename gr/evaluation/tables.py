"""Metrics as plain text for a terminal."""

from collections.abc import Sequence

from gr.evaluation.rankings import EvaluationError


def format_metrics(metrics: dict, *, model_name: str = "model", k: int = 10) -> str:
    """Two aligned tables of the dictionary of `evaluate_with_baselines`.

    The first has a row for the model and each baseline, with the interval of NDCG@k; the second the
    paired difference of the model to each baseline (absent if there are none).

    Raises `EvaluationError` if the metrics were not computed at k.
    """
    if f"ndcg@{k}" not in metrics:
        raise EvaluationError(f"the metrics hold no ndcg@{k}: evaluate with ks that contain {k}.")
    columns = [f"Hit@{k}", f"NDCG@{k}", "95% interval", f"MRR@{k}", f"item Hit@{k}"]
    columns += [f"item NDCG@{k}", f"coverage@{k}", f"Gini@{k}", f"novelty@{k}"]
    baselines = metrics.get("baselines", {})
    rows = [["", *columns], [model_name, *_cells(metrics, k)]]
    rows += [[name, *_cells(baseline, k)] for name, baseline in baselines.items()]
    blocks = [format_table(rows)]
    differences = metrics.get("differences", {})
    if differences:
        keys = (f"hit@{k}", f"ndcg@{k}", f"item_ndcg@{k}")
        rows = [["", f"Hit@{k}", "95% interval", f"NDCG@{k}", "95% interval"]]
        rows[0] += [f"item NDCG@{k}", "95% interval"]
        for name, difference in differences.items():
            row = [f"{model_name} - {name}"]
            for key in keys:
                mean, low, high = difference[key]
                row += [f"{mean:+.4f}", f"[{low:+.4f}, {high:+.4f}]"]
            rows.append(row)
        blocks.append(format_table(rows))
    blocks.append(
        f"{metrics['users']:,} users; a hit is the target's Semantic ID, or where it says item the "
        "item itself."
    )
    return "\n\n".join(blocks)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned plain text: header first; the first column stands left, all others right.

    Raises `EvaluationError` for rows of different lengths.
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


def _cells(metrics: dict, k: int) -> list[str]:
    """The cells of one ranker, in the order of the columns of `format_metrics`."""
    low, high = metrics["intervals"][f"ndcg@{k}"]
    quality = [f"{metrics[key]:.4f}" for key in (f"hit@{k}", f"ndcg@{k}")]
    rest = [f"{metrics[key]:.4f}" for key in (f"mrr@{k}", f"item_hit@{k}", f"item_ndcg@{k}")]
    lists = [f"{metrics[key]:.3f}" for key in (f"coverage@{k}", f"gini@{k}")]
    return [*quality, f"[{low:.4f}, {high:.4f}]", *rest, *lists, f"{metrics[f'novelty@{k}']:.2f}"]
