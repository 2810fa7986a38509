"""Random semantic IDs for the trie benchmark, the indexes built from them, and their cost."""

import functools
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.trie_baselines import CpuTrie, HashBitmap, PrefixVerification
from experiments.benchmarks.trie_csr import PublishedTrie
from gr.trie import ItemMask, TrieIndex
from gr.trie.sorting import SortedIds, sort_ids
from gr.trie.statistics import log2_binomial

NUM_ATTRIBUTES = 8
NUM_CANDIDATES = 50  # Tokens of a beam that the approximate verification looks up.

_CHUNK = 1 << 22  # Rows drawn at once.
_SEVERAL_BUILDS = 10_000_000  # Items up to which the index is built three times.
_MASKS = 3


class Corpus:
    """Random items, and what the methods search, each built when it is first asked for."""

    def __init__(self, num_items: int, vocab_size: int, length: int, seed: int):
        self.num_items, self.vocab_size, self.length, self.seed = (
            num_items,
            vocab_size,
            length,
            seed,
        )
        self.tokens = random_tokens(num_items, vocab_size, length, seed)  # [N, L].

    @functools.cached_property
    def index(self) -> TrieIndex:
        """Ours."""
        return TrieIndex.build(self.tokens, self.vocab_size)

    @functools.cached_property
    def attributes(self) -> np.ndarray:
        """Random attributes of the items `[N, A]` bool."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.integers(2, size=(self.num_items, NUM_ATTRIBUTES), dtype=np.uint8).astype(bool)

    @functools.cached_property
    def index_with_attributes(self) -> TrieIndex:
        """Ours, with attributes."""
        return TrieIndex.build(self.tokens, self.vocab_size, attributes=self.attributes)

    @functools.cached_property
    def allowed_items(self) -> np.ndarray:
        """A random half of the items, `[N]` bool."""
        rng = np.random.default_rng(self.seed + 2)
        allowed = rng.integers(2, size=self.num_items, dtype=np.uint8).astype(bool)
        allowed[0] = True
        return allowed

    @functools.cached_property
    def item_mask(self) -> ItemMask:
        """The mask of `allowed_items`."""
        return ItemMask.build(self.index, jnp.asarray(self.allowed_items))

    @functools.cached_property
    def ids(self) -> SortedIds:
        """Sorted semantic IDs, the input of all baselines."""
        return sort_ids(self.tokens, self.tokens.max(axis=0))

    @functools.cached_property
    def published(self) -> PublishedTrie:
        """The published trie."""
        return PublishedTrie.build(self.ids, self.vocab_size)

    @functools.cached_property
    def hash_bitmap(self) -> HashBitmap:
        """Hashed prefixes."""
        return HashBitmap.build(self.ids)

    @functools.cached_property
    def cpu_trie(self) -> CpuTrie:
        """Nested dictionaries."""
        return CpuTrie.build(self.ids, self.vocab_size)

    def verification(self, num_candidates: int | None) -> PrefixVerification:
        """Binary search in the sorted semantic IDs."""
        return PrefixVerification.build(self.ids, num_candidates)


def random_tokens(num_items: int, vocab_size: int, length: int, seed: int) -> np.ndarray:
    """Uniform tokens `[N, L]` in the narrowest type, chunk by chunk."""
    rng = np.random.default_rng(seed)
    tokens = np.empty((num_items, length), np.min_scalar_type(vocab_size - 1))
    for start in range(0, num_items, _CHUNK):
        chunk = tokens[start : start + _CHUNK]
        chunk[:] = rng.integers(vocab_size, size=chunk.shape, dtype=tokens.dtype)
    return tokens


def measure_index(corpus: Corpus) -> dict[str, float]:
    """Bytes an item, seconds to build the index from unsorted tokens and to apply a new item mask."""
    taken = []
    for _ in range(3 if corpus.num_items <= _SEVERAL_BUILDS else 1):
        vars(corpus).pop("index", None)  # Not beside the next one: two would double the peak.
        taken.append(_seconds(lambda: corpus.index))
    allowed = jnp.asarray(corpus.allowed_items)
    jax.block_until_ready(ItemMask.build(corpus.index, allowed))  # Compiles.
    masks = [_seconds(lambda: ItemMask.build(corpus.index, allowed)) for _ in range(_MASKS)]
    bits = log2_binomial(corpus.vocab_size**corpus.length, corpus.num_items)
    return {
        "bytes_per_item": corpus.index.nbytes / corpus.num_items,
        "information_floor_bytes": bits / 8 / corpus.num_items,
        "build_seconds": statistics.median(taken),
        "mask_seconds": statistics.median(masks),
    }


def peak_rss_gib() -> float:
    """The most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)


def _seconds(make: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(make())
    return time.perf_counter() - start
