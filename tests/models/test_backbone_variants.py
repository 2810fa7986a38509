"""Backbones with the settings of public checkpoints, and with prompts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data.prompts import (
    PromptPieces,
    TitledPieces,
    grow_tokenizer,
    id_names,
    item_texts,
    load_tokenizer,
    titled_pieces,
)
from gr.decoding import beam_search
from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    ModelError,
    Prompt,
    Rope,
)
from gr.models.layers import rotate
from gr.models.prompts import as_prompt, titled_prompt
from gr.testing import check_backbone
from gr.trie import TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

VOCAB, LENGTH, TEXT = 11, 3, 9
SIZES = {"d_model": 16, "num_heads": 4, "d_ff": 24, "num_layers": 2}
PIECES = PromptPieces(before=(3, 1), between=(4,), after=(5, 6, 2))
CONFIGS = {
    "grouped": {"num_kv_heads": 2},
    "norms and biases": {
        "num_kv_heads": 2,
        "head_dim": 6,
        "qk_norm": True,
        "qkv_bias": True,
        "norm_epsilon": 1e-3,
        "rope": Rope(base=50.0),
    },
    "prompted": {"num_kv_heads": 2, "num_text_tokens": TEXT, "pieces": PIECES},
    "T5": {
        "head_dim": 6,
        "activation": "gated-gelu",
        "scaled_attention": False,
        "scaled_head": True,
        "tied_head": True,
        "num_buckets": 8,
        "max_distance": 12,
        "start_token": 0,
        "num_text_tokens": TEXT,
        "pieces": PIECES,
    },
}


def make_model(name, **changes):
    """A model with random parameters, so that every part of it counts."""
    if name == "T5":
        sizes = {"d_model": 16, "num_heads": 2, "d_ff": 24}
        layers = {"num_encoder_layers": 2, "num_decoder_layers": 1}
        config = EncoderDecoderConfig(VOCAB, LENGTH, **sizes, **layers, **CONFIGS[name])
    else:
        config = DecoderOnlyConfig(VOCAB, LENGTH, **SIZES, **CONFIGS[name] | changes)
    model = EncoderDecoder if name == "T5" else DecoderOnly
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 0.5 if leaf.ndim == 1 else 1.5 * leaf.shape[0] ** -0.5
        return jnp.asarray((path[-2].name == "scale") + scale * rng.normal(size=leaf.shape), "f4")

    shapes = jax.eval_shape(lambda: model(config, rngs=nnx.Rngs(0)))
    return jax.tree_util.tree_map_with_path(draw, shapes)


target_logits = jax.jit(lambda model, *inputs: model.target_logits(*inputs))


def random_history(seed=0, lengths=(1, 3, 2), size=4):
    rng = np.random.default_rng(seed)
    items = rng.integers(2, VOCAB, (len(lengths), size, LENGTH))
    return jnp.asarray(
        np.where(np.arange(size)[:, None] < np.array(lengths)[:, None, None], items, 0)
    )


INDEX = TrieIndex.build(np.random.default_rng(0).integers(2, VOCAB, (12, LENGTH)), VOCAB)


@pytest.mark.parametrize("name", ["norms and biases", "prompted", "T5"])
def test_every_way_to_score_gives_the_same(name):
    checked = check_backbone(make_model(name), random_history(), INDEX)
    assert {"step", "assemble", "target_logits", "group_states"} <= set(checked)
    # A prompt's text stands behind the history, so that there is no pass over all places of it.
    assert ("sequence_logits" in checked) == (name not in ("prompted", "T5"))


def test_heads_that_share_keys_are_as_many_heads_with_the_same_keys():
    model = make_model("grouped")
    full = make_model("grouped", num_kv_heads=4)
    for grouped, layer in zip(model.layers, full.layers, strict=True):
        query, *kv = np.split(np.asarray(grouped.qkv.kernel[...]), (16, 24), axis=1)
        # Key heads 0, 1 of width 4 serve query heads 0, 1 and 2, 3.
        kv = [np.repeat(part.reshape(16, 2, 4), 2, axis=1).reshape(16, 16) for part in kv]
        layer.qkv.kernel = nnx.Param(jnp.asarray(np.concatenate([query, *kv], axis=1)))
        for part in ("attention_norm", "ffn_norm", "out", "gate_up", "down"):
            setattr(layer, part, getattr(grouped, part))
    for part in ("embedding", "norm", "head"):
        setattr(full, part, getattr(model, part))
    history, target = random_history(), jnp.asarray([[2, 3, 4]] * 3)
    np.testing.assert_allclose(
        target_logits(model, history, target), target_logits(full, history, target), atol=1e-4
    )
    found, expected = (beam_search(m, INDEX, history, 5) for m in (model, full))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    # And they are stored once for each key head.
    cache = jax.eval_shape(model.prefill, history)[2]
    assert cache.shared[0][0].shape[1] == 2


def slow_frequencies(rope, half):
    """Pair by pair."""
    found = []
    for pair in range(half):
        plain = rope.base ** -(pair / half)
        turns = rope.original_length / (2 * math.pi / plain)
        if rope.scaling == "default":
            found.append(plain)
        elif rope.scaling == "linear" or turns < rope.low:
            found.append(plain / rope.factor)
        elif turns > rope.high:
            found.append(plain)
        else:
            kept = (turns - rope.low) / (rope.high - rope.low)
            found.append((1 - kept) * plain / rope.factor + kept * plain)
    return np.array(found)


@pytest.mark.parametrize("scaling", ["default", "linear", "llama3"])
def test_pairs_turn_as_the_variant_says(scaling):
    rope = Rope(base=1000.0, scaling=scaling, factor=4.0, original_length=64)
    expected = slow_frequencies(rope, 8)
    np.testing.assert_allclose(rope.frequencies(8), expected, rtol=1e-5)
    x = np.random.default_rng(0).normal(size=(2, 1, 16)).astype("f4")  # [S, H, D].
    angles = np.array([3, 40])[:, None, None] * expected
    low, high = x[..., :8], x[..., 8:]
    turned = np.concatenate(
        [
            low * np.cos(angles) - high * np.sin(angles),
            high * np.cos(angles) + low * np.sin(angles),
        ],
        -1,
    )
    np.testing.assert_allclose(rotate(jnp.asarray(x), jnp.array([3, 40]), rope), turned, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaling": "yarn"}, "rope.scaling='yarn' is not offered: use one of default, linear"),
        ({"base": 0.0}, "rope.base=0.0 must be above 0"),
        ({"scaling": "llama3", "low": 4.0}, "rope.high=4.0 must be above rope.low=4.0"),
    ],
)
def test_rope_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        Rope(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
        ({"head_dim": 5}, "head_dim=5 must be even"),
        ({"pieces": PIECES}, "token 6, and num_text_tokens=0"),
        ({"pieces": PIECES, "num_text_tokens": 6}, "token 6, and num_text_tokens=6"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        DecoderOnlyConfig(VOCAB, LENGTH, **SIZES, **fields)


# Prompts.

piece = st.lists(st.integers(0, TEXT - 1), max_size=3).map(tuple)


@settings(max_examples=12, deadline=None)
@given(
    st.builds(PromptPieces, piece, piece, piece),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_a_prompt_is_the_pieces_around_the_items(pieces, lengths):
    history = random_history(1, lengths, max(lengths))
    tokens, ends = as_prompt(history, pieces, TEXT)
    for row, count in enumerate(lengths):
        expected = list(pieces.before)
        for place in range(count):
            expected += [TEXT + int(token) for token in history[row, place]]
            expected += pieces.between if place + 1 < count else pieces.after
        assert ends[row] == len(expected)
        assert tokens[row, : len(expected)].tolist() == expected


TITLES = ["", "a red pen", "bought, next", "pen\N{EURO SIGN}", "next"]
lay_out = jax.jit(titled_prompt, static_argnums=3)
FORMS = ["{title} {item}", "{item} ({title})", "{item}", "<{title}>{item}"]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.sampled_from(FORMS),
    st.text("a ,.bought\n", max_size=6),
    st.text("a ,.bought\n", max_size=6),
)
def test_a_prompt_with_titles_has_the_tokens_of_its_text(history, form, before, after):
    def template(items, titles):
        pairs = zip(items, titles, strict=True)
        return before + ", ".join(form.format(item=i, title=t) for i, t in pairs) + after

    tokenizer = load_tokenizer("configs/checkpoints/qwen2_tiny")
    size, names = tokenizer.get_vocab_size(), id_names((3, 2))
    table = np.array([[2, 5], [2, 6], [3, 5], [3, 6], [4, 5], [0, 0]])
    pieces = titled_pieces(template, tokenizer, TITLES)
    tables = (pieces.before, pieces.between, pieces.after)
    assert max(table.max(initial=-1) for table in tables) + 1 == pieces.num_text_tokens <= size
    # Of one shape, to be compiled once.
    padding = [((0, 0), (0, 40 - table.shape[1])) for table in tables]
    tables = (np.pad(*of, constant_values=-1) for of in zip(tables, padding, strict=True))
    pieces = TitledPieces(*tables, of_second=pieces.of_second, num_text_tokens=size)
    texts = np.array(item_texts(table, names))
    written = template(texts[history], [TITLES[item] for item in history])
    expected = grow_tokenizer(tokenizer, size, names).encode(written).ids
    rows = np.full((2, 5), -1)
    rows[1, : len(history)] = history
    rows[0, :1] = 3
    tokens, lengths = lay_out(rows, table[rows], pieces, size)
    assert lengths[1] == len(expected) and tokens[1, : lengths[1]].tolist() == expected
    first = template(texts[[3]], [TITLES[3]])
    assert lengths[0] == len(grow_tokenizer(tokenizer, size, names).encode(first).ids)
    with pytest.raises(ModelError, match="and num_text_tokens=1: the model needs"):
        titled_prompt(rows, table[rows], pieces, 1)


def test_items_alone_are_no_history_where_the_template_writes_titles():
    with pytest.raises(ModelError, match="writes titles, so a history must be a Prompt"):
        as_prompt(random_history(), PromptPieces(titled=True), TEXT)


def test_a_prompt_may_be_given_itself():
    model, history = make_model("prompted"), random_history()
    prompt = as_prompt(history, PIECES, TEXT)
    padded = Prompt(jnp.pad(prompt.tokens, ((0, 0), (0, 3)), constant_values=7), prompt.lengths)
    target = jnp.asarray([[2, 3, 4]] * 3)
    expected = target_logits(model, history, target)
    np.testing.assert_allclose(target_logits(model, padded, target), expected, atol=1e-5)
    plain = dataclasses.replace(model.config, pieces=PromptPieces())
    structure = jax.tree.structure(jax.eval_shape(lambda: DecoderOnly(plain, rngs=nnx.Rngs(0))))
    bare = jax.tree.unflatten(structure, jax.tree.leaves(model))
    np.testing.assert_allclose(target_logits(bare, prompt, target), expected, atol=1e-5)
    found, wanted = beam_search(bare, INDEX, padded, 5), beam_search(model, INDEX, history, 5)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    # Text counts.
    other = Prompt(prompt.tokens.at[:, 0].set(8), prompt.lengths)
    assert np.abs(target_logits(bare, other, target) - expected).min(axis=-1).max() > 1e-3


def test_a_prompt_is_encoded_once_whatever_the_beams():
    model, history = make_model("prompted"), random_history()
    logits, _, before = jax.eval_shape(model.prefill, history)
    assert logits.shape == (3, VOCAB)  # Text has no part in the softmax.
    assert before.shared[0][0].shape == (3, 2, 4, 2 + 4 * 3 + 3 + 3)

    def step(cache):
        return model.step(jnp.full((3, 5), 2), model.reorder(cache, jnp.zeros((3, 5), jnp.int32)))

    assert jax.eval_shape(step, before)[2].shared == before.shared


def test_prompts_need_an_encoder_that_sees_all_of_them():
    with pytest.raises(ModelError, match="pieces need causal_encoder=False"):
        dataclasses.replace(make_model("T5").config, causal_encoder=True)
    config = EncoderDecoderConfig(VOCAB, LENGTH, d_model=8, recency_bias=True)
    model = EncoderDecoder(config, rngs=nnx.Rngs(0))
    with pytest.raises(ModelError, match="a Prompt needs causal_encoder=False"):
        model.prefill(Prompt(jnp.ones((1, 2), int), jnp.ones(1, int)))
    with pytest.raises(ModelError, match="activation='gelu' is unknown"):
        EncoderDecoderConfig(VOCAB, LENGTH, activation="gelu")


def test_user_level_training_with_a_prompt_is_refused():
    with pytest.raises(ModelError, match="training.level='target'"):
        make_model("prompted").sequence_logits(random_history())
