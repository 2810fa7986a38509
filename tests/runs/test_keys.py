"""No two uses of a run's seed draw from the same random key."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from gr.data import leave_one_out, load_sequences
from gr.runs import Experiment, Reinforcement, build, build_rl, keys
from gr.runs.data import load_semantic_ids

STEPS = 200  # Of every training; and as many draws that initialise a backbone.


def numbers(key):
    return tuple(jax.random.key_data(key).tolist())


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_keys_differ_by_use_and_step(seed):
    of_runs = [keys.make_key(seed, use) for use in keys.USES] + [keys.supervised_key(seed)]
    used = [*map(numbers, of_runs)]
    fold_in = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
    for key in of_runs:
        steps = fold_in(key, np.arange(STEPS))
        used += map(numbers, steps)
        # What a step of reinforcement learning makes of its key.
        for parts in jax.vmap(lambda key: jax.random.split(key, 3))(steps[:20]):
            used += map(numbers, parts)
    # Supervised training's key has the number of a backbone's second draw, as in published results.
    used += map(numbers, fold_in(jax.random.key(seed), np.r_[0, 2:STEPS]))
    assert len(set(used)) == len(used)


def test_value_head_and_backbone_share_no_draws():
    config = Reinforcement().applied_to(Experiment(backbone="decoder_only"))
    sizes = {"d_model": 32, "num_heads": 4, "d_ff": 64, "num_layers": 1}
    config = config.override({f"decoder_only.{name}": size for name, size in sizes.items()})
    options = {"num_users": 20, "num_items": 30, "mean_length": 6.0, "seed": 0}
    splits = leave_one_out(load_sequences("synthetic", **options))
    config = config.override({"semantic_ids.num_levels": 2, "semantic_ids.codebook_size": 8})
    semantic_ids = load_semantic_ids(config, splits).semantic_ids
    backbone = build.make_model(config, semantic_ids)
    head = build_rl.make_value_head(config, 2)
    assert numbers(nnx.Rngs(config.seed).params()) == numbers(
        jax.random.fold_in(jax.random.key(config.seed), 0)
    )
    pairs = itertools.product(*(map(np.ravel, jax.tree.leaves(x)) for x in (head, backbone)))
    compared = 0
    for one, other in pairs:
        size = min(len(one), len(other))
        if size < 400 or one.std() == 0 or other.std() == 0:
            continue
        compared += 1
        assert abs(np.corrcoef(one[:size], other[:size])[0, 1]) < 6 / size**0.5
    assert compared > 10
