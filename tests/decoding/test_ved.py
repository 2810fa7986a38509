"""Value-guided search against dictionaries given the same noise, its invariants, and with both real backbones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import search_oracles
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from table_model import TableModel, assert_same_ranking, rows

from gr.decoding import ved_search
from gr.decoding.evaluate import prefix_noise
from gr.trie import TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS = 3
HISTORY = jnp.zeros((USERS, 1))
WIDTH = 4  # Of hidden states.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StateModel(TableModel):
    """A table whose hidden states depend on the depth and the last token."""

    states: jax.Array  # [B, L, V, D].

    def prefill(self, history):
        logits, _, cache = super().prefill(history)
        return logits, self.states[:, 0, 0], cache

    def step(self, tokens, cache):
        logits, _, cache = super().step(tokens, cache)
        user = jnp.arange(len(tokens))[:, None]
        return logits, self.states[user, cache[0], tokens], cache

    def value(self, user, head):
        states = np.asarray(self.states[user], np.float64)

        def of(prefix):
            path = [states[0, 0], *(states[i + 1, token] for i, token in enumerate(prefix))]
            return sum(np.tanh(s @ np.asarray(head.weights)) * (i + 1) for i, s in enumerate(path))

        return of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SumHead:
    """A prefix's value is a sum over its positions, each with a weight of its own."""

    weights: jax.Array  # [D].

    def __call__(self, states):
        place = jnp.arange(1, states.shape[-2] + 1)
        return jnp.cumsum(jnp.tanh(states @ self.weights) * place, axis=-1)


def random_case(seed, length=3, vocab_size=tries.VOCAB, num_users=USERS):
    rng = np.random.default_rng(seed)
    shape = (num_users, length, vocab_size)
    model = StateModel(
        jnp.asarray(rng.normal(size=(*shape, vocab_size)) * 2, jnp.float32),
        jnp.asarray(rng.normal(size=(*shape, WIDTH)), jnp.float32),
    )
    return model, SumHead(jnp.asarray(rng.normal(size=WIDTH) * 0.3, jnp.float32))


def check(tokens, index, model, head, seed, *, demands=((),) * USERS, handover=0, **options):
    key = jax.random.key(seed)
    found = ved_search(model, head, index, HISTORY, key=key, keep_tree=True, **options)
    fan_out = max(level.fan_out for level in index.layout.levels)
    by_sid = oracles.items_by_sid(tokens)
    for user in range(USERS):

        def noise(number, user=user):
            return np.asarray(prefix_noise(key, user, number, fan_out), np.float64)

        expected, tree = search_oracles.ved(
            tokens,
            model.log_prob(user),
            model.value(user, head) if head else lambda prefix: 0.0,
            noise,
            index.layout,
            budget=options["budget"],
            count=options["num_candidates"],
            beams=options.get("initial_beams", 8),
            width=options.get("width", 8),
            demands=demands[user],
            handover=handover,
        )
        assert_same_tree(found.tree, user, tree)
        assert int(found.evaluations[user]) == len(tree) - 1 <= options["budget"]
        allowed = {sid: oracles.allowed_items(by_sid[sid], demands[user]) for sid in by_sid}
        ranking = [(score, sid, allowed[sid]) for score, sid in expected]
        assert_same_ranking(rows(found, user), ranking)
    return found


def assert_same_tree(tree, user, expected):
    count = int(tree.exist[user].sum())
    assert tree.exist[user, :count].all() and count == len(expected)
    prefixes = [()]
    for number in range(1, count):
        parent = int(tree.parents[user, number])
        prefixes.append((*prefixes[parent], int(tree.tokens[user, number])))
    assert prefixes == [node.codes for node in expected]
    assert tree.depths[user, :count].tolist() == [len(node.codes) for node in expected]
    assert tree.visits[user, :count].tolist() == [node.visits for node in expected]
    for field, name in (("values", "value"), ("entropies", "entropy"), ("log_probs", "score")):
        mine = np.asarray(getattr(tree, field)[user, :count])
        np.testing.assert_allclose(mine, [getattr(n, name) for n in expected], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
@settings(max_examples=6, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_it_is_the_slow_search_given_the_same_noise(kinds, tokens, seed):
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    model, head = random_case(seed)
    for width, budget in ((1, 9), (3, 17)):
        check(
            tokens,
            index,
            model,
            head,
            seed,
            budget=budget,
            num_candidates=10,
            initial_beams=2,
            width=width,
        )


@pytest.mark.parametrize(("length", "budget"), [(1, 0), (1, 5), (2, 3), (4, 30), (5, 26)])
def test_all_lengths(length, budget):
    rng = np.random.default_rng(length)
    tokens = rng.integers(0, 7, (40, length))
    model, head = random_case(length, length, 7)
    for width in (1, 4):
        check(
            tokens,
            TrieIndex.build(tokens, 7),
            model,
            head,
            length,
            budget=budget,
            num_candidates=12,
            initial_beams=3,
            width=width,
        )


@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[2], tries.MIXES[3]], ids="-".join)
@pytest.mark.parametrize("kind", ["exclude", "mask", "attributes"])
@settings(max_examples=6, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_under_constraints(kind, kinds, tokens, seed):
    rng = np.random.default_rng(seed)
    attributes = rng.random((len(tokens), 5)) < 0.6
    layout = tries.roomy_layout(kinds, 5)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    constraint, demands, handover = tries.random_constraint(kind, rng, index, attributes, USERS)
    model, head = random_case(seed)
    check(
        tokens,
        index,
        model,
        head,
        seed,
        demands=demands,
        handover=handover,
        constraint=constraint,
        budget=14,
        num_candidates=10,
        initial_beams=3,
        width=4,
    )
