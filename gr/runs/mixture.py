"""The mixture of a run's model with a memory of its training sequences: fitted on validation, kept with the run."""

import dataclasses
import json
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from gr.data import Histories, Splits, Targets, fingerprint
from gr.data.files import as_path, read_json, write_json
from gr.evaluation import ndcg, rankings_of_beams
from gr.fields import load_own
from gr.memory import (
    Gate,
    ItemMemoryError,
    ItemPrior,
    Memory,
    best_weight,
    fit_gate,
    fit_memory,
    tune_memory,
)
from gr.runs import build
from gr.runs.baselines import whole_histories
from gr.runs.content import similar_items
from gr.runs.data import data_path
from gr.runs.experiment import ConfigError, MemoryConfig
from gr.runs.run import Run

GRID = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # Weights that are tried.
_FILES = ("mixture.json", "memory.npz")
_FILES_OF_OTHER_RULE = ("mixture_of_other_rule.json", "memory_of_other_rule.npz")
_K = 10
_TUNING_USERS = 10_000  # By which the memory's settings are chosen, which costs less than decoding.

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

    def weighted(self, weight: float) -> "Mixture":
        """The same with one weight for all users."""
        return dataclasses.replace(self, gate=Gate((weight,)))

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
        return self.for_histories(Histories.of(splits.sequences, targets), exclude=exclude)

    def for_histories(
        self, past: Histories, *, exclude: bool
    ) -> Callable[[np.ndarray], tuple[ItemPrior, np.ndarray]]:
        """The same for the histories of the targets."""

        def of_rows(rows: np.ndarray) -> tuple[ItemPrior, np.ndarray]:
            return self.of(past[np.where(rows < 0, rows[0], rows)], exclude=exclude)

        return of_rows


def mixture_of(run: Run, exclude_seen: bool | None = None) -> Mixture | None:
    """The mixture of a trained run, fitted on validation and kept in its workdir; None if it has no memory.

    It is fitted anew for another checkpoint, other data or settings.

    Args:
        run: the trained run.
        exclude_seen: the rule for seen items that it is fitted under; None: the run's own.

    Raises:
        ConfigError: for a gate without a memory, a weight to be chosen without validation targets, a file of other
            items, or your own function that is not found.
        GrError: other errors of fitting a memory.
    """
    if run.config.memory.weight is None:
        return None
    run, files = _under(run, exclude_seen)
    made_of = _made_of(run)
    kept = _read(run, made_of, files)
    return _fitted(run, files, made_of) if kept is None else kept


def chosen_memory(run: Run, exclude_seen: bool | None = None) -> MemoryConfig:
    """The fields of a run's memory with what validation chose under a rule as numbers, for a run without validation.

    Raises:
        ConfigError: for a gate, which is more than a number; errors of `mixture_of`.
    """
    config, mixture = run.config.memory, mixture_of(run, exclude_seen)
    if mixture is None:
        return config
    if mixture.gate.input:
        raise ConfigError(
            "memory.weight='gate' is fitted on validation, which a refit has not: train with 'tuned' or a number"
        )
    config = dataclasses.replace(config, weight=float(mixture.gate.weights[0]))
    if mixture.memory is None or config.source:
        return config
    return dataclasses.replace(config, tune=False, settings=mixture.memory.settings)


def keep_mixture(run: Run, exclude_seen: bool, memory: MemoryConfig) -> None:
    """Fits and keeps what `mixture_of` then gives under a rule, by other fields of the memory than the run's own."""
    run, files = _under(run, exclude_seen)
    made_of = _made_of(run)
    _fitted(
        dataclasses.replace(run, config=dataclasses.replace(run.config, memory=memory)),
        files,
        made_of,
    )


def check_tunable(config: MemoryConfig, splits: Splits) -> None:
    """Raises a ConfigError if validation is to choose something of a memory, and there are no targets to choose by."""
    if config.weight is None or len(build.validation_targets(splits)):
        return
    if isinstance(config.weight, str) or (config.tune and not config.source):
        raise ConfigError(
            f"memory.weight={config.weight!r} and memory.tune={config.tune} need validation targets: give a number and "
            "memory.tune=False, or keep a share for validation"
        )


def mixtures_of(run: Run, rules: Collection[bool]) -> dict[bool, Mixture]:
    """The mixture under each rule for seen items, as baselines are tuned under each; {} for a run without a memory."""
    if run.config.memory.weight is None:
        return {}
    return {rule: mixture_of(run, rule) for rule in rules}


def _under(run: Run, exclude_seen: bool | None) -> tuple[Run, tuple[str, str]]:
    """The run under a rule for seen items, None: its own, and the files of the mixture under it."""
    if exclude_seen in (None, run.config.decoding.exclude_seen):
        return run, _FILES
    under_it = run.config.override({"decoding.exclude_seen": exclude_seen})
    return dataclasses.replace(run, config=under_it), _FILES_OF_OTHER_RULE


def _fitted(run: Run, files: tuple[str, str], made_of: dict[str, Any]) -> Mixture:
    """The mixture by the run's fields, fitted and written as that of `made_of`."""
    check_tunable(run.config.memory, run.splits)
    memory = None if _is_own(run.config.memory) else _fit(run)
    mixture = _weighted(run, _mixture(run, memory))
    if memory is not None:
        memory.save(as_path(run.workdir) / files[1])
    write_json(as_path(run.workdir) / files[0], {"made_of": made_of, **mixture.summary()})
    return mixture


def _made_of(run: Run) -> dict[str, Any]:
    """All that a mixture depends on, as JSON has it."""
    checksums = fingerprint(run.splits)["checksums"]
    made_of = {
        "memory": dataclasses.asdict(run.config.memory),
        "decoding": dataclasses.asdict(run.config.decoding),
        "step": run.step,
        "data": {name: checksums[name] for name in ("item_ids", "sequences", "splits", "texts")},
    }
    return json.loads(json.dumps(made_of))


def _read(run: Run, made_of: dict[str, Any], files: tuple[str, str]) -> Mixture | None:
    """An earlier fit of the same; None if there is none."""
    try:
        kept = read_json(as_path(run.workdir) / files[0])
        if kept["made_of"] != made_of:
            return None
        own = _is_own(run.config.memory)
        memory = None if own else Memory.load(as_path(run.workdir) / files[1])
        gate, validation = Gate.from_dict(kept["gate"]), kept["validation"]
    except (OSError, KeyError, TypeError, ValueError, ItemMemoryError):
        return None  # Missing, broken or old: it is fitted anew.
    return dataclasses.replace(_mixture(run, memory), gate=gate, validation=validation)


def _is_own(config: MemoryConfig) -> bool:
    return ":" in config.source and not config.source.endswith(".npz")


def _mixture(run: Run, memory: Memory | None) -> Mixture:
    """The mixture with a memory, or with the user's own source of priors, before it has a weight."""
    config = run.config.memory
    if memory is not None:
        return Mixture(memory.prior, Gate((0.0,)), config.size, memory)
    make = load_own(config.source, "memory.source", (), ConfigError)
    return Mixture(make(run.splits), Gate((0.0,)), config.size)


def _fit(run: Run) -> Memory:
    """The memory of the run's training sequences, or that of a file."""
    config, splits = run.config.memory, run.splits
    if config.source:
        here = as_path(config.source).exists()  # As with vectors: before the data folder.
        memory = Memory.load(config.source if here else data_path(run.config, config.source))
        if memory.num_items != splits.sequences.num_items:
            raise ConfigError(
                f"memory.source={config.source!r} is a memory of {memory.num_items} items, and the data have "
                f"{splits.sequences.num_items}: fit it on these"
            )
        return memory
    if not config.tune:
        of_content = similar_items(run, config.settings.content_of or "none")
        return fit_memory(splits, **dataclasses.asdict(config.settings), similar=of_content)
    validation, of_content = build.validation_targets(splits), similar_items(run, config.content)
    memory, _ = tune_memory(
        splits,
        whole_histories(splits, validation),
        splits.sequences.items[validation.positions],
        exclude=run.config.decoding.exclude_seen,
        similar=of_content,
        max_users=_TUNING_USERS,
    )
    if not config.settings.discount:
        return memory
    # On top of what ranks best: tuned beside it, the other settings would undo it.
    settings = dataclasses.replace(memory.settings, discount=config.settings.discount)
    return fit_memory(splits, **dataclasses.asdict(settings), similar=of_content)


def _weighted(run: Run, mixture: Mixture) -> Mixture:
    """The mixture with its weight: the given one, or chosen by validation targets."""
    config = run.config.memory
    if not isinstance(config.weight, str):
        return dataclasses.replace(mixture, gate=Gate((float(config.weight),)))
    if config.weight == "gate" and mixture.memory is None:
        raise ConfigError("memory.weight='gate' needs a memory: use 'tuned' with your own source")
    exclude = run.config.decoding.exclude_seen
    targets = build.spread_targets(build.validation_targets(run.splits), config.tuning_users)
    wanted = run.splits.sequences.items[targets.positions]
    gains = []
    for weight in GRID:
        tried = mixture.weighted(weight)
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
