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

from configs.base import base_config
from configs.base_rl import base_rl_config
from experiments import build, build_rl
from experiments.comparing import check_study, jobs
from gr.data import leave_one_out, load_sequences
from gr.data.load import FORMATS
from gr.models import ModelError
from gr.semantic_ids import SemanticIds, make_semantic_ids
from gr.training import make_mesh, make_optimizer
from gr.training.objectives import LossConfig, supervised_loss

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem[0] != "_")
NAMES.remove("base")
NAMES.remove("base_rl")
STUDIES = [name for name in NAMES if name.endswith("_study")]  # Of several experiments.
RL_STUDIES = [name for name in STUDIES if name.endswith("_rl_study")]
RL = [name for name in NAMES if name.endswith("_rl")]
NAMES = [name for name in NAMES if name not in STUDIES + RL]
BACKBONES = ("encoder_decoder", "decoder_only")


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
    assert {*build_rl.FIELDS, "data_dir"} == set(config)
    whole = ConfigDict({**base_config().to_dict(), **config.to_dict()})
    assert build_rl.rollout_config(whole).search.name == config.search.name
    assert build_rl.policy_config(whole).name == config.policy.name
    assert build_rl.value_config(whole).gamma == config.value.gamma


@pytest.mark.parametrize("name", RL_STUDIES)
def test_a_study_of_reinforcement_learning_starts_from_its_own_runs(name, load):
    study = load(name)
    check_study(study)
    made = jobs(study, "runs", "test")
    by_folder = {job.workdir: job for job in made}
    for job in made:
        if build_rl.is_rl(job.config):
            start = by_folder[job.starts_from]
            assert start.seed == job.seed and start.variant == "supervised"
            assert fields(study.variants[job.variant]) == fields(base_rl_config())


@pytest.mark.parametrize("name", sorted(set(STUDIES) - set(RL_STUDIES)))
def test_a_study_is_made_of_experiments_that_differ_in_what_they_minimise(name, load):
    study = load(name, "--config.seeds=5,7")
    check_study(study)
    assert [job.seed for job in jobs(study, "runs", "test")][:: len(study.variants)] == [5, 7]
    losses = {key: LossConfig(**variant.loss) for key, variant in study.variants.items()}
    assert {key: loss.name for key, loss in losses.items()} == {key: key for key in study.labels}
    for variant in study.variants.values():
        assert fields(variant) == fields(base_config())


@pytest.mark.parametrize("name", NAMES)
def test_a_config_sets_fields_that_all_experiments_have(name, load):
    config = load(name)
    assert config.name
    new = fields(config) ^ fields(base_config())
    assert all(field.startswith("data.options.") for field in new), new  # The reader's own.


@pytest.mark.parametrize("name", NAMES)
def test_a_configs_names_and_sizes_are_accepted(name, load):
    config = load(name)
    data, training = config.data, config.training
    options = dict(data.options)
    if data.format == "synthetic":
        load_sequences("synthetic", **options)
    elif data.format != "movielens_100k":
        inspect.signature(FORMATS[data.format]).bind("path", **options)
    assert data.split in ("leave_one_out", "by_time")
    inspect.signature(make_semantic_ids).bind("splits", **config.semantic_ids)
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
    level = config.training.level
    loss = supervised_loss(
        SEMANTIC_IDS.tokens,
        level=level,
        targets_per_batch=2.0,
        loss=LossConfig(**config.loss),
    )
    if level == "user":
        batch = {"items": np.zeros((2, 4), np.int32), "weight": np.ones((2, 4), np.float32)}
    else:
        rows = np.zeros(2, np.int32)
        batch = {"history": np.zeros((2, 3), np.int32), "target": rows, "weight": np.ones(2)}

    def run(key):
        return loss(build.make_model(config, SEMANTIC_IDS), batch, key, ())

    return jax.eval_shape(run, jax.random.key(0))


@pytest.mark.parametrize("level", ["user", "target"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", NAMES)
def test_a_config_builds_both_backbones_and_their_loss(name, backbone, level, load):
    config = load(name, f"--config.backbone={backbone}", f"--config.training.level={level}")
    model = jax.eval_shape(lambda: build.make_model(config, SEMANTIC_IDS))
    assert model.embedding.shape == (SEMANTIC_IDS.vocab_size, config[backbone].d_model)
    assert build.num_parameters(model) > 1000
    value, (metrics, _) = loss_of_a_batch(config)
    assert value.shape == () and value.dtype == jnp.float32
    assert set(metrics) == {"level_1/loss", "level_2/loss", "level_3/loss"}


def test_what_the_command_line_overrides_reaches_the_model(load):
    config = load("amazon_office", "--config.encoder_decoder.d_model=48", "--config.seed=3")
    model = jax.eval_shape(lambda: build.make_model(config, SEMANTIC_IDS))
    assert model.embedding.shape == (12, 48)


def test_the_interaction_level_form_of_the_papers_can_be_asked_for(load):
    bidirectional = "--config.encoder_decoder.causal_encoder=False"
    level = "--config.training.level="
    assert loss_of_a_batch(load("amazon_office", bidirectional, f"{level}target"))
    with pytest.raises(ModelError, match="needs causal_encoder=True"):
        loss_of_a_batch(load("amazon_office", bidirectional, f"{level}user"))


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


def test_an_unknown_backbone_is_refused(load):
    with pytest.raises(ModelError, match="backbone='transformer' is unknown: use encoder_decoder"):
        build.make_model(load("ml100k", "--config.backbone=transformer"), SEMANTIC_IDS)


def test_vectors_and_ids_of_the_data_folder(load, tmp_path):
    config = load("synthetic")
    config.data_dir = str(tmp_path)
    splits = leave_one_out(load_sequences("synthetic", num_users=50, num_items=40))
    ids = splits.sequences.item_ids
    (tmp_path / "list.txt").write_text("\n".join(ids[::-1]))
    codes = np.stack([np.arange(40), np.arange(40) % 7], axis=1)
    np.save(tmp_path / "codes.npy", codes[::-1])
    config.semantic_ids.update(path="codes.npy", item_ids="list.txt")
    np.testing.assert_array_equal(build.load_semantic_ids(config, splits)[0].codes, codes)
    np.save(tmp_path / "vectors.npy", codes[::-1] * 1.0)
    config.semantic_ids.update(path="", vectors="vectors.npy", min_perplexity=0.0)
    expected = tmp_path / "vectors.npz"
    np.savez(expected, vectors=codes * 1.0, item_ids=ids)
    by_list, _ = build.load_semantic_ids(config, splits)
    config.semantic_ids.update(vectors=str(expected), item_ids="")
    np.testing.assert_array_equal(build.load_semantic_ids(config, splits)[0].codes, by_list.codes)
