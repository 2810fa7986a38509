"""Variants and seeds compared: against loops, and what is drawn."""

import itertools

import numpy as np
import pytest

from gr.evaluation import EvaluationError, RunRanks, compare_runs, holm
from gr.evaluation.comparison import survival
from gr.reports.comparison_plots import prefix_survival_plot, seeds_plot, validation_plot
from gr.reports.plots import prefix_weight_plot

USERS, LENGTH, BEAMS = 60, 3, 10


def make_ranks(seed, *, users=USERS, beams=BEAMS, length=LENGTH):
    rng = np.random.default_rng(seed)
    alive = np.cumprod(rng.random((users, length)) < 0.8, axis=1).astype(bool)
    ranks = np.where(alive[:, -1], rng.integers(0, beams, users), -1)
    return RunRanks(np.arange(users), ranks, alive, beams)


RUNS = {
    "CE": {0: make_ranks(0), 1: make_ranks(1), 2: make_ranks(2)},
    "other": {0: make_ranks(3), 2: make_ranks(4)},
    "not yet": {},
}


def slow_metric(ranks, metric):
    """One metric of every user, user by user."""
    name, _, number = metric.replace("/", "@").partition("@")
    values = []
    for rank, alive in zip(ranks.sid_ranks, ranks.prefix_hits, strict=True):
        if name == "prefix_recall":
            values.append(float(alive[int(number) - 1]))
        elif not 0 <= rank < int(number):
            values.append(0.0)
        else:
            values.append(1.0 if name == "hit" else 1 / np.log2(rank + 2))
    return np.array(values)


def test_means_deviations_and_differences_are_those_of_loops():
    compared = compare_runs(RUNS, "CE")
    assert list(compared) == ["CE", "other"]
    metrics = [f"{name}@{k}" for k in (3, 5, 10) for name in ("ndcg", "hit")]
    metrics += [f"prefix_recall/{t}" for t in (1, 2, 3)]
    assert set(compared["CE"].by_seed) == set(metrics)
    for metric in metrics:
        for name, by_seed in RUNS.items():
            values = [slow_metric(ranks, metric).mean() for ranks in by_seed.values()]
            if values:
                assert compared[name].mean(metric) == pytest.approx(np.mean(values))
                assert compared[name].deviation(metric) == pytest.approx(np.std(values, ddof=1))
        # Of the seeds that both have.
        gaps = {
            seed: slow_metric(RUNS["other"][seed], metric) - slow_metric(RUNS["CE"][seed], metric)
            for seed in (0, 2)
        }
        found = compared["other"].differences[metric]
        assert found.by_seed == pytest.approx({seed: gap.mean() for seed, gap in gaps.items()})
        assert found.mean == pytest.approx(np.mean([gap.mean() for gap in gaps.values()]))
        assert found.seeds_ahead == sum(gap.mean() > 0 for gap in gaps.values())
        # The bootstrap's spread is that of the users' averaged differences.
        averaged = (gaps[0] + gaps[2]) / 2
        expected = 1.96 * averaged.std() / USERS**0.5
        assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.15, abs=1e-9)
        assert found.low <= found.mean <= found.high
    assert compared["CE"].differences == {}


def test_p_values_are_adjusted_for_the_variants_that_are_compared():
    runs = {**RUNS, "third": {0: make_ranks(5)}, "same": RUNS["CE"]}
    compared = compare_runs(runs, "CE")
    others = ["other", "third", "same"]
    for metric, alone in compare_runs(RUNS, "CE")["other"].differences.items():
        found = [compared[name].differences[metric] for name in others]
        assert found[0].p == alone.p == alone.p_holm  # A family of one.
        assert (alone.p < 0.05) == (alone.low > 0 or alone.high < 0)
        assert [one.p_holm for one in found] == holm(np.array([one.p for one in found])).tolist()
        assert found[2].p == found[2].p_holm == 1


def test_one_seed_has_no_deviation_and_a_missing_reference_no_differences():
    compared = compare_runs({"a": {0: make_ranks(0)}}, "b")
    assert compared["a"].deviation("ndcg@10") is None and compared["a"].differences == {}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_ranks(1, users=USERS - 1), "other, seed 0 and CE, seed 0 rank different targets"),
        (make_ranks(1, beams=5), "other, seed 0 has 5 beams, CE, seed 0 10"),
        (make_ranks(1, length=2), "other, seed 0 has 2 codes a semantic ID, CE, seed 0 3"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(other, message):
    with pytest.raises(EvaluationError, match=message):
        compare_runs({"CE": {0: make_ranks(0)}, "other": {0: other}}, "CE")


def test_survival_multiplies_up_to_prefix_recall():
    recall = [0.5, 0.2, 0.2, 0.0]
    found = survival(recall)
    assert found == pytest.approx([0.5, 0.4, 1.0, 0.0])
    assert survival([0.0, 0.0]) == [0.0, 0.0]
    assert np.cumprod(found) == pytest.approx(recall)


# Figures.


def test_every_seed_is_a_dot_and_every_baseline_a_line():
    compared = compare_runs(RUNS, "CE")
    (axes,) = seeds_plot(compared, "hit@10", lines={"Markov": 0.25}).axes
    dots = {tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"}
    assert dots == {tuple(variant.by_seed["hit@10"].values()) for variant in compared.values()}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Markov"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["CE", "other"]


def test_prefix_recall_is_drawn_side_by_side_and_against_the_reference():
    compared = compare_runs(RUNS, "CE")
    recall, left, ratio = prefix_survival_plot(compared, beams=BEAMS, reference="CE").axes
    for bars, variant in zip(recall.containers, compared.values(), strict=True):
        expected = [100 * variant.mean(f"prefix_recall/{t}") for t in (1, 2, 3)]
        assert [bar.get_height() for bar in bars] == pytest.approx(expected)
    assert len(left.containers) == len(ratio.containers) == 2
    assert [bar.get_height() for bar in ratio.containers[0]] == pytest.approx([0, 0, 0])
    assert len(prefix_survival_plot({"CE": compared["CE"]}, beams=BEAMS).axes) == 2


def lines_of(seed):
    rng = np.random.default_rng(seed)
    for step in (10, 20, 30):
        values = {
            f"prefix_{depth}/{kind}": float(rng.random())
            for depth, kind in itertools.product((1, 2), ("loss", "weight"))
        }
        yield {"step": step, "split": "train", "values": values}
        yield {"step": step, "split": "validation", "values": {"ndcg@10": float(rng.random())}}


def test_curves_of_weights_and_of_validation():
    lines = {seed: list(lines_of(seed)) for seed in (0, 1)}
    losses, weights = prefix_weight_plot({"APAO": lines[0]}).axes
    for axes, kind in ((losses, "loss"), (weights, "weight")):
        for depth, line in enumerate(axes.lines, start=1):
            expected = [
                x["values"][f"prefix_{depth}/{kind}"] for x in lines[0] if x["split"] == "train"
            ]
            assert list(line.get_ydata()) == pytest.approx(expected)
        assert len(axes.lines) == 2
    lines[1].pop()  # A run that has not come as far.
    (axes,) = validation_plot({"APAO": lines}).axes
    mean = axes.lines[-1]
    assert list(mean.get_xdata()) == [10, 20]
    values = [
        [x["values"]["ndcg@10"] for x in of if x["split"] == "validation"] for of in lines.values()
    ]
    expected = [(values[0][i] + values[1][i]) / 2 for i in range(2)]
    assert list(mean.get_ydata()) == pytest.approx(expected)
