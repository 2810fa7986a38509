"""A run small enough to be killed: linear regression from noise-free data. `python toy_run.py WORKDIR KILL_AT_STEP`."""

import contextlib
import functools
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gr.training import (
    Checkpointer,
    FitResult,
    MetricWriter,
    TrainState,
    fit,
    make_mesh,
    make_optimizer,
    make_train_step,
    replicate,
)

WEIGHTS = np.array([1.0, -2.0, 0.5], np.float32)


class Toy(nnx.Module):
    """y = x w + b."""

    def __init__(self, dim: int = 3, seed: int = 0):
        self.linear = nnx.Linear(dim, 1, rngs=nnx.Rngs(seed))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)[:, 0]


class ToyBatches:
    """Batch `i` depends on `i` alone; `as_bytes` is the form of the state; `on_batch(i)` is called before batch `i`."""

    def __init__(self, *, rows=8, stop=None, as_bytes=False, on_batch=None, bad=()):
        self.i = 0
        self.rows, self.stop, self.as_bytes, self.bad = rows, stop, as_bytes, bad
        self.on_batch = on_batch or (lambda i: None)

    def __iter__(self):
        return self

    def __next__(self):
        if self.i == self.stop:
            raise StopIteration
        self.on_batch(self.i)
        x = np.random.default_rng(self.i).normal(size=(self.rows, 3)).astype(np.float32)
        y = x @ WEIGHTS
        if self.i in self.bad:
            y = y * np.float32("nan")
        self.i += 1
        return {"x": x, "y": y}

    def get_state(self):
        return str(self.i).encode() if self.as_bytes else {"i": self.i}

    def set_state(self, state):
        self.i = int(state.decode()) if self.as_bytes else state["i"]


def toy_loss(model, batch, key, loss_state):
    """Squared error of inputs with noise from the key, so that a wrong key shows; counts its steps in `loss_state`."""
    x = batch["x"] + 0.01 * jax.random.normal(key, batch["x"].shape)
    loss = jnp.mean((model(x) - batch["y"]) ** 2)
    return loss, ({"double": 2.0 * loss}, jax.tree.map(lambda n: n + 1.0, loss_state))


@functools.cache
def toy_optimizer_and_step(mesh, **settings):
    """Cached, so that the tests compile it once."""
    defaults = {"learning_rate": 0.05, "total_steps": 40, "warmup_steps": 4, "weight_decay": 0.1}
    optimizer, schedule = make_optimizer(**defaults | settings)
    return optimizer, make_train_step(toy_loss, optimizer, schedule=schedule, mesh=mesh)


def toy_state_and_step(*, seed=0, dim=3, mesh=None, **optimizer_settings):
    """The state before the first step and the train step."""
    mesh = mesh or make_mesh()
    optimizer, step = toy_optimizer_and_step(mesh, **optimizer_settings)
    model, key = Toy(dim, seed), jax.random.key(seed)
    state = TrainState.create(model, optimizer, key, {"steps": jnp.zeros(())})
    return replicate(state, mesh), step


@contextlib.contextmanager
def compilations():
    """A list that gets an entry for each program that XLA compiles meanwhile."""
    events, active = [], True

    def listen(event, seconds, **unused):
        if active and event == "/jax/core/compile/backend_compile_duration":
            events.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    active = False


def distance(model):
    """A validation metric, smaller is better: how far the weights are from the true ones."""
    kernel = jax.device_get(model.linear.kernel[...])
    return {"distance": float(np.abs(kernel[:, 0] - WEIGHTS).sum())}


def toy_fit(workdir, batches, **settings) -> FitResult:
    """A run with checkpoints every 5 steps, logging every 4, evaluation every 10."""
    state, step = toy_state_and_step()
    defaults = dict(
        total_steps=30,
        log_every=4,
        eval_every=10,
        checkpoint_every=5,
        evaluate=distance,
        monitor="distance",
        mode="min",
        progress=False,
    )
    with (
        Checkpointer(workdir) as checkpointer,
        MetricWriter(workdir, tensorboard=False) as writer,
    ):
        return fit(
            state,
            step,
            batches,
            checkpointer=checkpointer,
            writer=writer,
            **defaults | settings,
        )


if __name__ == "__main__":
    kill_at = int(sys.argv[2])

    def kill(i: int) -> None:
        if i == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    toy_fit(sys.argv[1], ToyBatches(on_batch=kill))
