r"""Measures searches that propose candidates at an equal budget: beam search, sampling, value-guided search.

    python -m experiments.benchmark_search --config=configs/amazon_office_small.py --json=FILE \
        [--backbones=encoder_decoder] [--times=1,2] [--widths=1,4,8] [--novalue_block] [--seconds_per_row=8] \
        [--config.FIELD=VALUE ...]

Untrained weights and an untrained value head of the size in `gr.runs.ValueFields`, but the config's real semantic IDs
and trie. A row searches `decoding.batch_size` users with random histories of `data.max_history` items, one program a
batch:

* `beam`: as many beams as candidates; the tokens it gives the model are the budget of the others;
* `sample`: as many candidates without replacement;
* `ved/TIMES/W`: value-guided search as published, behind a beam search, with so many times that budget, W prefixes at a
  time;
* `best_first/TIMES/W`: ours, with the same budgets;
* `python_walk`: `ved` with W = 1, one node of one user at a time (`search_baselines`), each with its ancestors'
  keys and values; `plain_walk`: the same, but a node costs a forward pass over its history and prefix.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx

from experiments.benchmarks import benchmarking
from experiments.benchmarks.benchmarking import FLAGS
from experiments.benchmarks.search_baselines import PythonWalk
from experiments.config_files import supervised
from experiments.errors import one_line_errors
from gr.decoding import PRESETS, Candidates, SearchConfig, search
from gr.models import ValueHead, ValueHeadConfig, histories_for, scores_children
from gr.runs import Experiment, ValueFields, build, keys
from gr.trie import Catalogue, TrieIndex

NUM_CANDIDATES = 16
WALK, PLAIN_WALK = "python_walk", "plain_walk"
WALKED_USERS = 4

HEADER = (
    "searches",
    "users/s",
    "tokens a user",
    "tokens/s",
    "of beam search",
    "times the walk",
    "the plain one",
    "ms a batch",
    "compile s",
)
NOTES = (
    "rows of one backbone are timed in turns. tokens: what the model is given besides the history. of beam search,",
    "times the walks: by tokens/s; aimed at for value-guided search: >= 70%, >= 50; of item_decoder >= 90%.",
)


@one_line_errors
def main(argv: list[str]) -> None:
    """One backbone after the other; table and file."""
    del argv
    config, on = supervised(FLAGS.config), benchmarking.machine()
    splits, semantic_ids = benchmarking.load(config)
    shape = (config.decoding.batch_size, config.data.max_history)
    rng = np.random.default_rng(config.seed)
    rows = rng.integers(splits.sequences.num_items, size=shape)
    results, compilations = {}, {}
    for backbone, chosen, model in benchmarking.models(config, semantic_ids):
        catalogue = build.make_catalogue(chosen, semantic_ids, sequences=splits.sequences)
        measured, compilations[backbone] = measure(chosen, model, catalogue, rows)
        results |= {f"{backbone}/{name}": result for name, result in measured.items()}
    quantities = benchmarking.by_quantity(results)
    quantities["compilations_while_timing"] = compilations
    table = [_row(name, results) for name in results]
    benchmarking.report(config.name, HEADER, table, NOTES, on, quantities)


def _row(name: str, results: dict[str, dict[str, float]]) -> tuple[str, ...]:
    result, backbone = results[name], name.split("/")[0]
    speed = result["tokens_per_second"]
    return (
        name,
        f"{result['users_per_second']:,.1f}",
        f"{result['tokens_per_user']:.1f}",
        f"{speed:,.0f}",
        f"{speed / results[f'{backbone}/beam']['tokens_per_second']:.0%}",
        *(
            f"{speed / results[f'{backbone}/{walk}']['tokens_per_second']:,.0f}"
            if f"{backbone}/{walk}" in results
            else ""
            for walk in (WALK, PLAIN_WALK)
        ),
        f"{1e3 * result['seconds_per_batch']:,.1f}",
        f"{result['compile_seconds']:.1f}",
    )


def make_searches(length: int) -> dict[str, SearchConfig]:
    """The searches by row name; `length` codes, of which a beam search evaluates all but the last."""
    budget = NUM_CANDIDATES * (length - 1)

    def tree_search(name: str, times: int, width: int) -> SearchConfig:
        return dataclasses.replace(
            PRESETS[name],
            num_candidates=NUM_CANDIDATES,
            budget=times * budget,
            width=width,
        )

    return {
        "beam": SearchConfig("beam", num_candidates=NUM_CANDIDATES),
        "sample": SearchConfig("sample", num_candidates=NUM_CANDIDATES),
        **{
            f"{name}/{times}/{width}": tree_search(name, times, width)
            for name, preset in PRESETS.items()
            if preset.is_tree_search
            for times in map(int, FLAGS.times)
            for width in map(int, FLAGS.widths)
        },
        WALK: tree_search("ved", 1, 1),
        PLAIN_WALK: tree_search("ved", 1, 1),
    }


def measure(
    config: Experiment, model: Any, catalogue: Catalogue, rows: np.ndarray
) -> tuple[dict[str, dict[str, float]], int]:
    """Times all searches of histories `rows [B, T]` in turns: results by row, compilations while timing."""
    length = catalogue.index.length
    history = histories_for(model, catalogue.tokens, rows, catalogue.pieces)
    value = ValueFields()
    head = ValueHead(
        ValueHeadConfig(
            getattr(config, config.backbone).d_model,
            length,
            num_heads=value.num_heads,
            d_ff=value.d_ff,
            block=FLAGS.value_block,
        ),
        rngs=nnx.Rngs(keys.make_key(config.seed, keys.VALUE_HEAD)),
    )
    calls: dict[str, Callable[[], Any]] = {}
    for name, chosen in make_searches(length).items():
        if name in (WALK, PLAIN_WALK):
            if scores_children(model):  # The walks ask for logits over the vocabulary.
                continue
            tokens = np.asarray(catalogue.tokens[:-1])
            walk = PythonWalk(model, head, tokens, chosen, cached=name == WALK)
            calls[name] = benchmarking.in_order(walk, list(history[:WALKED_USERS, None]))
            continue
        key = keys.make_key(config.seed, keys.SEARCH_EVALUATION)
        calls[name] = functools.partial(
            _search, model, head, catalogue.index, history, key, config=chosen
        )
    timings, compilations = benchmarking.time_in_turns(
        calls, FLAGS.seconds_per_row * len(calls), settle=True
    )
    results = {}
    for name, timing in timings.items():
        found = calls[name]()
        walked = name in (WALK, PLAIN_WALK)
        users, tokens = (1, found[1]) if walked else (len(rows), found.evaluations.mean())
        results[name] = {
            "users_per_second": users / timing.seconds,
            "tokens_per_user": float(tokens),
            "tokens_per_second": float(tokens) * users / timing.seconds,
            "seconds_per_batch": timing.seconds,
            "compile_seconds": timing.compile_seconds,
        }
    return results, compilations


@functools.partial(jax.jit, static_argnames="config")
def _search(
    model: Any,
    head: ValueHead,
    index: TrieIndex,
    history: Any,
    key: jax.Array,
    *,
    config: SearchConfig,
) -> Candidates:
    return search(config, model, head, index, history, key=key)


if __name__ == "__main__":
    flags.DEFINE_list("times", ["1", "2"], "Budgets of value-guided search, times beam search's.")
    flags.DEFINE_list("widths", ["1", "8", "16"], "How many prefixes it evaluates at a time.")
    flags.DEFINE_bool("value_block", True, "Whether its value head has a transformer block.")
    benchmarking.run(main)
