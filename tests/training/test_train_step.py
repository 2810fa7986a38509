import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rounding import products_of
from toy_run import Toy, ToyBatches, compilations, toy_loss, toy_state_and_step

from gr.training import (
    NO_BAD_STEP,
    TrainingError,
    TrainState,
    make_mesh,
    make_optimizer,
    make_train_step,
    shard_batch,
)


def plain(state):
    """The state as host arrays."""
    state = jax.device_get(
        jax.tree.map(
            lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
            state,
        )
    )
    return jax.tree.map(np.array, state)


def batch_of(seed, rows=8, bad=False):
    batches = ToyBatches(rows=rows, bad=(seed,) if bad else ())
    batches.i = seed
    return shard_batch(next(batches), make_mesh())


def noiseless_loss(model, batch, key, loss_state):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), ({}, loss_state)


def test_a_step_by_hand():
    # One weight w = 0, x = 1, y = 2: loss 4, gradient -4; Adam's first update is the rate, against the sign.
    model = Toy(1)
    model.linear.kernel[...] = jnp.zeros((1, 1))
    optimizer, schedule = make_optimizer(
        learning_rate=0.1, schedule="constant", total_steps=10, weight_decay=0.0
    )
    state = TrainState.create(model, optimizer, jax.random.key(0))
    step = make_train_step(noiseless_loss, optimizer, schedule=schedule)
    batch = {"x": jnp.ones((1, 1)), "y": jnp.array([2.0])}
    state, metrics = step(state, batch)
    assert float(metrics["loss"]) == 4.0
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(32), rtol=1e-6)  # Kernel and bias.
    np.testing.assert_allclose(metrics["learning_rate"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(state.model.linear.kernel[...], [[0.1]], rtol=1e-4)
    assert int(state.step) == 1 and int(state.bad_step) == NO_BAD_STEP


def test_products_of_a_step_have_its_precision():
    optimizer, _ = make_optimizer(learning_rate=0.1, total_steps=10)

    def stepped(precision):
        state = TrainState.create(Toy(), optimizer, jax.random.key(0))
        step = make_train_step(noiseless_loss, optimizer, precision=precision)
        metrics = step(state, batch_of(0))[1]
        return float(metrics["loss"]), float(metrics["grad_norm"])

    plain = stepped(None)
    with products_of("gpu"):
        rounded, default, highest = (stepped(name) for name in (None, "default", "highest"))
        with jax.default_matmul_precision("highest"):  # None: as JAX is set.
            assert stepped(None) == plain
    assert highest == plain and rounded == default
    assert all(of_rounded != of_plain for of_rounded, of_plain in zip(rounded, plain, strict=True))


def test_the_key_of_a_step_depends_on_the_step():
    seen = []

    def loss(model, batch, key, loss_state):
        draw = jax.random.uniform(key)
        return jnp.sum(model(batch["x"]) ** 2), ({"draw": draw}, loss_state)

    optimizer, _ = make_optimizer(learning_rate=0.1, total_steps=10)
    state = TrainState.create(Toy(), optimizer, jax.random.key(7))
    step = make_train_step(loss, optimizer)
    for i in range(2):
        state, metrics = step(state, batch_of(i))
        seen.append(float(metrics["draw"]))
    root = jax.random.key(7)
    assert seen == [float(jax.random.uniform(jax.random.fold_in(root, i))) for i in range(2)]


def test_the_loss_state_is_carried():
    state, step = toy_state_and_step()
    for i in range(3):
        state, _ = step(state, batch_of(i))
    assert float(state.loss_state["steps"]) == 3.0


def test_nothing_of_a_bad_step_or_after_it_is_applied():
    state, step = toy_state_and_step()
    for i in range(3):
        state, _ = step(state, batch_of(i))
    before = plain(state)
    state, metrics = step(state, batch_of(3, bad=True))
    assert np.isnan(metrics["loss"])
    for i in (4, 5):
        state, _ = step(state, batch_of(i))
    after = plain(state)
    assert after.bad_step == 3 and before.bad_step == NO_BAD_STEP
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.step, after.model, after.opt_state, after.key, after.loss_state),
        (before.step, before.model, before.opt_state, before.key, before.loss_state),
    )


def test_a_gradient_that_is_not_finite_counts_as_bad():
    def loss(model, batch, key, loss_state):
        # sqrt at 0: the value is 0, its slope infinite.
        return jnp.sqrt(jnp.sum(0.0 * model.linear.kernel[...])), ({}, loss_state)

    optimizer, _ = make_optimizer(learning_rate=0.1, total_steps=10)
    state = TrainState.create(Toy(), optimizer, jax.random.key(0))
    state, metrics = make_train_step(loss, optimizer)(state, batch_of(0))
    assert float(metrics["loss"]) == 0.0 and int(state.bad_step) == 0 and int(state.step) == 0


def test_one_compilation_for_each_shape():
    state, step = toy_state_and_step(total_steps=41)  # Nothing is compiled for this one yet.
    batches = [batch_of(1, rows=rows) for rows in (8, 8, 4, 8, 4)]
    counts = []
    for batch in batches:
        with compilations() as events:
            state, _ = step(state, batch)
        counts.append(len(events))
    assert counts == [1, 0, 1, 0, 0]


def test_accumulated_gradients_equal_the_large_batch():
    def train(accumulation_steps, rows):
        optimizer, _ = make_optimizer(
            learning_rate=0.1, total_steps=3, clip_norm=0.5, accumulation_steps=accumulation_steps
        )
        state = TrainState.create(Toy(), optimizer, jax.random.key(0))
        step = make_train_step(noiseless_loss, optimizer)
        x, y = (np.concatenate([np.asarray(batch_of(i)[name]) for i in range(3)]) for name in "xy")
        for begin in range(0, 24, rows):
            part = slice(begin, begin + rows)
            state, _ = step(state, {"x": jnp.asarray(x[part]), "y": jnp.asarray(y[part])})
        return jax.device_get(state.model)

    small, large = train(4, 2), train(1, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), small, large)
    changed = jax.tree.map(lambda a, b: np.any(a != b), large, jax.device_get(Toy()))
    assert all(jax.tree.leaves(changed))


def test_the_callers_model_and_key_outlive_the_donated_state():
    model, key = Toy(), jax.random.key(0)
    optimizer, _ = make_optimizer(learning_rate=0.1, total_steps=10)
    state = TrainState.create(model, optimizer, key)
    step = make_train_step(toy_loss, optimizer)
    step(state, batch_of(0))
    assert model(jnp.ones((1, 3))).shape == (1,) and jax.random.key_data(key).size


def test_states_that_cannot_work_are_refused():
    optimizer, _ = make_optimizer(learning_rate=0.1, total_steps=10)
    with pytest.raises(TrainingError, match="typed PRNG key"):
        TrainState.create(Toy(), optimizer, jax.random.PRNGKey(0))
    half = nnx.Linear(2, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    with pytest.raises(TrainingError, match=r"(bias|kernel).* is bfloat16"):
        TrainState.create(half, optimizer, jax.random.key(0))
