"""Random semantic IDs, and random draws from an index."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gr.trie import TrieIndex, child_tokens, descend, root

# Four tokens of each of three levels, in a vocabulary of 50.
LEVEL_TOKENS = np.array([[2, 3, 7, 9], [10, 11, 26, 44], [45, 46, 48, 49]])


def random_tokens(
    rng: np.random.Generator, num_items: int, level_tokens: np.ndarray = LEVEL_TOKENS
) -> np.ndarray:
    """Semantic IDs `[num_items, L]` with many shared prefixes, and duplicates.

    Args:
        rng: random generator.
        num_items: N.
        level_tokens: the tokens that each level chooses from, `[L, K]`.
    """
    length, choices = level_tokens.shape
    return level_tokens[np.arange(length), rng.integers(0, choices, (num_items, length))]


@functools.partial(jax.jit, static_argnames="shape")
def random_paths(index: TrieIndex, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Semantic IDs of an index, drawn code by code, each code that follows a prefix being equally likely.

    Args:
        index: the trie.
        key: random key.
        shape: leading shape of the result.

    Returns:
        Tokens `[*shape, L]` int32.
    """
    nodes, path = root(index, shape), []
    for depth in range(index.length):
        tokens, exist = child_tokens(index, depth, nodes)
        noise = jax.random.uniform(jax.random.fold_in(key, depth), exist.shape, minval=0.5)
        choice = jnp.where(exist, noise, 0.0).argmax(axis=-1)
        path.append(jnp.take_along_axis(tokens, choice[..., None], axis=-1)[..., 0])
        nodes = descend(index, depth, nodes, path[-1])
    return jnp.stack(path, axis=-1).astype(jnp.int32)
