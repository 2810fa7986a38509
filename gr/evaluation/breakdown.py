"""Which targets are hit: by how their item is connected with the history in training, and by its popularity.

Two items are linked if a user took them within `window` places of each other in training, in either order: the pairs
that `gr.memory.fit_memory` counts. A target is

* `one_hop` if it is linked with one of the history's last `recent` items: a memory of transitions can list it;
* `two_hops` if only an item in between links them;
* `no_path` if neither; its item occurs in training;
* `cold` if its item does not occur in training.

Apart from that it is `head`, `torso` or `tail`, as in `gr.evaluation.popularity_slices`; cold targets are in none.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse

from gr.data.examples import Histories
from gr.data.sequences import Splits, Targets
from gr.evaluation.metrics import hit, ndcg
from gr.evaluation.popularity import SLICE_NAMES, popularity_slices, training_counts
from gr.evaluation.rankings import EvaluationError, Rankings
from gr.memory.counts import recent_weights, windowed_counts

PATHS = ("one_hop", "two_hops", "no_path", "cold")
TARGET_CLASSES = (*PATHS, *SLICE_NAMES)
_CHUNK = 2**24  # Most entries of the items that chunks of users reach in one hop.


@dataclasses.dataclass(frozen=True)
class TargetClasses:
    """The classes of n targets, and what they mean."""

    members: Mapping[str, np.ndarray]  # Class -> bool [n]: is the target in it?
    window: int
    recent: int
    counts: Mapping[
        str, tuple[int, int]
    ]  # Slice -> least and most training interactions of its items.

    def definitions(self) -> dict[str, str]:
        """Class -> what it is, in words."""
        last = f"one of the history's last {self.recent} items"
        paths = {
            "one_hop": f"taken within {self.window} places of {last} in training",
            "two_hops": "not that, but of an item that is",
            "no_path": "neither, but taken in training",
            "cold": "never taken in training",
        }
        slices = {
            name: f"{low:,} to {high:,} training interactions"
            for name, (low, high) in self.counts.items()
        }
        return paths | slices


def target_classes(
    splits: Splits, targets: Targets, *, window: int = 10, recent: int = 10
) -> TargetClasses:
    """Sorts targets into the classes of this module.

    Args:
        splits: the data; links are those of training interactions.
        targets: of one split.
        window: the largest distance of two linked items of a user.
        recent: how many of a history's last items count.

    Raises:
        EvaluationError: if `window` or `recent` is below 1.
    """
    if min(window, recent) < 1:
        raise EvaluationError(f"window={window}, recent={recent}: expected 1 or more of both.")
    num_items = splits.sequences.num_items
    counts = training_counts(splits)
    histories = Histories.of(splits.sequences, targets)
    wanted = splits.sequences.items[targets.positions]
    links = windowed_counts(splits, window, 1.0)
    links = (
        ((links + links.T) > 0).astype(np.float32).tocsr()
    )  # [N, N], 1 where two items are linked.
    one = np.zeros(len(targets), dtype=bool)
    two = np.zeros(len(targets), dtype=bool)
    widest = int(np.diff(links.indptr).max(initial=1))
    step = max(1, _CHUNK // max(1, min(recent * widest, num_items)))
    for start in range(0, len(targets), step):
        rows = slice(start, start + step)
        last = recent_weights(histories[rows], num_items, 1.0, recent)
        near = links[wanted[rows]]  # What is linked with each target; links have no direction.
        one[rows] = _meet(last, near)
        two[rows] = _meet(last @ links, near)
    cold = counts[wanted] == 0
    slices = np.where(counts > 0, popularity_slices(counts), -1)
    members = {"one_hop": one, "two_hops": two & ~one, "no_path": ~(one | two | cold), "cold": cold}
    members |= {name: slices[wanted] == place for place, name in enumerate(SLICE_NAMES)}
    bounds = {
        name: (int(counts[slices == place].min()), int(counts[slices == place].max()))
        for place, name in enumerate(SLICE_NAMES)
        if (slices == place).any()
    }
    return TargetClasses(members, window, recent, bounds)


def breakdown_by_class(
    rankings: Rankings, classes: TargetClasses, *, k: int = 10
) -> dict[str, dict]:
    """Class -> `targets`, `share` of all targets, and `hit@k` and `ndcg@k` over them (absent without targets).

    Raises:
        EvaluationError: for other targets than those of the classes, or a k beyond the depth of the rankings.
    """
    sizes = {len(of_class) for of_class in classes.members.values()}
    if sizes != {len(rankings)} or not 1 <= k <= rankings.depth:
        raise EvaluationError(
            f"{len(rankings)} rankings of depth {rankings.depth}, classes of {sizes} targets, k={k}: expected the same "
            "targets, and k from 1 to the depth."
        )
    values: Sequence[tuple[str, np.ndarray]] = (
        (f"hit@{k}", hit(rankings.sid_ranks, k)),
        (f"ndcg@{k}", ndcg(rankings.sid_ranks, k)),
    )
    result = {}
    for name, inside in classes.members.items():
        result[name] = {"targets": int(inside.sum()), "share": float(inside.mean())}
        if inside.any():
            result[name] |= {key: float(of_user[inside].mean()) for key, of_user in values}
    return result


def _meet(one: sparse.csr_array, other: sparse.csr_array) -> np.ndarray:
    """Whether rows of two matrices `[n, N]` have an entry in common, bool `[n]`."""
    return np.asarray((one * other).sum(axis=1)).ravel() > 0
