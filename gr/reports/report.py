"""The HTML report of a run: verdict, metrics beside baselines, learning curves, codebooks, example users.

`write_report(path, ReportData(...))` draws the figures of `gr.reports.plots` into `report.html.jinja`. The file
is self-contained, has a light and a dark theme, and can be printed. A missing part is replaced by a sentence.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils.epath import Path

from gr.data.files import as_path, write_atomically
from gr.evaluation.rankings import EvaluationError
from gr.reports import plots
from gr.reports.html import environment, inline_svg
from gr.reports.numbers import best_first, bounds, fact, is_measured, number, percent, signed
from gr.reports.why import why_missed

MAIN_METRIC = "ndcg@10"
SLICES = ("head", "torso", "tail")
COLUMNS = (
    *(f"{name}@{k}" for name in ("hit", "ndcg") for k in (5, 10, 20)),
    *("mrr@10", "item_hit@10", "item_ndcg@10", "coverage@10", "gini@10", "novelty@10"),
)
DIFFERENCES = ("ndcg@10", "hit@10", "item_ndcg@10")
SHOWN_USERS = 12  # Further examples are folded away, for the search.
_LOWER_IS_BETTER = ("gini@10",)
_RATES = {"learning_rate": "learning rate", "examples_per_second": "examples / s"}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One recommended item of one user, as it is shown."""

    title: str
    score: float
    is_target: bool = False
    detail: str = ""  # Such as its categories.
    seen: bool = False  # Whether the item is in the user's history.
    valid: bool = True  # False for a beam without an item.


@dataclasses.dataclass(frozen=True)
class Example:
    """One user: what they did, what they did next, and what was recommended (best first)."""

    user: str
    history: Sequence[str]  # Titles, oldest first.
    target: str
    candidates: Sequence[Candidate]
    target_detail: str = ""

    @property
    def target_rank(self) -> int | None:
        """The target's place among the candidates, from 1; None if it is not among them."""
        ranks = (rank for rank, item in enumerate(self.candidates, start=1) if item.is_target)
        return next(ranks, None)


@dataclasses.dataclass(frozen=True)
class ReportData:
    """The content of a report; every part except the title may be left empty."""

    title: str
    dataset: Mapping[str, object] = dataclasses.field(default_factory=dict)  # Fact -> value.
    model: Mapping[str, object] = dataclasses.field(default_factory=dict)  # Fact -> value.
    # Row -> flat metrics as `evaluate_rankings` returns them; the rows are the model and the baselines, all ranked by
    # one rule.
    metrics: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    main_row: str = ""  # The row of `metrics` that the verdict is about.
    parts: Sequence[str] = ()  # Rows of what the main row is made of, which the verdict leaves out.
    rule: str = ""  # Of `metrics`, such as "seen items removed".
    hit_is_item: bool = False  # Whether a hit is the target itself; else its semantic ID.
    # Further rule -> row -> metrics: shown beneath, and never compared with the rows of `metrics`.
    variants: Mapping[str, Mapping[str, Mapping]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()  # Notes on the targets, see `target_notes`.
    # Baseline -> metric -> (mean of main row minus baseline, low, high), paired by user.
    differences: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    # Baseline -> metric -> (p, p adjusted for the number of baselines) of that difference.
    p_values: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    # Class of target -> what it is; rows of `metrics` hold their `breakdown` by class.
    target_classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Baseline -> why.
    # Lines {"step": 10, "split": "train" | "validation", "values": {"loss": 1.0, ...}}.
    curves: Sequence[Mapping] = ()
    best_step: int | None = None  # None: the step with the best validation metric, else loss.
    # Label -> the best baseline's main metric on the validation split, a line across the learning curve.
    references: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # Label -> share of users (0 to 1) whose target's prefix is in the beam after each code, [L].
    prefix_recall: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    num_beams: int | None = None  # M, of the prefix recall.
    codebooks: Sequence[Mapping] = ()  # One a level: {"size": K, "counts": [K] items of each code}.
    collisions: Mapping[str, object] = dataclasses.field(default_factory=dict)  # Fact -> value.
    examples: Sequence[Example] = ()
    config: Mapping[str, object] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commands: Sequence[str] = ()
    date: str = ""
    revision: str = ""  # Of the project's git repository.


def write_report(path: str | os.PathLike[str], data: ReportData) -> Path:
    """Writes the report as one HTML file, atomically, and returns its path.

    Raises:
        EvaluationError: if `main_row` or a baseline of `differences` is no row of `metrics`.
    """
    path = as_path(path)
    # Titles read from JSON may hold half of a surrogate pair, which UTF-8 cannot express.
    write_atomically(path, render_report(data).encode("utf-8", errors="replace"))
    return path


def render_report(data: ReportData) -> str:
    """The report as a string of HTML; raises as `write_report` does."""
    _check(data)
    data = _best_first(data)
    templates = environment()
    templates.filters |= {
        "number": number,
        "signed": lambda value, digits=4: signed(value, digits).replace("-", "−"),
        "percent": percent,
        "fact": fact,
        "label": plots.metric_label,
    }
    best = best_step(data)
    groups = [
        {"rule": rule, "rows": _metric_rows(rows, data.main_row)}
        for rule, rows in {data.rule: data.metrics, **data.variants}.items()
        if rows
    ]
    return templates.get_template("report.html.jinja").render(
        data=data,
        verdict=verdict(data),
        why=why_missed(
            _metric(data, data.main_row, "hit@10"),
            data.metrics.get(data.main_row, {}).get("breakdown", {}),
            _recall_of_rule(data),
            beams=data.num_beams,
        ),
        tone=_tone(data),
        columns=_shown(data, COLUMNS, data.metrics),
        lower_is_better=_LOWER_IS_BETTER,
        groups=groups,
        both=_both_rules(groups, _main_metrics(data)),
        main_metrics=_main_metrics(data),
        differences=_difference_rows(data),
        compared=_shown(data, DIFFERENCES, data.differences),
        shown_users=SHOWN_USERS,
        slices=[part for part in SLICES if _slice_metric(data, part)],
        classes=_classes(data),
        best_step=best,
        best_value=_value_at(data, best),
        drops=[_largest_drop(label, shares) for label, shares in data.prefix_recall.items()],
        codebooks=[codebook_facts(book) for book in data.codebooks],
        config=json.dumps(data.config, indent=2, ensure_ascii=False, default=_plain),
        figures=_figures(data, best),
    )


def verdict(data: ReportData) -> str:
    """One sentence: the main metric, its interval, and the comparison with the baselines."""
    value = _metric(data, data.main_row)
    if value is None:
        return "No NDCG@10 of the model was measured, so there is no verdict."
    interval = data.metrics[data.main_row].get("intervals", {}).get(MAIN_METRIC)
    interval = "" if interval is None else f" {bounds(*interval)}"
    opening = f"NDCG@10 {value:.4f}{interval}{f' ({data.rule})' if data.rule else ''}"
    baselines = _baselines(data)
    if not baselines:
        return f"{opening}; no baseline was evaluated beside it."
    best, best_value = next(iter(baselines.items()))
    change = f"{100 * (value / best_value - 1):+.0f}%".replace("-", "−") if best_value else ""
    reference = f"{best} ({best_value:.4f}{', ' if change else ''}{change})"
    unsure = [name for name in baselines if _compared(data, name) <= 0]
    if value > best_value:
        doubt = f", but the difference to {unsure[0]} is not significant" if unsure else ""
        return f"{opening}, above every baseline{doubt}; the best baseline is {reference}."
    above = sum(other > value for other in baselines.values())
    others = f" It is below {above} of {len(baselines)} baselines." if above > 1 else ""
    if _compared(data, best) == 0:
        others = f" The difference is not significant at 95%.{others}"
    relation = "below" if value < best_value else "level with"
    return f"{opening}, {relation} {reference} by {best_value - value:.4f}.{others}"


def best_step(data: ReportData) -> float | None:
    """The given best step; else that of the best validation metric, else of the lowest validation loss."""
    if data.best_step is not None:
        return data.best_step
    for name, sign in ((MAIN_METRIC, 1), ("loss", -1)):
        steps, values = plots.series(data.curves, "validation", name)
        if len(steps):
            return float(steps[np.argmax(sign * values)])
    return None


def codebook_facts(book: Mapping) -> dict[str, float]:
    """`size`, `used`, `perplexity` (exp of the entropy) and `largest_share` of one level, from its `counts [K]`.

    Without counts, the level's own figures are used.
    """
    if "counts" not in book:
        return {name: book.get(name) for name in ("size", "used", "perplexity", "largest_share")}
    counts = np.asarray(book["counts"], dtype=float)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return {
        "size": int(book.get("size", len(counts))),
        "used": len(shares),
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
        "largest_share": float(shares.max(initial=0)),
    }


def _check(data: ReportData) -> None:
    named = [("main_row", data.main_row)] if data.metrics else []
    named += [("differences", row) for row in data.differences]
    for field, row in named:
        if row not in data.metrics:
            raise EvaluationError(
                f"{field} names {row!r}, which is no row of metrics: choose from {list(data.metrics)}."
            )


def _best_first(data: ReportData) -> ReportData:
    """The same with the rows of tables and figures in order of the main metric, each rule by its own."""
    rows = best_first(data.metrics, MAIN_METRIC)
    return dataclasses.replace(
        data,
        metrics=rows,
        variants={rule: best_first(of, MAIN_METRIC) for rule, of in data.variants.items()},
        differences={row: data.differences[row] for row in rows if row in data.differences},
    )


def _shown(data: ReportData, keys: Sequence[str], rows: Mapping[str, Mapping]) -> list[str]:
    """The metrics that some row has; those of items only where they differ from the others."""
    named = [key for key in keys if not (data.hit_is_item and key.startswith("item_"))]
    return [key for key in named if any(key in row for row in rows.values())]


def _metric(data: ReportData, row: str, name: str = MAIN_METRIC) -> float | None:
    value = data.metrics.get(row, {}).get(name)
    return float(value) if is_measured(value) else None


def _baselines(data: ReportData) -> dict[str, float]:
    """The main metric of the baselines, without parts of the main row, best first."""
    rows = [row for row in data.metrics if row != data.main_row and row not in data.parts]
    values = {row: _metric(data, row) for row in rows}
    present = {row: value for row, value in values.items() if value is not None}
    return dict(sorted(present.items(), key=lambda item: -item[1]))


def _compared(data: ReportData, baseline: str) -> int:
    """1 or -1 where the main row is above or below a baseline outside the 95% interval, else 0.

    The interval is that of the paired difference; where there is none, that of the main row.
    """
    difference = data.differences.get(baseline, {}).get(MAIN_METRIC)
    if difference is not None:
        _, low, high = difference
    else:
        value, other = _metric(data, data.main_row), _metric(data, baseline)
        low, high = data.metrics[data.main_row].get("intervals", {}).get(MAIN_METRIC, [value] * 2)
        low, high = low - other, high - other
    return 1 if low > 0 else -1 if high < 0 else 0


def _tone(data: ReportData) -> str:
    """`above`, `below` or `level`: the colour of the verdict."""
    baselines = _baselines(data)
    if _metric(data, data.main_row) is None or not baselines:
        return "level"
    outcomes = [_compared(data, name) for name in baselines]
    return "above" if min(outcomes) > 0 else "below" if outcomes[0] < 0 else "level"


def _metric_rows(by_row: Mapping[str, Mapping], main_row: str) -> list[dict]:
    """Table rows: name, kind, and for each column the value, its interval and whether it is the best of these rows."""
    rounded = {
        key: [round(row[key], 4) for row in by_row.values() if is_measured(row.get(key))]
        for key in COLUMNS
    }
    best = {
        key: (min if key in _LOWER_IS_BETTER else max)(values)
        for key, values in rounded.items()
        if values
    }
    rows = []
    for name, metrics in by_row.items():
        cells = {
            key: {
                "value": metrics.get(key),
                "interval": metrics.get("intervals", {}).get(key),
                "best": is_measured(metrics.get(key)) and round(metrics[key], 4) == best[key],
            }
            for key in COLUMNS
        }
        kind = "main" if name == main_row else "baseline"
        rows.append({"name": name, "kind": kind, "cells": cells, "users": metrics.get("users")})
    return rows


def _both_rules(groups: Sequence[Mapping], names: Sequence[str]) -> dict[str, dict]:
    """Ranker -> metric -> its cells under each rule, and the change from the first to the last; {} for one rule."""
    if len(groups) < 2:
        return {}
    by_rule = [{row["name"]: row["cells"] for row in group["rows"]} for group in groups]
    rankers = dict.fromkeys(name for of in by_rule for name in of)
    absent = dict.fromkeys(COLUMNS, {"value": None, "best": False})
    both: dict[str, dict] = {name: {} for name in rankers}
    for ranker, by_name in both.items():
        for name in names:
            cells = [of.get(ranker, absent)[name] for of in by_rule]
            first, last = cells[0]["value"], cells[-1]["value"]
            known = is_measured(first) and is_measured(last)
            by_name[name] = {"cells": cells, "change": last - first if known else None}
    return both


def _main_metrics(data: ReportData) -> list[str]:
    """Those of figures and of both rules side by side."""
    return [n for n in (MAIN_METRIC, "hit@10") if any(n in row for row in data.metrics.values())]


def _recall_of_rule(data: ReportData) -> Sequence[float]:
    """The main row's prefix recall under the main rule; labels of two runs beside each other end with the rule."""
    found = [of for label, of in data.prefix_recall.items() if label.endswith(data.rule)]
    return found[0] if found else ()


def _difference_rows(data: ReportData) -> list[dict]:
    """A row for each baseline: by metric, the mean difference, its bounds, its share of the baseline, the outcome."""
    rows = []
    for baseline, by_metric in data.differences.items():
        cells = {}
        for name in DIFFERENCES:
            if name in by_metric:
                mean, low, high = (float(value) for value in by_metric[name])
                outcome = "above" if low > 0 else "below" if high < 0 else "level"
                base = _metric(data, baseline, name)
                relative = 100 * mean / base if base else None
                cells[name] = {"mean": mean, "low": low, "high": high, "relative": relative}
                cells[name]["outcome"] = outcome
                _, cells[name]["p"] = data.p_values.get(baseline, {}).get(name, (None, None))
        rows.append({"baseline": baseline, "cells": cells})
    return rows


def _slice_metric(data: ReportData, part: str) -> bool:
    return any(f"{part}/{MAIN_METRIC}" in row for row in data.metrics.values())


def _classes(data: ReportData) -> list[str]:
    """The classes of targets that every row has a breakdown by, without empty ones."""
    rows = [row.get("breakdown", {}) for row in data.metrics.values()]
    names = list(rows[0]) if rows else []
    return [name for name in names if all(row.get(name, {}).get("targets") for row in rows)]


def _value_at(data: ReportData, step: float | None) -> float | None:
    """The validation value of the main metric at a step."""
    steps, values = plots.series(data.curves, "validation", MAIN_METRIC)
    return next((float(v) for s, v in zip(steps, values, strict=True) if s == step), None)


def _largest_drop(label: str, shares: Sequence[float]) -> dict:
    """The code at which most targets' prefixes leave the beam, and the share of users."""
    lost = -np.diff([1.0, *np.asarray(shares, dtype=float)])
    depth = int(np.argmax(lost)) if len(lost) else 0
    return {"label": label, "code": depth + 1, "lost": float(lost[depth]) if len(lost) else 0.0}


def _figures(data: ReportData, best: float | None) -> dict:
    """Inline SVG by name, for the parts that are there."""
    figures = {}
    for name in _main_metrics(data):
        figures[name] = plots.metric_bars(data.metrics, names=[name], main_row=data.main_row)
    if any(MAIN_METRIC in by_metric for by_metric in data.differences.values()):
        figures["differences"] = plots.difference_plot(data.differences, name=MAIN_METRIC)
    parts = [part for part in SLICES if _slice_metric(data, part)]
    if parts:
        figures["slices"] = plots.slice_bars(data.metrics, slices=parts, main_row=data.main_row)
    if data.curves:
        figures["curves"] = plots.learning_curves(
            data.curves, references=data.references, best=best
        )
        if any(len(plots.series(data.curves, "train", name)[0]) for name in _RATES):
            figures["rates"] = plots.rate_curves(data.curves, names=_RATES)
    if data.prefix_recall:
        figures["prefix"] = plots.prefix_recall_plot(data.prefix_recall, beams=data.num_beams)
    if len(plots.series(data.curves, "validation", "prefix_recall/1")[0]):
        figures["prefix_curves"] = plots.prefix_recall_curves(
            data.curves, beams=data.num_beams, best=best
        )
    if len(plots.series(data.curves, "train", "prefix_1/loss")[0]):
        figures["prefix_losses"] = plots.prefix_weight_plot({"training": data.curves})
    books = [
        {"level": level, **codebook_facts(book), "counts": book["counts"]}
        for level, book in enumerate(data.codebooks, start=1)
        if "counts" in book
    ]
    if books:
        figures["codebooks"] = plots.codebook_usage(books)
    return {name: inline_svg(plots.figure_to_svg(fig), name) for name, fig in figures.items()}


def _plain(value: object) -> object:
    """Converts types that JSON does not support."""
    if isinstance(value, Mapping):
        return dict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)
