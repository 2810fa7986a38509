"""What the processes of one run have to agree on: who writes, what they start from, when they stop.

With one process, which is the usual case, nothing is exchanged and nothing is waited for.
"""

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gr.training.mesh import settle, shard_batch

T = TypeVar("T")
_BARRIERS = itertools.count()  # All processes pass the same barriers in the same order.
_LONGEST_WAIT_MS = (
    24 * 3600 * 1000
)  # A process that has ended is noticed by its missing heartbeats.


def is_first() -> bool:
    """Whether this process writes what a run writes once, and shows its progress."""
    return jax.process_index() == 0


def wait_for_all() -> None:
    """Returns when all processes have called it, however long that takes; CPU devices would wait half a minute."""
    if jax.process_count() > 1:
        barrier = ocp.multihost.get_barrier_sync_fn()
        barrier(key=f"gr_{next(_BARRIERS)}", timeout_ms=_LONGEST_WAIT_MS)


def first_then_others(make: Callable[[], T], read: Callable[[], T]) -> T:
    """What `make` gives in the first process; when it is done, the other processes `read` what it has left."""
    made = make() if is_first() else None
    wait_for_all()
    return made if is_first() else read()


def texts_of_all(text: str) -> list[str]:
    """Every process's text, in the processes' order."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size))
    padded = np.pad(own, (0, int(sizes.max()) - own.size))
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def as_in_first(tree: Any) -> Any:
    """A tree of arrays with the values of the first process; arrays that already span processes stay.

    What each process computes for itself, such as a start from item vectors, may differ in its last digits.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    mine = [place for place, leaf in enumerate(leaves) if leaf.is_fully_addressable]
    data = [_plain(leaves[place]) for place in mine]
    for place, values in zip(mine, multihost_utils.broadcast_one_to_all(data), strict=True):
        leaves[place] = _like(leaves[place], values)
    return jax.tree.unflatten(structure, leaves)


def _plain(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(leaf: jax.Array, values: np.ndarray) -> jax.Array:
    if _is_key(leaf):
        return jax.random.wrap_key_data(values, impl=jax.random.key_impl(leaf))
    return jax.device_put(values, leaf.sharding)


def _is_key(leaf: jax.Array) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


class Agreement:
    """Whether any process has been told to stop, with the same answer in all of them after the same step."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._before: jax.Array | None = None  # [], of the step before.
        # The first exchange of CPU devices connects them, and fails if a process comes half a minute late.
        wait_for_all()
        texts_of_all("")
        self.on(False)

    def on(self, told: bool) -> bool:
        """To be called once a step, in all processes.

        Args:
            told: whether this process has been told to stop.

        Returns:
            Whether all shall stop now. Among several processes this is what they were told a step before, so that the
            devices have work while the host waits for the answer.
        """
        if not self._mesh.is_multi_process:
            return told
        flags = np.full(len(self._mesh.local_devices), told, np.int32)
        before, self._before = self._before, _any(shard_batch(flags, self._mesh))
        settle(self._before, self._mesh)
        return before is not None and bool(jax.device_get(before))


@jax.jit
def _any(flags: jax.Array) -> jax.Array:
    return flags.max()
