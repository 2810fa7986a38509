"""The tree of one user's value-guided search: as arrays, and which of its prefixes stand where in a figure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gr.decoding import SearchTree

Prefix = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TreeOfUser:
    """The n prefixes that the search of one user evaluated, a parent before its children; number 0 is the empty one."""

    parents: np.ndarray  # [n] int32; 0 for the root.
    tokens: np.ndarray  # [n] int32: last token; 0 for the root.
    depths: np.ndarray  # [n] int32.
    log_probs: np.ndarray  # [n] float32.
    values: np.ndarray  # [n] float32: V; 0 at depth L - 1, where nothing is decided by it.
    entropies: np.ndarray  # [n] float32.
    visits: np.ndarray  # [n] int32.

    def __len__(self) -> int:
        return len(self.depths)

    def prefixes(self) -> list[Prefix]:
        """The tokens of every prefix."""
        found: list[Prefix] = [()]
        for parent, token in zip(self.parents[1:], self.tokens[1:], strict=True):
            found.append((*found[parent], int(token)))
        return found


@dataclasses.dataclass(frozen=True)
class TreeCandidate:
    """A complete semantic ID, as it is written beside the longest of its prefixes that was evaluated."""

    tokens: Prefix  # All L of them.
    title: str


@dataclasses.dataclass(frozen=True)
class PlacedCandidate:
    """A candidate in a figure."""

    candidate: TreeCandidate
    rank: int  # From 1.
    prefix: int  # Number of the longest of its prefixes that was evaluated.
    row: int


@dataclasses.dataclass(frozen=True)
class TreeLayout:
    """Which prefixes and candidates of a tree are shown, and in which row, counted from above."""

    rows: dict[int, float]  # By the prefix's number; a parent stands amid its children.
    candidates: list[PlacedCandidate]
    num_rows: int


def tree_of_user(tree: SearchTree, user: int) -> TreeOfUser:
    """What one user of a batch has in the tree."""
    exist = np.asarray(tree.exist[user])
    names = [field.name for field in dataclasses.fields(TreeOfUser)]
    return TreeOfUser(**{name: np.asarray(getattr(tree, name)[user])[exist] for name in names})


def on_path(prefix: Prefix, target: Prefix) -> bool:
    """Whether a prefix is one of the target; no target has none."""
    return bool(target) and prefix == target[: len(prefix)]


def lay_out(
    tree: TreeOfUser,
    candidates: Sequence[TreeCandidate],
    *,
    target: Prefix = (),
    max_prefixes: int,
    max_candidates: int,
) -> TreeLayout:
    """Chooses what is shown and places it; see `search_tree_plot`."""
    prefixes = tree.prefixes()
    shown = _most_visited(tree, prefixes, candidates, target, max_prefixes)
    number = {prefix: n for n, prefix in enumerate(prefixes)}

    def known_by(candidate: TreeCandidate) -> int:
        lengths = reversed(range(len(candidate.tokens)))
        return next(number[candidate.tokens[:i]] for i in lengths if candidate.tokens[:i] in number)

    found = [(rank, c) for rank, c in enumerate(candidates, start=1) if known_by(c) in shown]
    late = [pair for pair in found[max_candidates:] if pair[1].tokens == target]
    children, completions = {n: [] for n in shown}, {n: [] for n in shown}
    for n in shown[1:]:
        children[int(tree.parents[n])].append(n)
    for rank, candidate in found[:max_candidates] + late:
        completions[known_by(candidate)].append((rank, candidate))

    rows: dict[int, float] = {}
    placed: list[PlacedCandidate] = []
    num_rows = 0

    def place(n: int) -> None:
        nonlocal num_rows
        below = []
        for child in sorted(children[n], key=lambda child: -tree.log_probs[child]):
            place(child)
            below.append(rows[child])
        for rank, candidate in completions[n]:
            placed.append(PlacedCandidate(candidate, rank, n, num_rows))
            below.append(num_rows)
            num_rows += 1
        if not below:
            below.append(num_rows)
            num_rows += 1
        rows[n] = (below[0] + below[-1]) / 2

    place(0)
    return TreeLayout(rows, placed, num_rows)


def _most_visited(
    tree: TreeOfUser,
    prefixes: Sequence[Prefix],
    candidates: Sequence[TreeCandidate],
    target: Prefix,
    count: int,
) -> list[int]:
    """Numbers of at most `count` prefixes, but of all of the target; their ancestors are among them."""
    ranks: dict[Prefix, int] = {}  # Of the best candidate below.
    for rank, candidate in enumerate(candidates):
        for depth in range(len(candidate.tokens)):
            ranks.setdefault(candidate.tokens[:depth], rank)

    def order(n: int) -> tuple:
        return -tree.visits[n], ranks.get(prefixes[n], math.inf), -tree.log_probs[n]

    shown = {0} | {n for n, prefix in enumerate(prefixes) if on_path(prefix, target)}
    for n in sorted(range(len(tree)), key=order):
        missing = []
        while n not in shown:
            missing.append(n)
            n = int(tree.parents[n])
        if len(shown) + len(missing) <= count:
            shown.update(missing)
    return sorted(shown)
