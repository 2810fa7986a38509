"""Whole runs on four devices: the losses, evaluations and candidates of one device, however the mesh is shaped."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

ON_FOUR_DEVICES = """
import json, os, signal, sys
import jax, numpy as np
from test_compile_targets import TINY
from gr.evaluation import decode as decode_module
from gr.runs import Reinforcement, build, train
from gr.runs.reinforce import reinforce, resolved
from gr.training import TrainingInterrupted, mesh as mesh_module, read_metrics

mesh_module.SMALL = 16  # So that the arrays of a small model are split.
folder = sys.argv[1]
MESHES = {"one": {"mesh.data": 1}, "all": {"mesh.data": 0}, "2x2": {"mesh.data": 2, "mesh.model": 2}}
# 7 rows of a batch, and 6 users of a step: neither splits over four devices.
SMALL = TINY.override({
    "training.items_per_batch": 35, "training.num_epochs": 2, "training.log_every": 1, "training.eval_users": 30,
    "loss.name": "apao_pointwise", "decoding.num_beams": 10,
})
LEARNING = Reinforcement().override({
    "init_from": f"{folder}/one", "search.name": "beam", "search.num_candidates": 4, "value.num_heads": 2,
    "value.d_ff": 16, "value.pretrain_steps": 2, "rl.batch_size": 6,
    # Gradients beside those of rare rewards: Adam makes whole steps of rounding errors where there is nothing else.
    "rl.supervised_weight": 1.0, "rl.num_steps": 4, "rl.eval_every": 2,
    "rl.log_every": 1, "rl.eval_users": 10,
})

def values(workdir):
    lines = [[line["split"], line["step"], line["values"]] for line in read_metrics(f"{workdir}/metrics.jsonl")]
    for _, _, of_line in lines:
        of_line.pop("examples_per_second", None)
    return lines

found, runs = {"train": {}, "rl": {}, "value": {}}, {}
for name, mesh in MESHES.items():
    runs[name] = train(SMALL.override(mesh), f"{folder}/{name}")
    found["train"][name] = values(f"{folder}/{name}")
for name, mesh in MESHES.items():
    workdir = f"{folder}/rl_{name}"
    reinforce(resolved(LEARNING).override(mesh), workdir)
    found["rl"][name], found["value"][name] = values(workdir), values(f"{workdir}/value_head")

# A run that is stopped after its first evaluation, and goes on on another mesh.
decode = build.decode
def stopping(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return decode(*arguments, **options)
build.decode = stopping
try:
    train(SMALL.override(MESHES["2x2"]), f"{folder}/resumed")
except TrainingInterrupted as error:
    found["stopped"] = str(error)
build.decode = decode
train(SMALL.override(MESHES["all"]), f"{folder}/resumed")
found["train"]["resumed"] = values(f"{folder}/resumed")

# A finished run on one device and on all.
run = runs["one"]
one, four = (
    build.decode(run.config.override(MESHES[name]), run.catalogue, run.model, run.splits, run.splits.test)
    for name in ("one", "all")
)
found["on_mesh"] = decode_module.decode_on_mesh._cache_size()  # That of validation, or another one.
found["same_items"] = bool((one.items == four.items).all())
found["log_probs"] = float(abs(one.log_probs - four.log_probs).max())

# Parameters of less than float32, from a run with all of it.
low = SMALL.override({"training.param_dtype": "bfloat16", "training.init_from": f"{folder}/one", **MESHES["2x2"]})
run = train(low, f"{folder}/low")
found["low"] = {
    "parameters": sorted({str(leaf.dtype) for leaf in jax.tree.leaves(run.model)}),
    "optimiser": sorted({str(leaf.dtype) for leaf in jax.tree.leaves(run.result.state.opt_state)}),
    "rounded": all(
        bool((np.asarray(copy).astype(leaf.dtype) == np.asarray(leaf)).all()) for copy, leaf in zip(
            jax.tree.leaves(run.result.state.opt_state.params), jax.tree.leaves(run.result.state.model), strict=True
        )
    ),
    "losses": [line[2]["loss"] for line in values(f"{folder}/low") if line[0] == "validation"],
}
json.dump(found, open(f"{folder}/found.json", "w"))
"""


@pytest.fixture(scope="module")
def on_four_devices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("on_four_devices")
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES, folder],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found.json").read_text()) | {"said": done.stdout}


def check_same(lines, others):
    assert len(lines) == len(others) > 0
    for (split, step, values), (other_split, other_step, other) in zip(lines, others, strict=True):
        assert (split, step, values.keys()) == (other_split, other_step, other.keys())
        for name in values:
            if name.startswith("value/spearman"):
                continue  # Ranks of nearly equal values change with their last digits.
            np.testing.assert_allclose(
                other[name], values[name], rtol=1e-5, atol=1e-5, err_msg=f"{split} {step} {name}"
            )


@pytest.mark.parametrize("kind", ["train", "rl", "value"])
@pytest.mark.parametrize("mesh", ["all", "2x2"])
def test_a_run_is_that_of_one_device(on_four_devices, kind, mesh):
    """Also with batches that do not split: losses, gradient norms, rewards, and every evaluation."""
    lines = on_four_devices[kind]["one"]
    assert {split for split, _, _ in lines} == {"train", "validation"}
    check_same(lines, on_four_devices[kind][mesh])


def test_a_run_is_resumed_on_another_mesh(on_four_devices):
    assert "stopped by SIGTERM" in on_four_devices["stopped"]
    check_same(on_four_devices["train"]["one"], on_four_devices["train"]["resumed"])


def test_a_finished_run_is_decoded_by_all_devices(on_four_devices):
    assert on_four_devices["on_mesh"] > 0 and on_four_devices["same_items"]
    assert on_four_devices["log_probs"] < 1e-5


def test_the_log_says_which_devices_are_used(on_four_devices):
    for line in ("1 of 4 cpu device(s): data=1, model=1", "4 of 4 cpu device(s): data=4, model=1"):
        assert line in on_four_devices["said"]


def test_parameters_of_bfloat16_are_roundings_of_a_float32_copy(on_four_devices):
    low = on_four_devices["low"]
    assert low["parameters"] == ["bfloat16"] and "bfloat16" not in low["optimiser"]
    assert low["rounded"]
    first = on_four_devices["train"]["one"][-1][2]["loss"]  # Where it goes on from.
    assert len(low["losses"]) == 2 and low["losses"][-1] < first
