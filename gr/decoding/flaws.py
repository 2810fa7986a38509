"""Which users' candidates rest on numbers of the model that are none, and since when."""

import dataclasses

import jax
import jax.numpy as jnp

from gr.decoding.candidates import Candidates, Draws, SearchTree
from gr.decoding.softmax import Softmax


@dataclasses.dataclass(frozen=True)
class Flaws:
    """What was found so far; read off the sums that a search needs anyway."""

    bad_step: jax.Array  # [B] int32: the first step at which there was NaN or +inf, or -1.
    nan: jax.Array  # [B] bool: whether there was NaN.

    @staticmethod
    def none(batch: int) -> "Flaws":
        """None as yet."""
        return Flaws(jnp.full(batch, -1, jnp.int32), jnp.zeros(batch, bool))

    def also(self, step: int, chances: Softmax, alive: jax.Array) -> "Flaws":
        """With those of a step, in distributions of beams `[B, M]` or `[B, 1]`, which count where `alive [B, M]`."""
        flawed = (chances.flawed & alive).any(axis=1)
        nan = (chances.nan & alive).any(axis=1)
        return Flaws(jnp.where((self.bad_step < 0) & flawed, step, self.bad_step), self.nan | nan)

    def told(self, found: Candidates) -> Candidates:
        """The candidates, without a ranking where there was NaN."""
        nan = self.nan[:, None]

        def unknown(array: jax.Array) -> jax.Array:
            where = self.nan.reshape(-1, *[1] * (array.ndim - 1))
            return jnp.where(where, jnp.nan, array)

        def none(array: jax.Array) -> jax.Array:
            return jnp.where(nan[..., None], -1, array)

        draws, tree = found.draws, found.tree
        if draws is not None:
            draws = Draws(*map(unknown, (draws.threshold, draws.perturbed, draws.log_inclusion)))
        if tree is not None:
            parts = ("log_probs", "values", "entropies")
            parts = {name: unknown(getattr(tree, name)) for name in parts}
            tree: SearchTree = dataclasses.replace(tree, **parts)
        return dataclasses.replace(
            found,
            codes=none(found.codes),
            items=none(found.items),
            scores=unknown(found.scores),
            valid=found.valid & ~nan,
            draws=draws,
            tree=tree,
            bad_step=self.bad_step,
        )
