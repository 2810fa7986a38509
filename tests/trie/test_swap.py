"""An index replaced while other threads decode with it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr.decoding import beam as beam_module
from gr.decoding import beam_search
from gr.testing import TableModel
from gr.trie import (
    AttributeFilter,
    EditableIndex,
    ExcludeItems,
    ItemMask,
    SwappableIndex,
    TrieError,
    TrieIndex,
)

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


# Constraints of requests to an index that is replaced, as docs/trie.md has it.

ALLOWED = list(range(12))
SEEN = [[0, 1, 2, 59], [3]]
REGION = np.random.default_rng(2).random((60, 2)) < 0.6


def versions_with_attributes():
    """The items in two orders: a semantic ID belongs to another item in the second."""
    first = TrieIndex.build(TOKENS, VOCAB, attributes=REGION, headroom=0.5)
    second = TrieIndex.build(
        TOKENS[::-1], VOCAB, attributes=REGION, headroom=0.5, layout=first.layout
    )
    return first, second


def request(index, mask):
    wanted = AttributeFilter(any_of=[[True, False], [False, True]])
    constraint = (mask, wanted, ExcludeItems(SEEN))
    return beam_search(model(), index, jnp.zeros((2, 1)), 64, constraint=constraint)


def permitted(user):
    return {item for item in ALLOWED if REGION[item, user] and item not in SEEN[user]}


def returned(found, user):
    return {item for item in np.asarray(found.items[user]).ravel().tolist() if item >= 0}


def test_a_request_makes_its_mask_for_the_index_that_it_took():
    first, second = versions_with_attributes()
    server = SwappableIndex(first)
    index = server.get()
    mask = ItemMask.allow(index, ALLOWED)
    server.swap(second)
    # What began with the first index ends with it.
    for user in range(2):
        assert returned(request(index, mask), user) == permitted(user)
    # A later request meets the second one, for which the old mask is none.
    with pytest.raises(TrieError, match=r"made for another index .*server\.get\(\)"):
        request(server.get(), mask)
    index = server.get()
    compiled = beam_module._beam_search._cache_size()
    for user in range(2):
        assert returned(request(index, ItemMask.allow(index, ALLOWED)), user) == permitted(user)
    assert beam_module._beam_search._cache_size() == compiled
    # Back to an equal index, the mask that was kept is good again.
    server.swap(versions_with_attributes()[0])
    assert returned(request(server.get(), mask), 0) == permitted(0)


def test_masks_shared_by_threads_never_let_a_forbidden_item_through():
    versions = versions_with_attributes()
    server = SwappableIndex(versions[0])
    kept = {"mask": ItemMask.allow(server.get(), ALLOWED)}
    request(server.get(), kept["mask"])

    def serve(_):
        for _ in range(12):
            index = server.get()
            try:
                found = request(index, kept["mask"])
            except TrieError:  # The index was replaced: make the shared mask anew.
                mask = kept["mask"] = ItemMask.allow(index, ALLOWED)
                found = request(index, mask)
            for user in range(2):
                assert returned(found, user) == permitted(user)

    with ThreadPoolExecutor(4) as pool:
        served = [pool.submit(serve, number) for number in range(3)]
        for version in range(1, 21):
            server.swap(versions[version % 2])
        server.swap(versions[1])
        for future in served:
            future.result()  # Raises what was raised.
    with pytest.raises(TrieError, match="another index"):
        request(server.get(), ItemMask.allow(versions[0], ALLOWED))


def test_what_is_no_index_is_not_served():
    editable = EditableIndex.build(TOKENS, VOCAB)
    with pytest.raises(TrieError, match=r"EditableIndex\.index"):
        SwappableIndex(editable)
    server = SwappableIndex(editable.index)
    with pytest.raises(TrieError, match="got EditableIndex"):
        server.swap(editable)
    assert server.get() is editable.index
