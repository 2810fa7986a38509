"""The user's own backbones: from plain functions, or from a function that a config names."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from gr.fields import load_own
from gr.models.backbone import ModelError, Trainable

_static = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FunctionBackbone:
    """What `backbone_of` returns: the parameters are its leaves, the functions are static."""

    params: Any
    of_prefill: Callable[[Any, Any], tuple] = dataclasses.field(metadata=_static)
    of_step: Callable[[Any, jax.Array, Any], tuple] = dataclasses.field(metadata=_static)
    of_reorder: Callable[[Any, jax.Array], Any] = dataclasses.field(metadata=_static)

    def prefill(self, history: Any) -> tuple[jax.Array, jax.Array, Any]:
        """See `Backbone.prefill`."""
        return self.of_prefill(self.params, history)

    def step(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
        """See `Backbone.step`."""
        return self.of_step(self.params, tokens, cache)

    def reorder(self, cache: Any, parents: jax.Array) -> Any:
        """See `Backbone.reorder`."""
        return self.of_reorder(cache, parents)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FunctionTreeBackbone(FunctionBackbone):
    """A `FunctionBackbone` that also supports tree searches."""

    of_latest: Callable[[Any], Any] = dataclasses.field(metadata=_static)
    of_assemble: Callable[[Any, Any, jax.Array, jax.Array], Any] = dataclasses.field(
        metadata=_static
    )

    def latest(self, cache: Any) -> Any:
        """See `TreeBackbone.latest`."""
        return self.of_latest(cache)

    def assemble(self, cache: Any, stored: Any, paths: jax.Array, depths: jax.Array) -> Any:
        """See `TreeBackbone.assemble`."""
        return self.of_assemble(cache, stored, paths, depths)


def backbone_of(
    prefill: Callable[[Any, Any], tuple],
    step: Callable[[Any, jax.Array, Any], tuple],
    reorder: Callable[[Any, jax.Array], Any],
    params: Any,
    *,
    latest: Callable[[Any], Any] | None = None,
    assemble: Callable[[Any, Any, jax.Array, jax.Array], Any] | None = None,
) -> FunctionBackbone:
    """A backbone of three functions and parameters, for any decoder of `gr.decoding`.

    A search compiles once for equal functions, whatever the parameters are. So define the functions once, at the top of
    a module, or use methods of one object. A `lambda` or `functools.partial` created for each request makes each
    request compile.

    With `params=None` the functions may close over their weights. This has a cost: weights become constants of each
    program, which is larger and slower to compile, and new weights under the same functions go unnoticed.

    Args:
        prefill: `(params, history) -> (logits [B, V], hidden [B, D], cache)`; `hidden` may be None for beam search and
            sampling. See `Backbone` for all three functions.
        step: `(params, tokens [B, M], cache) -> (logits [B, M, V], hidden [B, M, D], cache)`.
        reorder: `(cache, parents [B, M']) -> cache`.
        params: a pytree of arrays, such as nested dictionaries; None for functions that close over their weights.
        latest: `(cache) -> [B, M, ...]`, for value-guided search. See `TreeBackbone` for both.
        assemble: `(cache, stored, paths [B, W, S], depths [B, W]) -> cache`, for value-guided search.

    Raises:
        ModelError: if a function is not callable or not hashable, only one of `latest` and `assemble` is given, or
            `params` holds something other than arrays.
    """
    if (latest is None) != (assemble is None):
        raise ModelError("value-guided search needs both latest and assemble: give both or neither")
    given: dict[str, Any] = {"prefill": prefill, "step": step, "reorder": reorder}
    if latest is not None:
        given |= {"latest": latest, "assemble": assemble}
    for name, function in given.items():
        if not callable(function):
            raise ModelError(f"{name} is no function but a {type(function).__name__}")
        try:
            hash(function)
        except TypeError as error:
            raise ModelError(
                f"{name} is a {type(function).__name__} without a hash, by which `jit` tells functions apart: give a "
                "function or a method"
            ) from error
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise ModelError(
                f"params{jax.tree_util.keystr(path)} is a {type(leaf).__name__}, which is no array: give a pytree of "
                "arrays, or let the functions close over what they need and give params=None"
            )
    kind = FunctionBackbone if latest is None else FunctionTreeBackbone
    return kind(params, *given.values())


def load_backbone(
    name: str,
    known: Iterable[str],
    *,
    vocab_size: int,
    code_length: int,
    rngs: nnx.Rngs,
    **options: Any,
) -> Trainable:
    """The backbone that the user's own function makes, for training and decoding.

    Args:
        name: `module:name` of a function `(*, vocab_size, code_length, rngs, **options) -> backbone`, or of a class.
        known: the library's own backbones, for messages.
        vocab_size: V.
        code_length: L.
        rngs: of its initial parameters.
        **options: further arguments of the function.

    Returns:
        A pytree with the methods of `Backbone`, and `target_logits` or `sequence_logits` of `Trainable`.

    Raises:
        ModelError: if there is no such function, it does not take these arguments, or its result lacks these methods.
    """
    make = load_own(name, "backbone", known, ModelError)
    arguments = {"vocab_size": vocab_size, "code_length": code_length, "rngs": rngs, **options}
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ModelError(
            f"backbone {name!r} cannot be called with {', '.join(arguments)}: {error}"
        ) from error
    backbone = make(**arguments)
    told = f"backbone {name!r} returned a {type(backbone).__name__}"
    wanted = ("prefill", "step", "reorder")
    missing = [method for method in wanted if not callable(getattr(backbone, method, None))]
    if missing:
        raise ModelError(f"{told} without the method {missing[0]}; see gr.models.Backbone")
    if not (hasattr(backbone, "target_logits") or hasattr(backbone, "sequence_logits")):
        raise ModelError(
            f"{told} that cannot be trained: it has neither target_logits nor sequence_logits; see gr.models.Trainable"
        )
    if jax.tree_util.all_leaves([backbone]):
        raise ModelError(
            f"{told}, which is no pytree: make it an nnx.Module, or a frozen dataclass under "
            "jax.tree_util.register_dataclass"
        )
    return backbone
