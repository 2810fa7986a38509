import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr.training import TrainingError, decay_mask, make_optimizer, make_schedule


def rates(schedule, steps):
    return [round(float(schedule(step)), 6) for step in steps]


def test_cosine_with_warmup_by_hand():
    schedule = make_schedule(1.0, schedule="cosine", total_steps=12, warmup_steps=4)
    # Warm-up 1/4 .. 4/4, then half a cosine over 8 updates: half-way is 1/2, a quarter (1 + cos 45°) / 2.
    assert rates(schedule, [0, 1, 3, 4]) == [0.25, 0.5, 1.0, 1.0]
    assert rates(schedule, [6, 8, 12, 99]) == [0.853553, 0.5, 0.0, 0.0]


def test_linear_and_constant_by_hand():
    linear = make_schedule(2.0, schedule="linear", total_steps=10, warmup_steps=0)
    assert rates(linear, [0, 5, 9]) == [2.0, 1.0, 0.2]
    constant = make_schedule(2.0, schedule="constant", total_steps=10, warmup_steps=2)
    assert rates(constant, [0, 1, 2, 50]) == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize(("total", "warmup"), [(1000, 0), (777, 13), (5000, 200), (30, 30)])
def test_rates_are_those_of_the_formula(schedule, total, warmup):
    """To the last bits of float32, so that a run's numbers do not depend on whose decay it is."""
    updates = np.arange(total + 2, dtype=np.float32)
    done = np.clip((updates - np.float32(warmup)) / np.float32(max(total - warmup, 1)), 0, 1)
    decay = {
        "constant": np.ones_like(done),
        "cosine": 0.5 * (1 + np.cos(np.pi * done.astype(np.float64))),
        "linear": 1 - done,
    }[schedule]
    expected = 1e-3 * np.minimum((updates + 1) / np.float32(max(warmup, 1)), 1) * decay
    made = make_schedule(1e-3, schedule=schedule, total_steps=total, warmup_steps=warmup)
    np.testing.assert_allclose(made(updates), expected, rtol=1e-7 * 3, atol=1e-10)


def test_the_schedule_counts_updates_and_is_asked_in_train_steps():
    _, schedule = make_optimizer(
        learning_rate=1.0, schedule="linear", total_steps=4, accumulation_steps=3
    )
    assert rates(schedule, [0, 2, 3, 5, 6, 11]) == [1.0, 1.0, 0.75, 0.75, 0.5, 0.25]


def test_decay_is_for_matrices_only():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scalar": jnp.ones(())}
    assert decay_mask(params) == {"kernel": True, "bias": False, "scalar": False}
    optimizer, _ = make_optimizer(
        learning_rate=0.5, schedule="constant", total_steps=10, weight_decay=0.1, clip_norm=None
    )
    # Without a gradient all that moves a parameter is decay: -0.5 * 0.1 * 1.
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    assert not np.any(updates["bias"]) and not np.any(updates["scalar"])


def test_moments_are_float32():
    optimizer, _ = make_optimizer(learning_rate=0.1, total_steps=10, accumulation_steps=2)
    state = optimizer.init({"kernel": jnp.ones((2, 2))})
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) == 3  # Two moments and the accumulated gradient.
    assert all(x.dtype == jnp.float32 for x in floats)


def test_clipping_is_by_the_norm_of_all_gradients():
    # Adam's first update does not depend on the gradient's scale, its moments do: m = (1 - b1) g.
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}  # Norm 5.
    optimizer, _ = make_optimizer(learning_rate=0.1, total_steps=10, clip_norm=1.0, b1=0.9)
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    (mu,) = [s.mu for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]
    np.testing.assert_allclose([mu["a"][0], mu["b"][0]], [0.06, 0.08], rtol=1e-5)


def is_adam(state):
    return isinstance(state, optax.ScaleByAdamState)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"schedule": "cosin"}, "cosine"),
        ({"warmup_steps": 11}, "warmup_steps=11"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"accumulation_steps": 0}, "accumulation_steps=0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"clip_norm": float("nan")}, "clip_norm=nan"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        ({"b2": 1.0}, "b2=1.0"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(TrainingError, match=named):
        make_optimizer(**{"learning_rate": 0.1, "total_steps": 10} | settings)
