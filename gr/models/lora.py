"""Which parameters are trained: frozen ones, and low-rank changes of frozen kernels (LoRA, arXiv 2106.09685)."""

from typing import Any

import jax
from flax import nnx

from gr.models.backbone import ModelError
from gr.models.layers import Frozen, Linear, LowRank

# What is trained beside low-rank changes: what belongs to semantic IDs, which no checkpoint knows.
OF_SEMANTIC_IDS = nnx.Any(nnx.PathContains("embedding"), nnx.PathContains("head"))
PROJECTIONS = nnx.Any(*(nnx.PathContains(name) for name in ("qkv", "out", "gate_up", "down")))


def freeze(model: Any, which: nnx.filterlib.Filter = ...) -> Any:
    """A copy of the model of which training leaves some parameters as they are.

    Args:
        model: a backbone, an `nnx.Module`.
        which: a filter of Flax NNX for parameters, such as `nnx.PathContains("layers")`, or
            `nnx.Not(nnx.PathContains("head"))`; by default all. Those that are frozen already stay so.
    """
    model = nnx.clone(model)
    chosen = nnx.filterlib.to_predicate(which)
    for path, module in list(nnx.iter_modules(model)):
        for name, variable in list(vars(module).items()):
            if isinstance(variable, nnx.Param) and chosen((*path, name), variable):
                setattr(module, name, Frozen(variable[...]))
    return model


def add_lora(
    model: Any,
    rank: int,
    *,
    alpha: float | None = None,
    where: nnx.filterlib.Filter = PROJECTIONS,
    trained: nnx.filterlib.Filter = OF_SEMANTIC_IDS,
    rngs: nnx.Rngs,
) -> Any:
    """A copy of the model whose projections are frozen and have trained low-rank changes, 0 at the beginning.

    Args:
        model: a backbone, an `nnx.Module`.
        rank: r of the changes, 1 or more.
        alpha: a change is its product times alpha / r; None: 2 r.
        where: a filter of Flax NNX for the projections that have changes; by default those of attention and
            feed-forward.
        trained: a filter for further parameters that are trained; by default the embeddings of semantic-ID tokens, and
            their part of the head. All others are frozen.
        rngs: of the first factors.

    Raises:
        ModelError: for a rank below 1, or a model without such projections.
    """
    if rank < 1:
        raise ModelError(f"lora_rank={rank} must be at least 1")
    model = freeze(model, nnx.Not(trained))
    chosen, count = nnx.filterlib.to_predicate(where), 0
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, Linear) and chosen(path, module):
            wide, out = module.kernel.shape
            factor = 2.0 * rank if alpha is None else float(alpha)
            module.lora = LowRank(wide, out, rank, factor, rngs=rngs)
            count += 1
    if not count:
        raise ModelError(f"{type(model).__name__} has no projection that `where` names")
    return model


def merge_lora(model: Any) -> Any:
    """A copy of the model whose low-rank changes have become part of its kernels; they stay frozen."""
    model = nnx.clone(model)
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, Linear) and module.lora is not None:
            kernel = module.kernel[...]
            module.kernel[...] = (kernel + module.lora.kernel()).astype(kernel.dtype)
            del module.lora
    return model


def trained_part(model: Any) -> Any:
    """A model, or any pytree of models, without its frozen parameters: None stands in their places."""

    def part(variable: Any) -> Any:
        return variable.replace(None) if isinstance(variable, Frozen) else variable

    return jax.tree.map(part, model, is_leaf=lambda node: isinstance(node, nnx.Variable))


def with_trained(model: Any, part: Any) -> Any:
    """The model with other values of what is trained, in the form of `trained_part`."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, part, model, is_leaf=lambda node: node is None
    )


def named_parameters(model: Any) -> dict[str, Any]:
    """A model's arrays, or their shapes, by dotted name, such as `layers.0.qkv.kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return {parameter_name(path): leaf for path, leaf in leaves}


def parameter_name(path: Any) -> str:
    """The dotted name of a leaf of a model."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
