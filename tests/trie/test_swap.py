"""An index replaced while other threads decode with it."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_model import TableModel

from gr.decoding import beam as beam_module
from gr.decoding import beam_search
from gr.trie import SwappableIndex, TrieError, TrieIndex

VOCAB = 6
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (60, 3))


def indexes():
    """Two disjoint halves of the items in one layout."""
    first = TrieIndex.build(TOKENS, VOCAB, headroom=0.5)
    layout = first.layout
    even = TrieIndex.build(TOKENS[0::2], VOCAB, items=np.arange(0, 60, 2), layout=layout)
    odd = TrieIndex.build(TOKENS[1::2], VOCAB, items=np.arange(1, 60, 2), layout=layout)
    return even, odd


def model():
    table = np.random.default_rng(1).normal(size=(2, 3, VOCAB, VOCAB))
    return TableModel(jnp.asarray(table, jnp.float32))


def items_of(found):
    return np.asarray(found.items).tolist()


def test_every_decoding_sees_one_index_and_none_compiles_anew():
    even, odd = indexes()
    decode = lambda index: beam_search(model(), index, jnp.zeros((2, 1)), 8)  # noqa: E731
    expected = [items_of(decode(even)), items_of(decode(odd))]
    assert expected[0] != expected[1]
    compiled = beam_module._beam_search._cache_size()
    current, results, stop = SwappableIndex(even), [], threading.Event()

    def keep_decoding():
        while not stop.is_set():
            results.append(items_of(decode(current.get())))

    threads = [threading.Thread(target=keep_decoding) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(1, 41):
        assert current.swap(odd if version % 2 else even) == version
    while len(results) < 30:
        pass
    stop.set()
    for thread in threads:
        thread.join()
    assert all(result in expected for result in results)
    assert current.version == 40
    assert items_of(decode(current.get())) == expected[0]
    assert beam_module._beam_search._cache_size() == compiled


def test_an_index_of_another_layout_is_refused_unless_allowed():
    even, _ = indexes()
    other = TrieIndex.build(TOKENS[:20], VOCAB)
    current = SwappableIndex(even)
    with pytest.raises(TrieError, match="another layout"):
        current.swap(other)
    assert current.get() is even and current.version == 0
    assert current.swap(other, recompile=True) == 1
    assert jax.tree.structure(current.get()) == jax.tree.structure(other)
