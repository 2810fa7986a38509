"""Layers over blocks of users, one block after the other, where a TPU's compiler asks for it."""

from collections.abc import Callable
from typing import Any

import jax

_ROWS = 640  # Of a block, at most, and half as many at least: fewer take longer to run, more to compile.


def at_once(run: Callable[..., Any], *arrays: jax.Array) -> Any:
    """`run(*arrays)`, for whoever may be given `in_blocks` instead."""
    return run(*arrays)


def in_blocks(run: Callable[..., Any], x: jax.Array, *others: Any) -> Any:
    """`run(x, *others)`, which must treat users apart; on a TPU a loop over blocks of them.

    A TPU's compiler writes a product of operands that fit into fast memory as code without a loop, as long as the
    product has rows. With loops around its layers the encoder-decoder's passes compile in a third of the time, and take
    no more cycles (docs/accelerators.md).

    Not for training: a loop's backward pass keeps what it need not. Users that are split over devices have to be split
    around it, as `gr.training.on_own_rows` does, or devices would wait for one another.

    Args:
        run: a function of pytrees of arrays with leading axis B, to such a pytree.
        x: `[B, M, ...]`, of B times M rows.
        others: the other pytrees.
    """
    users, each = x.shape[:2]
    fitting = [size for size in range(1, users + 1) if users % size == 0 and size * each <= _ROWS]
    block = max(fitting, default=users)
    if block == users or 2 * block * each < _ROWS:  # Blocks that are too small take longer to run.
        return run(x, *others)

    def looped(*all_users: Any) -> Any:
        blocks = jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), all_users)
        results = jax.lax.map(lambda of_block: run(*of_block), blocks)
        return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), results)

    return jax.lax.platform_dependent(x, *others, tpu=looped, default=run)
