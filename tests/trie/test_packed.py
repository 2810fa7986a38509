"""Bit-packed integers against a Python integer as long as the whole stream of bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.trie import packed as packed_module
from gr.trie.layout import MAX_ITEMS
from gr.trie.packed import PackedInts, bits_for, num_words, word_and_shift

pytestmark = pytest.mark.usefixtures("compile_in_haste")


def pack(*arguments, **options):
    return jax.device_put(packed_module.pack(*arguments, **options))


def pack_columns(*arguments, **options):
    return jax.device_put(packed_module.pack_columns(*arguments, **options))


def stream_of(columns, bits, size, fill=0):
    """All elements as one integer: element i from bit `i * sum(bits)` on, its columns from low to high."""
    stream = 0
    for element in range(-(-size // 32) * 32):
        place = element * sum(bits)
        for column, width in zip(columns, bits, strict=True):
            value = int(column[element]) if element < len(column) else fill
            stream |= value << place
            place += width
    return stream


def as_integer(packed):
    words = np.asarray(packed.words)
    return sum(int(word) << (32 * place) for place, word in enumerate(words))


def random_columns(bits, count, seed=0):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, 2**width, count, np.uint32) for width in bits]
    for column, width in zip(columns, bits, strict=True):
        column[[0, -1]] = 2**width - 1
    return columns


@pytest.mark.parametrize("width", range(1, 32))
def test_both_ways_to_read_two_words_agree(width):
    """One for each kind of hardware."""
    (values,) = random_columns([width], 70, seed=width)
    packed = pack(values, 2**width - 1, 70)
    word, shift = word_and_shift(jnp.arange(69), width, 0)
    begin, end = packed._by_words(word, [shift.astype(int), shift.astype(int) + width], 3)
    for found, expected in (
        (packed._in_one_read(word, shift), values[:-1]),
        (begin, values[:-1]),
        (end, values[1:]),
    ):
        assert found.dtype == jnp.uint32
        np.testing.assert_array_equal(np.asarray(found) & (2**width - 1), expected)


@pytest.mark.parametrize("width", range(1, 32))
def test_every_width_is_read_back(width):
    (values,) = random_columns([width], 70)
    packed = pack(values, 2**width - 1, 70)
    assert (packed.width, packed.size) == (width, 70)
    assert packed.nbytes == 4 * (3 * width + 1)
    assert as_integer(packed) == stream_of([values], [width], 70)
    read = packed[jnp.arange(70)]
    assert read.dtype == jnp.int32
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 63, 64, 65])
@pytest.mark.parametrize("width", [1, 5, 31])
def test_sizes_around_groups_and_padding(width, size):
    (values,) = random_columns([width], max(size - 3, 1))
    packed = pack(values, 2**width - 1, size, fill=1)
    expected = np.concatenate([values, np.ones(size - len(values), np.uint32)])
    np.testing.assert_array_equal(packed[jnp.arange(size)], expected)
    assert as_integer(packed) == stream_of([values], [width], size, fill=1)


@pytest.mark.parametrize(
    "bits",
    [
        [3, 31, 7],
        [16, 16],  # Elements of whole words: nothing crosses.
        [8, 24, 20, 12],
        [20, 24, 20],  # Of whole words, but parts cross them.
        [1] * 40,
        [11] * 8,
        [31] * 4,
        [4, 4],
        [20] * 16,
        [1, 31, 2, 30, 17, 23] * 4,
    ],
    ids=lambda bits: f"{len(bits)}x{sum(bits)}",
)
def test_several_columns_make_one_element(bits):
    columns = random_columns(bits, 67)
    packed = pack_columns(columns, bits, 67)
    assert as_integer(packed) == stream_of(columns, bits, 67)
    index = jnp.asarray(np.random.default_rng(1).permutation(67)[:40].reshape(8, 5))
    firsts = np.cumsum([0, *bits])[:-1].tolist()
    for column, first, width in zip(columns, firsts, bits, strict=True):
        read = packed.part(index, first, width)
        np.testing.assert_array_equal(read, column[np.asarray(index)])
    for skipped in (0, len(bits) // 2, len(bits) - 1):
        together = packed.parts(index, firsts[skipped:], bits[skipped:])
        for column, read in zip(columns[skipped:], together, strict=True):
            np.testing.assert_array_equal(read, column[np.asarray(index)])


def test_many_groups_are_packed_in_chunks(monkeypatch):
    monkeypatch.setattr("gr.trie.packed._CHUNK", 2)
    columns = random_columns([5, 9], 333)
    packed = pack_columns(columns, [5, 9], 400, fill=3)
    assert as_integer(packed) == stream_of(columns, [5, 9], 400, fill=3)


@pytest.mark.parametrize("count", [43, 2000], ids=["few", "many"])
@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 100])
def test_first_above_is_a_search_from_the_right(size, count):
    rng = np.random.default_rng(size)
    values = np.sort(rng.integers(0, 40, size))
    packed = pack(values, 40, size)
    wanted = np.arange(count) % 43 - 1
    found = packed.first_above(jnp.asarray(wanted))
    np.testing.assert_array_equal(found, np.searchsorted(values, wanted, side="right"))


def test_intervals_and_padding_behind_the_last():
    packed = pack(np.array([0, 2, 5]), 7, 5, fill=7)
    begin, end = packed.interval(jnp.arange(4))
    assert begin.tolist() == [0, 2, 5, 7] and end.tolist() == [2, 5, 7, 7]
    assert packed.first_above(jnp.array([0, 5, 6, 7])).tolist() == [1, 3, 3, 5]


def test_bits_that_hold_a_number():
    assert [bits_for(n) for n in (0, 1, 2, 3, 4, 255, 256)] == [1, 1, 2, 2, 3, 8, 9]


class Words:
    """In the place of an array too large to be made: notes what is read from it."""

    def __init__(self):
        self.shape, self.read = (2**31 - 1,), []
        self.at = self

    def __getitem__(self, index):
        self.read += np.ravel(index).tolist()
        return self

    def get(self, mode):
        return jnp.zeros(2, jnp.uint32)


def test_no_number_of_a_bit_overflows():
    words, place = Words(), 2**31 - 3
    PackedInts(words, 31, 2**31 - 1)._part(jnp.int32(place), 0, 31)  # Nothing that JAX could trace.
    assert words.read == [place * 31 // 32, place * 31 // 32 + 1]


# Where elements of arrays that nobody could allocate lie.


@settings(max_examples=200, deadline=None)
@given(st.integers(0, MAX_ITEMS - 1), st.integers(1, 255 * 31), st.data())
def test_places_are_right_beyond_two_to_the_31_bits(place, width, data):
    first = data.draw(st.integers(0, width - 1))
    place %= MAX_ITEMS // width * 32  # As many elements as words can be counted.
    assert num_words(place + 1, width) <= MAX_ITEMS + width
    word, shift = word_and_shift(jnp.int32(place), width, first)
    assert (int(word), int(shift)) == divmod(place * width + first, 32)


def test_a_hundred_million_items_of_24_bits_and_more():
    places = np.array([0, 1, 89_478_485, 89_478_486, 99_999_999, 2**31 - 2**16 - 1])
    for width in (24, 31):
        words, shifts = word_and_shift(jnp.asarray(places, jnp.int32), width, 0)
        expected = [divmod(int(place) * width, 32) for place in places]
        assert list(zip(words.tolist(), shifts.tolist(), strict=True)) == expected
    assert num_words(100_000_000, 24) == 75_000_001


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counting(PackedInts):
    """Element i is i; there are no words."""

    def __getitem__(self, index):
        return index


def test_a_search_up_to_the_end_of_int32():
    size = MAX_ITEMS + 1
    values = [0, 1, 2**30, size // 16 * 15 - 1, size - 2, size - 1]
    found = Counting(None, 31, size).first_above(jnp.asarray(values, jnp.int32))
    assert found.tolist() == [value + 1 for value in values]
