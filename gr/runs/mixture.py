"""The mixture of a run's model with a memory of its training sequences: fitted on validation, kept with the run."""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from gr.data import Histories, Splits, Targets
from gr.data.files import as_path, write_atomically
from gr.evaluation import ndcg, rankings_of_beams
from gr.fields import load_own
from gr.memory import (
    Gate,
    ItemPrior,
    Memory,
    best_weight,
    fit_gate,
    fit_memory,
    tune_memory,
)
from gr.runs import build
from gr.runs.baselines import whole_histories
from gr.runs.experiment import ConfigError, Experiment, MemoryConfig
from gr.runs.run import Run

GRID = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # Weights that are tried.
_FILE, _MEMORY = "mixture.json", "memory.npz"
_K = 10

Prior = Callable[..., ItemPrior]  # (histories, *, size, exclude).


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """What is mixed into a model's recommendations, and how much.

    Attributes:
        prior: the items of each history with their weights.
        gate: how much they count.
        size: items of a user.
        memory: what `prior` asks; None for your own function.
        validation: weight -> NDCG@10 on validation, where weights were tried.
    """

    prior: Prior
    gate: Gate
    size: int
    memory: Memory | None = None
    validation: dict[str, float] = dataclasses.field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Weights and settings, for files and reports."""
        settings = None if self.memory is None else dataclasses.asdict(self.memory.settings)
        return {"gate": self.gate.to_dict(), "validation": self.validation, "settings": settings}

    def of(self, histories: Histories, *, exclude: bool) -> tuple[ItemPrior, np.ndarray]:
        """The priors of n histories, and the weight of each, `[n]` float32."""
        prior = self.prior(histories, size=self.size, exclude=exclude)
        if not self.gate.input:
            return prior, self.gate(np.zeros((len(histories), 0)))
        return prior, self.gate(self.memory.gate_inputs(histories, prior))

    def for_targets(
        self, splits: Splits, targets: Targets, *, exclude: bool
    ) -> Callable[[np.ndarray], tuple[ItemPrior, np.ndarray]]:
        """The argument `prior` of `decode_targets`."""
        past = Histories.of(splits.sequences, targets)

        def of_rows(rows: np.ndarray) -> tuple[ItemPrior, np.ndarray]:
            return self.of(past[np.where(rows < 0, rows[0], rows)], exclude=exclude)

        return of_rows


def mixture_of(run: Run) -> Mixture | None:
    """The mixture of a trained run, fitted on validation and kept in its workdir; None if it has no memory.

    It is fitted anew for another checkpoint or other settings.

    Raises:
        ConfigError: for a gate without a memory, or your own function that is not found.
        GrError: other errors of fitting a memory.
    """
    config = run.config.memory
    if config.weight is None:
        return None
    kept, made_of = _read(run.workdir), {"memory": dataclasses.asdict(config), "step": run.step}
    made_of["exclude"] = run.config.decoding.exclude_seen
    if kept is not None and kept["made_of"] == json.loads(json.dumps(made_of)):
        memory = None
        if not _is_own(config):
            memory = Memory.load(as_path(run.workdir) / _MEMORY)
        prior = _own(config, run.splits) if memory is None else memory.prior
        gate = Gate.from_dict(kept["gate"])
        return Mixture(prior, gate, config.size, memory, kept["validation"])
    memory = None if _is_own(config) else _fit(config, run.config, run.splits)
    prior = _own(config, run.splits) if memory is None else memory.prior
    mixture = _weighted(run, Mixture(prior, Gate((0.0,)), config.size, memory))
    if memory is not None:
        memory.save(as_path(run.workdir) / _MEMORY)
    kept = {"made_of": made_of, **mixture.summary()}
    write_atomically(as_path(run.workdir) / _FILE, json.dumps(kept, indent=2).encode())
    return mixture


def _read(workdir: str) -> dict | None:
    """The file of an earlier fit; None if there is none that can be read."""
    try:
        return json.loads((as_path(os.path.join(workdir, _FILE))).read_text())
    except (OSError, ValueError):
        return None


def _is_own(config: MemoryConfig) -> bool:
    return ":" in config.source


def _own(config: MemoryConfig, splits: Splits) -> Prior:
    """The user's own source of priors."""
    return load_own(config.source, "memory.source", (), ConfigError)(splits)


def _fit(config: MemoryConfig, experiment: Experiment, splits: Splits) -> Memory:
    if config.source:
        return Memory.load(config.source)
    if not config.tune:
        return fit_memory(splits, **dataclasses.asdict(config.settings))
    validation = splits.validation
    memory, _ = tune_memory(
        splits,
        whole_histories(splits, validation),
        splits.sequences.items[validation.positions],
        exclude=experiment.decoding.exclude_seen,
    )
    return memory


def _weighted(run: Run, mixture: Mixture) -> Mixture:
    """The mixture with its weight: the given one, or chosen by validation targets."""
    config = run.config.memory
    if not isinstance(config.weight, str):
        return dataclasses.replace(mixture, gate=Gate((float(config.weight),)))
    if config.weight == "gate" and mixture.memory is None:
        raise ConfigError("memory.weight='gate' needs a memory: use 'tuned' with your own source")
    exclude = run.config.decoding.exclude_seen
    targets = build.spread_targets(run.splits.validation, config.tuning_users)
    wanted = run.splits.sequences.items[targets.positions]
    gains = []
    for weight in GRID:
        tried = dataclasses.replace(mixture, gate=Gate((weight,)))
        found = build.decode(
            run.config,
            run.catalogue,
            run.model,
            run.splits,
            targets,
            prior=tried.for_targets(run.splits, targets, exclude=exclude),
        )
        seen = whole_histories(run.splits, targets).hold(wanted)
        depth = min(_K, run.config.decoding.num_beams)
        ranked = rankings_of_beams(found.items, wanted, depth=depth, seen=seen, exclude=exclude)
        gains.append(ndcg(ranked.item_ranks, depth))
    gains = np.stack(gains, axis=1)
    gate = best_weight(gains, GRID)
    if config.weight == "gate":
        past = whole_histories(run.splits, targets)
        prior = mixture.prior(past, size=mixture.size, exclude=exclude)
        gate = fit_gate(mixture.memory.gate_inputs(past, prior), gains, GRID)
    means = {f"{weight:g}": float(mean) for weight, mean in zip(GRID, gains.mean(0), strict=True)}
    return dataclasses.replace(mixture, gate=gate, validation=means)
