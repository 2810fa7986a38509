"""One call for all decoders that may propose candidates, chosen by a config: beam search, sampling, VED."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr.decoding.beam import beam_search
from gr.decoding.candidates import Candidates, DecodingError
from gr.decoding.choose import CHILDREN, VOCABULARY, check_normalisation
from gr.decoding.evaluate import ValueHead
from gr.decoding.sampling import sample_without_replacement
from gr.decoding.selection import BEST_FIRST, DESCENT, Weights, check_selection
from gr.decoding.ved import ved_search
from gr.models import TreeBackbone
from gr.trie import Constraint, TrieIndex

SEARCHES = ("beam", "sample", "ved")
_NOT_NEGATIVE = (
    "budget",
    "initial_beams",
    "entropy_weight",
    "prior_weight",
    "exploration",
    "sampling_temperature",
    "crowding",
)


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Which candidates are proposed, and at what cost; static under `jit`.

    Raises `DecodingError` for a name that is unknown or a number that cannot work.
    """

    name: str = "ved"  # "beam"; "sample": stochastic beam search; "ved": value-guided search.
    num_candidates: int = 16  # G, also the width of "beam" and "sample".
    # The rest is for "ved"; see `ved_search`.
    budget: int = 64
    initial_beams: int = 8
    selection: str = DESCENT
    entropy_weight: float = 0.1
    prior_weight: float = 0.0
    exploration: float = 1.0
    sampling_temperature: float = 1.0
    crowding: float = 0.0
    width: int = 8
    normalise_over: str = ""  # "": as the caller says.

    def __post_init__(self):
        if self.name not in SEARCHES:
            raise DecodingError(
                f"search.name={self.name!r} is unknown: use one of {', '.join(SEARCHES)}"
            )
        for field in ("num_candidates", "width"):
            if getattr(self, field) < 1:
                raise DecodingError(f"search.{field}={getattr(self, field)} must be at least 1")
        for field in _NOT_NEGATIVE:
            if not 0 <= getattr(self, field) < math.inf:
                raise DecodingError(
                    f"search.{field}={getattr(self, field)} must not be negative, and finite"
                )
        weights = Weights(self.entropy_weight, self.prior_weight, self.exploration)
        check_selection(self.selection, weights)
        if self.normalise_over:
            check_normalisation(self.normalise_over)


# What a decoder's name on a command line stands for, besides candidates and budget.
PRESETS = {
    "beam": SearchConfig("beam"),
    "sample": SearchConfig("sample"),
    # What finds the target most often: no token for codes without an alternative, the others in the order of value
    # and probability.
    "ved": SearchConfig(
        "ved",
        initial_beams=0,
        selection=BEST_FIRST,
        entropy_weight=0.0,
        prior_weight=0.5,
        exploration=0.0,
        sampling_temperature=0.0,
        crowding=0.25,
        width=8,
        normalise_over=CHILDREN,
    ),
    "ved_descent": SearchConfig("ved"),  # As published.
}


def search(
    config: SearchConfig,
    backbone: TreeBackbone,
    value_head: ValueHead | None,
    index: TrieIndex,
    history: Any,
    *,
    key: jax.Array,
    constraint: Constraint | Sequence[Constraint] | None = None,
    temperature: float = 1.0,
    normalise_over: str = VOCABULARY,
    keep_tree: bool = False,
    keep_beams: bool = False,
) -> Candidates:
    """The candidates of each user by the configured search, with `evaluations` filled in whichever it is.

    Args:
        config: which search.
        backbone: see `beam_search`; for VED see `ved_search`.
        value_head: guides VED; None: V = 0. Other searches do not look at it.
        index: the trie.
        history: see `beam_search`.
        key: of the random numbers; a beam search has none.
        constraint: see `beam_search`.
        temperature: see `beam_search`.
        normalise_over: what scores are normalised over, if the config does not say; see `beam_search`. Sampling is
            always among the children.
        keep_tree: whether VED returns its tree.
        keep_beams: whether beam search returns the nodes that were in the beam after each step.

    Raises:
        DecodingError: see the searches.
    """
    shared = {"constraint": constraint, "temperature": temperature}
    normalise_over = config.normalise_over or normalise_over
    if config.name == "ved":
        return ved_search(
            backbone,
            value_head,
            index,
            history,
            key=key,
            budget=config.budget,
            num_candidates=config.num_candidates,
            initial_beams=config.initial_beams,
            selection=config.selection,
            entropy_weight=config.entropy_weight,
            prior_weight=config.prior_weight,
            exploration=config.exploration,
            sampling_temperature=config.sampling_temperature,
            crowding=config.crowding,
            width=config.width,
            normalise_over=normalise_over,
            keep_tree=keep_tree,
            **shared,
        )
    count = config.num_candidates
    if config.name == "beam":
        found = beam_search(
            backbone,
            index,
            history,
            count,
            normalise_over=normalise_over,
            keep_beams=keep_beams,
            **shared,
        )
        evaluations = _beam_evaluations(index, count, index.length)
    else:
        found = sample_without_replacement(backbone, index, history, count, key=key, **shared)
        # One beam more for the threshold; codes that are the only ones are not evaluated.
        evaluations = _beam_evaluations(index, count + 1, index.layout.settled)
    return dataclasses.replace(
        found, evaluations=jnp.full(len(found.codes), evaluations, jnp.int32)
    )


def _beam_evaluations(index: TrieIndex, width: int, length: int) -> jax.Array:
    """Tokens that so many beams give the model for `length` codes, where no constraint empties them."""
    return jnp.minimum(width, index.node_counts[1:length]).sum()
