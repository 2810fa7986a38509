"""Checks what a backbone returns while a search is traced, so that a wrong shape is one clear error."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import DecodingError
from gr.models import score_children_below, scores_children
from gr.trie.constraints import constraints_of

METHODS = ("prefill", "step", "reorder")
TREE_METHODS = (*METHODS, "latest", "assemble")
_SIGNATURES = {
    "prefill": "prefill(history) -> (logits [B, V], hidden [B, D], cache)",
    "step": "step(tokens [B, M], cache) -> (logits [B, M, V], hidden [B, M, D], cache)",
    "reorder": "reorder(cache, parents [B, M]) -> cache",
    "latest": "latest(cache) -> what the last step added for each beam, [B, M, ...]",
    "assemble": "assemble(cache, stored, paths [B, W, S], depths [B, W]) -> cache",
}


def check_methods(backbone: Any, methods: tuple[str, ...] = METHODS) -> None:
    """Raises DecodingError unless the backbone has these methods, and goes through `jit`."""
    name = type(backbone).__name__
    for method in methods:
        if not callable(getattr(backbone, method, None)):
            protocol = "TreeBackbone" if method in TREE_METHODS[3:] else "Backbone"
            raise DecodingError(
                f"{name} has no method {method}, which gr.models.{protocol} wants: {_SIGNATURES[method]}"
            )
    if scores_children(backbone) and not callable(getattr(backbone, "score_children", None)):
        raise DecodingError(
            f"{name} says that it scores children, but has no method score_children, which gr.models.ChildScorer wants"
        )
    if jax.tree_util.all_leaves([backbone]):
        raise DecodingError(
            f"{name} is no pytree: make it an nnx.Module, or a frozen dataclass under "
            "jax.tree_util.register_dataclass"
        )


def check_nodes(backbone: Any, index: Any) -> None:
    """Raises DecodingError if a model's trie nodes are not those of the index, where their number tells."""
    if not scores_children(backbone):
        return
    config = getattr(backbone, "config", None)
    count, first = (getattr(config, name, 0) for name in ("num_nodes", "num_first"))
    offsets = getattr(index, "base", index).layout.node_offsets  # An edited index has a base.
    if count not in offsets or first not in offsets[:2]:
        raise DecodingError(
            f"the model has embeddings of {count} trie nodes and facets of {first} first codes, and the depths of this "
            f"index end at {offsets}: search the index that it was trained with, build one of the same layout, or move "
            "them by `gr.models.remap_nodes`"
        )


def users_of(outputs: tuple) -> int:
    """B, of the outputs of `prefill`."""
    logits, hidden, _ = outputs
    return len(hidden if logits is None else logits)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A backbone for a search over an index of `vocab_size` tokens; costs nothing once compiled."""

    backbone: Any  # A `Backbone`; for tree searches, a `TreeBackbone`.
    vocab_size: int
    with_hidden: bool = False  # Whether hidden states are needed too.

    def prefill(self, history: Any, constraint: Any = None) -> tuple:
        """See `Backbone.prefill`.

        Raises:
            DecodingError: for outputs that violate the protocol, or a constraint for another number of users.
        """
        outputs = self._checked("prefill", self.backbone.prefill(history), None)
        users = users_of(outputs)
        for part in constraints_of(constraint):
            if part.num_users not in (None, users):
                raise DecodingError(
                    f"the constraint is for {part.num_users} users, the history for {users}: "
                    "pass one row per user"
                )
        return outputs

    def step(self, tokens: jax.Array, cache: Any) -> tuple:
        """See `Backbone.step`; raises DecodingError for outputs that violate the protocol."""
        return self._checked("step", self.backbone.step(tokens, cache), tokens.shape)

    @property
    def scores_children(self) -> bool:
        """Whether it is a `ChildScorer`."""
        return scores_children(self.backbone)

    def score_children(
        self, hidden: jax.Array, tokens: jax.Array, rows: jax.Array, *, root: bool = True
    ) -> jax.Array:
        """See `score_children_below`; raises DecodingError for scores of another shape or type."""
        scores = score_children_below(self.backbone, root, hidden, tokens, rows)
        expected = (*hidden.shape[:-1], tokens.shape[-1])
        if not _is_floating(scores) or scores.shape != expected:
            raise DecodingError(
                f"{type(self.backbone).__name__}.score_children returned {_described(scores)} for hidden states "
                f"{list(hidden.shape)} and children {list(tokens.shape)}; the protocol gr.models.ChildScorer wants "
                f"floating numbers {list(expected)}"
            )
        return scores.astype(jnp.float32)

    def reorder(self, cache: Any, parents: jax.Array) -> Any:
        """See `Backbone.reorder`."""
        return self.backbone.reorder(cache, parents)

    def latest(self, cache: Any) -> Any:
        """See `TreeBackbone.latest`."""
        return self.backbone.latest(cache)

    def assemble(self, *arguments: Any) -> Any:
        """See `TreeBackbone.assemble`."""
        return self.backbone.assemble(*arguments)

    def _checked(self, method: str, outputs: Any, beams: tuple[int, int] | None) -> tuple:
        """Checks outputs for their leading axes `beams`, [B, M]; None: any [B]."""
        if not isinstance(outputs, tuple) or len(outputs) != 3:
            got = (
                f"a tuple of {len(outputs)}" if isinstance(outputs, tuple) else _described(outputs)
            )
            raise self._error(method, beams, f"{got} instead of three outputs")
        logits, hidden, cache = outputs
        if self.scores_children:
            leading = tuple(jnp.shape(hidden))[:-1]
            expected = beams if beams is not None else leading[:1]
            if logits is not None or not _is_floating(hidden) or leading != expected or not leading:
                raise self._error(
                    method, beams, f"logits {_described(logits)} and hidden {_described(hidden)}"
                )
            return None, hidden, cache
        leading = tuple(jnp.shape(logits))[:-1]
        expected = beams if beams is not None else leading[:1]
        if not (
            _is_floating(logits)
            and jnp.ndim(logits) == len(expected) + 1 > 1
            and leading == expected
        ):
            raise self._error(method, beams, f"logits {_described(logits)}")
        if logits.shape[-1] < self.vocab_size:
            raise self._error(
                method,
                beams,
                f"logits {_described(logits)}",
                f": the backbone's logits cover {logits.shape[-1]} tokens, the index {self.vocab_size}: "
                "build the index with the model's vocab_size",
            )
        if math.prod(logits.shape[1:]) >= 2**31:
            raise self._error(
                method,
                beams,
                f"logits {_described(logits)}",
                ": a user's beams and tokens are counted in int32, search with fewer beams",
            )
        if self.with_hidden and not (
            _is_floating(hidden)
            and jnp.ndim(hidden) == len(expected) + 1
            and hidden.shape[:-1] == expected
        ):
            raise self._error(method, beams, f"hidden {_described(hidden)}")
        return jnp.asarray(logits), hidden, cache

    def _error(
        self, method: str, beams: tuple[int, int] | None, got: str, remedy: str = ""
    ) -> DecodingError:
        sizes = f"V >= {self.vocab_size}"
        if beams is not None:
            sizes = f"B = {beams[0]}, M = {beams[1]}, {sizes}"
        if self.scores_children:
            return DecodingError(
                f"{type(self.backbone).__name__}.{method} returned {got}{remedy}; the protocol gr.models.ChildScorer "
                f"wants {_SIGNATURES[method]}, with None instead of logits and floating hidden states"
            )
        return DecodingError(
            f"{type(self.backbone).__name__}.{method} returned {got}{remedy}; the protocol gr.models.Backbone "
            f"wants {_SIGNATURES[method]}, floating, with {sizes}"
        )


def _is_floating(array: Any) -> bool:
    return hasattr(array, "shape") and jnp.issubdtype(array.dtype, jnp.floating)


def _described(value: Any) -> str:
    """Shape and type of an array, or the type of another object."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{list(value.shape)} {value.dtype}"
    return "None" if value is None else f"a {type(value).__name__}"
