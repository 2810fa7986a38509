"""Why targets are missed, in one sentence: at which code the search loses them, and which of them it misses."""

from collections.abc import Mapping, Sequence

import numpy as np

from gr.evaluation.breakdown import PATHS
from gr.evaluation.popularity import SLICE_NAMES
from gr.reports.numbers import is_measured, number, percent

K = 10
_LEAST = 0.02  # Share of the misses that a class must have beyond its share of the targets.
_CLASSES = {
    "one_hop": "those one hop from the history",
    "two_hops": "those two hops from the history",
    "no_path": "those without a path from the history",
    "cold": "those never taken in training",
    **{name: f"{name} items" for name in SLICE_NAMES},
}


def why_missed(
    hit: float | None,
    breakdown: Mapping[str, Mapping],
    recall: Sequence[float] = (),
    *,
    beams: int | None = None,
) -> str:
    """Says where most targets are lost and which of them are missed more often than the others.

    A target is lost at the code at which its prefix leaves the beam, or in the ranking: its semantic ID is in the beam,
    and below rank 10.

    Args:
        hit: Hit@10.
        breakdown: class of targets -> `targets`, `hit@10`, as `breakdown_by_class` returns it.
        recall: share of targets whose prefix is in the beam after each code, `[L]`.
        beams: M, of the recall.

    Returns:
        The sentence; empty if neither recall nor breakdown says anything.
    """
    if not is_measured(hit) or hit >= 1:
        return ""
    parts = [text for text in (_where(hit, recall, beams), _which(breakdown)) if text]
    if not parts:
        return ""
    return f"{percent(1 - hit, 0)} of targets are not in the first {K}: {'; '.join(parts)}."


def _where(hit: float, recall: Sequence[float], beams: int | None) -> str:
    """The largest loss of targets."""
    if not len(recall) or not np.isfinite(recall).all():
        return ""
    lost = -np.diff([1.0, *recall, min(hit, recall[-1])])  # At each code, then in the ranking.
    place, beam = int(lost.argmax()), "beam" if beams is None else f"{beams} beams"
    if place < len(recall):
        return f"the largest loss is at code {place + 1}, where {percent(lost[place], 0)} leave the {beam}"
    return f"the largest loss is in the ranking: {percent(lost[place], 0)} are in the {beam} but below rank {K}"


def _which(breakdown: Mapping[str, Mapping]) -> str:
    """Of the classes by path, and of those by popularity, the one with most misses beyond its share."""
    found = []
    for classes in (PATHS, (*SLICE_NAMES, "cold")):
        counts = {name: breakdown.get(name, {}).get("targets", 0) for name in classes}
        missed = {
            name: count * (1 - breakdown[name][f"hit@{K}"])
            for name, count in counts.items()
            if count and is_measured(breakdown[name].get(f"hit@{K}"))
        }
        if not missed or not sum(missed.values()):
            continue
        share = {name: counts[name] / sum(counts[of] for of in missed) for name in missed}
        of_misses = {name: missed[name] / sum(missed.values()) for name in missed}
        name = max(missed, key=lambda name: of_misses[name] - share[name])
        if of_misses[name] - share[name] >= _LEAST:
            found.append(
                f"{_CLASSES[name]} ({percent(share[name], 0)} of targets, {percent(of_misses[name], 0)} of misses, "
                f"Hit@{K} {number(breakdown[name][f'hit@{K}'], 3)})"
            )
    found = list(dict.fromkeys(found))  # Cold targets may be the answer twice.
    return f"missed most often are {' and '.join(found)}" if found else ""
