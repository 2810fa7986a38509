"""The report of a run of reinforcement learning: gains, training curves, calibration of V, search trees."""

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from gr.data import Targets
from gr.data.files import write_atomically
from gr.data.pipeline import histories
from gr.decoding import Candidates, beam_search, search
from gr.evaluation import ValueCalibration
from gr.models import histories_for
from gr.reports import (
    TreeCandidate,
    calibration_plot,
    render_comparison,
    search_tree_plot,
    training_curves_of_policy,
    tree_of_user,
)
from gr.reports.numbers import number, signed
from gr.reports.plots import figure_to_svg, metric_label
from gr.rl import ActorCritic
from gr.runs import build, build_rl, keys
from gr.runs.run import Run
from gr.runs.value_evaluation import ValueEvaluation
from gr.training import is_first, read_metrics
from gr.trie import Catalogue, ExcludeItems, walk

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE = "rl_report.html"
NUM_TREES = 4
SHOWN = ("hit@10", "ndcg@10", "hit@20", "ndcg@20", "loss", "prefix_recall/1")


def write_rl_report(
    run: Run, catalogue: Catalogue, before: Mapping[str, float], after: Mapping[str, float]
) -> str:
    """Writes the report into the run's folder and returns its path.

    Args:
        run: the trained run, with its best policy and value head.
        catalogue: its items.
        before: validation metrics of the initial policy.
        after: validation metrics of the trained policy, on the same users.
    """
    config = run.reinforced
    tables = [("Validation, beam search", _gain(before, after))]
    figures = {
        "While it trained": figure_to_svg(
            training_curves_of_policy(read_metrics(os.path.join(run.workdir, "metrics.jsonl")))
        )
    }
    if config.value.learn:
        evaluation = ValueEvaluation.of(config, catalogue, run.splits, config.rl.eval_users)
        calibration, error = evaluation.calibration(ActorCritic(run.model, run.value_head))
        tables.append((f"The value head: mean squared error {number(error)}", _ranks(calibration)))
        figures["Values against what was found below the prefixes (Monte-Carlo returns)"] = (
            figure_to_svg(calibration_plot(calibration))
        )
    if build_rl.rollout_config(config).search.is_tree_search:
        figures |= _trees(run)
    rewards = ", ".join(
        f"{weight:g} x {name}"
        for name, weight in zip(config.reward.names, config.reward.weights, strict=True)
    )
    page = render_comparison(
        title=config.name or os.path.basename(run.workdir),
        notes=[
            f"{config.policy.name}, candidates by {config.search.name}; reward: {rewards}; start and reference: "
            f"{config.init_from}.",
            f"Best step {run.step:,} of {config.rl.num_steps:,}, by {config.rl.monitor} on validation.",
        ],
        tables=tables,
        figures=figures,
        date=datetime.date.today().isoformat(),
        commands=[f"python -m experiments.rl --config=CONFIG --workdir={run.workdir}"],
        details={"Configuration": config.to_json(indent=2)},
    )
    path = os.path.join(run.workdir, REPORT_FILE)
    if is_first():
        write_atomically(path, page.encode())
    return path


def _gain(before: Mapping[str, float], after: Mapping[str, float]) -> list[list[str]]:
    names = [name for name in SHOWN if name in before and name in after]
    rows = [["policy", *map(metric_label, names)]]
    for label, values in (("supervised start", before), ("after", after)):
        rows.append([label, *(number(values[name]) for name in names)])
    return rows


def _ranks(calibration: ValueCalibration) -> list[list[str]]:
    """Rank correlations of values and returns by depth."""
    rows = [["prefixes of", "number", "rank correlation", "within users"]]
    for place, count in enumerate(calibration.counts):
        depth = calibration.first_depth + place
        numbers = (calibration.correlation[place], calibration.within_users[place])
        name = "root" if depth == 0 else "1 code" if depth == 1 else f"{depth} codes"
        rows.append([name, number(count, 0), *(signed(value, 3) for value in numbers)])
    return rows


def _trees(run: Run) -> dict[str, str]:
    """Caption -> figure of the search trees of a few evaluated users, who were not trained on."""
    evaluated = build.spread_targets(run.splits.validation, run.reinforced.rl.eval_users)
    figures = tree_figures(run, build.spread_targets(evaluated, NUM_TREES))
    return {caption: figure_to_svg(figure) for caption, figure in figures.items()}


def tree_figures(run: Run, targets: Targets) -> dict[str, "Figure"]:
    """Caption -> figure of the search tree of each target, by the run's search and value head."""
    found, beams = search_trees(run, targets)
    sequences, semantic_ids = run.splits.sequences, run.semantic_ids
    titles = sequences.titles()
    figures = {}
    for row in range(len(targets)):
        target = sequences.items[targets.positions[row]]
        tree = tree_of_user(found.tree, row)
        candidates = [
            TreeCandidate(tuple(map(int, tokens)), str(titles[items[0]]))
            for tokens, items, valid in zip(
                found.tokens[row], found.items[row], found.valid[row], strict=True
            )
            if valid
        ]
        figure = search_tree_plot(
            tree,
            candidates,
            beam=_kept(run, tree.prefixes(), [names[row] for names in beams]),
            target=tuple(map(int, semantic_ids.tokens[target])),
            level_offsets=semantic_ids.level_offsets,
        )
        user = sequences.user_ids[targets.users[row]]
        figures[f"Search tree of user {user}; wanted: {titles[target]}"] = figure
    return figures


def search_trees(run: Run, targets: Targets) -> tuple[Candidates, tuple[np.ndarray, ...]]:
    """Searches with their trees for these targets, and the nodes that a beam search of the same budget keeps.

    Returns:
        Candidates, and the names of the nodes in the beam after each step, `[B, M]`.
    """
    config, catalogue = run.reinforced, run.catalogue
    rollout = build_rl.rollout_config(config)
    items = histories(run.splits.sequences, targets, config.data.max_history)
    history = histories_for(run.model, catalogue.tokens, items, catalogue.pieces)
    constraint = ExcludeItems(items) if rollout.exclude_seen else None
    with build.scoring(config):
        found = search(
            rollout.search,
            run.model,
            run.value_head,
            catalogue.index,
            history,
            key=keys.make_key(config.seed, keys.SEARCH_TREES),
            constraint=constraint,
            keep_tree=True,
            **build.distribution(config),
        )
        width = max(1, rollout.search.budget // (catalogue.index.length - 1))
        kept = beam_search(
            run.model,
            catalogue.index,
            history,
            width,
            constraint=constraint,
            keep_beams=True,
            **build.distribution(config),
        )
    return jax.device_get(found), jax.device_get(kept.beams)


def _kept(
    run: Run, prefixes: Sequence[tuple[int, ...]], beams: Sequence[np.ndarray]
) -> set[tuple[int, ...]]:
    """The prefixes of a tree that are in the beam."""
    kept = set()
    for prefix in prefixes[1:]:
        name = int(walk(run.catalogue.index, np.asarray(prefix))[-1])
        if name in set(beams[len(prefix) - 1].tolist()):
            kept.add(prefix)
    return kept
