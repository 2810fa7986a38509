"""Pairwise prefix losses in training: drawn negatives, drawn places, both levels, several devices."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scorers import node_rows

from gr.models import histories_for, scores_children
from gr.training import LossConfig, TrainingError, init_loss_state, supervised_loss
from gr.training.objectives import draw_places
from gr.trie import TrieIndex
from tests.training.test_objectives import (
    BATCHES,
    FILLER_ROWS,
    ITEMS,
    LENGTH,
    NUM_TARGETS,
    TARGETS_PER_BATCH,
    TOKENS,
    VOCAB,
    make_model,
    target_batch,
    user_batch,
)

pytestmark = pytest.mark.usefixtures("compile_in_haste")

CONFIG = LossConfig(
    "apao_pairwise", tau=1.5, beta=0.7, eta=0.3, num_negatives=6, pairwise_share=0.4
)
PREFIXES = [{tuple(row[:t]) for row in TOKENS.tolist()} for t in range(1, LENGTH + 1)]
KEY = jax.random.key(5)
LONG = pytest.mark.long
MODELS = [
    "encoder_decoder",
    pytest.param("decoder_only", marks=LONG),
    pytest.param("encoder_decoder/trie", marks=LONG),
    "decoder_only/trie",
    "item_decoder",
]
LEVELS_AND_MODELS = [
    ("user", "item_decoder"),
    ("target", "decoder_only"),
    pytest.param("target", "item_decoder", marks=LONG),
    pytest.param("user", "decoder_only", marks=LONG),
]


def run(name, level, config=CONFIG, batch=None, state=None):
    """Loss, metrics, state and gradients."""
    loss = supervised_loss(
        TOKENS,
        level=level,
        targets_per_batch=TARGETS_PER_BATCH,
        loss=config,
        index=TrieIndex.build(TOKENS, VOCAB),
    )
    state = init_loss_state(config, LENGTH) if state is None else state
    (value, (metrics, state)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        make_model(name), BATCHES[level]() if batch is None else batch, KEY, state
    )
    return float(value), {k: float(v) for k, v in metrics.items()}, np.asarray(state), grads


def log_probs(name, histories, items):
    """Log-probabilities `[n, L]` of the codes of `items [n]` behind `histories [n, T]`, each computed alone."""
    table = np.concatenate([TOKENS, np.zeros((1, LENGTH), int)])
    if scores_children(make_model(name)):
        history = histories_for(make_model(name), table, histories)
        return log_probs_over_children(make_model(name), history, TOKENS[items])
    logits = jax.jit(lambda model, *inputs: model.target_logits(*inputs))(
        make_model(name), table[histories], TOKENS[items]
    )
    logits = np.asarray(logits, float)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(log_p, TOKENS[items][..., None], -1)[..., 0]


def log_probs_over_children(model, history, targets):
    """Log-probabilities `[n, L]` of the codes of targets among their siblings, by dictionaries."""
    states = np.asarray(
        jax.jit(lambda m, *inputs: m.target_states(*inputs))(model, history, targets)
    )
    row_of = node_rows(TOKENS, TrieIndex.build(TOKENS, VOCAB).layout)
    codes, nodes = np.asarray(model.head.codes[...]), np.asarray(model.head.nodes[...])
    found = np.zeros(targets.shape)
    for place, depth in np.ndindex(targets.shape):
        prefix = tuple(targets[place, :depth].tolist())
        siblings = sorted(sid for sid in PREFIXES[depth] if sid[:-1] == prefix)
        vectors = [
            codes[sid[-1]] + (nodes[row_of[sid]] if row_of[sid] < len(nodes) else 0.0)
            for sid in siblings
        ]
        chances = oracles.log_softmax(np.array(vectors, float) @ states[place, depth])
        found[place, depth] = chances[siblings.index((*prefix, targets[place, depth]))]
    return found


def expected_losses(name, histories, targets, negatives, config=CONFIG):
    """The formula `[n, L]`, with dictionaries: one target, one depth, one distinct prefix at a time."""
    num = negatives.shape[1]
    own = np.cumsum(log_probs(name, histories, targets), axis=1)
    others = log_probs(name, np.repeat(histories, num, axis=0), negatives.ravel())
    others = np.cumsum(others, axis=1).reshape(*negatives.shape, LENGTH)
    losses = np.zeros((len(targets), LENGTH))
    for i, target in enumerate(targets):
        for depth in range(LENGTH):
            met = {}
            for j, negative in enumerate(negatives[i]):
                prefix = tuple(TOKENS[negative][: depth + 1])
                if prefix != tuple(TOKENS[target][: depth + 1]):
                    met[prefix] = np.exp(others[i, j, depth] / config.tau)
            scale = (len(PREFIXES[depth]) - 1) / (len(met) + 1)
            right = np.exp(own[i, depth] / config.tau)
            share = right / (right + scale * sum(met.values()))
            losses[i, depth] = -np.log(share) / (depth + 1)
    return losses


def drawn_negatives(key, *shape):
    return np.asarray(jax.random.randint(key, (*shape, CONFIG.num_negatives), 0, ITEMS))


@pytest.mark.parametrize("name", MODELS)
def test_target_level_is_the_formula_for_the_drawn_targets_and_negatives(name):
    value, metrics, weights, _ = run(name, "target")
    batch = {column: x[:-FILLER_ROWS] for column, x in target_batch().items()}
    _, draw_key, place_key = jax.random.split(KEY, 3)
    drawn = draw_places(place_key, target_batch()["weight"][:, None], CONFIG.pairwise_share)
    rows, _, weight = map(np.asarray, drawn)
    negatives = drawn_negatives(draw_key, len(rows))
    losses = expected_losses(name, batch["history"][rows], batch["target"][rows], negatives)
    losses = (losses * weight[:, None]).sum(axis=0) / TARGETS_PER_BATCH
    found = [metrics[f"prefix_{t}/loss"] for t in (1, 2, 3)]
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    shares = losses / losses.sum()
    expected = shares * np.exp(CONFIG.eta * shares)
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-4)
    np.testing.assert_allclose([metrics[f"prefix_{t}/weight"] for t in (1, 2, 3)], weights)
    cross_entropy = -log_probs(name, batch["history"], batch["target"]).mean(1).sum()
    expected = cross_entropy / TARGETS_PER_BATCH + CONFIG.beta * (weights * losses).sum()
    assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_user_level_is_the_formula_at_the_drawn_places(name):
    _, metrics, _, _ = run(name, "user")
    batch = user_batch()
    _, draw_key, place_key = jax.random.split(KEY, 3)
    rows, columns, weight = map(
        np.asarray, draw_places(place_key, batch["weight"][:, 1:], CONFIG.pairwise_share)
    )
    items = batch["items"][rows]
    targets = items[np.arange(len(rows)), columns + 1]
    histories = np.where(np.arange(items.shape[1]) <= columns[:, None], items, -1)[:, :-1]
    losses = expected_losses(name, histories, targets, drawn_negatives(draw_key, len(rows)))
    losses = (losses * weight[:, None]).sum(axis=0) / TARGETS_PER_BATCH
    found = [metrics[f"prefix_{t}/loss"] for t in (1, 2, 3)]
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    plain = run(name, "user", LossConfig("ce"))[1]
    for code in range(LENGTH):  # Cross-entropy is taken at every place, as without negatives.
        assert metrics[f"level_{code + 1}/loss"] == pytest.approx(
            plain[f"level_{code + 1}/loss"], rel=1e-5
        )


@pytest.mark.parametrize(("level", "model"), LEVELS_AND_MODELS)
def test_all_first_codes_make_depth_1_exact(level, model):
    exact = run(model, level, dataclasses.replace(CONFIG, all_first_codes=True))[1]
    sampled = run(model, level)[1]
    batch = {column: x[:-FILLER_ROWS] for column, x in target_batch().items()}
    first_of = {code: np.flatnonzero(TOKENS[:, 0] == code)[0] for (code,) in PREFIXES[0]}
    codes, items = list(first_of), np.array(list(first_of.values()))
    histories = np.repeat(batch["history"], len(codes), axis=0)
    log_p = log_probs(model, histories, np.tile(items, NUM_TARGETS))[:, 0]
    scores = np.exp(log_p.reshape(NUM_TARGETS, -1) / CONFIG.tau)
    own = [codes.index(code) for code in TOKENS[batch["target"], 0]]
    loss = -np.log(scores[np.arange(NUM_TARGETS), own] / scores.sum(axis=1)).sum()
    assert exact["prefix_1/loss"] == pytest.approx(loss / TARGETS_PER_BATCH, rel=1e-4)
    assert exact["prefix_1/loss"] != pytest.approx(sampled["prefix_1/loss"], rel=1e-3)
    for depth in (2, 3):
        name = f"prefix_{depth}/loss"
        assert exact[name] == pytest.approx(sampled[name], rel=1e-5)


@pytest.mark.parametrize(("level", "name"), LEVELS_AND_MODELS)
def test_gradients_are_slopes_and_the_weights_have_none(level, name):
    model, config = make_model(name), dataclasses.replace(CONFIG, with_ce=False)
    # Weights that do not depend on the losses: eta 0 keeps those of the step before.
    config = dataclasses.replace(config, eta=0.0)
    before = jnp.array([0.5, 0.3, 0.2])
    grads = run(name, level, config, state=before)[3]
    loss = supervised_loss(
        TOKENS,
        level=level,
        targets_per_batch=TARGETS_PER_BATCH,
        loss=config,
        index=TrieIndex.build(TOKENS, VOCAB),
    )
    value = jax.jit(lambda model: loss(model, BATCHES[level](), KEY, before)[0])
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), model)
    step = 1e-3
    up = value(jax.tree.map(lambda x, d: x + step * d, model, direction))
    down = value(jax.tree.map(lambda x, d: x - step * d, model, direction))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
    assert float(slope) == pytest.approx(float(up - down) / (2 * step), rel=0.005)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_drawn_places_stand_for_all(share):
    weight = np.zeros((5, 7), np.float32)
    for row, count in enumerate((7, 1, 4, 0, 3)):
        weight[row, -count or 7 :] = 1
    draw = jax.jit(jax.vmap(lambda key: draw_places(key, weight, share)))
    rows, columns, place_weight = map(np.asarray, draw(jax.random.split(jax.random.key(0), 4000)))
    assert rows.shape[1] == max(1, round(share * weight.size))
    assert (weight[rows, columns] == 1).all()
    np.testing.assert_allclose(place_weight.sum(axis=1), weight.sum(), rtol=1e-5)
    # Every place counts 1 in the mean.
    counts = np.zeros_like(weight)
    np.add.at(counts, (rows, columns), place_weight / len(rows))
    spread = (weight.sum() / rows.shape[1] / len(rows)) ** 0.5
    assert (np.abs(counts - weight) <= 5 * spread * weight + 1e-6).all()


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_every_place_counts_once_over_all_draws(share, monkeypatch):
    """The expectation itself: a stratum's draw is one of `count` equally likely cells, of which each is tried."""
    weight = np.random.default_rng(0).integers(0, 2, (4, 6)).astype(np.float32)
    count = int(weight.sum())
    counts = np.zeros_like(weight)
    for cell in range(count):
        middle = (cell + 0.5) / count
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, u=middle: jnp.full(shape, u))
        rows, columns, place_weight = map(np.asarray, draw_places(KEY, weight, share))
        np.add.at(counts, (rows, columns), place_weight / count)
    np.testing.assert_allclose(counts, weight, rtol=1e-5)


def test_a_batch_without_places_weighs_nothing():
    _, _, weight = draw_places(KEY, np.zeros((3, 4), np.float32), 0.5)
    assert (np.asarray(weight) == 0).all()


def test_negatives_are_drawn_anew_from_the_key():
    loss = supervised_loss(
        TOKENS,
        level="target",
        targets_per_batch=TARGETS_PER_BATCH,
        loss=CONFIG,
        index=TrieIndex.build(TOKENS, VOCAB),
    )
    run_with = jax.jit(
        lambda key: loss(make_model("decoder_only"), target_batch(), key, jnp.zeros(LENGTH))[0]
    )
    values = [float(run_with(jax.random.key(seed))) for seed in (0, 1, 0)]
    assert values[0] == values[2] != values[1]
    assert run_with._cache_size() == 1


def test_settings_that_cannot_work_are_named():
    with pytest.raises(TrainingError, match="loss 'apao_pairwise' needs the trie"):
        supervised_loss(TOKENS, level="user", targets_per_batch=1.0, loss=CONFIG)
    with pytest.raises(TrainingError, match="two codes or more"):
        index = TrieIndex.build(TOKENS[:, :1], VOCAB)
        supervised_loss(
            TOKENS[:, :1], level="user", targets_per_batch=1.0, loss=CONFIG, index=index
        )
    with pytest.raises(TrainingError, match="num_negatives=0: use 1 or more"):
        LossConfig("apao_pairwise", num_negatives=0)
    with pytest.raises(
        TrainingError, match=r"pairwise_share=1.5: use a number above 0 and at most 1"
    ):
        LossConfig("apao_pairwise", pairwise_share=1.5)


ON_TWO_DEVICES = """
import json, jax, numpy as np, optax
from gr.training import TrainState, init_loss_state, make_mesh, make_train_step, replicate
from gr.training import shard_batch, supervised_loss
from gr.trie import TrieIndex
from tests.training.test_pairwise import CONFIG, LENGTH, TARGETS_PER_BATCH, TOKENS, VOCAB
from tests.training.test_objectives import make_model, user_batch

def weights(mesh):
    loss = supervised_loss(TOKENS, level="user", targets_per_batch=TARGETS_PER_BATCH, loss=CONFIG,
                           index=TrieIndex.build(TOKENS, VOCAB))
    optimizer = optax.sgd(0.1)
    step = make_train_step(loss, optimizer, mesh=mesh)
    model = jax.tree.map(np.array, make_model("encoder_decoder"))
    state = TrainState.create(model, optimizer, jax.random.key(1), init_loss_state(CONFIG, LENGTH))
    state, batch = replicate(state, mesh), user_batch()
    batch = {name: np.concatenate([x, x[:1]]) for name, x in batch.items()}
    values = []
    for _ in range(3):
        state, metrics = step(state, shard_batch(batch, mesh))
        values.append(float(metrics["loss"]))
    shards = [np.asarray(s.data).tolist() for s in state.loss_state.addressable_shards]
    return values, shards

print(json.dumps({"one": weights(make_mesh()), "two": weights(make_mesh(data=2))}))
"""


def test_weights_are_the_same_on_every_device_of_a_mesh():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.path.join(os.getcwd(), "tests")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (losses, (weights,)), (other_losses, shards) = found["one"], found["two"]
    np.testing.assert_allclose(other_losses, losses, rtol=1e-4)
    assert len(shards) == 2 and shards[0] == shards[1]
    np.testing.assert_allclose(shards[0], weights, rtol=1e-4)
