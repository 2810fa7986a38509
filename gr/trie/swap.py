"""`SwappableIndex`: the index that a server decodes with, replaced while it is in use."""

import threading

import jax

from gr.trie.index import TrieIndex
from gr.trie.layout import TrieError
from gr.trie.overlay import OverlaidIndex


class SwappableIndex:
    """Holds the current index; `swap` replaces it at once for every decoding that begins afterwards.

    A decoding takes the index with `get` and keeps it to its end, so it never sees a mixture of two. The new index is
    on the device before `get` returns it, and has the layout of the old one, so no decoding waits for a transfer or a
    compilation. Safe to use from several threads.

    An `ItemMask` belongs to the index that it was made for, and is refused on the next one. So take the index once per
    request, and make the mask for that index; `ExcludeItems` and `AttributeFilter` go with every index:

        index = server.get()
        beam_search(model, index, history, num_beams=20, constraint=ItemMask.allow(index, items))

    Keep a mask that many requests share beside its index, and make it anew when `get` returns another index.
    """

    def __init__(self, index: TrieIndex | OverlaidIndex):
        _check(index)
        self._current = (jax.block_until_ready(index), 0)
        self._swapping = threading.Lock()

    def get(self) -> TrieIndex | OverlaidIndex:
        """The current index."""
        return self._current[0]

    @property
    def version(self) -> int:
        """How often the index was replaced."""
        return self._current[1]

    def swap(self, index: TrieIndex | OverlaidIndex, *, recompile: bool = False) -> int:
        """Replaces the index.

        Args:
            index: the new one.
            recompile: whether it may have another layout, for which decoding compiles once more.

        Returns:
            Its version.

        Raises:
            TrieError: if the layout is another and `recompile` is false, or it is no index; the old one then stays.
        """
        _check(index)
        with self._swapping:
            old, version = self._current
            if not recompile and _signature(index) != _signature(old):
                raise TrieError(
                    "the new index has another layout, so that decoding would compile anew: build it with "
                    "`layout=old.layout` (and the first one with `headroom`), or allow it with recompile=True"
                )
            # One assignment: another thread sees the old pair or the new one, never a mixture.
            self._current = (jax.block_until_ready(jax.device_put(index)), version + 1)
            return version + 1


def _check(index: TrieIndex | OverlaidIndex) -> None:
    if not isinstance(index, TrieIndex | OverlaidIndex):
        raise TrieError(
            f"the index must be a TrieIndex or an OverlaidIndex (`EditableIndex.index`), got {type(index).__name__}"
        )


def _signature(index: TrieIndex | OverlaidIndex) -> tuple:
    """Everything by which `jit` distinguishes programs."""
    leaves, structure = jax.tree.flatten(index)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
