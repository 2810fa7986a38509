"""`VedConfig`: all settings of a value-guided search."""

import dataclasses
from typing import Annotated

from gr.decoding.candidates import DecodingError
from gr.decoding.softmax import CHILDREN, VOCABULARY
from gr.fields import Count, Natural, NotNegative, OneOf, check_fields

VED = "ved"
BEST_FIRST = "best_first"


@dataclasses.dataclass(frozen=True)
class VedConfig:
    """How a value-guided search grows its tree, and its budget; static under `jit`.

    Raises `DecodingError` for a field of a wrong type or out of range.

    Attributes:
        name: which prefixes grow. "ved" (default): descents from the root, as published. "best_first", ours: the codes
            `a` of all prefixes `s` with the highest U(s) + rho log pi(s, a); it needs no initial beams.
        num_candidates: G, semantic IDs returned per user. Default 16; 1 or more.
        budget: maximum number of tokens given to the model per user, besides the history. Default 64; 0 or more, and at
            least the cost of the initial beams.
        initial_beams: beams of the search that starts the tree; 0: the tree starts with the empty prefix. Default 8; 0
            or more.
        entropy_weight: lambda, of the entropy H in nats. Default 0.1; 0 or more.
        prior_weight: rho, of log-probabilities. In a descent it weighs a prefix's log-probability in G; the paper has
            no such term. Default 0; 0 or more, and above 0 for "best_first".
        exploration: beta, of the bonus for few visits. Default 1; 0 or more.
        sampling_temperature: of the draws that decide which of a prefix's codes is tried next; 0: the most probable
            one. Default 1; 0 or more.
        crowding: kappa, ours: a code's priority is lowered by kappa times the logarithm of the number of items behind
            it. The probability of a prefix is split among its items, so one with many items yields few good candidates.
            Default 0; 0 or more.
        width: W, prefixes evaluated at a time; 1 is the sequential algorithm, more use the device better. Default 8; 1
            or more.
        normalise_over: what scores are normalised over; see `beam_search`. "vocabulary" (default) or "children". Over
            "children", codes without an alternative cost nothing. Entropies and sampling are always over the allowed
            children.
    """

    name: Annotated[str, OneOf((VED, BEST_FIRST))] = VED
    num_candidates: Count = 16
    budget: Natural = 64
    initial_beams: Natural = 8
    entropy_weight: NotNegative = 0.1
    prior_weight: NotNegative = 0.0
    exploration: NotNegative = 1.0
    sampling_temperature: NotNegative = 1.0
    crowding: NotNegative = 0.0
    width: Count = 8
    normalise_over: Annotated[str, OneOf((VOCABULARY, CHILDREN))] = VOCABULARY

    def __post_init__(self):
        check_fields(self, "search.", DecodingError)
        if self.name == BEST_FIRST and not self.prior_weight:
            raise DecodingError(
                f"search.name={BEST_FIRST!r} tries codes in the order of their log-probabilities: set "
                "search.prior_weight above 0"
            )

    @property
    def max_prefixes(self) -> int:
        """Most prefixes in a tree, the empty one included."""
        return self.budget + 1

    @property
    def capacity(self) -> int:
        """C, places of a tree: there is always room for the next step's prefixes."""
        return self.max_prefixes + max(self.width, self.initial_beams)

    @property
    def beams_fit(self) -> bool:
        """Whether there are initial beams, and W is enough for them."""
        return 0 < self.initial_beams <= self.width

    def check_budget(self, length: int) -> None:
        """Raises DecodingError unless the budget pays for the initial beams over `length` codes."""
        least = self.initial_beams * (length - 1)
        if self.budget < least:
            raise DecodingError(
                f"budget={self.budget} must be at least {least}, what a beam search with "
                f"{self.initial_beams} beams over {length} codes takes: raise it or lower initial_beams"
            )
