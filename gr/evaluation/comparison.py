"""Compares variants of training, each run with several seeds, on the same users.

Two sources of variance are reported separately. A paired bootstrap over users, of differences averaged over the seeds,
covers the choice of users with these models fixed. The standard deviation over seeds, and the number of seeds in which
a variant is ahead of the reference, cover the training.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gr.evaluation.bootstrap import bootstrap_tests, holm
from gr.evaluation.metrics import hit, ndcg
from gr.evaluation.rankings import EvaluationError

KS = (3, 5, 10, 20)
STOP_FACTOR = 50  # In median gaps: validation lengthens a gap, but never by this factor.


@dataclasses.dataclass(frozen=True)
class RunRanks:
    """The ranks of one run's targets, for n users."""

    targets: np.ndarray  # [n] item rows.
    sid_ranks: np.ndarray  # [n] from 0, or NOT_FOUND.
    prefix_hits: np.ndarray  # [n, L] bool: was the target's prefix in the beam after step t?
    num_beams: int

    def per_user(self) -> dict[str, np.ndarray]:
        """`ndcg@k`, `hit@k` and `prefix_recall/t` of every user, `[n]` each; only for k up to the number of beams."""
        values = {}
        for k in KS:
            if k <= self.num_beams:
                values[f"ndcg@{k}"] = ndcg(self.sid_ranks, k)
                values[f"hit@{k}"] = hit(self.sid_ranks, k)
        for depth in range(self.prefix_hits.shape[1]):
            values[f"prefix_recall/{depth + 1}"] = self.prefix_hits[:, depth].astype(float)
        return values


@dataclasses.dataclass(frozen=True)
class Difference:
    """Variant minus reference in one metric, over the seeds that both have."""

    mean: float
    low: float  # 95 % interval, users resampled.
    high: float
    by_seed: dict[int, float]
    p: float = 1.0  # Two-sided, of the same resamples.
    p_holm: float = 1.0  # Adjusted for the number of variants that are compared with the reference.

    @property
    def seeds_ahead(self) -> int:
        """Number of seeds in which the variant is above the reference."""
        return sum(value > 0 for value in self.by_seed.values())


@dataclasses.dataclass(frozen=True)
class Compared:
    """One variant: each metric by seed, and its differences to the reference (none for the reference itself)."""

    by_seed: dict[str, dict[int, float]]  # Metric -> seed -> mean over users.
    differences: dict[str, Difference]

    def mean(self, metric: str) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.by_seed[metric].values())))

    def deviation(self, metric: str) -> float | None:
        """Standard deviation over seeds (n - 1); None for a single seed."""
        values = list(self.by_seed[metric].values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def compare_runs(
    runs: Mapping[str, Mapping[int, RunRanks]],
    reference: str,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Compared]:
    """Compares variants with a reference variant.

    Args:
        runs: variant -> seed -> ranks; variants may lack seeds.
        reference: the variant that the others are compared with; without runs of it there are no differences.
        num_resamples: resamples of users.
        level: confidence level of the intervals.
        seed: seed of the resampling.

    Raises:
        EvaluationError: if two runs differ in their targets, or in their number of codes or beams.
    """
    check_comparable(runs)
    per_user = {
        name: {number: ranks.per_user() for number, ranks in by_seed.items()}
        for name, by_seed in runs.items()
        if by_seed
    }
    compared = {}
    for name, of_variant in per_user.items():
        metrics = next(iter(of_variant.values()))
        means = {
            metric: {number: float(values[metric].mean()) for number, values in of_variant.items()}
            for metric in metrics
        }
        of_reference = per_user.get(reference, {})
        shared = sorted(of_variant.keys() & of_reference.keys())
        differences = {}
        if name != reference and shared:
            # [seeds, n, metrics].
            gaps = np.stack(
                [
                    np.stack([of_variant[s][m] - of_reference[s][m] for m in metrics], axis=1)
                    for s in shared
                ]
            )
            averaged = gaps.mean(axis=0)
            low, high, p = bootstrap_tests(
                averaged, num_resamples=num_resamples, level=level, seed=seed
            )
            differences = {
                metric: Difference(
                    float(averaged[:, i].mean()),
                    float(low[i]),
                    float(high[i]),
                    {s: float(gaps[j, :, i].mean()) for j, s in enumerate(shared)},
                    float(p[i]),
                )
                for i, metric in enumerate(metrics)
            }
        compared[name] = Compared(means, differences)
    return _adjusted(compared)


def _adjusted(compared: Mapping[str, Compared]) -> dict[str, Compared]:
    """With Holm's p-values; a family is one metric of all variants that have a difference."""
    result = dict(compared)
    names = [name for name, of_variant in compared.items() if of_variant.differences]
    if names:
        metrics = list(compared[names[0]].differences)
        p = holm(np.array([[compared[n].differences[m].p for m in metrics] for n in names]))
        for name, of_variant in zip(names, p.tolist(), strict=True):
            differences = compared[name].differences
            result[name] = dataclasses.replace(
                compared[name],
                differences={
                    metric: dataclasses.replace(differences[metric], p_holm=value)
                    for metric, value in zip(metrics, of_variant, strict=True)
                },
            )
    return result


def check_comparable(runs: Mapping[str, Mapping[int, RunRanks]]) -> None:
    """Raises `EvaluationError` unless all runs rank the same targets, with the same number of codes and of beams."""
    found = [(f"{name}, seed {s}", ranks) for name, by in runs.items() for s, ranks in by.items()]
    for label, ranks in found[1:]:
        first_label, first = found[0]
        if not np.array_equal(ranks.targets, first.targets):
            raise EvaluationError(
                f"{label} and {first_label} rank different targets: compare runs on the same data and split"
            )
        for what, one, other in (
            ("codes a semantic ID", ranks.prefix_hits.shape[1], first.prefix_hits.shape[1]),
            ("beams", ranks.num_beams, first.num_beams),
        ):
            if one != other:
                raise EvaluationError(
                    f"{label} has {one} {what}, {first_label} {other}: compare runs with the same number"
                )


def survival(prefix_recall: Sequence[float]) -> list[float]:
    """For each code, share of users keeping the target's prefix in the beam, of those that had it before, `[L]`."""
    before = [1.0, *prefix_recall[:-1]]
    return [now / past if past else 0.0 for now, past in zip(prefix_recall, before, strict=True)]


def training_seconds(lines: Sequence[Mapping]) -> float:
    """Seconds between the first and the last line of a run's metrics, without the time that the run was stopped.

    A run that was stopped and resumed has a gap between two lines. A gap longer than a minute and than `STOP_FACTOR`
    median gaps counts as one median gap. Validation during training is part of the time.
    """
    gaps = np.diff([line["wall_time"] for line in lines])
    if not len(gaps):
        return 0.0
    usual = float(np.median(gaps))
    return float(np.where(gaps > max(60.0, STOP_FACTOR * usual), usual, gaps).sum())
