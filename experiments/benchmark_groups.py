r"""Measures the gain of encoding a history once per group: G candidates of each user, log-probabilities and gradient.

    python -m experiments.benchmark_groups --config=configs/amazon_office_small.py --json=FILE \
        [--backbones=encoder_decoder] [--groups=4,16] [--seconds_per_row=8] [--config.FIELD=VALUE ...]

Both rows of a group size give the same numbers (Prefix Grouper, arXiv 2506.05433): `once` lets the candidates continue
one encoded history, `each` repeats the history for every candidate. Untrained weights, `users` random histories of
`data.max_history` items; forward and backward pass of the sum of log-probabilities, one program.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks import benchmarking
from experiments.benchmarks.benchmarking import FLAGS
from experiments.config_files import supervised
from experiments.errors import one_line_errors
from gr.losses import group_token_log_probs, scored_log_probs, token_log_probs
from gr.models import histories_for, path_states, scores_children
from gr.runs import build
from gr.trie import TrieIndex

HEADER = ("groups", "users/s", "speed-up", "ms a batch", "compile s")
NOTES = ("speed-up: of encoding the history once over encoding it for each candidate.",)


@one_line_errors
def main(argv: list[str]) -> None:
    """One backbone after the other; table and file."""
    del argv
    config, on = supervised(FLAGS.config), benchmarking.machine()
    splits, semantic_ids = benchmarking.load(config)
    rng = np.random.default_rng(config.seed)
    items = splits.sequences.num_items
    rows = rng.integers(items, size=(FLAGS.users, config.data.max_history))
    results, compilations = {}, {}
    for backbone, chosen, model in benchmarking.models(config, semantic_ids):
        catalogue = build.make_catalogue(chosen, semantic_ids, sequences=splits.sequences)
        tokens, index = catalogue.tokens, catalogue.index
        history = histories_for(model, tokens, rows, catalogue.pieces)
        calls: dict[str, Callable[[], Any]] = {}
        for size in map(int, FLAGS.groups):
            candidates = tokens[rng.integers(items, size=(FLAGS.users, size))]
            calls[f"{size}/once"] = functools.partial(_once, model, index, history, candidates)
            calls[f"{size}/each"] = functools.partial(_each, model, index, history, candidates)
        timings, compilations[backbone] = benchmarking.time_in_turns(
            calls, FLAGS.seconds_per_row * len(calls)
        )
        for name, timing in timings.items():
            results[f"{backbone}/{name}"] = {
                "users_per_second": FLAGS.users / timing.seconds,
                "seconds_per_batch": timing.seconds,
                "compile_seconds": timing.compile_seconds,
            }
    quantities = benchmarking.by_quantity(results)
    quantities["compilations_while_timing"] = compilations
    table = [_row(name, results) for name in results]
    benchmarking.report(config.name, HEADER, table, NOTES, on, quantities)


def _row(name: str, results: dict[str, dict[str, float]]) -> tuple[str, ...]:
    result, slow = results[name], results[f"{name.rsplit('/', 1)[0]}/each"]
    return (
        name,
        f"{result['users_per_second']:,.1f}",
        f"{result['users_per_second'] / slow['users_per_second']:.1f}",
        f"{1e3 * result['seconds_per_batch']:,.1f}",
        f"{result['compile_seconds']:.1f}",
    )


@jax.jit
@jax.value_and_grad
def _once(model: Any, index: TrieIndex, history: Any, candidates: jax.Array) -> jax.Array:
    """Sum of log-probabilities of candidates `[B, G, L]` that continue one encoded history."""
    states = path_states(model, history, candidates[..., :-1])
    if scores_children(model):
        return scored_log_probs(model, states, candidates, index).sum()
    first, later = model.logits(states[:, 0, 0]), model.logits(states[:, :, 1:])
    return group_token_log_probs(first, later, candidates).sum()


@jax.jit
@jax.value_and_grad
def _each(model: Any, index: TrieIndex, history: Any, candidates: jax.Array) -> jax.Array:
    """The same, of as many histories as candidates."""
    count = candidates.shape[1]
    repeated = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), history)
    flat = candidates.reshape(-1, candidates.shape[-1])
    if scores_children(model):
        return scored_log_probs(model, model.target_states(repeated, flat), flat, index).sum()
    return token_log_probs(model.target_logits(repeated, flat), flat).sum()


if __name__ == "__main__":
    flags.DEFINE_list("groups", ["4", "16"], "Candidates of a user.")
    flags.DEFINE_integer("users", 32, "Users of a batch.", lower_bound=1)
    benchmarking.run(main)
