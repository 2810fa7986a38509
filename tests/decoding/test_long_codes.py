"""Semantic IDs of many codes: steps without a choice are one loop, which gives what single steps give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr.decoding import (
    VedConfig,
    beam,
    beam_search,
    sample_without_replacement,
    sources,
    ved_search,
)
from gr.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder, EncoderDecoderConfig
from gr.testing import TableModel
from gr.trie import EditableIndex, ExcludeItems, ItemMask, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

LENGTH, VOCAB, USERS = 10, 9, 2
TOKENS = np.random.default_rng(0).integers(2, VOCAB, (40, LENGTH))
HISTORY = jnp.asarray(TOKENS[None, :2].repeat(USERS, 0))
SIZES = {"d_model": 8, "num_heads": 2, "d_ff": 8}


@jax.tree_util.register_dataclass
class StaticDepth(TableModel):
    """A model that chooses by the number of the step, which no loop can trace."""

    def step(self, tokens, cache):
        assert int(cache[0]) >= 0
        return super().step(tokens, cache)


def make_model(name):
    if name == "decoder_only":
        config = DecoderOnlyConfig(VOCAB, LENGTH, num_layers=1, **SIZES)
        return DecoderOnly(config, rngs=nnx.Rngs(0))
    if name == "encoder_decoder":
        layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
        recency = {"causal_encoder": True, "recency_bias": True}
        config = EncoderDecoderConfig(VOCAB, LENGTH, head_dim=4, **layers, **recency, **SIZES)
        return EncoderDecoder(config, rngs=nnx.Rngs(0))
    table = np.random.default_rng(1).normal(size=(USERS, LENGTH, VOCAB, VOCAB))
    return {"table": TableModel, "static": StaticDepth}[name](jnp.asarray(table, jnp.float32))


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("decoder_only", "vocabulary"),
        pytest.param("encoder_decoder", "vocabulary", marks=pytest.mark.long),
        ("table", "vocabulary"),
        ("table", "children"),
        ("static", "vocabulary"),
    ],
)
def test_a_loop_gives_what_single_steps_give(name, over, monkeypatch):
    index = TrieIndex.build(TOKENS, VOCAB)
    monkeypatch.setattr(beam, "UNROLLED", 4)
    monkeypatch.setattr(sources, "_MANY", 4)
    assert LENGTH - index.layout.unique_depth > beam.UNROLLED
    model = make_model(name)
    loops = []
    scan = jax.lax.scan
    monkeypatch.setattr(jax.lax, "scan", lambda *a, **k: loops.append(1) or scan(*a, **k))
    options = beam.BeamOptions(50, keep_beams=True, normalise_over=over)
    constraint = (ExcludeItems([[0, 1, 2], [5]]), ItemMask.deny(index, [7]))

    def search():
        decode = jax.jit(functools.partial(beam._beam_search.__wrapped__, options=options))
        return decode(model, index, HISTORY, constraint, jnp.float32(0.7), None)

    found = search()
    assert bool(loops) == (name != "static")
    monkeypatch.setattr(beam, "UNROLLED", LENGTH)
    monkeypatch.setattr(sources, "_MANY", LENGTH)
    plain = search()
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_array_equal(found.items, plain.items)
    np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-4)
    assert found.valid.sum(axis=1).tolist() == [36, 38]
    assert len(found.beams) == LENGTH
    for mine, its in zip(found.beams, plain.beams, strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("depth", [1, 7, LENGTH - 1])
def test_nan_in_the_loop_is_told_with_its_step(depth, monkeypatch):
    monkeypatch.setattr(beam, "UNROLLED", 4)
    index = TrieIndex.build(TOKENS, VOCAB)
    table = make_model("table").table
    for value in (np.nan, np.inf):
        found = beam_search(TableModel(table.at[1, depth].set(value)), index, HISTORY, 40)
        assert found.bad_step.tolist() == [-1, depth]
        assert np.isnan(found.scores[1]).all() == np.isnan(value)
        assert found.valid[0].all()


def test_drawn_codes_are_whole():
    index = TrieIndex.build(TOKENS, VOCAB)
    found = sample_without_replacement(
        make_model("table"), index, HISTORY, 40, key=jax.random.key(0)
    )
    np.testing.assert_array_equal(found.tokens, TOKENS[found.items[..., 0]])


def test_added_items_are_found_where_all_levels_are_scanned_at_once():
    """The root of the base trie has many more slots than any prefix behind it."""
    rng = np.random.default_rng(3)
    length, vocab = 12, 50
    base, added = rng.integers(0, vocab, (30, length)), rng.integers(0, vocab, (8, length))
    base[:, 0], added[:, 0] = np.arange(30), np.arange(42, 50)
    editable, numbers = EditableIndex.build(base, vocab).add(added)
    index = editable.index
    assert (index.base.layout.scan_depth, index.added.layout.scan_depth) == (0, 0)
    table = np.zeros((USERS, length, vocab, vocab), np.float32)
    for depth, token in enumerate(added[3]):
        table[:, depth, :, token] = 9.0
    config = VedConfig(budget=60, num_candidates=4, initial_beams=2, sampling_temperature=0.0)
    found = ved_search(
        TableModel(jnp.asarray(table)), None, index, HISTORY, config, key=jax.random.key(0)
    )
    assert found.items[:, 0, 0].tolist() == [int(numbers[3])] * USERS
