"""Checks that a backbone keeps to the protocols of decoders and losses; errors explain the violation.

Everything is compared with plain decoding: paths of the index, side by side, step by step.

* What must not affect the logits is varied: other users, other beams, later tokens.
* What must give the same logits is computed the other way: reordered beams, assembled prefixes, one pass over whole
  targets, sequences and groups.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr.decoding import DecodingError
from gr.decoding.checked import METHODS, TREE_METHODS, Checked, check_methods
from gr.errors import GrError
from gr.models import ItemHistory, reads_items, scores_children
from gr.testing.semantic_ids import random_paths
from gr.trie import NO_NODE, TrieIndex, walk

_LARGEST_CONSTANT = 64  # Elements; a larger array of floats that is no leaf counts as weights.
_PLACES = 4  # Items of a sequence that are checked.


class ConformanceError(GrError):
    """Raised for a backbone that does not keep to its protocol; names the method, what is wrong, and where."""


class _Refused(ConformanceError):
    """Raised for a method that raises a `GrError`."""


def check_backbone(
    backbone: Any,
    history: Any,
    index: TrieIndex,
    *,
    num_beams: int = 3,
    rtol: float = 1e-3,
    closed_over: bool = False,
    seed: int = 0,
) -> tuple[str, ...]:
    """Checks a backbone against the protocols of `gr.models`: `Backbone`, `TreeBackbone` and `Trainable`.

    A backbone with `latest` or `assemble` is a `TreeBackbone`. Of `Trainable`, the methods that exist are checked; a
    method that raises a `GrError`, because it does not support these settings, is skipped. A backbone that says
    `scores_children` is a `ChildScorer`: its scores of nodes of the trie are compared in place of logits.

    Mistakes show in the logits, so these must depend on the inputs: use trained parameters, or random ones larger than
    at initialisation, and histories of several items.

    Args:
        backbone: the backbone to check, without dropout.
        history: the input of `prefill`, with leading axis B, of two or more users with different histories. To check
            methods of `Trainable`: tokens `[B, T, L]`, right-padded with 0, or an `ItemHistory` for a backbone that
            says `reads_items`.
        index: a trie of several semantic IDs in the backbone's vocabulary.
        num_beams: M, beams of a user, 2 or more.
        rtol: the largest difference, as a share of the spread of the logits; 0.05 for bfloat16.
        closed_over: whether the methods may close over weights, as functions for `backbone_of(..., params=None)` do.
        seed: random seed of the decoded paths.

    Returns:
        Names of the checked methods.

    Raises:
        ConformanceError: for the first violation.
    """
    is_tree = any(hasattr(backbone, method) for method in ("latest", "assemble"))
    methods = TREE_METHODS if is_tree else METHODS
    try:
        check_methods(backbone, methods)
    except DecodingError as error:
        raise ConformanceError(str(error)) from error
    _check_pytree(backbone)
    if reads_items(backbone) != isinstance(history, ItemHistory):
        raise ConformanceError(
            f"{type(backbone).__name__}: a backbone that says reads_items, and no other, is given histories as "
            "gr.models.ItemHistory"
        )
    history = jax.tree.map(jnp.asarray, history)
    users = _check_histories(history)
    paths, others = _different_paths(index, users, num_beams, seed)

    check = _Check(backbone, history, index, paths, is_tree, rtol)
    if check.asked:
        check.children()
        methods = (*methods, "score_children")
    check.users(others)
    check.beams(others)
    check.cache(others)
    check.reorder()
    if is_tree:
        check.tree()
    if not closed_over:
        check.constants()
    return (*methods, *check.training(others))


class _Check:
    """A backbone, its inputs, and the logits of plain decoding."""

    def __init__(
        self,
        backbone: Any,
        history: Any,
        index: TrieIndex,
        paths: jax.Array,  # [B, M, L].
        is_tree: bool,
        rtol: float,
    ):
        self.backbone, self.history, self.index, self.paths = backbone, history, index, paths
        self.is_tree = is_tree
        self.name, self.length, self.vocab = type(backbone).__name__, index.length, index.vocab_size
        # Tokens and rows `[K]` of nodes that a `ChildScorer` is asked for behind every prefix.
        self.asked = _nodes(index) if scores_children(backbone) else None
        self.decode = self.compiled(self._decode)
        self.plain = _numbers(self.decode(history, paths))  # [B, M, L, V].
        for code in range(self.length):
            logits = self.plain[:, :, code]
            if np.isnan(logits).any() or (logits == np.inf).any():
                raise self.error(
                    "step" if code else "prefill",
                    f"NaN or +inf among the logits of code {code + 1}",
                )
        finite = self.plain[np.isfinite(self.plain)]
        self.spread = float(np.ptp(finite)) if finite.size else 0.0
        self.tolerance = rtol * self.spread
        if not self.spread:
            raise ConformanceError(
                f"{self.name} gives the same logits everywhere, so that no mistake would show: give random parameters"
            )

    # What decoding needs.

    def users(self, others: jax.Array) -> None:
        """Whether a user's logits depend on another user's history or beams."""
        count = len(self.paths)
        rows = jnp.arange(count).at[0].set(_another(self.history))
        history = jax.tree.map(lambda x: x[rows], self.history)
        found, told = self.decode(history, self.paths), "users see each other: logits change when"
        only = np.broadcast_to(np.arange(count)[:, None, None] > 0, self.plain.shape[:3])
        first, told_history = np.arange(self.length) == 0, f"{told} only the history of user 0 does"
        self.compare("prefill", told_history, found, self.plain, only=only & first)
        self.compare("step", told_history, found, self.plain, only=only)
        found = self.decode(self.history, self.paths.at[0].set(others[0]))
        self.compare("step", f"{told} only tokens of user 0 do", found, self.plain, only=only)

    def beams(self, others: jax.Array) -> None:
        """Whether a beam's logits depend on the beams beside it."""
        count = self.paths.shape[1]
        for beam in (0, count - 1):
            mine = np.arange(count)[:, None] == beam
            self.compare(
                "step",
                "beams see each other: logits change when only tokens of the user's other beams do",
                self.decode(self.history, jnp.where(mine, self.paths, others)),
                self.plain,
                only=np.broadcast_to(mine, self.plain.shape[:3]),
            )
        for beam in range(count):
            self.compare(
                "reorder",
                f"logits of beam {beam} are not those that it has alone: behind prefill there is one state a user, "
                "which parents of 0 must give to every beam",
                self.decode(self.history, self.paths[:, [beam]]),
                self.plain[:, [beam]],
            )

    def children(self) -> None:
        """Whether a child's score depends on other children, or on how it is asked for."""
        count = len(self.asked[0])
        order = np.random.default_rng(0).permutation(count)
        below = np.flatnonzero(self.asked[1] >= self.index.layout.node_offsets[1])

        def scores(model: _Model, history: Any, paths: jax.Array) -> tuple[jax.Array, ...]:
            hidden = self._decode(model, history, paths, lambda _, hidden: hidden)
            tokens, rows = (
                jnp.broadcast_to(x, (*hidden.shape[:-1], count))
                for x in map(jnp.asarray, self.asked)
            )
            return (
                model.call("score_children", hidden, tokens, rows),
                model.call("score_children", hidden, tokens[..., order], rows[..., order]),
                model.call("score_children", hidden, tokens[..., ::2], rows[..., ::2]),
                model.call("score_children", hidden, tokens, jnp.full_like(rows, NO_NODE)),
                model.call(
                    "score_children", hidden, tokens[..., below], rows[..., below], root=False
                ),
            )

        alone, ordered, few, without, of_below = map(
            _numbers, self.compiled(scores)(self.history, self.paths)
        )
        for told, found, expected in (
            (
                "scores of children of their own for each prefix are not those of shared ones",
                alone,
                self.plain,
            ),
            ("scores depend on the order of the children", ordered, self.plain[..., order]),
            (
                "a child's score depends on the other children that are asked for: give logits, which the search "
                "normalises",
                few,
                self.plain[..., ::2],
            ),
        ):
            self.compare("score_children", told, found, expected)
        self.compare(
            "score_children",
            "with below_root=True scores are not those without",
            of_below,
            self.plain[..., below],
        )
        if not (without < np.inf).all():
            raise self.error(
                "score_children",
                "NaN or +inf for a child whose row is NO_NODE, as of items that were added",
            )

    def cache(self, others: jax.Array) -> None:
        """Whether a step leaves its input cache unchanged."""

        def twice(model: _Model, history: Any, first: jax.Array, second: jax.Array) -> jax.Array:
            _, cache = model.start(history, first.shape[1])
            model.step(second, cache)
            return model.step(first, cache)[0]

        if self.length == 1:
            return
        self.compare(
            "step",
            "the cache that it is given changes: a second step from the same cache gives other logits than a first. "
            "Return a new cache and leave the old one as it is",
            self.compiled(twice)(self.history, self.paths[:, :, 0], others[:, :, 0]),
            self.plain[:, :, 1],
            "user beam",
        )

    def reorder(self) -> None:
        """Whether beams keep their state when permuted, repeated and dropped."""
        users, beams, _ = self.paths.shape
        # Of each step: the parents [B, M'] of another number of beams, then of as many, one place further; and the path
        # that each beam now follows [B, M'].
        moves, following = [], np.tile(np.arange(beams), (users, 1))
        for code in range(self.length - 2):
            count = following.shape[1]
            order = [*range(count)[::-1], 0] if code % 2 == 0 else [*range(1, count)]
            parents = (np.array(order) + np.arange(users)[:, None]) % count
            turned = np.roll(np.broadcast_to(np.arange(len(order)), parents.shape), -1, axis=1)
            for part in (parents, turned):
                following = np.take_along_axis(following, part, axis=1)
            moves.append((parents, turned, following))

        def moved(model: _Model, history: Any, paths: jax.Array) -> list[jax.Array]:
            _, cache = model.start(history, beams)
            _, _, cache = model.step(paths[:, :, 0], cache)
            found = []
            for code, (*parents, following) in enumerate(moves, start=1):
                for part in parents:
                    cache = model.reorder(cache, jnp.asarray(part))
                tokens = jnp.take_along_axis(paths[:, :, code], jnp.asarray(following), axis=1)
                logits, _, cache = model.step(tokens, cache)
                found.append(logits)
            return found

        if not moves:
            return
        found = self.compiled(moved)(self.history, self.paths)
        for code, (parents, turned, following) in enumerate(moves, start=1):
            self.compare(
                "reorder",
                f"a beam goes on with another's state: behind parents {parents[0].tolist()} of user 0, then "
                f"{turned[0].tolist()}, and the like of others, logits of code {code + 2} are not those of the same "
                "path without reordering",
                found[code - 1],
                np.take_along_axis(self.plain[:, :, code + 1], following[..., None], axis=1),
                "user beam",
            )

    def tree(self) -> None:
        """Whether prefixes of different depths continue as without a tree."""
        users, beams, _ = self.paths.shape
        size = self.length - 1  # Prefixes of 0..L-2 codes are continued, twice.
        if not size:
            return
        width, user, places = max(beams, size), np.arange(users)[:, None], np.arange(size)
        beam = np.tile(np.arange(width) % beams, (users, 1))
        depths = (np.arange(width) + user) % size
        deeper = np.minimum(depths + 1, size - 1)
        # Where each prefix is stored: the empty one, those of each plain step, those of the first step in the tree.
        stored = np.where(places == 0, 0, 1 + (places - 1) * beams + beam[..., None])
        anything = np.random.default_rng(0).integers(0, 1 + size * beams, stored.shape)
        paths = np.where(places <= depths[..., None], stored, anything)
        grown = (places == deeper[..., None]) & (deeper > depths)[..., None]
        longer = np.where(grown, 1 + size * beams + np.arange(width)[:, None], paths)
        rounds = ((paths, depths), (longer, deeper))

        def in_tree(model: _Model, history: Any, tokens: jax.Array) -> list[jax.Array]:
            _, _, first = model.prefill(history)
            parts, found = [model.latest(first, users, 1)], []
            _, cache = model.start(history, beams)
            for code in range(size):
                _, _, cache = model.step(tokens[:, :, code], cache)
                parts.append(model.latest(cache, users, beams))
            for of, at in rounds:
                joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
                cache = model.assemble(first, joined, jnp.asarray(of), jnp.asarray(at))
                logits, _, cache = model.step(tokens[user, beam, at], cache)
                parts.append(model.latest(cache, users, width))
                found.append(logits)
            return found

        for logits, (_, at) in zip(
            self.compiled(in_tree)(self.history, self.paths), rounds, strict=True
        ):
            self.compare(
                "assemble",
                f"a prefix goes on otherwise than by itself: with prefixes of {sorted(set(at[0].tolist()))} codes side "
                "by side, logits of the next code are not those of plain decoding. Either this cache is wrong, or "
                "`latest` did not return what the last step had added for each beam",
                logits,
                self.plain[user, beam, at + 1],
                "user beam",
            )

    def constants(self) -> None:
        """Whether weights are closed over, which makes them constants of every program."""

        def decode(backbone: Any, history: Any, paths: jax.Array) -> jax.Array:
            return self._decode(_Model(self, backbone), history, paths)

        program = jax.make_jaxpr(decode)(self.backbone, self.history, self.paths)
        for constant in program.consts:
            if np.size(constant) > _LARGEST_CONSTANT and jnp.issubdtype(
                jnp.result_type(constant), jnp.floating
            ):
                raise ConformanceError(
                    f"{self.name} closes over an array of {list(np.shape(constant))} numbers that is none of its "
                    "leaves: it is a constant in every program, and new values of it go unnoticed. Make it a leaf of "
                    "the pytree, or pass closed_over=True if this is meant"
                )

    # What losses need.

    def training(self, others: jax.Array) -> list[str]:
        """Whether losses see the logits of decoding; returns the methods that exist."""
        checks: dict[str, Callable[[jax.Array], None]] = {
            self.method("target"): self.target_logits,
            self.method("sequence"): self.sequence_logits,
            "group_states": self.group_states,
            "target_and_group_states": self.target_and_group_states,
            "sequence_and_group_states": self.sequence_and_group_states,
        }
        done = []
        for method, check in checks.items():
            if not hasattr(self.backbone, method) or ("group" in method and self.length == 1):
                continue
            shape = getattr(_tokens(self.history), "shape", ())
            if len(shape) != 3 or shape[1] < 2 or shape[2] != self.length:
                raise ConformanceError(
                    f"{self.name} has {method}: to check it, give histories of tokens [B, T, L], T of 2 or more and "
                    f"L = {self.length}"
                )
            try:
                check(others)
            except _Refused:
                continue
            done.append(method)
        return done

    def method(self, of: str) -> str:
        """The method of a pass over a "target" or a "sequence"."""
        return f"{of}_{'states' if self.asked else 'logits'}"

    def target_logits(self, others: jax.Array) -> None:
        """See `Trainable.target_logits` or `ChildScorer.target_states`."""
        users, method = len(self.paths), self.method("target")

        def forced(model: _Model, history: Any, target: jax.Array) -> jax.Array:
            return model.forced(method, (history, target), users, self.length)

        run, target = self.compiled(forced), self.paths[:, 0]
        found = run(self.history, target)
        for code in range(self.length):
            changed = jnp.concatenate([target[:, :code], others[:, 0, code:]], axis=1)
            self.compare(
                method,
                f"a code sees itself or later ones: logits up to code {code + 1} change when only codes of the target "
                "from there on do",
                run(self.history, changed),
                found,
                "user code",
                np.broadcast_to(np.arange(self.length) <= code, (users, self.length)),
            )
        told = "teacher-forced logits are not those of prefill and step"
        self.compare(method, told, found, self.plain[:, 0], "user code")

    def sequence_logits(self, others: jax.Array) -> None:
        """See `Trainable.sequence_logits` or `ChildScorer.sequence_states`."""
        items, method = _tokens(self.history), self.method("sequence")
        users, size, _ = items.shape

        def forced(model: _Model, items: Any) -> jax.Array:
            return model.forced(method, (items,), users, size - 1, self.length)

        run = self.compiled(forced)
        found, place = run(self.history), np.arange(1, size)
        there = (place < self.lengths()[:, None])[..., None]  # [B, T - 1, 1].
        chosen = np.unique(np.linspace(1, size - 1, _PLACES).round().astype(int))
        for item in chosen:
            changed = items.at[:, item].set(jnp.where(items[:, item] == 0, 0, others[:, 0]))
            before = (place < item)[:, None] | (
                (place == item)[:, None] & (np.arange(self.length) == 0)
            )
            self.compare(
                method,
                f"a code sees itself or later ones: logits up to the first code of item {item} change when only item "
                f"{item} of the sequences does",
                run(_with_tokens(self.history, changed)),
                found,
                "user place code",
                there & before,
            )
        for item in chosen:
            history = _with_tokens(self.history, items.at[:, item:].set(0))
            self.compare(
                method,
                f"logits of item {item} are not those of prefill and step behind the items before it",
                _numbers(found)[:, item - 1],
                _numbers(self.decode(history, items[:, None, item]))[:, 0],
                "user code",
                np.broadcast_to(there[:, item - 1], (users, self.length)),
            )

    def group_states(self, others: jax.Array) -> None:
        """See `Trainable.group_states`."""
        users, count, _ = self.paths.shape

        def forced(
            model: _Model, history: jax.Array, codes: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            first, states = model.pair("group_states", history, codes)
            first = model.logits("group_states", first, users)
            return first, model.logits("group_states", states, users, count, self.length - 1)

        first, states = self.compiled(forced)(self.history, self.paths[..., :-1])
        told = "logits of a group's first state are not those of prefill"
        self.compare("group_states", told, first, self.plain[:, 0, 0], "user")
        self.candidates("group_states", states, self.plain)

    def target_and_group_states(self, others: jax.Array) -> None:
        """See `Trainable.target_and_group_states`."""
        method, rows, (users, count, _) = "target_and_group_states", np.array([1, 0]), others.shape

        def forced(model: _Model, *inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            states, later = model.pair(method, *inputs)
            states = model.logits(method, states, users, self.length)
            return states, model.logits(method, later, len(rows), count, self.length - 1)

        states, later = self.compiled(forced)(
            self.history, self.paths[:, 0], jnp.asarray(rows), self.paths[rows, :, :-1]
        )
        told = "logits of the target's states are not those of prefill and step"
        self.compare(method, told, states, self.plain[:, 0], "user code")
        self.candidates(method, later, self.plain[rows])

    def sequence_and_group_states(self, others: jax.Array) -> None:
        """See `Trainable.sequence_and_group_states`."""
        method, rows, (_, count, _) = "sequence_and_group_states", np.array([1, 0]), others.shape
        items = _tokens(self.history)
        users, size, _ = items.shape
        places = np.maximum(self.lengths() - 1, 1)

        def forced(model: _Model, *inputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            states, later = model.pair(method, *inputs)
            states = model.logits(method, states, users, size - 1, self.length)
            later = model.logits(method, later, len(rows), count, self.length - 1)
            expected = model.forced(
                self.method("sequence"), inputs[:1], users, size - 1, self.length
            )
            return states, later, expected

        inputs = (jnp.asarray(rows), jnp.asarray(places[rows]), self.paths[rows, :, :-1])
        states, later, expected = self.compiled(forced)(self.history, *inputs)
        there = (np.arange(1, size) < self.lengths()[:, None])[..., None]
        there = np.broadcast_to(there, (users, size - 1, self.length))
        told = "logits of the sequences' states are not those of sequence_logits"
        self.compare(method, told, states, expected, "user place code", there)
        before = (jnp.arange(size) < places[:, None])[..., None]
        history = _with_tokens(self.history, jnp.where(before, items, 0))
        plain = _numbers(self.decode(history, self.paths))
        self.candidates(method, later, plain[rows])

    def candidates(self, method: str, later: jax.Array, plain: np.ndarray) -> None:
        """Compares logits of codes 2.. of a group `[Q, n, L - 1, V]` with those of plain decoding `[Q, n, L, V]`."""
        self.compare(
            method,
            "logits of candidates' states are not those of prefill and step behind the same codes",
            np.concatenate([plain[:, :, :1], _numbers(later)], axis=2),
            plain,
            "row candidate code",
        )

    # Parts.

    def lengths(self) -> np.ndarray:
        """Items of each history `[B]`."""
        return np.asarray((_tokens(self.history) != 0).any(-1).sum(-1))

    def _decode(
        self,
        model: "_Model",
        history: Any,
        paths: jax.Array,
        kept: Callable[[Any, Any], Any] = lambda logits, hidden: logits,
    ) -> jax.Array:
        """Logits `[B, M, L, V]` of all codes of paths `[B, M, L]`, decoded side by side and not reordered.

        `kept(logits, hidden)` is what is kept of each code in place of its logits.
        """
        logits, hidden, cache = model.begun(history, paths.shape[1])
        found = [kept(logits, hidden)]
        for code in range(self.length - 1):
            logits, hidden, cache = model.step(paths[:, :, code], cache)
            found.append(kept(logits, hidden))
        return jnp.stack(found, axis=2)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a `_Model` and arrays as one of arrays."""
        program = jax.jit(lambda backbone, *inputs: function(_Model(self, backbone), *inputs))
        return lambda *inputs: program(self.backbone, *inputs)

    def compare(
        self,
        method: str,
        told: str,
        found: Any,
        expected: Any,
        axes: str = "user beam code",
        only: Any = True,
    ) -> None:
        """Raises ConformanceError unless logits `[*axes, V]` are the same wherever `only` says so."""
        found, expected = _numbers(found), _numbers(expected)
        with np.errstate(invalid="ignore"):
            difference = np.where(found == expected, 0.0, np.abs(found - expected))
        difference = np.where(np.isnan(difference), np.inf, difference).max(axis=-1)
        difference = np.where(only, difference, 0.0)
        if difference.max(initial=0.0) <= self.tolerance:
            return
        worst = np.unravel_index(difference.argmax(), difference.shape)
        where = ", ".join(
            f"{axis} {place + (axis in ('code', 'place'))}"
            for axis, place in zip(axes.split(), worst, strict=True)
        )
        raise self.error(
            method,
            f"{told}. The largest difference is {difference[worst]:.3g} ({where}), where logits spread over "
            f"{self.spread:.3g}",
        )

    def error(self, method: str, told: str) -> ConformanceError:
        """The error of a method."""
        return ConformanceError(f"{self.name}.{method}: {told}")


class _Model:
    """The backbone while it is traced; errors name the method that failed."""

    def __init__(self, check: _Check, backbone: Any):
        self.check, self.backbone = check, backbone
        self.checked = Checked(backbone, check.vocab, with_hidden=check.is_tree)

    def call(self, method: str, *inputs: Any, **options: Any) -> Any:
        """The result of a method."""
        try:
            of = self.checked if hasattr(self.checked, method) else self.backbone
            return getattr(of, method)(*inputs, **options)
        except DecodingError as error:  # Of `Checked`.
            raise ConformanceError(str(error)) from error
        except GrError as error:
            raise _Refused(f"{self.check.name}.{method} raised {_said(error)}") from error
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
            raise self.check.error(
                method,
                f"it cannot be compiled ({_said(error)}). Write it with jax.numpy alone, jnp.where in place of if, no "
                "np.asarray, float() or .item()",
            ) from error
        except Exception as error:
            raise self.check.error(method, f"it raised {_said(error)}") from error

    def prefill(self, history: Any) -> tuple:
        """See `Backbone.prefill`."""
        logits, hidden, cache = self.call("prefill", history)
        logits = self.compared(logits, hidden)
        users = len(jax.tree.leaves(history)[0])
        if len(logits) != users:
            raise self.check.error(
                "prefill", f"logits of {len(logits)} users for the histories of {users}"
            )
        return logits, hidden, cache

    def compared(self, logits: Any, hidden: Any) -> jax.Array:
        """The logits of the vocabulary, or the scores of the nodes that are asked for, `[..., V or K]`."""
        if not self.check.asked:
            return logits[..., : self.check.vocab]
        nodes = (jnp.reshape(x, (1,) * (hidden.ndim - 1) + (-1,)) for x in self.check.asked)
        return self.call("score_children", hidden, *nodes)

    def begun(self, history: Any, beams: int) -> tuple[jax.Array, Any, Any]:
        """The first code's logits `[B, M, V]` and states, and the cache of the beams, as at the start of a search."""
        logits, hidden, cache = self.prefill(history)
        users = len(logits)
        cache = self.reorder(cache, jnp.zeros((users, beams), jnp.int32))
        logits = jnp.broadcast_to(logits[:, None], (users, beams, logits.shape[-1]))
        if self.check.asked:
            hidden = jnp.broadcast_to(hidden[:, None], (users, beams, hidden.shape[-1]))
        return logits, hidden, cache

    def start(self, history: Any, beams: int) -> tuple[jax.Array, Any]:
        """The first code's logits `[B, M, V]` and the cache of the beams."""
        logits, _, cache = self.begun(history, beams)
        return logits, cache

    def step(self, tokens: jax.Array, cache: Any) -> tuple:
        """See `Backbone.step`."""
        logits, hidden, cache = self.call("step", tokens, cache)
        return self.compared(logits, hidden), hidden, cache

    def reorder(self, cache: Any, parents: jax.Array) -> Any:
        """See `Backbone.reorder`."""
        return self.call("reorder", cache, parents)

    def latest(self, cache: Any, users: int, beams: int) -> Any:
        """See `TreeBackbone.latest`."""
        latest = self.call("latest", cache)
        for leaf in jax.tree.leaves(latest):
            if jnp.shape(leaf)[:2] != (users, beams):
                raise self.check.error(
                    "latest",
                    f"an array of shape {list(jnp.shape(leaf))}, which must begin with [B, M] = [{users}, {beams}]",
                )
        return latest

    def assemble(self, *inputs: Any) -> Any:
        """See `TreeBackbone.assemble`."""
        return self.call("assemble", *inputs)

    def pair(self, method: str, *inputs: Any) -> tuple[Any, Any]:
        """Two arrays of states."""
        states = self.call(method, *inputs)
        if not isinstance(states, tuple) or len(states) != 2:
            raise self.check.error(method, f"it returned a {type(states).__name__}, not two arrays")
        return states

    def logits(self, method: str, states: Any, *leading: int) -> jax.Array:
        """Logits of states `[*leading, D]`."""
        if jnp.shape(states)[:-1] != leading:
            wanted = ", ".join(map(str, leading))
            raise self.check.error(
                method, f"states of shape {list(jnp.shape(states))} instead of [{wanted}, D]"
            )
        if self.check.asked:
            return self.compared(None, states)
        return self.shaped("logits", self.call("logits", states), *leading)

    def forced(self, method: str, inputs: tuple, *leading: int) -> jax.Array:
        """Logits of a pass over targets or sequences, or scores by its states."""
        outputs = self.call(method, *inputs)
        if self.check.asked:
            return self.logits(method, outputs, *leading)
        return self.shaped(method, outputs, *leading)

    def shaped(self, method: str, logits: Any, *leading: int) -> jax.Array:
        """Logits, if they are `[*leading, V]`."""
        shape = jnp.shape(logits)
        if shape[:-1] != leading or shape[-1] < self.check.vocab:
            wanted = ", ".join(map(str, leading))
            raise self.check.error(
                method, f"logits {list(shape)} instead of [{wanted}, V], V >= {self.check.vocab}"
            )
        return logits[..., : self.check.vocab]


def _tokens(history: Any) -> Any:
    """The tokens `[B, T, L]` of histories."""
    return history.tokens if isinstance(history, ItemHistory) else history


def _with_tokens(history: Any, tokens: jax.Array) -> Any:
    """The histories with other tokens, 0 for none; items whose tokens are others have other rows too."""
    if not isinstance(history, ItemHistory):
        return tokens
    other = (history.rows + 1) % (history.rows.max() + 1)
    other = jnp.where((tokens != 0).any(-1), other, -1)
    same = (tokens == history.tokens).all(-1)
    return ItemHistory(jnp.where(same, history.rows, other), tokens)


def _nodes(index: TrieIndex, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and rows `[K]` of different nodes of all depths."""
    paths = np.asarray(random_paths(index, jax.random.key(0), (count,)))
    rows = np.asarray(walk(index, paths)) + np.array(index.layout.node_offsets[:-1])
    rows, first = np.unique(rows, return_index=True)
    return paths.reshape(-1)[first], rows.astype(np.int32)


def _check_pytree(backbone: Any) -> None:
    """Raises ConformanceError unless a backbone can be an argument of a compiled program."""
    name = type(backbone).__name__
    for path, leaf in jax.tree_util.tree_leaves_with_path(backbone):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise ConformanceError(
                f"{name}{jax.tree_util.keystr(path)} is a leaf of the pytree and no array but a {type(leaf).__name__}: "
                "make it a static field"
            )
    leaves, structure = jax.tree.flatten(backbone)
    try:
        again = jax.tree.flatten(jax.tree.unflatten(structure, leaves))
    except Exception as error:
        raise ConformanceError(
            f"{name} is no pytree that can be taken apart and put together: {_said(error)}"
        ) from error
    if again[1] != structure or any(a is not b for a, b in zip(again[0], leaves, strict=True)):
        raise ConformanceError(
            f"{name} is another pytree when it has been taken apart and put together: its constructor must leave "
            "leaves and static fields as they are, and static fields must be equal to themselves, else every call "
            "compiles anew"
        )


def _check_histories(history: Any) -> int:
    """The number of users, if their histories differ."""
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(history)}
    if len(sizes) != 1 or sizes == {()}:
        raise ConformanceError(
            "histories: every array must have the leading axis B, one row a user"
        )
    ((users,),) = sizes
    if users < 2 or _another(history) is None:
        raise ConformanceError(
            "histories: give two users or more, whose histories differ from that of user 0, so that it shows if they "
            "see each other"
        )
    return users


def _another(history: Any) -> int | None:
    """A user whose history differs from that of user 0."""
    arrays = [np.asarray(x) for x in jax.tree.leaves(history)]
    differs = [
        user for user in range(len(arrays[0])) if any((x[user] != x[0]).any() for x in arrays)
    ]
    return differs[0] if differs else None


def _different_paths(
    index: TrieIndex, users: int, beams: int, seed: int
) -> tuple[jax.Array, jax.Array]:
    """Twice as many paths `[B, M, L]` as there are beams; no beam has the same path in both."""
    if beams < 2:
        raise ConformanceError(f"num_beams={beams}: two or more are needed to tell beams apart")
    key = jax.random.key(seed)
    drawn = np.asarray(random_paths(index, key, (users, 16 * beams)))
    first = drawn[:, :beams]
    second = np.empty_like(first)
    for user, beam in np.ndindex(users, beams):
        differs = (drawn[user] != first[user, beam]).sum(axis=-1)
        if not differs.any():
            raise ConformanceError(
                "index: give a trie of several semantic IDs, to tell beams apart"
            )
        second[user, beam] = drawn[user, differs.argmax()]
    return jnp.asarray(first), jnp.asarray(second)


def _numbers(logits: Any) -> np.ndarray:
    return np.asarray(logits, np.float32)


def _said(error: Exception) -> str:
    """An error's kind and first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")[:200]
