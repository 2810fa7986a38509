"""One call for every decoder, chosen by a config: beam search, sampling, tree searches."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from gr.decoding.beam import beam_search
from gr.decoding.candidates import Candidates
from gr.decoding.prior import ALLOWED
from gr.decoding.sampling import sample_without_replacement
from gr.decoding.softmax import CHILDREN, VOCABULARY
from gr.decoding.ved import ved_search
from gr.decoding.ved_config import BEST_FIRST, VED, VedConfig
from gr.decoding.ved_step import ValueHead
from gr.fields import OneOf
from gr.memory import ItemPrior
from gr.models import TreeBackbone, scores_children
from gr.trie import Constraint, ShardedIndex, TrieIndex

BEAM = "beam"
SAMPLE = "sample"
SEARCHES = (BEAM, SAMPLE, VED, BEST_FIRST)


@dataclasses.dataclass(frozen=True)
class SearchConfig(VedConfig):
    """Which search proposes candidates, and its budget; static under `jit`.

    All other fields are those of `VedConfig`. Beam search and sampling use only `name`, `num_candidates` (also their
    width) and `normalise_over`.

    Raises `DecodingError` for a field of a wrong type or out of range.

    Attributes:
        name: "beam"; "sample": stochastic beam search; "ved" (default): value-guided search as published; "best_first":
            ours.
        normalise_over: as in `VedConfig`; "" (default): the caller decides.
    """

    name: Annotated[str, OneOf(SEARCHES)] = VED
    normalise_over: Annotated[str, OneOf(("", VOCABULARY, CHILDREN))] = ""

    @property
    def is_tree_search(self) -> bool:
        """Whether this is a tree search, which uses a value head, a budget and the fields of `VedConfig`."""
        return self.name in (VED, BEST_FIRST)

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "SearchConfig":
        """The search of a saved config, also of an older one in which both tree searches had one name."""
        fields = dict(saved)
        if fields.pop("selection", "descent") == BEST_FIRST and fields.get("name", VED) == VED:
            fields["name"] = BEST_FIRST
        return cls(**fields)


# The settings behind a decoder's name on the command line; candidates and budget come on top.
PRESETS = {
    BEAM: SearchConfig(BEAM),
    SAMPLE: SearchConfig(SAMPLE),
    VED: SearchConfig(VED),  # As published.
    # Ours, with the settings that find the target most often: codes without an alternative cost no token, the others
    # are tried in order of value and probability.
    BEST_FIRST: SearchConfig(
        BEST_FIRST,
        initial_beams=0,
        entropy_weight=0.0,
        prior_weight=0.5,
        exploration=0.0,
        sampling_temperature=0.0,
        crowding=0.25,
        width=8,
        normalise_over=CHILDREN,
    ),
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
    temperature: float | None = None,
    normalise_over: str = VOCABULARY,
    prior: ItemPrior | None = None,
    prior_weight: float | jax.Array = 0.5,
    prior_over: str = ALLOWED,
    keep_tree: bool = False,
    keep_beams: bool = False,
) -> Candidates:
    """The candidates of each user by the configured search; `evaluations` is always filled in.

    Args:
        config: the search.
        backbone: see `beam_search`; for tree searches see `ved_search`.
        value_head: guides a tree search; None: V = 0. Other searches ignore it.
        index: the trie.
        history: see `beam_search`.
        key: random key; beam search uses none.
        constraint: see `beam_search`.
        temperature: see `beam_search`.
        normalise_over: normalisation of scores, if the config leaves it open; see `beam_search`. Sampling is always
            among the children.
        prior: see `beam_search`, `sample_without_replacement` and `ved_search`.
        prior_weight: see `beam_search`; not the config's field of that name.
        prior_over: see `beam_search`.
        keep_beams: whether beam search returns the nodes that were in the beam after each step.
        keep_tree: whether a tree search returns its tree.

    Raises:
        DecodingError: see the searches.
    """
    shared = {
        "constraint": constraint,
        "temperature": temperature,
        "prior": prior,
        "prior_weight": prior_weight,
        "prior_over": prior_over,
    }
    if not config.normalise_over:
        config = dataclasses.replace(config, normalise_over=normalise_over)
    if config.is_tree_search:
        return ved_search(
            backbone, value_head, index, history, config, key=key, keep_tree=keep_tree, **shared
        )
    count = config.num_candidates
    if config.name == BEAM:
        found = beam_search(
            backbone,
            index,
            history,
            count,
            normalise_over=config.normalise_over,
            keep_beams=keep_beams,
            **shared,
        )
        evaluations = beam_evaluations(backbone, index, count)
    else:
        found = sample_without_replacement(backbone, index, history, count, key=key, **shared)
        # One more beam for the threshold; codes without an alternative are not evaluated.
        evaluations = _evaluations(index.node_counts, count + 1, index.layout.unique_depth)
    return dataclasses.replace(
        found, evaluations=jnp.full(len(found.tokens), evaluations, jnp.int32)
    )


def beam_evaluations(backbone: Any, index: TrieIndex | ShardedIndex, width: int) -> jax.Array:
    """Tokens that beam search gives a model for a user, if no constraint empties beams."""
    # A child scorer gives an only child probability 1 and does not evaluate it.
    length = index.layout.unique_depth if scores_children(backbone) else index.length
    return _evaluations(index.node_counts, width, length)


def _evaluations(node_counts: jax.Array, width: int, length: int) -> jax.Array:
    """Tokens that `width` beams evaluate for `length` codes, if no constraint empties beams."""
    return jnp.minimum(width, node_counts[1:length]).sum()
