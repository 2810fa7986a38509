"""Constrained generative retrieval and recommendation in JAX and Flax NNX.

The rooms, in the order in which data moves through them (a module imports only from rooms above its own):
`data`, `semantic_ids`, `trie`, `memory`, `models`, `decoding`, `losses`, `training`, `rl`, `evaluation`, `reports`,
`runs`, `testing`. Each is imported when it is first used: `import gr` alone takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gr.errors import GrError

if TYPE_CHECKING:  # What `__getattr__` gives, with its types.
    from gr import (  # noqa: F401
        data,
        decoding,
        evaluation,
        losses,
        memory,
        models,
        reports,
        rl,
        runs,
        semantic_ids,
        training,
        trie,
    )

__version__ = "0.2.0"

ROOMS = (
    "data",
    "semantic_ids",
    "trie",
    "memory",
    "models",
    "decoding",
    "losses",
    "training",
    "rl",
    "evaluation",
    "reports",
    "runs",
    "testing",
)

__all__ = ["ROOMS", "GrError", "__version__", *ROOMS]


def __getattr__(name: str) -> Any:
    """A room, imported on first use."""
    if name in ROOMS:
        return importlib.import_module(f"gr.{name}")
    raise AttributeError(f"module 'gr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
