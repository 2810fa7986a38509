"""How well a value head ranks prefixes on held-out users: its calibration against what is found below them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import build, build_rl
from gr.data import Splits
from gr.data.pipeline import evaluation_batches
from gr.evaluation import ValueCalibration, value_calibration
from gr.losses import distinct_prefixes, monte_carlo_returns, prefix_means
from gr.models import path_states
from gr.training import ActorCritic, Environment, roll_out


@dataclasses.dataclass(frozen=True)
class ValueEvaluation:
    """Values and returns of the candidates that a model finds for evenly spaced validation users."""

    config: ConfigDict
    environment: Environment
    batches: list[dict[str, np.ndarray]]

    @staticmethod
    def of(
        config: ConfigDict, environment: Environment, splits: Splits, num_users: int
    ) -> "ValueEvaluation":
        """Of `num_users` users; 0: all."""
        batches = evaluation_batches(
            splits.sequences,
            build.spread_targets(splits.validation, num_users),
            batch_size=config.rl.batch_size,
            max_history=config.data.max_history,
            buckets=config.rl.num_buckets,
        )
        return ValueEvaluation(config, environment, list(batches))

    def calibration(self, model: ActorCritic) -> tuple[ValueCalibration, float]:
        """The calibration, and the mean squared error over all prefixes."""
        gamma, key = self.config.value.gamma, jax.random.key(self.config.seed)
        rollout = build_rl.rollout_config(self.config)
        reward = build_rl.make_reward(self.config, self.environment)

        @jax.jit
        def of_batch(model: ActorCritic, environment: Environment, batch: dict, key: jax.Array):
            rollouts, _ = roll_out(rollout, environment, reward, model, model.backbone, batch, key)
            values = model.value_head(path_states(model.backbone, rollouts.history, rollouts.codes))
            rewards = jnp.pad(rollouts.value_rewards, ((0, 0), (0, 0), (1, 0)))
            returns = monte_carlo_returns(rewards, gamma)
            returns = prefix_means(rollouts.codes, returns, rollouts.valid)
            return values, returns, distinct_prefixes(rollouts.codes, rollouts.valid)

        parts = [
            of_batch(
                model,
                self.environment,
                {name: batch[name] for name in ("history", "target", "weight")},
                jax.random.fold_in(key, number),
            )
            for number, batch in enumerate(self.batches)
        ]
        values, returns, counted = (
            np.concatenate(column) for column in zip(*jax.device_get(parts), strict=True)
        )
        error = float(np.square(values - returns)[counted].mean())
        return value_calibration(values, returns, counted, first_depth=0), error

    def metrics(self, model: ActorCritic) -> dict[str, float]:
        """For the training loop: `value/loss`, and rank correlations by depth."""
        calibration, error = self.calibration(model)
        found = {f"value/{name}": value for name, value in calibration.to_dict().items()}
        return {"value/loss": error} | {k: v for k, v in found.items() if v is not None}
