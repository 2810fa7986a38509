"""A comparison as text, Markdown, JSON and one self-contained HTML page with figures."""

import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from gr.data.files import write_atomically
from gr.evaluation import Compared
from gr.reports import format_table, render_comparison, seen_note
from gr.reports.comparison_plots import (
    prefix_survival_plot,
    seeds_plot,
    validation_plot,
)
from gr.reports.numbers import number, signed
from gr.reports.plots import figure_to_svg, metric_label, prefix_weight_plot
from gr.runs.evaluate import VARIANTS

MAIN = "ndcg@10"
SHOWN = (MAIN, "hit@3", "hit@10", "ndcg@20", "hit@20")
DIFFERENCES = (MAIN, "hit@10", "prefix_recall/1")
INTERVALS = (
    "Intervals: 95 %, users resampled, of differences averaged over the seeds; they say nothing of other trainings, "
    "of which the deviations over seeds (±) and the number of seeds in which a variant is ahead tell. p: two-sided, of "
    "the same resamples, adjusted for the number of variants (Holm)."
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The content of the pages; labels are those of the variants."""

    title: str
    reference: str
    split: str
    compared: Mapping[str, Mapping[str, Compared]]  # Rule -> label -> metrics and differences.
    missing: Sequence[str]  # Runs that are not finished.
    settings: Mapping[str, Mapping[str, object]]  # Field -> label -> value, where they differ.
    training: Mapping[str, Mapping[str, Sequence[float]]]  # Label -> fact -> one value per run.
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]]  # Rule -> baseline -> metrics.
    curves: Mapping[
        str, Mapping[int, Sequence[Mapping]]
    ]  # Label -> seed -> lines of metrics.jsonl.
    left_out: Mapping[str, str]  # Baseline -> why it is none of them.
    users: int
    targets_seen: int  # Users whose target is in their history.
    num_beams: int
    versions: Sequence[Mapping[str, Any]]  # Distinct versions of the runs.
    configs: Mapping[str, Mapping]  # Label -> resolved configuration of its first run.
    command: str  # The command that made this comparison.
    date: str


def tables(page: Comparison) -> list[tuple[str, list[list[str]]]]:
    """Titles and rows (header first) of all tables; variants and baselines are best first."""
    result = []
    for rule in page.compared:
        result.append((f"{page.split} split, {rule}", _quality(page, rule)))
        rows = _differences(page, rule)
        if len(rows) > 1:
            result.append((f"differences, {rule}", rows))
    facts = [["training", "best step", "last step", "minutes"]]
    for label, of in page.training.items():
        numbers = [", ".join(f"{value:.0f}" for value in of[k]) for k in ("best step", "last step")]
        facts.append([label, *numbers, ", ".join(number(value, 1) for value in of["minutes"])])
    result.append(("training, one number a seed", facts))
    labels = list(page.training)
    if page.settings and len(labels) > 1:
        rows = [["settings that differ", *labels]]
        rows += [[f, *(str(by.get(label)) for label in labels)] for f, by in page.settings.items()]
        result.append(("settings", rows))
    return result


def _quality(page: Comparison, rule: str) -> list[list[str]]:
    """A row for each variant, means over its seeds, and for each baseline."""
    compared = page.compared[rule]
    metrics = next(iter(compared.values())).by_seed
    shown = [metric for metric in SHOWN if metric in metrics]
    shown += sorted(metric for metric in metrics if metric.startswith("prefix_recall/"))
    ranked = [
        (
            variant.mean(MAIN),
            [label, str(len(variant.by_seed[MAIN])), *(_mean(variant, m) for m in shown)],
        )
        for label, variant in compared.items()
    ]
    for name, of in page.baselines.get(rule, {}).items():
        cells = [number(of[metric]) if metric in of else "" for metric in shown]
        ranked.append((of[MAIN], [name, "", *cells]))
    rows = [row for _, row in sorted(ranked, key=lambda found: -found[0])]
    return [["variant", "seeds", *map(metric_label, shown)], *rows]


def _differences(page: Comparison, rule: str) -> list[list[str]]:
    """A row for each variant but the reference."""
    compared = page.compared[rule]
    header = [f"minus {page.reference}"]
    for metric in DIFFERENCES:
        header += [metric_label(metric), "95 %", "p (Holm)", "relative", "seeds ahead"]
    rows = [[*header, f"{metric_label(MAIN)}, each seed"]]
    others = [(label, variant) for label, variant in compared.items() if variant.differences]
    for label, variant in sorted(others, key=lambda other: -other[1].differences[MAIN].mean):
        row = [label]
        for metric in DIFFERENCES:
            found = variant.differences[metric]
            of_reference = compared[page.reference].by_seed[metric]
            base = sum(of_reference[seed] for seed in found.by_seed) / len(found.by_seed)
            row += [
                signed(found.mean),
                f"{signed(found.low)} to {signed(found.high)}",
                number(found.p_holm, 3),
                f"{signed(100 * found.mean / base, 1)} %" if base else "",
                f"{found.seeds_ahead} of {len(found.by_seed)}",
            ]
        by_seed = variant.differences[MAIN].by_seed
        rows.append([*row, ", ".join(signed(value) for value in by_seed.values())])
    return rows


def _mean(variant: Compared, metric: str) -> str:
    spread = variant.deviation(metric)
    return number(variant.mean(metric)) + ("" if spread is None else f" ± {number(spread)}")


def notes(page: Comparison) -> list[str]:
    """Notes beside the tables."""
    lines = [
        INTERVALS,
        f"{page.users:,} users, {page.num_beams} beams; a hit is the target's semantic ID. Minutes are those between "
        "the first and the last line of a run's metrics, validation included, without the time that it was stopped.",
    ]
    if page.targets_seen:
        remedy = f"the rule of the other tables, {VARIANTS[False]},"
        lines.append(seen_note(page.targets_seen, page.users, impossible=True, remedy=remedy))
    lines += [f"{name} was left out: {why}." for name, why in page.left_out.items()]
    if len(set(trained_under(page).values())) > 1:
        lines.append(
            "Not all variants removed seen items from validation while they trained: their validation curves and best "
            "steps are not to be compared."
        )
    for versions in page.versions:
        packages = versions.get("packages", {})
        changed = ", with changes" if versions.get("git_modified") else ""
        lines.append(
            f"{versions.get('device_kind')}, {versions.get('platform')}, JAX {packages.get('jax')}; "
            f"revision {versions.get('git_revision')}{changed}."
        )
    if len(page.versions) > 1:
        lines.append(
            f"The runs were made in {len(page.versions)} different surroundings, which are those above."
        )
    if page.missing:
        lines.append(f"Not done yet: {'; '.join(page.missing)}.")
    return lines


def trained_under(page: Comparison) -> dict[str, str]:
    """Label -> the rule of its validation during training."""
    return {
        label: VARIANTS[config["decoding"]["exclude_seen"]]
        for label, config in page.configs.items()
    }


def commands(page: Comparison) -> list[str]:
    """Commands to repeat the comparison and to evaluate one run."""
    workdir = "DIR/VARIANT/seed_S"
    return [
        page.command,
        f"python -m experiments.evaluate --workdir={workdir} --split={page.split} --beside=DIR/OTHER/seed_S",
    ]


def as_text(page: Comparison) -> str:
    """The comparison as text for a terminal."""
    blocks = [f"{title}\n{format_table(rows)}" for title, rows in tables(page)]
    return "\n\n".join([page.title, *blocks, "\n".join(notes(page))])


def as_markdown(page: Comparison) -> str:
    """The comparison as Markdown."""
    blocks = [f"# {page.title}"]
    for title, rows in tables(page):
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "| --- " * len(rows[0]) + "|")
        blocks.append(f"## {title}\n\n" + "\n".join(lines))
    code = "```\n" + "\n".join(commands(page)) + "\n```"
    return "\n\n".join([*blocks, *notes(page), page.date, code]) + "\n"


def as_json(page: Comparison) -> dict:
    """All numbers as JSON values."""
    values = dataclasses.asdict(page)
    del values["curves"]
    return values


def figures(page: Comparison) -> dict:
    """File stem -> figure."""
    drawn = {}
    for rule, compared in page.compared.items():
        stem = rule.replace(" ", "_")
        lines = {name: of[MAIN] for name, of in page.baselines.get(rule, {}).items()}
        drawn[f"ndcg10_{stem}"] = seeds_plot(compared, lines=lines)
        drawn[f"prefix_recall_{stem}"] = prefix_survival_plot(
            compared, beams=page.num_beams, reference=page.reference
        )
    rules, curves = trained_under(page), page.curves
    if len(set(rules.values())) > 1:
        curves = {f"{label}, {rules[label]}": by_seed for label, by_seed in curves.items()}
    drawn["validation"] = validation_plot(curves)
    with_weights = {
        label: next(iter(by_seed.values()))
        for label, by_seed in page.curves.items()
        if any("prefix_1/weight" in line["values"] for line in next(iter(by_seed.values())))
    }
    if with_weights:
        drawn["prefix_weights"] = prefix_weight_plot(with_weights)
    return drawn


CAPTIONS = {
    "ndcg10": "NDCG@10 of each run{}.",
    "prefix_recall": "Where the right item leaves the beam{}. Dots: seeds.",
    "prefix_weights": "Loss and weight of each prefix; dotted: equal weights.",
    "validation": "Validation metric while training; thin: seeds, thick: their mean.",
}


def caption(stem: str) -> str:
    """The caption of a figure by its file's stem, which may end with a rule."""
    kind = next(kind for kind in CAPTIONS if stem.startswith(kind))
    rule = stem.removeprefix(kind).replace("_", " ").strip()
    return CAPTIONS[kind].format(f", {rule}" if rule else "")


def write(workdir: str, page: Comparison) -> None:
    """Writes `comparison.md`, `comparison.html` and `figures/*.png` into the workdir."""
    folder = os.path.join(workdir, "figures")
    drawn = figures(page)
    for stem, figure in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
        write_atomically(os.path.join(folder, f"{stem}.png"), buffer.getvalue())
    markdown = as_markdown(page).encode("utf-8", errors="replace")
    write_atomically(os.path.join(workdir, "comparison.md"), markdown)
    html = render_comparison(
        title=page.title,
        notes=notes(page),
        tables=tables(page),
        figures={caption(stem): figure_to_svg(figure) for stem, figure in drawn.items()},
        date=page.date,
        commands=commands(page),
        details={
            f"Resolved configuration of {label}": json.dumps(config, indent=2, ensure_ascii=False)
            for label, config in page.configs.items()
        },
    )
    write_atomically(
        os.path.join(workdir, "comparison.html"), html.encode("utf-8", errors="replace")
    )
