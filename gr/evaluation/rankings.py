"""The rank of a target in a list, by its Semantic ID and by the item itself.

A model ranks beams: `[n, M, C]` item rows, best beam first, where one beam is one Semantic ID (SID)
and its C columns hold the items that share it, padded with -1; a beam without an item is invalid. A
baseline ranks items: `[n, k]` item rows, padded with -1. Both become `Rankings`, so that metrics treat them alike. A
target outside the ranked catalogue is a miss.
"""

import dataclasses

import numpy as np

from gr.data.sequences import NO_ITEM
from gr.errors import GrError

NOT_FOUND = -1  # The rank of a target that its list does not hold.


class EvaluationError(GrError):
    """Raised for an evaluation that is not possible; the message names the field and the remedy."""


@dataclasses.dataclass(frozen=True)
class Rankings:
    """A ranked list for each of n targets, and the target's rank in it (from 0)."""

    targets: np.ndarray  # [n] int32 item rows.
    sid_ranks: np.ndarray  # [n] distinct SIDs above the target's SID, or NOT_FOUND.
    item_ranks: np.ndarray  # [n] items above the target, or NOT_FOUND.
    items: np.ndarray  # [n, depth] int32 best items, padded with NO_ITEM.
    candidates: np.ndarray  # [n] number of valid candidates: beams of a model, items of a baseline.
    duplicates: np.ndarray  # [n] number of candidates that repeat an earlier one in the list.
    seen: np.ndarray | None = None  # [n] bool: is the target in its history? None: unknown.
    # Whether items of a history were kept out of its list; a seen target is then never hit. None: unknown.
    exclude: bool | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def depth(self) -> int:
        """The largest k at which these lists can be evaluated."""
        return self.items.shape[1]


def rankings_of_beams(
    beams: np.ndarray,
    targets: np.ndarray,
    *,
    depth: int = 20,
    seen: np.ndarray | None = None,
    exclude: bool | None = None,
) -> Rankings:
    """Rankings of a model from its beams, best first.

    Args:
        beams: item rows, `[n, M, C]`.
        targets: item rows, `[n]`.
        depth: the largest k at which the rankings can be evaluated.
        seen: whether each target is in its user's history, `[n]` (`Histories.hold`); None: unknown.
        exclude: whether the search kept items of the histories out; None: unknown.

    Raises:
        EvaluationError: if there are fewer beams than `depth`: a Hit@k of a shorter list would be understated.
    """
    beams, targets = _checked(beams, targets, ndim=3, depth=depth)
    if seen is not None and np.shape(seen) != targets.shape:
        raise EvaluationError(
            f"seen {np.shape(seen)}: expected a truth value for each target {targets.shape}."
        )
    if beams.shape[1] < depth:
        raise EvaluationError(
            f"{beams.shape[1]} beams cannot be evaluated at k={depth}: decode with at least "
            f"{depth} beams, or lower k."
        )
    valid = (beams >= 0).any(axis=2)
    # Beams of one SID hold the same items, so any one item of a beam stands for its SID.
    repeated = valid & ~first_occurrences(beams.max(axis=2, initial=NO_ITEM))
    return Rankings(
        targets=targets,
        sid_ranks=sid_ranks(beams, targets),
        item_ranks=item_ranks(beams, targets),
        items=top_items(beams, depth),
        candidates=valid.sum(axis=1),
        duplicates=repeated.sum(axis=1),
        seen=seen,
        exclude=exclude,
    )


def rankings_of_lists(
    items: np.ndarray, targets: np.ndarray, sid_of_item: np.ndarray, *, depth: int = 20
) -> Rankings:
    """Rankings of a baseline from its lists `[n, k]`, targets `[n]` and items' SID numbers `[N]`.

    `k` must be at least `sid_depth(sid_of_item, depth)`, or N, for the SID-level ranks to be exact;
    else `EvaluationError`, as for a list with an item outside the N items.
    """
    items, targets = _checked(items, targets, ndim=2, depth=depth)
    needed = min(sid_depth(sid_of_item, depth), len(sid_of_item))
    if items.shape[1] < needed:
        raise EvaluationError(
            f"lists of {items.shape[1]} items may hold fewer than {depth} distinct SIDs: rank "
            f"{needed} items, the number that sid_depth(sid_of_item, depth) gives."
        )
    listed = items >= 0
    return Rankings(
        targets=targets,
        sid_ranks=sid_ranks_of_lists(items, targets, sid_of_item),
        item_ranks=item_ranks_of_lists(items, targets),
        items=_widened(items, depth)[:, :depth],
        candidates=listed.sum(axis=1),
        duplicates=(listed & ~first_occurrences(items)).sum(axis=1),
    )


def sid_depth(sid_of_item: np.ndarray, depth: int) -> int:
    """Number of items that a list needs to hold at least `depth` distinct SIDs (or every item)."""
    sizes = np.sort(np.unique(sid_of_item, return_counts=True)[1])[::-1]
    return max(depth, int(sizes[:depth].sum()))


def sid_ranks(beams: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Beams with an item above the first that holds the target: `[n, M, C]`, `[n]` -> `[n]`."""
    beams, targets = _checked(beams, targets, ndim=3)
    listed = beams >= 0
    hits = (listed & (beams == targets[:, None, None])).any(axis=2)
    return _ranks(hits, counted=listed.any(axis=2))


def item_ranks(beams: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Items above the target, read beam by beam: `[n, M, C]`, `[n]` -> `[n]`."""
    beams, targets = _checked(beams, targets, ndim=3)
    return item_ranks_of_lists(_flat(beams), targets)


def item_ranks_of_lists(items: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Items above the target, padding not counted: `[n, k]`, `[n]` -> `[n]`."""
    items, targets = _checked(items, targets, ndim=2)
    listed = items >= 0
    return _ranks(listed & (items == targets[:, None]), counted=listed)


def sid_ranks_of_lists(
    items: np.ndarray, targets: np.ndarray, sid_of_item: np.ndarray
) -> np.ndarray:
    """Distinct SIDs above the first item that has the target's SID: `[n, k]`, `[n]` -> `[n]`.

    `sid_of_item [N]` numbers the SIDs, in any order: items have the same number if and only if they
    share a SID. Raises `EvaluationError` for a list with an item outside the N items.
    """
    items, targets = _checked(items, targets, ndim=2)
    sid_of_item, num_items = np.asarray(sid_of_item), len(sid_of_item)
    if items.max(initial=NO_ITEM) >= num_items:
        raise EvaluationError(
            f"a list holds item {items.max()}, and sid_of_item numbers the SIDs of {num_items} items: "
            "rank the items of the catalogue that sid_of_item is of."
        )
    listed, known = items >= 0, inside_catalogue(targets, num_items)
    # A last entry, different from all SIDs, stands for items outside the catalogue.
    sids = np.append(np.unique(sid_of_item, return_inverse=True)[1].ravel(), NO_ITEM)
    of_lists = sids[np.where(listed, items, num_items)]
    hits = listed & (of_lists == sids[np.where(known, targets, num_items)][:, None])
    return _ranks(hits, counted=listed & first_occurrences(of_lists))


def inside_catalogue(targets: np.ndarray, num_items: int) -> np.ndarray:
    """Which targets are one of N items, `[n]` -> bool `[n]`."""
    return (targets >= 0) & (targets < num_items)


def top_items(beams: np.ndarray, k: int) -> np.ndarray:
    """The first k items, read beam by beam without padding: `[n, M, C]` -> `[n, k]`."""
    return first_listed(_flat(beams), k)


def first_listed(items: np.ndarray, k: int) -> np.ndarray:
    """The first k entries of each row `[n, W]` that are not padding -> `[n, k]`, padded after."""
    order = np.argsort(items < 0, axis=1, kind="stable")
    return _widened(np.take_along_axis(items, order, axis=1), k)[:, :k]


def first_occurrences(values: np.ndarray) -> np.ndarray:
    """True where a value occurs for the first time in its row: `[n, W]` -> bool `[n, W]`."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    new = np.ones(values.shape, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order, new, axis=1)
    return first


def _flat(beams: np.ndarray) -> np.ndarray:
    """Items beam by beam: `[n, M, C]` -> `[n, M * C]`."""
    return beams.reshape(len(beams), beams.shape[1] * beams.shape[2])  # -1 fails where n is 0.


def _ranks(hits: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Counted places above the first hit, `[n, W]` -> `[n]` int64; NOT_FOUND without a hit."""
    if hits.shape[1] == 0:
        return np.full(len(hits), NOT_FOUND, dtype=np.int64)
    first = hits.argmax(axis=1)[:, None]
    above = np.take_along_axis(np.cumsum(counted, axis=1), first, axis=1)[:, 0] - 1
    return np.where(hits.any(axis=1), above, NOT_FOUND)


def _widened(items: np.ndarray, k: int) -> np.ndarray:
    """Pads rows `[n, W]` with NO_ITEM up to at least k columns."""
    missing = max(0, k - items.shape[1])
    return np.pad(items, ((0, 0), (0, missing)), constant_values=NO_ITEM)


def _checked(
    items: np.ndarray, targets: np.ndarray, *, ndim: int, depth: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Both as signed integers; `EvaluationError` for other types, and for shapes that do not match."""
    items, targets = np.asarray(items), np.asarray(targets)
    if items.ndim != ndim or targets.shape != (len(items),):
        raise EvaluationError(
            f"ranked items {items.shape} and targets {targets.shape} do not fit: expected an array "
            f"of {ndim} dimensions and one target for each of its rows."
        )
    for name, values in (("ranked items", items), ("targets", targets)):
        if values.size and not np.issubdtype(values.dtype, np.integer):
            raise EvaluationError(
                f"{name} are of type {values.dtype}: expected item rows, which are whole numbers."
            )
    if depth < 1:
        raise EvaluationError(f"depth={depth} ranks nothing: expected 1 or more.")
    items, targets = (v if v.dtype.kind == "i" else v.astype(np.int64) for v in (items, targets))
    return items, targets
