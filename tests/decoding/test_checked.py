"""Options that are no numbers, backbones that do not keep to the protocol, and batches of no users."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tries

from gr.decoding import DecodingError, beam_search
from gr.decoding.softmax import as_temperature
from gr.testing import TableModel
from gr.trie import TrieIndex
from tests.decoding.test_extreme_logits import HISTORY, LENGTH, SEARCHES, SIX, TRIE, VOCAB, with_row

pytestmark = pytest.mark.usefixtures("compile_in_haste")


# Options.


@pytest.mark.parametrize("temperature", [0, -1.0, np.nan, np.inf, "warm", [0.5, 1.0]])
def test_temperatures_that_are_none(temperature):
    with pytest.raises(DecodingError, match="temperature must be"):
        as_temperature(temperature)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_penalty": np.nan}, "length_penalty must be finite, got nan"),
        ({"diversity": np.nan}, "diversity must be finite, got nan"),
        ({"diversity": np.inf}, "diversity must be finite, got inf"),
    ],
)
def test_options_that_are_no_numbers(options, message):
    with pytest.raises(DecodingError, match=message):
        beam_search(with_row(0.0), TrieIndex.build(SIX, 6), HISTORY, 4, **options)


# What the protocol does not allow.


def broken(change, at="step"):
    """A table one of whose methods returns `change` of what it should."""
    jax.clear_caches()  # Classes come and go here; a program traced for an earlier one must not stand in.

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Broken(TableModel):
        def prefill(self, history):
            outputs = super().prefill(history)
            return change(*outputs) if at == "prefill" else outputs

        def step(self, tokens, cache):
            outputs = super().step(tokens, cache)
            return change(*outputs) if at == "step" else outputs

    return Broken(with_row(0.0).table)


WRONG = {
    "narrow": (lambda x, h, c: (x[..., :4], h, c), "logits cover 4 tokens, the index 6"),
    "rank": (lambda x, h, c: (x[0], h, c), r"logits \["),
    "leading": (lambda x, h, c: (jnp.concatenate([x, x], axis=-2), h, c), r"logits \["),
    "two outputs": (lambda x, h, c: (x, c), "a tuple of 2 instead of three outputs"),
    "logits alone": (lambda x, h, c: x, "instead of three outputs"),
    "no logits": (lambda x, h, c: (None, h, c), "logits None"),
    "integers": (lambda x, h, c: (x.astype(int), h, c), "logits .* int32"),
}


@pytest.mark.parametrize("wrong", list(WRONG))
@pytest.mark.parametrize("name", list(SEARCHES))
def test_outputs_that_do_not_fit_are_one_clear_error(name, wrong):
    change, message = WRONG[wrong]
    search, index = SEARCHES[name][0], TrieIndex.build(SIX, 6)
    for at in ("step", "prefill"):
        if (wrong, at) == ("leading", "prefill"):
            continue  # So many users there may be.
        with pytest.raises(DecodingError, match=f"Broken.{at} returned .*{message}") as error:
            search(broken(change, at), index, 5, 1.0)
        assert "the protocol gr.models.Backbone wants " + at in str(error.value)
        if at == "step":
            assert "(logits [B, M, V], hidden [B, M, D], cache)" in str(error.value)
            assert "B = 2, M = " in str(error.value)


@pytest.mark.parametrize(
    ("search", "without"),
    [
        ("beam", "prefill"),
        ("beam", "step"),
        ("drawn", "reorder"),
        ("tree", "latest"),
        ("tree", "assemble"),
    ],
)
def test_a_missing_method_is_one_clear_error(search, without):
    methods = {"prefill", "step", "reorder", "latest", "assemble"} - {without}

    class Incomplete:
        pass

    for method in methods:
        setattr(Incomplete, method, getattr(TableModel, method))
    with pytest.raises(
        DecodingError, match=f"Incomplete has no method {without}, which gr.models."
    ):
        SEARCHES[search][0](Incomplete(), TrieIndex.build(SIX, 6), 5, 1.0)


def test_what_is_no_pytree_is_one_clear_error():
    class Plain(TableModel):
        pass

    with pytest.raises(DecodingError, match="Plain is no pytree: make it an nnx.Module"):
        beam_search(Plain(with_row(0.0).table), TrieIndex.build(SIX, 6), HISTORY, 5)


@pytest.mark.parametrize("at", ["step", "prefill"])
def test_a_tree_search_needs_hidden_states(at):
    def without(logits, hidden, cache):
        return logits, None, cache

    index = TrieIndex.build(SIX, 6)
    with pytest.raises(DecodingError, match=f"Broken.{at} returned hidden None"):
        SEARCHES["tree"][0](broken(without, at), index, 5, 1.0)
    assert beam_search(broken(without, at), index, HISTORY, 5).valid.all()


def test_more_logits_than_int32_can_count_are_one_clear_error():
    def wide(logits, hidden, cache):
        return jnp.broadcast_to(logits[..., :1], (*logits.shape[:-1], 2**30)), hidden, cache

    with pytest.raises(DecodingError, match="search with fewer beams"):
        beam_search(broken(wide, "step"), TrieIndex.build(SIX, 6), HISTORY, 5)


# No users.


@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[3]], ids="-".join)
@pytest.mark.parametrize("name", list(SEARCHES))
def test_no_users_get_no_candidates(name, kinds):
    index = TrieIndex.build(TRIE, VOCAB, layout=tries.roomy_layout(kinds))
    model = TableModel(jnp.zeros((0, LENGTH, VOCAB, VOCAB)))
    found = SEARCHES[name][0](model, index, 4, 1.0)
    assert found.tokens.shape == (0, 4, LENGTH) and found.items.shape[:2] == (0, 4)
    assert found.scores.shape == found.valid.shape == (0, 4) and found.finite.shape == (0,)
