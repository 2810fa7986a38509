"""The user's own supervised loss, given as `module:name`."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gr.fields import load_own
from gr.training.state import TrainingError
from gr.trie import TrieIndex

# (logits [..., L, V], tokens [..., L], weight [...], normaliser, index) -> (loss [], metrics: name -> []), where
# `weight` is 1 for a target and 0 for padding, and the loss is a weighted sum over targets, divided by `normaliser`.
OwnLoss = Callable[
    [jax.Array, jax.Array, jax.Array, float, TrieIndex], tuple[jax.Array, Mapping[str, jax.Array]]
]
_TYPE = "(logits [..., L, V], tokens [..., L], weight [...], normaliser, index) -> (loss [], metrics: name -> [])"


def load_loss(name: str, known: tuple[str, ...], index: TrieIndex, leading: int) -> OwnLoss:
    """Loads the loss `module:name` and checks it by tracing it on a batch of the index's semantic IDs.

    Args:
        name: see `LossConfig.name`.
        known: the losses of the library.
        index: the trie of the items.
        leading: number of axes of a batch's weights: 1 at target level, 2 at user level.

    Returns:
        A pytree: arrays of the loss, such as those of a `jax.tree_util.Partial`, are arguments of the compiled step.

    Raises:
        TrainingError: if there is no such loss, it cannot be differentiated, or it returns something else.
    """
    own = load_own(name, "loss", known, TrainingError)
    if jax.tree_util.all_leaves([own]):  # A plain function.
        own = jax.tree_util.Partial(own)
    targets, length = (3, 2)[:leading], index.length
    logits = jax.ShapeDtypeStruct((*targets, length, index.vocab_size), jnp.float32)
    tokens = jax.ShapeDtypeStruct((*targets, length), jnp.int32)
    weight = jax.ShapeDtypeStruct(targets, jnp.float32)
    with tracing_own("loss", name, _TYPE):
        found = jax.eval_shape(lambda *args: own(*args, 4.0, index), logits, tokens, weight)
        _check(name, found)
        jax.eval_shape(jax.grad(lambda *args: own(*args, 4.0, index)[0]), logits, tokens, weight)
    return own


@contextlib.contextmanager
def tracing_own(what: str, name: str, kind: str) -> Iterator[None]:
    """Whatever the user's function raises while it is traced in the block becomes one `TrainingError`.

    Args:
        what: what kind of function it is, such as "loss".
        name: its name.
        kind: its type, as text.
    """
    try:
        yield
    except TrainingError:
        raise
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TrainingError(
            f"{what} {name!r} cannot be compiled ({_first_line(error)}): write it with jax.numpy alone, jnp.where in "
            "place of if, no np.asarray, float() or .item()"
        ) from error
    except Exception as error:
        raise TrainingError(
            f"{what} {name!r} raised {_first_line(error)}; a {what} is a function {kind}"
        ) from error


def _check(name: str, found: Any) -> None:
    """Raises TrainingError unless a loss returned the right shapes and types."""
    pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)
    if not pair or not hasattr(found[0], "shape"):
        kind = "one array" if hasattr(found, "shape") else f"a {type(found).__name__}"
        got = f"{kind} instead of a loss and a dictionary of metrics"
    elif found[0].shape or not jnp.issubdtype(found[0].dtype, jnp.floating):
        got = f"the loss {found[0].dtype}{list(found[0].shape)}"
    else:
        wrong = [key for key, value in found[1].items() if getattr(value, "shape", None) != ()]
        if not wrong:
            return
        got = f"the metric {wrong[0]!r} of another shape"
    raise TrainingError(f"loss {name!r} returned {got}; a loss is a function {_TYPE}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")[:200]
