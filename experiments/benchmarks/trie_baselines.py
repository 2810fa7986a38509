"""Other ways to keep a beam search inside a set of semantic IDs, as masks over the vocabulary, and one search for all.

These are the baselines of the trie (named in arXiv 2602.22647, section 5): nested dictionaries on the host, a hashed
bitmap of prefixes, and binary search over the sorted semantic IDs. Each gives the tokens that may follow each beam's
prefix. The published trie, which is not a mask, is in `experiments.benchmarks.trie_csr`.
"""

import dataclasses
import functools
import gc
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gr.models import Backbone
from gr.trie.sorting import SortedIds


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplayedModel:
    """A backbone that replays given logits, whatever the beams are: no time is spent in a model.

    Each step's logits are a separate array, since a slice of one large array would be a copy.
    """

    logits: tuple[jax.Array, ...]  # [L]: [B, V], then [B, M, V] for each further step.

    def prefill(self, history: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """See `Backbone.prefill`; the cache is the number of steps taken, known when tracing."""
        return self.logits[0], jnp.zeros((len(history), 1)), 0

    def step(self, tokens: jax.Array, cache: int) -> tuple[jax.Array, jax.Array, int]:
        """See `Backbone.step`."""
        logits = self.logits[cache + 1][:, : tokens.shape[1]]
        return logits, jnp.zeros((*tokens.shape, 1)), cache + 1

    def reorder(self, cache: int, parents: jax.Array) -> int:
        """See `Backbone.reorder`."""
        del parents
        return cache


@jax.jit
def normalisers(backbone: ReplayedModel) -> list[jax.Array]:
    """The log-sum-exps of all logits of a decode: no search that scores by log-softmax can do less."""
    return [jax.nn.logsumexp(logits, axis=-1) for logits in backbone.logits]


class Baseline(Protocol):
    """A set of semantic IDs with a mask of the tokens that may come next."""

    def allowed(self, prefixes: jax.Array, logits: jax.Array) -> jax.Array:
        """Which tokens may follow `prefixes [B, M, t]`, bool `[B, M, V]`; `logits [B, M, V]` tell which matter."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
    """The result of a baseline's search, best first."""

    tokens: jax.Array  # [B, M, L] int32; arbitrary where there is no beam.
    scores: jax.Array  # [B, M] float32; -inf where there is no beam.


@functools.partial(jax.jit, static_argnames=("length", "num_beams"))
def masked_search(
    backbone: Backbone,
    baseline: Baseline | None,
    history: Any,
    *,
    length: int,
    num_beams: int,
) -> Beams:
    """Beam search under a mask, or under none: the best of all M * V continuations at every step.

    Args:
        backbone: see `gr.decoding.beam_search`.
        baseline: the set of semantic IDs; None for no constraint.
        history: the input of the backbone's `prefill`.
        length: L.
        num_beams: M.
    """
    logits, _, cache = backbone.prefill(history)
    logits = logits[:, None, :]
    batch, _, vocab_size = logits.shape
    prefixes, scores = jnp.zeros((batch, 1, 0), jnp.int32), jnp.zeros((batch, 1), jnp.float32)
    parents = None  # At the root there are none.
    for depth in range(length):
        if depth > 0:
            cache = backbone.reorder(cache, parents)
            logits, _, cache = backbone.step(prefixes[..., -1], cache)
        offset = scores - jax.nn.logsumexp(logits, axis=-1)
        total = offset[..., None] + logits
        if baseline is not None:
            total = jnp.where(baseline.allowed(prefixes, logits), total, -jnp.inf)
        total = total.reshape(batch, -1)
        scores, chosen = jax.lax.top_k(total, min(num_beams, total.shape[1]))
        parents, tokens = chosen // vocab_size, chosen % vocab_size
        kept = jnp.take_along_axis(prefixes, parents[..., None], axis=1)
        prefixes = jnp.concatenate([kept, tokens[..., None]], axis=-1)
    return Beams(prefixes, scores)


# Nested dictionaries on the host.


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class CpuTrie:
    """Dictionaries in dictionaries, asked through a callback from the device at every step."""

    root: dict[int, Any]  # Token -> dictionary of the next level; below the last token None.
    vocab_size: int

    @staticmethod
    def build(ids: SortedIds, vocab_size: int) -> "CpuTrie":
        """From sorted semantic IDs, so that each new dictionary hangs on the path of the one before."""
        length = len(ids.columns)
        path: list[dict] = [{}] * length
        path[0] = {}
        gc.disable()  # Millions of dictionaries would be looked through again and again.
        try:
            rows = zip(*(column.tolist() for column in ids.columns), strict=True)
            for shared, row in zip(ids.shared.tolist(), rows, strict=True):
                for depth in range(shared, length - 1):
                    path[depth + 1] = path[depth][row[depth]] = {}
                path[-1][row[-1]] = None
            gc.freeze()
        finally:
            gc.enable()
        return CpuTrie(path[0], vocab_size)

    def allowed(self, prefixes: jax.Array, logits: jax.Array) -> jax.Array:
        """See `Baseline.allowed`."""
        mask = jax.ShapeDtypeStruct(logits.shape, bool)
        return jax.pure_callback(self._allowed, mask, prefixes)

    def _allowed(self, prefixes: np.ndarray) -> np.ndarray:
        prefixes = np.asarray(prefixes)
        mask = np.zeros((*prefixes.shape[:-1], self.vocab_size), bool)
        rows = mask.reshape(-1, self.vocab_size)
        for row, prefix in zip(rows, prefixes.reshape(len(rows), -1).tolist(), strict=True):
            node = self.root
            for token in prefix:
                node = node.get(token)
                if node is None:
                    break
            else:
                row[list(node)] = True
        return mask


# A hashed bitmap.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HashBitmap:
    """One bit for the hash of every prefix; may give false positives."""

    octets: jax.Array  # [2**address_bits / 8] uint8.
    address_bits: int = dataclasses.field(metadata={"static": True})

    @staticmethod
    def build(ids: SortedIds, address_bits: int | None = None) -> "HashBitmap":
        """Of all prefixes; 16 bits for each of them, but 2**27 at least, unless `address_bits` is given."""
        prefixes = ids.num_items * len(ids.columns)
        if address_bits is None:
            address_bits = min(max(27, (16 * prefixes - 1).bit_length()), 32)
        octets = np.zeros(1 << (address_bits - 3), np.uint8)
        hashes = np.zeros(ids.num_items, np.uint32)
        for column in ids.columns:
            hashes = _extend(hashes, column.astype(np.uint32))
            octet, bit = _address(hashes, address_bits)
            for place in range(8):
                # All that are marked at once set the same bit, so that repeats do no harm.
                octets[octet[bit == place]] |= np.uint8(1 << place)
        return HashBitmap(jax.device_put(octets), address_bits)

    def allowed(self, prefixes: jax.Array, logits: jax.Array) -> jax.Array:
        """See `Baseline.allowed`; true for all tokens that may follow, and for a few others."""
        hashes = jnp.zeros(prefixes.shape[:-1], jnp.uint32)
        for depth in range(prefixes.shape[-1]):
            hashes = _extend(hashes, prefixes[..., depth].astype(jnp.uint32))
        hashes = _extend(hashes[..., None], jnp.arange(logits.shape[-1], dtype=jnp.uint32))
        octet, bit = _address(hashes, self.address_bits)
        return (self.octets[octet] >> bit.astype(jnp.uint8)) & 1 != 0


def _extend(hashes: Any, tokens: Any) -> Any:
    """32-bit hashes of prefixes that are one token longer; for NumPy and JAX alike.

    The token is added last, so that all continuations of a prefix lie side by side: a beam's probes then fall on a
    few cache lines. What was there before is mixed (the finaliser of MurmurHash3), so that prefixes lie at random.
    """
    hashes = hashes + np.uint32(0x9E3779B9)  # Mixing leaves 0 as it is.
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashes = (hashes ^ (hashes >> np.uint32(shift))) * np.uint32(multiplier)
    return (hashes ^ (hashes >> np.uint32(16))) + tokens


def _address(hashes: Any, address_bits: int) -> tuple[Any, Any]:
    """The octet and the bit in it that stand for a hash."""
    place = hashes & np.uint32((1 << address_bits) - 1)
    return place >> np.uint32(3), place & np.uint32(7)


# Binary search over the sorted semantic IDs.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefixVerification:
    """Parallel prefix verification (PPV): only the sorted table, searched for each prefix and each token.

    A beam's prefix is looked up first; its rows are sorted by the next token, for which every candidate searches.
    """

    columns: tuple[jax.Array, ...]  # [L]: [N] tokens of one level, rows in lexicographic order.
    # Tokens of each beam that are looked for, those with the highest logits; None for all of them, which is exact.
    num_candidates: int | None = dataclasses.field(metadata={"static": True})

    @staticmethod
    def build(ids: SortedIds, num_candidates: int | None = None) -> "PrefixVerification":
        """From sorted semantic IDs."""
        return PrefixVerification(tuple(jax.device_put(ids.columns)), num_candidates)

    def allowed(self, prefixes: jax.Array, logits: jax.Array) -> jax.Array:
        """See `Baseline.allowed`."""
        vocab_size = logits.shape[-1]
        every = self.num_candidates is None or self.num_candidates >= vocab_size
        if every:
            candidates = jnp.broadcast_to(jnp.arange(vocab_size, dtype=jnp.int32), logits.shape)
        else:
            _, candidates = jax.lax.top_k(logits, self.num_candidates)
        begin = self._first_row(prefixes, beyond=False)[..., None]
        end = self._first_row(prefixes, beyond=True)[..., None]
        column = self.columns[prefixes.shape[-1]]

        def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low + high) // 2
            below = self._tokens(column, middle) < candidates
            return _narrowed(low, high, middle, below)

        bounds = tuple(jnp.broadcast_to(bound, candidates.shape) for bound in (begin, end))
        row, _ = jax.lax.while_loop(lambda b: (b[0] < b[1]).any(), halve, bounds)
        found = (row < end) & (self._tokens(column, row) == candidates)
        if every:
            return found
        user = jnp.arange(len(logits))[:, None, None]
        beam = jnp.arange(logits.shape[1])[:, None]
        return jnp.zeros(logits.shape, bool).at[user, beam, candidates].set(found)

    def _first_row(self, prefixes: jax.Array, beyond: bool) -> jax.Array:
        """The first row `[B, M]` that is not less than a prefix, or that is greater, in its first t tokens."""
        num_rows = len(self.columns[0])
        low = jnp.zeros(prefixes.shape[:-1], jnp.int32)
        high = jnp.full_like(low, num_rows)

        def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low + high) // 2
            below = jnp.full(middle.shape, beyond)
            for depth in reversed(range(prefixes.shape[-1])):
                here = self._tokens(self.columns[depth], middle)
                token = prefixes[..., depth]
                below = jnp.where(here == token, below, here < token)
            return _narrowed(low, high, middle, below)

        return jax.lax.fori_loop(0, num_rows.bit_length(), halve, (low, high))[0]

    def _tokens(self, column: jax.Array, rows: jax.Array) -> jax.Array:
        return column.at[rows].get(mode="clip").astype(jnp.int32)


def _narrowed(
    low: jax.Array, high: jax.Array, middle: jax.Array, below: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The half of `[low, high)` that is left; an empty interval stays as it is."""
    is_open = low < high
    return jnp.where(is_open & below, middle + 1, low), jnp.where(is_open & ~below, middle, high)
