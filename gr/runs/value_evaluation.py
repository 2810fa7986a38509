"""How well a value head ranks prefixes on held-out users: calibration against the returns below them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gr.data import Splits
from gr.data.pipeline import evaluation_batches
from gr.evaluation import ValueCalibration, fetched, value_calibration
from gr.losses import distinct_prefixes, monte_carlo_returns, prefix_means
from gr.models import path_states
from gr.rl import ActorCritic, RolloutConfig, exact_match, roll_out
from gr.runs import build, build_rl, keys
from gr.runs.experiment import ReinforcedExperiment
from gr.training import of_all_processes, on_own_rows, replicate, shard_batch
from gr.trie import Catalogue


@dataclasses.dataclass(frozen=True)
class ValueEvaluation:
    """Values and returns of the candidates that a model finds for evenly spaced validation users."""

    config: ReinforcedExperiment
    catalogue: Catalogue
    batches: list[dict[str, np.ndarray]]
    mesh: Mesh | None  # Whose devices share a batch; None: one device.

    @staticmethod
    def of(
        config: ReinforcedExperiment, catalogue: Catalogue, splits: Splits, num_users: int
    ) -> "ValueEvaluation":
        """The evaluation on `num_users` users; 0: all."""
        mesh = build.decoding_mesh(config)
        devices = 1 if mesh is None else mesh.size
        if mesh is not None:
            catalogue = replicate(catalogue, mesh)
        batches = evaluation_batches(
            splits.sequences,
            build.spread_targets(splits.validation, num_users),
            batch_size=-(-config.rl.batch_size // devices) * devices,
            max_history=config.data.max_history,
            buckets=config.rl.num_buckets,
        )
        parts = ("history", "target", "weight")
        batches = [{name: batch[name] for name in parts} for batch in batches]
        return ValueEvaluation(config, catalogue, batches, mesh)

    def calibration(self, model: ActorCritic) -> tuple[ValueCalibration, float]:
        """The calibration, and the mean squared error over all prefixes."""
        rollout = build_rl.rollout_config(self.config)
        key, mesh = keys.make_key(self.config.seed, keys.VALUE_EVALUATION), self.mesh
        if mesh is not None:
            model, key = replicate((model, key), mesh)
        parts = (
            of_all_processes(
                _values_and_returns(
                    model,
                    self.catalogue,
                    batch if mesh is None else shard_batch(batch, mesh, whole=True),
                    jax.random.fold_in(key, number),
                    rollout=rollout,
                    gamma=self.config.value.gamma,
                    mesh=mesh,
                ),
                mesh,
            )
            for number, batch in enumerate(self.batches)
        )
        with jax.default_matmul_precision(self.config.rl.precision):
            columns = zip(*fetched(parts), strict=True)
        values, returns, counted = (np.concatenate(column) for column in columns)
        error = float(np.square(values - returns)[counted].mean())
        return value_calibration(values, returns, counted, first_depth=0), error

    def metrics(self, model: ActorCritic) -> dict[str, float]:
        """Metrics for the training loop: `value/loss`, and rank correlations by depth."""
        calibration, error = self.calibration(model)
        found = {f"value/{name}": value for name, value in calibration.to_dict().items()}
        return {"value/loss": error} | {k: v for k, v in found.items() if v is not None}


# At module level, so that a later evaluation does not compile again.
@functools.partial(jax.jit, static_argnames=("rollout", "gamma", "mesh"))
def _values_and_returns(
    model: ActorCritic,
    catalogue: Catalogue,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    rollout: RolloutConfig,
    gamma: float,
    mesh: Mesh | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values and returns of the prefixes of a batch's candidates, and which count, `[B, G, L + 1]` each."""

    def of_users(whole: Any, batch: Any, key: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        model, catalogue = whole
        # V's returns do not include the policy's reward.
        rollouts, _ = roll_out(rollout, catalogue, exact_match, model, model.backbone, batch, key)
        values = model.value_head(path_states(model.backbone, rollouts.history, rollouts.tokens))
        rewards = jnp.pad(rollouts.value_rewards, ((0, 0), (0, 0), (1, 0)))
        returns = prefix_means(rollouts.tokens, monte_carlo_returns(rewards, gamma), rollouts.valid)
        return values, returns, distinct_prefixes(rollouts.tokens, rollouts.valid)

    return on_own_rows(of_users, mesh, (model, catalogue), batch, key)
