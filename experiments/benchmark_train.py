r"""Measures how many examples a second training gets through, for each backbone and training level.

    python -m experiments.benchmark_train --config=configs/amazon_office.py --json=FILE \
        [--backbones=encoder_decoder] [--losses=ce,apao_pairwise] [--seconds_per_row=8] [--config.FIELD=VALUE ...]

Real batches of the config's data from the training pipeline, and the complete step (dropout, backward pass, AdamW,
state donated). Batches of one shape take the same time. So an epoch's batches are counted by shape, and the step is
timed on each shape, in alternation. The epoch's time is the sum of count x median over the shapes, plus the pipeline's
own time for the epoch.

Every loss is timed beside cross-entropy, in alternation on the same batches: `over ce` is the ratio of their times for
an epoch. `apao_pairwise` has negatives for the config's share of the targets, `apao_pairwise_all` for all of them.

`encoder_decoder/target` has a bidirectional encoder and no recency bias, as published; `padded_N` pads every history
to N tokens, as others do. `user` trains on all positions of a user's sequence in one pass.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx

from experiments.benchmarks import benchmarking
from experiments.benchmarks.benchmarking import FLAGS, PEAK, Stratum
from experiments.config_files import supervised
from experiments.errors import one_line_errors
from gr.data import NO_ITEM, Splits, TrainBatches
from gr.models import reads_items
from gr.runs import Experiment, build
from gr.semantic_ids import SemanticIds
from gr.training import NO_BAD_STEP, TrainingError, shard_batch, shard_state
from gr.trie import Catalogue

# Amazon Office at the reference size, float32, batch 128, on two CPU cores: our target, and others' results.
_BUCKETED = "encoder_decoder/target/bucketed"
TARGETS = {
    _BUCKETED: ">= 130",
    "encoder_decoder/user": ">= 550",
    "item_decoder/user": ">= 3 x encoder_decoder",
}
OTHERS = {
    "encoder_decoder/target/padded_80": "transformers/torch 33-37, plain JAX 37",
    _BUCKETED: "plain JAX 89",
    "encoder_decoder/user": "plain JAX 390",
}
LOSSES = {
    "ce": {"loss.name": "ce"},
    "msl": {"loss.name": "msl"},
    "apao_pointwise": {"loss.name": "apao_pointwise"},
    "apao_pairwise": {"loss.name": "apao_pairwise"},
    "apao_pairwise_all": {"loss.name": "apao_pairwise", "loss.pairwise_share": 1.0},
}
OVER_CE = {"apao_pointwise": "<= 1.05", "apao_pairwise": "<= 6"}
HEADER = (
    "examples/s of a training step",
    "examples/s",
    "over ce",
    "target",
    "others",
    "tokens/s",
    "GFLOP/s",
    "floor: product",
    "share",
    "compile s",
)
NOTES = (
    "examples: targets predicted. tokens: real ones, not padding, of histories and targets, each counted once.",
    "GFLOP/s: 6 x the weights of the projections x the tokens (padding included) that pass through them; attention",
    "products are left out. floor: GFLOP/s of a large matrix product timed in turn with the row; share: of that floor.",
    "target, others: Amazon Office, reference size, float32, two CPU cores.",
)


@one_line_errors
def main(argv: list[str]) -> None:
    """Settings, one after the other; table and file."""
    del argv
    unknown = [loss for loss in FLAGS.losses if loss not in LOSSES]
    if unknown:
        raise TrainingError(f"--losses={unknown[0]}: use some of {', '.join(LOSSES)}")
    config, on = supervised(FLAGS.config), benchmarking.machine()
    splits, semantic_ids = benchmarking.load(config)
    results = {}
    for setting in settings(config, semantic_ids.num_levels):
        measured = measure(setting, splits, semantic_ids, FLAGS.losses, FLAGS.seconds_per_row)
        for name, result in measured.items():
            print(f"{name}: {result['examples_per_second']:,.1f} examples/s", flush=True)
        results |= measured
    table = [
        (
            name,
            f"{result['examples_per_second']:,.1f}",
            f"{result['over_ce']:.2f}" if result["over_ce"] else "",
            TARGETS.get(name, OVER_CE.get(name.rpartition("/")[2], "")),
            OTHERS.get(name, ""),
            f"{result['tokens_per_second']:,.0f}",
            f"{result['gflops_per_second']:,.1f}" if result["gflops_per_second"] else "",
            f"{result['peak_gflops_per_second']:,.1f}",
            f"{result['gflops_per_second'] / result['peak_gflops_per_second']:.0%}"
            if result["gflops_per_second"]
            else "",
            f"{result['compile_seconds']:.1f}",
        )
        for name, result in results.items()
    ]
    # {"examples_per_second": {row: value}, ...}: one dictionary a quantity.
    quantities = benchmarking.by_quantity(results)
    benchmarking.report(config.name, HEADER, table, NOTES, on, quantities)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A config, and its rows, which differ in padding alone and so share their compiled programs."""

    config: Experiment
    buckets: dict[str, int]  # Row -> number of length buckets.


def settings(config: Experiment, code_length: int) -> list[Setting]:
    """The measured settings: the given config with a few fields changed."""
    buckets = config.data.num_buckets
    padded = f"encoder_decoder/target/padded_{config.data.max_history * code_length}"
    published = {  # The encoder of the literature sees the whole history, but not how far its end is.
        "encoder_decoder.causal_encoder": False,
        "encoder_decoder.recency_bias": False,
    }
    user_level = dict.fromkeys(published, True)
    choices = (
        ("encoder_decoder", "target", published, {padded: 1, _BUCKETED: buckets}),
        ("encoder_decoder", "user", user_level, {"encoder_decoder/user": buckets}),
        ("decoder_only", "target", {}, {"decoder_only/target/bucketed": buckets}),
        ("decoder_only", "user", {}, {"decoder_only/user": buckets}),
        ("item_decoder", "target", {}, {"item_decoder/target/bucketed": buckets}),
        ("item_decoder", "user", {}, {"item_decoder/user": buckets}),
    )
    result = []
    for backbone, level, fields, rows in choices:
        if backbone in benchmarking.backbones():
            fields = {**fields, "backbone": backbone, "training.level": level}
            result.append(Setting(config.override(fields), rows))
    return result


def measure(
    setting: Setting,
    splits: Splits,
    semantic_ids: SemanticIds,
    losses: Sequence[str],
    seconds: float,
) -> dict[str, dict[str, Any]]:
    """Times the train steps of one setting with each loss on the shapes of all its rows; the results by row.

    The rows of cross-entropy have the setting's names; those of other losses the loss's name behind it.
    """
    config, length = setting.config, semantic_ids.num_levels
    epochs = {name: Epoch.draw(config, splits, n) for name, n in setting.buckets.items()}
    strata = {shape: s for epoch in epochs.values() for shape, s in epoch.strata.items()}
    batches = build.make_train_batches(config, splits)
    catalogue = build.make_catalogue(config, semantic_ids, sequences=splits.sequences)
    calls = {}
    for loss in losses:
        with_loss = config.override(LOSSES[loss])
        model = build.make_model(config, semantic_ids)
        steps = train_calls(with_loss, model, semantic_ids, catalogue, batches, strata)
        calls |= {(loss, shape): call for shape, call in steps.items()}
    product, product_gflop = benchmarking.peak_product(getattr(config, config.backbone).dtype)
    timings, compilations = benchmarking.time_in_turns(
        {**calls, PEAK: product}, seconds * len(epochs) * len(losses)
    )
    for (loss, shape), call in calls.items():
        if shape == min(strata) and int(call()) != NO_BAD_STEP:  # A loss's calls share one state.
            raise TrainingError(
                f"loss {loss} was not finite, so what was timed is not training; lower training.learning_rate"
            )
    model = build.make_model(config, semantic_ids)
    gflop = {shape: step_gflop(model, s.batches[0], length) for shape, s in strata.items()}
    results = {}
    for name, epoch in epochs.items():
        step_seconds = {
            loss: sum(s.count * timings[loss, shape].seconds for shape, s in epoch.strata.items())
            for loss in losses
        }
        epoch_gflop = sum(s.count * gflop[shape] for shape, s in epoch.strata.items())
        for loss, of_steps in step_seconds.items():
            total = of_steps + epoch.pipeline_seconds
            counted = not loss.startswith("apao_pairwise")  # Whose negatives are tokens too.
            results[name if loss == "ce" else f"{name}/{loss}"] = {
                "examples_per_second": sum(s.examples for s in epoch.strata.values()) / total,
                "over_ce": of_steps / step_seconds["ce"] if "ce" in step_seconds else None,
                "tokens_per_second": epoch.real_items * length / total,
                "gflops_per_second": epoch_gflop / of_steps if counted else None,
                "peak_gflops_per_second": product_gflop / timings[PEAK].seconds,
                "compile_seconds": sum(timings[loss, s].compile_seconds for s in epoch.strata),
                "pipeline_share": epoch.pipeline_seconds / total,
                "compilations_while_timing": compilations,
                "shapes": [
                    {
                        "rows": shape[0],
                        "items": shape[1],
                        "batches_per_epoch": stratum.count,
                        "seconds": timings[loss, shape].seconds,
                        "timed_steps": timings[loss, shape].calls,
                    }
                    for shape, stratum in epoch.strata.items()
                ],
            }
    return results


# An epoch.


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The batches of an epoch, by shape."""

    strata: dict[tuple, Stratum]
    pipeline_seconds: float  # For which the pipeline alone keeps a core busy.
    real_items: int

    @classmethod
    def draw(cls, config: Experiment, splits: Splits, num_buckets: int) -> "Epoch":
        """Reads one epoch from the config's training pipeline."""
        config = config.override({"data.num_buckets": num_buckets})
        batches = build.make_train_batches(config, splits, build.make_mesh_of(config))
        start = time.perf_counter()
        epoch = list(itertools.islice(batches, batches.batches_per_epoch))
        return cls(
            pipeline_seconds=time.perf_counter() - start,
            strata=benchmarking.strata(
                epoch, "items" if config.training.level == "user" else "history"
            ),
            real_items=sum(real_items(batch) for batch in epoch),
        )


def train_calls(
    config: Experiment,
    model: nnx.Module,
    semantic_ids: SemanticIds,
    catalogue: Catalogue,
    batches: TrainBatches,
    strata: dict[tuple, Stratum],
) -> dict[tuple, Callable[[], Any]]:
    """For each shape a call that trains on the next of its batches and returns the state's `bad_step`.

    All of them share one state.
    """
    mesh = build.make_mesh_of(config)
    optimizer, train_step = build.make_optimisation(config, semantic_ids, catalogue, batches, mesh)
    state = shard_state(build.make_state(config, semantic_ids, model, optimizer), mesh)

    def train(batch: dict[str, np.ndarray]) -> jax.Array:
        nonlocal state
        state, _ = train_step(state, shard_batch(batch, mesh))
        jax.block_until_ready(state)
        return state.bad_step

    return {
        shape: benchmarking.in_order(train, stratum.batches) for shape, stratum in strata.items()
    }


def real_items(batch: dict[str, np.ndarray]) -> int:
    """Items of a batch's histories and targets, without padding and filler rows."""
    if "items" in batch:
        counts = batch["weight"].any(axis=1)
        return int((batch["items"][counts] != NO_ITEM).sum())
    counts = batch["weight"] > 0
    return int((batch["history"][counts] != NO_ITEM).sum() + counts.sum())


def step_gflop(model: nnx.Module, batch: dict[str, np.ndarray], length: int) -> float:
    """Estimated GFLOP of a train step: 2 for each weight and token forwards, twice that backwards."""
    if "items" in batch:
        sequence = predicted = batch["items"][:, 1:].size * length
    else:
        predicted = batch["target"].size * length
        sequence = batch["history"].size * length
    if reads_items(model):
        sequence //= length
    multiplied = 0
    for path, weights in jax.tree_util.tree_leaves_with_path(model):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if ".kernel" not in name and not (name.startswith("embedding") and model.config.tied_head):
            continue
        # The history passes through the encoder and the cross-attention's keys; through all of a decoder-only
        # model's layers, together with the target.
        if name.startswith("encoder") or ".kv." in name:
            tokens = sequence
        elif name.startswith("layers"):
            together = "items" not in batch and not reads_items(model)
            tokens = sequence + predicted if together else sequence
        else:
            tokens = predicted
        multiplied += weights.size * tokens
    return 6e-9 * multiplied


if __name__ == "__main__":
    flags.DEFINE_list("losses", list(LOSSES), f"Which losses to time: of {', '.join(LOSSES)}.")
    benchmarking.run(main)
