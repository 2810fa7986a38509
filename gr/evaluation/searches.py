"""Decodes the targets of a split with any search that proposes candidates, on a budget of token evaluations."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gr.data import Sequences, Targets
from gr.decoding import SearchConfig, search
from gr.decoding.softmax import as_temperature
from gr.evaluation.evaluators import decoded_by_target
from gr.evaluation.rankings import EvaluationError
from gr.trie import ExcludeItems, TrieIndex


@dataclasses.dataclass(frozen=True)
class Searched:
    """What a search finds for each of n targets, in the targets' order."""

    items: np.ndarray  # [n, G, C] int32 item rows, best semantic ID first, -1-padded.
    tokens: np.ndarray  # [n, G, L] int32.
    scores: np.ndarray  # [n, G] float32 log-probabilities, -inf where there is no candidate.
    evaluations: np.ndarray  # [n] int32: tokens that the model was given, besides the history.


_ROUNDS = 6  # VED must be able to learn from some prefixes which are next.


def equal_budget(search: SearchConfig, budget: int, code_length: int) -> SearchConfig:
    """The search with at most `budget` tokens a user to spend on semantic IDs of L codes.

    A beam search gives the model L - 1 tokens a beam, so it has M = budget // (L - 1) beams. Sampling has as many, of
    which one yields the threshold and no candidate; VED returns M candidates, and evaluates no more than a sixth of its
    budget at once.

    Args:
        search: has all else, such as one of `PRESETS`.
        budget: tokens.
        code_length: L.

    Raises:
        EvaluationError: if L = 1, where nothing is spent, or if the budget does not pay for two beams.
    """
    if code_length < 2 or budget < 2 * (code_length - 1):
        raise EvaluationError(
            f"a budget of {budget} tokens does not pay for two beams over {code_length} codes: give at least "
            "2 (L - 1), and L > 1"
        )
    beams = budget // (code_length - 1)
    return dataclasses.replace(
        search,
        budget=budget,
        width=max(1, min(search.width, budget // _ROUNDS)),
        num_candidates=beams - (search.name == "sample"),
        initial_beams=min(search.initial_beams, beams),
    )


def search_targets(
    config: SearchConfig,
    model: Any,
    value_head: Any | None,
    index: TrieIndex,
    tokens: jax.Array,
    sequences: Sequences,
    targets: Targets,
    *,
    key: jax.Array,
    max_history: int,
    buckets: int | Sequence[int],
    batch_size: int = 128,
    exclude_seen: bool = True,
    temperature: float = 1.0,
    normalise_over: str = "vocabulary",
    progress: bool = False,
) -> Searched:
    """Searches the candidates of every target from its history.

    Args:
        config: which search.
        model: a backbone.
        value_head: guides VED; None: entropy alone does.
        index: the trie of the items.
        tokens: `item_token_table` `[N + 1, L]`.
        sequences: the data.
        targets: what to predict.
        key: of the random numbers.
        max_history: see `decode_targets`, also for the arguments below.
        buckets: padded history lengths, or how many of them.
        batch_size: users decoded at once.
        exclude_seen: whether items of the user's whole history may not be decoded.
        temperature: of the model's distribution.
        normalise_over: "vocabulary" or "children"; sampling is always among the children.
        progress: whether to show a progress bar.

    Raises:
        EvaluationError: see `decode_targets`.
    """
    temperature = as_temperature(temperature)

    def decode(batch: Mapping[str, np.ndarray], excluded: ExcludeItems | None) -> tuple:
        # The first row of a batch is real, so its number tells the batches apart.
        of_batch = jax.random.fold_in(key, int(batch["rows"][0]))
        return _search(
            model,
            value_head,
            index,
            tokens,
            batch["history"],
            excluded,
            of_batch,
            temperature,
            config=config,
            normalise_over=normalise_over,
        )

    return Searched(
        *decoded_by_target(
            decode,
            sequences,
            targets,
            max_history=max_history,
            buckets=buckets,
            batch_size=batch_size,
            exclude_seen=exclude_seen,
            progress=progress,
        )
    )


@functools.partial(jax.jit, static_argnames=("config", "normalise_over"))
def _search(
    model: Any,
    value_head: Any | None,
    index: TrieIndex,
    tokens: jax.Array,
    history: jax.Array,
    excluded: ExcludeItems | None,
    key: jax.Array,
    temperature: jax.Array | None,
    *,
    config: SearchConfig,
    normalise_over: str,
) -> tuple[jax.Array, ...]:
    found = search(
        config,
        model,
        value_head,
        index,
        tokens[history],
        key=key,
        constraint=excluded,
        temperature=1.0 if temperature is None else temperature,
        normalise_over=normalise_over,
    )
    return found.items, found.tokens, found.scores, found.evaluations, found.bad_step
