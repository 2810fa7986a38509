"""From a config to the objects of an experiment: data, semantic IDs, index, model, batches."""

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gr.runs import keys
from gr.data import (
    DataError,
    Splits,
    Targets,
    TrainBatches,
    by_time,
    leave_one_out,
    load_sequences,
    time_quantiles,
    train_batches_by_target,
    train_batches_by_user,
)
from gr.data.rows import read_header
from gr.decoding import SearchConfig
from gr.evaluation import Decoded, Searched, decode_targets, search_targets
from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    ValueHead,
    load_backbone,
)
from gr.semantic_ids import SemanticIds, make_semantic_ids
from gr.training import LossConfig, TrainState, TrainStep, init_loss_state, item_token_table, make_optimizer, make_train_step, supervised_loss
from gr.trie import TrieIndex

ENVIRONMENT_VARIABLE = "GR_DATA"
_LIKE_A_TIME = re.compile(
    r"(?i)(.*[_. ])?(time|timestamp|datetime|date|ts|unix|when|created|created_at|at)([_. ].*)?"
)


def load_data(config: ConfigDict, workdir: str | os.PathLike[str]) -> Splits:
    """Reads the config's data and splits it; what must be fetched goes into `workdir/data`."""
    data = config.data
    options = _options(config)
    own = ":" in data.format  # `module:name`, which may do without a path.
    if data.format == "synthetic" or (own and not data.path):
        path = None
    elif data.format == "movielens_100k":
        path = Path(config.data_dir) if config.data_dir else Path(workdir) / "data"
    else:
        path = data_path(config, data.path)
    if data.format not in ("synthetic", "movielens_100k") and not own:
        options["skip_bad_rows"] = data.skip_bad_rows
    if data.format == "table":
        _look_at_columns(path, options)
    sequences = load_sequences(data.format, path, **options)
    if sequences.skipped_rows:
        print(f"skipped {sequences.skipped_rows:,} bad rows of {path}")
    if data.split == "leave_one_out":
        return leave_one_out(sequences)
    if data.split != "by_time":
        raise DataError(f"data.split={data.split!r} is unknown: use leave_one_out or by_time")
    share = data.test_share
    cuts = time_quantiles(sequences, 1 - share - data.validation_share, 1 - share)
    return by_time(sequences, *cuts)


def _options(config: ConfigDict) -> dict[str, Any]:
    """The reader's options that are set; its other files may lie where the data does."""
    options = {name: value for name, value in config.data.options.items() if value is not None}
    for name, value in options.items():
        if name.endswith("_path") and not Path(value).exists():
            options[name] = data_path(config, value)
    return options


def _look_at_columns(path: Path, options: Mapping[str, Any]) -> None:
    """Helps whoever has not named the columns of a table yet, or not all that they should.

    Raises:
        DataError: if the columns of users or items are not named.
    """
    columns = _columns(path, options.get("separator"))
    missing = [name for name in ("user", "item") if name not in options]
    if missing:
        how = " and ".join(f"--config.data.options.{name}=COLUMN" for name in missing)
        there = f"it has the columns {', '.join(columns)}; " if columns else ""
        raise DataError(
            f"{path}: {there}name that of the {'s and that of the '.join(missing)}s by {how}"
        )
    times = [] if "time" in options else [name for name in columns if _LIKE_A_TIME.fullmatch(name)]
    if times and options.get("header", True):
        print(
            f"note: users' interactions are taken in the order of the file. Its column {times[0]!r} looks like a time; "
            f"to sort by it: --config.data.options.time={times[0]}"
        )


def _columns(path: Path, separator: str | None) -> list[str]:
    """The columns of a table; none where it cannot be read, of which the reader will tell."""
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PAR1":
                return pq.read_schema(path).names
        default = "\t" if ".tsv" in path.name.lower() else ","
        return read_header(path, separator or default, quoted=True)
    except (DataError, pa.ArrowException, OSError):
        return []


def data_path(config: ConfigDict, path: str) -> Path:
    """Where a file of the data lies: an absolute path as it stands, else below the data folder, which may also hold the
    file itself. Without a data folder, paths start from the current folder.

    Raises:
        DataError: if it is not there.
    """
    if not path:
        raise DataError("data.path is empty: name the file, --config.data.path=FILE")
    folder = config.data_dir or os.environ.get(ENVIRONMENT_VARIABLE, "")
    choices = [Path(folder) / path]
    if folder:
        choices.append(Path(folder) / Path(path).name)
    for choice in choices:
        if choice.exists():
            return choice
    if not folder:
        raise DataError(
            f"{path}: no such file{_beside(Path(path))}, and no data folder is named: give an absolute path, set "
            f"{ENVIRONMENT_VARIABLE}=FOLDER, or pass --config.data_dir=FOLDER when training and --data_dir=FOLDER "
            "afterwards (--config=configs/synthetic.py needs no data)"
        )
    hint = _beside(choices[0]) or _beside(choices[1])
    if not hint and Path(path).exists():
        hint = f", but in the current folder there is one: to take it, give {Path(path).absolute()}"
    raise DataError(
        f"{choices[0]}: no such file{hint}; the data folder is the one that holds {path}"
    )


def _beside(path: Path) -> str:
    """A file of a similar name in the same folder, as a question."""
    there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def load_semantic_ids(config: ConfigDict, splits: Splits) -> tuple[SemanticIds, dict]:
    """Reads or builds the semantic IDs, with their report."""
    options = dict(config.semantic_ids)
    for name in ("path", "item_ids", "vectors"):
        value = options.get(name, "")
        # `vectors` may also be a kind of them. What was written here counts before the data folder.
        if value and (name != "vectors" or value.endswith((".npy", ".npz"))):
            found = name != "path" and os.path.exists(value)
            options[name] = value if found else str(data_path(config, value))
    return make_semantic_ids(splits, **options)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """What decoding knows of the items."""

    semantic_ids: SemanticIds
    index: TrieIndex
    tokens: jax.Array  # [N + 1, L], see `item_token_table`.


def make_catalogue(semantic_ids: SemanticIds) -> Catalogue:
    """Index and token table of the semantic IDs."""
    return Catalogue(
        semantic_ids=semantic_ids,
        index=TrieIndex.build(
            semantic_ids.tokens, semantic_ids.vocab_size, level_ranges=semantic_ids.level_ranges
        ),
        tokens=item_token_table(semantic_ids.tokens),
    )


def make_model(config: ConfigDict, semantic_ids: SemanticIds) -> nnx.Module:
    """A freshly initialised backbone for these semantic IDs."""
    sizes = {
        "vocab_size": semantic_ids.vocab_size,
        "code_length": semantic_ids.num_levels,
    }
    rngs = nnx.Rngs(config.seed)
    if config.backbone == "encoder_decoder":
        return EncoderDecoder(EncoderDecoderConfig(**sizes, **config.encoder_decoder), rngs=rngs)
    if config.backbone == "decoder_only":
        return DecoderOnly(DecoderOnlyConfig(**sizes, **config.decoder_only), rngs=rngs)
    return load_backbone(
        config.backbone, ("encoder_decoder", "decoder_only"), **sizes, rngs=rngs
    )


def num_parameters(model: nnx.Module) -> int:
    """Trainable numbers in a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def make_train_batches(config: ConfigDict, splits: Splits) -> TrainBatches:
    """The endless training pipeline of the config's training level."""
    training = config.training
    shared = {
        "max_history": config.data.max_history,
        "buckets": config.data.num_buckets,
        "seed": config.seed,
        "time_jitter": config.data.time_jitter,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    if training.level == "target":
        return train_batches_by_target(
            splits.sequences, splits.train, batch_size=training.batch_size, **shared
        )
    return train_batches_by_user(
        splits.sequences,
        splits.train,
        items_per_batch=training.items_per_batch,
        rows_multiple_of=config.mesh.data,
        **shared,
    )


def make_state(
    config: ConfigDict,
    semantic_ids: SemanticIds,
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state before the first step."""
    loss_state = init_loss_state(LossConfig(**config.loss), semantic_ids.num_levels)
    return TrainState.create(model, optimizer, keys.supervised_key(config.seed), loss_state)


def make_optimisation(
    config: ConfigDict, catalogue: Catalogue, batches: TrainBatches, mesh: Mesh
) -> tuple[optax.GradientTransformation, TrainStep]:
    """The optimiser and the compiled step that minimises the config's loss with it."""
    training = config.training
    total_steps = batches.batches_per_epoch * training.num_epochs
    updates = max(1, total_steps // training.accumulation_steps)
    optimizer, schedule = make_optimizer(
        learning_rate=training.learning_rate,
        schedule=training.schedule,
        total_steps=updates,
        warmup_steps=round(training.warmup_share * updates),
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        accumulation_steps=training.accumulation_steps,
        b2=training.b2,
    )
    loss = supervised_loss(
        catalogue.semantic_ids.tokens,
        level=training.level,
        targets_per_batch=batches.targets_per_batch,
        loss=LossConfig(**config.loss),
        index=catalogue.index,
    )
    return optimizer, make_train_step(loss, optimizer, schedule=schedule, mesh=mesh)


def distribution(config: ConfigDict) -> dict[str, float | str]:
    """How logits become the model's distribution: `temperature` and `normalise_over` of `beam_search`."""
    choice = config.decoding.normalise_over
    masked = config.loss.name == "msl"
    if choice == "trained":
        choice = "children" if masked else "vocabulary"
    return {"temperature": config.loss.tau if masked else 1.0, "normalise_over": choice}


def decode(
    config: ConfigDict,
    catalogue: Catalogue,
    model: nnx.Module,
    splits: Splits,
    targets: Targets,
    *,
    exclude_seen: bool | None = None,
    num_beams: int | None = None,
    progress: bool = False,
) -> Decoded:
    """Decodes targets as the config says; `exclude_seen` and `num_beams` override it."""
    decoding = config.decoding
    return decode_targets(
        model,
        catalogue.index,
        catalogue.tokens,
        splits.sequences,
        targets,
        num_beams=num_beams or decoding.num_beams,
        max_history=config.data.max_history,
        buckets=config.data.num_buckets,
        batch_size=decoding.batch_size,
        exclude_seen=decoding.exclude_seen if exclude_seen is None else exclude_seen,
        progress=progress,
        **distribution(config),
    )


def search(
    config: ConfigDict,
    catalogue: Catalogue,
    model: nnx.Module,
    value_head: ValueHead | None,
    splits: Splits,
    targets: Targets,
    search_config: SearchConfig,
    *,
    exclude_seen: bool | None = None,
    progress: bool = False,
) -> Searched:
    """Candidates of targets by any search, else as `decode` does; the same random numbers at every call."""
    decoding = config.decoding
    return search_targets(
        search_config,
        model,
        value_head,
        catalogue.index,
        catalogue.tokens,
        splits.sequences,
        targets,
        key=keys.make_key(config.seed, keys.SEARCH_EVALUATION),
        max_history=config.data.max_history,
        buckets=config.data.num_buckets,
        batch_size=decoding.batch_size,
        exclude_seen=decoding.exclude_seen if exclude_seen is None else exclude_seen,
        progress=progress,
        **distribution(config),
    )


def spread_targets(targets: Targets, count: int) -> Targets:
    """At most `count` evenly spaced targets, the same ones at every call; 0: all."""
    count = min(count or len(targets), len(targets))
    chosen = np.linspace(0, len(targets) - 1, count).round().astype(int)
    return Targets(users=targets.users[chosen], positions=targets.positions[chosen])
