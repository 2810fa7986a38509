"""The item-level backbone: decoding equals teacher forcing, groups equal targets, and no item sees what follows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.models import (
    ItemDecoder,
    ItemDecoderConfig,
    ItemHistory,
    ModelError,
    histories_for,
    item_decoder,
)
from gr.models.item_decoder import hidden_items
from gr.models.layers import dropout_seed
from gr.trie import NO_NODE, TrieIndex, item_token_table, node_rows
from gr.trie.transitions import children, root

pytestmark = pytest.mark.usefixtures("compile_in_haste")

VOCAB, LENGTH, ITEMS, NODES, WIDTH = 11, 4, 9, 30, 16
TINY = ItemDecoderConfig(
    VOCAB, LENGTH, ITEMS, NODES, d_model=WIDTH, num_heads=2, d_ff=24, num_depth_layers=2
)
CONFIGS = {
    "trie": TINY,
    "vocabulary, one layer": dataclasses.replace(TINY, head="vocabulary", num_depth_layers=1),
    "no item embeddings": dataclasses.replace(TINY, item_embeddings=False),
    "bfloat16": dataclasses.replace(TINY, dtype="bfloat16"),
}
FLOAT32 = list(CONFIGS)[:3]
LENGTHS = (1, 3, 2, 4)  # Items of four histories.
NUM = 5  # Candidates of a group.


def create(config, seed=0):
    return ItemDecoder(config, rngs=nnx.Rngs(seed))


@functools.cache
def make_model(name):
    """A tiny model with random parameters, larger than at initialisation so that every part of it counts."""
    rng = np.random.default_rng(0)

    def draw(path, parameter):
        last = path[-2].name
        if last == "scale":
            return jnp.asarray(1 + 0.2 * rng.normal(size=parameter.shape), jnp.float32)
        scale = 1.5 / parameter.shape[0] ** 0.5 if last == "kernel" else 0.5
        return jnp.asarray(scale * rng.normal(size=parameter.shape), jnp.float32)

    config = CONFIGS.get(name) or dataclasses.replace(TINY, head=name)
    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: create(config)))


def tolerance(name):
    return {"atol": 0.1 if name == "bfloat16" else 1e-4}


TABLE = item_token_table(np.random.default_rng(9).integers(2, VOCAB, (ITEMS, LENGTH)))


def random_history(model, seed, lengths=LENGTHS, size=5):
    rows = np.random.default_rng(seed).integers(0, ITEMS, (len(lengths), size))
    rows = np.where(np.arange(size) < np.array(lengths)[:, None], rows, -1)
    return histories_for(model, TABLE, jnp.asarray(rows))


def codes(seed, *shape):
    return np.random.default_rng(seed).integers(2, VOCAB, (*shape, LENGTH))


def cut(history, places):
    """The histories up to `places [R]` items, of their rows."""
    before = np.arange(history.rows.shape[1]) < np.asarray(places)[:, None]
    tokens = jnp.where(before[..., None], history.tokens, 0)
    return ItemHistory(jnp.where(before, history.rows, -1), tokens)


def taken(history, rows):
    return jax.tree.map(lambda x: x[jnp.asarray(rows)], history)


target_states = jax.jit(lambda model, *inputs, key=None: model.target_states(*inputs, key=key))
sequence_states = jax.jit(lambda model, items, key=None: model.sequence_states(items, key=key))


@jax.jit
def decode(model, history, tokens, parents):
    """Outputs of prefill and of each step behind a reorder."""
    logits, hidden, cache = model.prefill(history)
    results = [(logits, hidden)]
    for token, parent in zip(tokens, parents, strict=True):
        cache = model.reorder(cache, parent)
        logits, hidden, cache = model.step(token, cache)
        results.append((logits, hidden))
    return results


@pytest.mark.parametrize("name", CONFIGS)
def test_step_by_step_decoding_is_teacher_forcing(name):
    model, rng = make_model(name), np.random.default_rng(1)
    history, beams = random_history(model, 0), (3, 4, 4)
    tokens = [rng.integers(2, VOCAB, (4, m)) for m in beams]
    parents = [rng.integers(0, n, (4, m)) for n, m in zip((1, *beams), beams, strict=False)]
    results = decode(model, history, tokens, parents)
    paths = np.zeros((4, 1, 0), int)
    for depth, (logits, hidden) in enumerate(results):
        if depth > 0:
            paths = np.take_along_axis(paths, parents[depth - 1][..., None], axis=1)
            paths = np.concatenate([paths, tokens[depth - 1][..., None]], axis=2)
        else:
            logits, hidden = jax.tree.map(lambda x: x[:, None], (logits, hidden))
        sids = rng.integers(2, VOCAB, (4, paths.shape[1], LENGTH))  # Later codes must not matter.
        sids[..., :depth] = paths
        for beam in range(paths.shape[1]):
            forced = target_states(model, history, sids[:, beam])[:, depth]
            np.testing.assert_allclose(hidden[:, beam], forced, **tolerance(name))
        if model.config.head == "vocabulary":
            np.testing.assert_allclose(logits, model.logits(hidden), atol=1e-5)
            assert logits.dtype == jnp.float32
        else:
            assert logits is None
        assert hidden.dtype == jnp.dtype(model.config.dtype)


def test_keys_that_have_their_room_from_the_beginning_give_the_same(monkeypatch):
    model, rng = make_model("trie"), np.random.default_rng(1)
    tokens = [rng.integers(2, VOCAB, (4, 3)) for _ in range(3)]
    parents = [np.zeros((4, 3), int), *[rng.integers(0, 3, (4, 3)) for _ in range(2)]]
    growing = decode(model, random_history(model, 0), tokens, parents)
    monkeypatch.setattr("gr.models.cache._LONG", LENGTH - 1)
    fixed = decode.__wrapped__(model, random_history(model, 0), tokens, parents)
    for (_, one), (_, other) in zip(growing, fixed, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_group_has_the_states_of_each_candidate_alone(name):
    model, rows = make_model(name), np.array([0, 2, 2])
    history, target, group = random_history(model, 0), codes(1, 4), codes(2, 4, NUM)
    root, later = jax.jit(model.group_states)(history, group)  # The state behind the last code too.
    _, hidden, _ = model.prefill(history)
    np.testing.assert_allclose(root, hidden, **tolerance(name))
    for n in range(NUM):
        alone = target_states(model, history, group[:, n])
        np.testing.assert_allclose(later[:, n, :-1], alone[:, 1:], **tolerance(name))
        np.testing.assert_allclose(root, alone[:, 0], **tolerance(name))
    assert later.shape == (4, NUM, LENGTH, WIDTH)

    states, later = jax.jit(model.target_and_group_states)(
        history, target, rows, group[rows][..., :-1]
    )
    np.testing.assert_allclose(states, target_states(model, history, target), **tolerance(name))
    for n in range(NUM):
        alone = target_states(model, taken(history, rows), group[rows, n])
        np.testing.assert_allclose(later[:, n], alone[:, 1:], **tolerance(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_one_pass_over_a_sequence_gives_each_item_the_states_of_a_target(name):
    model = make_model(name)
    items = random_history(model, 3, (5, 3, 4, 2))
    states = sequence_states(model, items)
    assert states.shape == (4, 4, LENGTH, WIDTH)
    for place in range(1, 5):
        there = np.array((5, 3, 4, 2)) > place
        alone = target_states(model, cut(items, [place] * 4), items.tokens[:, place])
        np.testing.assert_allclose(states[there, place - 1], alone[there], **tolerance(name))

    rows, places, group = np.array([0, 0, 1, 3]), np.array([4, 1, 2, 1]), codes(4, 4, NUM)
    again, later = jax.jit(model.sequence_and_group_states)(items, rows, places, group[..., :-1])
    np.testing.assert_allclose(again, states, **tolerance(name))
    for n in range(NUM):
        alone = target_states(model, cut(taken(items, rows), places), group[:, n])
        np.testing.assert_allclose(later[:, n], alone[:, 1:], **tolerance(name))


def test_semantic_ids_of_one_code():
    config = dataclasses.replace(TINY, code_length=1)
    model = create(config)
    history = ItemHistory(jnp.array([[0, 1], [2, -1]]), jnp.array([[[3], [4]], [[5], [0]]]))
    states = model.target_states(history, jnp.array([[6], [7]]))
    np.testing.assert_allclose(states[:, 0], model.prefill(history)[1], atol=1e-5)
    assert model.sequence_states(history).shape == (2, 1, 1, WIDTH)


@pytest.mark.parametrize("name", ["trie", "vocabulary, one layer"])
def test_no_code_sees_itself_or_what_comes_after_it(name):
    model = make_model(name)
    items = random_history(model, 5, [4], 4)
    plain = sequence_states(model, items)[0]  # [3, L, D].
    for place in range(4):
        for code in range(LENGTH):
            other = 2 + (items.tokens[0, place, code] - 1) % (VOCAB - 2)
            changed = items._replace(tokens=items.tokens.at[0, place, code].set(other))
            difference = np.abs(sequence_states(model, changed)[0] - plain).max(axis=-1)
            expected = np.zeros((3, LENGTH), bool)
            expected[place:] = (
                True  # Items behind it see it whole, and so does each of their codes.
            )
            if place:
                expected[place - 1, code + 1 :] = True
            np.testing.assert_array_equal(difference > 1e-4, expected)


def test_an_embedding_of_an_item_is_seen_from_the_next_item_on():
    model = make_model("trie")
    items = random_history(model, 5, [4], 4)
    for place in range(4):
        changed = items._replace(
            rows=items.rows.at[0, place].set((items.rows[0, place] + 1) % ITEMS)
        )
        moved = np.abs(sequence_states(model, changed) - sequence_states(model, items))[0]
        assert (moved.max(axis=(1, 2)) > 1e-4).tolist() == [p >= place for p in range(3)]
        plain = make_model("no item embeddings")
        same = sequence_states(plain, changed) - sequence_states(plain, items)
        np.testing.assert_array_equal(same, 0.0)


def test_items_that_the_model_does_not_know_are_read_by_their_codes():
    model = make_model("trie")
    history = random_history(model, 6)
    states = []
    for row in (ITEMS, 10**6, -1):  # The last: an item without a row, but with codes.
        unknown = history._replace(rows=history.rows.at[:, 0].set(row))
        states.append(model.last_state(unknown))
    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(states[0], states[2])
    plain = history._replace(rows=history.rows.at[:, 0].set(0))
    emptied = jax.tree.map(lambda x: x, model)
    emptied.items_in[...] = emptied.items_in[...].at[0].set(0.0)
    kept = plain.rows[:, 1:] != 0
    users = np.flatnonzero(np.asarray(kept | (plain.rows[:, 1:] < 0)).all(axis=1))
    assert len(users)
    np.testing.assert_allclose(states[0][users], emptied.last_state(plain)[users], atol=1e-5)


@pytest.mark.parametrize("name", FLOAT32)
def test_longer_padding_changes_nothing(name):
    model = make_model(name)
    history = random_history(model, 7)
    longer = ItemHistory(
        jnp.pad(history.rows, ((0, 0), (0, 3)), constant_values=-1),
        jnp.pad(history.tokens, ((0, 0), (0, 3), (0, 0))),
    )
    np.testing.assert_allclose(model.last_state(longer), model.last_state(history), atol=1e-5)


def test_every_item_of_the_history_and_its_place_count():
    model = make_model("trie")
    history = histories_for(model, TABLE, jnp.arange(4)[None])
    plain = model.last_state(history)
    for order in ([1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3, 2]):
        moved = ItemHistory(*(x[:, np.array(order)] for x in history))
        assert np.abs(model.last_state(moved) - plain).max() > 1e-3
    shorter = taken(history, [0])
    shorter = jax.tree.map(lambda x: x[:, 1:], shorter)
    assert np.abs(model.last_state(shorter) - plain).max() > 1e-3


# Heads.


def test_the_trie_head_is_a_product_with_code_and_node():
    model, rng = make_model("trie"), np.random.default_rng(0)
    head, count = model.head, NODES
    e_codes, e_nodes = np.asarray(head.codes[...]), np.asarray(head.nodes[...])
    hidden = rng.normal(size=(2, 3, WIDTH)).astype(np.float32)
    tokens, rows = rng.integers(0, VOCAB, (2, 3, 7)), rng.integers(-1, count + 5, (2, 3, 7))
    found = np.asarray(model.score_children(hidden, tokens, rows))
    shared = np.asarray(model.score_children(hidden, tokens[:1, :1], rows[:1, :1]))
    for user, beam, place in np.ndindex(found.shape):
        for scores, of in ((found, (user, beam)), (shared, (0, 0))):
            token, row = tokens[of][place], rows[of][place]
            known = row != NO_NODE and row < count  # Else scored by its code alone.
            vector = e_codes[token] + (e_nodes[row] if known else 0.0)
            expected = hidden[user, beam] @ vector
            np.testing.assert_allclose(scores[user, beam, place], expected, atol=1e-4)


@pytest.mark.parametrize("num_nodes", [0, 3])
def test_few_nodes_or_none_have_embeddings(num_nodes):
    model = create(dataclasses.replace(TINY, num_nodes=num_nodes))
    assert model.head.nodes.shape == (num_nodes, WIDTH)
    np.testing.assert_array_equal(model.head.nodes[...], 0.0)  # A trained model starts by codes.
    scores = model.score_children(jnp.ones((2, WIDTH)), jnp.array([[1, 2]]), jnp.array([[-1, 7]]))
    expected = jnp.broadcast_to(model.head.codes[...][jnp.array([1, 2])].sum(-1), (2, 2))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_rows_of_nodes_are_all_different():
    index = TrieIndex.build(np.asarray(TABLE[:-1]), VOCAB)
    nodes, seen = root(index, ()), []
    nodes = jax.tree.map(lambda x: x[None], nodes)
    for depth in range(LENGTH):
        below, _ = children(index, depth, nodes)
        exist = below.exist.reshape(-1)
        nodes = jax.tree.map(lambda x, exist=exist: x.reshape(-1)[exist], below)
        seen += node_rows(index, depth + 1, nodes).tolist()
    assert len(set(seen)) == len(seen) == sum(index.num_nodes) - 1
    assert 0 <= min(seen) and max(seen) < index.layout.node_offsets[-1]


def test_the_head_over_items():
    model = make_model("items")
    assert model.scores_items and not model.scores_children and not hasattr(model, "depth_layers")
    items = random_history(model, 3, (5, 3, 4, 2))
    states = model.item_states(items)
    for place in range(1, 5):
        there = np.array((5, 3, 4, 2)) >= place
        alone = model.last_state(cut(items, [place] * 4))
        np.testing.assert_allclose(states[there, place - 1], alone[there], atol=1e-5)
    logits = model.item_logits(states)
    np.testing.assert_allclose(logits, states @ model.items_out[...].T, atol=1e-5)
    assert logits.shape == (4, 5, ITEMS)


@pytest.mark.parametrize("head", ["trie", "items"])
def test_logits_that_a_head_does_not_have_are_refused(head):
    with pytest.raises(ModelError, match=f"head='{head}' has no logits over the vocabulary"):
        make_model(head).logits(jnp.zeros((1, WIDTH)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"head": "codes"},
        {"dropout": 1.0},
        {"dtype": "float16"},
        {"num_items": 0},
        {"num_nodes": -1},
    ],
)
def test_settings_that_cannot_work_are_named(wrong):
    (field,) = wrong
    with pytest.raises(ModelError, match=field):
        dataclasses.replace(TINY, **wrong)
    with pytest.raises(ModelError, match="d_model=24 must be a multiple"):
        dataclasses.replace(TINY, d_model=24, num_heads=8)


# Precision and dropout.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_scores_are_float32_and_activations_as_configured(dtype):
    model = jax.eval_shape(lambda: create(dataclasses.replace(TINY, dtype=dtype)))
    assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    _, hidden, cache = jax.eval_shape(lambda m: m.prefill(random_history(m, 0)), model)
    assert {
        x.dtype
        for x in jax.tree.leaves((hidden, cache.last, cache.of_codes.own, cache.of_codes.shared))
    } == {jnp.dtype(dtype)}
    tokens = jnp.zeros((4, 3), int)
    scores = jax.eval_shape(lambda m, h: m.score_children(h, tokens, tokens), model, hidden)
    assert scores.dtype == jnp.float32


@pytest.mark.parametrize("head", ["trie", "vocabulary", "items"])
def test_dropout_is_a_function_of_the_key(head):
    model = make_model(head)
    items, group = random_history(model, 9, [5] * 8), codes(3, 8, NUM)
    runs = {
        "item_states": lambda key: model.item_states(items, key=key),
        "last_state": lambda key: model.last_state(items, key=key),
    }
    if head != "items":
        runs |= {
            "target": lambda key: model.target_states(items, group[:, 0], key=key),
            "sequence": lambda key: model.sequence_states(items, key=key),
            "groups": lambda key: model.group_states(items, group, key=key)[1],
        }
    for run in runs.values():
        run = jax.jit(run)
        first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max(axis=-1).min() > 1e-3
        # And none without a key.
        np.testing.assert_array_equal(run(None), run(None))
        assert np.abs(first - run(None)).max(axis=-1).min() > 1e-3


def test_dropout_at_rate_0_is_none():
    model = make_model("trie")
    structure = jax.tree.structure(
        jax.eval_shape(lambda: create(dataclasses.replace(TINY, dropout=0.0)))
    )
    model = jax.tree.unflatten(structure, jax.tree.leaves(model))
    items = random_history(model, 9)
    found = model.sequence_states(items, key=jax.random.key(0))
    np.testing.assert_allclose(found, model.sequence_states(items), atol=1e-5)


# Hidden items.


def test_tokens_alone_are_no_history():
    model, history = make_model("trie"), random_history(make_model("trie"), 0)
    with pytest.raises(ModelError, match="ItemHistory.*histories_for"):
        model.prefill(history.tokens)


def test_items_are_hidden_at_their_rate_and_only_with_a_key():
    rows = jnp.zeros((200, 50), jnp.int32)
    for rate in (0.1, 0.5):
        seen = hidden_items(rows, rate, dropout_seed(jax.random.key(3)))
        assert seen.shape == rows.shape and set(np.unique(seen).tolist()) == {0.0, 1.0}
        assert abs(float(1 - seen.mean()) - rate) < 4 * (rate * (1 - rate) / seen.size) ** 0.5
        assert 0 < np.ptp(np.asarray(seen.mean(axis=1)))  # Each history loses others.
    assert (hidden_items(rows, 0.5, None) == 1).all() and (hidden_items(rows, 0.0, 7) == 1).all()


def hiding(rate):
    """The trie model without any other dropout, and with items of histories hidden at this rate."""
    made = jax.eval_shape(lambda: create(dataclasses.replace(TINY, dropout=0.0, item_dropout=rate)))
    return jax.tree.unflatten(jax.tree.structure(made), jax.tree.leaves(make_model("trie")))


def test_a_hidden_item_is_read_as_one_without_embeddings(monkeypatch):
    model, history = hiding(0.5), random_history(make_model("trie"), 4, [5] * 4)
    plain = model.item_states(history)
    np.testing.assert_array_equal(plain, hiding(0.0).item_states(history, key=jax.random.key(0)))
    seen, read = [], item_decoder.hidden_items

    def spy(*arguments):
        seen.append(np.asarray(read(*arguments)))
        return seen[-1]

    monkeypatch.setattr(item_decoder, "hidden_items", spy)
    found = model.item_states(history, key=jax.random.key(0))
    (of_items,) = seen
    assert 0 < of_items.mean() < 1
    # By hand: token 0 and an unknown row, of a model whose token 0 counts nothing.
    tokens = jnp.where(of_items[..., None] > 0, history.tokens, 0)
    silent = hiding(0.0)
    silent.codes_in[...] = silent.codes_in[...].at[0].set(0.0)
    rows = jnp.where(of_items > 0, history.rows, ITEMS + 1)
    np.testing.assert_allclose(found, silent.item_states(ItemHistory(rows, tokens)), atol=1e-5)
    first = np.argmin(of_items, axis=1)  # Up to the first hidden item nothing has changed.
    for row, place in enumerate(first):
        np.testing.assert_allclose(found[row, :place], plain[row, :place], atol=1e-5)
        assert of_items[row].all() or np.abs(found[row, place] - plain[row, place]).max() > 1e-3


@pytest.mark.parametrize("call", ["last_state", "sequence_states"])
def test_items_are_hidden_in_every_pass_of_training(call):
    model, history = hiding(0.5), random_history(make_model("trie"), 4, [5] * 4)
    run = jax.jit(getattr(model, call))
    assert np.abs(run(history, key=jax.random.key(0)) - run(history)).max() > 1e-3
    np.testing.assert_array_equal(run(history), getattr(hiding(0.0), call)(history))


def test_a_share_of_hidden_items_is_below_1():
    with pytest.raises(ModelError, match="item_dropout"):
        dataclasses.replace(TINY, item_dropout=1.0)
