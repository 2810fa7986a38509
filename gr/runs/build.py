"""Builds the objects of an experiment: index, model, batches, optimiser and step, searches."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from gr.data import (
    Sequences,
    Splits,
    Targets,
    TitledPieces,
    TrainBatches,
    train_batches_by_target,
    train_batches_by_user,
)
from gr.decoding import SearchConfig
from gr.evaluation import Decoded, decode_targets
from gr.fields import load_own
from gr.memory import ItemPrior
from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    ItemDecoder,
    ItemDecoderConfig,
    ModelError,
    ValueHead,
    load_backbone,
    load_hf,
    trained_part,
    with_trained,
)
from gr.models import on_grown_catalogue as on_grown
from gr.models.hf import pieces_with_titles
from gr.runs import keys
from gr.runs.experiment import BACKBONES, Experiment, LoopConfig, TrainingConfig
from gr.semantic_ids import SemanticIds
from gr.training import (
    TrainState,
    TrainStep,
    init_loss_state,
    make_mesh,
    make_optimizer,
    make_train_step,
    supervised_loss,
)
from gr.trie import Catalogue, ItemMask, TrieIndex


def make_index(
    experiment: Experiment, semantic_ids: SemanticIds, cold: np.ndarray | None = None
) -> TrieIndex:
    """The trie of the semantic IDs, laid out for the experiment's backbone.

    Args:
        experiment: the settings.
        semantic_ids: of all items.
        cold: items that the index leaves out, bool `[N]`, since training must not know them; None: none.
    """
    return TrieIndex.build(
        semantic_ids.tokens if cold is None else semantic_ids.tokens[~cold],
        semantic_ids.vocab_size,
        items=None if cold is None else np.flatnonzero(~cold),
        level_ranges=semantic_ids.level_ranges,
        listed=_has_trie_head(experiment),
    )


def make_catalogue(
    experiment: Experiment,
    semantic_ids: SemanticIds,
    cold: np.ndarray | None = None,
    sequences: Sequences | None = None,
) -> Catalogue:
    """Index, see `make_index`, and token table of the semantic IDs.

    Args:
        experiment: the settings.
        semantic_ids: of all items.
        cold: as for `make_index`.
        sequences: with the items' titles, for language models whose template writes them; None: there is no need.

    Raises:
        DataError: for such a template, and data without titles.
    """
    index = make_index(experiment, semantic_ids, cold)
    pieces = None if sequences is None else _pieces(experiment, sequences)
    return Catalogue.build(index, semantic_ids.tokens, pieces=pieces)


def _pieces(experiment: Experiment, sequences: Sequences) -> TitledPieces | None:
    """What the template of `load_hf` writes around the items; None if it writes no titles."""
    if experiment.backbone in BACKBONES:
        return None
    if load_own(experiment.backbone, "backbone", BACKBONES, ModelError) is not load_hf:
        return None
    return pieces_with_titles(sequences, **experiment.backbone_options)


def _has_trie_head(experiment: Experiment) -> bool:
    sizes = getattr(experiment, experiment.backbone, None)  # None for one's own backbone.
    return getattr(sizes, "head", None) == "trie"


def make_model(
    experiment: Experiment, semantic_ids: SemanticIds, cold: np.ndarray | None = None
) -> nnx.Module:
    """A freshly initialised backbone for these semantic IDs; `cold` as for `make_index`."""
    model = _make_backbone(experiment, semantic_ids, cold)
    if has_master_copy(experiment):
        model = with_param_dtype(model, experiment.training.param_dtype)
    return model


def with_param_dtype(model: nnx.Module, dtype: str) -> nnx.Module:
    """The model with its floating parameters in this type; frozen ones stay as they are."""

    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return with_trained(model, jax.tree.map(cast, trained_part(model)))


def _make_backbone(
    experiment: Experiment, semantic_ids: SemanticIds, cold: np.ndarray | None
) -> nnx.Module:
    sizes = {
        "vocab_size": semantic_ids.vocab_size,
        "code_length": semantic_ids.num_levels,
    }
    rngs = nnx.Rngs(experiment.seed)
    if experiment.backbone in BACKBONES:
        sizes |= dataclasses.asdict(getattr(experiment, experiment.backbone))
        depth = min(sizes.pop("node_depth"), semantic_ids.num_levels)
        for of_start in ("start_from", "start_scale"):
            sizes.pop(of_start, None)
        if _has_trie_head(experiment):
            offsets = make_index(experiment, semantic_ids, cold).layout.node_offsets
            sizes["num_nodes"] = offsets[depth]
            if sizes.get("num_facets"):
                sizes["num_first"] = offsets[1]
    if experiment.backbone == "encoder_decoder":
        return EncoderDecoder(EncoderDecoderConfig(**sizes), rngs=rngs)
    if experiment.backbone == "decoder_only":
        return DecoderOnly(DecoderOnlyConfig(**sizes), rngs=rngs)
    if experiment.backbone == "item_decoder":
        sizes["num_items"] = len(semantic_ids.tokens)
        return ItemDecoder(ItemDecoderConfig(**sizes), rngs=rngs)
    options = sizes | dict(experiment.backbone_options)
    return load_backbone(experiment.backbone, BACKBONES, rngs=rngs, **options)


def on_grown_catalogue(
    experiment: Experiment,
    model: nnx.Module,
    trained: SemanticIds,
    cold: np.ndarray | None,
    catalogue: Catalogue,
) -> nnx.Module:
    """A trained model for a catalogue that may hold further items; see `gr.models.on_grown_catalogue`.

    Args:
        experiment: the settings.
        model: as trained.
        trained: semantic IDs of the data that it was trained on.
        cold: which of those training did not know, as for `make_index`.
        catalogue: the items to be decoded: those of `trained`, then others.
    """
    num_items = len(catalogue.tokens) - 1
    if cold is None and num_items == trained.num_items:
        return model
    unknown = np.zeros(trained.num_items, bool) if cold is None else cold
    return on_grown(model, make_index(experiment, trained, cold), catalogue.index, unknown)


def validation_targets(splits: Splits) -> Targets:
    """The validation targets that may decide about training: not those of cold items."""
    targets = splits.validation
    if splits.cold is None:
        return targets
    known = ~splits.cold[splits.sequences.items[targets.positions]]
    return Targets(users=targets.users[known], positions=targets.positions[known])


def num_parameters(model: nnx.Module) -> int:
    """Trainable numbers in a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def make_mesh_of(experiment: Experiment) -> Mesh:
    """The mesh of the experiment's training."""
    return make_mesh(**dataclasses.asdict(experiment.mesh))


def decoding_mesh(experiment: Experiment) -> Mesh | None:
    """The devices that decode, all alike: as many as in training, if there are as many here; None: one device.

    Each needs the whole model, so a search has no use for the axis "model".
    """
    data, model = experiment.mesh.data, experiment.mesh.model
    devices = min(data * model or jax.device_count(), jax.device_count())
    return None if devices == 1 else make_mesh(devices)


def filled(batches: TrainBatches, mesh: Mesh | None, parts: int = 1) -> TrainBatches:
    """The batches with filler rows, so that the rows of each of their `parts` split over the mesh; None: one device."""
    if mesh is None or mesh.size == 1:
        return batches
    return batches.filled(mesh.size // jax.process_count() * parts)


def make_train_batches(
    experiment: Experiment, splits: Splits, mesh: Mesh | None = None
) -> TrainBatches:
    """The endless training pipeline of the experiment's training level, for a mesh; None: one device."""
    training = experiment.training
    shared = {
        "max_history": experiment.data.max_history,
        "buckets": experiment.data.num_buckets,
        "seed": experiment.seed,
        "time_jitter": experiment.data.time_jitter,
        "place_jitter": experiment.data.place_jitter,
        "reversed_share": experiment.data.reversed_share,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    if training.level == "target":
        batches = train_batches_by_target(
            splits.sequences, splits.train, batch_size=training.batch_size, **shared
        )
    else:
        batches = train_batches_by_user(
            splits.sequences, splits.train, items_per_batch=training.items_per_batch, **shared
        )
    return filled(batches, mesh)


def make_state(
    experiment: Experiment,
    semantic_ids: SemanticIds,
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state before the first step."""
    loss_state = init_loss_state(experiment.loss, semantic_ids.num_levels)
    return TrainState.create(model, optimizer, keys.supervised_key(experiment.seed), loss_state)


def total_steps(training: TrainingConfig, batches: TrainBatches) -> int:
    """Train steps of all epochs, or as many as the settings allow: those of the learning rate's schedule."""
    steps = batches.batches_per_epoch * training.num_epochs
    return min(steps, training.max_steps or steps)


def last_step(training: TrainingConfig, batches: TrainBatches) -> int:
    """The train step with which training ends."""
    return max(1, round(training.end_share * total_steps(training, batches)))


def make_optimisation(
    experiment: Experiment,
    semantic_ids: SemanticIds,
    catalogue: Catalogue,
    batches: TrainBatches,
    mesh: Mesh,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """The optimiser, and the compiled step on the experiment's loss."""
    training = experiment.training
    updates = max(1, total_steps(training, batches) // training.accumulation_steps)
    optimizer, schedule = make_optimizer(
        learning_rate=training.learning_rate,
        accumulation_steps=training.accumulation_steps,
        master_copy=has_master_copy(experiment),
        **optimizer_options(training, updates),
    )
    loss = supervised_loss(
        semantic_ids.tokens,
        level=training.level,
        targets_per_batch=batches.targets_per_batch,
        loss=experiment.loss,
        index=catalogue.index,
        pieces=catalogue.pieces,
    )
    return optimizer, make_train_step(
        loss, optimizer, schedule=schedule, mesh=mesh, precision=training.precision
    )


def has_master_copy(experiment: Experiment) -> bool:
    """Whether optimisers keep the parameters in float32."""
    return experiment.training.param_dtype != "float32"


def optimizer_options(loop: LoopConfig, updates: int) -> dict[str, Any]:
    """Arguments of `make_optimizer` for a loop of so many optimiser updates, but for the learning rate."""
    return {
        "schedule": loop.schedule,
        "total_steps": updates,
        "warmup_steps": round(loop.warmup_share * updates),
        "weight_decay": loop.weight_decay,
        "clip_norm": loop.clip_norm,
        "b2": loop.b2,
    }


def scoring(experiment: Experiment) -> AbstractContextManager:
    """Within it, programs are traced with the experiment's precision of decoding."""
    return jax.default_matmul_precision(experiment.decoding.precision)


def distribution(experiment: Experiment) -> dict[str, float | str | None]:
    """How logits become the model's distribution: `temperature` and `normalise_over` of `beam_search`."""
    choice = experiment.decoding.normalise_over
    masked = experiment.loss.name == "msl"
    if choice == "trained":
        choice = "children" if masked else "vocabulary"
    return {"temperature": experiment.loss.tau if masked else None, "normalise_over": choice}


def decode(
    experiment: Experiment,
    catalogue: Catalogue,
    model: nnx.Module,
    splits: Splits,
    targets: Targets,
    search: SearchConfig | None = None,
    *,
    value_head: ValueHead | None = None,
    prior: Callable[[np.ndarray], tuple[ItemPrior, np.ndarray]] | None = None,
    exclude_seen: bool | None = None,
    allowed: ItemMask | None = None,
    progress: bool = False,
) -> Decoded:
    """Decodes each target as the experiment says, on `decoding_mesh`; every call uses the same random numbers.

    Args:
        experiment: the settings.
        catalogue: the items.
        model: the backbone.
        splits: the data.
        targets: the targets to decode.
        search: the search; None: the experiment's beam search, with the targets' own log-probabilities.
        value_head: guides a tree search.
        prior: what is mixed into the model, see `decode_targets`; None: the model alone.
        exclude_seen: whether items of the history are left out; None: as the experiment says.
        allowed: the items that may be decoded; None: all.
        progress: whether a progress bar is shown.
    """
    decoding, by_beams = experiment.decoding, search is None
    with scoring(experiment):
        return decode_targets(
            SearchConfig("beam", num_candidates=decoding.num_beams) if by_beams else search,
            model,
            catalogue,
            splits.sequences,
            targets,
            value_head=value_head,
            key=None if by_beams else keys.make_key(experiment.seed, keys.SEARCH_EVALUATION),
            score_targets=by_beams,
            max_history=experiment.data.max_history,
            buckets=experiment.data.num_buckets,
            batch_size=decoding.batch_size,
            exclude_seen=decoding.exclude_seen if exclude_seen is None else exclude_seen,
            allowed=allowed,
            prior=prior,
            mesh=decoding_mesh(experiment),
            progress=progress,
            **distribution(experiment),
        )


def spread_targets(targets: Targets, count: int) -> Targets:
    """At most `count` evenly spaced targets, the same ones at every call; 0: all."""
    count = min(count or len(targets), len(targets))
    chosen = np.linspace(0, len(targets) - 1, count).round().astype(int)
    return Targets(users=targets.users[chosen], positions=targets.positions[chosen])
