"""Layers over blocks of users, one block after the other, where a TPU's compiler asks for it."""

from collections.abc import Callable
from typing import Any

import jax

_ROWS = 640  # Of a block, at most, and half as many at least: fewer take longer to run, more to compile.


def at_once(run: Callable[..., Any], *arrays: jax.Array) -> Any:
    """`run(*arrays)`, for whoever may be given `in_blocks` instead."""
    return run(*arrays)


def in_blocks(run: Callable[..., Any], *arrays: jax.Array) -> Any:
    """`run(*arrays)`, which must treat users apart; on a TPU a loop over blocks of them.

    A TPU's compiler writes a product of operands that fit into fast memory as code without a loop, as long as the
    product has rows. With a loop around the layers' products a model's passes compile in little more than half of the
    time, and take no more cycles (docs/accelerators.md).

    Not for training: a loop's backward pass keeps what it need not. Users that are split over devices have to be split
    around it, as `gr.training.on_own_rows` does, or devices would wait for one another.

    Args:
        run: a function of arrays with leading axis B, to such arrays.
        arrays: the first of them `[B, M, ...]`, of B times M rows.
    """
    users, each = arrays[0].shape[:2]
    fitting = [size for size in range(1, users + 1) if users % size == 0 and size * each <= _ROWS]
    block = max(fitting, default=users)
    if block == users or 2 * block * each < _ROWS:  # Blocks that are too small take longer to run.
        return run(*arrays)

    def looped(*arrays: jax.Array) -> Any:
        blocks = [x.reshape(-1, block, *x.shape[1:]) for x in arrays]
        results = jax.lax.map(lambda of_block: run(*of_block), tuple(blocks))
        return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), results)

    return jax.lax.platform_dependent(*arrays, tpu=looped, default=run)
