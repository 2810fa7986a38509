"""Backbones made of functions, and by a function that a config names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toy_run import compilations

from gr.decoding import VedConfig, beam_search, ved_search
from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    ModelError,
    ValueHead,
    ValueHeadConfig,
    backbone_of,
    load_backbone,
)
from gr.testing import TableModel, random_table_model, random_tokens
from gr.trie import TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

RNG = np.random.default_rng(0)
INDEX = TrieIndex.build(random_tokens(RNG, 20), 50)
HISTORY = jnp.zeros((3, 1))
TABLES = [random_table_model(RNG, 3, 50).table for _ in range(2)]


def prefill(params, history):
    return TableModel(params["table"]).prefill(history)


def step(params, tokens, cache):
    return TableModel(params["table"]).step(tokens, cache)


def reorder(cache, parents):
    return cache


def latest(cache):
    return ()


def assemble(cache, stored, paths, depths):
    return depths, cache[1]


def assert_decodes_as(backbone, table):
    found, expected = (beam_search(b, INDEX, HISTORY, 5) for b in (backbone, TableModel(table)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_second_call_with_other_parameters_does_not_compile():
    assert_decodes_as(backbone_of(prefill, step, reorder, {"table": TABLES[0]}), TABLES[0])
    again = backbone_of(prefill, step, reorder, {"table": TABLES[1]})
    with compilations() as compiled:
        beam_search(again, INDEX, HISTORY, 5)
    assert not compiled
    assert_decodes_as(again, TABLES[1])

    # A function that is made anew is another one.
    anew = backbone_of(prefill, step, lambda cache, parents: cache, {"table": TABLES[1]})
    with compilations() as compiled:
        beam_search(anew, INDEX, HISTORY, 5)
    assert compiled


class Plain:
    """A model that is no pytree; its methods are equal as long as it is the same object."""

    def __init__(self, table):
        self.model = TableModel(table)

    def prefill(self, params, history):
        return self.model.prefill(history)

    def step(self, params, tokens, cache):
        return self.model.step(tokens, cache)


def test_methods_of_an_object_may_have_the_weights():
    plain = Plain(TABLES[0])
    assert_decodes_as(backbone_of(plain.prefill, plain.step, reorder, None), TABLES[0])
    with compilations() as compiled:
        beam_search(backbone_of(plain.prefill, plain.step, reorder, None), INDEX, HISTORY, 5)
    assert not compiled


def test_functions_may_close_over_the_weights():
    table = {"table": TABLES[1]}
    partial = functools.partial(lambda table, params, *inputs: step(table, *inputs), table)
    model = backbone_of(lambda params, history: prefill(table, history), partial, reorder, None)
    assert_decodes_as(model, TABLES[1])


def test_with_latest_and_assemble_a_tree_can_be_searched():
    model = backbone_of(
        prefill, step, reorder, {"table": TABLES[0]}, latest=latest, assemble=assemble
    )
    assert not hasattr(backbone_of(prefill, step, reorder, None), "latest")
    head = ValueHead(ValueHeadConfig(1, code_length=3, num_heads=1, d_ff=2), rngs=nnx.Rngs(0))
    config = VedConfig(budget=20, num_candidates=5)
    found, expected = (
        ved_search(b, head, INDEX, HISTORY, config, key=jax.random.key(0))
        for b in (model, TableModel(TABLES[0]))
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


class Unhashable:
    __hash__ = None

    def __call__(self, cache, parents):
        return cache


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((prefill, step, None, None), "reorder is no function but a NoneType"),
        ((prefill, step, Unhashable(), None), "reorder is a Unhashable without a hash"),
        ((prefill, step, reorder, {"a": [1.0, "b"]}), r"params\['a'\]\[1\] is a str, which is no"),
        ((prefill, step, reorder, Plain(TABLES[0])), "params is a Plain, which is no array"),
    ],
)
def test_what_makes_no_backbone(arguments, message):
    with pytest.raises(ModelError, match=message):
        backbone_of(*arguments)
    with pytest.raises(ModelError, match="both latest and assemble"):
        backbone_of(prefill, step, reorder, None, latest=latest)


# By name.


def small(*, vocab_size, code_length, rngs, num_layers=1):
    sizes = {"d_model": 8, "num_heads": 2, "d_ff": 8, "num_layers": num_layers}
    return DecoderOnly(DecoderOnlyConfig(vocab_size, code_length, **sizes), rngs=rngs)


def untrainable(**sizes):
    return TableModel(TABLES[0])


def half(**sizes):
    return nnx.Linear(1, 1, rngs=nnx.Rngs(0))


def no_pytree(**sizes):
    model = Plain(TABLES[0])
    model.reorder = model.target_logits = reorder
    return model


def load(name, **options):
    known = ("encoder_decoder", "decoder_only")
    sizes = {"vocab_size": 50, "code_length": 3, "rngs": nnx.Rngs(0)}
    return load_backbone(name, known, **sizes, **options)


def test_an_own_backbone_is_made_by_name():
    model = load(f"{__name__}:small", num_layers=2)
    assert (model.config.vocab_size, model.config.code_length) == (50, 3)
    assert len(model.layers) == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformer", {}, "backbone 'transformer' is unknown; use one of encoder_decoder, dec"),
        (
            "small",
            {"depth": 2},
            "cannot be called with vocab_size, code_length, rngs, depth: .*'dep",
        ),
        ("untrainable", {}, "returned a TableModel that cannot be trained"),
        ("half", {}, "returned a Linear without the method prefill"),
        ("no_pytree", {}, "returned a Plain, which is no pytree"),
    ],
)
def test_what_is_no_backbone_is_said_at_the_start(name, options, message):
    with pytest.raises(ModelError, match=message):
        load(name if name == "transformer" else f"{__name__}:{name}", **options)
