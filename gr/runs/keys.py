"""Every random key of a run, derived from its seed in one place: no two uses draw from the same."""

import zlib

import jax

# Each is folded into the seed's key by its name.
VALUE_HEAD = "initialisation of the value head"
VALUE_TRAINING = "training of the value head alone"
POLICY_TRAINING = "training of policy and value head"
VALUE_EVALUATION = "evaluation of the value head"
SEARCH_EVALUATION = "evaluation of a search"
SEARCH_TREES = "search trees of a report"
USES = (
    VALUE_HEAD,
    VALUE_TRAINING,
    POLICY_TRAINING,
    VALUE_EVALUATION,
    SEARCH_EVALUATION,
    SEARCH_TREES,
)


def make_key(seed: int, use: str) -> jax.Array:
    """The key of one of the `USES`."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(use.encode()))


def supervised_key(seed: int) -> jax.Array:
    """The key of supervised training, by number: published results were drawn from it.

    The backbone is initialised from `nnx.Rngs(seed)`, which folds in the numbers of its draws, 0, 1, ...
    """
    return jax.random.fold_in(jax.random.key(seed), 1)
