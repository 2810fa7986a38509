"""Checks arrays that a caller passes; values are never reinterpreted.

Floats, booleans in place of numbers, strings and rows of different lengths are refused with one `TrieError` that says
what is expected. Traced arrays pass if their type and shape are right.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.data.sequences import NO_ITEM
from gr.trie.layout import TrieError

_LOW, _HIGH = -(2**31), 2**31 - 1  # The range of int32. Neither bound is a token or an item number.


def integers(values: Any, what: str, shape: str) -> np.ndarray | jax.Array:
    """Values as an array of integers; an array stays what it is, lists become a NumPy array.

    Args:
        values: an array of any integer type, perhaps a traced one, or lists of numbers.
        what: their name in the error.
        shape: the expected shape, for the error.

    Raises:
        TrieError: if they are no integers, or rows differ in length.
    """
    return _array_of("integers", "iu", values, f"{what} must be integers {shape}")


def host_integers(values: Any, what: str, shape: str) -> np.ndarray:
    """`integers` for concrete values, as a NumPy array."""
    array = integers(values, what, shape)
    if not is_known(array):
        raise TrieError(f"{what} must be known before `jit`: build on the host, with NumPy arrays")
    return np.asarray(array)


def truth_values(values: Any, what: str, shape: str) -> np.ndarray | jax.Array:
    """Values as a boolean array; see `integers`."""
    return _array_of("truth values", "b", values, f"{what} must be truth values (bool) {shape}")


def as_int32(array: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Integers as int32; values out of range become int32's bound, which is neither a token nor an item number."""
    held = np.iinfo(array.dtype)
    if held.max > _HIGH or held.min < _LOW:
        array = array.clip(max(held.min, _LOW), _HIGH)
    return array.astype(np.int32)


def item_lists(values: Any, what: str, shape: str) -> np.ndarray | jax.Array:
    """Item numbers as an int32 array; lists of different lengths are filled up with `NO_ITEM`."""
    if not is_list_of_lists(values):
        return as_int32(integers(values, what, shape))
    rows = [as_int32(host_integers(row, f"each row of {what}", "[S]")) for row in values]
    if any(row.ndim != 1 for row in rows):
        raise TrieError(f"{what} must be integers {shape}: each row a list of item numbers")
    padded = np.full((len(rows), max(map(len, rows), default=0)), NO_ITEM, np.int32)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


def is_list_of_lists(values: Any) -> bool:
    """Whether values are a list with a list, or an array, for each user."""
    return isinstance(values, list | tuple) and any(
        isinstance(row, list | tuple | np.ndarray | jax.Array) and np.ndim(row) for row in values
    )


def known_items(items: np.ndarray | jax.Array, max_item: int) -> tuple[jax.Array, jax.Array]:
    """Which item numbers lie in `[0, max_item]`; and the numbers, int32, 0 in place of others."""
    items = as_int32(jnp.asarray(items))
    known = (items >= 0) & (items <= max_item)
    return jnp.where(known, items, 0), known


def is_known(array: Any) -> bool:
    """Whether an array's values can be read here: it is neither traced nor partly on other hosts' devices."""
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def shown(array: Any) -> str:
    """Type and shape of an array, for a short `repr`."""
    return f"{array.dtype}{list(array.shape)}" if hasattr(array, "dtype") else type(array).__name__


def _array_of(kind: str, letters: str, values: Any, wanted: str) -> np.ndarray | jax.Array:
    array = values
    if not isinstance(values, np.ndarray | jax.Array):
        array = _array_of_lists(values, wanted, np.int64 if kind == "integers" else bool)
    if isinstance(array, np.ma.MaskedArray):
        raise TrieError(f"{wanted}, got a masked array: fill it, or leave its rows out")
    if getattr(array.dtype, "kind", "") not in letters:
        raise TrieError(f"{wanted}, got {array.dtype} {list(array.shape)}: cast them to {kind}")
    return array


def _array_of_lists(values: Any, wanted: str, empty: type) -> np.ndarray:
    try:
        array = np.asarray(values)
        if isinstance(values, list | tuple):
            if array.size == 0:
                return array.astype(empty)  # NumPy reads an empty list as floats.
            if array.dtype.kind in "iu":  # NumPy reads booleans among numbers as 0 and 1.
                types = set(map(type, np.asarray(values, object).flat))
                if types & {bool, np.bool_}:
                    raise TrieError(f"{wanted}, got numbers and truth values mixed")
    except (ValueError, TypeError) as error:
        if isinstance(error, TrieError):
            raise
        raise TrieError(
            f"{wanted}, got a {type(values).__name__} that is no array: rows must be equally long"
        ) from error
    return array
