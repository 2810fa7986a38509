"""Losses of the item-level backbone with each of its heads, and of the others with a trie head."""

import jax
import numpy as np
import oracles
import pytest

from gr.losses import uniform_prefix_weights
from gr.models import ItemHistory, codes_alone
from gr.training import LossConfig, TrainingError, init_loss_state, supervised_loss
from gr.trie import TrieIndex, item_token_table
from tests.training.test_objectives import (
    BATCHES,
    FILLER_ROWS,
    LENGTH,
    TARGETS_PER_BATCH,
    TOKENS,
    VOCAB,
    make_model,
    target_batch,
)
from tests.training.test_pairwise import log_probs

pytestmark = pytest.mark.usefixtures("compile_in_haste")

LONG = pytest.mark.long

LOSSES = {
    "ce": LossConfig("ce"),
    "msl": LossConfig("msl", tau=1.7),
    "apao_pointwise": LossConfig("apao_pointwise", tau=1.7, beta=0.4, weights="uniform"),
}


def make_loss(level, config, index=True):
    return supervised_loss(
        TOKENS,
        level=level,
        targets_per_batch=TARGETS_PER_BATCH,
        loss=config,
        index=TrieIndex.build(TOKENS, VOCAB) if index else None,
    )


def run(name, level, config):
    loss, state = make_loss(level, config), init_loss_state(config, LENGTH)
    (value, (metrics, _)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        make_model(name), BATCHES[level](), jax.random.key(0), state
    )
    return float(value), {k: float(v) for k, v in metrics.items()}, jax.tree.leaves(grads)


SCORERS = ["item_decoder", "encoder_decoder/trie", "decoder_only/trie"]
OTHERS = (*SCORERS[1:], "item_decoder/vocabulary")


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        *(("item_decoder", loss) for loss in LOSSES),
        *((name, "apao_pointwise") for name in OTHERS),
        *(pytest.param(name, loss, marks=LONG) for name in OTHERS for loss in ("ce", "msl")),
    ],
)
def test_both_levels_are_one_loss_of_the_same_targets(name, loss):
    user, target = (run(name, level, LOSSES[loss]) for level in BATCHES)
    assert user[:2] == (pytest.approx(target[0], rel=1e-5), pytest.approx(target[1], rel=1e-4))
    for one, other in zip(user[2], target[2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert max(np.abs(grad).max() for grad in user[2]) > 0.01


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("loss", ["ce", "apao_pointwise"])
def test_losses_are_those_of_the_log_probabilities_over_children(loss, name):
    value, metrics, _ = run(name, "user", LOSSES[loss])
    batch = {name: column[:-FILLER_ROWS] for name, column in target_batch().items()}
    log_p = log_probs(name, batch["history"], batch["target"])  # By dictionaries.
    expected = -log_p.mean(axis=1).sum() / TARGETS_PER_BATCH
    if loss == "apao_pointwise":
        depths, config = np.arange(1, LENGTH + 1), LOSSES[loss]
        losses = -(np.cumsum(log_p, axis=1) / depths).sum(axis=0)
        losses /= TARGETS_PER_BATCH * config.tau
        found = [metrics[f"prefix_{depth}/loss"] for depth in depths]
        np.testing.assert_allclose(found, losses, rtol=1e-4)
        expected += config.beta * (np.asarray(uniform_prefix_weights(losses)) * losses).sum()
    assert value == pytest.approx(expected, rel=1e-4)


def test_msl_divides_the_logits_by_its_temperature_and_ce_does_not():
    one, other = (run("item_decoder", "user", LossConfig("msl", tau=tau)) for tau in (1.0, 1.7))
    plain = run("item_decoder", "user", LossConfig("ce"))
    assert plain[0] == pytest.approx(one[0], rel=1e-6) != pytest.approx(other[0], rel=1e-3)


@pytest.mark.parametrize("level", BATCHES)
def test_the_head_over_items_is_a_softmax_over_them(level):
    value, metrics, grads = run("item_decoder/items", level, LossConfig("ce"))
    model, table = make_model("item_decoder/items"), np.asarray(item_token_table(TOKENS))
    batch = {name: column[:-FILLER_ROWS] for name, column in target_batch().items()}
    history = ItemHistory(batch["history"], table[batch["history"]])
    logits = np.asarray(model.item_logits(model.last_state(history)))
    chances = [oracles.log_softmax(row)[t] for row, t in zip(logits, batch["target"], strict=True)]
    assert value == pytest.approx(-sum(chances) / TARGETS_PER_BATCH, rel=1e-4)
    assert list(metrics) == ["level_1/loss"] and metrics["level_1/loss"] == pytest.approx(
        -np.mean(chances), rel=1e-4
    )
    assert all(np.isfinite(grad).all() for grad in grads)


def test_an_item_tower_has_the_temperature_of_msl_by_which_searches_divide_its_logits():
    model, batch, config = make_model("item_decoder/tower"), target_batch(), LOSSES["msl"]
    table = np.asarray(item_token_table(TOKENS))
    history = ItemHistory(batch["history"], table[batch["history"]])
    logits = np.asarray(model.tower.item_logits(model.tower.last_state(history)))
    of_targets = [
        oracles.log_softmax(row / config.tau)[t]
        for row, t in zip(logits, batch["target"], strict=True)
    ]
    expected = -(np.array(of_targets) * batch["weight"]).sum() / TARGETS_PER_BATCH
    _, (metrics, _) = make_loss("target", config)(model, batch, jax.random.key(0), ())
    assert float(metrics["items/loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("level", BATCHES)
@pytest.mark.parametrize("loss", ["apao_pointwise", pytest.param("apao_pairwise", marks=LONG)])
def test_an_item_tower_is_trained_beside_the_rest_as_if_it_were_alone(loss, level):
    model, config = make_model("item_decoder/tower"), LossConfig(loss, num_negatives=3)
    batch, key, state = BATCHES[level](), jax.random.key(0), init_loss_state(config, LENGTH)
    of_codes, of_items = make_loss(level, config), make_loss(level, LossConfig("ce"))

    @jax.jit
    def apart(model):
        codes, _ = of_codes(codes_alone(model), batch, key, state)
        return codes + of_items(model.tower, batch, jax.random.fold_in(key, 1), ())[0]

    (value, (metrics, _)), grads = jax.jit(jax.value_and_grad(of_codes, has_aux=True))(
        model, batch, key, state
    )
    assert float(value) == pytest.approx(float(apart(model)), rel=1e-6)
    assert 0 < float(metrics["items/loss"]) < float(value)
    expected = jax.grad(apart)(model)
    for one, other in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert min(np.abs(grad).max() for grad in jax.tree.leaves(grads.tower)) > 0


def own_loss(logits, tokens, weight, normaliser, index):
    """A loss of the user."""
    return (logits.sum(axis=(-1, -2)) * weight).sum() / normaliser, {}


def test_what_does_not_go_together_is_one_clear_error():
    own = LossConfig(f"{__name__}:own_loss")
    for name, config, index, message in (
        (
            "item_decoder/items",
            LossConfig("apao_pairwise"),
            True,
            "scores whole items: use loss.name='ce'",
        ),
        ("item_decoder/items", LossConfig("msl"), True, "scores whole items: use loss.name='ce'"),
        ("item_decoder/items", own, True, "scores whole items: use loss.name='ce'"),
        ("item_decoder", own, True, "takes logits over the vocabulary"),
        ("item_decoder", LossConfig("ce"), False, "give its `index`"),
    ):
        loss = make_loss("user", config, index)
        state = init_loss_state(config, LENGTH)
        with pytest.raises(TrainingError, match=message):
            jax.eval_shape(loss, make_model(name), BATCHES["user"](), jax.random.key(0), state)


def test_the_trie_decides_what_a_code_competes_with():
    whole = run("item_decoder", "user", LOSSES["ce"])[0]
    loss = supervised_loss(
        TOKENS,
        level="user",
        targets_per_batch=TARGETS_PER_BATCH,
        index=TrieIndex.build(np.concatenate([TOKENS, TOKENS[:, ::-1]]), VOCAB),
    )
    more = loss(make_model("item_decoder"), BATCHES["user"](), jax.random.key(0), ())[0]
    assert float(more) != pytest.approx(whole, rel=1e-3)
