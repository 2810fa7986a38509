import ast
import inspect
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.base import base_config, base_rl_config
from experiments.config_files import check_overrides, load_config_file, study_of, supervised
from gr.data import leave_one_out, load_sequences
from gr.data.load import FORMATS
from gr.models import ModelError
from gr.runs import (
    ConfigError,
    Experiment,
    Reinforcement,
    build,
    build_rl,
    check_experiment,
    config_of,
)
from gr.runs.data import load_semantic_ids
from gr.runs.experiment import BACKBONES
from gr.runs.study import jobs_of
from gr.semantic_ids import SemanticIds, fit_semantic_ids
from gr.training import init_loss_state, make_mesh, make_optimizer
from gr.training.objectives import LossConfig, supervised_loss

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem[0] != "_")
NAMES.remove("base")
STUDIES = [name for name in NAMES if name.endswith("_study")]  # Of several experiments.
RL_STUDIES = [name for name in STUDIES if name.endswith("_rl_study")]
RL = [name for name in NAMES if name.endswith("_rl")]
NAMES = [name for name in NAMES if name not in STUDIES + RL]


@pytest.fixture
def load(monkeypatch):
    """Reads a config and what overrides it as the mains do: from the command line."""

    def load_config(name, *overrides):
        argv = ["main", f"--config={ROOT / 'configs' / name}.py", *overrides]
        monkeypatch.setattr(sys, "argv", argv)
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(argv)
        return values["config"].value

    return load_config


SEMANTIC_IDS = SemanticIds(
    codes=np.array([[0, 0, 0], [3, 1, 2], [1, 2, 1]]),
    codebook_sizes=(4, 3, 3),
    item_ids=np.array(["a", "b", "c"]),
)


def fields(config, prefix=""):
    """Dotted names of all values."""
    names = set()
    for name, value in config.items():
        nested = isinstance(value, ConfigDict)
        names |= fields(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}"}
    return names


def test_the_configs_that_others_rely_on_are_there():
    assert {"amazon_beauty", "amazon_office", "ml100k", "synthetic"} <= set(NAMES)
    assert {"beauty_apao_study", "office_apao_study"} <= set(STUDIES)


@pytest.mark.parametrize("name", NAMES + STUDIES + RL)
def test_a_config_says_what_it_is_and_how_it_is_run(name):
    docstring = ast.get_docstring(ast.parse((ROOT / f"configs/{name}.py").read_text()))
    assert docstring, f"configs/{name}.py needs a docstring with its command line"
    one_line = " ".join(docstring.replace("\\\n", " ").split())
    main = "compare" if name in STUDIES else "rl" if name in RL else "train"
    assert f"python -m experiments.{main} --config=configs/{name}.py --workdir=" in one_line


@pytest.mark.parametrize("name", RL)
def test_an_experiment_of_reinforcement_learning_is_accepted(name, load):
    config = load(name)
    assert config.name and fields(config) == fields(base_rl_config())
    whole = config_of(config).applied_to(Experiment())
    assert build_rl.rollout_config(whole).search.name == config.search.name


@pytest.mark.parametrize("name", RL_STUDIES)
def test_a_study_of_reinforcement_learning_starts_from_its_own_runs(name, load):
    study = load(name)
    made = jobs_of(study_of(study), "runs", "test")
    by_folder = {job.workdir: job for job in made}
    for job in made:
        if isinstance(job.config, Reinforcement):
            start = by_folder[job.starts_from]
            assert start.seed == job.seed and start.variant == "supervised"
            assert fields(study.variants[job.variant]) == fields(base_rl_config())


@pytest.mark.parametrize("name", sorted(set(STUDIES) - set(RL_STUDIES)))
def test_a_study_is_made_of_experiments_that_all_differ(name, load):
    study = load(name, "--config.seeds=5,7")
    assert [job.seed for job in jobs_of(study_of(study), "runs", "test")][
        :: len(study.variants)
    ] == [5, 7]
    assert set(study.variants) == set(study.labels)
    for variant in study.variants.values():
        assert fields(variant) == fields(base_config())
        LossConfig(**variant.loss)
    settings = [variant.to_json() for variant in study.variants.values()]
    assert len(set(settings)) == len(settings)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_sets_fields_that_all_experiments_have(name, load):
    config = load(name)
    assert config.name
    new = fields(config) ^ fields(base_config())
    # The reader's own, and an own backbone's.
    assert all(field.startswith(("data.options.", "backbone_options.")) for field in new), new


@pytest.mark.parametrize("name", NAMES)
def test_a_configs_names_and_sizes_are_accepted(name, load):
    config = load(name)
    data, training = config.data, config.training
    options = dict(data.options)
    if data.format == "synthetic":
        load_sequences("synthetic", **options)
    elif data.format != "movielens_100k":
        inspect.signature(FORMATS[data.format]).bind("path", **options)
    assert data.split in ("leave_one_out", "by_time", "cold_start")
    inspect.signature(fit_semantic_ids).bind("splits", **config.semantic_ids)
    assert make_mesh(**config.mesh).size == 1
    make_optimizer(
        learning_rate=training.learning_rate,
        schedule=training.schedule,
        total_steps=100,
        warmup_steps=round(100 * training.warmup_share),
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        accumulation_steps=training.accumulation_steps,
        b2=training.b2,
    )
    if training.monitor != "loss":
        metric, k = training.monitor.split("@")
        assert metric in ("hit", "ndcg") and int(k) <= config.decoding.num_beams


def loss_of_a_batch(config):
    """Shapes of the loss of a batch in the config's training level: nothing is computed."""
    config = supervised(config)
    level = config.training.level
    loss = supervised_loss(
        SEMANTIC_IDS.tokens,
        level=level,
        targets_per_batch=2.0,
        loss=config.loss,
        index=build.make_index(config, SEMANTIC_IDS),
    )
    if level == "user":
        batch = {"items": np.zeros((2, 4), np.int32), "weight": np.ones((2, 4), np.float32)}
    else:
        rows = np.zeros(2, np.int32)
        batch = {"history": np.zeros((2, 3), np.int32), "target": rows, "weight": np.ones(2)}

    def run(key):
        state = init_loss_state(config.loss, SEMANTIC_IDS.num_levels)
        return loss(build.make_model(config, SEMANTIC_IDS), batch, key, state)

    return jax.eval_shape(run, jax.random.key(0))


@pytest.mark.parametrize("level", ["user", "target"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", NAMES)
def test_a_config_builds_every_backbone_and_its_loss(name, backbone, level, load):
    config = load(name, f"--config.backbone={backbone}", f"--config.training.level={level}")
    model = jax.eval_shape(lambda: build.make_model(supervised(config), SEMANTIC_IDS))
    codes = model.codes_in if backbone == "item_decoder" else model.embedding
    assert codes.shape == (SEMANTIC_IDS.vocab_size, config[backbone].d_model)
    assert build.num_parameters(model) > 1000
    value, (metrics, _) = loss_of_a_batch(config)
    assert value.shape == () and value.dtype == jnp.float32
    of_codes = {f"level_{depth}/loss" for depth in (1, 2, 3)}
    of_prefixes = {f"prefix_{depth}/{what}" for depth in (1, 2, 3) for what in ("loss", "weight")}
    apao = config.loss.name == "apao_pointwise"
    tower = backbone == "item_decoder" and config.item_decoder.item_share > 0
    of_items = {"items/loss"} if tower else set()
    assert set(metrics) == of_codes | of_items | (of_prefixes if apao else set())


def test_what_the_command_line_overrides_reaches_the_model(load):
    config = load("amazon_office", "--config.encoder_decoder.d_model=48", "--config.seed=3")
    model = jax.eval_shape(lambda: build.make_model(supervised(config), SEMANTIC_IDS))
    assert model.embedding.shape == (12, 48)


def test_the_interaction_level_form_of_the_papers_can_be_asked_for(load):
    bidirectional = "--config.encoder_decoder.causal_encoder=False"
    level = "--config.training.level="
    assert loss_of_a_batch(load("amazon_office", bidirectional, f"{level}target"))
    with pytest.raises(ModelError, match="needs causal_encoder=True"):
        loss_of_a_batch(load("amazon_office", bidirectional, f"{level}user"))


@pytest.mark.parametrize("name", ["ml100k", "ml100k_decoder_only", "table"])
def test_the_memorys_weight_is_a_number_or_a_word(name, load):
    for text, expected in (
        ("tuned", "tuned"),
        ("gate", "gate"),
        ("0.7", 0.7),
        ("1", 1),
        ("None", None),
    ):
        config = load(name, f"--config.memory.weight={text}")
        assert config_of(config).memory.weight == expected
    config = load(name)
    config.memory.weight = 0.3
    config.memory.weight = "tuned"
    for text, told in (
        ("tund", "did you mean tuned? Use one of tuned, gate"),
        ("2", "memory.weight=2: use a number from 0 to 1"),
        ("(1, 2)", "memory.weight=(1, 2) is of type tuple; give a number or a text"),
    ):
        with pytest.raises(ConfigError) as caught:
            config_of(load(name, f"--config.memory.weight={text}"))
        assert told in str(caught.value)
    assert load(name, "--config.data.time_jitter=2.5").data.time_jitter == 2.5


def test_unknown_fields_and_wrong_types_are_refused(load):
    with pytest.raises((AttributeError, flags.Error), match="batchsize"):
        load("ml100k", "--config.training.batchsize=7")
    with pytest.raises((KeyError, flags.Error), match="trainin"):
        load("ml100k", "--config.trainin.batch_size=7")
    with pytest.raises((flags.Error, TypeError, ValueError), match="batch_size"):
        load("ml100k", "--config.training.batch_size=many")
    config = load("ml100k")
    assert config.is_locked
    with pytest.raises(AttributeError, match="epochs"):
        config.training.epochs = 3


# What is wrong with a config is said in one line, before anything is done.

SUPERVISED, OF_RL = base_config(), base_rl_config()


def with_defaults(field, value, config=SUPERVISED):
    """A default config that can be used, with one field set past the types that a ConfigDict keeps."""
    plain = config.to_dict()
    if "data" in plain:
        plain["data"]["format"] = "synthetic"
    *blocks, name = field.split(".")
    block = plain
    for part in blocks:
        block = block[part]
    block[name] = value
    return ConfigDict(plain)


def numeric(config):
    found = {f: config for f in fields(config) if isinstance(at(config, f), (int, float))}
    return [f for f in sorted(found) if not isinstance(at(config, f), bool)]


def at(config, field):
    for part in field.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize(
    ("config", "field"),
    [(config, field) for config in (SUPERVISED, OF_RL) for field in numeric(config)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_number_out_of_range_is_refused(config, field):
    config_of(with_defaults(field, at(config, field), config))
    for value in (-1, -0.5, float("nan"), float("inf"), "abc", None):
        with pytest.raises(ConfigError, match=rf"^{field}="):
            config_of(with_defaults(field, value, config))
    zero = with_defaults(field, 0, config)
    if field in CAN_BE_0:
        config_of(zero)
    else:
        with pytest.raises(ConfigError, match=rf"^{field}=0: use"):
            config_of(zero)


CAN_BE_0 = {
    *("seed", "semantic_ids.seed", "semantic_ids.min_perplexity", "loss.eta"),
    *("encoder_decoder.dropout", "decoder_only.dropout", "value.dropout", "data.place_jitter"),
    "data.reversed_share",
    *("item_decoder.dropout", "item_decoder.item_dropout", "item_decoder.node_depth"),
    *("decoder_only.num_kv_heads", "decoder_only.head_dim"),
    *("encoder_decoder.node_depth", "decoder_only.node_depth", "item_decoder.start_scale"),
    *("item_decoder.num_facets", "item_decoder.item_share"),
    *("memory.settings.content", "memory.settings.discount"),
    *("memory.settings.back", "memory.settings.shrink", "memory.tuning_users"),
    *("training.warmup_share", "training.weight_decay", "training.b2", "training.eval_users"),
    *(
        "training.max_steps",
        "training.patience",
        "data.validation_share",
        "data.test_share",
        "data.cold_seed",
    ),
    *("semantic_ids.spare_codes", "mesh.data"),
    *("search.initial_beams", "search.entropy_weight", "search.prior_weight", "search.exploration"),
    *("search.sampling_temperature", "search.crowding", "search.budget"),
    *("policy.kl_weight", "policy.sibling_weight", "policy.cppo_budget"),
    *("value.gamma", "value.lam", "value.pretrain_steps", "rl.recent_targets", "rl.sync_every"),
    *("rl.supervised_weight", "rl.warmup_share", "rl.weight_decay", "rl.b2", "rl.eval_users"),
    *("rl.patience",),
}


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        (
            "backbone",
            "decoder_onli",
            "did you mean decoder_only? Use one of encoder_decoder, decod",
        ),
        ("backbone", "zzz", "backbone='zzz' is unknown; use one of encoder_decoder, decoder_only"),
        ("data.format", "tabel", "did you mean table?"),
        ("data.format", "", "data.format='' is unknown; use one of "),
        ("data.split", "by_tim", "did you mean by_time?"),
        ("memory.weight", "gated", "did you mean gate? Use one of tuned, gate"),
        ("memory.weight", -0.1, "memory.weight=-0.1: use a number from 0 to 1"),
        (
            "memory.source",
            "memory.npy",
            "memory.source='memory.npy' is unknown; use one of '', FILE.npz, or mo",
        ),
        ("loss.name", "apao_pontwise", "did you mean apao_pointwise?"),
        ("training.schedule", "cosin", "did you mean cosine?"),
        ("training.monitor", "ndgc@10", "did you mean ndcg@10?"),
        ("decoding.num_beams", 5, "'ndcg@10' needs as many beams, and decoding.num_beams is 5"),
        ("decoding.normalise_over", "children?", "did you mean children?"),
        ("semantic_ids.vectors", "interaction", "did you mean interactions?"),
        (
            "training.learnig_rate",
            1.0,
            "unknown field training.learnig_rate; did you mean learning_rate?",
        ),
        ("traning", ConfigDict(), "unknown field traning; did you mean training?"),
        ("semantic_ids.codebooksize", 3, "did you mean codebook_size?"),
        ("training", ConfigDict({"num_epochs": 3}), "is missing: set single fields of a block"),
        ("training", 3, "training=3 is no block of fields"),
        ("training.num_epochs", True, "training.num_epochs=True is of type bool"),
        ("decoding.exclude_seen", 1, "decoding.exclude_seen=1 is of type int"),
        ("training.num_epochs", 1.5, "training.num_epochs=1.5 is of type float"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_what_is_like_it(field, value, told):
    with pytest.raises(ConfigError) as caught:
        check_experiment(supervised(with_defaults(field, value)))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_the_variants_of_a_study_and_rewards_are_checked_too():
    study = ConfigDict({"name": "", "seeds": (0,), "reference": "a", "labels": {}})
    study.variants = {"a": with_defaults("training.num_epochs", 0)}
    with pytest.raises(ConfigError, match=r"variants\.a\.training\.num_epochs=0"):
        config_of(study)
    with pytest.raises(ConfigError, match="unknown field seed; did you mean seeds"):
        config_of(ConfigDict({"seed": 0, "variants": {}}))
    for weights in ((float("nan"), 1.0), ("a", 1.0)):
        with pytest.raises(ConfigError, match=r"reward\.weights="):
            config_of(with_defaults("reward.weights", weights, OF_RL))
    config_of(with_defaults("semantic_ids.vectors", "mine.npy"))
    with pytest.raises(ConfigError, match="together must be below 1"):
        shares = with_defaults("data.split", "by_time")
        shares.data.test_share = shares.data.validation_share = 0.5
        check_experiment(config_of(shares))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "c.training.learnig_rate = 1",
            "line 5: unknown field learnig_rate; did you mean learning_rate?",
        ),
        ("c.trainin.num_epochs = 1", "line 5: unknown field trainin; did you mean training?"),
        (
            "c.training.update(num_epoch=1)",
            "line 5: unknown field num_epoch; did you mean num_epochs?",
        ),
        ("c.training.num_epochs = 'three'", "line 5: num_epochs = three is of type str, not int"),
        ("c.seed = sed", "line 5: NameError: name 'sed' is not defined"),
        ("return c.seed +", "line 5: invalid syntax"),
        ("return None", "get_config() gives no ConfigDict but None"),
        ("import missing_module", "line 5: ModuleNotFoundError"),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(tmp_path, body, told):
    path = tmp_path / "mine.py"
    start = "from configs.base import base_config\n\ndef get_config():\n    c = base_config()\n"
    path.write_text(f"{start}    {body}\n    return c\n")
    with pytest.raises(ConfigError) as caught:
        load_config_file(str(path))
    assert f"{path}" in str(caught.value) and told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_file_is_found_or_something_like_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def get_config(size):\n    return __import__('ml_collections').ConfigDict({'size': size})"
    )
    assert load_config_file(f"{path}:small").size == "small"
    with pytest.raises(ConfigError, match=r"no such config file; did you mean .*/mine\.py"):
        load_config_file(str(tmp_path / "mine2.py"))
    path.write_text("x = 1")
    with pytest.raises(ConfigError, match=r"has no function get_config\(\)"):
        load_config_file(str(path))


def test_what_the_command_line_overrides_has_to_be_there():
    config = with_defaults("name", "")
    check_overrides(config, ["--config.seed=1", "-config.mesh.data=2", "--noconfig.loss.with_ce"])
    for argument, told in (
        ("--config.training.learning_rat=1", "training.learning_rat; did you mean learning_rate"),
        ("--config.traning.x=1", "unknown field traning; did you mean training"),
        ("--config.seed.x=1", r"unknown field seed\.x"),
        ("--config.data.options.k_core=5", r"c\.data\.options\.k_core = "),
    ):
        with pytest.raises(ConfigError, match=told):
            check_overrides(config, [argument])


def test_an_unknown_backbone_is_refused(load):
    with pytest.raises(
        ConfigError, match="backbone='transformer' is unknown; use one of encoder_decoder"
    ):
        supervised(load("ml100k", "--config.backbone=transformer"))


def test_vectors_and_ids_of_the_data_folder(load, tmp_path):
    config = load("synthetic")
    config.data_dir = str(tmp_path)
    splits = leave_one_out(load_sequences("synthetic", num_users=50, num_items=40))
    ids = splits.sequences.item_ids
    (tmp_path / "list.txt").write_text("\n".join(ids[::-1]))
    codes = np.stack([np.arange(40), np.arange(40) % 7], axis=1)
    np.save(tmp_path / "codes.npy", codes[::-1])
    config.semantic_ids.update(path="codes.npy", item_ids="list.txt")
    found = load_semantic_ids(supervised(config), splits).semantic_ids
    np.testing.assert_array_equal(found.codes, codes)
    np.save(tmp_path / "vectors.npy", codes[::-1] * 1.0)
    config.semantic_ids.update(path="", vectors="vectors.npy", min_perplexity=0.0)
    expected = tmp_path / "vectors.npz"
    np.savez(expected, vectors=codes * 1.0, item_ids=ids)
    by_list = load_semantic_ids(supervised(config), splits).semantic_ids
    config.semantic_ids.update(vectors=str(expected), item_ids="")
    found = load_semantic_ids(supervised(config), splits).semantic_ids
    np.testing.assert_array_equal(found.codes, by_list.codes)
