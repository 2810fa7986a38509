import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from toy_run import compilations

from gr.training import TrainingError, make_mesh, replicate, shard_batch, shard_state

ON_FOUR_DEVICES = """
import json, sys, tempfile, jax, jax.numpy as jnp, numpy as np
from flax import nnx
from toy_run import ToyBatches, compilations, toy_loss, toy_state_and_step
from gr.training import (
    Checkpointer, TrainingError, TrainState, make_mesh, make_optimizer, make_train_step, mesh_line, replicate,
    restore_model, shard_batch, shard_state,
)

class Wide(nnx.Module):  # Of toys, with arrays large enough to be split, and one that no axis of can be.
    def __init__(self, dtype=jnp.float32):
        rngs = nnx.Rngs(0)
        normal = lambda *shape: nnx.Param(0.1 * jax.random.normal(rngs.params(), shape).astype(dtype))
        self.up, self.embedding, self.odd = normal(3, 512), normal(64, 512), normal(37, 41)

    def __call__(self, x):
        hidden = jnp.tanh(x @ self.up[...].astype(x.dtype))
        return (hidden @ self.embedding[...].astype(x.dtype).T).mean(-1) + self.odd[...].astype(x.dtype).mean()

def wide(mesh, dtype=jnp.float32):
    optimizer, schedule = make_optimizer(
        learning_rate=0.003, total_steps=40, accumulation_steps=2, master_copy=dtype != jnp.float32
    )
    model = Wide(dtype)
    state = TrainState.create(model, optimizer, jax.random.key(0), {"steps": jnp.zeros(()), "reference": model})
    return shard_state(state, mesh), make_train_step(toy_loss, optimizer, schedule=schedule, mesh=mesh)

def run(mesh, state, step, batches, steps):
    values = []
    for number in range(steps):
        state, metrics = step(state, shard_batch(next(batches), mesh))
        values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        if number == 0:
            counter = compilations()
            later = counter.__enter__()
    counter.__exit__(None, None, None)
    return state, values, len(later)

def trained(make, mesh):
    state, values, later = run(mesh, *make(mesh), ToyBatches(), 10)
    leaves = [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(state.model)]
    return values, sum(leaves, []), later

def bytes_of(tree):  # On the first device.
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree) if leaf.ndim > 1)

def resumed(before, after):  # Six steps on a mesh, four more on another, and the whole state between them.
    folder = tempfile.mkdtemp()
    batches = ToyBatches()
    state, _, _ = run(before, *wide(before), batches, 6)
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(state, best_step=6)
    like, step = wide(after)
    with Checkpointer(folder) as checkpointer:
        found = checkpointer.restore(like).state
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), state.opt_state, found.opt_state)
    placed = all(jax.tree.leaves(jax.tree.map(lambda a, b: a.sharding == b.sharding, found, like)))
    best = np.asarray(restore_model(folder, Wide()).embedding[...])
    same = all(jax.tree.leaves(same)) and (best == np.asarray(state.model.embedding[...])).all()
    _, values, later = run(after, found, step, batches, 4)
    return bool(same), placed, values, later

meshes = {"one": make_mesh(), "four": make_mesh(data=4), "2x2": make_mesh(2, 2), "1x4": make_mesh(1, 4)}
sharded = shard_batch({"x": np.zeros((8, 3)), "n": np.float32(1)}, make_mesh(data=2, model=2))
try:
    shard_batch({"x": np.zeros((6, 3))}, make_mesh(data=4))
except TrainingError as error:
    message = str(error)
state = wide(meshes["2x2"])[0]
print(json.dumps({
    "toys": {name: trained(lambda mesh: toy_state_and_step(mesh=mesh), meshes[name]) for name in ("one", "four")},
    "wide": {name: trained(wide, mesh) for name, mesh in meshes.items()},
    "low": {name: trained(lambda mesh: wide(mesh, jnp.bfloat16), meshes[name]) for name in ("one", "2x2")},
    "bytes": {name: [bytes_of(wide(mesh)[0]), bytes_of(run(mesh, *wide(mesh), ToyBatches(), 1)[0])]
        for name, mesh in meshes.items()},
    "specs": {jax.tree_util.keystr(path, simple=True, separator="."): str(leaf.sharding.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state) if leaf.ndim},
    "resumed": [resumed(meshes["1x4"], meshes["2x2"]), resumed(meshes["2x2"], meshes["one"])],
    "default": [dict(make_mesh(data=0).shape), dict(make_mesh(data=0, model=2).shape), mesh_line(make_mesh(0))],
    "shapes": sorted({tuple(s.data.shape) for s in sharded["x"].addressable_shards}),
    "scalar": sharded["n"].is_fully_replicated, "message": message,
}))
"""


@pytest.fixture(scope="module")
def on_four_devices():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "kind, other", [("toys", "four"), *(("wide", m) for m in ("four", "2x2", "1x4"))]
)
def test_every_mesh_equals_one_device(on_four_devices, kind, other):
    values, parameters, later_compilations = on_four_devices[kind]["one"]
    assert len({loss for loss, _ in values}) == 10 and later_compilations == 0
    other_values, other_parameters, later_compilations = on_four_devices[kind][other]
    np.testing.assert_allclose(other_values, values, rtol=1e-5)
    np.testing.assert_allclose(other_parameters, parameters, rtol=1e-5, atol=1e-6)
    assert later_compilations == 0


def test_parameters_and_optimiser_state_are_split_over_the_model_axis(on_four_devices):
    """The model, its moments, accumulated gradients and reference: 1/n of them on a device, before and after a step."""
    odd = 5 * 4 * 37 * 41  # Which no axis can be split of.
    whole, after = on_four_devices["bytes"]["one"]
    split = 5 * 4 * (3 * 512 + 64 * 512)
    assert whole == after == odd + split
    for mesh, parts in (("four", 1), ("2x2", 2), ("1x4", 4)):
        assert on_four_devices["bytes"][mesh] == [odd + split // parts] * 2


def test_moments_are_split_as_their_parameters(on_four_devices):
    specs = on_four_devices["specs"]
    table = str(jax.P(None, "model"))  # By its width, though that is not needed for a split.
    for ending, wanted in (
        ("embedding.value", table),
        ("up.value", table),
        ("odd.value", str(jax.P())),
    ):
        found = {name: spec for name, spec in specs.items() if name.endswith(ending)}
        assert len(found) == 5 and set(found.values()) == {wanted}
        assert sum(".mu." in name or ".nu." in name for name in found) == 2


def test_a_checkpoint_is_read_onto_another_mesh(on_four_devices):
    values = on_four_devices["wide"]["one"][0]
    for same, placed, later, compiled in on_four_devices["resumed"]:
        assert same and placed and compiled == 0
        np.testing.assert_allclose(later, values[6:], rtol=1e-5)


def test_bfloat16_parameters_learn_as_those_of_float32_do(on_four_devices):
    """Up to their rounding; and the same on a mesh."""
    exact = np.array(on_four_devices["wide"]["one"][0])[:, 0]
    one, four = (np.array(on_four_devices["low"][name][0])[:, 0] for name in ("one", "2x2"))
    assert (one != exact).all() and on_four_devices["low"]["2x2"][2] == 0
    np.testing.assert_allclose(one, exact, rtol=0.05)
    np.testing.assert_allclose(four, one, rtol=0.01)


def test_the_default_is_all_devices(on_four_devices):
    assert on_four_devices["default"] == [
        {"data": 4, "model": 1},
        {"data": 2, "model": 2},
        "4 of 4 cpu device(s): data=4, model=1",
    ]


def test_the_batch_is_split_over_all_devices(on_four_devices):
    assert on_four_devices["shapes"] == [[2, 3]] and on_four_devices["scalar"]


def test_a_batch_that_does_not_split_is_named(on_four_devices):
    assert "batch['x'] has 6 rows" in on_four_devices["message"]
    assert "multiple" in on_four_devices["message"]


def test_the_mesh_of_one_device():
    mesh = make_mesh()
    assert mesh.axis_names == ("data", "model") and mesh.devices.shape == (1, 1)
    batch = shard_batch({"x": np.arange(6).reshape(3, 2)}, mesh)
    assert isinstance(batch["x"], jax.Array) and batch["x"].shape == (3, 2)


def test_a_mesh_larger_than_the_machine():
    with pytest.raises(TrainingError, match="data=64 x model=64 does not fit"):
        make_mesh(data=64, model=64)


def test_on_one_device_arrays_of_a_mesh_share_the_programs_of_others():
    program = jax.jit(lambda state, batch, table: state + batch.sum() + table)
    array = np.arange(4, dtype=np.float32)
    elsewhere = jax.device_put(array, jax.devices()[0])  # As a restored model lies.
    expected, mesh = program(elsewhere, elsewhere, elsewhere), make_mesh()
    with compilations() as compiled:
        found = program(shard_state(array, mesh), shard_batch(array, mesh), replicate(array, mesh))
    assert not compiled and found.tolist() == expected.tolist()
