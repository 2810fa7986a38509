"""Backbones that score children: a good one passes, each single fault is found and named, and so do our own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr.testing import ConformanceError, check_backbone
from gr.trie import NO_NODE, TrieIndex
from tests.models.test_item_decoder import FLOAT32, TABLE, VOCAB, make_model, random_history
from tests.testing.test_conformance import DECODING, HISTORY, INDEX, PARAMS, RNG, WIDTH, Recurrent

pytestmark = pytest.mark.usefixtures("compile_in_haste")

NODES = jnp.asarray(RNG.normal(size=(INDEX.layout.node_offsets[-1], WIDTH)), jnp.float32)
TRAINING = (
    "target_states",
    "sequence_states",
    "group_states",
    "target_and_group_states",
    "sequence_and_group_states",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scorer(Recurrent):
    """The good backbone with a vector for every node of the trie."""

    nodes: jax.Array  # [rows, D].

    scores_children = True

    def prefill(self, history):
        state = self.encode(history)
        return None, state, state[:, None]

    def step(self, tokens, cache):
        state = self.append(cache, tokens)
        return None, state, state

    def score_children(self, hidden, tokens, rows):
        known = (rows != NO_NODE)[..., None]
        vectors = self.head.T[tokens] + jnp.where(
            known, self.nodes[jnp.where(rows < 0, 0, rows)], 0
        )
        return (vectors * hidden[..., None, :]).sum(-1)

    def target_states(self, history, target, *, key=None):
        return self.follow(self.encode(history), target[:, :-1])

    def sequence_states(self, items, *, key=None):
        return self.item_states(items)


def with_methods(**methods):
    kind = type("Scorer", (Scorer,), methods)
    return jax.tree_util.register_dataclass(kind)(*PARAMS, NODES)


def score(self, *inputs):
    return Scorer.score_children(self, *inputs)


FAULTS = {
    "no scores": (
        dict(score_children=None),
        "Scorer says that it scores children, but has no method",
    ),
    "logits too": (
        dict(prefill=lambda self, h: (self.logits(self.encode(h)), *Scorer.prefill(self, h)[1:])),
        "Scorer.prefill returned logits .* with None instead of logits",
    ),
    "logits of a step": (
        dict(step=lambda self, t, c: Recurrent.step(self, t, c)),
        "Scorer.step returned logits .* with None instead of logits",
    ),
    "shape": (
        dict(score_children=lambda self, *inputs: score(self, *inputs)[..., :-1]),
        "Scorer.score_children returned .* wants floating numbers",
    ),
    "integers": (
        dict(score_children=lambda self, *inputs: score(self, *inputs).astype(int)),
        "Scorer.score_children returned .* int32 .* wants floating numbers",
    ),
    "order": (
        dict(score_children=lambda self, h, t, r: score(self, h, t, r) + jnp.arange(t.shape[-1])),
        "Scorer.score_children: scores depend on the order of the children",
    ),
    "normalised": (
        dict(score_children=lambda self, *inputs: jax.nn.log_softmax(score(self, *inputs))),
        "Scorer.score_children: a child's score depends on the other children .*: give logits",
    ),
    "shared": (  # Behind every prefix the children of the first.
        dict(
            score_children=lambda self, h, t, r: score(self, h, t, r) * (1 + (t.size > t.shape[-1]))
        ),
        "Scorer.score_children: scores of children of their own .* are not those of shared ones",
    ),
    "below the root": (
        dict(
            score_children=lambda self, h, t, r, below_root=False: (
                score(self, h, t, r) * (1 + below_root)
            )
        ),
        "Scorer.score_children: with below_root=True scores are not those without",
    ),
    "new children": (
        dict(
            score_children=lambda self, h, t, r: jnp.where(
                r == NO_NODE, jnp.nan, score(self, h, t, r)
            )
        ),
        r"Scorer.score_children: NaN or \+inf for a child whose row is NO_NODE",
    ),
    "nan": (
        dict(score_children=lambda self, *inputs: jnp.log(score(self, *inputs))),
        r"Scorer.prefill: NaN or \+inf among the logits of code 1",
    ),
    "beams": (
        dict(step=lambda self, t, c: Scorer.step(self, t, c + 0.1 * c.mean(axis=1, keepdims=True))),
        "Scorer.step: beams see each other",
    ),
    "beams in scores": (
        dict(
            score_children=lambda self, h, t, r: (
                score(self, h + 0.1 * h.mean(axis=1, keepdims=True), t, r)
                if h.ndim == 3
                else score(self, h, t, r)
            )
        ),
        "Scorer.score_children: scores of children of their own .* are not those of shared ones",
    ),
    "users": (
        dict(score_children=lambda self, h, t, r: score(self, h + 0.1 * h.mean(axis=0), t, r)),
        "Scorer.prefill: users see each other",
    ),
    "reorder": (
        dict(
            reorder=lambda self, cache, parents: cache[
                :, jnp.arange(parents.shape[1]) % cache.shape[1]
            ]
        ),
        "Scorer.reorder: a beam goes on with another's state: behind parents",
    ),
    "stale": (
        dict(latest=lambda self, cache: cache[:, ::-1]),
        "Scorer.assemble: a prefix goes on otherwise than by itself",
    ),
    "target": (
        dict(target_states=lambda self, h, t: 0.9 * Scorer.target_states(self, h, t)),
        "Scorer.target_states: teacher-forced logits are not those of prefill and step",
    ),
    "target sees itself": (
        dict(target_states=lambda self, h, t: self.follow(self.encode(h), t)[:, 1:]),
        "Scorer.target_states: a code sees itself or later ones",
    ),
    "target's shape": (
        dict(target_states=lambda self, h, t: Scorer.target_states(self, h, t)[:, :-1]),
        r"Scorer.target_states: states of shape \[3, 3, 8\] instead of \[3, 4, D\]",
    ),
    "sequence": (
        dict(sequence_states=lambda self, items: 0.9 * self.item_states(items)),
        "Scorer.sequence_states: logits of item 1 are not those of prefill and step",
    ),
    "group": (
        dict(
            group_states=lambda self, h, codes: (
                self.encode(h),
                Scorer.group_states(self, h, codes)[1][:, ::-1],
            )
        ),
        "Scorer.group_states: logits of candidates' states are not those",
    ),
}


def test_a_good_backbone_passes():
    found = check_backbone(with_methods(), HISTORY, INDEX)
    assert found == (*DECODING, "score_children", *TRAINING)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_single_fault_is_found_and_named(fault):
    methods, message = FAULTS[fault]
    with jax.disable_jit(), pytest.raises(ConformanceError, match=message):
        check_backbone(with_methods(**methods), HISTORY, INDEX)


@pytest.mark.parametrize("name", FLOAT32)
def test_the_item_level_backbone_passes(name):
    model = make_model(name)
    index = TrieIndex.build(np.asarray(TABLE[:-1]), VOCAB)
    found = check_backbone(model, random_history(model, 0), index)
    assert len(found) == len(DECODING) + len(TRAINING) + model.scores_children


def test_histories_must_be_of_the_kind_that_the_backbone_reads():
    model = make_model("trie")
    index = TrieIndex.build(np.asarray(TABLE[:-1]), VOCAB)
    history = random_history(model, 0)
    with pytest.raises(ConformanceError, match="ItemDecoder: a backbone that says reads_items"):
        check_backbone(model, history.tokens, index)
    with pytest.raises(ConformanceError, match="Scorer: a backbone that says reads_items"):
        check_backbone(with_methods(), history, INDEX)
