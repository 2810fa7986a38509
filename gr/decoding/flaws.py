"""Detects NaN and infinite model outputs, per user, with the step at which they first occurred."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.candidates import Candidates, Draws
from gr.decoding.softmax import Softmax

_NONE = 2**31 - 1  # No step.


@dataclasses.dataclass(frozen=True)
class Flaws:
    """Flaws of the model's outputs, read off sums that a search computes anyway."""

    bad_step: jax.Array  # [B] int32: the first step at which there was NaN or +inf, or -1.
    nan: jax.Array  # [B] bool: whether there was NaN.

    @staticmethod
    def none(batch: int) -> "Flaws":
        """No flaws of so many users, where nothing was asked of the model."""
        return Flaws(jnp.full(batch, -1, jnp.int32), jnp.zeros(batch, bool))

    @staticmethod
    def of_steps(
        distributions: list[Softmax], alive: list[jax.Array], steps: Sequence[Any] | None = None
    ) -> "Flaws":
        """Flaws of each step's distributions, `[B, M_t]` or `[B, 1]`, counted where `alive [B, M_t]`.

        `steps` are 0, 1, ... by default; one of them may be `[M_t]`, where beams of several steps stand side by side.
        """
        # Steps of one width are merged number by number: a small program for each would cost more than its work.
        steps = range(len(alive)) if steps is None else steps
        firsts: dict[int, list[jax.Array]] = {}
        nans: dict[int, list[jax.Array]] = {}
        for distribution, there, step in zip(distributions, alive, steps, strict=True):
            flawed, nan = distribution.flawed & there, distribution.nan & there
            width = flawed.shape[1]
            firsts.setdefault(width, []).append(
                jnp.where(flawed, jnp.asarray(step, jnp.int32), _NONE)
            )
            nans.setdefault(width, []).append(nan)
        first = [
            functools.reduce(jnp.minimum, those).min(axis=1, initial=_NONE)
            for those in firsts.values()
        ]
        nan = [functools.reduce(jnp.logical_or, those).any(axis=1) for those in nans.values()]
        return Flaws._of(
            functools.reduce(jnp.minimum, first), functools.reduce(jnp.logical_or, nan)
        )

    @staticmethod
    def of(flawed: jax.Array, nan: jax.Array, steps: jax.Array) -> "Flaws":
        """Flaws from the findings at each of `steps`, `[B, n]` each."""
        first = jnp.where(flawed, steps, _NONE).min(axis=1, initial=_NONE)
        return Flaws._of(first, nan.any(axis=1))

    @staticmethod
    def _of(first: jax.Array, nan: jax.Array) -> "Flaws":
        return Flaws(jnp.where(first == _NONE, -1, first), nan)

    def told(self, found: Candidates) -> Candidates:
        """The candidates with `bad_step` filled in, and without a ranking where there was NaN."""
        nan = self.nan[:, None]

        def unknown(array: jax.Array) -> jax.Array:
            where = self.nan.reshape(self.nan.shape + (1,) * (array.ndim - 1))
            return jnp.where(where, jnp.nan, array)

        def none(array: jax.Array) -> jax.Array:
            return jnp.where(nan[..., None], -1, array)

        draws, tree = found.draws, found.tree
        if draws is not None:
            draws = Draws(*map(unknown, (draws.threshold, draws.perturbed, draws.log_inclusion)))
        if tree is not None:
            parts = ("log_probs", "values", "entropies")
            parts = {name: unknown(getattr(tree, name)) for name in parts}
            tree = dataclasses.replace(tree, **parts)
        return dataclasses.replace(
            found,
            tokens=none(found.tokens),
            items=none(found.items),
            scores=unknown(found.scores),
            valid=found.valid & ~nan,
            draws=draws,
            tree=tree,
            bad_step=self.bad_step,
        )
