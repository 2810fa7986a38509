import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from gr.training import TrainingError, make_mesh, shard_batch

ON_FOUR_DEVICES = """
import json, jax, numpy as np
from toy_run import ToyBatches, compilations, toy_state_and_step
from gr.training import TrainingError, make_mesh, shard_batch

def losses(mesh):
    state, step = toy_state_and_step(mesh=mesh)
    batches, values = ToyBatches(), []
    state, metrics = step(state, shard_batch(next(batches), mesh))
    with compilations() as later:
        for _ in range(9):
            values.append(float(metrics["loss"]))
            state, metrics = step(state, shard_batch(next(batches), mesh))
    kernel = np.asarray(state.model.linear.kernel[...])
    return values, kernel.ravel().tolist(), len(later)

sharded = shard_batch({"x": np.zeros((8, 3)), "n": np.float32(1)}, make_mesh(data=2, model=2))
try:
    shard_batch({"x": np.zeros((6, 3))}, make_mesh(data=4))
except TrainingError as error:
    message = str(error)
print(json.dumps({
    "one": losses(make_mesh()), "four": losses(make_mesh(data=4)),
    "shapes": sorted({tuple(s.data.shape) for s in sharded["x"].addressable_shards}),
    "scalar": sharded["n"].is_fully_replicated, "message": message,
}))
"""


@pytest.fixture(scope="module")
def on_four_devices():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.path.dirname(os.path.dirname(__file__)),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_data_parallel_equals_one_device(on_four_devices):
    losses, kernel, later_compilations = on_four_devices["one"]
    assert len(set(losses)) == 9 and later_compilations == 0
    other_losses, other_kernel, later_compilations = on_four_devices["four"]
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(other_kernel, kernel, rtol=1e-5)
    assert later_compilations == 0


def test_the_batch_is_split_over_the_data_axis_only(on_four_devices):
    assert on_four_devices["shapes"] == [[4, 3]] and on_four_devices["scalar"]


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
