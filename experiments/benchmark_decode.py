r"""Measures how many users a second constrained beam search serves, for each backbone.

    python -m experiments.benchmark_decode --config=configs/amazon_office.py --json=FILE \
        [--backbones=encoder_decoder] [--seconds_per_row=8] [--config.FIELD=VALUE ...]

Untrained weights, since speed does not depend on them, but the config's real semantic IDs and trie. A row decodes
batches of `decoding.batch_size` users with `decoding.num_beams` beams, one program a batch:

* `N_tokens`: histories of one length, drawn at random; any item may be decoded;
* `test_histories`: the test users' real histories in their length buckets, each bucket counted as often as it occurs;
* `.../unseen_only`: the same, and items of the history are excluded;

and at the longest history the search with a prior, its parts and its floors:

* `.../prior`: mixed with a prior of 500 random items a user;
* `.../prefill`: encoding the histories and the first code's logits, alone;
* `.../steps`: the beam search alone, given a cache that is filled already;
* `.../forward_only`: prefill and steps of as many beams without any search: no search over this model can be faster;
* `.../unconstrained`: no trie, the best beams by raw logits over the whole vocabulary; not for a model that scores the
  trie's children.

`item_decoder` is as wide as `encoder_decoder`. Its steps do not read the history, so its users/s hardly fall with the
length: see it with `--config.data.max_history=50`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import benchmarking
from experiments.benchmarks.benchmarking import FLAGS, PEAK, Stratum
from experiments.config_files import supervised
from experiments.errors import one_line_errors
from gr.data import Histories, Splits, evaluation_batches
from gr.decoding import Candidates, ItemPrior, beam_search
from gr.evaluation import distinct_items
from gr.models import Cache, histories_for, scores_children
from gr.runs import Experiment, build
from gr.runs.programs import forward_only, prefill
from gr.trie import Catalogue, ExcludeItems, TrieIndex

ITEMS = (
    4,
    8,
    20,
    50,
)  # Lengths of the random histories, in items, as far as the model sees so many.

PRIOR_ITEMS = 500  # Of a user, the default of `memory.size`.

# Amazon Office at the reference size, 20 beams, 128 users, on two CPU cores: our target, and others' results.
TARGETS = {
    "encoder_decoder/80_tokens": ">= 75",
    "encoder_decoder/test_histories": ">= 130",
    "encoder_decoder/test_histories/unseen_only": ">= 130",
    "item_decoder/80_tokens": ">= 5 x encoder_decoder",
    **{f"{backbone}/80_tokens/prior": "<= 1.10 x its time" for backbone in benchmarking.BACKBONES},
}
OTHERS = {
    "encoder_decoder/16_tokens": "plain JAX 145",
    "encoder_decoder/32_tokens": "plain JAX 119",
    "encoder_decoder/80_tokens": "transformers 6.2, plain JAX 66",
    "encoder_decoder/80_tokens/prefill": "transformers 168",
}
HEADER = (
    "users/s of constrained beam search",
    "users/s",
    "target",
    "others",
    "ms a batch",
    "of forward_only",
    "compile s",
)
NOTES = (
    "rows of one backbone are timed in turns. of forward_only: share of the users/s that the model's own passes at",
    "the same length allow, where no search is done. target, others: Amazon Office, reference size, 20 beams, 128",
    "users, two CPU cores.",
)


@one_line_errors
def main(argv: list[str]) -> None:
    """One backbone after the other; table and file."""
    del argv
    config, on = supervised(FLAGS.config), benchmarking.machine()
    splits, semantic_ids = benchmarking.load(config)
    requests = make_requests(config, splits, semantic_ids.num_levels)
    results, peaks, compilations = {}, {}, {}
    for backbone, chosen, model in benchmarking.models(config, semantic_ids):
        catalogue = build.make_catalogue(chosen, semantic_ids)
        workloads = make_workloads(config, model, catalogue, requests)
        measured, peaks[backbone], compilations[backbone] = measure(
            workloads, getattr(config, backbone).dtype, FLAGS.seconds_per_row
        )
        results |= {f"{backbone}/{name}": result for name, result in measured.items()}
    table = [
        (
            name,
            f"{result['users_per_second']:,.1f}",
            TARGETS.get(name, ""),
            OTHERS.get(name, ""),
            f"{1e3 * result['seconds_per_batch']:,.1f}",
            _share_of_floor(name, results),
            f"{result['compile_seconds']:.1f}",
        )
        for name, result in results.items()
    ]
    # {"users_per_second": {row: value}, ...}: one dictionary a quantity.
    quantities = benchmarking.by_quantity(results)
    quantities |= {"peak_gflops_per_second": peaks, "compilations_while_timing": compilations}
    benchmarking.report(config.name, HEADER, table, NOTES, on, quantities)


def _share_of_floor(name: str, results: dict[str, dict[str, float]]) -> str:
    """How close a row comes to the model's own passes, where those were timed at its length."""
    floor = results.get("/".join([*name.split("/")[:2], "forward_only"]))
    if floor is None or name.endswith(("/prefill", "/steps")):
        return ""
    return f"{results[name]['users_per_second'] / floor['users_per_second']:.0%}"


# What is decoded.


def make_requests(
    config: Experiment, splits: Splits, length: int
) -> dict[str, dict[tuple, Stratum]]:
    """Batches of users by row name: `history [B, T]` and `seen [B, S]` item rows, `weight [B]`; items of `length`."""
    sequences, targets = splits.sequences, splits.test
    max_history, batch_size = config.data.max_history, config.decoding.batch_size
    rng = np.random.default_rng(config.seed)
    requests = {}
    for items in sorted({min(items, max_history) for items in ITEMS}):
        history = rng.integers(sequences.num_items, size=(batch_size, items), dtype=np.int32)
        batch = {"history": history, "seen": history, "weight": np.ones(batch_size, np.float32)}
        requests[f"{items * length}_tokens"] = benchmarking.strata([batch], "history")
    batches = evaluation_batches(
        sequences,
        targets,
        batch_size=batch_size,
        max_history=max_history,
        buckets=config.data.num_buckets,
    )
    seen = Histories.of(sequences, targets)
    batches = [{**b, "seen": distinct_items(seen[np.maximum(b["rows"], 0)])} for b in batches]
    requests["test_histories"] = benchmarking.strata(batches, "history", "seen")
    return requests


@dataclasses.dataclass(frozen=True)
class Workload:
    """The workload of one row: `run` on batches of several shapes."""

    strata: dict[tuple, Stratum]
    run: Callable[[dict[str, np.ndarray]], Any]


def make_workloads(
    config: Experiment,
    model: Any,
    catalogue: Catalogue,
    requests: dict[str, dict[tuple, Stratum]],
) -> dict[str, Workload]:
    """The rows of one backbone."""
    index, tokens, num_beams = catalogue.index, catalogue.tokens, config.decoding.num_beams
    length = index.length

    def search(batch: dict[str, np.ndarray]) -> Candidates:
        return _search(model, index, tokens, batch["history"], None, None, num_beams=num_beams)

    def search_unseen(batch: dict[str, np.ndarray]) -> Candidates:
        seen = ExcludeItems(jnp.asarray(batch["seen"]))
        return _search(model, index, tokens, batch["history"], seen, None, num_beams=num_beams)

    def search_mixed(batch: dict[str, np.ndarray]) -> Candidates:
        return _search(model, index, tokens, batch["history"], None, prior(), num_beams=num_beams)

    workloads = {name: Workload(strata, search) for name, strata in requests.items()}
    *_, longest, real = requests  # The rows whose parts and constraint are of interest.
    for name in (longest, real):
        workloads[f"{name}/unseen_only"] = Workload(requests[name], search_unseen)

    ((shape, stratum),) = requests[longest].items()
    prior = functools.cache(lambda: random_prior(shape[0], len(tokens) - 1))
    workloads[f"{longest}/prior"] = Workload(requests[longest], search_mixed)
    filled = functools.cache(lambda: prefill(model, tokens, stratum.batches[0]["history"]))
    parents = np.tile(np.arange(num_beams, dtype=np.int32), (shape[0], 1))
    parts = {
        "prefill": lambda batch: prefill(model, tokens, batch["history"]),
        "steps": lambda batch: beam_search(Prefilled(model), index, filled(), num_beams),
        "forward_only": lambda batch: forward_only(
            model, tokens, batch["history"], parents, length=length
        ),
    }
    if not scores_children(model):
        parts["unconstrained"] = lambda batch: _unconstrained(
            model, tokens, batch["history"], length=length, num_beams=num_beams
        )
    for part, run in parts.items():
        workloads[f"{longest}/{part}"] = Workload({shape: stratum}, run)
    return dict(sorted(workloads.items(), key=lambda row: _place(row[0], requests)))


def random_prior(users: int, num_items: int) -> ItemPrior:
    """Different items a user, as many as there are up to `PRIOR_ITEMS`, of random weights."""
    rng = np.random.default_rng(0)
    count = min(PRIOR_ITEMS, num_items)
    items = [rng.choice(num_items, count, replace=False).astype(np.int32) for _ in range(users)]
    return ItemPrior(jnp.stack(items), jnp.asarray(rng.random((users, count)), jnp.float32))


def _place(name: str, requests: dict[str, Any]) -> int:
    """Rows of one request stand together; otherwise they stay in their order."""
    return list(requests).index(name.split("/")[0])


def measure(
    workloads: dict[str, Workload], dtype: str, seconds: float
) -> tuple[dict[str, dict[str, float]], float, int]:
    """Times all rows in turns: the results by row, the machine's peak in GFLOP/s, compilations while timing."""
    calls: dict[Any, Callable[[], Any]] = {
        (name, shape): benchmarking.in_order(workload.run, stratum.batches)
        for name, workload in workloads.items()
        for shape, stratum in workload.strata.items()
    }
    product, product_gflop = benchmarking.peak_product(dtype)
    calls[PEAK] = product
    timings, compilations = benchmarking.time_in_turns(calls, seconds * len(workloads))
    results = {}
    for name, workload in workloads.items():
        strata = workload.strata
        total = sum(s.count * timings[name, shape].seconds for shape, s in strata.items())
        users = sum(s.examples for s in strata.values())
        results[name] = {
            "users_per_second": users / total,
            "seconds_per_batch": total / sum(s.count for s in strata.values()),
            "compile_seconds": sum(timings[name, shape].compile_seconds for shape in strata),
        }
    return results, product_gflop / timings[PEAK].seconds, compilations


# Programs of the device.


@functools.partial(jax.jit, static_argnames="num_beams")
def _search(
    model: Any,
    index: TrieIndex,
    tokens: jax.Array,
    history: jax.Array,
    seen: ExcludeItems | None,
    prior: ItemPrior | None,
    *,
    num_beams: int,
) -> Candidates:
    read = histories_for(model, tokens, history)
    return beam_search(model, index, read, num_beams, constraint=seen, prior=prior)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
    """A backbone whose histories are encoded already: its `history` is what the model's `prefill` returned."""

    model: Any

    @property
    def scores_children(self) -> bool:
        """See `ChildScorer`."""
        return scores_children(self.model)

    def score_children(self, *inputs: jax.Array) -> jax.Array:
        """See `ChildScorer.score_children`."""
        return self.model.score_children(*inputs)

    def prefill(self, history: tuple) -> tuple:
        """See `Backbone.prefill`."""
        return history

    def step(self, tokens: jax.Array, cache: Cache) -> tuple:
        """See `Backbone.step`."""
        return self.model.step(tokens, cache)

    def reorder(self, cache: Cache, parents: jax.Array) -> Cache:
        """See `Backbone.reorder`."""
        return self.model.reorder(cache, parents)


@functools.partial(jax.jit, static_argnames=("length", "num_beams"))
def _unconstrained(
    model: Any, tokens: jax.Array, history: jax.Array, *, length: int, num_beams: int
) -> tuple[jax.Array, jax.Array]:
    """Last tokens and scores of the beams that are best by the sum of their raw logits."""
    logits, _, cache = model.prefill(histories_for(model, tokens, history))
    batch, vocab_size = logits.shape
    scores, chosen = jax.lax.top_k(logits, min(num_beams, vocab_size))
    parents = jnp.zeros_like(chosen)
    for _ in range(1, length):
        logits, _, cache = model.step(chosen, model.reorder(cache, parents))
        total = (scores[:, :, None] + logits).reshape(batch, -1)
        scores, place = jax.lax.top_k(total, num_beams)
        parents, chosen = place // vocab_size, place % vocab_size
    return chosen, scores


if __name__ == "__main__":
    benchmarking.run(main)
