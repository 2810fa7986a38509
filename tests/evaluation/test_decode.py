import dataclasses
import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from gr.data import DataError, Histories, Sequences, Targets
from gr.decoding import PRESETS, Candidates, DecodingError, SearchConfig
from gr.evaluation import EvaluationError, equal_budget
from gr.evaluation import decode as decode_module
from gr.evaluation.decode import (
    Decoded,
    check_finite,
    decode_targets,
    distinct_items,
    fetched,
    prefix_hits,
)
from gr.models import DecoderOnly, DecoderOnlyConfig
from gr.training import make_mesh
from gr.trie import Catalogue, ShardedIndex, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

VOCAB, LENGTH, ITEMS = 8, 2, 30
BEAMS, MAX_HISTORY, BUCKETS, BATCH_SIZE = 4, 4, (2, 4), 4

# Users' sequences; the last item of each is to be predicted. 7 targets make a last batch of 3; histories of 1 to 8
# items, half of them longer than what the model sees.
LENGTHS = (3, 9, 2, 6, 4, 8, 5)


@functools.cache
def make_model():
    config = DecoderOnlyConfig(VOCAB, LENGTH, d_model=16, num_heads=2, d_ff=16, num_layers=1)
    shapes = jax.eval_shape(lambda: DecoderOnly(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32), shapes)


@functools.cache
def make_tokens():
    """Semantic IDs `[N, L]`; items 0 and 1 share one, the others are distinct."""
    chosen = np.random.default_rng(0).choice(6**LENGTH, ITEMS, replace=False)
    tokens = np.stack(np.unravel_index(chosen, (6,) * LENGTH), axis=1) + 2
    tokens[1] = tokens[0]
    return tokens


@functools.cache
def make_catalogue():
    return Catalogue.build(TrieIndex.build(make_tokens(), VOCAB), make_tokens())


@functools.cache
def make_sequences():
    rng = np.random.default_rng(2)
    items = np.concatenate([rng.permutation(ITEMS)[:n] for n in LENGTHS]).astype(np.int32)
    return Sequences(
        items=items,
        offsets=np.cumsum([0, *LENGTHS]),
        user_ids=np.array([f"u{u}" for u in range(len(LENGTHS))]),
        item_ids=np.array([f"i{i}" for i in range(ITEMS)]),
    )


ALL = tuple(range(len(LENGTHS)))


BEAM_SEARCH = SearchConfig("beam", num_candidates=BEAMS)


def decode(sequences, targets, *, config=BEAM_SEARCH, model=None, **options):
    options = {"score_targets": True, "buckets": BUCKETS} | options
    return decode_targets(
        config,
        model or make_model(),
        make_catalogue(),
        sequences,
        targets,
        max_history=MAX_HISTORY,
        batch_size=BATCH_SIZE,
        **options,
    )


def last_items(users=ALL):
    users = np.asarray(users, np.int32)
    return Targets(users=users, positions=make_sequences().offsets[users + 1] - 1)


@functools.cache
def decode_all(exclude_seen=True):
    return decode(make_sequences(), last_items(), exclude_seen=exclude_seen)


@functools.cache
def log_probs_of_prefixes(user):
    """`log_prob(prefix) -> [V]` of one user, from the teacher-forced logits of every item."""
    seen = make_sequences().of(user)[:-1][-MAX_HISTORY:]
    history = np.zeros((ITEMS, MAX_HISTORY, LENGTH), int)
    history[:, : len(seen)] = make_tokens()[seen]
    logits = np.asarray(forward(make_model(), history, make_tokens()))
    table = {}
    for sid, of_sid in zip(make_tokens().tolist(), logits, strict=True):
        for depth in range(LENGTH):
            table[tuple(sid[:depth])] = oracles.log_softmax(of_sid[depth])
    return table.__getitem__


forward = jax.jit(lambda model, *inputs: model.target_logits(*inputs))


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_every_target_is_decoded_as_by_the_oracle(exclude_seen):
    found = decode_all(exclude_seen)
    tokens = make_tokens()
    by_sid = oracles.items_by_sid(tokens)
    assert found.items.shape == (len(LENGTHS), BEAMS, 2)  # Two items share a semantic ID.
    for user in ALL:
        *seen, target = make_sequences().of(user).tolist()
        excluded = seen if exclude_seen else []
        log_prob = log_probs_of_prefixes(user)
        demands = oracles.excluding(excluded)
        beams = oracles.beam_search(tokens, log_prob, BEAMS, demands)
        items = [[item for item in by_sid[sid] if item not in excluded] for _, sid in beams]
        assert [[item for item in row if item >= 0] for row in found.items[user].tolist()] == items
        np.testing.assert_allclose(found.scores[user], [score for score, _ in beams], atol=1e-4)

        sid = tuple(tokens[target].tolist())
        expected = [log_prob(sid[:depth])[sid[depth]] for depth in range(LENGTH)]
        np.testing.assert_allclose(found.log_probs[user], expected, atol=1e-4)
        hits = [
            sid[:depth]
            in [p for _, p in oracles.beam_search(tokens[:, :depth], log_prob, BEAMS, demands)]
            for depth in range(1, LENGTH + 1)
        ]
        assert found.prefix_hits[user].tolist() == hits
    valid = found.scores > -np.inf
    np.testing.assert_array_equal(found.tokens[valid], tokens[found.items.max(-1)[valid]])
    assert 0 < found.prefix_hits.mean() < 1  # The comparison saw both.


def test_results_stand_in_the_order_of_the_targets_whatever_the_batch():
    whole = decode_all(exclude_seen=False)
    orders = [(user,) for user in ALL] + [(5, 0, 3), ALL[::-1]]
    for users in orders:
        part = decode(make_sequences(), last_items(users), exclude_seen=False)
        for name in ("items", "prefix_hits"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[list(users)])
        for name in ("scores", "log_probs"):
            np.testing.assert_allclose(
                getattr(part, name), getattr(whole, name)[list(users)], atol=1e-5
            )


def test_seen_items_are_never_decoded_also_those_beyond_what_the_model_sees():
    free = decode_all(exclude_seen=False)
    sequences, favourites = make_sequences(), {}
    items = sequences.items.copy()
    for user in (1, 3, 5):  # Their first item is more than `MAX_HISTORY` before the target.
        favourites[user] = items[sequences.offsets[user]] = free.items[user, 0, 0]
    sequences = dataclasses.replace(sequences, items=items)

    still_free = decode(sequences, last_items(), exclude_seen=False)
    np.testing.assert_array_equal(still_free.items, free.items)
    found = decode(sequences, last_items(), exclude_seen=True)
    for user in ALL:
        history = set(sequences.of(user)[:-1].tolist())
        assert not history & set(found.items[user].ravel().tolist())
        assert user not in favourites or favourites[user] in history


@pytest.mark.parametrize("name", ["sample", "ved"])
def test_any_search_scores_the_targets_alike_and_only_beam_search_has_a_beam(name):
    config = equal_budget(PRESETS[name], 2 * BEAMS, LENGTH)
    found = decode(make_sequences(), last_items(), config=config, key=jax.random.key(0))
    np.testing.assert_allclose(found.log_probs, decode_all().log_probs, atol=1e-5)
    assert found.prefix_hits is None
    unscored = decode(make_sequences(), last_items(), score_targets=False)
    np.testing.assert_array_equal(unscored.items, decode_all().items)
    assert unscored.log_probs is None and unscored.prefix_hits is None
    with pytest.raises(EvaluationError, match=f"search '{config.name}' draws .* give their `key`"):
        decode(make_sequences(), last_items(), config=config)


def test_several_targets_of_one_user_each_have_their_own_history():
    start, end = make_sequences().offsets[1:3]
    targets = Targets(users=np.full(8, 1, np.int32), positions=np.arange(start + 1, end)[::-1])
    found = decode(make_sequences(), targets)
    for row, position in enumerate(targets.positions):
        history = make_sequences().items[start:position].tolist()
        assert not set(history) & set(found.items[row].ravel().tolist())
    np.testing.assert_allclose(found.log_probs[0], decode_all().log_probs[1], atol=1e-5)


def test_results_do_not_depend_on_how_many_users_with_long_histories_share_a_batch(monkeypatch):
    monkeypatch.setattr(decode_module, "_MANY", 1)  # Batches of 4 users, of 1 who has seen more.
    found, whole = decode(make_sequences(), last_items()), decode_all()
    np.testing.assert_array_equal(found.items, whole.items)
    np.testing.assert_allclose(found.scores, whole.scores, atol=1e-5)


ON_FOUR_DEVICES = """
import dataclasses, functools, re
import jax, numpy as np
import test_decode
from gr.decoding import SearchConfig
from gr.evaluation import decode as decode_module
from gr.memory import ItemPrior
from gr.training import make_mesh
from gr.trie import ItemMask
from test_decode import ITEMS, decode, last_items, make_catalogue, make_sequences

def prior(rows):
    items = np.where(rows[:, None] < 0, 0, rows[:, None] * 3 + np.arange(3)).astype(np.int32)
    return ItemPrior(items, np.ones(items.shape, np.float32)), np.full(len(rows), 0.3, np.float32)

allowed = ItemMask.allow(make_catalogue().index, np.arange(2, ITEMS))
options = {"prior": prior, "allowed": allowed, "buckets": (4,)}
mesh, texts, on_mesh = make_mesh(data=2, model=2), [], decode_module.decode_on_mesh

def watched(*arguments, **static):
    if not texts:
        texts.append(on_mesh.lower(*arguments, **static).compile().as_text())
    found = on_mesh(*arguments, **static)
    users = len(jax.tree.leaves(arguments[3])[0])
    for leaf in jax.tree.leaves(found):
        assert {len(shard.data) for shard in leaf.addressable_shards} == {users // 4}
    return found

decode_module.decode_on_mesh = watched
one = decode(make_sequences(), last_items(), **options)
for few in (1024, 1):  # With batches of 4 users a device, and of 1 for those who have seen more.
    decode_module._MANY = few
    found = decode(make_sequences(), last_items(), mesh=mesh, **options)
    for field in dataclasses.fields(one):
        mine, other = getattr(one, field.name), getattr(found, field.name)
        np.testing.assert_allclose(mine, other, atol=1e-5, err_msg=field.name)
assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", *texts)

decode_module._MANY, same = 1024, last_items(np.full(8, 3))
for name in ("sample", "ved"):  # With the numbers that one device draws for all of the batch.
    config = SearchConfig(name, num_candidates=3, budget=12, initial_beams=2, sampling_temperature=1.0)
    drawn = functools.partial(
        decode, make_sequences(), same, config=config, key=jax.random.key(0), score_targets=False
    )
    test_decode.BATCH_SIZE = 2
    found = drawn(mesh=mesh)
    test_decode.BATCH_SIZE = 8
    one = drawn()
    np.testing.assert_array_equal(found.tokens, one.tokens)
    np.testing.assert_allclose(found.scores, one.scores, atol=1e-5)
    if name == "sample":  # The best that a tree search finds may be the same for all.
        assert (found.tokens[:4] != found.tokens[4:]).any()
"""


@pytest.mark.long
def test_each_device_decodes_its_own_users():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_a_batch_holds_of_the_seen_does_not_grow_with_one_long_history():
    """Of the batches of one user with 20,000 items, one with the same 10 again and again, and 500 others."""
    rng, num_items = np.random.default_rng(0), 30_000
    rows = [rng.permutation(num_items)[:20_000], np.arange(20_000) % 10]
    rows += [rng.integers(num_items, size=6) for _ in range(500)]
    sequences = Sequences(
        items=np.concatenate(rows).astype(np.int32),
        offsets=np.cumsum([0, *map(len, rows)]),
        user_ids=np.arange(len(rows)).astype(str),
        item_ids=np.arange(num_items).astype(str),
    )
    users = np.arange(len(rows), dtype=np.int32)
    targets = Targets(users=users[::-1], positions=sequences.offsets[1:][::-1] - 1)
    shapes = []

    def decode(batch, excluded):
        shapes.append(excluded.items.shape)
        for row, items in zip(batch["rows"], excluded.items, strict=True):
            user = targets.users[row]
            assert row < 0 or set(items[items >= 0].tolist()) == set(rows[user][:-1].tolist())
        return batch["users"], np.full(len(batch["rows"]), -1)

    found = decode_module.decoded_by_target(
        decode,
        sequences,
        targets,
        max_history=5,
        buckets=(5,),
        batch_size=128,
        exclude_seen=True,
        progress=False,
    )
    assert found.tolist() == targets.users.tolist()
    assert sorted(set(shapes)) == [(2, 65536), (128, 64)]
    assert max(users * width for users, width in shapes) <= 128 * 1024


def test_results_are_fetched_while_only_a_few_are_queued():
    made = []

    def results():
        for number in range(6):
            made.append(number)
            yield jnp.full(2, number)

    taken = fetched(results(), ahead=2)
    assert next(taken).tolist() == [0, 0] and made == [0, 1, 2]
    assert next(taken).tolist() == [1, 1] and made == [0, 1, 2, 3]
    assert [value[0] for value in taken] == [2, 3, 4, 5]
    assert list(fetched([])) == []


@pytest.mark.parametrize(
    ("longest", "width"), [(0, 64), (64, 64), (65, 1024), (1024, 1024), (1025, 4096), (4097, 16384)]
)
def test_widths_are_few(longest, width):
    history = Histories.of_rows(np.array([np.arange(longest), np.zeros(longest)], np.int32))
    items = distinct_items(history)
    assert items.shape == (2, width)
    assert items[0][items[0] >= 0].tolist() == list(range(longest))
    assert items[1][items[1] >= 0].tolist() == [0] * (longest > 0)  # Each item once.


def test_summaries_of_decoded():
    decoded = Decoded(
        items=np.zeros((2, 1, 1), np.int32),
        tokens=np.zeros((2, 1, 2), np.int32),
        scores=np.zeros((2, 1), np.float32),
        evaluations=np.zeros(2, np.int32),
        prefix_hits=np.array([[True, True], [True, False]]),
        log_probs=np.array([[-1.0, -2.0], [-3.0, -6.0]], np.float32),
    )
    assert decoded.prefix_recall == [1.0, 0.5]
    assert decoded.loss == 3.0


def test_a_target_that_the_trie_lacks_is_no_hit():
    index = TrieIndex.build(np.array([[2, 5], [3, 4]]), 7)
    candidates = Candidates(
        tokens=jnp.array([[[2, 5], [-1, -1]]] * 3),
        items=jnp.array([[[0], [-1]]] * 3),
        scores=jnp.array([[-1.0, -jnp.inf]] * 3),
        valid=jnp.array([[True, False]] * 3),
        beams=(jnp.array([[0, -1]] * 3), jnp.array([[0, -1]] * 3)),
    )
    target = jnp.array([[2, 5], [2, 6], [6, 6]])
    assert prefix_hits(index, candidates, target).tolist() == [
        [True, True],
        [True, False],
        [False, False],
    ]


def test_a_sharded_index_decodes_as_the_whole_one_or_says_what_cannot():
    mesh = (
        make_mesh()
    )  # Of one device; lists of all users are made on several in a test of their own.
    sharded = ShardedIndex.build(make_tokens(), VOCAB, mesh)
    options = {"score_targets": False, "sharded": sharded, "mesh": mesh, "buckets": 1}
    found, whole = decode(make_sequences(), last_items(), **options), decode_all()
    for field in ("items", "tokens", "evaluations"):
        np.testing.assert_array_equal(getattr(found, field), getattr(whole, field))
    np.testing.assert_allclose(found.scores, whole.scores, atol=1e-5)
    sample = {"config": SearchConfig("sample"), "key": jax.random.key(0)}
    for other, what in (
        (sample, "search 'sample'"),
        ({"score_targets": True}, "scoring the targets"),
        ({"mesh": None}, "decoding without a mesh"),
    ):
        with pytest.raises(EvaluationError, match=f"^{what} cannot use an index that is split"):
            decode(make_sequences(), last_items(), **(options | other))


def test_nothing_to_decode_is_an_error():
    with pytest.raises(DataError, match="no targets"):
        decode(make_sequences(), last_items(()))


@pytest.mark.parametrize("normalise_over", ["vocabulary", "children"])
def test_numbers_that_are_none_stop_it_with_the_code_and_the_user(normalise_over):
    broken = jax.tree.map(lambda x: x * jnp.nan, make_model())
    with pytest.raises(EvaluationError) as error:
        decode(make_sequences(), last_items(), model=broken, normalise_over=normalise_over)
    message = str(error.value)
    # The user is one of the first batch: the rest is not waited for.
    assert re.search(
        r"for code 0 \(from 0\) of user u\d are NaN or infinite, and for \d oth", message
    )
    assert "float32 or bfloat16" in message


def test_the_first_user_with_numbers_that_are_none_is_named():
    check_finite(np.array([-1, -1]), np.array(["a", "b"]))
    with pytest.raises(EvaluationError, match=r"code 2 \(from 0\) of user b are NaN or infinite:"):
        check_finite(np.array([-1, 2]), np.array(["a", "b"]))


def test_small_temperatures_leave_log_probabilities_at_most_0():
    found = decode(make_sequences(), last_items(), temperature=1e-10)
    assert (found.log_probs <= 0).all() and np.isfinite(found.log_probs).all()
    with pytest.raises(DecodingError, match="temperature must be above 0"):
        decode(make_sequences(), last_items(), temperature=0.0)
