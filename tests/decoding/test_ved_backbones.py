"""Value-guided search with the real backbones and the real value head: what it knows of prefixes of mixed depths."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import search_oracles
from flax import nnx
from ranked import rows

from gr.decoding import VedConfig, ved_search
from gr.models import ValueHead, ValueHeadConfig, path_states
from gr.trie import TrieIndex
from tests.models.test_backbones import FLOAT32, LENGTH, VOCAB, make_model

pytestmark = pytest.mark.usefixtures("compile_in_haste")

BEAMS = 2
FIRST = BEAMS * (LENGTH - 1)  # Tokens of the beam search.
OPTIONS = {"budget": FIRST + 20, "num_candidates": 30, "initial_beams": BEAMS}


def make_head(width, block):
    """Larger numbers than at initialisation, so that values differ."""
    config = ValueHeadConfig(width, code_length=LENGTH, num_heads=2, d_ff=12, block=block)
    shapes = jax.eval_shape(lambda: ValueHead(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), jnp.float32), shapes)


def make_history(name):
    """Histories of different lengths; none at all where the backbone can do without."""
    history = np.random.default_rng(1).integers(2, VOCAB, (4, 5, LENGTH))
    for user, length in enumerate((1, 3, 5, 2 if name == "decoder-only" else 0)):
        history[user, length:] = 0
    return jnp.asarray(history)


def prefixes_of(tree, user):
    """The prefixes of one user, by their number."""
    found = [()]
    for number in range(1, int(tree.exist[user].sum())):
        parent = int(tree.parents[user, number])
        found.append((*found[parent], int(tree.tokens[user, number])))
    return found


@pytest.mark.parametrize("width", [pytest.param(1, marks=pytest.mark.long), 5])
@pytest.mark.parametrize("name", FLOAT32)
def test_every_prefix_is_as_by_teacher_forcing(name, width):
    model, history = make_model(name), make_history(name)
    head = make_head(model.config.d_model, block=width > 1)
    tokens = np.random.default_rng(2).integers(2, VOCAB, (60, LENGTH))
    index = TrieIndex.build(tokens, VOCAB)
    config = VedConfig(width=width, **OPTIONS)
    found = ved_search(model, head, index, history, config, key=jax.random.key(0), keep_tree=True)
    tree = found.tree
    grown = np.asarray(tree.depths)[:, 1 + FIRST :].reshape(len(history), -1, width)
    assert tree.exist.all() and (width == 1 or (np.ptp(grown, axis=-1) > 0).any())

    # Each prefix and each candidate as one path of complete length, behind its own history.
    paths = [
        [prefix + (2,) * (LENGTH - len(prefix)) for prefix in prefixes_of(tree, user)]
        + np.asarray(found.tokens[user]).tolist()
        for user in range(len(history))
    ]
    states = jax.jit(path_states)(model, history, jnp.asarray(paths))
    logits, values = np.asarray(model.logits(states)), np.asarray(head(states))
    children = oracles.live_children(tokens, (), 0)
    for user in range(len(history)):
        prefixes = prefixes_of(tree, user)
        for number, prefix in enumerate(prefixes):
            depth, of_path = len(prefix), [oracles.log_softmax(x) for x in logits[user, number]]
            allowed = children[prefix]
            chances = search_oracles.conditionals(of_path[depth], allowed).values()
            expected = {
                "depths": depth,
                "log_probs": sum(of_path[t][token] for t, token in enumerate(prefix)),
                "entropies": -sum(np.exp(c) * c for c in chances),
                "values": values[user, number, depth] if depth < LENGTH - 1 else 0.0,
            }
            for field, value in expected.items():
                mine = getattr(tree, field)[user, number]
                np.testing.assert_allclose(mine, value, rtol=2e-4, atol=2e-4, err_msg=field)
        mine = rows(found, user)
        assert len(mine) > BEAMS and len({sid for _, sid, _ in mine}) == len(mine)
        for number, (score, sid, _) in enumerate(mine):
            of_path = [oracles.log_softmax(x) for x in logits[user, len(prefixes) + number]]
            expected = sum(of_path[t][token] for t, token in enumerate(sid))
            np.testing.assert_allclose(score, expected, rtol=2e-4, atol=2e-4)
