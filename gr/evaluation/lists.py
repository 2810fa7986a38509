"""Ranked lists of any origin, given by ids -> `Rankings` of targets, and what is special about the lists.

A hit is the target item itself. An item that the catalogue lacks, or that a list names twice, keeps its place. A user
without a list, and a target below the end of a short list, is a miss at every k. With seen items removed, what is in
the user's history is left out of the list, and the items below move up.
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gr.data.examples import Histories
from gr.data.ranked_lists import RankedLists
from gr.data.sequences import NO_ITEM, DataError, Sequences, Targets
from gr.evaluation.ranker import slices_of
from gr.evaluation.rankings import Rankings, first_listed, first_occurrences, item_ranks_of_lists

_SHOWN = 5  # Ids that are named.


@dataclasses.dataclass(frozen=True, eq=False)
class MatchedLists:
    """Ranked lists beside a catalogue of N items and U users.

    An item that the catalogue lacks has a row of its own from N on, so that it takes a place but is never a target.
    """

    lists: RankedLists
    num_items: int  # N.
    items: np.ndarray  # [E] int64 item rows, below N + K.
    list_of_user: np.ndarray  # [U] int64 list of each user row, or -1.
    unknown_users: np.ndarray  # [u] str.
    unknown_items: np.ndarray  # [k] str.

    def padded(self, rows: np.ndarray) -> np.ndarray:
        """The items of some lists, `[b, W]`, padded with NO_ITEM; row -1 is an empty list."""
        offsets = np.append(
            self.lists.offsets, self.lists.offsets[-1]
        )  # Of list -1, as of the last.
        starts, lengths = offsets[rows], np.where(rows < 0, 0, offsets[rows + 1] - offsets[rows])
        place = np.arange(lengths.max(initial=0))
        inside = place < lengths[:, None]
        taken = (
            self.items.take(starts[:, None] + place, mode="clip") if len(self.items) else NO_ITEM
        )
        return np.where(inside, taken, NO_ITEM)


def match_lists(
    lists: RankedLists, sequences: Sequences, source: object = "the lists"
) -> MatchedLists:
    """Finds the lists' users and items in the data.

    Args:
        lists: the lists.
        sequences: the data.
        source: of the lists, for messages.

    Raises:
        DataError: if none of the users, or none of the items, are in the data.
    """
    users = places_of_ids(lists.users, sequences.user_ids)
    items = places_of_ids(lists.item_ids, sequences.item_ids)
    for what, found, ids, known in (
        ("users", users, lists.users, sequences.user_ids),
        ("items", items, lists.item_ids, sequences.item_ids),
    ):
        if not (found >= 0).any():
            raise unknown_ids(source, what, ids, known)
    list_of_user = np.full(sequences.num_users, -1)
    list_of_user[users[users >= 0]] = np.flatnonzero(users >= 0)
    rows = np.where(items >= 0, items, sequences.num_items + np.arange(len(items)))
    return MatchedLists(
        lists=lists,
        num_items=sequences.num_items,
        items=rows[lists.items],
        list_of_user=list_of_user,
        unknown_users=lists.users[users < 0],
        unknown_items=lists.item_ids[items < 0],
    )


def rankings_of_matched(
    matched: MatchedLists,
    sequences: Sequences,
    targets: Targets,
    *,
    exclude: bool,
    depth: int = 20,
) -> Rankings:
    """Rankings of n targets by the list of each one's user; both ranks are those of the item.

    Args:
        matched: the lists.
        sequences: the data.
        targets: the targets; several of one user are looked up in the same list.
        exclude: whether items of a target's history are left out of its list.
        depth: the largest k at which the rankings can be evaluated.
    """
    histories = Histories.of(sequences, targets)
    wanted = sequences.items[targets.positions].astype(np.int64)
    parts = []
    for rows, items in _chunks(matched, targets, histories):
        if exclude:
            items = np.where(_in_history(items, histories[rows]), NO_ITEM, items)
        items = first_listed(items, max(depth, items.shape[1]))
        listed, top = items >= 0, items[:, :depth]
        parts.append(
            (
                item_ranks_of_lists(items, wanted[rows]),
                np.where(top < matched.num_items, top, NO_ITEM).astype(np.int32),
                listed.sum(axis=1),
                (listed & ~first_occurrences(items)).sum(axis=1),
            )
        )
    ranks, items, candidates, duplicates = (np.concatenate(of) for of in zip(*parts, strict=True))
    return Rankings(
        targets=sequences.items[targets.positions],
        sid_ranks=ranks,
        item_ranks=ranks,
        items=items,
        candidates=candidates,
        duplicates=duplicates,
        seen=histories.hold(wanted),
        exclude=exclude,
    )


def list_facts(
    matched: MatchedLists, sequences: Sequences, targets: Targets, *, depth: int = 20
) -> dict[str, Any]:
    """What is special about lists, counted over users with a target, as JSON values.

    Returns:
        `lists`, `rows`: of the file; `skipped_rows`: bad ones left out; `longest`: items of the longest list;
        `unknown_users`, `unknown_items`: `[number, some of their ids]`; `users`: with a target; `without_list`: those
        of them without a list; `without_target`: lists of users without a target; `with_seen`: users whose list
        names items of their history; `tied`: lists with equal scores; `repeating`: lists that name an item twice;
        `short`: users whose list has fewer than `depth` items, seen ones not counted.
    """
    lists, histories = matched.lists, Histories.of(sequences, targets)
    users = np.unique(targets.users)
    used = matched.list_of_user[users]
    with_seen, short, repeating = set(), set(), set()
    for rows, items in _chunks(matched, targets, histories):
        seen, listed = _in_history(items, histories[rows]), items >= 0
        of_users, there = targets.users[rows], listed.any(axis=1)
        with_seen |= set(of_users[seen.any(axis=1)].tolist())
        short |= set(of_users[there & ((listed & ~seen).sum(axis=1) < depth)].tolist())
        repeating |= set(of_users[(listed & ~first_occurrences(items)).any(axis=1)].tolist())
    return {
        "lists": len(lists),
        "rows": len(lists.items),
        "skipped_rows": lists.skipped_rows,
        "longest": int(lists.lengths.max(initial=0)),
        "unknown_users": [len(matched.unknown_users), matched.unknown_users[:_SHOWN].tolist()],
        "unknown_items": [len(matched.unknown_items), matched.unknown_items[:_SHOWN].tolist()],
        "users": len(users),
        "without_list": int((used < 0).sum()),
        "without_target": int((matched.list_of_user >= 0).sum() - (used >= 0).sum()),
        "with_seen": len(with_seen),
        "tied": int(lists.tied[used[used >= 0]].sum()) if lists.tied is not None else 0,
        "repeating": len(repeating),
        "short": len(short),
    }


def list_notes(name: str, facts: dict[str, Any], *, depth: int = 20) -> list[str]:
    """The facts of `list_facts` that a reader of the table must know, in sentences."""
    notes = []
    if facts["skipped_rows"]:
        notes.append(f"{facts['skipped_rows']:,} bad rows were left out.")
    for what, does in (("users", "their lists are not used"), ("items", "they keep their places")):
        count, ids = facts[f"unknown_{what}"]
        if count:
            notes.append(f"{count:,} {what} are not in the data ({named(ids, count)}): {does}.")
    if facts["without_list"]:
        notes.append(
            f"Warning: {facts['without_list']:,} of {facts['users']:,} users with a target have no list: misses."
        )
    if facts["without_target"]:
        notes.append(f"{facts['without_target']:,} lists are of users without a target: not used.")
    if facts["longest"] < depth:
        notes.append(
            f"No list has more than {facts['longest']} items: what is below is a miss, at every k beyond."
        )
    elif facts["short"]:
        notes.append(
            f"{facts['short']:,} lists have fewer than {depth} items that the user had not seen: below is a miss."
        )
    if facts["with_seen"]:
        notes.append(
            f"{facts['with_seen']:,} lists name items that the user had seen: where seen items are removed, these are "
            "left out and the items below move up."
        )
    else:
        notes.append(
            "No list names an item that the user had seen: where all items are allowed, the same lists stand beside "
            "rankers that may name them."
        )
    if facts["tied"]:
        notes.append(f"{facts['tied']:,} lists have equal scores: ordered by item id, from Z to A.")
    if facts["repeating"]:
        notes.append(f"{facts['repeating']:,} lists name an item twice: each place counts.")
    return [
        f"{'Warning: ' if 'Warning' in note else ''}{name}: {note.removeprefix('Warning: ')}"
        for note in notes
    ]


def places_of_ids(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each id among the known ones, `[n]` int64, or -1."""
    found = pc.index_in(pa.array(ids, pa.string()), value_set=pa.array(known, pa.string()))
    return found.fill_null(-1).to_numpy().astype(np.int64)


def unknown_ids(source: object, what: str, ids: np.ndarray, known: np.ndarray) -> DataError:
    """The error for a file none of whose users or items are in the data."""
    return DataError(
        f"{source}: none of its {len(ids):,} {what} are in the data. Its ids look like {named(ids)}, those of the data "
        f"like {named(known)}; write the data's ids"
    )


def named(ids: Any, count: int | None = None) -> str:
    """Some ids, for messages."""
    shown = ", ".join(str(one) for one in ids[:_SHOWN])
    return f"{shown}, ..." if (len(ids) if count is None else count) > _SHOWN else shown


def _chunks(matched: MatchedLists, targets: Targets, histories: Histories) -> Any:
    """Slices of the targets, and their padded lists `[b, W]`."""
    numbers = matched.list_of_user[targets.users]
    for rows in slices_of(matched.lists.lengths.max(initial=1) + histories.lengths):
        yield rows, matched.padded(numbers[rows])


def _in_history(items: np.ndarray, histories: Histories) -> np.ndarray:
    """Which items of `[b, W]` are in the history of their row."""
    lengths = histories.lengths
    first = np.cumsum(lengths) - lengths
    places = np.arange(lengths.sum()) + np.repeat(histories.starts - first, lengths)
    # Row and item as one number.
    base = np.int64(max(items.max(initial=0), histories.items.max(initial=0)) + 1)
    keys = np.repeat(np.arange(len(items)), lengths) * base + histories.items[places]
    found = np.isin(np.arange(len(items))[:, None] * base + items, keys)
    return found & (items >= 0)
