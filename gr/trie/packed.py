"""`PackedInts`: an integer array with only as many bits per element as its largest value needs."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

GROUP = 32  # Elements that start at a word's boundary together: 32 elements of w bits fill w words.
_WORD = 32
_ARITY = 16  # Of the search.
_ARITY_OF_MANY = 2  # For so many values that reading them takes longer than the steps do:
_MANY = 1024

Bits = int | np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedInts:
    """`size` elements of `width` bits, one after another in a stream of bits, the lowest bits of a word first.

    Element i starts at bit `i * width`. That number, which could overflow 32 bits, is never computed: 32 elements fill
    exactly `width` words. An element is one non-negative integer, or several side by side, such as the rest of a
    semantic ID; `part` reads one of them.
    """

    words: jax.Array  # [ceil(size / 32) * width + 1] uint32; the last word is padding.
    width: int = dataclasses.field(metadata={"static": True})  # Bits an element.
    size: int = dataclasses.field(metadata={"static": True})  # Elements, padding included.

    def __getitem__(self, index: jax.Array) -> jax.Array:
        """Elements at `index [...]`, which must lie in `[0, size)`, int32 `[...]`; `width` must be below 32."""
        return self.part(index, 0, self.width)

    def part(self, index: jax.Array, first: Bits, bits: Bits) -> jax.Array:
        """Bits `first` to `first + bits` (fewer than 32) of the elements at `index [...]`, int32 `[...]`.

        Several parts at once by arrays `first` and `bits` int32: all three are broadcast together.
        """
        word, shift = word_and_shift(jnp.asarray(index, jnp.int32), self.width, first)
        value = jax.lax.platform_dependent(
            word, shift, tpu=self._in_two_words, default=self._in_one_read
        )
        return (value & jnp.uint32((1 << bits) - 1)).astype(jnp.int32)

    def _in_one_read(self, word: jax.Array, shift: jax.Array) -> jax.Array:
        """32 bits that begin at bit `shift [...]` of word `word [...]`."""
        shift = shift[..., None]
        pair = take(self.words, word[..., None] + np.arange(2, dtype=np.int32))
        # The rest of the first word, then the beginning of the second; shifted twice, since a shift by 32 is undefined.
        # They are summed rather than ORed: XLA keeps the result of a reduction, but would recompute a few shifts for
        # every use.
        pieces = jnp.where(np.arange(2) == 0, pair >> shift, (pair << 1) << (_WORD - 1 - shift))
        return pieces.sum(-1, dtype=jnp.uint32)

    def _in_two_words(self, word: jax.Array, shift: jax.Array) -> jax.Array:
        """The same for a TPU, which would pad a last axis of two to 128 lanes."""
        low, high = self._side_by_side(word, 2)
        return _from_bit(shift, low, high)

    def parts(
        self, index: jax.Array, firsts: Sequence[int], bits: Sequence[int]
    ) -> list[jax.Array]:
        """Like `part` for several parts in ascending order, but every word is read once for all of them."""
        start = firsts[0]
        count = -(-(firsts[-1] + bits[-1] - start) // _WORD)
        words = self._aligned(index, start, count, True)
        values = []
        for first, width in zip(firsts, bits, strict=True):
            word, shift = divmod(first - start, _WORD)
            value = words[word] >> shift
            if shift + width > _WORD:
                value |= words[word + 1] << (_WORD - shift)
            values.append((value & jnp.uint32((1 << width) - 1)).astype(jnp.int32))
        return values

    def _aligned(self, index: jax.Array, first: int, count: int, crosses: bool) -> list[jax.Array]:
        """`count` words of 32 bits each that begin at bit `first` of the elements."""
        word, shift = word_and_shift(jnp.asarray(index, jnp.int32), self.width, first)
        # Words after the last needed one do not matter: reading beyond the end is clipped.
        last = self.words.shape[0] - 1
        def one_by_one(word: jax.Array) -> list[jax.Array]:
            stream = [take(self.words, word)]
            return stream + [
                take(self.words, jnp.minimum(word + i, last)) for i in range(1, count + crosses)
            ]

        stream = jax.lax.platform_dependent(
            word,
            tpu=lambda word: self._side_by_side(word, count + crosses),
            default=one_by_one,
        )
        if not crosses:
            return [word >> shift for word in stream]
        return [_from_bit(shift, low, high) for low, high in zip(stream, stream[1:], strict=False)]

    def _side_by_side(self, word: jax.Array, count: int) -> list[jax.Array]:
        """`count` words from each of `word [...]` on, in a single read; those beyond the end do not matter."""
        places = word[None] + np.arange(count, dtype=np.int32).reshape(-1, *[1] * word.ndim)
        return list(take(self.words, jnp.minimum(places, self.words.shape[0] - 1)))

    def interval(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Elements at `index` and behind it: `[begin, end)` where the elements are interval starts."""
        return jax.lax.platform_dependent(
            jnp.asarray(index, jnp.int32),
            tpu=self._interval_in_one_read,
            default=lambda index: (self[index], self[index + 1]),
        )

    def _interval_in_one_read(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Two elements in succession lie in at most three words."""
        word, shift = word_and_shift(index, self.width, 0)
        words = self._side_by_side(word, 3)
        behind = shift + jnp.uint32(self.width)
        crosses = behind >= _WORD
        low, high = (jnp.where(crosses, b, a) for a, b in zip(words, words[1:], strict=False))
        begin, end = _from_bit(shift, *words[:2]), _from_bit(behind & (_WORD - 1), low, high)
        mask = jnp.uint32((1 << self.width) - 1)
        return (begin & mask).astype(jnp.int32), (end & mask).astype(jnp.int32)

    def first_above(self, value: jax.Array) -> jax.Array:
        """For elements in ascending order: the place of the first one above `value [...]`; `size` if there is none.

        A search with several probes per step. For few values, few steps that read much at once; for many, few reads.
        """
        arity = _ARITY if value.size < _MANY else _ARITY_OF_MANY
        low = jnp.zeros(value.shape, jnp.int32)
        places = self.size + 1  # The answer is one of so many places, starting at `low`.
        while places > 1:
            step = -(-places // arity)
            probes = low[..., None] + step * np.arange(1, arity, dtype=np.int32) - 1
            known = self[jnp.minimum(probes, self.size - 1)] <= value[..., None]
            low += step * (known & (probes < self.size)).sum(-1, dtype=jnp.int32)
            places = step
        return low

    @property
    def nbytes(self) -> int:
        """Bytes of the words."""
        return self.words.nbytes


def word_and_shift(place: jax.Array, width: int, first: Bits) -> tuple[jax.Array, jax.Array]:
    """Where bit `first` of elements lies: the word, int32, and the bit of the word, uint32.

    Correct as long as the words can be counted in int32, for any number of bits; see `num_words`.

    Args:
        place: which elements, int32 `[...]`, not negative.
        width: bits an element.
        first: a bit of an element, below `width`; or several, int32.
    """
    bit = (place & (GROUP - 1)) * width + first  # Counted within the group: small.
    return (place >> 5) * width + (bit >> 5), (bit & (_WORD - 1)).astype(jnp.uint32)


def _from_bit(shift: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """32 bits of two words that begin at bit `shift` of the first."""
    return (low >> shift) | ((high << 1) << (_WORD - 1 - shift))  # A shift by 32 is undefined.


def num_words(size: int, width: int) -> int:
    """Words of `size` elements of `width` bits."""
    return -(-size // GROUP) * width + 1


def take(array: jax.Array, index: jax.Array) -> jax.Array:
    """`array[index]` along the first axis, for indices that are known to lie in range: nothing is checked."""
    return array.at[index].get(mode="promise_in_bounds")


def bits_for(largest: int) -> int:
    """Bits that hold `0..largest`, at least one."""
    return max(int(largest).bit_length(), 1)


def pack(values: np.ndarray, largest: int, size: int, fill: int = 0) -> PackedInts:
    """Packs values `[n]` on the host, padded with `fill` to `size` elements.

    Args:
        values: integers in `[0, largest]`.
        largest: decides the width, so that arrays of one capacity have one width.
        size: elements of the result, at least n.
        fill: value of the padding.
    """
    return pack_columns([values], [bits_for(largest)], size, fill)


def pack_columns(
    columns: Sequence[np.ndarray], bits: Sequence[int], size: int, fill: int = 0
) -> PackedInts:
    """Packs columns `[n]` side by side into elements of `sum(bits)` bits; see `pack`."""
    groups = -(-size // GROUP)
    words = np.zeros((groups, sum(bits)), np.uint32)
    for first in range(0, groups, _CHUNK):
        last = min(first + _CHUNK, groups)
        chunk = np.full((len(columns), (last - first) * GROUP), fill, np.uint32)
        for place, column in enumerate(columns):
            part = column[first * GROUP : last * GROUP]
            chunk[place, : len(part)] = part
        _pack_groups(chunk.reshape(len(columns), -1, GROUP), bits, words[first:last])
    return PackedInts(np.append(words.reshape(-1), np.uint32(0)), sum(bits), size)


_CHUNK = 1 << 12  # Groups packed at once: they stay in the cache.


def _pack_groups(values: np.ndarray, bits: Sequence[int], words: np.ndarray) -> None:
    """Packs `values [columns, n, 32]` into the zeroed `words [n, sum(bits)]`."""
    packed = np.zeros(words.T.shape, np.uint32)
    first = 0
    for column, width in zip(values, bits, strict=True):
        column = np.ascontiguousarray(column.T)
        for element in range(GROUP):
            word, shift = divmod(element * sum(bits) + first, _WORD)
            packed[word] |= column[element] << np.uint32(shift)
            if shift + width > _WORD:
                packed[word + 1] |= column[element] >> np.uint32(_WORD - shift)
        first += width
    words[:] = packed.T
