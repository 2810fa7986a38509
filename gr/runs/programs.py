"""The programs that an experiment runs on a device, as they are compiled: searches and training steps.

They are lowered for a mesh whose devices need not exist. Data, semantic IDs and index are the experiment's. Of weights
there are shapes alone, so that a model may be larger than this machine's memory. Shapes are those of the largest batch:
the longest history, and all users of a batch.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gr.data import Sequences, Splits, TitledPieces, TrainBatches
from gr.decoding import PRESETS, SearchConfig
from gr.evaluation.decode import decode_batch, decode_on_mesh
from gr.memory import ItemPrior
from gr.models import histories_for, item_share, scores_items
from gr.rl import ActorCritic, roll_out
from gr.runs import build, build_rl, keys
from gr.runs.experiment import ConfigError, Experiment, ReinforcedExperiment, Reinforcement
from gr.semantic_ids import SemanticIds
from gr.training import CompiledStep, TrainState, replicate, shard_batch, shard_state
from gr.trie import ExcludeItems

DECODE, SEARCH, TRAIN, RL = "decode", "search", "train", "rl"
PROGRAMS = (DECODE, SEARCH, TRAIN, RL)

_SEEN = 64  # Items that are excluded for a user; nearly all have seen fewer.
_BATCHES = 64  # Batches of which the largest is taken.


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that can be compiled without being run."""

    lower: Callable[[Mesh], jax.stages.Lowered]  # For the devices of a mesh.
    # Programs that do a part of its work which it cannot do without, in several forms: it is compared with the fastest.
    floors: tuple[str, ...] = ()
    rounds: int = 1  # How often its loops run whose number of rounds depends on data.
    splits: bool = False  # Whether a batch can be split over devices.
    shards: bool = (
        False  # Whether a state can be split over them too, along the axis "model" of a mesh.
    )


def experiment_programs(
    experiment: Experiment,
    splits: Splits,
    semantic_ids: SemanticIds,
    names: Collection[str],
    *,
    per_chip: bool = False,
) -> dict[str, Program]:
    """The programs of an experiment by name, with those that they are compared with.

    * `decode`: the beam search of evaluation and recommendations. Its floor is `decode/forward`: the same passes of the
      model along beams that are fixed beforehand. `decode/prefill` is the part of it that encodes histories.
    * `decode/prior`, of an experiment with a memory: the same search of the mixture with the memory's priors. Its floor
      is `decode`.
    * `search`, `search/best_first` and `search/sample`: value-guided search as published, ours, and sampling. They give
      the model as many tokens as their floor, `decode`.
    * `train`: a step of supervised training. Its floor is `train/forward`: the loss alone.
    * `rl`: a step of reinforcement learning. Its floor is `rl/rollouts`: search, rewards and log-probabilities, without
      learning.

    Args:
        experiment: the settings; for `rl` those of reinforcement learning, or else their defaults are taken.
        splits: its data.
        semantic_ids: its semantic IDs.
        names: of `PROGRAMS`.
        per_chip: whether each chip of a mesh searches for `decoding.batch_size` users, as in a run, or all of them
            together.

    Raises:
        ConfigError: if its model has no such program.
    """
    if SEARCH in names and _has_item_head(experiment, semantic_ids):
        raise ConfigError(
            f"programs={SEARCH}: this model scores whole items, which tree searches do not; leave it out"
        )
    made: dict[str, Program] = {}
    if {DECODE, SEARCH} & set(names):
        programs = _decode_programs(
            experiment, splits.sequences, semantic_ids, SEARCH in names, per_chip
        )
        made |= _with_precision(experiment.decoding.precision, programs)
    if TRAIN in names:
        programs = _train_programs(experiment, splits, semantic_ids)
        made |= _with_precision(experiment.training.precision, programs)
    if RL in names:
        programs = _rl_programs(experiment, splits, semantic_ids)
        made |= _with_precision(_reinforced(experiment).rl.precision, programs)
    return made


def _with_precision(precision: str, programs: dict[str, Program]) -> dict[str, Program]:
    """The programs, lowered with this precision of matrix products."""

    def lower(of: Callable[[Mesh], jax.stages.Lowered], mesh: Mesh) -> jax.stages.Lowered:
        with jax.default_matmul_precision(precision):
            return of(mesh)

    return {
        name: dataclasses.replace(program, lower=functools.partial(lower, program.lower))
        for name, program in programs.items()
    }


def _has_item_head(experiment: Experiment, semantic_ids: SemanticIds) -> bool:
    return scores_items(_shapes(lambda: build.make_model(experiment, semantic_ids)))


def _shapes(make: Callable[[], Any]) -> Any:
    """What a function would make, with shapes in place of arrays.

    Raises:
        ConfigError: if it looks at numbers.
    """
    try:
        return jax.eval_shape(make)
    except jax.errors.JAXTypeError as error:
        raise ConfigError(
            f"backbone: to be compiled for, a model is made of shapes alone, and this one's function looks at numbers "
            f"of arrays ({str(error).splitlines()[0]}); let it compute with jax.numpy"
        ) from error


# Decoding.


def _decode_programs(
    experiment: Experiment,
    sequences: Sequences,
    semantic_ids: SemanticIds,
    with_searches: bool,
    per_chip: bool,
) -> dict[str, Program]:
    model = _shapes(lambda: build.make_model(experiment, semantic_ids))
    catalogue = build.make_catalogue(experiment, semantic_ids, sequences=sequences)
    decoding, length = experiment.decoding, semantic_ids.num_levels
    num_beams = decoding.num_beams

    def rows(mesh: Mesh, *width: int, dtype: type = np.int32) -> jax.Array:
        users = decoding.batch_size * (mesh.size if per_chip else 1)
        return shard_batch(np.zeros((users, *width), dtype), mesh)

    def prior(mesh: Mesh) -> tuple[ItemPrior, jax.Array]:
        size = min(experiment.memory.size, len(catalogue.tokens) - 1)
        items, weights = rows(mesh, size), rows(mesh, size, dtype=np.float32)
        return ItemPrior(items, weights), rows(mesh, dtype=np.float32)

    head = functools.cache(
        lambda: build_rl.make_value_head(_reinforced(experiment), semantic_ids.num_levels, model)
    )
    distribution = build.distribution(experiment)

    def lower_search(config: SearchConfig, mesh: Mesh, mixed: bool = False) -> jax.stages.Lowered:
        value_head = head() if config.is_tree_search else None
        key = keys.make_key(experiment.seed, keys.SEARCH_EVALUATION)
        temperature = distribution["temperature"]
        excluded = (ExcludeItems(rows(mesh, _SEEN)),) if decoding.exclude_seen else ()
        lower = decode_batch.lower
        if mesh.size > 1:
            lower = functools.partial(decode_on_mesh.lower, mesh=mesh)
        return lower(
            *replicate((model, value_head, catalogue), mesh),
            rows(mesh, experiment.data.max_history),
            None,
            excluded,
            prior(mesh) if mixed else None,
            None if config.name == "beam" else replicate(key, mesh),
            None if temperature is None else replicate(np.float32(temperature), mesh),
            config=config,
            normalise_over=distribution["normalise_over"],
        )

    def searching(config: SearchConfig, *floors: str) -> Program:
        return Program(
            functools.partial(lower_search, config), floors, _rounds(config, length), splits=True
        )

    def lower_prefill(mesh: Mesh) -> jax.stages.Lowered:
        weights, tokens, pieces = replicate((model, catalogue.tokens, catalogue.pieces), mesh)
        return prefill.lower(weights, tokens, rows(mesh, experiment.data.max_history), pieces)

    def lower_forward(mesh: Mesh) -> jax.stages.Lowered:
        weights, tokens, pieces = replicate((model, catalogue.tokens, catalogue.pieces), mesh)
        of_users = (rows(mesh, width) for width in (experiment.data.max_history, num_beams))
        return forward_only.lower(weights, tokens, *of_users, pieces, length=length)

    beam = SearchConfig("beam", num_candidates=num_beams)
    if scores_items(model):  # One pass ranks all items.
        return {DECODE: searching(beam)}
    programs = {
        DECODE: searching(beam, f"{DECODE}/forward"),
        f"{DECODE}/forward": Program(lower_forward),
        f"{DECODE}/prefill": Program(lower_prefill),
    }
    if experiment.memory.weight is not None:
        mixed = functools.partial(lower_search, beam, mixed=True)
        programs[f"{DECODE}/prior"] = Program(mixed, (DECODE,), splits=True)
    if with_searches:
        fields = {"num_candidates": num_beams, "budget": num_beams * (length - 1)}
        for search, name in (
            ("ved", SEARCH),
            ("best_first", f"{SEARCH}/best_first"),
            ("sample", f"{SEARCH}/sample"),
        ):
            beams = min(num_beams, PRESETS[search].initial_beams)
            config = dataclasses.replace(PRESETS[search], initial_beams=beams, **fields)
            programs[name] = searching(config, DECODE)
    return programs


def _rounds(config: SearchConfig, length: int) -> int:
    """How often a tree search chooses what to evaluate next, until its budget is spent."""
    if not config.is_tree_search:
        return 1
    before = config.initial_beams * (length - 1 - config.beams_fit)
    return max(1, -(-(config.budget - before) // config.width))


@jax.jit
def prefill(
    model: Any, tokens: jax.Array, history: jax.Array, pieces: TitledPieces | None = None
) -> tuple:
    """The model's `prefill` of item rows `history [B, T]`, with the items' `tokens [N + 1, L]` and titles, if any."""
    return model.prefill(histories_for(model, tokens, history, pieces))


@functools.partial(jax.jit, static_argnames="length")
def forward_only(
    model: Any,
    tokens: jax.Array,
    history: jax.Array,
    parents: jax.Array,
    pieces: TitledPieces | None = None,
    *,
    length: int,
) -> list[list[jax.Array | None]]:
    """Logits and states of all `length` steps along beams that are fixed beforehand, by `parents [B, M]`.

    Also the logits of an item tower, if the model has one.
    """
    history = histories_for(model, tokens, history, pieces)
    *output, cache = model.prefill(history)
    outputs = [output]
    if item_share(model):
        outputs.append([model.tower.item_logits(model.tower.last_state(history))])
    for depth in range(1, length):
        cache = model.reorder(cache, jnp.zeros_like(parents) if depth == 1 else parents)
        *output, cache = model.step(parents % model.config.vocab_size, cache)
        outputs.append(output)
    return outputs


# Training.


def _train_programs(
    experiment: Experiment, splits: Splits, semantic_ids: SemanticIds
) -> dict[str, Program]:
    def begun(mesh: Mesh) -> tuple[CompiledStep, TrainState, Any]:
        batches = build.make_train_batches(experiment, splits, mesh)
        catalogue = build.make_catalogue(experiment, semantic_ids, splits.cold, splits.sequences)
        optimizer, step = build.make_optimisation(
            experiment, semantic_ids, catalogue, batches, mesh
        )

        def started() -> TrainState:
            model = build.make_model(experiment, semantic_ids, splits.cold)
            return build.make_state(experiment, semantic_ids, model, optimizer)

        state = _shapes(started)
        return step, shard_state(state, mesh), shard_batch(_largest(batches), mesh)

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        step, state, batch = begun(mesh)
        return step.lower(state, batch)

    def lower_forward(mesh: Mesh) -> jax.stages.Lowered:
        step, state, batch = begun(mesh)
        return _loss.lower(step.fixed, state.model, batch, state.key, state.loss_state)

    return {
        TRAIN: Program(lower, (f"{TRAIN}/forward",), splits=True, shards=True),
        f"{TRAIN}/forward": Program(lower_forward),
    }


@jax.jit
def _loss(loss: Any, model: Any, batch: Any, key: jax.Array, loss_state: Any) -> jax.Array:
    return loss(model, batch, key, loss_state)[0]


def _rl_programs(
    experiment: Experiment, splits: Splits, semantic_ids: SemanticIds
) -> dict[str, Program]:
    reinforced = _reinforced(experiment)
    if splits.cold is not None:
        raise ConfigError(
            f"programs={RL}: reinforcement learning takes no cold items; leave it out"
        )

    def begun(mesh: Mesh) -> tuple[CompiledStep, TrainState, Any]:
        catalogue = build.make_catalogue(reinforced, semantic_ids, sequences=splits.sequences)
        catalogue = build_rl.with_vectors(catalogue, splits)
        optimizer, step = build_rl.make_optimisation(
            reinforced, catalogue, reinforced.rl.num_steps, mesh, learn_policy=True
        )

        def started() -> TrainState:
            model: ActorCritic = build_rl.make_model(reinforced, semantic_ids)
            key = keys.make_key(reinforced.seed, keys.POLICY_TRAINING)
            return TrainState.create(model, optimizer, key, loss_state=model.backbone)

        state = _shapes(started)
        batch = _largest(build_rl.make_batches(reinforced, splits, mesh))
        return step, shard_state(state, mesh), shard_batch(batch, mesh)

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        step, state, batch = begun(mesh)
        return step.lower(state, batch)

    def lower_rollouts(mesh: Mesh) -> jax.stages.Lowered:
        step, state, batch = begun(mesh)
        config = build_rl.rollout_config(reinforced)
        rollouts = jax.jit(functools.partial(roll_out, config, mesh=mesh))
        return rollouts.lower(*step.fixed, state.model, state.loss_state, batch, state.key)

    rounds = _rounds(reinforced.search, semantic_ids.num_levels)
    return {
        RL: Program(lower, (f"{RL}/rollouts",), rounds, splits=True, shards=True),
        f"{RL}/rollouts": Program(lower_rollouts, rounds=rounds),
    }


def _reinforced(experiment: Experiment) -> ReinforcedExperiment:
    if isinstance(experiment, ReinforcedExperiment):
        return experiment
    return Reinforcement().applied_to(experiment)


def _largest(batches: TrainBatches) -> dict[str, np.ndarray]:
    return max(
        itertools.islice(batches, _BATCHES),
        key=lambda batch: sum(array.size for array in batch.values()),
    )
