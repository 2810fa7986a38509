"""Beam search over an index that is split over devices, against the same search over the whole index."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gr.decoding import beam_search, sharded_beam_search
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
        for num_beams in (5, 320) if name in ("none", "exclude", "attributes") else (5,):
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

WITH_CHILD_SCORES = """
import dataclasses, json
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from gr.decoding import DecodingError, ItemPrior, beam_search, sharded_beam_search, sharded_mask
from gr.models import ItemDecoder, ItemDecoderConfig, ItemHistory
from gr.training import make_mesh
from gr.trie import AttributeFilter, ExcludeItems, ItemMask, ShardedIndex, TrieIndex
from scorers import TableScorer
from test_sharded import check

VOCAB, LENGTH, USERS, ITEMS = 12, 3, 4, 600
rng = np.random.default_rng(0)
tokens = np.minimum(rng.geometric(0.2, (ITEMS, LENGTH)) - 1, VOCAB - 1)  # Skewed, with duplicates.
attributes = rng.random((ITEMS, 5)) < 0.5
draw = lambda *shape: jnp.asarray(rng.random(shape) < 0.6)
seen = ExcludeItems(jnp.asarray(rng.integers(-1, ITEMS, (USERS, 80))))
wanted = AttributeFilter(none_of=jnp.asarray(np.eye(5)[rng.integers(5, size=USERS)] > 0))
prior = ItemPrior(rng.integers(-1, ITEMS + 9, (USERS, 30)), rng.random((USERS, 30)).astype(np.float32))
mixed = {"prior": prior, "prior_weight": np.array([0.0, 0.3, 0.6, 0.9], np.float32)}
mesh = make_mesh(data=2, model=3)

# A child's logit is hidden[token] + nodes[row]: of the wrong rows nothing would agree.
history, one, kinds = jnp.arange(USERS)[:, None], draw(ITEMS), []
table = jnp.asarray(rng.normal(size=(USERS, LENGTH, VOCAB, VOCAB)) * 2, jnp.float32)

@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScorerByUser(TableScorer):
    def prefill(self, history):
        table = self.table[history[:, 0]]
        return None, table[:, 0, 0], (0, table)
    def step(self, tokens, cache):
        depth, table = cache[0] + 1, cache[1]
        return None, table[jnp.arange(len(tokens))[:, None], depth, tokens], (depth, table)
    def reorder(self, cache, parents):
        return cache

whole = TrieIndex.build(tokens, VOCAB, attributes=attributes, headroom=0.5)
index = ShardedIndex.build(tokens, VOCAB, mesh, attributes=attributes, layout=whole.layout)
np.testing.assert_array_equal(index.node_counts, whole.node_counts)
assert index.layout == whole.layout
kinds.append([level.kind for level in whole.layout.levels])
rows = np.asarray(rng.normal(size=whole.layout.node_offsets[-1]) * 2, np.float32)
model = ScorerByUser(table, jnp.asarray(rows))
plain = (seen, wanted, ItemMask.build(whole, one))
sharded = (seen, wanted, sharded_mask(index, one, mesh=mesh))
check(model, whole, index, history, ITEMS, mesh, plain, sharded)
broken = dataclasses.replace(model, table=table.at[1, 1].set(jnp.nan).at[2, 0].set(jnp.inf))
found = sharded_beam_search(broken, index, history, ITEMS, mesh=mesh, constraint=sharded)
assert found.bad_step.tolist() == [-1, 1, 0, -1], found.bad_step

# The default model, small.
whole = TrieIndex.build(tokens, VOCAB, listed=True)
index = ShardedIndex.build(tokens, VOCAB, mesh, listed=True)
kinds.append([level.kind for level in whole.layout.levels])
sizes = dict(zip(("num_first", "num_nodes"), np.array(whole.layout.node_offsets)[[1, LENGTH]].tolist()))
config = ItemDecoderConfig(
    vocab_size=VOCAB, code_length=LENGTH, num_items=ITEMS, d_model=8, num_heads=2, d_ff=8, head="trie",
    num_facets=2, item_share=0.5, num_layers=1, **sizes,
)
model = jax.tree.map(
    lambda x: x + jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), ItemDecoder(config, rngs=nnx.Rngs(0))
)
read = rng.integers(ITEMS, size=(USERS, 5)).astype(np.int32)
history = ItemHistory(jnp.asarray(read), jnp.asarray(tokens, jnp.int32)[read])
seen = ExcludeItems(history.rows)
check(model, whole, index, history, 9, mesh, seen, seen, temperature=0.7, **mixed)
messages = []
for other, options in (
    (ShardedIndex.build(tokens[:-5], VOCAB, mesh), {}), (index, {"num_groups": 2}),
):
    try:
        sharded_beam_search(model, other, history, 4, mesh=mesh, **options)
    except DecodingError as error:
        messages.append(str(error))
print(json.dumps({"kinds": kinds, "messages": messages}))
"""


def check(model, whole, index, history, num_beams, mesh, plain=None, sharded=None, **options):
    """The search of a sharded index finds what that of the whole one finds; of both, how many candidates."""
    expected = beam_search(model, whole, history, num_beams, constraint=plain, **options)
    found = sharded_beam_search(
        model, index, history, num_beams, mesh=mesh, constraint=sharded, **options
    )
    assert (np.asarray(expected.bad_step) < 0).all() and np.asarray(expected.valid).sum() > 20
    for field in ("valid", "bad_step"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
    scores = np.where(expected.valid, expected.scores, -1e9)
    close = np.abs(np.diff(scores, axis=1, prepend=np.inf, append=np.nan)) < 1e-5
    alone = ~(close[:, 1:] | close[:, :-1]) & expected.valid  # Rounding cannot exchange them.
    assert alone.sum() > 0.8 * expected.valid.sum()
    np.testing.assert_array_equal(found.tokens[alone], expected.tokens[alone])
    most = found.items.shape[2]  # The whole index may have room for more.
    np.testing.assert_array_equal(found.items[alone], expected.items[alone][:, :most])


def on_eight_devices(program):
    """What a program prints as JSON."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    here = Path(__file__).resolve().parent
    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
            ),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": flags,
        },
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def measured():
    return on_eight_devices(ON_EIGHT_DEVICES)


def test_results_are_those_of_the_whole_index_under_every_constraint(measured):
    # Compared inside; here, that there was something to compare.
    assert len(measured["compared"]) == 2 + 10 + 4
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


def test_models_that_score_children_are_searched_as_on_the_whole_index():
    told = on_eight_devices(WITH_CHILD_SCORES)  # Compared inside.
    assert len(set(map(tuple, told["kinds"]))) == 2
    assert "the depths of this index end at" in told["messages"][0]
    assert "num_groups=2 cannot be combined with an item tower" in told["messages"][1]


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
