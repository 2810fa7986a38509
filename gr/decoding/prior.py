"""A prior over items mixed into a search: `P(s) = (1 - a) P_model(s) + a mass(s)` for every prefix s.

`mass(s)` is the share of a user's prior weight on items below s. The mixture is over whole items, not code by code.
Beams carry `log P_model` and are ranked by `log P`.

The items of a prior, sorted by semantic ID, are a small trie of their own: the items below a prefix stand side by side,
as an interval. So a state of the search is paired with its interval, and a mass is the difference of two running sums.

The M best children by P are among the M best by P_model and the children with prior items, of which a user has at most
S: any other child has P = (1 - a) P_model, and M children have at least its P_model. So a step of the search stays what
it is, and only a few children are added to it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.decoding.candidates import DecodingError
from gr.decoding.checked import Checked, users_of
from gr.decoding.softmax import LOWEST, Softmax, centred, softmax
from gr.decoding.sources import Located, Source, emptied
from gr.decoding.top_k import take_along, top_k
from gr.decoding.trie_step import Step
from gr.memory import ItemPrior
from gr.models import item_share
from gr.trie.inputs import as_int32, is_known, shown
from gr.trie.transitions import Depth

# What the weights of a user are divided by: the sum over the items that the request's constraint allows, or over all
# items of the index. Items that are not allowed have no mass in either case.
ALLOWED = "allowed"
ALL = "all"

# So many pairs of codes are compared by an accelerator, which would wait for the host in each round of a search.
_COMPARED = 1 << 28

TOWER_ITEMS = 512  # Of an item tower: its most probable items; to it, others have probability 0.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PriorRequest:
    """A prior as an argument of a compiled program; made by `as_request`."""

    items: jax.Array  # [B, S] int32.
    weights: jax.Array  # [B, S] float32.
    prior_weight: jax.Array  # [] or [B] float32, in [0, 1].
    over: str = dataclasses.field(metadata={"static": True})


def as_request(prior: ItemPrior | None, prior_weight: Any, over: str = ALLOWED) -> Any:
    """Checks a prior before anything is compiled; None without a prior.

    Args:
        prior: items and weights `[B, S]`.
        prior_weight: a number in [0, 1], or one for each user, `[B]`. All numbers share one compiled program.
        over: ALLOWED or ALL.

    Raises:
        DecodingError: for a wrong type, shape or value; values of traced arrays are not checked.
    """
    if over not in (ALLOWED, ALL):
        raise DecodingError(f"prior_over={over!r} is unknown: use {ALLOWED} or {ALL}")
    if prior is None:
        return None
    if not isinstance(prior, ItemPrior):
        raise DecodingError(
            f"prior must be an ItemPrior(items [B, S], weights [B, S]), got {type(prior).__name__}"
        )
    items = _array(prior.items, "prior.items", "integers [B, S]", floats=False)
    weights = _array(prior.weights, "prior.weights", "numbers [B, S]")
    if items.ndim != 2 or items.shape != weights.shape:
        raise DecodingError(
            "prior.items and prior.weights must both be [B, S], got shapes "
            f"{list(items.shape)} and {list(weights.shape)}"
        )
    share = _array(prior_weight, "prior_weight", "a number, or one a user [B]")
    if share.shape not in ((), items.shape[:1]):
        raise DecodingError(
            f"prior_weight must be a number, or one for each of the prior's {len(items)} users, got shape "
            f"{list(share.shape)}"
        )
    weights, share = weights.astype(np.float32), share.astype(np.float32)
    _check(weights, "prior.weights", "finite and not negative", 0.0, np.finfo(np.float32).max)
    _check(share, "prior_weight", "in [0, 1]", 0.0, 1.0)
    return PriorRequest(as_int32(items), weights, share, over)


def _array(values: Any, name: str, wanted: str, floats: bool = True) -> np.ndarray | jax.Array:
    """Values as an array of integers, or of floats too."""
    array = values
    if not isinstance(values, np.ndarray | jax.Array):
        try:
            array = np.asarray(values)
        except (TypeError, ValueError):
            raise DecodingError(f"{name} must be {wanted}: rows differ in length") from None
    if array.dtype.kind not in "iu" and not (floats and jnp.issubdtype(array.dtype, jnp.floating)):
        raise DecodingError(f"{name} must be {wanted}, got {shown(array)}")
    return array


def _check(array: Any, name: str, wanted: str, low: float, high: float) -> None:
    if not is_known(array):
        return
    with jax.transfer_guard_device_to_host("allow"):
        values = np.asarray(array)
    wrong = ~((values >= low) & (values <= high))
    if wrong.any():
        raise DecodingError(f"{name} must be {wanted}, got {values[wrong].flat[0]}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TowerPrior:
    """What a model's item tower says of its most probable items; see `gr.models.item_share`."""

    items: jax.Array  # [B, S] int32.
    probs: jax.Array  # [B, S] float32: of each among all items.
    share: float = dataclasses.field(metadata={"static": True})

    @staticmethod
    def of(
        backbone: Any, history: Any, first: tuple, inverse: jax.Array | None
    ) -> tuple["TowerPrior | None", tuple]:
        """The items of a backbone's tower, or None, and `first`; see `with_prior`."""
        share = item_share(backbone)
        if not share:
            return None, first
        tower = backbone.tower
        item_logits = tower.item_logits(tower.last_state(history)).astype(jnp.float32)[:, None]
        among = softmax(item_logits, inverse)
        probs = jnp.exp(among.of(item_logits)[:, 0])
        probs, items = top_k(probs, min(TOWER_ITEMS, probs.shape[1]))
        logits, hidden, cache = first
        logits, hidden = jax.tree.map(
            lambda outputs: jnp.where(among.flawed, jnp.nan, outputs), (logits, hidden)
        )
        return TowerPrior(items, probs, share), (logits, hidden, cache)


def moderate(weights: jax.Array) -> jax.Array:
    """Weights `[B, S]`, multiplied so that no sum overflows, and no reciprocal of one is too small for a float32."""
    largest = weights.max(axis=1, keepdims=True, initial=0.0)  # There may be no item at all.
    small = jnp.where(largest < 2.0**-32, 2.0**64, 1.0)
    return weights * jnp.where(largest > 2.0**32, 2.0**-64, small)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SortedPrior:
    """The items of a prior that may be decoded, sorted by semantic ID; n of a user's S places are in use."""

    tokens: jax.Array  # [B, L, S] int32.
    # [B, L, S] bool: whether place j is the first of the items that share its first t + 1 codes.
    first: jax.Array
    ends: jax.Array  # [B, L, S] int32: the place behind the last of them.
    # [B, S + 1] float32 each: running sums of the weights, and what float32 loses of them. So the difference of two
    # sums is as exact as a sum of the few weights in between.
    sums: jax.Array
    rests: jax.Array
    total: jax.Array  # [B] float32: what a mass is divided by; not 0.
    share: jax.Array  # [B] float32: a; 0 for users without any mass.
    count: jax.Array  # [B] int32: n.

    @staticmethod
    def of(
        source: Source, request: PriorRequest | None, tower: TowerPrior | None = None
    ) -> "SortedPrior":
        """The items of a request's prior, and of a model's item tower, as the source knows them.

        With both, `P = (1 - a) ((1 - b) P_codes + b P_items) + a mass`, b the tower's share. That is a mixture of
        P_codes with one prior of weight `a + (1 - a) b`.
        """
        parts = [part.items for part in (request, tower) if part is not None]
        items = jnp.concatenate([jnp.asarray(part) for part in parts], axis=1)
        items = jnp.pad(items, ((0, 0), (0, 1)), constant_values=-1)  # S >= 1.
        found = source.locate(items)
        if tower is None:
            weights, mine = _weights(request, found.known[:, :-1], found.allowed[:, :-1])
            mine = jnp.pad(mine, ((0, 0), (0, 1)))
            share = jnp.asarray(request.prior_weight)
        else:
            mine, share = _with_tower(found, request, tower)

        place = jnp.broadcast_to(jnp.arange(items.shape[1], dtype=jnp.int32), items.shape)
        mine, *levels = _in_order(found, mine > 0, place, (mine, *found.tokens))
        count = (mine > 0).sum(axis=1, dtype=jnp.int32)
        tokens = jnp.stack(levels, axis=1)
        differs = jnp.pad(
            tokens[..., 1:] != tokens[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=True
        )
        first = jax.lax.cummax(differs.astype(jnp.int32), axis=1) > 0
        first |= (place >= count[:, None])[:, None]
        behind = jnp.where(first, place[:, None], items.shape[1])[..., 1:]
        behind = jnp.pad(behind, ((0, 0), (0, 0), (0, 1)), constant_values=items.shape[1])
        # On a CPU in half the time of `cummin`.
        ends = jax.lax.associative_scan(jnp.minimum, behind, reverse=True, axis=2)

        sums, rests = jax.lax.associative_scan(_added, (mine, jnp.zeros_like(mine)), axis=1)
        sums, rests = (jnp.pad(part, ((0, 0), (1, 0))) for part in (sums, rests))
        total = sums[:, -1]
        if tower is not None:
            total = jnp.ones_like(total)  # The weights are probabilities already.
        elif request.over == ALL:
            total = weights.sum(axis=1)
        share = jnp.where(count > 0, share, 0.0)
        return SortedPrior(
            tokens, first, ends, sums, rests, jnp.where(count > 0, total, 1.0), share, count
        )

    def normalised(self) -> "SortedPrior":
        """The prior with masses that add up to 1, and with the weight that leaves P the same but for a factor."""
        mass = self.mass(jnp.zeros_like(self.count)[:, None], self.count[:, None])[:, 0]
        share = self.share * mass / (1.0 - self.share + self.share * mass)
        total = jnp.where(self.count > 0, self.sums[:, -1], 1.0)
        return dataclasses.replace(self, share=jnp.where(self.share > 0, share, 0.0), total=total)

    def mass(self, begin: jax.Array, end: jax.Array) -> jax.Array:
        """The masses `[B, ...]` of intervals of places; exactly 0 for an empty one."""
        shape = begin.shape
        begin, end = (jax.lax.collapse(x, 1) for x in (begin, end))  # See `log_mixture`.

        return self._divided(lambda sums: take_along(sums, end) - take_along(sums, begin)).reshape(
            shape
        )

    def masses(self, depth: int) -> jax.Array:
        """The masses `[B, S]` of the prefixes of `depth + 1` codes, at the first place of each."""
        return self._divided(lambda sums: take_along(sums, self.ends[:, depth]) - sums[:, :-1])

    def _divided(self, between: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Masses from differences `between` running sums, `[B, n]`."""
        return (between(self.sums) + between(self.rests)) / self.total[:, None]

    def log_mixture(self, log_probs: jax.Array, masses: jax.Array) -> jax.Array:
        """`log P [B, ...]` of prefixes by `log P_model` and masses; -inf stays, and a = 0 changes nothing."""
        shape = log_probs.shape
        # In rows, which a CPU goes through several times as fast as through a short last axis.
        log_probs, masses = (jax.lax.collapse(x, 1) for x in (log_probs, masses))
        share = self.share[:, None]
        of_model = log_probs + jnp.maximum(jnp.log1p(-share), LOWEST)
        of_prior = share * masses
        # A sum of probabilities costs half of `logaddexp`. Small ones are multiplied, since float32 ends at 1e-38.
        small = (of_model < -60.0) & (of_prior < 1e-20)
        power = jnp.where(small, np.float32(96 * np.log(2.0)), 0.0)
        both = jnp.exp(of_model + power) + of_prior * jnp.where(small, np.float32(2.0**96), 1.0)
        both = jnp.maximum(jnp.log(both) - power, of_model)
        exist = (of_prior > 0) & (log_probs > -jnp.inf)
        return jnp.where(exist, both, of_model).reshape(shape)

    def below(
        self, depth: Depth, begin: jax.Array, end: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The intervals of prefixes of `depth` codes, continued by tokens; empty where no prior item is below.

        Args:
            depth: static, or like `begin`.
            begin: with `end` the intervals of the prefixes; like the tokens, or to be broadcast to them.
            end: see `begin`.
            tokens: `[B, ...]`.
        """
        shape = tokens.shape
        asked = jnp.broadcast_arrays(begin, end, tokens)
        if not isinstance(depth, int):
            depth = jax.lax.collapse(jnp.broadcast_to(depth, shape), 1)
        by_search, by_count = (
            functools.partial(way, depth) for way in (self._below_by_search, self._below_by_count)
        )
        few = tokens.size * self._codes(depth)[0].shape[1] <= _COMPARED
        low, until = jax.lax.platform_dependent(
            *(jax.lax.collapse(x, 1) for x in asked),
            cpu=by_search,
            default=by_count if few else by_search,
        )
        there = until > low
        return jnp.where(there, low, 0).reshape(shape), jnp.where(there, until, 0).reshape(shape)

    def _codes(self, depth: Depth) -> tuple[jax.Array, Depth]:
        """Codes `[B, P]` to look for those of a depth in, and where its places begin among them."""
        if isinstance(depth, int):
            return self.tokens[:, depth], 0
        return jax.lax.collapse(self.tokens, 1), depth * self.tokens.shape[2]

    def _below_by_search(
        self, depth: Depth, begin: jax.Array, end: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Where the tokens begin and end in intervals, `[B, n]` each; the same place twice for none."""
        size = self.tokens.shape[2]
        codes, row = jax.lax.collapse(self.tokens, 1), jnp.asarray(depth, jnp.int32) * size

        def closer(found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            step, low = found  # Places before `low` are smaller.
            ahead = low + step
            token = take_along(codes, row + jnp.minimum(ahead - 1, size - 1))
            return step >> 1, jnp.where((ahead <= end) & (token < tokens), ahead, low)

        # As many rounds as the longest interval needs, of which there are few behind the first codes.
        longest = (end - begin).max(initial=0)
        first = jnp.int32(1) << (31 - jax.lax.clz(jnp.maximum(longest, 1)))
        _, low = jax.lax.while_loop(lambda found: found[0] > 0, closer, (first, begin))
        at = row + jnp.minimum(low, size - 1)
        there = (low < end) & (take_along(codes, at) == tokens)
        return low, jnp.where(there, take_along(jax.lax.collapse(self.ends, 1), at), low)

    def _below_by_count(
        self, depth: Depth, begin: jax.Array, end: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The same for an accelerator, which compares all codes at once sooner than it reads a few in turns."""
        codes, row = self._codes(depth)
        place = jnp.arange(codes.shape[1], dtype=jnp.int32)
        inside = (place >= (row + begin)[..., None]) & (place < (row + end)[..., None])
        smaller, equal = (
            (inside & found).sum(-1, dtype=jnp.int32)
            for found in (codes[:, None] < tokens[..., None], codes[:, None] == tokens[..., None])
        )
        return begin + smaller, begin + smaller + equal


def _weights(
    request: PriorRequest, known: jax.Array, allowed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The weights of a request's items `[B, S]`, 0 for those that are not known, and those of the allowed ones."""
    weights = jnp.asarray(request.weights)
    weights = moderate(jnp.where((weights > 0) & (weights < jnp.inf) & known, weights, 0.0))
    return weights, jnp.where(allowed, weights, 0.0)


def _with_tower(
    found: Located, request: PriorRequest | None, tower: TowerPrior
) -> tuple[jax.Array, jax.Array]:
    """Masses of all located items `[B, S]`, and the weight `[B]` of the prior that they make; see `SortedPrior.of`."""
    size = tower.items.shape[1]
    probs = jnp.pad(tower.probs, ((0, 0), (0, 1)))
    probs = jnp.where(found.allowed[:, -size - 1 :], probs, 0.0)
    if request is None:
        return probs, jnp.full(len(probs), tower.share)
    weights, mine = _weights(request, found.known[:, : -size - 1], found.allowed[:, : -size - 1])
    some = (mine > 0).any(axis=1)
    total = (weights if request.over == ALL else mine).sum(axis=1)
    of_request = jnp.where(some, jnp.asarray(request.prior_weight), 0.0)
    of_tower = (1.0 - of_request) * tower.share
    share = of_request + of_tower
    mine = mine * (of_request / jnp.where(some, total, 1.0) / share)[:, None]
    return jnp.concatenate([mine, probs * (of_tower / share)[:, None]], axis=1), share


def _in_order(
    found: Located, used: jax.Array, place: jax.Array, moved: tuple[jax.Array, ...]
) -> list[jax.Array]:
    """What belongs to items, `[B, S]` each, in the order of their keys; unused places come last."""
    size = place.shape[1]
    one = found.below is not None and (found.below + 1) * size <= 2**31
    if one:
        # Key and place in one number: a CPU sorts numbers alone several times faster than pairs.
        numbers = (jnp.where(used, found.keys[0], found.below) * size + place,)
    else:
        last = jnp.iinfo(jnp.int32).max
        numbers = (*(jnp.where(used, key, last) for key in found.keys), place)

    def together(numbers: tuple[jax.Array, ...], moved: tuple[jax.Array, ...]) -> list[jax.Array]:
        """For a TPU, to which reading in another order costs more than the whole sort."""
        return list(jax.lax.sort((*numbers, *moved), num_keys=len(numbers)))[len(numbers) :]

    def by_places(numbers: tuple[jax.Array, ...], moved: tuple[jax.Array, ...]) -> list[jax.Array]:
        *_, order = jax.lax.sort(numbers, num_keys=len(numbers))
        if one:
            order = jax.lax.rem(order, jnp.int32(size))
        return [take_along(part, order) for part in moved]

    return jax.lax.platform_dependent(numbers, moved, tpu=together, default=by_places)


def _added(left: tuple, right: tuple) -> tuple[jax.Array, jax.Array]:
    """The sum of two numbers, each given as a float32 and a small rest (Knuth's two-sum)."""
    total = left[0] + right[0]
    part = total - left[0]
    lost = (left[0] - (total - part)) + (right[0] - part)
    rest = lost + left[1] + right[1]
    rounded = total + rest
    return rounded, rest - (rounded - total)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Below:
    """States of a source, each with the prior items below it."""

    states: Any  # The source's.
    begin: jax.Array  # [B, M] int32: the first of them in the `SortedPrior`.
    end: jax.Array  # [B, M] int32: behind the last; equal to `begin` where there is none.


def _beams_of_places(prior: SortedPrior, depth: int, begin: jax.Array, end: jax.Array) -> jax.Array:
    """The beam `[B, S]` that holds each place in its interval, -1 for none, of beams of a depth, `[B, M]`."""
    size = prior.tokens.shape[2]
    beam = jnp.broadcast_to(jnp.arange(end.shape[1], dtype=jnp.int32), end.shape)

    def by_ends(begin: jax.Array, end: jax.Array) -> jax.Array:
        """Beams are named by the ends of their intervals, which all differ."""
        of_end = jnp.full((len(end), size + 1), -1)
        ends = jnp.where(end > begin, end, size + 1)
        of_end = of_end.at[jnp.arange(len(end))[:, None], ends].set(beam, mode="drop")
        mine = prior.ends[:, depth - 1] if depth else prior.count[:, None]
        used = jnp.arange(size, dtype=jnp.int32) < prior.count[:, None]
        return take_along(of_end, jnp.where(used, mine, 0))

    def by_comparing(begin: jax.Array, end: jax.Array) -> jax.Array:
        """For an accelerator, which compares a place with all beams sooner than it writes and reads a table."""
        place = jnp.arange(size, dtype=jnp.int32)[:, None]
        inside = (place >= begin[:, None]) & (place < end[:, None])
        return jnp.where(inside, beam[:, None] + 1, 0).sum(-1, dtype=jnp.int32) - 1

    return jax.lax.platform_dependent(begin, end, cpu=by_ends, default=by_comparing)


def _marked(places: jax.Array, size: int) -> jax.Array:
    """`[B, size]` bool: whether a place is among `places [B, n]`, of which those from `size` on count for nothing."""

    def by_writing(places: jax.Array) -> jax.Array:
        user = jnp.arange(len(places))[:, None]
        return jnp.zeros((len(places), size), bool).at[user, places].set(True, mode="drop")

    def by_comparing(places: jax.Array) -> jax.Array:
        """For an accelerator, as in `_beams_of_places`."""
        return (places[:, None] == jnp.arange(size, dtype=jnp.int32)[:, None]).any(-1)

    return jax.lax.platform_dependent(places, cpu=by_writing, default=by_comparing)


@dataclasses.dataclass(frozen=True)
class WithPrior:
    """A source whose beams are ranked by the mixture of model and prior; their scores stay the model's."""

    source: Any  # A `Source`; a `Listing` for searches that list.
    prior: SortedPrior

    @property
    def length(self) -> int:
        """See `Source`."""
        return self.source.length

    @property
    def unique_depth(self) -> int:
        """See `Source`."""
        return self.source.unique_depth

    @property
    def axis(self) -> str | None:
        """See `Listing`."""
        return self.source.axis

    @property
    def scan_depth(self) -> int:
        """See `Listing`."""
        return self.source.scan_depth

    @property
    def scanned_fan_out(self) -> int:
        """See `Listing`."""
        return self.source.scanned_fan_out

    def fan_out(self, depth: int) -> int:
        """See `Listing.fan_out`."""
        return self.source.fan_out(depth)

    def most_children(self, depth: int) -> int:
        """See `Listing.most_children`."""
        return self.source.most_children(depth)

    def root(self, batch: int) -> Below:
        """See `Source.root`."""
        count = self.prior.count[:, None]
        return Below(self.source.root(batch), jnp.zeros_like(count), count)

    def best(
        self,
        depth: int,
        states: Below,
        before: jax.Array,
        logits: jax.Array,
        softmax: Softmax,
        width: int,
    ) -> Step:
        """See `Source.best`; ranked by the mixture."""
        step = self.source.best(depth, states.states, before, logits, softmax, width)

        def log_probs(beams: jax.Array, tokens: jax.Array) -> jax.Array:
            # Rounded as in `best_children`.
            at = beams * logits.shape[-1] + tokens
            offset = take_along(before - softmax.log_total, beams)
            mine = take_along(jax.lax.collapse(logits, 1), at)
            return centred(mine, take_along(softmax.largest, beams), softmax.inverse) + offset

        return self.merged(depth, states, step, log_probs)

    def merged(
        self,
        depth: int,
        states: Below,
        step: Step,
        log_probs: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> Step:
        """The best children by the mixture, from the best by the model and from those with prior items.

        Args:
            depth: of the states; static.
            states: the beams `[B, M]`.
            step: their best children by the model, as the source gives them.
            log_probs: `log P_model [B, S]` of the children of `beams [B, S]` by `tokens [B, S]`.
        """
        prior = self.prior
        place = jnp.arange(prior.tokens.shape[2], dtype=jnp.int32)
        beams = _beams_of_places(prior, depth, states.begin, states.end)
        tokens, first = prior.tokens[:, depth], prior.first[:, depth]

        # Children that the model's step has found already are left out.
        begin, end = (take_along(bound, step.parents) for bound in (states.begin, states.end))
        begin, end = prior.below(depth, begin, end, step.tokens)
        exist = step.scores > -jnp.inf
        begin, end = emptied((begin, end), exist)
        found = _marked(jnp.where(end > begin, begin, len(place)), len(place))
        # Without a weight nothing is added, so that rounding cannot change the search.
        new = first & (beams >= 0) & ~found & (prior.share > 0)[:, None]
        parents = jnp.maximum(beams, 0)
        scores = jnp.where(new, log_probs(parents, jnp.where(new, tokens, 0)), -jnp.inf)

        def both(of_model: jax.Array, of_prior: jax.Array) -> jax.Array:
            return jnp.concatenate([of_model, of_prior], axis=1)

        masses = both(prior.mass(begin, end), prior.masses(depth))
        begin = both(begin, jnp.where(new, place, 0))
        end = both(end, jnp.where(new, prior.ends[:, depth], 0))
        scores = both(step.scores, scores)
        # As many as before: a step that is narrower than asked for holds all children.
        ranks, chosen = top_k(prior.log_mixture(scores, masses), step.scores.shape[1])
        parents = take_along(both(step.parents, parents), chosen)
        tokens = take_along(both(step.tokens, tokens), chosen)
        exist = ranks > -jnp.inf
        above = jax.tree.map(lambda array: take_along(array, parents), states.states)
        below = self.source.descend(depth, emptied(above, exist), jnp.where(exist, tokens, -1))
        bounds = emptied((take_along(begin, chosen), take_along(end, chosen)), exist)
        return Step(take_along(scores, chosen), parents, tokens, Below(below, *bounds))

    def continuations(self, depth: Depth, states: Below) -> tuple[jax.Array, jax.Array]:
        """See `Listing.continuations`."""
        return self.source.continuations(depth, states.states)

    def child_rows(self, depth: Depth, states: Below) -> tuple[jax.Array, jax.Array]:
        """See `Listing.child_rows`."""
        return self.source.child_rows(depth, states.states)

    def sizes(self, depth: Depth, states: Below) -> jax.Array:
        """See `Listing.sizes`."""
        return self.source.sizes(depth, states.states)

    def descend(self, depth: Depth, states: Below, tokens: jax.Array) -> Below:
        """See `Listing.descend`."""
        below = self.source.descend(depth, states.states, tokens)
        return Below(below, *self.prior.below(depth, states.begin, states.end, tokens))

    def complete(self, states: Below) -> tuple[Below, jax.Array]:
        """See `Source.complete`; a single item is left below each state, so that masses stay as they are."""
        inner, tokens = self.source.complete(states.states)
        return dataclasses.replace(states, states=inner), tokens

    def exist(self, states: Below) -> jax.Array:
        """See `Source.exist`."""
        return self.source.exist(states.states)

    def items(self, states: Below) -> jax.Array:
        """See `Source.items`."""
        return self.source.items(states.states)

    def softmax(
        self, depth: Depth, states: Below, logits: jax.Array, inverse: jax.Array | None
    ) -> Softmax:
        """See `Source.softmax`."""
        return self.source.softmax(depth, states.states, logits, inverse)

    def names(self, states: Below) -> jax.Array:
        """See `Source.names`."""
        return self.source.names(states.states)


def with_prior(
    source: Any,
    request: PriorRequest | None,
    model: Checked,
    history: Any,
    first: tuple,
    inverse: jax.Array | None,
    *,
    sums_to_one: bool = False,
) -> tuple[Any, tuple]:
    """The source with what is mixed into P_codes: a request's prior, a model's item tower, both, or nothing.

    Args:
        source: what is searched.
        request: made by `as_request`.
        model: the backbone.
        history: of B users.
        first: what `model.prefill` made of it.
        inverse: 1 / T of the temperature, see `inverse_of`.
        sums_to_one: whether P is to be scaled so that all allowed items together have 1 where they have it in P_model.

    Returns:
        The source, and `first`: NaN for users for whom the tower's numbers are not finite, so that the search tells of
        them.

    Raises:
        DecodingError: if the prior is for another number of users.
    """
    tower, first = TowerPrior.of(model.backbone, history, first, inverse)
    if request is None and tower is None:
        return source, first
    users = users_of(first)
    if request is not None and len(request.items) != users:
        raise DecodingError(
            f"the prior is for {len(request.items)} users, the history for {users}: pass one row per user"
        )
    prior = SortedPrior.of(source, request, tower)
    return WithPrior(source, prior.normalised() if sums_to_one else prior), first


def log_scores(source: Source, states: Any, log_probs: jax.Array) -> jax.Array:
    """`log P [B, M]` of states by their `log P_model`; the same where the source has no prior."""
    if not isinstance(source, WithPrior):
        return log_probs
    masses = source.prior.mass(states.begin, states.end)
    return source.prior.log_mixture(log_probs, masses)


def log_scores_behind(
    source: Source, depth: Depth, states: Any, tokens: jax.Array, log_probs: jax.Array
) -> jax.Array:
    """`log P [B, M, K]` of the children of states by `tokens [B, M, K]`, whose `log P_model` are given.

    `depth` is that of the states: static, or `[B, M]`.
    """
    if not isinstance(source, WithPrior):
        return log_probs
    depth = depth if isinstance(depth, int) else depth[..., None]
    bounds = source.prior.below(depth, states.begin[..., None], states.end[..., None], tokens)
    return source.prior.log_mixture(log_probs, source.prior.mass(*bounds))


def log_conditionals(
    source: Source,
    depth: Depth,
    states: Any,
    tokens: jax.Array,
    before: jax.Array,
    log_probs: jax.Array,
) -> jax.Array:
    """`log P(child) / P(state) [B, M, K]`; the model's own for users of whom the prior has nothing.

    Args:
        source: with or without a prior.
        depth: see `log_scores_behind`.
        states: `[B, M]`.
        tokens: of the children `[B, M, K]`.
        before: `log P_model` of the states `[B, M]`.
        log_probs: `log P_model(child) / P_model(state)`, `[B, M, K]`.
    """
    if not isinstance(source, WithPrior):
        return log_probs
    longer = log_scores_behind(source, depth, states, tokens, before[..., None] + log_probs)
    longer = longer - log_scores(source, states, before)[..., None]
    there = mixes(source)[:, None, None] & (log_probs > -jnp.inf)
    return jnp.where(there, longer, log_probs)


def mixes(source: WithPrior) -> jax.Array:
    """The users for whom the prior changes anything, `[B]` bool."""
    return source.prior.share > 0
