"""`SemanticIds`: the table between items and their Semantic IDs (SIDs), codes and model tokens."""

import dataclasses
import functools
import io
import os
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from gr.data.files import as_path, write_atomically
from gr.data.sequences import NO_ITEM
from gr.errors import GrError

PAD_TOKEN = 0  # In token arrays: "no item here".
BOS_TOKEN = 1  # The input of a decoder before the first code.
FIRST_CODE_TOKEN = 2  # The token of code 0 of level 0.
NO_CODE = -1  # The code of `PAD_TOKEN`.

FORMAT_VERSION = 1  # Of the files that `SemanticIds.save` writes.


class SemanticIdError(GrError):
    """Raised for invalid Semantic IDs or vectors; names the file, item or level and the remedy."""


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticIds:
    """The SID of every item: L codes, one from each level's codebook.

    Row `i` belongs to item row `i` of the data. Several items may share a SID; none is lost.
    Each level has its own token range, one after another from `FIRST_CODE_TOKEN`: code `c` of level `l` is token
    `FIRST_CODE_TOKEN + sum(codebook_sizes[:l]) + c`.

    Raises:
        SemanticIdError: for wrong shapes, repeated item ids and codes outside their codebook.
    """

    codes: np.ndarray  # [N, L] int32, 0 <= codes[:, l] < codebook_sizes[l].
    codebook_sizes: tuple[int, ...]  # [L].
    item_ids: np.ndarray  # [N] str, as in the source data.

    def __post_init__(self):
        codes = np.asarray(self.codes)
        item_ids = np.asarray(self.item_ids).astype(np.str_)
        sizes = tuple(int(size) for size in self.codebook_sizes)
        if codes.ndim != 2 or 0 in codes.shape or not np.issubdtype(codes.dtype, np.integer):
            raise SemanticIdError(
                "codes must be a non-empty integer array [N, L], "
                f"got shape {list(codes.shape)} of {codes.dtype}."
            )
        if len(sizes) != codes.shape[1] or min(sizes) < 1:
            raise SemanticIdError(
                f"codes have {codes.shape[1]} levels; codebook_sizes must be as many positive "
                f"numbers, got {list(sizes)}."
            )
        if FIRST_CODE_TOKEN + sum(sizes) > np.iinfo(np.int32).max:
            raise SemanticIdError(f"codebook_sizes {list(sizes)} do not fit int32 tokens.")
        if item_ids.shape != codes.shape[:1]:
            raise SemanticIdError(
                f"{codes.shape[0]} rows of codes but item_ids of shape {list(item_ids.shape)}; "
                "give one id for each row."
            )
        wrong = (codes < 0) | (codes >= np.array(sizes))
        if wrong.any():
            row, level = np.argwhere(wrong)[0]
            raise SemanticIdError(
                f"item {item_ids[row]}: code {codes[row, level]} at level {level} is outside "
                f"0..{sizes[level] - 1} ({wrong.sum()} such codes); check codebook_sizes."
            )
        unique_ids, counts = np.unique(item_ids, return_counts=True)
        if len(unique_ids) < len(item_ids):
            raise SemanticIdError(f"item id {unique_ids[counts.argmax()]} has more than one row.")
        object.__setattr__(self, "codes", np.ascontiguousarray(codes, dtype=np.int32))
        object.__setattr__(self, "codebook_sizes", sizes)
        object.__setattr__(self, "item_ids", item_ids)

    # Sizes.

    @property
    def num_items(self) -> int:
        """N."""
        return self.codes.shape[0]

    @property
    def num_levels(self) -> int:
        """L."""
        return self.codes.shape[1]

    @property
    def vocab_size(self) -> int:
        """V: every code of every level, and the special tokens."""
        return FIRST_CODE_TOKEN + sum(self.codebook_sizes)

    @property
    def level_offsets(self) -> np.ndarray:
        """The token of code 0 of each level, [L] int32."""
        starts = np.cumsum((0,) + self.codebook_sizes[:-1])
        return (FIRST_CODE_TOKEN + starts).astype(np.int32)

    @property
    def level_ranges(self) -> list[tuple[int, int]]:
        """The tokens `[low, high)` of each level, [L]."""
        lows = self.level_offsets.tolist()
        return [(low, low + size) for low, size in zip(lows, self.codebook_sizes, strict=True)]

    # Items to tokens and back.

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """The SIDs in the model's vocabulary, [N, L] int32."""
        return self.codes + self.level_offsets

    @functools.cached_property
    def _tokens_and_padding(self) -> np.ndarray:
        # One more row of PAD_TOKEN at the end, which NO_ITEM = -1 selects.
        return np.pad(self.tokens, ((0, 1), (0, 0)), constant_values=PAD_TOKEN)

    def encode(self, items: np.ndarray) -> np.ndarray:
        """Tokens of item rows `[...]`, int32 `[..., L]`; `NO_ITEM` becomes `PAD_TOKEN`s.

        Raises:
            SemanticIdError: for a row that does not exist.
        """
        items = np.asarray(items)
        if items.size and (items.min() < NO_ITEM or items.max() >= self.num_items):
            wrong = items[(items < NO_ITEM) | (items >= self.num_items)].flat[0]
            raise SemanticIdError(f"item row {wrong} is not in 0..{self.num_items - 1}.")
        return self._tokens_and_padding[items]

    def codes_of_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Codes `[..., L]` of tokens `[..., L]`; `PAD_TOKEN` becomes `NO_CODE`.

        Raises:
            SemanticIdError: for a token that belongs to another level.
        """
        tokens = np.asarray(tokens)
        if tokens.shape[-1:] != (self.num_levels,):
            raise SemanticIdError(
                f"tokens must be [..., {self.num_levels}], got {list(tokens.shape)}."
            )
        codes = tokens.astype(np.int64) - self.level_offsets
        wrong = ((codes < 0) | (codes >= np.array(self.codebook_sizes))) & (tokens != PAD_TOKEN)
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0])
            level = place[-1]
            start = self.level_offsets[level]
            raise SemanticIdError(
                f"token {tokens[place]} at level {level} is outside "
                f"{start}..{start + self.codebook_sizes[level] - 1}."
            )
        return np.where(tokens == PAD_TOKEN, NO_CODE, codes).astype(np.int32)

    # SIDs to items.

    @functools.cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distinct SIDs as sorted keys [S], item rows in their order [N], group starts [S + 1]."""
        keys = _sortable_keys(self.codes)
        order = np.argsort(keys, kind="stable")  # Stable: within a SID, rows ascend.
        distinct, starts = np.unique(keys[order], return_index=True)
        return distinct, order.astype(np.int32), np.append(starts, len(keys))

    def _find(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First position in the row order and number of items of SIDs `[n, L]`, both [n]."""
        distinct, _, starts = self._groups
        inside = ((codes >= 0) & (codes < np.array(self.codebook_sizes))).all(axis=1)
        keys = _sortable_keys(np.where(inside[:, None], codes, 0))
        group = np.minimum(np.searchsorted(distinct, keys), len(distinct) - 1)
        found = inside & (distinct[group] == keys)
        return starts[group], np.where(found, starts[group + 1] - starts[group], 0)

    def items_of(self, codes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Item rows that have the SID `codes [L]`, ascending, int32; empty where none has it."""
        codes = np.asarray(codes)
        if codes.shape != (self.num_levels,):
            raise SemanticIdError(f"codes must be [{self.num_levels}], got {list(codes.shape)}.")
        first, count = self._find(codes[None])
        return self._groups[1][first[0] : first[0] + count[0]]

    def items_of_many(self, codes: np.ndarray) -> np.ndarray:
        """Item rows of many SIDs `[..., L]`: int32 `[..., S]`, S the largest group of one SID.

        Rows ascend; the rest is `NO_ITEM`, all of it where no item has that SID.
        """
        codes = np.asarray(codes)
        if codes.shape[-1:] != (self.num_levels,):
            raise SemanticIdError(
                f"codes must be [..., {self.num_levels}], got {list(codes.shape)}."
            )
        first, count = self._find(codes.reshape(-1, self.num_levels))
        place = np.arange(self.largest_group)
        order = self._groups[1]
        rows = order[np.minimum(first[:, None] + place, len(order) - 1)]
        rows = np.where(place < count[:, None], rows, np.int32(NO_ITEM))
        return rows.reshape(*codes.shape[:-1], self.largest_group)

    # Collisions.

    @property
    def num_distinct(self) -> int:
        """Number of different SIDs."""
        return len(self._groups[0])

    @property
    def largest_group(self) -> int:
        """Most items that share one SID; 1 where all SIDs are unique."""
        return int(np.diff(self._groups[2]).max())

    @property
    def colliding_items(self) -> int:
        """Number of items that share their SID with another one."""
        counts = np.diff(self._groups[2])
        return int(counts[counts > 1].sum())

    def collisions(self) -> dict[str, int]:
        """Counts: `items`, `distinct_sids`, `colliding_items`, `largest_group`."""
        return {
            "items": self.num_items,
            "distinct_sids": self.num_distinct,
            "colliding_items": self.colliding_items,
            "largest_group": self.largest_group,
        }

    # Other orders, and files.

    def select(self, item_ids: Sequence[str] | np.ndarray) -> "SemanticIds":
        """The SIDs of these items, in this order; items not named are left out.

        Raises:
            SemanticIdError: naming the first item without a SID.
        """
        wanted = np.asarray(item_ids).astype(np.str_)
        order = np.argsort(self.item_ids)
        place = np.searchsorted(self.item_ids, wanted, sorter=order)
        rows = order[np.minimum(place, self.num_items - 1)]
        missing = self.item_ids[rows] != wanted
        if missing.any():
            raise SemanticIdError(
                f"no Semantic ID for item {wanted[missing][0]} ({missing.sum()} of {len(wanted)} "
                f"items have none); the SIDs must be made from the same data as the items."
            )
        return SemanticIds(self.codes[rows], self.codebook_sizes, wanted)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `.npz` file, atomically, without pickled objects."""
        content = io.BytesIO()
        np.savez_compressed(
            content,
            format_version=np.int64(FORMAT_VERSION),
            codes=self.codes,
            codebook_sizes=np.array(self.codebook_sizes, dtype=np.int64),
            item_ids=self.item_ids,
        )
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SemanticIds":
        """Reads what `save` wrote; raises `SemanticIdError` for any other, newer or broken file."""
        path = os.fspath(path)
        try:
            with as_path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                version = int(file["format_version"])
                if version > FORMAT_VERSION:
                    raise SemanticIdError(
                        f"{path}: format version {version} is newer than {FORMAT_VERSION}, the "
                        "newest that this version of gr reads; update gr or make the IDs again."
                    )
                return cls(file["codes"], tuple(file["codebook_sizes"]), file["item_ids"])
        except SemanticIdError as error:
            raise error if str(error).startswith(path) else _wrap(path, error) from error
        except FileNotFoundError as error:
            raise SemanticIdError(f"{path}: no such file.") from error
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise SemanticIdError(
                f"{path}: not a file of Semantic IDs, or a broken one ({error}); make it again."
            ) from error


def _wrap(path: str, error: SemanticIdError) -> SemanticIdError:
    return SemanticIdError(f"{path}: {error}")


def _sortable_keys(codes: np.ndarray) -> np.ndarray:
    """One key for each SID `[n, L]`, `[n]` bytes, ordered as the SIDs are, for any L and sizes."""
    # Big-endian bytes of equal length compare as the numbers that they spell.
    big_endian = np.ascontiguousarray(codes, dtype=">u4")
    return big_endian.view(f"S{4 * codes.shape[1]}")[:, 0]
