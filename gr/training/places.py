"""Which places of a batch stand for all of them, where a loss is too dear to be taken at each."""

import jax
import jax.numpy as jnp


def draw_places(
    key: jax.Array, weight: jax.Array, share: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws Q places of a batch, so that a weighted sum over them has the mean of the sum over all.

    Stratified: the real places, row by row, are cut into Q equal strata, and one is drawn uniformly in each.

    Args:
        key: of the draw.
        weight: `[B, S]`, 1 at real places, 0 elsewhere.
        share: Q over B x S; Q is at least 1; static.

    Returns:
        Rows and columns of the places, `[Q]` int32 each, and the weight `[Q]` of each: the weights' sum is the number
        of real places.
    """
    num = max(1, round(share * weight.size))
    real = weight.reshape(-1) > 0
    count = real.sum()
    strata = (jnp.arange(num) + jax.random.uniform(key, (num,))) / num
    wanted = jnp.minimum((strata * count).astype(jnp.int32), jnp.maximum(count - 1, 0))
    # The r-th real place is the first at which r + 1 of them have been met.
    places = jnp.searchsorted(jnp.cumsum(real), wanted, side="right")
    places = jnp.minimum(places, real.size - 1).astype(jnp.int32)
    rows, columns = jnp.divmod(places, weight.shape[1])
    return rows, columns, jnp.full(num, count / num, jnp.float32)
