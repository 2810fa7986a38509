"""From interactions in any order to users' sequences: filters, numbering, sorting."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gr.data.sequences import DataError, Sequences
from gr.data.text import without_markup
from gr.data.times import seconds_of

_MAX_ID_CHARACTERS = 2**30  # 4 GiB.


def sequences_from_table(
    table: pa.Table,
    *,
    source: object,
    items_table: pa.Table | None = None,
    k_core: int = 0,
    min_rating: float | None = None,
    drop_duplicates: bool = False,
    skipped_rows: int = 0,
) -> Sequences:
    """Builds sequences from a table with one row per interaction.

    Filters come first: ratings below `min_rating`, then duplicates, then the k-core. Without `drop_duplicates` a
    repeated interaction is kept as often as it occurs. Users and items that remain are numbered in the order in which
    the source first names them. A user's interactions are sorted by time; those of equal time (or all, without times)
    keep the order of the source.

    Args:
        table: columns `user` and `item` (strings), optionally `rating` (float64) and `time` (numbers,
            or timestamps, which become seconds).
        source: the file, for messages.
        items_table: the items' ids, then any text columns, which become `item_fields`; of several rows for one item the
            first counts, and missing items get empty text.
        k_core: keep only users and items with at least so many interactions; 0 keeps all.
        min_rating: keep only interactions rated at least so high.
        drop_duplicates: of interactions with the same user, item and, where there are times, time
            keep the first.
        skipped_rows: number of bad rows already skipped, for the record.

    Raises:
        DataError: a filter that cannot be applied, or that leaves nothing.
    """
    if min_rating is not None:
        if "rating" not in table.column_names:
            raise DataError(f"{source}: min_rating needs ratings, and there are none; leave it out")
        table = table.filter(pc.greater_equal(table["rating"], min_rating))
    users, user_ids = numbered(table["user"], source)
    items, item_ids = numbered(table["item"], source)
    # Sorting by `keys` is exact where `times`, being float64, may have been rounded.
    keys, times = seconds_of(table["time"]) if "time" in table.column_names else (None, None)
    if drop_duplicates:
        kept = _first_of_equals(users, items, *(() if keys is None else (keys,)))
        users, items = users[kept], items[kept]
        keys, times = (None, None) if keys is None else (keys[kept], times[kept])
    if k_core > 0:
        kept = k_core_rows(users, items, k_core)
        users, user_ids = _renumbered(users[kept], user_ids)
        items, item_ids = _renumbered(items[kept], item_ids)
        keys, times = (None, None) if keys is None else (keys[kept], times[kept])
    if not len(users):
        raise DataError(
            f"{source}: no interaction is left with min_rating={min_rating}, k_core={k_core}; "
            "lower them"
        )
    order = np.argsort(users, kind="stable") if keys is None else np.lexsort((keys, users))
    return Sequences(
        items=items[order].astype(np.int32),
        offsets=offsets_of(np.bincount(users, minlength=len(user_ids))),
        user_ids=user_ids,
        item_ids=item_ids,
        times=None if times is None else times[order],
        item_fields={} if items_table is None else _fields_of(item_ids, items_table),
        skipped_rows=skipped_rows,
    )


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where each user's interactions start, and the end of the last: `[U]` lengths to `[U + 1]` int64."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def k_core_rows(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """The largest set of interactions in which every user and every item has at least `k`.

    Args:
        users: `[E]` user numbers, from 0.
        items: `[E]` item numbers, from 0.
        k: interactions that a user or item needs to stay.

    Returns:
        The positions that stay, ascending, int64.
    """
    rows = np.arange(len(users))
    while len(rows):
        enough = (np.bincount(users[rows])[users[rows]] >= k) & (
            np.bincount(items[rows])[items[rows]] >= k
        )
        if enough.all():
            break
        rows = rows[enough]
    return rows


def _first_of_equals(*columns: np.ndarray) -> np.ndarray:
    """The positions, ascending, at which a row of these columns `[E]` occurs for the first time."""
    order = np.lexsort(columns)  # Stable, so the first of equals comes first.
    new = np.ones(len(order), bool)
    new[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    return np.sort(order[new])


def numbered(ids: pa.ChunkedArray, source: object) -> tuple[np.ndarray, np.ndarray]:
    """Numbers strings in the order of first appearance: `[E]` int numbers, `[n]` str."""
    encoded = ids.dictionary_encode().unify_dictionaries().combine_chunks()
    distinct = encoded.dictionary.to_pylist()
    longest = max(distinct, key=len, default="")
    # The array of ids gives each as much space as the longest needs.
    if len(longest) * len(distinct) > _MAX_ID_CHARACTERS:
        raise DataError(
            f"{source}: an id of {len(longest):,} characters, which begins {longest[:40]!r}, among "
            f"{len(distinct):,} ids; check its row"
        )
    return encoded.indices.to_numpy(), np.array(distinct, dtype=str)


def _renumbered(numbers: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Closes the gaps that a filter left in a numbering."""
    present, numbers = np.unique(numbers, return_inverse=True)
    return numbers, ids[present]


def _fields_of(item_ids: np.ndarray, items_table: pa.Table) -> dict[str, np.ndarray]:
    """Text fields in the order of the item rows: name -> `[N]` str."""
    rows = pc.index_in(
        pa.array(item_ids.tolist(), pa.string()), items_table.column(0).combine_chunks()
    )
    return {
        name: np.array(
            [without_markup(text) for text in pc.fill_null(column.take(rows), "").to_pylist()],
            dtype=object,
        )
        for name, column in zip(items_table.column_names[1:], items_table.columns[1:], strict=True)
    }
