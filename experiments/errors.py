"""What all mains share: quiet libraries, and one line for an error that the user can mend."""

import functools
from collections.abc import Callable, Sequence

from absl import logging

from gr.data import DataError
from gr.decoding import DecodingError
from gr.evaluation import EvaluationError
from gr.losses import LossError
from gr.models import ModelError
from gr.semantic_ids import SemanticIdError
from gr.training import TrainingError, TrainingInterrupted
from gr.trie import TrieError

_MENDABLE = (
    DataError,
    DecodingError,
    EvaluationError,
    LossError,
    ModelError,
    SemanticIdError,
    TrainingError,
    TrainingInterrupted,
    TrieError,
)


def one_line_errors(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """Wraps an absl main: `error: MESSAGE` and exit status 1 for what the message says how to mend."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise SystemExit(f"error: unknown arguments: {' '.join(argv[1:])}")
        logging.set_verbosity(logging.WARNING)  # Orbax tells every file that it writes.
        try:
            main(argv)
        except _MENDABLE as error:
            raise SystemExit(f"error: {error}") from error

    return wrapped
