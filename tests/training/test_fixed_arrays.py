"""Token table, trie and vectors are arguments of the compiled step, not constants in it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gr.decoding import SearchConfig
from gr.losses import PolicyConfig
from gr.models import DecoderOnly, DecoderOnlyConfig, ValueHead, ValueHeadConfig
from gr.rl import (
    ActorCritic,
    LearningConfig,
    RolloutConfig,
    ValueConfig,
    actor_critic_optimizer,
    exact_match,
    make_policy_step,
    semantic,
    weighted_sum,
)
from gr.training import (
    LossConfig,
    TrainState,
    init_loss_state,
    make_mesh,
    make_train_step,
    supervised_loss,
)
from gr.trie import Catalogue, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

LENGTH, CODES = 2, 64
VOCAB = 2 + LENGTH * CODES
ITEMS = 3000
SMALL = 1000  # Characters of a program's text; what the items need takes 8 of them for each number.


@functools.cache
def catalogue():
    chosen = np.sort(np.random.default_rng(0).permutation(CODES**LENGTH)[:ITEMS])
    tokens = np.stack(np.divmod(chosen, CODES), axis=1) + 2 + np.arange(LENGTH) * CODES
    return tokens, TrieIndex.build(tokens, VOCAB)


def largest_constant(lowered):
    """Characters of the longest constant in a program."""
    return max(map(len, re.findall(r"dense<[^>]*>", lowered.as_text())))


def make_backbone():
    config = DecoderOnlyConfig(VOCAB, LENGTH, d_model=8, num_heads=2, d_ff=8, num_layers=1)
    return DecoderOnly(config, rngs=nnx.Rngs(0))


def supervised_program(name, as_pytree=True):
    tokens, index = catalogue()
    config, optimizer = LossConfig(name, num_negatives=2), optax.sgd(0.1)
    loss = supervised_loss(tokens, level="user", targets_per_batch=2.0, loss=config, index=index)
    if not as_pytree:
        loss = functools.partial(lambda loss, *args: loss(*args), loss)
    state = TrainState.create(
        make_backbone(), optimizer, jax.random.key(0), init_loss_state(config, LENGTH)
    )
    batch = {"items": np.zeros((2, 4), np.int32), "weight": np.ones((2, 4), np.float32)}
    return make_train_step(loss, optimizer, mesh=make_mesh()).lower(state, batch)


@pytest.mark.parametrize("name", ["ce", "msl", "apao_pointwise", "apao_pairwise"])
def test_supervised_programs_do_not_hold_the_catalogue(name):
    assert largest_constant(supervised_program(name)) < SMALL


def test_what_a_plain_function_closes_over_would_be_seen():
    assert largest_constant(supervised_program("ce", as_pytree=False)) > 8 * LENGTH * ITEMS


def test_the_program_of_reinforcement_learning_does_not_hold_the_catalogue():
    tokens, index = catalogue()
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 4))
    items = Catalogue.build(index, tokens, vectors)
    popularity = jnp.linspace(0.0, 1.0, ITEMS)
    popular = jax.tree_util.Partial(lambda table, outcome: table[outcome.items], popularity)
    head = ValueHead(ValueHeadConfig(8, LENGTH, 2, 8), rngs=nnx.Rngs(1))
    model = ActorCritic(make_backbone(), head)
    optimizer = actor_critic_optimizer(optax.sgd(0.1), optax.sgd(0.1))
    step = make_policy_step(
        RolloutConfig(SearchConfig("beam", num_candidates=3), normalise_over="children"),
        PolicyConfig(),
        ValueConfig(),
        LearningConfig(num_epochs=1),
        items,
        weighted_sum([(exact_match, 1.0), (semantic(vectors), 0.5), (popular, 0.1)]),
        optimizer,
    )
    state = TrainState.create(model, optimizer, jax.random.key(0), loss_state=model.backbone)
    batch = {
        "history": np.zeros((2, 4), np.int32),
        "target": np.zeros(2, np.int32),
        "weight": np.ones(2, np.float32),
    }
    assert largest_constant(step.lower(state, batch)) < SMALL
