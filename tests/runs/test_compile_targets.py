"""Programs compiled for TPUs that are not there, where their compiler is installed; and what is said where not."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr.models import load_hf, save_hf
from gr.runs import ConfigError, Experiment, build
from gr.runs.compile_for import CHIPS, compile_programs, described_devices
from gr.runs.data import load_data, load_semantic_ids
from gr.runs.experiment import MeshConfig
from gr.runs.programs import PROGRAMS, Program, experiment_programs
from gr.training import TrainingError, make_mesh, replicate, shard_batch, shard_state

pytestmark = pytest.mark.usefixtures("compile_anew")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install -e '.[aot]'",
)
SIZES = {"d_model": 16, "num_heads": 2, "d_ff": 16, "num_layers": 1}
TINY = Experiment().override(
    {
        "data.format": "synthetic",
        "data.options": {"num_users": 60, "num_items": 40, "mean_length": 8.0},
        "data.max_history": 4,
        "data.num_buckets": 1,
        "semantic_ids.vectors": "interactions",
        "semantic_ids.dim": 8,
        "semantic_ids.num_levels": 2,
        "semantic_ids.codebook_size": 8,
        "backbone": "decoder_only",
        **{f"decoder_only.{name}": size for name, size in SIZES.items()},
        "training.batch_size": 8,
        "training.items_per_batch": 64,
        "decoding.num_beams": 4,
        "decoding.batch_size": 8,
    }
)


@pytest.fixture(scope="module")
def toy():
    """Data and semantic IDs of `TINY`."""
    splits = load_data(TINY, "")
    return splits, load_semantic_ids(TINY, splits).semantic_ids


def of_sum(size):
    """A program that adds up the rows of a batch, which it gets as shapes."""

    def lower(mesh):
        weights = replicate(np.ones((size, 128), np.float32), mesh)
        batch = shard_batch(np.ones((8, size), np.float32), mesh)
        return jax.jit(lambda w, x: (x @ w).sum(0)).lower(weights, batch)

    return Program(lower, splits=True)


def test_an_unknown_target_is_refused():
    with pytest.raises(ConfigError, match="target=tpu:v5 is unknown.*did you mean tpu:v5e"):
        described_devices("tpu:v5")


@pytest.mark.parametrize(
    "target, package, extra", [("tpu:v6e", "libtpu", "aot"), ("gpu:h100", "jax_cuda12", "cuda")]
)
def test_a_missing_compiler_is_named_with_its_remedy(monkeypatch, target, package, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"needs {package}.*pip install -e '\.\[{extra}\]'"):
        described_devices(target)


@needs_libtpu
@pytest.mark.parametrize("target", ["tpu:v5e", "tpu:v6e"])
def test_a_product_is_counted_and_its_batch_split(target):
    half = dataclasses.replace(of_sum(256), splits=False)
    whole = dataclasses.replace(of_sum(512), floors=("half", "whole"))
    results = compile_programs(target, {"whole": whole, "half": half})
    of = results["whole"]
    assert of["argument_bytes"] >= 4 * (512 * 128 + 8 * 512)
    assert of["floor"] == "half" and of["bytes_over_floor"] > 1
    assert of["kinds"]["products"]["count"] == 1 and of["constant_bytes"] == 0
    if target == "tpu:v5e":  # Whose compiler tells its estimates.
        assert (
            of["cycles"] > 0 and of["cycles_over_floor"] == of["cycles"] / results["half"]["cycles"]
        )
    assert of["collectives"]["count"] == 0
    split = of[f"on_{CHIPS}_chips"]
    assert split["collectives"]["count"] == 1  # The sums of four chips.
    assert split["collectives"]["bytes"] >= 4 * 128
    assert split["argument_bytes"] == of["argument_bytes"] - 3 * 4 * 8 * 512 // 4
    assert f"on_{CHIPS}_chips" not in results["half"]


@needs_libtpu
@pytest.mark.parametrize("target", ["tpu:v5e-8", "tpu:v6e-8"])
def test_a_slice_is_compiled_for_as_a_whole(target):
    def lower(mesh):
        assert {device.process_index for device in mesh.devices.flat} == {0}  # One host.
        weights = shard_state(np.ones((512, 1024), np.float32), mesh)
        batch = shard_batch(np.ones((16, 512), np.float32), mesh)
        return jax.jit(lambda w, x: (x @ w).sum(0)).lower(weights, batch)

    product = Program(lower, floors=("half",), splits=True, shards=True)
    half = dataclasses.replace(product, splits=False, floors=())
    for mesh in (MeshConfig(), MeshConfig(2, 4)):
        results = compile_programs(target, {"product": product, "half": half}, mesh=mesh)
        assert list(results) == ["product"]  # A floor is nothing that a run does.
        of = results["product"]
        assert of["mesh"] == {"data": mesh.data or 8, "model": mesh.model}
        assert of["argument_bytes"] == 4 * (512 * 1024 // mesh.model + 16 * 512 // 8)
        assert of["share_of_memory"] == of["peak_bytes"] / ((16 if "v5e" in target else 32) << 30)
        assert of["floor"] is None and f"on_{CHIPS}_chips" not in of
    with pytest.raises(TrainingError, match="data=2 x model=8 does not fit on 8 tpu device"):
        compile_programs(target, {"product": product}, mesh=MeshConfig(2, 8))


@needs_libtpu
def test_each_chip_of_a_slice_decodes_a_batch(toy):
    mesh = make_mesh(data=0, devices=described_devices("tpu:v5e-8"))
    for per_chip, users in ((True, 64), (False, 8)):
        programs = experiment_programs(TINY, *toy, ["decode"], per_chip=per_chip)
        lowered = programs["decode/prefill"].lower(mesh)
        shapes = [leaf.shape for leaf in jax.tree.leaves(lowered.in_avals)]
        assert (users, 4) in shapes  # Histories of four items.


def test_a_large_model_is_described_without_being_made(toy, monkeypatch):
    options = {"folder": "configs/checkpoints/qwen2.5_0.5b", "weights": "random"}
    large = TINY.override({"backbone": "gr.models:load_hf", "backbone_options": options})
    made = []
    make_model = build.make_model
    monkeypatch.setattr(build, "make_model", lambda *of: made.append(make_model(*of)) or made[-1])
    experiment_programs(large, *toy, ["decode"])
    leaves = jax.tree.leaves(made)
    assert sum(leaf.size for leaf in leaves) > 4.9e8
    assert all(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def test_a_checkpoint_on_disk_is_described_too(toy, tmp_path):
    save_hf(load_hf("configs/checkpoints/qwen2_tiny", weights="random"), tmp_path)
    options = {"folder": str(tmp_path), "lora_rank": 2, "param_dtype": "bfloat16"}
    read = TINY.override({"backbone": "gr.models:load_hf", "backbone_options": options})
    assert "decode" in experiment_programs(read, *toy, ["decode"])


def looks_at_numbers(*, vocab_size, code_length, rngs):
    return np.asarray(jnp.ones(3) * vocab_size)


def test_a_backbone_that_looks_at_numbers_is_told(toy):
    own = TINY.override({"backbone": "test_compile_targets:looks_at_numbers"})
    with pytest.raises(ConfigError, match="made of shapes alone, and this one's function looks at"):
        experiment_programs(own, *toy, ["decode"])


@needs_libtpu
def test_a_program_that_does_not_fit_is_refused():
    def lower(mesh):
        return jax.jit(lambda x: x + 1).lower(
            jax.tree.map(
                lambda s: jax.ShapeDtypeStruct((5 << 30,), s.dtype, sharding=s.sharding),
                replicate(np.float32(0), mesh),
            )
        )

    with pytest.raises(
        ConfigError, match=r"program large cannot be compiled.*lower the batch size"
    ):
        compile_programs("tpu:v5e", {"large": Program(lower)})


@needs_libtpu
def test_a_described_mesh_gives_shapes():
    mesh = make_mesh(data=2, model=2, devices=described_devices("tpu:v5e"))
    key, x = jax.random.key(0), np.zeros((4, 3), np.int64)
    batch = shard_batch({"x": x}, mesh)["x"]
    assert isinstance(batch, jax.ShapeDtypeStruct) and batch.dtype == jnp.int32
    assert batch.sharding.shard_shape(batch.shape) == (1, 3)
    assert replicate(key, mesh).dtype == key.dtype


@needs_libtpu
def test_the_programs_of_an_experiment(toy):
    programs = experiment_programs(TINY, *toy, ["decode", "train"])
    assert list(programs) == [
        "decode",
        "decode/forward",
        "decode/prefill",
        "train",
        "train/forward",
    ]
    mixed = TINY.override({"memory.weight": 0.5})
    programs |= experiment_programs(mixed, *toy, ["decode"])
    results = compile_programs("tpu:v5e", programs, split=False)
    assert results["decode/prior"]["floor"] == "decode"
    assert results["decode/prior"]["cycles_over_floor"] > 1
    for name in ("decode", "train"):
        of = results[name]
        assert of["floor"] == f"{name}/forward"
        assert of["cycles"] > results[of["floor"]]["cycles"] > 0
        assert of["constant_bytes"] == 0 and 0 < of["share_of_memory"] < 0.01
        assert any(line["source"].startswith("gr/models/") for line in of["lines"])
    assert results["decode"]["gathers"]["count"] > 0
    assert any(line["source"].startswith("gr/decoding/") for line in results["decode"]["lines"])


@pytest.mark.long
def test_programs_are_lowered_for_real_devices_too(toy):
    """The same programs, of all kinds, without the compiler of a TPU."""
    programs = experiment_programs(TINY, *toy, PROGRAMS)
    assert programs["search"].rounds == programs["search/sample"].rounds == 1
    assert programs["rl"].rounds == programs["rl/rollouts"].rounds
    mesh = make_mesh()
    for name, program in programs.items():
        assert "func.func public @main" in program.lower(mesh).as_text(), name
        assert set(program.floors) <= programs.keys()
