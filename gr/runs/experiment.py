"""`Experiment`: every setting of a run, as nested frozen dataclasses.

    experiment = Experiment(name="clicks", backbone="decoder_only", data=DataConfig(format="table", path="clicks.csv"))
    experiment = experiment.override({"training.num_epochs": 5, "decoding.num_beams": 50})

An unknown field, or a value of a wrong type or out of range, is refused with the field's dotted name and the nearest
known name. The same fields are the flags of the mains, `--config.training.num_epochs=5`, and are saved in a run's
`config.json`.
"""

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from gr.data.load import FORMATS
from gr.decoding import SearchConfig
from gr.errors import GrError
from gr.fields import (
    Count,
    Natural,
    NotNegative,
    OneOf,
    Positive,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    ShareWithin,
    check_value,
    did_you_mean,
    load_own,
)
from gr.losses import PolicyConfig
from gr.memory import MemorySettings
from gr.models.item_decoder import HEADS
from gr.rl import ValueConfig
from gr.training import LossConfig
from gr.training.objectives import LEVELS
from gr.training.optimizers import DECAYS

BACKBONES = ("encoder_decoder", "decoder_only", "item_decoder")
Head = Annotated[str, OneOf(("vocabulary", "trie"))]
# Of matrix products of float32 numbers, in the words of `jax.default_matmul_precision`.
Precision = Annotated[str, OneOf(("default", "high", "highest"))]
Schedule = Annotated[str, OneOf(tuple(DECAYS))]


class ConfigError(GrError):
    """Raised for an invalid configuration; names the file or field and the remedy."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The interactions, and how they are split.

    Attributes:
        format: which reader: a key of `gr.data.FORMATS`, "movielens_100k" (fetched), "synthetic", or your own
            "module:function".
        path: the file or folder, absolute or below the data folder.
        options: arguments of the reader, by name, such as `k_core`.
        skip_bad_rows: whether invalid rows are skipped and counted instead of raising an error.
        split: "leave_one_out" (each user's last interaction is the test, the one before it validation), "by_time", or
            "cold_start" (leave-one-out, with items that training never sees; see `gr.data.cold_start`).
        validation_share: share of all interactions that are validation targets, for "by_time"; in [0, 1).
        test_share: share that are test targets, for "by_time"; in [0, 1).
        cold_share: share of the items that training never sees, for "cold_start"; above 0 and below 1.
        cold_by: how these are chosen: at random ("seed"), or the items that came last ("time").
        cold_seed: of the random choice; it stays the same for all seeds of a study.
        learn_from: what is trained on: "train", with "validation" too, or "all" interactions; see `gr.runs.refit`.
        max_history: maximum number of history items that a model sees, the latest ones; 1 or more.
        time_jitter: seconds, 0 or more: each epoch sorts training interactions by time plus a random delay of up to
            this. 0 only shuffles interactions of equal time; None keeps the order.
        place_jitter: the same by place, for data without times: a random delay of up to so many places, 0 or more.
        reversed_share: share of the users whose training interactions an epoch reads backwards, in [0, 1]; others in
            each epoch. Of supervised training alone.
        num_buckets: number of padded history lengths, 1 or more; each is compiled once.
    """

    format: Annotated[str, OneOf((*FORMATS, "movielens_100k", "synthetic"), or_own=True)] = ""
    path: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    skip_bad_rows: bool = False
    split: Annotated[str, OneOf(("leave_one_out", "by_time", "cold_start"))] = "leave_one_out"
    validation_share: ShareBelowOne = 0.1
    test_share: ShareBelowOne = 0.1
    cold_share: ShareWithin = 0.1
    cold_by: Annotated[str, OneOf(("seed", "time"))] = "seed"
    cold_seed: Seed = 0
    learn_from: Annotated[str, OneOf(("train", "validation", "all"))] = "train"
    max_history: Count = 20
    time_jitter: NotNegative | None = None
    place_jitter: NotNegative = 0.0
    reversed_share: Share = 0.0
    num_buckets: Count = 5


@dataclasses.dataclass(frozen=True)
class SemanticIdsConfig:
    """Where semantic IDs come from; see `gr.semantic_ids.fit_semantic_ids`.

    Attributes:
        path: file of finished semantic IDs; "" builds them.
        item_ids: for a `.npy` file: a file with the item ids of its rows.
        order: for a `.npy` file without `item_ids`: "items" if its rows are in the order of the data's items.
        vectors: what items are clustered by: "text", "interactions", "both", a `.npy` or `.npz` file, or your own
            "module:function", `Splits -> [N, E]`.
        text_model: "tfidf", or the name of a sentence-transformers model.
        dim: width of each kind of vector; 1 or more.
        num_levels: levels of residual k-means; 1 or more.
        codebook_size: codes of a level; 1 or more.
        balanced: whether all codes of a level get equally many items.
        collision: "extra_code" (one more level distinguishes items that share all codes) or "share".
        spare_codes: extra codes beyond those in use, for items that are added later; 0 or more.
        min_perplexity: least share of a level's codes that must be in use, in [0, 1].
        seed: of the clustering.
    """

    path: str = ""
    item_ids: str = ""
    order: Annotated[str, OneOf(("", "items"))] = ""
    vectors: Annotated[
        str, OneOf(("text", "interactions", "both"), or_path=(".npy", ".npz"), or_own=True)
    ] = "both"
    text_model: str = "tfidf"
    dim: Count = 64
    num_levels: Count = 3
    codebook_size: Count = 64
    balanced: bool = False
    collision: Annotated[str, OneOf(("extra_code", "share"))] = "extra_code"
    spare_codes: Natural = 0
    min_perplexity: Share = 0.1
    seed: Seed = 0


@dataclasses.dataclass(frozen=True)
class EncoderDecoderSizes:
    """Sizes of the encoder-decoder; the defaults are TIGER's reference size. See `gr.models.EncoderDecoderConfig`.

    Attributes:
        d_model: width D.
        num_heads: attention heads.
        head_dim: width of a head.
        d_ff: width of the feed-forward layers.
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        dropout: in [0, 1).
        tied_head: whether logits are products with the token embeddings.
        causal_encoder: whether a history token sees itself and earlier ones only; needed by training level "user".
        recency_bias: whether cross-attention has a relative position bias; a causal encoder needs it.
        head: "vocabulary" (a softmax over all codes) or "trie" (over a node's children; not with `tied_head`).
        node_depth: see `ItemDecoderSizes`.
        dtype: of activations, "float32" or "bfloat16".
    """

    d_model: Count = 128
    num_heads: Count = 6
    head_dim: Count = 64
    d_ff: Count = 1024
    num_encoder_layers: Count = 4
    num_decoder_layers: Count = 4
    dropout: ShareBelowOne = 0.1
    tied_head: bool = False
    causal_encoder: bool = True
    recency_bias: bool = True
    head: Head = "vocabulary"
    node_depth: Natural = 8
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class DecoderOnlySizes:
    """Sizes of the decoder-only backbone; the defaults are its reference size. See `gr.models.DecoderOnlyConfig`.

    Attributes:
        d_model: width D; without `head_dim` a multiple of 2 num_heads.
        num_heads: attention heads.
        num_kv_heads: heads of keys and values, which query heads share; 0: as many as `num_heads`.
        head_dim: width of a head, even; 0: d_model / num_heads.
        d_ff: width of the feed-forward layers.
        num_layers: layers.
        dropout: in [0, 1).
        qkv_bias: whether queries, keys and values have biases.
        qk_norm: whether the queries and keys of each head are normed.
        norm_epsilon: what norms add to the mean square, above 0.
        tied_head: whether logits are products with the token embeddings.
        head: see `EncoderDecoderSizes`.
        node_depth: see `ItemDecoderSizes`.
        dtype: of activations, "float32" or "bfloat16".
    """

    d_model: Count = 128
    num_heads: Count = 8
    num_kv_heads: Natural = 0
    head_dim: Natural = 0
    d_ff: Count = 1024
    num_layers: Count = 8
    dropout: ShareBelowOne = 0.1
    qkv_bias: bool = False
    qk_norm: bool = False
    norm_epsilon: Positive = 1e-6
    tied_head: bool = False
    head: Head = "vocabulary"
    node_depth: Natural = 8
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class ItemDecoderSizes:
    """Sizes of the item-level backbone. See `gr.models.ItemDecoderConfig`.

    Attributes:
        head: "trie" (a softmax over a node's children), "vocabulary" (over all codes), or "items" (over the items,
            without codes: SASRec with cross-entropy).
        node_depth: number of depths whose trie nodes have embeddings of their own, for the trie head: 0 is none, and
            more than there are codes is all.
        num_facets: facets of each first code, for the trie head; 0: none. See `gr.models.trie_head.TrieHead`.
        item_share: share of an item tower in the model's distribution, in [0, 1): a second transformer with a softmax
            over whole items, trained along with the first; 0: none. Head "items" is one itself, and has none. See
            `gr.models.item_share`.
        item_embeddings: whether items of the history have embeddings of their own, beside those of their codes.
        start_from: what embeddings of items and trie nodes start from: "text" of the items, "interactions", vectors of
            their co-occurrence in training; "all" that the data have; or "none", at random. See
            `gr.models.start_from_vectors`.
        start_scale: length of these vectors, those of text and those of interactions each; 0 or more.
        d_model: width D, a multiple of 2 num_heads.
        num_heads: attention heads.
        d_ff: width of the feed-forward layers.
        num_layers: layers over the items of the history.
        num_depth_layers: layers over the codes of an item.
        dropout: in [0, 1).
        item_dropout: share of the history's items that are hidden in training, in [0, 1).
        dtype: of activations, "float32" or "bfloat16".
    """

    head: Annotated[str, OneOf(HEADS)] = "trie"
    node_depth: Natural = 8
    num_facets: Natural = 16
    item_share: ShareBelowOne = 0.0
    item_embeddings: bool = True
    start_from: Annotated[str, OneOf(("all", "none", "text", "interactions"))] = "all"
    start_scale: NotNegative = 0.3
    d_model: Count = 128
    num_heads: Count = 4
    d_ff: Count = 256
    num_layers: Count = 2
    num_depth_layers: Count = 1
    dropout: ShareBelowOne = 0.3
    item_dropout: ShareBelowOne = 0.0
    dtype: str = "float32"

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> Self:
        """The sizes of a run; models had no facets before there was a field for them."""
        former = {"num_facets": 0}
        return _made(cls, dataclasses.asdict(cls()) | former | dict(saved), "item_decoder.", False)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """What the supervised loop and that of reinforcement learning have in common: optimiser and evaluations.

    Attributes:
        learning_rate: peak learning rate, above 0.
        schedule: decay of the learning rate after the warm-up: a key of `gr.training.optimizers.DECAYS`.
        warmup_share: share of all optimiser updates spent on the warm-up, in [0, 1].
        weight_decay: AdamW's, 0 or more.
        clip_norm: global norm at which gradients are clipped, above 0.
        b2: AdamW's, in [0, 1).
        log_every: steps between lines of metrics; 1 or more.
        eval_users: validation users decoded at each evaluation; 0: all.
        monitor: validation metric that decides the best model: "ndcg@10", "hit@10", "ndcg@20", "hit@20", "loss" or
            "prefix_recall/1", "/2", ...
        patience: evaluations without improvement after which training ends; 0: never.
        precision: of float32 matrix products in the train step; see `DecodingConfig`.
    """

    learning_rate: Positive = 1e-3
    schedule: Schedule = "cosine"
    warmup_share: Share = 0.02
    weight_decay: NotNegative = 0.01
    clip_norm: Positive = 1.0
    b2: ShareBelowOne = 0.999
    log_every: Count = 20
    eval_users: Natural = 2048
    monitor: str = "ndcg@10"
    patience: Natural = 10
    precision: Precision = "default"


@dataclasses.dataclass(frozen=True)
class TrainingConfig(LoopConfig):
    """The supervised loop: the fields of `LoopConfig`, and these.

    Attributes:
        level: "user" (all positions of a sequence in one pass) or "target" (one target per example).
        init_from: workdir of a run whose best model and semantic IDs this one starts from; "": a fresh model.
        init_from_other_data: whether that run may have been trained on other data with the same items.
        batch_size: examples of a batch, for level "target"; 1 or more.
        items_per_batch: item positions of a batch, for level "user"; 1 or more.
        num_epochs: passes over the training targets; 1 or more.
        max_steps: batches after which training ends, if its epochs have not; 0: no limit. The learning rate has decayed
            by then.
        end_share: share of all these steps after which training ends; the learning rate's schedule stays that of all.
        accumulation_steps: batches of one optimiser update; 1 or more.
        eval_every_epochs: epochs between evaluations on validation, above 0.
        checkpoint_every_epochs: epochs between checkpoints, above 0.
        param_dtype: of the parameters, "float32" or "bfloat16". The optimiser then updates a copy in float32, of which
            they are roundings. Activations have the backbone's `dtype`.
    """

    level: Annotated[str, OneOf(tuple(LEVELS))] = "user"
    init_from: str = ""
    init_from_other_data: bool = False
    batch_size: Count = 128
    items_per_batch: Count = 512
    num_epochs: Count = 30
    max_steps: Natural = 0
    end_share: ShareAboveZero = 1.0
    accumulation_steps: Count = 1
    eval_every_epochs: Positive = 1.0
    checkpoint_every_epochs: Positive = 1.0
    param_dtype: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32"


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How items are ranked.

    Attributes:
        num_beams: M, beams; 1 or more.
        batch_size: users decoded at once; 1 or more.
        normalise_over: normalisation of the model's distribution: "vocabulary", "children" (of a prefix in the trie),
            or "trained": as the loss was (MSL: children, with temperature loss.tau).
        exclude_seen: whether items of the history are not recommended again. Set False where users repeat items, as in
            music and sessions: otherwise such targets could never be hit.
        precision: of float32 matrix products, see docs/accelerators.md: "highest", float32 everywhere; "high"; or
            "default", the device's fastest: bfloat16 on a TPU, TF32 on a GPU. No matter on a CPU.
    """

    num_beams: Count = 20
    batch_size: Count = 128
    normalise_over: Annotated[str, OneOf(("trained", "vocabulary", "children"))] = "trained"
    exclude_seen: bool = True
    precision: Precision = "highest"


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """The memory of training sequences that is mixed into the model's recommendations; see `gr.memory`.

    Attributes:
        weight: of the memory in the mixture P = (1 - weight) P_model + weight P_memory: a number in [0, 1]; "tuned",
            the one that ranks validation targets best; "gate", a weight for each user by what is known of their
            history, fitted on validation too; or None, no memory.
        tune: whether the memory's own settings are tuned on validation; else they are `settings`. The discount of
            a memory that is fitted is that of `settings` either way.
        settings: see `gr.memory.MemorySettings`.
        content: which similarities of items' content are tried beside co-occurrence when the settings are tuned:
            "codes", of semantic IDs; "text", of item fields; "vectors", those by which semantic IDs were fitted; "all"
            that the data have; or "none".
        size: items that the memory proposes to a user; 1 or more.
        source: "" for the memory of the training sequences, a `.npz` file that `Memory.save` wrote, or your own
            "module:name", a function `Splits -> prior` where `prior(histories, *, size, exclude)` is an `ItemPrior`.
        tuning_users: validation users by which weights are chosen, evenly spaced; 0: all.
    """

    weight: Share | Annotated[str, OneOf(("tuned", "gate"))] | None = None
    tune: bool = True
    settings: MemorySettings = MemorySettings()
    content: Annotated[str, OneOf(("all", "none", "codes", "text", "vectors"))] = "all"
    size: Count = 500
    source: Annotated[str, OneOf(("",), or_path=(".npz",), or_own=True)] = ""
    tuning_users: Natural = 2048


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh: sizes of its axes, whose product is the number of devices. All of them share a batch.

    Attributes:
        data: groups of devices, each of which has all the parameters; 0: as many as there are.
        model: devices of a group, which share parameters and optimiser state; 1 or more.
    """

    data: Natural = 0
    model: Count = 1


@dataclasses.dataclass(frozen=True)
class _Config:
    """Conversions that all experiments share."""

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """An experiment from a `ConfigDict`, or any nested mapping that has all its fields.

        Raises:
            ConfigError: for the first field that is unknown, missing, of a wrong type or out of range.
        """
        if isinstance(config, _Config):
            if type(config) is not cls:
                raise ConfigError(
                    f"this is of the kind {type(config).__name__}, not {cls.__name__}"
                )
            return config
        return _made(cls, config, "", fill=False)

    @classmethod
    def from_saved(cls, config: Mapping[str, Any]) -> Self:
        """An experiment from a run's `config.json`; a field that is newer than the run has its default."""
        return _made(cls, config, "", fill=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """An experiment from the text of `to_json`."""
        return cls.from_saved(json.loads(text))

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain values."""
        return dataclasses.asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """All fields as JSON; lists stand for tuples."""
        return json.dumps(self.to_dict(), indent=indent)

    def override(self, values: Mapping[str, Any]) -> Self:
        """The experiment with other values of some fields, by dotted name: `{"training.num_epochs": 5}`.

        Raises:
            ConfigError: see `from_config`.
        """
        plain = self.to_dict()
        for name, value in values.items():
            *blocks, last = name.split(".")
            block = plain
            for place, part in enumerate(blocks):
                if part not in block:
                    raise ConfigError(unknown_field(".".join(blocks[: place + 1]), block))
                block = block[part]
                if not isinstance(block, Mapping):
                    raise ConfigError(
                        f"{name}: {'.'.join(blocks[: place + 1])} is no block of fields"
                    )
            block[last] = value
        return type(self).from_config(plain)


@dataclasses.dataclass(frozen=True)
class Experiment(_Config):
    """Data, semantic IDs, model, loss, training and decoding of a supervised run.

    Attributes:
        name: a title for reports.
        seed: random seed of the whole run; 0 .. 2**32 - 1.
        backbone: "item_decoder" (items in, codes out), "encoder_decoder" (TIGER), "decoder_only" (Llama style), or your
            own "module:name", see docs/extending.md.
        backbone_options: arguments of your own backbone, by name.
        baselines: your own rankers, "module:name" each, in addition to the standard ones.
        data_dir: folder of the data; "": that of the environment variable GR_DATA.
        data: see `DataConfig`.
        semantic_ids: see `SemanticIdsConfig`.
        encoder_decoder: see `EncoderDecoderSizes`.
        decoder_only: see `DecoderOnlySizes`.
        item_decoder: see `ItemDecoderSizes`.
        loss: see `gr.training.LossConfig`.
        training: see `TrainingConfig`.
        decoding: see `DecodingConfig`.
        memory: see `MemoryConfig`.
        mesh: see `MeshConfig`.
    """

    name: str = ""
    seed: Seed = 0
    backbone: Annotated[str, OneOf(BACKBONES, or_own=True)] = "encoder_decoder"
    backbone_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    baselines: tuple[str, ...] = ()
    data_dir: str = ""
    data: DataConfig = DataConfig()
    semantic_ids: SemanticIdsConfig = SemanticIdsConfig()
    encoder_decoder: EncoderDecoderSizes = EncoderDecoderSizes()
    decoder_only: DecoderOnlySizes = DecoderOnlySizes()
    item_decoder: ItemDecoderSizes = ItemDecoderSizes()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()
    memory: MemoryConfig = MemoryConfig()
    mesh: MeshConfig = MeshConfig()

    @property
    def ranks_whole_items(self) -> bool:
        """Whether the project's own backbone with the item head is trained, which spells out no codes."""
        return self.backbone == "item_decoder" and self.item_decoder.head == "items"


def table_experiment(
    path: str = "", *, user: str = "", item: str = "", time: str | None = None, **options: Any
) -> Experiment:
    """An experiment on a table of interactions without text: a small item-level model with an item tower and a memory.

    Made for 100 to 20,000 items and up to a few million interactions; with more items set
    `semantic_ids.codebook_size=256`.

    Args:
        path: a CSV, TSV or Parquet file; "" if `train` is given the table itself.
        user: the column of users.
        item: the column of items.
        time: the column of times; None: the rows are in order.
        **options: other options of `gr.data.read_table`, such as `items_path`, `title`, `k_core`.
    """
    options = {"user": user, "item": item, "time": time, **options}
    return Experiment(
        backbone="item_decoder",
        data=DataConfig(
            format="table",
            path=path,
            options={name: value for name, value in options.items() if value not in (None, "")},
            max_history=50,
            num_buckets=2,
        ),
        # With few items, a level's codes may be used unevenly.
        semantic_ids=SemanticIdsConfig(vectors="interactions", num_levels=2, min_perplexity=0.0),
        item_decoder=ItemDecoderSizes(d_model=96, num_heads=2, dropout=0.2, item_share=0.5),
        training=TrainingConfig(
            items_per_batch=1024,
            # So that the learning rate has decayed before such a model overfits: see docs/results.md.
            num_epochs=8,
            learning_rate=2e-3,
            weight_decay=0.2,
            patience=5,
        ),
        decoding=DecodingConfig(num_beams=50),
        memory=MemoryConfig(weight="tuned"),
    )


# Reinforcement learning.


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The rewards of candidates.

    Attributes:
        names: rewards of `gr.rl`, or your own "module:function", `Outcome -> [B, G]`.
        weights: their weights in the sum, one each.
    """

    names: tuple[str, ...] = ("exact_match", "rank_aware")
    weights: tuple[float, ...] = (1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class PolicyFields(PolicyConfig):
    """The policy's loss; see `gr.losses.PolicyConfig`.

    Attributes:
        importance: whether candidates are importance-weighted, since they are not independent draws.
    """

    name: Annotated[str, OneOf(("grpo", "sibling_grpo", "tempo"))] = "sibling_grpo"
    importance: bool = False


@dataclasses.dataclass(frozen=True)
class ValueFields(ValueConfig):
    """The value head and how it learns; see `gr.rl.ValueConfig` and `gr.models.ValueHeadConfig`.

    Attributes:
        learn: whether there is a value head; without it VED is guided by entropy only.
        block: whether it has the published transformer block; without it it is an MLP on a prefix's state, meant for
            `item_decoder`, whose states come from such a block.
        num_heads: attention heads; 1 or more.
        d_ff: width of its feed-forward layer; 1 or more.
        dropout: in [0, 1).
        prefix_vectors: what a prefix's vector is the mean of: items below its "node", or of the "group" of candidates.
        learning_rate: above 0.
        pretrain_steps: steps of training the value head alone on the frozen backbone; 0 or more.
    """

    learn: bool = True
    block: bool = True
    num_heads: Count = 4
    d_ff: Count = 128
    dropout: ShareBelowOne = 0.1
    prefix_vectors: Annotated[str, OneOf(("node", "group"))] = "node"
    learning_rate: Positive = 1e-3
    pretrain_steps: Natural = 100


@dataclasses.dataclass(frozen=True)
class RlConfig(LoopConfig):
    """The loop of reinforcement learning: each step searches, rewards and learns from a batch of users.

    It has the fields of `LoopConfig`, with defaults of its own, and these.

    Attributes:
        batch_size: users of a step; 1 or more.
        num_buckets: number of padded history lengths, each compiled once; 1 or more.
        num_steps: train steps; 1 or more.
        targets: the rewarded targets: "train" targets, on which the policy was trained, or "validation" targets of
            users outside the `eval_users`.
        recent_targets: number of each user's latest train targets to use; 0: all.
        num_epochs: passes over the candidates of a step; 1 or more.
        num_minibatches: mini-batches of users in each pass; 1 or more.
        supervised_weight: weight of the targets' cross-entropy beside the policy's loss; 0 or more.
        sync_every: steps after which the policy becomes the KL reference; 0: never.
        eval_every: steps; 1 or more.
        checkpoint_every: steps; 1 or more.
    """

    batch_size: Count = 64
    num_buckets: Count = 1
    num_steps: Count = 300
    targets: Annotated[str, OneOf(("train", "validation"))] = "train"
    recent_targets: Natural = 0
    num_epochs: Count = 2
    num_minibatches: Count = 1
    supervised_weight: NotNegative = 0.0
    sync_every: Natural = 0
    learning_rate: Positive = 1e-4
    schedule: Schedule = "constant"
    warmup_share: Share = 0.05
    weight_decay: NotNegative = 0.0
    log_every: Count = 5
    eval_every: Count = 25
    eval_users: Natural = 1024
    checkpoint_every: Count = 25
    patience: Natural = 8


@dataclasses.dataclass(frozen=True)
class Reinforcement(_Config):
    """Reinforcement learning from a supervised run, which gives all other settings; V-STAR by default.

    Attributes:
        name: a title for reports.
        seed: see `Experiment`.
        data_dir: folder of the data; "": that of the supervised run.
        init_from: workdir of the supervised run.
        init_from_other_data: whether it may have been trained on data other than the current ones.
        search: how candidates are found; see `gr.decoding.SearchConfig`.
        reward: see `RewardConfig`.
        policy: see `PolicyFields`.
        value: see `ValueFields`.
        rl: see `RlConfig`.
    """

    name: str = ""
    seed: Seed = 0
    data_dir: str = ""
    init_from: str = ""
    init_from_other_data: bool = False
    search: SearchConfig = SearchConfig(budget=48)
    reward: RewardConfig = RewardConfig()
    policy: PolicyFields = PolicyFields()
    value: ValueFields = ValueFields()
    rl: RlConfig = RlConfig()

    def applied_to(self, start: Experiment) -> "ReinforcedExperiment":
        """The whole experiment: the supervised run's, with these fields."""
        mine = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        mine["data_dir"] = self.data_dir or start.data_dir
        both = {field.name: getattr(start, field.name) for field in dataclasses.fields(Experiment)}
        return ReinforcedExperiment(**both | mine)


@dataclasses.dataclass(frozen=True)
class ReinforcedExperiment(Experiment):
    """A supervised experiment with the fields of its `Reinforcement`, as saved in such a run."""

    init_from: str = ""
    init_from_other_data: bool = False
    search: SearchConfig = SearchConfig(budget=48)
    reward: RewardConfig = RewardConfig()
    policy: PolicyFields = PolicyFields()
    value: ValueFields = ValueFields()
    rl: RlConfig = RlConfig()


@dataclasses.dataclass(frozen=True)
class Study(_Config):
    """Several experiments, each run with several seeds and compared on the same users.

    Attributes:
        name: a title.
        seeds: every variant is run once with each.
        reference: the variant that the others are compared with.
        labels: variant -> its name in tables.
        variants: variant -> `Experiment` or `Reinforcement`, whose `init_from` may hold `{study}` and `{seed}`.
    """

    name: str = ""
    seeds: tuple[Seed, ...] = (0,)
    reference: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Experiment | Reinforcement] = dataclasses.field(default_factory=dict)


# Checks.


def config_of(config: Any, field: str = "") -> Any:
    """The typed form of a config of any kind: an `Experiment`, a `Reinforcement` or a `Study`.

    Args:
        config: a `ConfigDict` or other nested mapping, or an experiment.
        field: its dotted name within another config, with a final dot.

    Raises:
        ConfigError: see `Experiment.from_config`.
    """
    if isinstance(config, _Config):
        return config
    if not isinstance(_mapping(config), Mapping):
        raise ConfigError(f"{field or 'the config'} is no experiment but {config!r}")
    return _made(kind_of(config), config, field, fill=False)


def kind_of(config: Mapping[str, Any]) -> type[_Config]:
    """Which of the four kinds of config a mapping is, by the fields that only it has."""
    if "variants" in config:
        return Study
    if "init_from" in config:
        return ReinforcedExperiment if "data" in config else Reinforcement
    return Experiment


def check_experiment(experiment: Experiment | Reinforcement, field: str = "") -> None:
    """Checks that involve several fields.

    Raises:
        ConfigError: if shares leave nothing to train on, evaluations do not compute the monitored metric, or a baseline
            of the user cannot be imported.
    """
    _check_monitor(experiment, field)
    if isinstance(experiment, Experiment):
        data = experiment.data
        for name in experiment.baselines:  # Else they would fail only after training.
            load_own(name, f"{field}baselines", (), ConfigError)
        _check_known(f"{field}data.format", data.format, DataConfig)
        if data.split == "by_time" and not 0 < data.test_share + data.validation_share < 1:
            raise ConfigError(
                f"{field}data.validation_share and {field}data.test_share together must be below 1"
            )


def _check_monitor(experiment: Experiment | Reinforcement, field: str) -> None:
    """A `Reinforcement` takes its beams from its supervised run: it is checked again together with it."""
    of_rl = isinstance(experiment, (Reinforcement, ReinforcedExperiment))
    name = f"{field}{'rl' if of_rl else 'training'}.monitor"
    monitor = (experiment.rl if of_rl else experiment.training).monitor
    whole = experiment if isinstance(experiment, Experiment) else None
    if monitor.startswith("prefix_recall/") and (whole is None or whole.semantic_ids.path):
        return  # The number of levels is not known yet.
    beams = whole.decoding.num_beams if whole else DecodingConfig.num_beams
    depth = whole.semantic_ids.num_levels + 1 if whole else 0
    ranked = {f"{metric}@{k}": k for k in (10, 20) for metric in ("hit", "ndcg")}
    if ranked.get(monitor, 0) > beams:
        raise ConfigError(
            f"{name}={monitor!r} needs as many beams, and decoding.num_beams is {beams}; raise it, or take {name}=loss"
        )
    known = [metric for metric, k in ranked.items() if k <= beams]
    known += ["loss", *(f"prefix_recall/{level + 1}" for level in range(depth))]
    check_value(name, monitor, Annotated[str, OneOf(tuple(known))], ConfigError)


def _check_known(name: str, value: str, cls: type) -> None:
    hints = typing.get_type_hints(cls, include_extras=True)
    check_value(name, value, hints[name.rpartition(".")[2]], ConfigError)


def unknown_field(field: str, known: Mapping | Sequence[str]) -> str:
    """The message for an unknown field, by dotted name, of a block with these fields."""
    block, _, name = field.rpartition(".")
    names = sorted(known)
    close = did_you_mean(name, names)
    if not close:
        close = f"; {block or 'the config'} has {', '.join(names)}" if names else ""
    return f"unknown field {field}{close}"


def flattened(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all fields of nested mappings or experiments."""
    items = config.to_dict() if isinstance(config, _Config) else config
    for name, value in items.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _made(cls: Any, config: Any, prefix: str, fill: bool) -> Any:
    """A config dataclass from a mapping's values; with `fill`, missing fields get their defaults."""
    if fill and hasattr(cls, "from_saved") and not issubclass(cls, _Config):
        return cls.from_saved(_mapping(config))  # It handles its own older forms.
    config = _mapping(config)
    if not isinstance(config, Mapping):
        raise ConfigError(f"{prefix[:-1]}={config!r} is no block of fields")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in config:
        if name not in fields:
            raise ConfigError(unknown_field(f"{prefix}{name}", fields))
    missing = [name for name in fields if name not in config]
    if missing and not fill:
        raise ConfigError(
            f"{prefix}{missing[0]} is missing: set single fields of a block, such as c.training.num_epochs = 3, "
            "instead of replacing it"
        )
    values = {}
    for name, value in config.items():
        field, hint = f"{prefix}{name}", hints[name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            values[name] = (
                value if isinstance(value, hint) else _made(hint, value, field + ".", fill)
            )
            continue
        value = _plain(value)
        if not (field.endswith("data.format") and value == ""):  # Not said yet.
            check_value(field, value, hint, ConfigError)
        values[name] = tuple(value) if isinstance(value, list) else value
    if cls is Study:
        values["variants"] = {
            name: variant
            if isinstance(variant, _Config)
            else _made(kind_of(variant), variant, f"{prefix}variants.{name}.", fill)
            for name, variant in values.get("variants", {}).items()
        }
    return cls(**values)


def _mapping(config: Any) -> Any:
    """A value as a mapping: a `ConfigDict` is not one, but offers `items`."""
    if isinstance(config, Mapping) or not hasattr(config, "items"):
        return config
    return dict(config.items())


def _plain(value: Any) -> Any:
    """Values of a `ConfigDict` as plain ones."""
    value = _mapping(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return value
