"""The sentence on where targets are lost, and which: by hand."""

import math

from gr.reports.why import why_missed


def classes(**counts):
    """Class -> (targets, hits) as a breakdown."""
    return {
        name: {"targets": targets} | ({"hit@10": hits / targets} if targets else {})
        for name, (targets, hits) in counts.items()
    }


# 100 targets, 20 hits. Of 80 misses, 45 are of the 50 targets two hops away: 56% against 50%.
PATHS = {"one_hop": (45, 15), "two_hops": (50, 5), "no_path": (0, 0), "cold": (5, 0)}
SLICES = {"head": (50, 15), "torso": (25, 3), "tail": (20, 2)}
TWO_HOPS = "those two hops from the history (50% of targets, 56% of misses, Hit@10 0.100)"


def test_the_largest_loss_is_at_a_code_or_in_the_ranking():
    start = "80% of targets are not in the first 10: the largest loss is"
    at_code = why_missed(0.2, {}, [0.9, 0.5, 0.4])
    assert at_code == f"{start} at code 2, where 40% leave the beam."
    in_ranking = why_missed(0.2, {}, [0.9, 0.8, 0.6], beams=20)
    assert in_ranking == f"{start} in the ranking: 40% are in the 20 beams but below rank 10."
    # Fewer beams than ten: nothing is below rank 10, also where hits count more than the beams.
    assert "code 1, where 90%" in why_missed(0.2, {}, [0.1, 0.1])


def test_the_classes_are_those_missed_beyond_their_share():
    found = why_missed(0.2, classes(**PATHS, **SLICES), [0.5, 0.3])
    torso = "torso items (25% of targets, 28% of misses, Hit@10 0.120)"
    assert found.endswith(
        f"where 50% leave the beam; missed most often are {TWO_HOPS} and {torso}."
    )
    only_paths = why_missed(0.2, classes(**PATHS))
    assert (
        only_paths == f"80% of targets are not in the first 10: missed most often are {TWO_HOPS}."
    )


def test_cold_targets_are_named_once():
    paths = {"one_hop": (80, 40), "two_hops": (0, 0), "no_path": (0, 0), "cold": (20, 0)}
    found = why_missed(0.4, classes(**paths, head=(80, 40), torso=(0, 0), tail=(0, 0)))
    cold = "those never taken in training (20% of targets, 33% of misses, Hit@10 0.000)"
    assert found == f"60% of targets are not in the first 10: missed most often are {cold}."


def test_classes_missed_alike_are_not_named():
    alike = classes(one_hop=(50, 10), two_hops=(50, 10), head=(40, 8), tail=(60, 12))
    assert why_missed(0.2, alike) == ""
    assert "missed most often" not in why_missed(0.2, alike, [0.5])


def test_nothing_is_said_where_nothing_was_measured_or_missed():
    assert why_missed(None, classes(**PATHS), [0.5]) == ""
    assert why_missed(math.nan, {}, [0.5]) == ""
    assert why_missed(1.0, classes(**PATHS), [1.0]) == ""
    assert why_missed(0.5, {}, [0.5, math.nan]) == ""
    assert why_missed(0.5, {}) == ""
