import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.data import NO_ITEM
from gr.losses import cross_entropy, token_log_probs
from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    ItemDecoder,
    ItemDecoderConfig,
)
from gr.training import TrainingError
from gr.training.objectives import (
    LossConfig,
    init_loss_state,
    supervised_loss,
)
from gr.trie import TrieIndex, item_token_table

pytestmark = pytest.mark.usefixtures("compile_in_haste")

VOCAB, LENGTH, ITEMS = 9, 3, 12
TOKENS = np.random.default_rng(0).integers(2, VOCAB, (ITEMS, LENGTH))

# Three users of 4, 2 and 3 items, so 3 + 1 + 2 targets.
SEQUENCES = [[3, 7, 1, 7], [11, 0], [5, 2, 9]]
NUM_TARGETS = 6
TARGETS_PER_BATCH = 4.0  # Another number than this batch has, as in training.
FILLER_ROWS = 2


@functools.cache
def make_model(name):
    backbone, _, head = name.partition("/")
    nodes = {"head": "trie", "num_nodes": 2 * ITEMS} if head == "trie" else {}
    if backbone == "decoder_only":
        config = DecoderOnlyConfig(
            VOCAB, LENGTH, d_model=16, num_heads=2, d_ff=24, num_layers=1, dropout=0.0, **nodes
        )
        create = functools.partial(DecoderOnly, config)
    elif backbone == "item_decoder":
        config = ItemDecoderConfig(
            VOCAB, LENGTH, ITEMS, 2 * ITEMS, d_model=16, num_heads=2, d_ff=24, dropout=0.0
        )
        if head == "tower":
            config = dataclasses.replace(config, item_share=0.5)
        else:
            config = dataclasses.replace(config, head=head or "trie")
        create = functools.partial(ItemDecoder, config)
    else:
        config = EncoderDecoderConfig(
            VOCAB,
            LENGTH,
            d_model=16,
            num_heads=2,
            head_dim=8,
            d_ff=24,
            num_encoder_layers=1,
            num_decoder_layers=1,
            dropout=0.0,
            causal_encoder=True,
            recency_bias=True,
            **nodes,
        )
        create = functools.partial(EncoderDecoder, config)
    # Larger numbers than at initialisation, so that every part counts.
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), jnp.float32),
        jax.eval_shape(lambda: create(rngs=nnx.Rngs(0))),
    )


def padded(rows, width):
    return np.array([row + [NO_ITEM] * (width - len(row)) for row in rows], np.int32)


def with_filler(batch, rows=(0, 0)):
    """The batch with repetitions of its rows at the end, of weight 0."""
    filled = {name: np.concatenate([x, x[list(rows)]]) for name, x in batch.items()}
    filled["weight"][-FILLER_ROWS:] = 0
    return filled


def user_batch():
    weight = np.zeros((3, 5), np.float32)
    for user, sequence in enumerate(SEQUENCES):
        weight[user, 1 : len(sequence)] = 1
    return with_filler({"items": padded(SEQUENCES, 5), "weight": weight})


def target_batch():
    pairs = [(row[:place], row[place]) for row in SEQUENCES for place in range(1, len(row))]
    return with_filler(
        {
            "history": padded([history for history, _ in pairs], 4),
            "target": np.array([target for _, target in pairs], np.int32),
            "weight": np.ones(NUM_TARGETS, np.float32),
        }
    )


BATCHES = {"user": user_batch, "target": target_batch}


@functools.cache
def compiled(level):
    loss = supervised_loss(TOKENS, level=level, targets_per_batch=TARGETS_PER_BATCH)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(level, batch):
    """Loss, losses of the levels and gradients of the decoder-only model."""
    (loss, (metrics, loss_state)), grads = compiled(level)(
        make_model("decoder_only"), batch, jax.random.key(0), jnp.float32(7.0)
    )
    assert loss_state == 7.0  # What other losses keep between steps is passed through.
    return float(loss), {k: float(v) for k, v in metrics.items()}, jax.tree.leaves(grads)


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1] == pytest.approx(other[1], rel=1e-5)
    for first, second in zip(one[2], other[2], strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)


def test_both_levels_are_one_loss_of_the_same_targets():
    user, target = run("user", user_batch()), run("target", target_batch())
    assert_same(user, target)
    assert max(np.abs(grad).max() for grad in user[2]) > 0.01


def test_both_levels_are_one_loss_of_the_encoder_decoder_too():
    losses = []
    for level, batch in BATCHES.items():
        loss = supervised_loss(TOKENS, level=level, targets_per_batch=TARGETS_PER_BATCH)
        value, (metrics, _) = jax.jit(loss)(
            make_model("encoder_decoder"), batch(), jax.random.key(0), ()
        )
        losses.append([float(value), *map(float, metrics.values())])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("level", BATCHES)
def test_the_loss_is_minus_log_p_of_the_targets_codes(level):
    batch = {name: column[:-FILLER_ROWS] for name, column in target_batch().items()}
    history = np.where(batch["history"][..., None] < 0, 0, TOKENS[batch["history"]])
    target = TOKENS[batch["target"]]
    forward = jax.jit(lambda model, *inputs: model.target_logits(*inputs))
    logits = np.asarray(forward(make_model("decoder_only"), history, target), float)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]

    loss, metrics, _ = run(level, BATCHES[level]())
    # The sum over targets by the mean number of targets in a batch; but levels are means over this batch.
    assert loss == pytest.approx(-chosen.mean(axis=1).sum() / TARGETS_PER_BATCH, rel=1e-5)
    assert metrics == {
        f"level_{code + 1}/loss": pytest.approx(-chosen[:, code].mean(), rel=1e-5)
        for code in range(LENGTH)
    }


@pytest.mark.parametrize("level", BATCHES)
def test_filler_rows_have_no_influence(level):
    batch = BATCHES[level]()
    plain = run(level, batch)
    real = {name: column[:-FILLER_ROWS] for name, column in batch.items()}
    assert_same(run(level, with_filler(real, rows=(2, 1))), plain)
    columns = [name for name in batch if name != "weight"]
    empty = {name: batch[name].copy() for name in columns}
    for name in columns:
        empty[name][-FILLER_ROWS:] = NO_ITEM
    assert_same(run(level, {**batch, **empty}), plain)


def test_targets_of_weight_0_are_seen_but_not_predicted():
    batch = user_batch()
    batch["weight"][0, 1:3] = 0  # Of the first user, the last item alone is a target.
    kept = target_batch()
    kept["weight"][:2] = 0
    user, target = run("user", batch), run("target", kept)
    assert_same(user, target)
    without = run("user", user_batch())
    assert user[0] != pytest.approx(without[0], rel=1e-3)


@pytest.mark.parametrize("level", BATCHES)
def test_every_target_counts_the_same_in_whichever_batch_it_falls(level):
    batch = BATCHES[level]()
    whole = run(level, batch)
    masks = [np.arange(len(batch["weight"])) == 0, np.arange(len(batch["weight"])) > 0]
    parts = []
    for mask in masks:  # As two batches, of unequal numbers of targets.
        weight = batch["weight"] * (mask[:, None] if level == "user" else mask)
        parts.append(run(level, {**batch, "weight": weight}))
    assert parts[0][0] + parts[1][0] == pytest.approx(whole[0], rel=1e-5)
    assert parts[0][0] > 0 and parts[1][0] > 0
    for first, second, both in zip(parts[0][2], parts[1][2], whole[2], strict=True):
        np.testing.assert_allclose(first + second, both, rtol=1e-3, atol=1e-5)


def test_padding_is_the_last_row_of_the_token_table():
    table = item_token_table(np.array([[2, 5], [3, 4]]))
    assert table.tolist() == [[2, 5], [3, 4], [0, 0]]
    assert table[np.array([1, NO_ITEM, 0])].tolist() == [[3, 4], [0, 0], [2, 5]]


def test_unknown_names_are_refused():
    with pytest.raises(TrainingError, match="level 'session' is unknown; use one of target, user"):
        supervised_loss(TOKENS, level="session", targets_per_batch=1.0)
    with pytest.raises(TrainingError, match="loss.name='hinge' is unknown; use one of ce, msl"):
        LossConfig("hinge")
    with pytest.raises(TrainingError, match=r"loss.weights='even' is unknown; use one of adaptive"):
        LossConfig("apao_pointwise", weights="even")
    with pytest.raises(TrainingError, match=r"loss.tau=0: use a number above 0"):
        LossConfig(tau=0)
    for field in ("tau", "beta", "eta"):
        for value in (float("nan"), float("inf"), -1.0):
            with pytest.raises(TrainingError, match=f"loss.{field}={value}: use "):
                LossConfig(**{field: value})
    with pytest.raises(TrainingError, match="needs the trie: give its `index`"):
        supervised_loss(TOKENS, level="user", targets_per_batch=1.0, loss=LossConfig("msl"))


# A loss of one's own.


def own_cross_entropy(logits, tokens, weight, normaliser, index):
    assert index.length == LENGTH
    value, metrics = cross_entropy(token_log_probs(logits, tokens), weight, normaliser)
    return value, {**metrics, "constant": 2.0}


def not_a_pair(logits, tokens, weight, normaliser, index):
    return logits.sum()


def no_scalar(logits, tokens, weight, normaliser, index):
    return weight, {}


def wide_metric(logits, tokens, weight, normaliser, index):
    return logits.sum(), {"wide": weight}


def on_the_host(logits, tokens, weight, normaliser, index):
    return float(logits.sum()), {}


def of_other_arguments(logits, tokens):
    return logits.sum(), {}


def own_loss(name, level):
    return supervised_loss(
        TOKENS,
        level=level,
        targets_per_batch=TARGETS_PER_BATCH,
        loss=LossConfig(f"{__name__}:{name}"),
        index=TrieIndex.build(TOKENS, VOCAB),
    )


@pytest.mark.parametrize("level", BATCHES)
def test_an_own_loss_gets_what_cross_entropy_gets(level):
    batch = BATCHES[level]()
    loss, metrics, _ = run(level, batch)
    value, (found, state) = jax.jit(own_loss("own_cross_entropy", level))(
        make_model("decoder_only"), batch, jax.random.key(0), ()
    )
    assert state == init_loss_state(LossConfig("a:b"), LENGTH) == ()
    assert float(value) == pytest.approx(loss, rel=1e-6)
    found = {name: float(metric) for name, metric in found.items()}
    assert found == pytest.approx({**metrics, "constant": 2.0}, rel=1e-6)


@pytest.mark.parametrize("level", BATCHES)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_a_pair", "returned one array instead of a loss and a dictionary of metrics"),
        ("no_scalar", r"returned the loss float32\["),
        ("wide_metric", "returned the metric 'wide' of another shape"),
        ("on_the_host", "cannot be compiled .*write it with jax.numpy alone"),
        ("of_other_arguments", "raised TypeError: .*positional arguments"),
        ("missing", "has no 'missing'"),
    ],
)
def test_an_own_loss_that_does_not_fit_is_told_before_the_first_step(level, name, message):
    with pytest.raises(TrainingError, match=message):
        own_loss(name, level)


def test_an_own_loss_needs_the_trie():
    loss = LossConfig(f"{__name__}:own_cross_entropy")
    with pytest.raises(TrainingError, match="needs the trie"):
        supervised_loss(TOKENS, level="user", targets_per_batch=1.0, loss=loss)


@pytest.mark.parametrize("name", ["msl", "apao_pointwise"])
def test_other_losses_are_the_same_at_both_levels(name):
    index = TrieIndex.build(TOKENS, VOCAB)
    config = LossConfig(name, tau=1.5, beta=0.7, eta=0.3)
    found = {}
    for level, batch in BATCHES.items():
        loss = supervised_loss(
            TOKENS, level=level, targets_per_batch=TARGETS_PER_BATCH, loss=config, index=index
        )
        (value, (metrics, state)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            make_model("decoder_only"), batch(), jax.random.key(0), init_loss_state(config, LENGTH)
        )
        found[level] = (
            float(value),
            {k: float(v) for k, v in metrics.items()},
            jax.tree.leaves(grads),
        )
        found[level, "state"] = jax.tree.map(np.asarray, state)
    assert_same(found["user"], found["target"])
    assert max(np.abs(grad).max() for grad in found["user"][2]) > 0.01
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5),
        found["user", "state"],
        found["target", "state"],
    )


@pytest.mark.parametrize("weights", ["adaptive", "stateless", "uniform"])
def test_apao_adds_weighted_prefix_losses_to_cross_entropy(weights):
    config = LossConfig("apao_pointwise", tau=2.0, beta=0.7, eta=0.3, weights=weights)
    alone = dataclasses.replace(config, with_ce=False)
    before = jnp.array([0.5, 0.25, 0.25])
    values = {}
    for name, loss in (("ce", None), ("both", config), ("alone", alone)):
        loss = supervised_loss(TOKENS, level="user", targets_per_batch=TARGETS_PER_BATCH, loss=loss)
        value, (metrics, state) = jax.jit(loss)(
            make_model("decoder_only"), user_batch(), jax.random.key(0), before
        )
        values[name] = float(value)
    # Level t's mean loss is over 6 targets, what is minimised is divided by 4.
    levels = (
        np.array([metrics[f"level_{t}/loss"] for t in (1, 2, 3)]) * NUM_TARGETS / TARGETS_PER_BATCH
    )
    losses = np.cumsum(levels) / np.arange(1, 4) / config.tau
    shares = losses / losses.sum()
    expected = {
        "adaptive": np.asarray(before) * np.exp(0.3 * shares),
        "stateless": losses * np.exp(0.3 * losses),
        "uniform": np.ones(3),
    }[weights]
    expected = expected / expected.sum()
    np.testing.assert_allclose(state, expected, rtol=1e-5)
    assert values["alone"] == pytest.approx(0.7 * (expected * losses).sum(), rel=1e-5)
    assert values["both"] == pytest.approx(values["ce"] + values["alone"], rel=1e-5)
