"""Each single fault of a small good backbone is found, and named with its method."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr.errors import GrError
from gr.models import ModelError, backbone_of
from gr.testing import (
    ConformanceError,
    check_backbone,
    random_paths,
    random_table_model,
    random_tokens,
)
from gr.trie import TrieIndex
from tests.models.test_backbones import FLOAT32, make_model, random_items
from tests.models.test_backbones import LENGTH as REAL_LENGTH
from tests.models.test_backbones import VOCAB as REAL_VOCAB

pytestmark = pytest.mark.usefixtures("compile_in_haste")

VOCAB, WIDTH = 14, 8
LEVEL_TOKENS = np.arange(2, 14).reshape(4, 3)  # Four levels of three tokens.
DECODING = ("prefill", "step", "reorder", "latest", "assemble")
TRAINING = (
    "target_logits",
    "sequence_logits",
    "group_states",
    "target_and_group_states",
    "sequence_and_group_states",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recurrent:
    """A good backbone: its state is all that it knows of history and codes."""

    embedding: jax.Array  # [V, D].
    turn: jax.Array  # [D, D].
    head: jax.Array  # [D, V].

    def append(self, state, tokens):
        return jnp.tanh(state @ self.turn + self.embedding[tokens])

    def encode(self, history):
        state = jnp.zeros((len(history), WIDTH))
        for tokens in history.reshape(len(history), -1).T:
            state = jnp.where(tokens[:, None] != 0, self.append(state, tokens), state)
        return state

    def follow(self, state, codes):
        """States behind `codes [..., S]`, the one before them included: `[..., S + 1, D]`."""
        states = [jnp.broadcast_to(state, (*codes.shape[:-1], WIDTH))]
        for code in range(codes.shape[-1]):
            states.append(self.append(states[-1], codes[..., code]))
        return jnp.stack(states, axis=-2)

    def logits(self, hidden):
        return hidden @ self.head

    # Decoding: the cache is the state [B, M, D].

    def prefill(self, history):
        state = self.encode(history)
        return self.logits(state), state, state[:, None]

    def step(self, tokens, cache):
        state = self.append(cache, tokens)
        return self.logits(state), state, state

    def reorder(self, cache, parents):
        return jnp.take_along_axis(cache, parents[..., None], axis=1)

    def latest(self, cache):
        return cache

    def assemble(self, cache, stored, paths, depths):
        place = jnp.take_along_axis(paths, depths[..., None], axis=2)
        return jnp.take_along_axis(stored, place, axis=1)

    # Training.

    def target_logits(self, history, target, *, key=None):
        return self.logits(self.follow(self.encode(history), target[:, :-1]))

    def item_states(self, items):
        before = [self.encode(items[:, :item]) for item in range(1, items.shape[1])]
        return self.follow(jnp.stack(before, axis=1), items[:, 1:, :-1])

    def sequence_logits(self, items, *, key=None):
        return self.logits(self.item_states(items))

    def group_states(self, history, codes, *, key=None):
        state = self.encode(history)
        return state, self.follow(state[:, None], codes)[:, :, 1:]

    def target_and_group_states(self, history, target, rows, codes, *, key=None):
        state = self.encode(history)
        later = self.follow(state[rows][:, None], codes)[:, :, 1:]
        return self.follow(state, target[:, :-1]), later

    def sequence_and_group_states(self, items, rows, places, codes, *, key=None):
        states = self.item_states(items)
        first = states[rows, places - 1, 0]
        return states, self.follow(first[:, None], codes)[:, :, 1:]


RNG = np.random.default_rng(0)
INDEX = TrieIndex.build(random_tokens(RNG, 60, LEVEL_TOKENS), VOCAB)
HISTORY = RNG.integers(2, VOCAB, (3, 3, 4))
HISTORY[1, 2:], HISTORY[2, 1:] = 0, 0  # Users of three, two and one item.
PARAMS = [
    jnp.asarray(RNG.normal(size=shape), jnp.float32)
    for shape in ((VOCAB, WIDTH), (WIDTH, WIDTH), (WIDTH, VOCAB))
]
WEIGHTS = jnp.asarray(RNG.normal(size=(WIDTH, VOCAB)), jnp.float32)


def with_methods(**methods):
    """The good backbone with these methods in place of its own; `good` is the good one."""
    kind = type("Recurrent", (Recurrent,), methods)
    return jax.tree_util.register_dataclass(kind)(*PARAMS)


def test_a_good_backbone_passes():
    assert check_backbone(Recurrent(*PARAMS), HISTORY, INDEX) == DECODING + TRAINING


def narrow(self, tokens, cache):
    logits, hidden, cache = Recurrent.step(self, tokens, cache)
    return logits[..., :-1], hidden, cache


def on_the_host(self, tokens, cache):
    if tokens[0, 0] > 3:
        tokens = tokens + 0
    return Recurrent.step(self, tokens, cache)


def raising(self, tokens, cache):
    raise KeyError("layer_7")


def users_in_step(self, tokens, cache):
    return Recurrent.step(self, tokens, cache + 0.1 * cache.mean(axis=0))


def users_in_prefill(self, history):
    state = self.encode(history)
    state = state + 0.1 * state.mean(axis=0)
    return self.logits(state), state, state[:, None]


def users_in_the_cache(self, history):
    logits, hidden, cache = Recurrent.prefill(self, history)
    return logits, hidden, cache + 0.1 * cache.mean(axis=0)


def beams(self, tokens, cache):
    return Recurrent.step(self, tokens, cache + 0.1 * cache.mean(axis=1, keepdims=True))


def written_into(self, tokens, cache):
    # A dictionary that is shared by all steps.
    cache["state"] = self.append(cache["state"], tokens)
    return self.logits(cache["state"]), cache["state"], cache


WRITTEN_INTO = {
    "prefill": lambda self, history: (
        *Recurrent.prefill(self, history)[:2],
        {"state": self.encode(history)[:, None]},
    ),
    "step": written_into,
    "reorder": lambda self, cache, parents: {
        "state": Recurrent.reorder(self, cache["state"], parents)
    },
}

FAULTS = {
    # What decoding needs.
    "narrow": (dict(step=narrow), "Recurrent.step returned logits .*cover 13 tokens, the index 14"),
    "two": (
        dict(prefill=lambda self, h: Recurrent.prefill(self, h)[:2]),
        "prefill returned a tupl",
    ),
    "integers": (
        dict(logits=lambda self, hidden: Recurrent.logits(self, hidden).astype(int)),
        r"prefill returned logits \[3, 14\] int32",
    ),
    "users": (
        dict(prefill=lambda self, h: Recurrent.prefill(self, h[:2])),
        "Recurrent.prefill: logits of 2 users for the histories of 3",
    ),
    "nan": (
        dict(logits=lambda self, hidden: jnp.log(Recurrent.logits(self, hidden))),
        r"Recurrent.prefill: NaN or \+inf among the logits of code 1",
    ),
    "on the host": (dict(step=on_the_host), "Recurrent.step: it cannot be compiled"),
    "raising": (dict(step=raising), "Recurrent.step: it raised KeyError: 'layer_7'"),
    "no hidden": (
        dict(prefill=lambda self, h: (self.logits(self.encode(h)), None, self.encode(h)[:, None])),
        "prefill returned hidden None",
    ),
    "users in prefill": (dict(prefill=users_in_prefill), "Recurrent.prefill: users see each other"),
    "users in the cache": (
        dict(prefill=users_in_the_cache),
        "Recurrent.step: users see each other: .*only the history of user 0",
    ),
    "users in step": (dict(step=users_in_step), "Recurrent.step: users see each other"),
    "beams": (dict(step=beams), "Recurrent.step: beams see each other"),
    "written into": (WRITTEN_INTO, "Recurrent.step: the cache that it is given changes"),
    "first reorder": (
        dict(
            reorder=lambda self, cache, parents: jnp.pad(
                cache, ((0, 0), (0, max(0, parents.shape[1] - cache.shape[1])), (0, 0))
            )
        ),
        "Recurrent.reorder: logits of beam 1 are not those that it has alone",
    ),
    "reorder": (
        dict(
            reorder=lambda self, cache, parents: cache[
                :, jnp.arange(parents.shape[1]) % cache.shape[1]
            ]
        ),
        "Recurrent.reorder: a beam goes on with another's state: behind parents",
    ),
    "permuted": (  # Each beam moves to where its parent was.
        dict(
            reorder=lambda self, cache, parents: (
                Recurrent.reorder(self, cache, parents)
                if cache.shape[1] == 1
                else Recurrent.reorder(self, cache, parents[:, ::-1])
            )
        ),
        "Recurrent.reorder: a beam goes on with another's state",
    ),
    "kept where their number stays": (
        dict(
            reorder=lambda self, cache, parents: (
                cache
                if cache.shape[1] == parents.shape[1]
                else Recurrent.reorder(self, cache, parents)
            )
        ),
        "Recurrent.reorder: a beam goes on with another's state",
    ),
    "of other users": (
        dict(
            reorder=lambda self, cache, parents: Recurrent.reorder(
                self, cache, jnp.broadcast_to(parents[:1], parents.shape)
            )
        ),
        "Recurrent.reorder: a beam goes on with another's state",
    ),
    "constants": (
        dict(logits=lambda self, hidden: hidden @ WEIGHTS),
        r"Recurrent closes over an array of \[8, 14\] numbers",
    ),
    # What a tree search needs.
    "latest": (
        dict(latest=lambda self, cache: cache[:, 0]),
        r"Recurrent.latest: an array of shape \[3, 8\]",
    ),
    "stale": (
        dict(latest=lambda self, cache: cache[:, ::-1]),
        "Recurrent.assemble: a prefix goes on otherwise than by itself",
    ),
    "assemble": (
        dict(
            assemble=lambda self, cache, stored, paths, depths: Recurrent.assemble(
                self, cache, stored, paths, depths.max(keepdims=True) + 0 * depths
            )
        ),
        "Recurrent.assemble: a prefix goes on otherwise than by itself",
    ),
    # What losses need.
    "target sees itself": (
        dict(
            target_logits=lambda self, h, target: self.logits(
                self.follow(self.encode(h), target)[:, 1:]
            )
        ),
        "Recurrent.target_logits: a code sees itself or later ones",
    ),
    "target": (
        dict(
            target_logits=lambda self, h, target: self.logits(
                self.follow(0.9 * self.encode(h), target[:, :-1])
            )
        ),
        "Recurrent.target_logits: teacher-forced logits are not those of prefill and step",
    ),
    "target's shape": (
        dict(target_logits=lambda self, h, t: Recurrent.target_logits(self, h, t)[:, :-1]),
        r"Recurrent.target_logits: logits \[3, 3, 14\] instead of \[3, 4, V\]",
    ),
    "sequence sees itself": (
        dict(
            sequence_logits=lambda self, items: (
                Recurrent.sequence_logits(self, items)
                + 0.1 * self.logits(self.encode(items))[:, None, None]
            )
        ),
        "Recurrent.sequence_logits: a code sees itself or later ones",
    ),
    "sequence": (
        dict(sequence_logits=lambda self, items: 0.9 * Recurrent.sequence_logits(self, items)),
        "Recurrent.sequence_logits: logits of item 1 are not those of prefill and step",
    ),
    "group's first": (
        dict(
            group_states=lambda self, h, codes: (
                0.9 * self.encode(h),
                Recurrent.group_states(self, h, codes)[1],
            )
        ),
        "Recurrent.group_states: logits of a group's first state are not those of prefill",
    ),
    "group": (
        dict(
            group_states=lambda self, h, codes: (
                self.encode(h),
                Recurrent.group_states(self, h, codes)[1][:, ::-1],
            )
        ),
        "Recurrent.group_states: logits of candidates' states are not those",
    ),
    "target of a group": (
        dict(
            target_and_group_states=lambda self, h, t, rows, codes: (
                0.9 * Recurrent.target_and_group_states(self, h, t, rows, codes)[0],
                Recurrent.target_and_group_states(self, h, t, rows, codes)[1],
            )
        ),
        "Recurrent.target_and_group_states: logits of the target's states",
    ),
    "rows of a group": (
        dict(
            target_and_group_states=lambda self, h, t, rows, codes: (
                Recurrent.target_and_group_states(self, h, t, jnp.arange(2), codes)
            )
        ),
        "Recurrent.target_and_group_states: logits of candidates' states",
    ),
    "places of a group": (
        dict(
            sequence_and_group_states=lambda self, items, rows, places, codes: (
                Recurrent.sequence_and_group_states(self, items, rows, 1 + 0 * places, codes)
            )
        ),
        "Recurrent.sequence_and_group_states: logits of candidates' states",
    ),
    "sequence of a group": (
        dict(
            sequence_and_group_states=lambda self, items, rows, places, codes: (
                Recurrent.sequence_and_group_states(self, items[:, ::-1], rows, places, codes)
            )
        ),
        "Recurrent.sequence_and_group_states: logits of the sequences' states",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_single_fault_is_found_and_named(fault):
    methods, message = FAULTS[fault]
    # Operations that run one by one are compiled once for all faults; what cannot be compiled has to be.
    with jax.disable_jit(fault != "on the host"):
        with pytest.raises(ConformanceError, match=message):
            check_backbone(with_methods(**methods), HISTORY, INDEX)


def test_where_a_fault_is():
    def one_beam(self, cache, parents):
        found = Recurrent.reorder(self, cache, parents)
        same_number = cache.shape[1] == parents.shape[1]  # The last move before a step.
        return found.at[1, 2].add(1.0) if same_number else found

    told = r"largest difference is .* \(user 1, beam 2\)"
    with jax.disable_jit(), pytest.raises(ConformanceError, match=told):
        check_backbone(with_methods(reorder=one_beam), HISTORY, INDEX)


def test_what_is_no_pytree():
    class Plain:
        prefill = step = reorder = None

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Named(Recurrent):
        name: Any = "model"

    @jax.tree_util.register_pytree_node_class
    class Other(Recurrent):
        def tree_flatten(self):
            return (self.embedding, self.turn, self.head), None

        @classmethod
        def tree_unflatten(cls, unused, leaves):
            return cls(*leaves[:-1], 1 * leaves[-1])

    @jax.tree_util.register_pytree_node_class
    class Unequal(Recurrent):
        def tree_flatten(self):
            return (self.embedding, self.turn, self.head), object()

        @classmethod
        def tree_unflatten(cls, unused, leaves):
            return cls(*leaves)

    @jax.tree_util.register_pytree_node_class
    class Broken(Unequal):
        @classmethod
        def tree_unflatten(cls, unused, leaves):
            return cls(leaves)

    for model, message in (
        (Plain(), "Plain has no method prefill"),
        (Named(*PARAMS), r"Named.name is a leaf of the pytree and no array but a str"),
        (Other(*PARAMS), "Other is another pytree when it has been taken apart"),
        (Unequal(*PARAMS), "Unequal is another pytree .* static fields must be equal"),
        (Broken(*PARAMS), "Broken is no pytree that can be taken apart .*: TypeError: "),
    ):
        with pytest.raises(ConformanceError, match=message):
            check_backbone(model, HISTORY, INDEX)


def test_what_cannot_be_checked_is_said():
    good, same = Recurrent(*PARAMS), np.repeat(HISTORY[:1], 3, axis=0)
    one = TrieIndex.build([[2, 5, 8, 11]], VOCAB)
    for arguments, message in (
        ((HISTORY[:1], INDEX), "two users or more"),
        ((same, INDEX), "whose histories differ"),
        ((HISTORY, one), "a trie of several semantic IDs"),
        ((HISTORY[:, :1], INDEX), "Recurrent has target_logits: to check it, give histories"),
    ):
        with pytest.raises(ConformanceError, match=message):
            check_backbone(good, *arguments)
    constant = jax.tree.map(jnp.zeros_like, good)
    with jax.disable_jit(), pytest.raises(ConformanceError, match="the same logits everywhere"):
        check_backbone(constant, HISTORY, INDEX)
    with pytest.raises(ConformanceError, match="num_beams=1: two or more"):
        check_backbone(good, HISTORY, INDEX, num_beams=1)
    assert issubclass(ConformanceError, GrError)


def test_a_method_that_refuses_is_passed_over():
    def refuse(self, *inputs):
        raise ModelError("not with this setting")

    with jax.disable_jit():
        found = check_backbone(with_methods(sequence_logits=refuse), HISTORY, INDEX)
    assert found == (*DECODING, "target_logits", "group_states", "target_and_group_states")


def test_weights_may_be_closed_over_if_this_is_said():
    good = Recurrent(*PARAMS)
    model = backbone_of(
        lambda params, history: good.prefill(history),
        lambda params, tokens, cache: good.step(tokens, cache),
        good.reorder,
        None,
    )
    with pytest.raises(ConformanceError, match="FunctionBackbone closes over an array"):
        check_backbone(model, HISTORY, INDEX)
    assert check_backbone(model, HISTORY, INDEX, closed_over=True) == DECODING[:3]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_semantic_ids_of_any_length(length):
    rng = np.random.default_rng(length)
    index = TrieIndex.build(random_tokens(rng, 9, LEVEL_TOKENS[:length]), VOCAB)
    model, history = random_table_model(rng, length, VOCAB), np.arange(3)[:, None]
    with jax.disable_jit():
        assert check_backbone(model, history, index) == DECODING


@pytest.mark.parametrize("name", FLOAT32)
def test_the_backbones_of_the_library_pass(name):
    tokens = np.random.default_rng(2).integers(2, REAL_VOCAB, (60, REAL_LENGTH))
    index = TrieIndex.build(tokens, REAL_VOCAB)
    history = random_items(0, (1, 3, 2), 3)
    found = check_backbone(make_model(name), history, index, num_beams=2)
    # A bidirectional encoder refuses to be trained on whole sequences.
    refused = {"sequence_logits", "sequence_and_group_states"} if name == "bidirectional" else set()
    assert set(found) == {*DECODING, *TRAINING} - refused


def test_paths_are_drawn_from_the_index():
    paths = np.asarray(random_paths(INDEX, jax.random.key(0), (5, 400)))
    items = {tuple(row) for row in random_tokens(np.random.default_rng(0), 60, LEVEL_TOKENS)}
    assert {tuple(row) for row in paths.reshape(-1, 4).tolist()} == items
