"""Beam search over an index that is split over devices, against the same search over the whole index."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gr.trie import TrieError
from gr.trie.sharding import _split_by_first_token

ON_EIGHT_DEVICES = """
import dataclasses, json
import jax, jax.numpy as jnp, numpy as np
from gr.decoding import DecodingError, ItemPrior, beam_search, sharded_beam_search, sharded_mask
from gr.training import make_mesh
from gr.trie import AttributeFilter, ExcludeItems, ItemMask, ShardedIndex, TrieError, TrieIndex

VOCAB, LENGTH, USERS, ITEMS = 12, 3, 4, 300

@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelByUser:
    table: jax.Array  # [users, L, V, V]; the history of a user is his number.
    def prefill(self, history):
        table = self.table[history[:, 0]]
        return table[:, 0, 0], None, (0, table)
    def step(self, tokens, cache):
        depth, table = cache[0] + 1, cache[1]
        return table[jnp.arange(len(tokens))[:, None], depth, tokens], None, (depth, table)
    def reorder(self, cache, parents):
        return cache

rng = np.random.default_rng(0)
model = ModelByUser(jnp.asarray(rng.normal(size=(USERS, LENGTH, VOCAB, VOCAB)) * 2, jnp.float32))
history = jnp.arange(USERS)[:, None]
tokens = np.minimum(rng.geometric(0.15, (ITEMS, LENGTH)) - 1, VOCAB - 1)  # Skewed, with duplicates.
attributes = rng.random((ITEMS, 5)) < 0.5
draw = lambda *shape: jnp.asarray(rng.random(shape) < 0.4)
one, each = draw(ITEMS), draw(USERS, ITEMS)
seen = ExcludeItems(jnp.asarray(rng.integers(-1, ITEMS, (USERS, 80))))
wanted = AttributeFilter(any_of=draw(USERS, 5), none_of=draw(USERS, 5))
whole = TrieIndex.build(tokens, VOCAB, attributes=attributes)
compared, kinds, split = [], [], []
for data, shards in ((1, 8), (2, 4)):
    mesh = make_mesh(data=data, model=shards)
    index = ShardedIndex.build(tokens, VOCAB, mesh, attributes=attributes)
    kinds.append([level.kind for level in index.shards.layout.levels])
    for leaf in jax.tree.leaves(index):
        split.append(leaf.addressable_shards[0].data.nbytes * shards == leaf.nbytes)
    requests = {
        "none": (None, None),
        "exclude": (seen, seen),
        "attributes": (wanted, wanted),
        "mask": (ItemMask.build(whole, one), sharded_mask(index, one, mesh=mesh)),
        "mask per user": (ItemMask.build(whole, each), sharded_mask(index, each, mesh=mesh)),
        "two": ((seen, ItemMask.build(whole, one)), (seen, sharded_mask(index, one, mesh=mesh))),
        "nothing": (ItemMask.build(whole, one & False), sharded_mask(index, one & False, mesh=mesh)),
    }
    if data == 1:
        requests = {"none": (None, None)}
    for name, (plain, sharded) in requests.items():
        for num_beams in (5,) if name.startswith("mask") else (5, 320):
            expected = beam_search(model, whole, history, num_beams, constraint=plain)
            found = sharded_beam_search(model, index, history, num_beams, mesh=mesh, constraint=sharded)
            for field in ("tokens", "items", "valid"):
                np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), err_msg=name)
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
            compared.append([name, num_beams, int(found.valid.sum())])
over = {"normalise_over": "children", "temperature": 1.5}
expected = beam_search(model, whole, history, 5, constraint=seen, **over)
found = sharded_beam_search(model, index, history, 5, mesh=mesh, constraint=seen, **over)
np.testing.assert_array_equal(found.tokens, expected.tokens)
np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
prior = ItemPrior(rng.integers(-1, ITEMS + 9, (USERS, 30)), rng.random((USERS, 30)).astype(np.float32))
shares = np.array([0.0, 0.3, 0.9, 1.0], np.float32)
masked = ((seen, ItemMask.build(whole, one)), (seen, sharded_mask(index, one, mesh=mesh)))
for plain, sharded, share, over in (
    (None, None, 0.5, "allowed"), (seen, seen, shares, "all"), (wanted, wanted, shares, "allowed"),
    (*masked, shares, "all"),
):
    mixed = {"prior": prior, "prior_weight": share, "prior_over": over}
    expected = beam_search(model, whole, history, 9, constraint=plain, **mixed)
    found = sharded_beam_search(model, index, history, 9, mesh=mesh, constraint=sharded, **mixed)
    for field in ("tokens", "items", "valid"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), err_msg=over)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    without = beam_search(model, whole, history, 9, constraint=plain)
    differ = (found.tokens != without.tokens).any((1, 2))
    compared.append(["prior", 9, int(differ.sum())])
messages = []
try:
    sharded_beam_search(model, index, history, 5, mesh=mesh, prior=ItemPrior(prior.items[:2], prior.weights[:2]))
except DecodingError as error:
    messages.append(str(error))
try:
    sharded_beam_search(model, index, history, 5, mesh=make_mesh(data=1, model=8))
except DecodingError as error:
    messages.append(str(error))
try:
    sharded_beam_search(model, index, history, 5, mesh=mesh, constraint=ExcludeItems(jnp.zeros((2, 1), jnp.int32)))
except DecodingError as error:
    messages.append(str(error))
swapped = ShardedIndex.build(tokens[::-1], VOCAB, mesh, attributes=attributes)
for mask in (sharded_mask(swapped, one, mesh=mesh), ItemMask.build(whole, one)):
    try:
        sharded_beam_search(model, index, history, 5, mesh=mesh, constraint=(seen, mask))
    except TrieError as error:
        messages.append(str(error))
try:
    beam_search(model, whole, history, 5, constraint=sharded_mask(index, one, mesh=mesh))
except TrieError as error:
    messages.append(str(error))
again = ShardedIndex.build(tokens, VOCAB, mesh, attributes=attributes)
kept = sharded_mask(again, np.asarray(one), mesh=mesh)
found = sharded_beam_search(model, index, history, 5, mesh=mesh, constraint=kept)
assert np.asarray(one)[np.asarray(found.items)[np.asarray(found.items) >= 0]].all() and found.valid.any()
unknown = jax.jit(lambda mask, index: sharded_beam_search(model, index, history, 5, mesh=mesh, constraint=mask))
assert not unknown(kept, swapped).valid.any() or swapped.shards.layout != index.shards.layout
print(json.dumps({"compared": compared, "kinds": kinds, "split": split, "messages": messages}))
"""


@pytest.fixture(scope="module")
def measured():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    process = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": flags,
        },
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_results_are_those_of_the_whole_index_under_every_constraint(measured):
    # Compared inside; here, that there was something to compare.
    assert len(measured["compared"]) == 2 + 12 + 4
    for name, num_beams, count in measured["compared"]:
        assert (count == 0) == (name == "nothing"), (name, num_beams)


def test_every_array_is_split_over_the_devices(measured):
    assert measured["split"] and all(measured["split"])
    assert all("scan" in kinds for kinds in measured["kinds"])


def test_bad_requests_get_one_clear_error(measured):
    assert "the prior is for 1 users, the history for 2" in measured["messages"][0]
    assert "has 4 shards, mesh axis 'model' has 8 devices" in measured["messages"][1]
    assert "the constraint is for 1 users, the history for 2" in measured["messages"][2]
    assert len(measured["messages"]) == 6
    for message in measured["messages"][3:]:
        assert "the ItemMask was made for another index" in message


def test_shards_hold_consecutive_first_tokens_and_about_as_many_items():
    first = np.repeat(np.arange(10), [50, 5, 5, 40, 30, 1, 1, 1, 30, 37])
    owner = _split_by_first_token(first[:, None], 4)
    assert (np.diff(owner) >= 0).all()
    for token in range(10):
        assert len(set(owner[first == token])) == 1
    assert np.bincount(owner).tolist() == [50, 50, 63, 37]


def test_every_shard_gets_a_token_however_skewed():
    for counts in ([1000, 1, 1, 1], [1, 1, 1, 1000], [1, 1000, 1, 1], [5, 5, 5, 5, 5]):
        first = np.repeat(np.arange(len(counts)), counts)
        assert sorted(set(_split_by_first_token(first[:, None], 4))) == [0, 1, 2, 3]


def test_too_few_first_tokens_are_one_clear_error():
    with pytest.raises(TrieError, match="2 different first tokens cannot be split over 4 shards"):
        _split_by_first_token(np.array([[0], [1], [1]]), 4)
