"""`PackedInts`: an integer array with only as many bits per element as its largest value needs."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gr.trie.traced import traced_once

GROUP = 32  # Elements that start at a word's boundary together: 32 elements of w bits fill w words.
_WORD = 32
_ARITY = 16  # Of the search.
_ARITY_OF_MANY = 2  # For so many values that reading them takes longer than the steps do:
_MANY = 1024
_COMPARED = 1 << 24  # Pairs of numbers that an accelerator compares, rather than to search.

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
        index = jnp.asarray(index, jnp.int32)
        if isinstance(first, int) and isinstance(bits, int):
            return self._fixed_part(index, first, bits)
        return self._part(index, first, bits)

    def _part(self, index: jax.Array, first: Bits, bits: Bits) -> jax.Array:
        word, shift = word_and_shift(index, self.width, first)
        value = jax.lax.platform_dependent(
            word,
            shift,
            tpu=lambda word, shift: self._by_words(word, [shift.astype(jnp.int32)], 2)[0],
            default=self._in_one_read,
        )
        return (value & jnp.uint32((1 << bits) - 1)).astype(jnp.int32)

    _fixed_part = traced_once(_part, static_argnames=("first", "bits"))

    def _in_one_read(self, word: jax.Array, shift: jax.Array) -> jax.Array:
        """32 bits that begin at bit `shift [...]` of word `word [...]`."""
        shift = shift[..., None]
        pair = take(self.words, word[..., None] + np.arange(2, dtype=np.int32))
        # The rest of the first word, then the beginning of the second; shifted twice, since a shift by 32 is undefined.
        # They are summed rather than ORed: XLA keeps the result of a reduction, but would recompute a few shifts for
        # every use.
        pieces = jnp.where(np.arange(2) == 0, pair >> shift, (pair << 1) << (_WORD - 1 - shift))
        return pieces.sum(-1, dtype=jnp.uint32)

    def _by_words(
        self, word: jax.Array, shifts: Sequence[jax.Array], count: int
    ) -> tuple[jax.Array, ...]:
        """32 bits that begin at each bit of `shifts`, `[...]` each, of the `count` words from `word [...]` on.

        For a TPU: all words are read at once, along a first axis, since it would pad a last axis of two to 128 lanes.
        """
        places = word + jax.lax.broadcasted_iota(jnp.int32, (count, *word.shape), 0)
        words = take(self.words, jnp.minimum(places, self.words.shape[0] - 1))

        def from_bit(shift: jax.Array) -> jax.Array:
            # How far the word moves to the left: the difference is small even where both sides overflow.
            left = _WORD * places - (_WORD * word + shift)
            amount = jnp.minimum(jnp.abs(left), _WORD - 1).astype(jnp.uint32)
            moved = jnp.where(left < 0, words >> amount, words << amount)
            # Of the three words that an interval may touch, one may be too far away.
            return jnp.where(jnp.abs(left) < _WORD, moved, 0).sum(0, dtype=jnp.uint32)

        return tuple(map(from_bit, shifts))

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

        def one_by_one(word: jax.Array, shift: jax.Array) -> tuple[jax.Array, ...]:
            stream = [take(self.words, word)]
            more = range(1, count + crosses)
            stream += [take(self.words, jnp.minimum(word + i, last)) for i in more]
            if not crosses:
                return tuple(word >> shift for word in stream)
            # Shifted twice, since a shift by 32 is undefined.
            return tuple(
                (low >> shift) | ((high << 1) << (_WORD - 1 - shift))
                for low, high in zip(stream, stream[1:], strict=False)
            )

        def at_once(word: jax.Array, shift: jax.Array) -> tuple[jax.Array, ...]:
            shift = shift.astype(jnp.int32)
            return self._by_words(word, [shift + _WORD * i for i in range(count)], count + crosses)

        return list(jax.lax.platform_dependent(word, shift, tpu=at_once, default=one_by_one))

    @traced_once
    def interval(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Elements at `index` and behind it: `[begin, end)` where the elements are interval starts."""

        def at_once(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            word, shift = word_and_shift(index, self.width, 0)
            mask = jnp.uint32((1 << self.width) - 1)
            shift = shift.astype(jnp.int32)
            both = self._by_words(word, [shift, shift + self.width], 3)
            return tuple((bits & mask).astype(jnp.int32) for bits in both)

        return jax.lax.platform_dependent(
            jnp.asarray(index, jnp.int32),
            tpu=at_once,
            default=lambda index: (self[index], self[index + 1]),
        )

    @traced_once
    def first_above(self, value: jax.Array) -> jax.Array:
        """For elements in ascending order: the place of the first one above `value [...]`; `size` if there is none."""
        by_search = self._first_above_by_search
        few = value.size * self.size <= _COMPARED
        return jax.lax.platform_dependent(
            value, cpu=by_search, default=self._first_above_by_count if few else by_search
        )

    def _first_above_by_count(self, value: jax.Array) -> jax.Array:
        """For an accelerator, which compares millions of numbers sooner than it reads some in every step."""
        elements = self[jnp.arange(self.size, dtype=jnp.int32)]
        return (elements <= value[..., None]).sum(-1, dtype=jnp.int32)

    def _first_above_by_search(self, value: jax.Array) -> jax.Array:
        """With several probes per step. For few values, few steps that read much at once; for many, few reads."""
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
