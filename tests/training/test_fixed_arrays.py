"""Token table, trie and vectors are arguments of the compiled step, not constants in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gr.decoding import SearchConfig
from gr.losses import PolicyConfig, exact_match, semantic, weighted_sum
from gr.models import DecoderOnly, DecoderOnlyConfig, ValueHead, ValueHeadConfig
from gr.training import (
    ActorCritic,
    Environment,
    LearningConfig,
    LossConfig,
    RolloutConfig,
    TrainState,
    ValueConfig,
    actor_critic_optimizer,
    init_loss_state,
    make_mesh,
    make_policy_step,
    make_train_step,
    supervised_loss,
)
from gr.trie import TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

LENGTH, CODES = 2, 64
VOCAB = 2 + LENGTH * CODES
FEW, MANY = 300, 3000


@functools.cache
def catalogue(num_items):
    chosen = np.sort(np.random.default_rng(0).permutation(CODES**LENGTH)[:num_items])
    tokens = np.stack(np.divmod(chosen, CODES), axis=1) + 2 + np.arange(LENGTH) * CODES
    return tokens, TrieIndex.build(tokens, VOCAB)


def make_backbone():
    config = DecoderOnlyConfig(VOCAB, LENGTH, d_model=8, num_heads=2, d_ff=8, num_layers=1)
    return DecoderOnly(config, rngs=nnx.Rngs(0))


def supervised_program(num_items, name, as_pytree=True):
    """The text of the step's program."""
    tokens, index = catalogue(num_items)
    config, optimizer = LossConfig(name, num_negatives=2), optax.sgd(0.1)
    loss = supervised_loss(tokens, level="user", targets_per_batch=2.0, loss=config, index=index)
    if not as_pytree:
        loss = functools.partial(lambda loss, *args: loss(*args), loss)
    state = TrainState.create(
        make_backbone(), optimizer, jax.random.key(0), init_loss_state(config, LENGTH)
    )
    batch = {"items": np.zeros((2, 4), np.int32), "weight": np.ones((2, 4), np.float32)}
    return make_train_step(loss, optimizer, mesh=make_mesh()).lower(state, batch).as_text()


@pytest.mark.parametrize("name", ["ce", "msl", "apao_pointwise", "apao_pairwise"])
def test_supervised_programs_do_not_grow_with_the_catalogue(name):
    few, many = (len(supervised_program(n, name)) for n in (FEW, MANY))
    assert many < few + MANY  # Much less than an item's tokens, 16 hexadecimal digits, each.


def test_what_a_plain_function_closes_over_would_be_seen():
    few, many = (len(supervised_program(n, "ce", as_pytree=False)) for n in (FEW, MANY))
    assert many > few + 10 * MANY


def policy_program(num_items):
    tokens, index = catalogue(num_items)
    vectors = np.random.default_rng(0).normal(size=(num_items, 4))
    environment = Environment.build(index, tokens, vectors)
    popularity = jnp.linspace(0.0, 1.0, num_items)
    popular = jax.tree_util.Partial(lambda table, outcome: table[outcome.items], popularity)
    head = ValueHead(ValueHeadConfig(8, LENGTH, 2, 8), rngs=nnx.Rngs(1))
    model = ActorCritic(make_backbone(), head)
    optimizer = actor_critic_optimizer(optax.sgd(0.1), optax.sgd(0.1))
    step = make_policy_step(
        RolloutConfig(SearchConfig("beam", num_candidates=3), normalise_over="children"),
        PolicyConfig(),
        ValueConfig(),
        LearningConfig(num_epochs=1),
        environment,
        weighted_sum([(exact_match, 1.0), (semantic(vectors), 0.5), (popular, 0.1)]),
        optimizer,
    )
    state = TrainState.create(model, optimizer, jax.random.key(0), loss_state=model.backbone)
    batch = {
        "history": np.zeros((2, 4), np.int32),
        "target": np.zeros(2, np.int32),
        "weight": np.ones(2, np.float32),
    }
    return step.lower(state, batch).as_text()


def test_the_program_of_reinforcement_learning_does_not_grow_with_the_catalogue():
    few, many = (len(policy_program(n)) for n in (FEW, MANY))
    assert many < few + MANY
