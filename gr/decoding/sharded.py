"""Beam search over an index that is split over the devices of a mesh."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gr.decoding.beam import search
from gr.decoding.beam_step import BeamOptions
from gr.decoding.candidates import Candidates, DecodingError
from gr.decoding.checked import Checked, check_methods, check_nodes
from gr.decoding.prior import ALLOWED, PriorRequest, as_request, with_prior
from gr.decoding.softmax import as_temperature, inverse_of
from gr.decoding.sources import OneShard, OneTrie
from gr.memory import ItemPrior
from gr.models import Backbone
from gr.trie import AttributeFilter, Constraint, ExcludeItems, Filter, ItemMask, TrieIndex
from gr.trie.constraints import all_of, check_constraint, constraints_of
from gr.trie.item_mask import check_allowed
from gr.trie.live import live_nodes
from gr.trie.packed import PackedInts
from gr.trie.sharding import ShardedIndex, exclude_on_shard, local_shard


def sharded_beam_search(
    backbone: Backbone,
    index: ShardedIndex,
    history: Any,
    num_beams: int,
    *,
    mesh: Mesh,
    axis: str = "model",
    batch_axis: str | None = "data",
    constraint: Constraint | Sequence[Constraint] | None = None,
    temperature: float | None = None,
    prior: ItemPrior | None = None,
    prior_weight: float | jax.Array = 0.5,
    prior_over: str = ALLOWED,
    **options: Any,
) -> Candidates:
    """`beam_search` over a sharded index, with the same results.

    A model that scores children knows nodes by their rows in one index of all items: that which `TrieIndex.build` makes
    with the arguments of `ShardedIndex.build`.

    Every device along `axis` runs the backbone for the same users and searches its own shard; at each step they
    exchange M proposals per user. Users are split over `batch_axis`.

    Args:
        backbone: see `beam_search`; replicated.
        index: the sharded index.
        history: leading axis B, divisible by the size of `batch_axis`.
        num_beams: M.
        mesh: the mesh that the index was built for, such as `gr.training.make_mesh` makes.
        axis: the axis over which the index is split.
        batch_axis: the axis over which users are split; None if they are not.
        constraint: `ExcludeItems`, `AttributeFilter`, or a mask of this index made by `sharded_mask`, or several.
        temperature: see `beam_search`.
        prior: see `beam_search`; its items are those of the whole corpus.
        prior_weight: see `beam_search`.
        prior_over: see `beam_search`.
        **options: length_penalty, num_groups, diversity, keep_beams, normalise_over; see `beam_search`.

    Returns:
        Candidates; names of nodes in `beams` differ from those of an unsharded index.

    Raises:
        DecodingError: see `beam_search`; also if the mesh is not the index's.
        TrieError: for a mask of another index.
    """
    if mesh.shape[axis] != index.num_shards:
        raise DecodingError(
            f"the index has {index.num_shards} shards, mesh axis {axis!r} has {mesh.shape[axis]} devices: "
            "decode on the mesh that it was built for"
        )
    options = BeamOptions(num_beams, **options)
    check_methods(backbone)
    check_nodes(backbone, index)
    check_constraint(constraint, index.shards)
    request = as_request(prior, prior_weight, prior_over)
    options.check_prior(request, backbone)
    return _sharded_beam_search(
        backbone,
        index,
        history,
        tuple(constraints_of(constraint)),
        as_temperature(temperature),
        request,
        options=options,
        mesh=mesh,
        axis=axis,
        batch_axis=batch_axis,
    )


@functools.partial(jax.jit, static_argnames=("options", "mesh", "axis", "batch_axis"))
def _sharded_beam_search(
    backbone: Backbone,
    index: ShardedIndex,
    history: Any,
    constraints: tuple[Constraint, ...],
    temperature: jax.Array | None,
    prior: PriorRequest | None,
    *,
    options: BeamOptions,
    mesh: Mesh,
    axis: str,
    batch_axis: str | None,
) -> Candidates:
    replicated, by_user = PartitionSpec(), PartitionSpec(batch_axis)

    def on_each_device(
        backbone: Backbone,
        index: ShardedIndex,
        history: Any,
        constraints: tuple,
        temperature: jax.Array | None,
        prior: PriorRequest | None,
    ) -> Candidates:
        local, places, first_rows = local_shard(index)
        mine = [_unstacked(part) for part in constraints]
        model = Checked(backbone, local.vocab_size)
        first = model.prefill(history, mine)
        filters = tuple(_filter_of(part, local, places, axis) for part in mine)
        source = OneShard(OneTrie(local, all_of(filters)), axis, places, first_rows)
        inverse = inverse_of(temperature)
        source, first = with_prior(source, prior, model, history, first, inverse)
        return search(model, source, first, temperature, options)

    return jax.shard_map(
        on_each_device,
        mesh=mesh,
        in_specs=(
            replicated,
            PartitionSpec(axis),
            by_user,
            tuple(_spec_of(part, axis, batch_axis) for part in constraints),
            replicated,
            _spec_of_prior(prior, by_user),
        ),
        out_specs=by_user,
        check_vma=False,  # Values that are equal along `axis` are so by construction.
    )(backbone, index, history, constraints, temperature, prior)


def _spec_of_prior(prior: PriorRequest | None, by_user: PartitionSpec) -> Any:
    if prior is None:
        return None
    share = by_user if jnp.ndim(prior.prior_weight) else PartitionSpec()
    return PriorRequest(by_user, by_user, share, prior.over)


def _unstacked(constraint: Constraint) -> Constraint:
    """A mask is stacked like the index, with the shards' axis first; the rest is the same on all shards."""
    if isinstance(constraint, ItemMask):
        return jax.tree.map(lambda array: array[0], constraint)
    return constraint


def _filter_of(constraint: Constraint, index: TrieIndex, places: PackedInts, axis: str) -> Filter:
    if isinstance(constraint, ExcludeItems):
        return exclude_on_shard(constraint, index, places, axis)
    return constraint.prepare(index)


def _spec_of(constraint: Constraint, axis: str, batch_axis: str | None) -> PartitionSpec:
    if isinstance(constraint, ExcludeItems | AttributeFilter):
        return PartitionSpec(batch_axis)
    if isinstance(constraint, ItemMask):
        live = PartitionSpec(axis, batch_axis) if constraint.per_user else PartitionSpec(axis)
        return dataclasses.replace(constraint, live=live, fingerprint=PartitionSpec(axis))
    raise DecodingError(f"{type(constraint).__name__} cannot be used on a sharded index")


def sharded_mask(
    index: ShardedIndex, allowed: jax.Array, *, mesh: Mesh, axis: str = "model"
) -> ItemMask:
    """The mask of `allowed [N]` or `[B, N]` (bool by item number) on a sharded index; see `ItemMask.build`."""
    allowed = check_allowed(allowed)
    per_user = allowed.ndim == 2

    def on_each_device(index: ShardedIndex, allowed: jax.Array) -> Any:
        local, _, _ = local_shard(index)
        make = jax.vmap(live_nodes, in_axes=(None, 0)) if per_user else live_nodes
        return jax.tree.map(lambda array: array[None], make(local, allowed))

    spec = PartitionSpec(axis)
    made = jax.jit(
        jax.shard_map(
            on_each_device,
            mesh=mesh,
            in_specs=(spec, PartitionSpec()),
            out_specs=spec,
            check_vma=False,
        )
    )(index, allowed)
    return ItemMask(made, index.shards.fingerprint, index.shards.layout, per_user)
