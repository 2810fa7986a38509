"""The data structures of all later rooms: users' item sequences, targets and splits."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from gr.errors import GrError

NO_ITEM = -1  # Stands for "no item" among item rows; pads histories, lists and batches.


class DataError(GrError):
    """Raised for data that cannot be used; names the file, line or field and the remedy."""


@dataclasses.dataclass(frozen=True)
class Sequences:
    """All users' interactions, oldest first within a user, as flat arrays.

    User row `u` owns `items[offsets[u]:offsets[u + 1]]`; item row `i` is `item_ids[i]` in the
    source data. Letters: U users, N items, E interactions.
    """

    items: np.ndarray  # [E] int32 item rows.
    offsets: np.ndarray  # [U + 1] int64.
    user_ids: np.ndarray  # [U] str, as in the source.
    item_ids: np.ndarray  # [N] str, as in the source.
    times: np.ndarray | None = (
        None  # [E] float64 seconds or any ordered number, rounded if need be; None where unknown.
    )
    item_fields: Mapping[str, np.ndarray] = dataclasses.field(
        default_factory=dict
    )  # name -> [N] str.
    skipped_rows: int = 0  # Bad rows left out under `skip_bad_rows`.

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """N, including items that nobody interacted with."""
        return len(self.item_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Interactions of each user, [U] int64."""
        return np.diff(self.offsets)

    def of(self, user: int) -> np.ndarray:
        """Item rows of one user row, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def titles(self) -> np.ndarray:
        """A human-readable name for each item on one line, [N] str: its title, else its id.

        Titles are those of `own_titles`.
        """
        titles = self.own_titles()
        if titles is None:
            return self.item_ids
        pairs = zip(titles, self.item_ids, strict=True)
        return np.array([title or item for title, item in pairs], dtype=object)

    def own_titles(self) -> list[str] | None:
        """Each item's title on one line, "" where it has none; None if the data have no titles.

        Titles are the field `title`, else the only one whose name ends so (`Title`, `movie_title`).
        """
        fields = [name for name in self.item_fields if name.lower().endswith("title")]
        if "title" in fields:
            fields = ["title"]
        if len(fields) != 1:
            return None
        return [" ".join(str(title).split()) for title in self.item_fields[fields[0]]]


@dataclasses.dataclass(frozen=True)
class Targets:
    """Interactions to be predicted, each from its user's earlier interactions.

    The history of target `j` is `items[offsets[users[j]]:positions[j]]`; the target is
    `items[positions[j]]`.
    """

    users: np.ndarray  # [n] int32 user rows.
    positions: np.ndarray  # [n] int64 flat positions into `Sequences.items`.

    def __len__(self) -> int:
        return len(self.users)


@dataclasses.dataclass(frozen=True)
class Splits:
    """Which interactions are trained on, validated on and tested on."""

    sequences: Sequences
    train: Targets
    validation: Targets
    test: Targets
    cold: np.ndarray | None = (
        None  # [N] bool: items that training must not see; None: there are none.
    )
