"""A recommender as one file that a server runs without this library: history in, items and scores out.

The file is a zip archive: `program` (`jax.export`), `arrays.npz` (its arrays: model, catalogue, memory),
`settings.json` and `items.json` (the ids of the items). docs/serving.md has a loader.
"""

import dataclasses
import importlib.util
import io
import json
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from gr.data import NO_ITEM
from gr.data.files import write_atomically
from gr.decoding import beam_search
from gr.decoding import rank_items as rank_whole
from gr.memory import Gate, ItemPrior
from gr.memory.cooccurrence import GATE_INPUTS
from gr.models import histories_for, scores_items
from gr.runs import build
from gr.runs.experiment import ConfigError
from gr.runs.mixture import Mixture
from gr.runs.run import Run
from gr.trie import ExcludeItems


def export_recommender(
    run: Run,
    path: str | os.PathLike[str],
    *,
    top_k: int = 10,
    history_length: int = 1024,
    batch_size: int = 1,
    platforms: Sequence[str] | None = None,
) -> None:
    """Compiles the recommender of a run for histories of one width and writes it into a file.

    It recommends as `recommend` does: under the run's rule for seen items, with its memory and its gate.

    Args:
        run: the trained run.
        path: of the file.
        top_k: items a user gets.
        history_length: most recent items of a history that the program sees; earlier ones are neither removed from a
            list nor counted.
        batch_size: histories of a call.
        platforms: what it shall run on, such as ("cpu", "cuda", "tpu"); None: what this process runs on.

    Raises:
        ConfigError: for a number out of range, a package that is missing, or a mixture with a prior of your own, which
            no program has.
    """
    num_items, mixture = run.splits.sequences.num_items, run.mixture
    for name, value in (
        ("top_k", top_k),
        ("history_length", history_length),
        ("batch_size", batch_size),
    ):
        if value < 1:
            raise ConfigError(f"{name}={value}: use 1 or more")
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError(
            "jax.export writes files by flatbuffers: pip install 'gr-constrained[serve]'"
        )
    if mixture is not None and mixture.memory is None:
        raise ConfigError(
            f"memory.source={run.config.memory.source!r} is a function of Python, which an exported program cannot "
            "call; export a run with a memory, or with memory.weight=None"
        )
    memory = None if mixture is None else DeviceMemory.of(mixture)
    leaves, structure = jax.tree.flatten((run.model, run.catalogue, memory))
    # Random keys are no arrays of NumPy; decoding does not use them, so they are part of the program.
    is_key = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    arrays = {
        f"{place:05}": np.asarray(leaf)
        for place, (leaf, key) in enumerate(zip(leaves, is_key, strict=True))
        if not key
    }

    def program(arrays: dict[str, jax.Array], history: jax.Array) -> tuple[jax.Array, jax.Array]:
        whole = [arrays.get(f"{place:05}", leaf) for place, leaf in enumerate(leaves)]
        model, catalogue, memory = jax.tree.unflatten(structure, whole)
        return _recommended(run, model, catalogue, memory, history, top_k)

    shape = jax.ShapeDtypeStruct((batch_size, history_length), jnp.int32)
    with build.scoring(run.config):
        exported = export.export(jax.jit(program), platforms=platforms)(arrays, shape)
    settings: dict[str, Any] = {
        "top_k": top_k,
        "history_length": history_length,
        "batch_size": batch_size,
    }
    settings |= {"exclude_seen": run.config.decoding.exclude_seen, "num_items": num_items}
    settings |= {
        "platforms": list(exported.platforms),
        "workdir": str(run.workdir),
        "step": run.step,
    }
    content, of_arrays = io.BytesIO(), io.BytesIO()
    np.savez(of_arrays, **arrays)
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("program", bytes(exported.serialize()))
        file.writestr("arrays.npz", of_arrays.getvalue())
        file.writestr("settings.json", json.dumps(settings, indent=2))
        file.writestr("items.json", json.dumps(run.splits.sequences.item_ids.tolist()))
    write_atomically(path, content.getvalue())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceMemory:
    """A memory and its gate as arrays: `Mixture.of`, inside a compiled program."""

    items: jax.Array  # [N, W] int32: the entries of each row, padded with N.
    weights: jax.Array  # [N, W] float32.
    counts: jax.Array  # [N] int32 training interactions of each item.
    recent: jax.Array  # [R] float32: how much the items of a history count, the last one first.
    gate: Gate = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})

    @staticmethod
    def of(mixture: Mixture) -> "DeviceMemory":
        """The arrays of a mixture that has a memory."""
        memory = mixture.memory
        matrix, settings = memory.weights, memory.settings
        lengths = np.diff(matrix.indptr)
        row = np.repeat(np.arange(memory.num_items), lengths)
        place = np.arange(len(row)) - matrix.indptr[row]
        items = np.full((memory.num_items, max(1, lengths.max(initial=1))), memory.num_items)
        weights = np.zeros(items.shape, np.float32)
        items[row, place], weights[row, place] = matrix.indices, matrix.data
        recent = settings.recency ** np.arange(settings.reach, dtype=np.float64)
        return DeviceMemory(
            items=jnp.asarray(items, jnp.int32),
            weights=jnp.asarray(weights),
            counts=jnp.asarray(memory.counts, jnp.int32),
            recent=jnp.asarray(recent, jnp.float32),
            gate=mixture.gate,
            size=min(mixture.size, memory.num_items),
        )

    def prior(self, history: jax.Array, *, exclude: bool) -> tuple[ItemPrior, jax.Array]:
        """The prior of each history `[B, T]`, padded on the right with NO_ITEM, and its weight `[B]`."""
        num_items, lengths = len(self.counts), (history >= 0).sum(axis=1)
        users = jnp.arange(len(history))[:, None]
        places = lengths[:, None] - 1 - jnp.arange(len(self.recent))
        last = jnp.take_along_axis(history, jnp.maximum(places, 0), axis=1)
        share = jnp.where((places >= 0) & (last >= 0), self.recent, 0.0)  # [B, R]
        # Item N takes what is padding.
        scores = jnp.zeros((len(history), num_items + 1), jnp.float32)
        scores = scores.at[users[..., None], self.items[last]].add(
            share[..., None] * self.weights[last]
        )
        if exclude:
            scores = scores.at[users, jnp.where(history >= 0, history, num_items)].set(0.0)
        scores = _normalised(scores[:, :num_items])
        weights, items = jax.lax.top_k(scores, self.size)
        weights = _normalised(weights)
        support = jnp.where(lengths > 0, self.counts[last[:, 0]], 0)
        inputs = dict(zip(GATE_INPUTS, (weights.max(axis=1), support, lengths), strict=True))
        weight = jnp.asarray(self.gate.weights, jnp.float32)
        group = jnp.zeros(len(history), jnp.int32)
        if self.gate.input:
            edges = jnp.asarray(self.gate.edges, jnp.float32)
            column = inputs[self.gate.input].astype(jnp.float32)
            group = jnp.searchsorted(edges, column, side="right")
        return ItemPrior(jnp.where(weights > 0, items, NO_ITEM), weights), weight[group]


def _normalised(weights: jax.Array) -> jax.Array:
    """Rows that sum to 1, or to 0."""
    total = weights.sum(axis=1, keepdims=True)
    return weights / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)


def _recommended(
    run: Run,
    model: Any,
    catalogue: Any,
    memory: DeviceMemory | None,
    history: jax.Array,
    top_k: int,
) -> tuple[jax.Array, jax.Array]:
    """Items `[B, top_k]`, padded with NO_ITEM, and scores, NaN where the model's numbers are not finite."""
    config, exclude = run.config, run.config.decoding.exclude_seen
    options: dict[str, Any] = {"constraint": ExcludeItems(history) if exclude else None}
    options |= build.distribution(config)
    if memory is not None:
        prior, weight = memory.prior(history, exclude=exclude)
        options |= {"prior": prior, "prior_weight": weight}
    longest = min(config.data.max_history, history.shape[1])
    lengths = (history >= 0).sum(axis=1, keepdims=True)
    places = jnp.maximum(lengths - longest, 0) + jnp.arange(longest)
    read = jnp.where(places < lengths, jnp.take_along_axis(history, places, axis=1), NO_ITEM)
    read = histories_for(model, catalogue.tokens, read, catalogue.pieces)
    count = max(config.decoding.num_beams, top_k)
    if scores_items(model):
        options.pop("normalise_over")
        found = rank_whole(model, catalogue.index, catalogue.tokens, read, count, **options)
    else:
        found = beam_search(model, catalogue.index, read, num_beams=count, **options)
    items = found.items.reshape(len(history), -1)
    scores = jnp.repeat(found.scores, found.items.shape[-1], axis=1)
    first = jnp.argsort(items < 0, axis=1, stable=True)[:, :top_k]
    items = jnp.take_along_axis(items, first, axis=1)
    scores = jnp.where(items >= 0, jnp.take_along_axis(scores, first, axis=1), -jnp.inf)
    return items, jnp.where(found.bad_step[:, None] >= 0, jnp.nan, scores)
