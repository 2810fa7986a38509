"""The compiled train step: loss, gradient, update."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gr.models import trained_part, with_trained
from gr.training.mesh import gathered, pin_state, replicate
from gr.training.optimizers import Schedule
from gr.training.state import NO_BAD_STEP, RewardFault, TrainState

# loss_fn(model, batch, key, loss_state) -> (loss [], (metrics: name -> [], loss_state)). One with arrays of its own is
# `jax.tree_util.Partial(function, *arrays)`, or a registered dataclass with `__call__`, such as `SupervisedLoss`.
LossFn = Callable[[Any, Any, jax.Array, Any], tuple[jax.Array, tuple[Mapping[str, jax.Array], Any]]]
Metrics = dict[str, jax.Array]  # name -> [] float32.
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A jitted train step with the arrays that no step changes, such as the token table and the trie.

    They are arguments of the program: closed over, they would be constants, copied into the program of each shape.
    """

    program: Any  # The jitted `(state, batch, fixed) -> (state, metrics)`.
    fixed: Any  # A pytree.
    reward_names: tuple[str, ...] = ()  # As `TrainState.reward_fault` numbers them.
    precision: str | None = None  # Of matrix products, in JAX's words; None: as JAX is set.

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """Runs one step; donates the state."""
        with self._precision():
            return self.program(state, batch, self.fixed)

    def lower(self, state: TrainState, batch: Any) -> jax.stages.Lowered:
        """The lowered program for these shapes, for inspection."""
        with self._precision():
            return self.program.lower(state, batch, self.fixed)

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.precision is None:
            return contextlib.nullcontext()
        return jax.default_matmul_precision(self.precision)


def compile_step(
    step: Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]],
    fixed: Any,
    mesh: Mesh | None,
    reward_names: tuple[str, ...] = (),
    precision: str | None = None,
) -> CompiledStep:
    """Jits a step that also takes `fixed`, and places `fixed` on the state's devices."""
    fixed = jax.device_put(fixed) if mesh is None else replicate(fixed, mesh)
    return CompiledStep(jax.jit(step, donate_argnums=0), fixed, reward_names, precision)


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    schedule: Schedule | None = None,
    mesh: Mesh | None = None,
    precision: str | None = None,
) -> CompiledStep:
    """Returns the jitted `step(state, batch) -> (state, metrics)`; it donates the state and compiles once per shape.

    Arrays of a loss that is a pytree are arguments of the program; those that a plain function closes over become
    constants.

    Frozen parameters (`gr.models.freeze`) have neither gradients nor moments, and stay as they are.

    Metrics are those of the loss, `loss`, `grad_norm` (before clipping), and `learning_rate` if the optimiser's
    `schedule` (of train steps) is given. If the loss or the gradient's norm is not finite, no update is applied and
    `bad_step` is set to this step. From then on the state stays frozen, so the host may notice it later. With a `mesh`
    the state lies as `shard_state` puts it, and so do the gradients, which are summed over all devices.
    `precision` is that of matrix products: "default", "high" or "highest", as in `jax.default_matmul_precision`; None:
    as JAX is set.
    """

    def step(state: TrainState, batch: Any, loss_fn: LossFn) -> tuple[TrainState, Metrics]:
        # Loss and gradient.
        key = jax.random.fold_in(state.key, state.step)
        whole = gathered(state.model, mesh)

        def loss_of(trained: Any) -> tuple[jax.Array, tuple[Mapping[str, jax.Array], Any]]:
            return loss_fn(with_trained(whole, trained), batch, key, state.loss_state)

        (loss, (metrics, loss_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            trained_part(whole)
        )
        grads = pin_state(grads, mesh)
        grad_norm = gradient_norm(grads)

        # The update, and the state if it is good.
        model, opt_state = updated(optimizer, grads, state.opt_state, state.model)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new_state = advance(state, model, opt_state, loss_state, finite, mesh)

        # Metrics.
        metrics = {**metrics, "loss": loss, "grad_norm": grad_norm}
        if schedule is not None:
            metrics["learning_rate"] = schedule(state.step)
        return new_state, {name: value.astype(jnp.float32) for name, value in metrics.items()}

    if jax.tree_util.all_leaves([loss_fn]):  # A plain function.
        loss_fn = jax.tree_util.Partial(loss_fn)
    return compile_step(step, loss_fn, mesh, precision=precision)


def updated(
    optimizer: optax.GradientTransformation, grads: Any, opt_state: Any, model: Any
) -> tuple[Any, Any]:
    """The model and the optimiser's state after an update by gradients of `trained_part(model)`."""
    trained = trained_part(model)
    updates, opt_state = optimizer.update(grads, opt_state, trained)
    return with_trained(model, optax.apply_updates(trained, updates)), opt_state


def gradient_norm(grads: Any) -> jax.Array:
    """The global norm of gradients `[]`, in float32."""
    return optax.global_norm(jax.tree.map(lambda grad: grad.astype(jnp.float32), grads))


def advance(
    state: TrainState,
    model: Any,
    opt_state: Any,
    loss_state: Any,
    finite: jax.Array,
    mesh: Mesh | None,
    reward_fault: RewardFault | None = None,
) -> TrainState:
    """The state with the proposed update; if something was not finite, the old state with `bad_step` set.

    With a `mesh` the new state lies as `shard_state` puts it.
    """
    fine_so_far = state.bad_step == NO_BAD_STEP
    good = finite & fine_so_far
    model, opt_state, loss_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old),
        (model, opt_state, loss_state),
        (state.model, state.opt_state, state.loss_state),
    )
    bad = fine_so_far & ~finite
    if reward_fault is None:
        reward_fault = state.reward_fault
    new_state = TrainState(
        step=state.step + good.astype(jnp.int32),
        model=model,
        opt_state=opt_state,
        key=state.key,
        loss_state=loss_state,
        bad_step=jnp.where(bad, state.step, state.bad_step),
        reward_fault=jax.tree.map(
            lambda new, old: jnp.where(bad, new, old), reward_fault, state.reward_fault
        ),
    )
    # Otherwise the compiler may choose another layout, and the next call would compile again.
    return pin_state(new_state, mesh)
