"""`Memory`: which items follow which in training sequences, as sparse item-to-item weights in closed form.

With `C_k[i, j]` the number of times that item j came k places after item i in a user's training interactions:

    W = sum over k = 1..window of decay^(k-1) (C_k + back C_k^T)
    What = D W D,  D = diag(1 / sqrt(count + shrink)),  each row cut to its largest `neighbours` entries
    score of j after a history h = sum over place < reach of recency^place What[h[-1 - place], j]

With items of like content (`gr.memory.content`), rows S[i] of which sum to 1, What becomes D W D + content m S, where m
is the median of the row sums of D W D: the rarer an item, the more its content says of what follows it.

With a discount the column of item j of D W D is divided by (count_j + shrink)^discount, before content is added:
popular items are proposed less, and more of the catalogue is. At 0 both sides of W are normalised alike, as in a
cosine.

Windowed counts of a Markov chain, made symmetric in part and normalised as the cosine of item-kNN is; a relative of
sequential neighbours (Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", 2018).
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping

import numpy as np
from scipy import sparse

from gr.data import NO_ITEM, Histories, Sequences, Splits
from gr.data.files import read_arrays, write_arrays
from gr.errors import GrError
from gr.fields import Count, NotNegative, Share, ShareAboveZero, check_fields
from gr.memory.counts import interaction_counts, recent_weights, windowed_counts
from gr.memory.prior import ItemPrior

GATE_INPUTS = ("largest_mass", "last_item_count", "history_length")
_CHUNK = 2**22  # Most entries of a table that is sorted at once.


class ItemMemoryError(GrError):
    """Raised for a memory that cannot be fitted, asked or read; names the argument or file and the remedy."""


@dataclasses.dataclass(frozen=True)
class MemorySettings:
    """The settings of a memory.

    Attributes:
        window: the largest distance of two items of a user that counts; 1 or more.
        decay: how much less each further place counts, in (0, 1].
        back: weight of the opposite direction, 0 or more.
        shrink: added to the counts of items by which weights are normalised, 0 or more.
        neighbours: most entries of a row; 1 or more.
        recency: how much less each earlier item of a history counts, in (0, 1].
        reach: how many of a history's last items count; 1 or more.
        content: weight of items of like content beside those that came together; 0 or more, in units of the median
            row of the latter.
        content_of: which similarity of content that is; "" for none.
        discount: how much less popular items are proposed: exponent of their counts, in [0, 1]. It covers more of the
            catalogue and ranks no better, so tuning leaves it at 0.
    """

    window: Count = 10
    decay: ShareAboveZero = 0.8
    back: NotNegative = 0.5
    shrink: NotNegative = 10.0
    neighbours: Count = 500
    recency: ShareAboveZero = 0.5
    reach: Count = 5
    content: NotNegative = 0.0
    content_of: str = ""
    discount: Share = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "memory.", ItemMemoryError)
        if bool(self.content) != bool(self.content_of):
            raise ItemMemoryError(
                f"memory.content={self.content} and memory.content_of={self.content_of!r}: give both, a weight above 0 "
                "and the name of a similarity, or neither"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
    """Weights from each of N items to those that come with it in training: row i is `What[i]`, sparse."""

    settings: MemorySettings
    weights: sparse.csr_array  # [N, N] float32; entries above 0 only, columns of a row in order.
    counts: np.ndarray  # [N] int64 training interactions of each item.

    def __post_init__(self) -> None:
        numbers = self.weights.data
        wrong = numbers[
            ~((numbers >= 0) & (numbers < np.inf))
        ]  # By which items would be ranked wrongly.
        if len(wrong):
            raise ItemMemoryError(
                f"{len(wrong)} weights of the memory are negative or not finite, such as {wrong[0]}: mend the "
                "similarity or the file that they come from"
            )

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.counts)

    def scores(
        self, histories: Histories | np.ndarray, *, exclude: bool = False
    ) -> sparse.csr_array:
        """The score of each item after each of n histories, `[n, N]` float32; a row sums to 1, or is empty.

        Pass a part of many histories at a time: a row has up to `reach * neighbours` entries.

        Args:
            histories: whole ones, oldest item first; or rows `[n, T]`, padded with negative numbers on either side.
            exclude: whether items of the history are left out.

        Raises:
            ItemMemoryError: for histories of other items than the memory was fitted on.
        """
        scores = self.unsorted_scores(self._checked(histories), exclude=exclude)
        scores.sort_indices()
        totals = scores.sum(axis=1)
        scores.data /= np.repeat(np.where(totals > 0, totals, 1), np.diff(scores.indptr))
        return scores

    def unsorted_scores(self, histories: Histories, *, exclude: bool) -> sparse.csr_array:
        """As `scores`, but of any sum, and the columns of a row in any order: cheaper by half."""
        scores = (self._recent(histories) @ self.weights).tocsr()
        if exclude:
            scores = _without(scores, histories)
        return scores

    def prior(
        self, histories: Histories | np.ndarray, *, size: int = 500, exclude: bool = False
    ) -> ItemPrior:
        """The `size` best items after each of n histories with weights that sum to 1, best first.

        Args:
            histories: as for `scores`.
            size: S, slots of a user; those that are not needed are padding, -1 with weight 0.
            exclude: as for `scores`.

        Returns:
            A prior of NumPy arrays, `[n, S]` each. Equal weights are in order of item number.

        Raises:
            ItemMemoryError: as for `scores`, or `size` below 1.
        """
        if size < 1:
            raise ItemMemoryError(f"size={size}: give at least one slot a user")
        histories = self._checked(histories)
        items = np.full((len(histories), size), NO_ITEM, dtype=np.int32)
        weights = np.zeros((len(histories), size), dtype=np.float32)
        for rows in self.chunks(histories):
            scores = self.unsorted_scores(histories[rows], exclude=exclude)
            row, place, item, weight = best_entries(scores, size)
            items[rows.start + row, place] = item
            weights[rows.start + row, place] = weight
        totals = weights.sum(axis=1, keepdims=True)
        weights /= np.where(totals > 0, totals, 1)
        return ItemPrior(items, weights)

    def gate_inputs(self, histories: Histories | np.ndarray, prior: ItemPrior) -> np.ndarray:
        """What is known of each history before decoding, `[n, 3]` float32: the columns `GATE_INPUTS`.

        The largest weight of the user's prior, training interactions of the history's last item, items of the history.
        """
        histories = self._checked(histories)
        last = np.append(histories.items, NO_ITEM)[histories.stops - 1]
        support = np.where(histories.lengths > 0, np.append(self.counts, 0)[last], 0)
        largest = np.asarray(prior.weights).max(axis=1)
        return np.stack([largest, support, histories.lengths], axis=1).astype(np.float32)

    def because(
        self, histories: Histories | np.ndarray, items: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """From which items of each history the score of the recommended items came.

        Args:
            histories: n of them, as for `scores`.
            items: recommended items `[n, K]`; negative ones are padding.

        Returns:
            `sources [n, K, R]` int32, items among the history's last R = `reach`, largest share first, padded with -1;
            and their `shares [n, K, R]` float32 of the item's score, which sum to 1, or to 0 for an item without one.

        Raises:
            ItemMemoryError: for items or histories of other items than the memory was fitted on.
        """
        histories, items = self._checked(histories), np.asarray(items)
        if (
            items.ndim != 2
            or len(items) != len(histories)
            or items.max(initial=0) >= self.num_items
        ):
            raise ItemMemoryError(
                f"items of shape {items.shape} up to {items.max(initial=0)}: give rows [n, K] of the {self.num_items} "
                f"items, one for each of {len(histories)} histories"
            )
        recent = self._recent(histories)
        # The distinct items of each history that count, and how much: [n, R] each.
        row, column = recent.nonzero()
        place = np.arange(len(row)) - recent.indptr[row]
        sources = np.full((len(items), 1, self.settings.reach), NO_ITEM, dtype=np.int32)
        weights = np.zeros(sources.shape, dtype=np.float32)
        sources[row, 0, place], weights[row, 0, place] = column, recent.data
        known = (sources >= 0) & (items[:, :, None] >= 0)  # [n, K, R]
        from_, to = np.broadcast_arrays(sources, items[:, :, None])
        shares = np.zeros(known.shape, dtype=np.float32)
        if known.any():
            shares[known] = self.weights[from_[known], to[known]]
        shares *= weights
        total = shares.sum(axis=2, keepdims=True)
        shares = np.divide(shares, total, out=shares, where=total > 0)
        order = np.argsort(-shares, axis=2, kind="stable")
        shares = np.take_along_axis(shares, order, axis=2)
        sources = np.take_along_axis(from_, order, axis=2)
        return np.where(shares > 0, sources, np.int32(NO_ITEM)), shares

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the memory as one `.npz` file, at once or not at all."""
        arrays = {"data": self.weights.data, "indices": self.weights.indices}
        arrays |= {"indptr": self.weights.indptr, "counts": self.counts}
        settings = dataclasses.asdict(self.settings)
        write_arrays(path, arrays | {f"settings/{k}": np.array(v) for k, v in settings.items()})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Memory":
        """Reads the file of `save`.

        Raises:
            FileNotFoundError: there is no such file.
            ItemMemoryError: it is not a memory's, or damaged.
        """
        try:
            arrays = read_arrays(path)
            keys = {
                field.name: f"settings/{field.name}" for field in dataclasses.fields(MemorySettings)
            }
            for name in ("content", "content_of", "discount"):  # Older files lack them.
                if keys[name] not in arrays:
                    del keys[name]
            settings = MemorySettings(**{name: arrays[key].item() for name, key in keys.items()})
            counts, indptr = arrays["counts"], arrays["indptr"]
            weights = sparse.csr_array(
                (arrays["data"], arrays["indices"], indptr), shape=(len(counts), len(counts))
            )
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds for a damaged file.
            raise ItemMemoryError(
                f"{path} is not the file of a memory ({error}); fit it again"
            ) from error
        return Memory(settings, weights, counts)

    def _recent(self, histories: Histories) -> sparse.csr_array:
        """The weight of each item of each history, `[n, N]` float32: of the last `reach` places."""
        return recent_weights(histories, self.num_items, self.settings.recency, self.settings.reach)

    def chunks(self, histories: Histories) -> Iterator[slice]:
        """Slices of histories whose scores have at most about `_CHUNK` entries, and can be numbered in 64 bits."""
        widest = min(int(np.diff(self.weights.indptr).max(initial=1)), self.num_items)
        step = max(1, _CHUNK // max(1, min(widest * self.settings.reach, self.num_items)))
        step = min(step, 1 << (32 - _column_bits(self.num_items)))
        for start in range(0, len(histories), step):
            yield slice(start, start + step)

    def _checked(self, histories: Histories | np.ndarray) -> Histories:
        if not isinstance(histories, Histories):
            rows = np.asarray(histories)
            if rows.ndim != 2 or (rows.size and rows.dtype.kind != "i"):
                raise ItemMemoryError(
                    f"histories of shape {rows.shape} and type {rows.dtype}: give Histories, or rows [n, T] of items"
                )
            histories = Histories.of_rows(rows)
        if histories.items.max(initial=NO_ITEM) >= self.num_items:
            raise ItemMemoryError(
                f"histories hold item {histories.items.max()}, and the memory was fitted on {self.num_items} items: "
                "fit it on the same data"
            )
        return histories


def fit_memory(
    data: Splits | Sequences,
    *,
    window: int = MemorySettings.window,
    decay: float = MemorySettings.decay,
    back: float = MemorySettings.back,
    shrink: float = MemorySettings.shrink,
    neighbours: int = MemorySettings.neighbours,
    recency: float = MemorySettings.recency,
    reach: int = MemorySettings.reach,
    content: float = MemorySettings.content,
    content_of: str = MemorySettings.content_of,
    discount: float = MemorySettings.discount,
    similar: Mapping[str, sparse.csr_array] | None = None,
) -> Memory:
    """Counts which items come with which; the arguments but `similar` are the fields of `MemorySettings`.

    Args:
        data: splits, of which only training interactions are read; or sequences, of which all are.
        window: the largest distance of two items of a user that counts.
        decay: how much less each further place counts.
        back: weight of the opposite direction.
        shrink: added to the counts of items by which weights are normalised.
        neighbours: most entries of a row.
        recency: how much less each earlier item of a history counts.
        reach: how many of a history's last items count.
        content: weight of items of like content.
        content_of: the name of their similarity in `similar`.
        discount: how much less popular items are proposed.
        similar: similarities of content, name -> `[N, N]`, as `similar_by_codes` and `similar_by_vectors` make them.

    Raises:
        ItemMemoryError: for a setting out of range, or a similarity that is missing or of other items.
    """
    settings = MemorySettings(
        *(window, decay, back, shrink, neighbours, recency, reach, content, content_of, discount)
    )
    counts = interaction_counts(data)
    return normalised(windowed_counts(data, window, decay), counts, settings, similar or {})


def normalised(
    forward: sparse.csr_array,
    counts: np.ndarray,
    settings: MemorySettings,
    similar: Mapping[str, sparse.csr_array],
) -> Memory:
    """A memory from what `windowed_counts` made for the window and the decay of the settings."""
    weights = (forward + settings.back * forward.T).tocsr()
    weights.eliminate_zeros()
    weights.sort_indices()
    # An item without a training interaction has no entry, whatever its factor.
    shrunk = np.maximum(counts + settings.shrink, np.finfo(float).tiny)
    from_, to = shrunk**-0.5, shrunk ** -(0.5 + settings.discount)
    weights.data *= np.repeat(from_, np.diff(weights.indptr)) * to[weights.indices]
    if settings.content_of:
        sums = weights.sum(axis=1)
        median = np.median(sums[sums > 0]) if weights.nnz else 1.0
        of_content = _similarity(similar, settings.content_of, len(counts))
        weights = (weights + settings.content * median * of_content).tocsr()
    weights = _cut(weights, settings.neighbours).astype(np.float32)
    weights.eliminate_zeros()
    return Memory(settings, weights, counts)


def _similarity(
    similar: Mapping[str, sparse.csr_array], name: str, num_items: int
) -> sparse.csr_array:
    if name not in similar:
        raise ItemMemoryError(
            f"memory.content_of={name!r} is not given: the data offer {', '.join(sorted(similar)) or 'no content'}"
        )
    if similar[name].shape != (num_items, num_items):
        raise ItemMemoryError(
            f"similar[{name!r}] has shape {list(similar[name].shape)}: give one row and one column for each of the "
            f"{num_items} items"
        )
    return similar[name]


def best_entries(scores: sparse.csr_array, count: int) -> tuple[np.ndarray, ...]:
    """The `count` largest entries of each row, largest first, ties by column; of numbers that are not negative.

    Returns:
        Row, place in the order of the row, column and number of each of these entries, `[E]` each.
    """
    rows = np.repeat(np.arange(scores.shape[0], dtype=np.uint64), np.diff(scores.indptr))
    # Row, number and column in 64 bits, as whole numbers in the order wanted: these are sorted an order of magnitude
    # faster than by three keys. Float32 that are not negative are in the order of their bits.
    columns = np.uint64(_column_bits(scores.shape[1]))
    falling = ~scores.data.astype(np.float32, copy=False).view(np.uint32)
    keys = (rows << np.uint64(32)) | falling
    keys = (keys << columns) | scores.indices.astype(np.uint64)
    keys.sort()
    rows = rows.astype(np.intp)
    place = np.arange(len(rows)) - scores.indptr[rows]  # Each row keeps its entries.
    kept = place < count
    keys = keys[kept]
    number = (~(keys >> columns).astype(np.uint32)).view(np.float32)
    column = keys & ((np.uint64(1) << columns) - np.uint64(1))
    return rows[kept], place[kept], column.astype(np.int32), number


def _column_bits(num_items: int) -> int:
    """Bits of a column's number in the keys of `best_entries`; 32 and these leave the others to rows."""
    return max(1, (num_items - 1).bit_length())


def _cut(weights: sparse.csr_array, neighbours: int) -> sparse.csr_array:
    """Weights with only the `neighbours` largest entries of each row, ties by column; columns stay in order."""
    lengths = np.diff(weights.indptr)
    long = np.flatnonzero(lengths > neighbours)
    keep = np.repeat(lengths <= neighbours, lengths)
    width = int(lengths.max(initial=1))
    step = max(1, _CHUNK // width)
    for rows in (long[start : start + step] for start in range(0, len(long), step)):
        inside = np.arange(width) < lengths[rows, None]
        entries = (weights.indptr[rows, None] + np.arange(width))[inside]
        dense = np.full(inside.shape, -np.inf)
        dense[inside] = weights.data[entries]
        least = np.partition(dense, width - neighbours, axis=1)[:, width - neighbours, None]
        above, equal = dense > least, dense == least
        left = neighbours - above.sum(axis=1, keepdims=True)
        keep[entries] = (above | (equal & (np.cumsum(equal, axis=1) <= left)))[inside]
    indptr = np.concatenate([[0], np.cumsum(np.minimum(lengths, neighbours))])
    return sparse.csr_array(
        (weights.data[keep], weights.indices[keep], indptr), shape=weights.shape
    )


def _without(scores: sparse.csr_array, histories: Histories) -> sparse.csr_array:
    """Scores, all above 0, without those of each history's items."""
    lengths = histories.lengths
    row = np.repeat(np.arange(len(histories)), lengths)
    inside = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    item = histories.items[np.repeat(histories.starts, lengths) + inside]
    held = sparse.csr_array(
        (np.full(len(row), np.inf, dtype=np.float32), (row, item)), shape=scores.shape
    )
    scores = (scores - held).tocsr()  # Below 0 at the items of the history.
    keep = scores.data > 0
    rows = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))[keep]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=scores.shape[0]))])
    return sparse.csr_array((scores.data[keep], scores.indices[keep], indptr), shape=scores.shape)
