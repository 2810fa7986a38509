"""The step of reinforcement learning: against naive scoring and a plain loop, what it leaves alone, that it learns."""

import collections
import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toy_run import compilations

from gr.decoding import SearchConfig, beam_search
from gr.losses import PolicyConfig, policy_objective, token_log_probs
from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    ItemDecoder,
    ItemDecoderConfig,
    ValueHead,
    ValueHeadConfig,
    path_states,
)
from gr.rl import (
    ActorCritic,
    LearningConfig,
    RolloutConfig,
    ValueConfig,
    actor_critic_optimizer,
    exact_match,
    make_policy_step,
    roll_out,
    value_loss,
)
from gr.rl.rollouts import scored_candidates
from gr.training import NO_BAD_STEP, TrainingError, TrainState
from gr.trie import Catalogue, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

LENGTH, CODES, VOCAB = 3, 4, 20
USERS = 6


@functools.cache
def catalogue():
    rng = np.random.default_rng(0)
    tokens = np.unique(rng.integers(0, CODES, (30, LENGTH)), axis=0)
    tokens = tokens + 2 + np.arange(LENGTH) * CODES
    vectors = rng.normal(size=(len(tokens), 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Catalogue.build(TrieIndex.build(tokens, VOCAB), tokens, vectors)


def make_model(kind="encoder_decoder", item_share=0.0):
    sizes = {"vocab_size": VOCAB, "code_length": LENGTH, "d_model": 16, "num_heads": 2, "d_ff": 32}
    if kind == "encoder_decoder":
        config = EncoderDecoderConfig(
            **sizes, head_dim=8, num_encoder_layers=1, num_decoder_layers=1, dropout=0.0
        )
        backbone = EncoderDecoder(config, rngs=nnx.Rngs(1))
    elif kind == "item_decoder":
        items, nodes = len(catalogue().tokens) - 1, catalogue().index.layout.node_offsets[-1]
        first = catalogue().index.layout.node_offsets[1]
        config = ItemDecoderConfig(
            num_items=items, num_nodes=nodes, num_first=first, num_facets=2, dropout=0.0, **sizes
        )
        config = dataclasses.replace(config, item_share=item_share)
        backbone = ItemDecoder(config, rngs=nnx.Rngs(1))
    else:
        config = DecoderOnlyConfig(**sizes, num_layers=1, dropout=0.0)
        backbone = DecoderOnly(config, rngs=nnx.Rngs(1))
    head = ValueHead(ValueHeadConfig(16, LENGTH, 2, 16, dropout=0.0), rngs=nnx.Rngs(2))
    return ActorCritic(backbone, head)


def make_batch():
    rng = np.random.default_rng(1)
    items = len(catalogue().tokens) - 1
    history = rng.integers(0, items, (USERS, 4))
    history[0, 2:] = -1
    weight = np.ones(USERS, np.float32)
    weight[-1] = 0.0  # A filler row.
    return {"history": history, "target": rng.integers(0, items, USERS), "weight": weight}


def rollout_config(name="ved", **options):
    search = SearchConfig(name, num_candidates=6, budget=16, initial_beams=3, width=3)
    return RolloutConfig(search, exclude_seen=False, **options)


def optimizer():
    return actor_critic_optimizer(optax.adam(3e-3), optax.adam(3e-3))


def make_step(rollout=None, policy=None, learning=None, reward=exact_match, chosen=None, mesh=None):
    return make_policy_step(
        rollout or rollout_config(),
        policy or PolicyConfig("sibling_grpo"),
        ValueConfig(),
        learning or LearningConfig(),
        catalogue(),
        reward,
        chosen or optimizer(),
        mesh=mesh,
    )


def make_state(model, chosen=None):
    key = jax.random.key(0)
    return TrainState.create(model, chosen or optimizer(), key, loss_state=model.backbone)


@functools.partial(jax.jit, static_argnums=0)
def rolled_out(config, model, batch, key):
    return roll_out(config, catalogue(), exact_match, model, model.backbone, batch, key)


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "normalise_over"),
    [
        ("encoder_decoder", "vocabulary"),
        ("decoder_only", "children"),
        pytest.param("encoder_decoder", "children", marks=pytest.mark.long),
        pytest.param("decoder_only", "vocabulary", marks=pytest.mark.long),
    ],
)
def test_candidates_are_scored_as_one_by_one(kind, normalise_over):
    model, batch, temperature = make_model(kind), make_batch(), 1.5
    config = rollout_config("sample", normalise_over=normalise_over, temperature=temperature)
    rollouts, metrics = rolled_out(config, model, batch, jax.random.key(3))
    sids = {tuple(row) for row in np.asarray(catalogue().tokens[:-1]).tolist()}
    assert rollouts.valid[:-1].all() and not rollouts.valid[-1].any()
    hits = 0
    for user in range(USERS - 1):
        candidates = np.asarray(rollouts.tokens[user])
        assert len({tuple(row) for row in candidates.tolist()} & sids) == len(candidates)
        target = tuple(catalogue().tokens[batch["target"][user]].tolist())
        found = [tuple(row) == target for row in candidates.tolist()]
        np.testing.assert_array_equal(rollouts.rewards[user], found)
        hits += any(found)
        history = jnp.repeat(rollouts.history[user][None], len(candidates), 0)
        logits = model.backbone.target_logits(history, rollouts.tokens[user])
        logits = np.asarray(logits, np.float64) / temperature
        for place, row in enumerate(candidates.tolist()):
            for depth, token in enumerate(row):
                ways = range(VOCAB)
                if normalise_over == "children":
                    ways = sorted({sid[depth] for sid in sids if list(sid[:depth]) == row[:depth]})
                chances = logits[place, depth, list(ways)]
                chances = chances - np.logaddexp.reduce(chances)
                expected = chances[list(ways).index(token)]
                entropy = -(np.exp(chances) * chances).sum()
                for mine in (rollouts.logp, rollouts.reference_logp):
                    np.testing.assert_allclose(mine[user, place, depth], expected, atol=2e-5)
                np.testing.assert_allclose(rollouts.entropy[user, place, depth], entropy, atol=2e-5)
    assert float(metrics["candidates/target_share"]) == pytest.approx(hits / (USERS - 1))
    assert float(metrics["candidates/valid"]) == 6.0


def test_an_item_tower_is_no_part_of_the_policy():
    batch, key = make_batch(), jax.random.key(3)
    found = [
        rolled_out(rollout_config(), make_model("item_decoder", share), batch, key)
        for share in (0.0, 0.5)
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_model_that_scores_children_scores_candidates_as_its_search_does():
    model, batch, temperature = make_model("item_decoder"), make_batch(), 1.5
    nodes = model.backbone.head.nodes
    nodes[...] = jax.random.normal(jax.random.key(9), nodes.shape)
    config = rollout_config("sample", temperature=temperature)
    rollouts, _ = rolled_out(config, model, batch, jax.random.key(3))
    assert rollouts.valid[:-1].all() and not rollouts.valid[-1].any()
    index, everything = catalogue().index, len(catalogue().tokens)
    found = beam_search(
        model.backbone, index, rollouts.history, everything, temperature=temperature
    )
    for user in range(USERS - 1):
        sids = map(tuple, found.tokens[user].tolist())
        score_of = dict(zip(sids, found.scores[user].tolist(), strict=True))
        mine = [score_of[tuple(row)] for row in rollouts.tokens[user].tolist()]
        for logp in (rollouts.logp, rollouts.reference_logp):
            np.testing.assert_allclose(logp[user].sum(-1), mine, atol=1e-4)
        first = collections.defaultdict(float)
        for sid, score in score_of.items():
            first[sid[0]] += np.exp(score)
        entropy = -sum(chance * np.log(chance) for chance in first.values() if chance)
        np.testing.assert_allclose(rollouts.entropy[user, :, 0], entropy, atol=1e-4)


def test_drawn_candidates_are_weighted_by_their_chance():
    model, batch = make_model(), make_batch()
    everything = dataclasses.replace(
        rollout_config("sample", normalise_over="children", importance=True),
        search=SearchConfig("sample", num_candidates=len(catalogue().tokens)),
    )
    rollouts, _ = rolled_out(everything, model, batch, jax.random.key(0))
    # All are drawn for certain, so that the weights are the probabilities themselves.
    assert_in_proportion(rollouts)


@pytest.mark.parametrize("name", ["beam", "ved"])
def test_candidates_of_a_search_are_weighted_by_their_probability(name):
    config = rollout_config(name, importance=True)
    rollouts, _ = rolled_out(config, make_model(), make_batch(), jax.random.key(0))
    assert_in_proportion(rollouts)


def assert_in_proportion(rollouts):
    """Weights to probabilities; their scale is no matter, since the loss is a mean."""
    assert not np.asarray(rollouts.importance[-1]).any()  # The filler row.
    weights, chances = rollouts.importance[:-1], np.exp(rollouts.logp.sum(-1))[:-1]
    chances = np.where(rollouts.valid[:-1], chances, 0.0)
    for mine, wanted in zip(weights, chances, strict=True):
        np.testing.assert_allclose(mine / mine.sum(), wanted / wanted.sum(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("prefix_vectors", ["node", "group"])
def test_the_value_head_is_rewarded_by_what_lies_below_a_prefix(prefix_vectors):
    model, batch, world = make_model(), make_batch(), catalogue()
    config = rollout_config("beam", prefix_vectors=prefix_vectors)
    rollouts, _ = rolled_out(config, model, batch, jax.random.key(0))
    omega = [0.3, 0.5, 1.0]
    tokens, vectors = np.asarray(world.tokens[:-1]), np.asarray(world.item_vectors, np.float64)
    for user in range(USERS - 1):
        target = batch["target"][user]
        candidates = np.asarray(rollouts.tokens[user])
        for place, row in enumerate(candidates):
            for depth in range(LENGTH):
                below = (tokens[:, : depth + 1] == row[: depth + 1]).all(1)
                if prefix_vectors == "group":
                    below &= (tokens[:, None] == candidates).all(-1).any(1)
                mean = vectors[below].mean(0)
                cosine = mean @ vectors[target] / np.linalg.norm(mean)
                right = (tokens[target, : depth + 1] == row[: depth + 1]).all()
                expected = omega[depth] if right else -omega[depth] * (1 - cosine)
                np.testing.assert_allclose(
                    rollouts.value_rewards[user, place, depth], expected, atol=1e-4
                )


def test_a_step_is_a_plain_loop_of_updates():
    """Two epochs by hand: search once, then full-batch updates of both parts from the same rollouts."""
    model, batch = make_model(), make_batch()
    rollout, policy, chosen = (
        rollout_config(),
        PolicyConfig("sibling_grpo", kl_weight=0.1),
        actor_critic_optimizer(
            optax.sgd(0.5), optax.sgd(0.05)
        ),  # Adam would blow up rounding errors.
    )
    key = jax.random.fold_in(jax.random.key(0), 0)
    search_key, _, learn_key = jax.random.split(key, 3)
    rollouts, _ = rolled_out(rollout, model, batch, search_key)

    def loss_fn(model, key):
        value_key, supervised_key = jax.random.split(key)
        logits = model.backbone.target_logits(rollouts.history, rollouts.target, key=supervised_key)
        supervised = token_log_probs(logits, rollouts.target)[:-1].mean()  # The last is filler.
        logp, _ = scored_candidates(
            rollout, catalogue(), model.backbone, rollouts.history, rollouts.tokens
        )
        loss, _ = policy_objective(
            policy,
            logp,
            rollouts.logp,
            rollouts.reference_logp,
            rollouts.tokens,
            rollouts.rewards,
            rollouts.valid,
        )
        states = path_states(model.backbone, rollouts.history, rollouts.tokens)
        of_value, _ = value_loss(
            model.value_head,
            states,
            rollouts.value_rewards,
            rollouts.valid.astype(jnp.float32),
            tokens=rollouts.tokens,
            key=value_key,
        )
        return loss + of_value - 0.5 * supervised

    expected, opt_state, grad = model, chosen.init(model), jax.jit(jax.grad(loss_fn))
    for key in jax.random.split(learn_key, 2):
        grads = grad(expected, key)
        changes, opt_state = chosen.update(grads, opt_state, expected)
        expected = optax.apply_updates(expected, changes)
    step = make_step(
        rollout, policy, LearningConfig(num_epochs=2, supervised_weight=0.5), chosen=chosen
    )
    state, metrics = step(make_state(model, chosen), batch)
    for mine, other in zip(jax.tree.leaves(state.model), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    assert not same(state.model, model)
    assert same(state.loss_state, model.backbone)  # The reference stays.
    assert int(state.step) == 1 and float(metrics["policy/kl"]) > 0


@pytest.mark.parametrize(
    ("policy", "search", "kind"),
    [
        ("grpo", "sample", "encoder_decoder"),
        pytest.param("sibling_grpo", "ved", "encoder_decoder", marks=pytest.mark.long),
        ("tempo", "beam", "encoder_decoder"),
        ("sibling_grpo", "ved", "item_decoder"),
    ],
)
def test_reward_rises_and_the_second_call_does_not_compile(policy, search, kind):
    def hits(outcome):  # That the first code is the target's is easier to come by.
        return (outcome.tokens[..., 0] == outcome.target[:, None, 0]).astype(jnp.float32)

    batch = make_batch()
    rollout = rollout_config(search, normalise_over="children")
    demonstrated = 0.01 if kind == "item_decoder" else 0.0
    learning = LearningConfig(num_epochs=2, num_minibatches=2, supervised_weight=demonstrated)
    step = make_step(rollout, PolicyConfig(policy), learning, reward=hits)
    state, first = step(make_state(make_model(kind)), batch)
    first = float(first["reward/mean"])
    with compilations() as compiled:
        for _ in range(25):
            state, metrics = step(state, batch)
        jax.block_until_ready(state.step)
    assert not compiled
    assert float(metrics["reward/mean"]) > first + 0.2
    assert float(metrics["search/tokens"]) <= 16 + 2 * (search != "ved")


def test_the_value_head_learns_alone_on_a_frozen_backbone():
    model, batch = make_model(), make_batch()
    chosen = actor_critic_optimizer(None, optax.adam(1e-2))
    learning = LearningConfig(num_epochs=1, learn_policy=False)
    step = make_step(rollout_config("beam"), learning=learning, chosen=chosen)
    state, before = step(make_state(model, chosen), batch)
    for _ in range(40):
        state, metrics = step(state, batch)
    assert same(state.model.backbone, make_model().backbone)
    assert float(metrics["value/loss"]) < 0.5 * float(before["value/loss"])
    assert not any(name.startswith("policy/") for name in metrics)


def test_the_policy_learns_without_a_value_head():
    model, batch = make_model(), make_batch()
    chosen = actor_critic_optimizer(optax.adam(1e-2), None)
    step = make_step(
        rollout_config("beam"), learning=LearningConfig(learn_value=False), chosen=chosen
    )
    state, metrics = step(make_state(model, chosen), batch)
    assert same(state.model.value_head, make_model().value_head)
    assert not same(state.model.backbone, make_model().backbone)
    assert "value/loss" not in metrics


def test_the_reference_follows_when_it_is_due():
    learning = LearningConfig(num_epochs=1, sync_every=2, learn_value=False)
    step = make_step(rollout_config("beam"), learning=learning)
    state, _ = step(make_state(make_model()), make_batch())
    assert same(state.loss_state, make_model().backbone)
    state, _ = step(state, make_batch())
    assert not same(state.loss_state, make_model().backbone)
    pairs = zip(
        jax.tree.leaves(state.loss_state), jax.tree.leaves(state.model.backbone), strict=True
    )
    for mine, its in pairs:  # The compiler may compute the update twice, and round differently.
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)


def test_what_is_not_finite_is_not_applied():
    def broken(outcome):
        return jnp.where(outcome.valid, jnp.nan, 0.0)

    learning = LearningConfig(num_epochs=1, learn_value=False)
    step = make_step(rollout_config("beam"), learning=learning, reward=broken)
    state, _ = step(make_state(make_model()), make_batch())
    assert int(state.bad_step) == 0 != NO_BAD_STEP and int(state.step) == 0
    assert same(state.model, make_model())


def test_filler_rows_have_no_influence():
    """A repetition of a user with weight 0, as the last batch of an epoch has it."""
    batch = make_batch()
    other = {**batch, "history": batch["history"].copy(), "target": batch["target"].copy()}
    other["history"][-1], other["target"][-1] = other["history"][0], other["target"][0]
    step = make_step(rollout_config("beam"), learning=LearningConfig(num_epochs=1))
    one, _ = step(make_state(make_model()), batch)
    two, _ = step(make_state(make_model()), other)
    for mine, its in zip(jax.tree.leaves(one.model), jax.tree.leaves(two.model), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)


ON_TWO_DEVICES = """
import json, re, jax, numpy as np
from test_policy_step import *
from gr.training import make_mesh, mesh as mesh_module, replicate, shard_batch, shard_state

mesh_module.SMALL = 16  # So that the arrays of a small model are split.
meshes = {"one": make_mesh(), "data": make_mesh(data=2), "model": make_mesh(model=2)}

def trained(mesh):
    # Not Adam, which makes whole steps of the rounding errors of gradients that are zero.
    chosen = actor_critic_optimizer(*2 * [optax.sgd(1e-2, momentum=0.9)])
    step = make_step(rollout_config("beam"), learning=LearningConfig(num_minibatches=3), chosen=chosen, mesh=mesh)
    state, values = shard_state(make_state(make_model(), chosen), mesh), []
    for number in range(2):
        if number == 1:
            counter = compilations()
            later = counter.__enter__()
        state, metrics = step(state, shard_batch(make_batch(), mesh))
        values += [float(metrics[name]) for name in ("loss", "value/loss", "reward/mean", "search/tokens")]
    counter.__exit__(None, None, None)
    kept = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((state.model, state.loss_state))]
    return values, [float(abs(np.asarray(x)).sum()) for x in jax.tree.leaves(state.model)], len(later), sum(kept)

def rolled(mesh):
    config = rollout_config("sample")
    arguments = replicate((catalogue(), make_model()), mesh), shard_batch(make_batch(), mesh)
    program = jax.jit(lambda whole, batch, key: roll_out(
        config, whole[0], exact_match, whole[1], whole[1].backbone, batch, key, mesh
    )[0]).lower(*arguments, jax.random.key(3)).compile()
    found = program(*arguments, jax.random.key(3))
    return {
        "rows": sorted({len(s.data) for leaf in jax.tree.leaves(found) for s in leaf.addressable_shards}),
        "exchanges": re.findall("all-gather|all-reduce|all-to-all|collective-permute", program.as_text()),
        "tokens": found.tokens.tolist(), "logp": found.logp.tolist(), "rewards": found.rewards.tolist(),
    }

print(json.dumps({name: [trained(mesh), rolled(mesh)] for name, mesh in meshes.items()}))
"""


@pytest.fixture(scope="module")
def on_two_devices():
    folder = os.path.dirname(__file__)
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([folder, os.path.dirname(folder), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("axis", ["data", "model"])
@pytest.mark.long
def test_two_devices_learn_as_one_does(on_two_devices, axis):
    values, sums, later, whole = on_two_devices["one"][0]
    other, other_sums, other_later, kept = on_two_devices[axis][0]
    np.testing.assert_allclose(other, values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other_sums, sums, rtol=1e-5)
    assert later == other_later == 0
    # Policy, value head and reference are split; not the fewer than 16 numbers of a bias or two.
    assert kept == whole if axis == "data" else whole / 2 <= kept < 0.51 * whole


@pytest.mark.parametrize("axis", ["data", "model"])
@pytest.mark.long
def test_each_device_rolls_out_its_own_users(on_two_devices, axis):
    one, two = on_two_devices["one"][1], on_two_devices[axis][1]
    assert one["rows"] == [USERS] and two["rows"] == [USERS // 2]
    assert two["exchanges"] == []
    assert two["tokens"] == one["tokens"]  # They draw the numbers of one device.
    np.testing.assert_allclose(two["logp"], one["logp"], rtol=1e-5, atol=1e-6)
    assert two["rewards"] == one["rewards"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LearningConfig(num_epochs=0), "rl.num_epochs=0"),
        (lambda: LearningConfig(sync_every=-1), "rl.sync_every=-1"),
        (lambda: LearningConfig(learn_policy=False, learn_value=False), "neither"),
        (lambda: rollout_config(prefix_vectors="leaf"), "value.prefix_vectors='leaf'"),
        (
            lambda: make_step(learning=LearningConfig(num_minibatches=4))(
                make_state(make_model()), make_batch()
            ),
            "num_minibatches=4",
        ),
    ],
)
def test_what_cannot_work_is_said(make, said):
    with pytest.raises(TrainingError, match=said):
        make()
