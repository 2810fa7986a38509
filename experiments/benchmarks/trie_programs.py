"""The trie benchmark's searches as programs to be compiled without being run: ours, the published one, their floors."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.benchmarks.trie_baselines import ReplayedModel, normalisers
from experiments.benchmarks.trie_cases import AXES, Case, reason_to_skip
from experiments.benchmarks.trie_corpus import Corpus
from experiments.benchmarks.trie_csr import published_search
from gr.decoding import Candidates, beam_search
from gr.runs.programs import Program
from gr.training import replicate
from gr.trie import TrieIndex

TRIE = "trie"


def trie_programs(cases: Sequence[Case], tokens_per_beam: int, seed: int) -> dict[str, Program]:
    """For each case ours, `.../published`, and floors: the normalisation of the logits alone, in several forms.

    * `.../floor`: log-sum-exps of logits `[B, M, V]`;
    * `.../floor_flat`: the same of logits that lie in memory as `[B * M, V]`;
    * `.../floor_relative`: less the largest logit, which is what a softmax has to know. A TPU's compiler makes one
      operation of it, where the others read the logits twice.

    Args:
        cases: the first is called `trie`, the others `trie/AXIS=SIZE` by what they differ in.
        tokens_per_beam: of the published search.
        seed: of the items.
    """
    programs: dict[str, Program] = {}
    corpora: dict[tuple, Corpus] = {}
    for case in cases:
        corpus = corpora.setdefault(case.corpus, Corpus(*case.corpus, seed))
        name = "/".join([TRIE, *_differences(case, cases[0])])
        logits = _logits(case, flat=False)
        floors = {
            f"{name}/floor": Program(_lowering(normalisers, logits)),
            f"{name}/floor_flat": Program(_lowering(normalisers, _logits(case, flat=True))),
            f"{name}/floor_relative": Program(_lowering(relative_normalisers, logits)),
        }
        ours = _lowering(_ours(case), logits, lambda c=corpus: c.index)
        programs |= {name: Program(ours, tuple(floors)), **floors}
        why = reason_to_skip("published_csr", case, named=True)
        if why:
            print(f"{name}/published is skipped: {why}")
            continue
        published = _lowering(
            _published(case, tokens_per_beam), logits, lambda c=corpus: c.published
        )
        programs[f"{name}/published"] = Program(published, tuple(floors))
    return programs


@jax.jit
def relative_normalisers(model: ReplayedModel) -> list[jax.Array]:
    """Log-sum-exps of all logits of a decode, each less its largest logit."""
    return [
        jnp.log(jnp.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1))
        for logits in model.logits
    ]


def _differences(case: Case, base: Case) -> list[str]:
    return [
        f"{axis}={getattr(case, axis)}"
        for axis in AXES
        if getattr(case, axis) != getattr(base, axis)
    ]


def _logits(case: Case, flat: bool) -> ReplayedModel:
    """A decode's logits, of no memory; those of all later steps are laid out alike."""
    beams = (case.batch * case.beams,) if flat else (case.batch, case.beams)
    shapes = [(case.batch, case.vocab_size)] + [(*beams, case.vocab_size)] * (case.length - 1)
    return ReplayedModel(tuple(np.broadcast_to(np.float32(0), shape) for shape in shapes))


def _lowering(
    search: Any, logits: ReplayedModel, *make: Callable[[], Any]
) -> Callable[[Mesh], jax.stages.Lowered]:
    """Lowers a search of these logits and, made only now, an index."""
    return lambda mesh: search.lower(
        replicate(logits, mesh), *(replicate(index(), mesh) for index in make)
    )


def _ours(case: Case) -> Any:
    @jax.jit
    def ours(model: ReplayedModel, index: TrieIndex) -> Candidates:
        return beam_search(model, index, _history(case), case.beams)

    return ours


def _published(case: Case, tokens_per_beam: int) -> Any:
    @jax.jit
    def published(model: ReplayedModel, trie: Any) -> Any:
        return published_search(
            model,
            trie,
            _history(case),
            num_beams=case.beams,
            tokens_per_beam=tokens_per_beam,
        )

    return published


def _history(case: Case) -> jax.Array:
    return jnp.zeros((case.batch, 1), jnp.int32)
