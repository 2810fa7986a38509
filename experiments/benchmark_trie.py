r"""Measures the cost of constraining a beam search to a set of semantic IDs: our trie, its floor, and other methods.

    python -m experiments.benchmark_trie --num_items=1e6 --vocab_size=2048 --length=8 --batch=16 --beams=70 \
        --json=FILE [--methods=ours,published_csr] [--seconds=10]

Items are random; logits are replayed: all methods of a case decode the same few sets of standard normal logits, which
are passed as arguments, in one process, with methods timed in alternation. Rows:

* `floor`: the log-sum-exps of all logits, without any search;
* `unconstrained`: beam search without a trie;
* `ours`; and under a constraint `ours_attribute_filter` (each user any of 2 and none of 1 out of 8 attributes),
  `ours_item_mask` (a random half of the items, the mask made beforehand), `ours_exclude` (64 items per user);
* `published_csr`: the published trie (`experiments.benchmarks.trie_csr`);
* `cpu_trie`, `hash_bitmap`, `ppv_exact`, `ppv_approx`: masks (`experiments.benchmarks.trie_baselines`).

Before anything is timed, what ours decodes is checked: valid, distinct, in the set, allowed by the constraint, and
with the scores of `ppv_exact`, which is exact as well.

Each size may be a list, which makes a sweep: the first values are the base case, and each further value of a size is
measured with all others at the base. The file's top level then describes the base case, and `cases` all of them.
Figures are drawn beside it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks import benchmarking, trie_report
from experiments.benchmarks.benchmarking import FLAGS
from experiments.benchmarks.trie_baselines import ReplayedModel, masked_search, normalisers
from experiments.benchmarks.trie_cases import (
    AXES,
    FAST,
    SLOW,
    Case,
    read_cases,
    read_methods,
    reason_to_skip,
)
from experiments.benchmarks.trie_corpus import (
    NUM_ATTRIBUTES,
    NUM_CANDIDATES,
    Corpus,
    measure_index,
    peak_rss_gib,
)
from experiments.benchmarks.trie_csr import published_search
from experiments.errors import one_line_errors, run_main
from gr.decoding import Candidates, DecodingError, beam_search
from gr.trie import AttributeFilter, ExcludeItems

_SETS = 5  # Of logits.
_MOST_LOGITS = 2 << 30  # Bytes of all sets; two are made in any case.
_WARM_UP = "warm-up"
_EXCLUDED = 64  # Items per user.
_TOLERANCE = 1e-3  # Between scores, sums of L float32 log-probabilities in another order.

Call = Callable[[ReplayedModel], Any]


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs the main with its flags; they are defined here, so that importing defines none."""
    sizes = {"num_items": "1e6", "vocab_size": "2048", "length": "8", "batch": "2", "beams": "70"}
    for axis in AXES:
        flags.DEFINE_list(axis, [sizes[axis]], "A number such as 1e6, or several for a sweep.")
    flags.DEFINE_list(
        "methods", [], "Rows to measure besides the floor; all that can run if empty."
    )
    flags.DEFINE_integer("tokens_per_beam", 30, "Of published_csr at its second step.", 1)
    flags.DEFINE_float("seconds", 10.0, "Time spent on each group of rows; three rounds at least.")
    flags.DEFINE_integer("seed", 0, "Of items and logits.", 0)
    flags.DEFINE_string("json", None, "File to write the measurements to.")
    flags.mark_flag_as_required("json")
    run_main(main)


@one_line_errors
def main(argv: list[str]) -> None:
    """One set of items after the other, each with all its cases; tables, file and figures."""
    del argv
    cases = read_cases({axis: getattr(FLAGS, axis) for axis in AXES})
    methods, on = read_methods(FLAGS.methods), benchmarking.machine()
    print(benchmarking.machine_line(on))
    results: dict[Case, dict[str, Any]] = {}
    for sizes in dict.fromkeys(case.corpus for case in cases):
        corpus = Corpus(*sizes, FLAGS.seed)
        of_index = measure_index(corpus)
        for case in cases:
            if case.corpus == sizes:
                results[case] = measure(case, corpus, methods) | of_index
                results[case]["peak_rss_gib"] = peak_rss_gib()
                if "published_csr" in results[case]["ms_per_step"]:
                    size = corpus.published.nbytes / corpus.num_items
                    results[case]["published_bytes_per_item"] = size
                print("\n" + trie_report.method_table(case, results[case]))
    measured = [results[case] for case in cases]
    print("\n" + trie_report.index_table(cases, measured))
    print(
        "\nmedians of rounds; hash_bitmap, ppv and cpu_trie are timed apart from the others, each group beside a floor "
        "of its own.\nbuild: from unsorted tokens; mask: a new ItemMask; peak: of the process so far."
    )
    print(f"peak memory {peak_rss_gib():.1f} GiB")
    content = dict(measured[0])
    if len(cases) > 1:
        content["cases"] = measured
    benchmarking.write(on, content)
    for figure in trie_report.draw(FLAGS.json, cases, measured):
        print(f"wrote {figure}")


# Measuring one case.


def measure(case: Case, corpus: Corpus, methods: Sequence[str]) -> dict[str, Any]:
    """Times all methods of a case that can run."""
    reasons = {method: reason_to_skip(method, case, bool(FLAGS.methods)) for method in methods}
    skipped = {method: why for method, why in reasons.items() if why is not None}
    for method, why in skipped.items():
        print(f"{method} is skipped at {case}: {why}", flush=True)
    requests = Requests(case, corpus)
    calls = {method: requests.call(method) for method in methods if method not in skipped}
    models = replayed_models(case)
    check(calls, requests, same_for_all_beams(models[0]))

    timings, floors, compilations = {}, {}, 0
    for group in (FAST, SLOW):
        names = [method for method in calls if method in group]
        if not names:
            continue
        # A slow method leaves cold caches and sleeping threads to the next one: the first floor is thrown away.
        names = [_WARM_UP, "floor", *(name for name in names if name != "floor")]
        # Every call takes the next set of logits, so that none finds in a cache what the one before has read. No two
        # rounds of a method see the same set where the numbers of methods and of sets have no common divisor.
        count = max(n for n in range(1, len(models) + 1) if math.gcd(n, len(names)) == 1)
        turn = itertools.cycle(models[:count])
        measured, compiled = benchmarking.time_in_turns(
            {
                name: functools.partial(
                    _call_next, calls["floor" if name == _WARM_UP else name], turn
                )
                for name in names
            },
            FLAGS.seconds,
        )
        for name in names[1:]:
            timings.setdefault(name, measured[name])
            floors.setdefault(name, measured["floor"].seconds)
        compilations += compiled
    milliseconds = {method: 1e3 * timings[method].seconds for method in calls}
    return {
        "case": {axis: getattr(case, axis) for axis in AXES},
        "ms_per_step": {method: ms / case.length for method, ms in milliseconds.items()},
        "ms_per_decode": milliseconds,
        "ratio_to_floor": {m: timings[m].seconds / floors[m] for m in milliseconds},
        "rounds": {method: timings[method].calls for method in milliseconds},
        "skipped": skipped,
        "compilations_while_timing": compilations,
    }


def _call_next(call: Call, models: Any) -> Any:
    return call(next(models))


def replayed_models(case: Case) -> list[ReplayedModel]:
    """A few sets of standard normal logits."""
    first = (case.batch, case.vocab_size)
    later = (case.batch, case.beams, case.vocab_size)
    shapes = [first] + [later] * (case.length - 1)
    size = 4 * sum(map(math.prod, shapes))
    rng = np.random.default_rng(FLAGS.seed + 3)
    return [
        ReplayedModel(
            tuple(jax.device_put(rng.standard_normal(shape, np.float32)) for shape in shapes)
        )
        for _ in range(max(2, min(_SETS, _MOST_LOGITS // size)))
    ]


def same_for_all_beams(model: ReplayedModel) -> ReplayedModel:
    """The logits of each user's first beam, for all their beams.

    Replayed logits belong to a beam's place, and searches differ in where they keep a beam. Scores can be compared only
    if the places do not matter.
    """
    first, *later = model.logits
    later = [jnp.broadcast_to(logits[:, :1], logits.shape) for logits in later]
    return ReplayedModel((first, *later))


class Requests:
    """The requests of one case: a call for each method, and the items that it may return."""

    def __init__(self, case: Case, corpus: Corpus):
        self.case, self.corpus = case, corpus
        self.history = jnp.zeros((case.batch, 1), jnp.int32)
        rng = np.random.default_rng(FLAGS.seed + 4)
        self.excluded = rng.integers(corpus.num_items, size=(case.batch, _EXCLUDED), dtype=np.int32)
        order = np.argsort(rng.random((case.batch, NUM_ATTRIBUTES)), axis=1)
        self.any_of = order < 2
        self.none_of = order == 2

    def call(self, method: str) -> Call:
        """A call that decodes a set of logits by a method, with its index built beforehand."""
        corpus, history, num_beams = self.corpus, self.history, self.case.beams
        search = functools.partial(beam_search, history=history, num_beams=num_beams)
        if method == "floor":
            return normalisers
        if method == "ours":
            return functools.partial(search, index=corpus.index)
        if method == "ours_item_mask":
            return functools.partial(search, index=corpus.index, constraint=corpus.item_mask)
        if method == "ours_exclude":
            exclude = ExcludeItems(jnp.asarray(self.excluded))
            return functools.partial(search, index=corpus.index, constraint=exclude)
        if method == "ours_attribute_filter":
            wanted = AttributeFilter(
                any_of=jnp.asarray(self.any_of), none_of=jnp.asarray(self.none_of)
            )
            return functools.partial(search, index=corpus.index_with_attributes, constraint=wanted)
        if method == "published_csr":
            return functools.partial(
                published_search,
                trie=corpus.published,
                history=history,
                num_beams=num_beams,
                tokens_per_beam=FLAGS.tokens_per_beam,
            )
        baseline = {
            "unconstrained": lambda: None,
            "hash_bitmap": lambda: corpus.hash_bitmap,
            "cpu_trie": lambda: corpus.cpu_trie,
            "ppv_exact": lambda: corpus.verification(None),
            "ppv_approx": lambda: corpus.verification(NUM_CANDIDATES),
        }[method]()
        return functools.partial(
            masked_search,
            baseline=baseline,
            history=history,
            length=self.case.length,
            num_beams=num_beams,
        )

    def allowed(self, method: str, items: np.ndarray) -> np.ndarray:
        """Whether items `[B, ...]` may be returned by a method, `[B, ...]` bool."""
        if method == "ours_item_mask":
            return self.corpus.allowed_items[items]
        flat = items.reshape(len(items), -1)
        if method == "ours_exclude":
            good = (flat[:, :, None] != self.excluded[:, None, :]).all(-1)
        elif method == "ours_attribute_filter":
            has = self.corpus.attributes[flat]
            good = (has & self.any_of[:, None]).any(-1) & ~(has & self.none_of[:, None]).any(-1)
        else:
            good = np.ones(flat.shape, bool)
        return good.reshape(items.shape)


# Checking.


def check(calls: dict[str, Call], requests: Requests, model: ReplayedModel) -> None:
    """Compares what ours decodes with the set of items and with `ppv_exact`, where that runs.

    Args:
        calls: what will be timed.
        requests: what may be returned.
        model: logits that do not depend on a beam's place.

    Raises:
        DecodingError: if anything is wrong; then no time is worth measuring.
    """
    for method, call in calls.items():
        if method.startswith("ours"):
            found = jax.tree.map(np.asarray, call(model))
            check_candidates(method, found, requests)
            if method == "ours" and "ppv_exact" in calls:
                exact = np.asarray(calls["ppv_exact"](model).scores)
                check_scores(found.scores, exact)


def check_candidates(method: str, found: Candidates, requests: Requests) -> None:
    """Raises DecodingError unless all valid candidates are distinct, in the set, and allowed."""
    tokens = requests.corpus.tokens
    if method == "ours":
        # Every prefix can be completed, so that a beam is only missing where there are too few semantic IDs.
        expected = min(requests.case.beams, requests.corpus.index.num_nodes[-1])
        if not (found.valid.sum(axis=1) == expected).all():
            raise DecodingError(
                f"{method} found {found.valid.sum(axis=1)} candidates, not {expected}"
            )
    for candidates, valid in zip(found.tokens, found.valid, strict=True):
        if len(np.unique(candidates[valid], axis=0)) != valid.sum():
            raise DecodingError(f"{method} returned a semantic ID twice")
    is_item = found.items >= 0
    items = np.where(is_item, found.items, 0)
    if not (is_item.any(-1) == found.valid).all():
        raise DecodingError(f"{method} returned a candidate without an item, or an item too many")
    if not ((tokens[items] == found.tokens[:, :, None]).all(-1) | ~is_item).all():
        raise DecodingError(f"{method} returned a semantic ID that is not its item's")
    if not (requests.allowed(method, items) | ~is_item).all():
        raise DecodingError(f"{method} returned an item that its constraint forbids")


def check_scores(ours: np.ndarray, exact: np.ndarray) -> None:
    """Raises DecodingError unless scores `[B, M]` are those of the other exact search, where it has as many beams."""
    width = min(ours.shape[1], exact.shape[1])
    if not np.allclose(ours[:, :width], exact[:, :width], rtol=0, atol=_TOLERANCE):
        raise DecodingError("the scores of ours and of ppv_exact, which are both exact, differ")


if __name__ == "__main__":
    run(main)
