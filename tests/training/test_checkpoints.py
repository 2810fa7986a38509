import json
import re
import resource
import shutil
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from toy_run import Toy, ToyBatches, toy_state_and_step

from gr.data.files import as_path, write_atomically
from gr.training import (
    Checkpointer,
    TrainingError,
    TrainState,
    checkpoint_step,
    has_checkpoint,
    make_mesh,
    make_optimizer,
    restore_model,
    shard_batch,
)


def host(state):
    """Copies of all arrays of a state on the host, keys as their data."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    data = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)
    return jax.tree.map(np.array, jax.device_get(data))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with checkpoints at 2 (best), 6 and 8, and the states at each step; saved while training went on."""
    workdir = tmp_path_factory.mktemp("written")
    state, step = toy_state_and_step(accumulation_steps=3)
    batches, mesh = ToyBatches(), make_mesh()
    states = {}
    with Checkpointer(workdir) as checkpointer:
        for i in range(1, 11):
            state, _ = step(state, shard_batch(next(batches), mesh))
            if i in (2, 4, 6, 8):
                states[i] = host(state)
                # The next steps donate the state while this is still being written.
                checkpointer.save(
                    state, iterator_state={"i": i}, loop={"value": i / 7}, best_step=2
                )
    return workdir, states


@pytest.fixture
def workdir(written, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(written[0], tmp_path / "run")
    return tmp_path / "run"


def other_state(**settings):
    return toy_state_and_step(seed=1, **{"accumulation_steps": 3} | settings)[0]


def test_the_two_latest_and_the_best_are_kept(written):
    with Checkpointer(written[0]) as checkpointer:
        assert checkpointer.steps == [2, 6, 8]


def test_restored_is_what_was_saved(written):
    workdir, states = written
    with Checkpointer(workdir) as checkpointer:
        restored = checkpointer.restore(other_state())
    assert_same(restored.state, states[8])
    assert restored.iterator_state == {"i": 8} and restored.loop == {"value": 8 / 7}
    assert jax.random.key_impl(restored.state.key) == jax.random.key_impl(jax.random.key(0))


def test_a_restored_run_goes_on_as_the_first_did(written):
    workdir, _ = written
    mesh = make_mesh()
    first, step = toy_state_and_step(accumulation_steps=3)
    batches = ToyBatches()
    for _ in range(10):
        first, _ = step(first, shard_batch(next(batches), mesh))
    with Checkpointer(workdir) as checkpointer:
        second = checkpointer.restore(other_state())
    batches.set_state(second.iterator_state)
    state = second.state
    for _ in range(2):
        state, _ = step(state, shard_batch(next(batches), mesh))
    assert_same(state, first)


def test_only_the_model(written):
    workdir, states = written
    assert_same(restore_model(workdir, Toy(seed=5), "best"), states[2].model)
    abstract = jax.eval_shape(lambda: Toy(seed=5))
    assert_same(restore_model(workdir, abstract, "last"), states[8].model)
    assert checkpoint_step(workdir, "best") == 2 and checkpoint_step(workdir, "last") == 8
    with pytest.raises(TrainingError, match="'best' or 'last'"):
        restore_model(workdir, abstract, "newest")


def test_no_checkpoint(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(other_state()) is None
        with pytest.raises(TrainingError, match="holds no checkpoint; train first"):
            restore_model(tmp_path, Toy(), "last")
        checkpointer.save(other_state())
    with pytest.raises(TrainingError, match="no validation was done before step 0; use 'last'"):
        restore_model(tmp_path, Toy())


def test_another_model_is_refused_by_name(written):
    workdir, _ = written
    with pytest.raises(TrainingError) as caught:
        restore_model(workdir, Toy(dim=5))
    message = str(caught.value)
    assert "checkpoints/2/model does not fit" in message and "configuration" in message
    assert "linear.kernel is float32[3, 1] in the checkpoint and float32[5, 1] here" in message
    with Checkpointer(workdir) as checkpointer, pytest.raises(TrainingError, match="float32"):
        checkpointer.restore(other_state(dim=5))


def test_another_optimiser_is_refused_by_name(written):
    with (
        Checkpointer(written[0]) as checkpointer,
        pytest.raises(TrainingError, match=r"does not fit: opt_state.*count is missing"),
    ):
        checkpointer.restore(other_state(accumulation_steps=1))


def test_another_kind_of_key_is_refused(written):
    like = other_state()
    like = TrainState(**vars(like) | {"key": jax.random.key(0, impl="rbg")})
    with Checkpointer(written[0]) as checkpointer, pytest.raises(TrainingError, match="key"):
        checkpointer.restore(like)


def largest_file(folder):
    return max((p for p in Path(folder).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", ["cut", "removed", "record"])
def test_damage_is_named_and_the_older_checkpoint_is_the_remedy(workdir, damage):
    folder = workdir / "checkpoints" / "8"
    if damage == "record":
        file = folder / "loop" / "metadata"
        saved = json.loads(file.read_text())
        saved["record"] = saved["record"].replace("8", "9", 1)
        file.write_text(json.dumps(saved))
    elif damage == "cut":
        file = largest_file(folder / "model" / "d")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        shutil.rmtree(folder / "model")
    with Checkpointer(workdir) as checkpointer:
        remedy = re.escape(f"remove {folder} to go on from the checkpoint of step 6")
        with pytest.raises(TrainingError, match=rf"is damaged .*{remedy}"):
            checkpointer.restore(other_state())
    # The remedy works.
    shutil.rmtree(folder)
    with Checkpointer(workdir) as checkpointer:
        assert checkpointer.restore(other_state()).iterator_state == {"i": 6}


def test_one_flipped_bit_in_an_array_is_found(tmp_path):
    # Large enough for a file of its own, which nothing but our sum checks.
    weights = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
    optimizer, _ = make_optimizer(learning_rate=0.1, total_steps=10)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(TrainState.create(weights, optimizer, jax.random.key(0)))
    file = largest_file(tmp_path / "checkpoints" / "0" / "model")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))
    with pytest.raises(TrainingError, match="damaged.*no other checkpoint: start again"):
        restore_model(tmp_path, weights, "last")


def test_half_written_folders_are_no_checkpoints(workdir):
    (workdir / "checkpoints" / "10.orbax-checkpoint-tmp-3").mkdir()
    with Checkpointer(workdir) as checkpointer:
        assert checkpointer.restore(other_state()).iterator_state == {"i": 8}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads.
def test_a_failed_write_leaves_the_others_intact(written, workdir):
    state = other_state()
    state = TrainState(**vars(state) | {"step": jnp.int32(12)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # The limit, as good as a full disk, holds until the checkpointer is closed: a background write that is
        # still under way must not find room after all.
        with (
            pytest.raises(TrainingError, match=r"could not be written .*steps: 2, 6, 8.*space"),
            Checkpointer(workdir) as checkpointer,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
            checkpointer.save(state, best_step=12)
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpointer(workdir) as again:
        assert_same(again.restore(other_state()).state, written[1][8])
    assert_same(restore_model(workdir, Toy()), written[1][2].model)


def test_iterator_states_as_bytes_or_json(tmp_path):
    state = other_state()
    for i, value in enumerate([b"\x00\xff", {"a": [1, None]}, None]):
        with Checkpointer(tmp_path / str(i)) as checkpointer:
            checkpointer.save(state, iterator_state=value)
            checkpointer.wait()
            assert checkpointer.restore(state).iterator_state == value
    with (
        Checkpointer(tmp_path / "bad") as checkpointer,
        pytest.raises(TrainingError, match="neither bytes nor JSON"),
    ):
        checkpointer.save(state, iterator_state=object())


def test_checkpoints_of_earlier_revisions_are_read(tmp_path):
    """Written as they were at first: with Orbax's handlers named, and the checksum taken by NumPy here."""
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    words = weights.ravel().view(np.uint32).astype(np.uint64)
    total = int((words * (2 * np.arange(12, dtype=np.uint64) + 1)).sum() % 2**32)
    record = {
        "format": 1,
        "best_step": 7,
        "key_impl": "threefry2x32",
        "iterators": ['{"json": {"i": 7}}'],
        "checksums": {"model.w": total},
        "loop": {},
    }
    text = json.dumps(record)
    loop = {"record": text, "crc32": zlib.crc32(text.encode())}
    handlers = {"model": ocp.StandardCheckpointHandler(), "loop": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(tmp_path / "checkpoints", item_handlers=handlers) as manager:
        saved = {"model": ocp.args.StandardSave({"w": weights}), "loop": ocp.args.JsonSave(loop)}
        manager.save(7, args=ocp.args.Composite(**saved))
    restored = restore_model(tmp_path, {"w": jnp.zeros((3, 4))}, "best")
    np.testing.assert_array_equal(restored["w"], weights)


def test_a_checkpoint_in_an_object_store_counts_when_it_is_complete(bucket):
    # Folders cannot be renamed there; Orbax writes a last object instead. Arrays need a real store.
    step = as_path("gs://bucket/run/checkpoints/3")
    write_atomically(step / "loop" / "metadata", b"{}")
    assert not has_checkpoint("gs://bucket/run")
    write_atomically(step / "commit_success.txt", b"done")
    assert has_checkpoint("gs://bucket/run")
    assert checkpoint_step("gs://bucket/run", "last") == 3
    with pytest.raises(TrainingError, match="^gs://bucket/run/checkpoints/3/loop is damaged"):
        restore_model("gs://bucket/run", Toy())
