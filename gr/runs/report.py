"""Fills the HTML report of a run with the results of its evaluation."""

import dataclasses
import datetime
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gr.data import Sequences, Targets
from gr.data.files import as_path, read_json
from gr.evaluation import Decoded, EvaluationError
from gr.reports import Candidate, Example, ReportData, target_notes, write_report
from gr.reports.report import SHOWN_USERS
from gr.runs import build
from gr.runs.experiment import Experiment, ReinforcedExperiment
from gr.runs.run import Run
from gr.semantic_ids import SemanticIds
from gr.training import load_config, read_metrics

NUM_EXAMPLES = 60
SHOWN_HISTORY = 8
SHOWN_CANDIDATES = 10
CATEGORY_FIELDS = ("categories", "genres", "category")


@dataclasses.dataclass(frozen=True)
class OtherRun:
    """The results of another run that a report shows."""

    workdir: str
    loss: str  # Its name.
    users: int
    prefix_recall: Mapping[str, Sequence[float]]  # By rule.


def read_other_run(workdir: str, split: str) -> OtherRun:
    """Reads an evaluated run.

    Raises:
        EvaluationError: if it has not been evaluated on this split.
        TrainingError: if there is no such run.
    """
    loss = load_config(workdir)["loss"]["name"]
    path = os.path.join(workdir, f"metrics_{split}.json")
    if not as_path(path).exists():
        raise EvaluationError(
            f"{path} does not exist; first run python -m experiments.evaluate --workdir={workdir} "
            f"--split={split}"
        )
    metrics = read_json(path)
    return OtherRun(workdir, loss, metrics["users"], metrics["prefix_recall"])


def check_beside(other: OtherRun, users: int, num_codes: int) -> None:
    """Raises `EvaluationError` if the other run has another number of users or codes."""
    codes = len(next(iter(other.prefix_recall.values())))
    if (other.users, codes) != (users, num_codes):
        raise EvaluationError(
            f"{other.workdir} has {other.users:,} users and {codes} codes an item, this run {users:,} and "
            f"{num_codes}; name a run on the same data and semantic IDs"
        )


def prefix_recall_beside(
    of_run: Mapping[str, Sequence[float]], loss: str, other: OtherRun
) -> dict[str, Sequence[float]]:
    """Label -> prefix recall of both runs, labelled by loss and rule; with equal losses also by the other's folder."""
    name = other.loss
    if name == loss:
        name = f"{name} in {os.path.basename(os.path.normpath(other.workdir))}"
    return {f"{loss}, {rule}": shares for rule, shares in of_run.items()} | {
        f"{name}, {rule}": shares for rule, shares in other.prefix_recall.items()
    }


def model_name(config: Experiment) -> str:
    """What tables and reports call a run's recommender."""
    return config.backbone + ("" if config.memory.weight is None else " + memory")


def memory_note(memory: Mapping | None) -> str:
    """How much of the mixture is the memory's; `memory` is that of the metrics."""
    if memory is None:
        return "none"
    weights, by = memory["gate"]["weights"], memory["gate"]["input"]
    note = f"weight {weights[0]:g}"
    if by:
        listed = ", ".join(f"{weight:g}" for weight in weights)
        note = f"weights {listed} by {by.replace('_', ' ')}"
    settings = memory["settings"] or {}
    if settings.get("content_of"):
        note += f"; content: {settings['content_of']}, {settings['content']:g}"
    if settings.get("discount"):
        note += f"; discount of popular items: {settings['discount']:g}"
    return note


def write_run_report(
    path: str,
    run: Run,
    targets: Targets,
    decoded: Decoded,
    metrics: Mapping,
    *,
    other_run: OtherRun | None = None,
) -> None:
    """Writes the report of one evaluated split.

    Args:
        path: path of the HTML file.
        run: the trained run.
        targets: the evaluated targets.
        decoded: the model's candidates for them, under the main rule.
        metrics: the result of `gr.runs.evaluate`.
        other_run: whose prefix recall is shown beside this run's.
    """
    sequences, semantic_ids = run.splits.sequences, run.semantic_ids
    config, name = run.config, model_name(run.config)
    prefix_recall = metrics["prefix_recall"]
    if other_run is not None:
        prefix_recall = prefix_recall_beside(prefix_recall, config.loss.name, other_run)
    versions = read_json(os.path.join(run.workdir, "versions.json"))
    data = ReportData(
        title=config.name or os.path.basename(run.workdir),
        dataset={
            "users": sequences.num_users,
            "items": sequences.num_items,
            "interactions": len(sequences.items),
            "targets": f"{len(targets):,} ({metrics['split']})",
        },
        model={
            "backbone": config.backbone,
            "parameters": build.num_parameters(run.model),
            "semantic ID": " x ".join(map(str, semantic_ids.codebook_sizes)),
            "training": f"{config.loss.name}, {config.training.level} level",
            "beams": config.decoding.num_beams,
            "memory": memory_note(metrics.get("memory")),
        },
        metrics={name: metrics, **metrics["baselines"]},
        main_row=name,
        parts=metrics.get("parts", ()),
        rule=metrics["rule"],
        variants={
            rule: {name: of_rule, **of_rule["baselines"]}
            for rule, of_rule in metrics["variants"].items()
        },
        notes=target_notes(metrics),
        differences=metrics["differences"],
        p_values=metrics["p_values"],
        target_classes=metrics["breakdown_classes"],
        left_out=metrics["baselines_left_out"],
        curves=read_metrics(os.path.join(run.workdir, "metrics.jsonl")),
        best_step=run.step,
        references=best_on_validation(metrics["validation_baselines"]),
        prefix_recall=prefix_recall,
        num_beams=config.decoding.num_beams,
        codebooks=[
            {"size": size, "counts": np.bincount(semantic_ids.codes[:, level], minlength=size)}
            for level, size in enumerate(semantic_ids.codebook_sizes)
        ],
        collisions=semantic_ids.collisions(),
        examples=_examples(run, targets, decoded),
        config=config.to_dict(),
        versions=versions,
        commands=_commands(run, metrics["split"]),
        date=datetime.date.today().isoformat(),
        revision=versions.get("git_revision") or "",
    )
    write_report(path, data)


def best_on_validation(baselines: Mapping) -> dict[str, float]:
    """The best baseline of `validation_baselines`, labelled, with its NDCG@10; {} without validation targets."""
    if not baselines["ndcg@10"]:
        return {}
    name, value = max(baselines["ndcg@10"].items(), key=lambda item: item[1])
    return {f"{name} (validation, {baselines['rule']})": value}


def sid_numbers(semantic_ids: SemanticIds) -> np.ndarray:
    """A number for each item's semantic ID, equal where items share one: `[N]` int."""
    return np.unique(semantic_ids.codes, axis=0, return_inverse=True)[1].ravel()


def candidates_by_title(
    items: np.ndarray,
    scores: np.ndarray,
    titles: np.ndarray,
    details: np.ndarray,
    *,
    target: int | None = None,
    seen: Sequence[int] = (),
    count: int = SHOWN_CANDIDATES,
) -> list[Candidate]:
    """The first `count` items of one user's beams `[M, C]`, with the score of their semantic ID `[M]`."""
    places = [(item, beam) for beam, row in enumerate(items) for item in row if item >= 0]
    return [
        Candidate(
            title=str(titles[item]),
            score=float(scores[beam]),
            is_target=item == target,
            detail=str(details[item]),
            seen=item in seen,
        )
        for item, beam in places[:count]
    ]


def item_details(fields: Mapping[str, np.ndarray], num_items: int) -> np.ndarray:
    """A further text for each item, such as its category; empty strings if the data has none."""
    found = [fields[name] for name in CATEGORY_FIELDS if name in fields]
    return found[0] if found else np.full(num_items, "")


def _examples(run: Run, targets: Targets, decoded: Decoded) -> list[Example]:
    return examples_of(
        run.splits.sequences, targets, lambda row, _: (decoded.items[row], decoded.scores[row])
    )


def examples_of(
    sequences: Sequences,
    targets: Targets,
    candidates: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> list[Example]:
    """Evenly spaced distinct users, rather than the best ones: first those that are shown, then those folded away.

    Args:
        sequences: the data.
        targets: n targets.
        candidates: (target number, items of the history) -> items `[k, D]`, padded with NO_ITEM, and scores `[k]`. An
            item of number `num_items` is one that the data lack.
    """
    titles = np.append(sequences.titles(), "an item that the data lack")
    details = np.append(item_details(sequences.item_fields, sequences.num_items), "")
    chosen = _spread(np.arange(len(targets)), NUM_EXAMPLES)
    shown = _spread(chosen, SHOWN_USERS)
    examples = []
    for row in (*shown, *np.setdiff1d(chosen, shown)):
        user, position = targets.users[row], targets.positions[row]
        history = sequences.items[sequences.offsets[user] : position]
        target = int(sequences.items[position])
        items, scores = candidates(row, history)
        examples.append(
            Example(
                user=str(sequences.user_ids[user]),
                history=[str(titles[item]) for item in history[-SHOWN_HISTORY:]],
                target=str(titles[target]),
                target_detail=str(details[target]),
                candidates=candidates_by_title(
                    items, scores, titles, details, target=target, seen=history.tolist()
                ),
            )
        )
    return examples


def _spread(numbers: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of sorted numbers, evenly spaced."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, count).round().astype(int))]


def _commands(run: Run, split: str) -> list[str]:
    main = "rl" if isinstance(run.config, ReinforcedExperiment) else "train"
    return [
        f"python -m experiments.{main} --config=CONFIG --workdir={run.workdir}",
        f"python -m experiments.evaluate --workdir={run.workdir} --split={split}",
        f"python -m experiments.recommend --workdir={run.workdir} --user="
        f"{run.splits.sequences.user_ids[0]} --top_k=10",
    ]
