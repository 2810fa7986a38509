"""The layers of both backbones: projections, norms, position codes, attention over shared and own keys."""

import jax
import jax.numpy as jnp
from flax import nnx

from gr.models.cache import OwnKeys
from gr.models.rope import Rope

MASKED = -1e30  # Added to masked attention logits; finite, so that a fully masked row stays finite.


class Frozen(nnx.Variable):
    """A parameter that training leaves as it is; see `gr.models.freeze`."""


class Linear(nnx.Module):
    """A projection `[..., D_in] -> [..., D_out]`, by default without bias, computed in `dtype`, kept in float32.

    With `lora` (see `gr.models.add_lora`) a product of two narrow matrices is added to the kernel.
    """

    lora: "LowRank | None" = None

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        scale: float = 1.0,
        bias: bool = False,
    ):
        std = scale * in_dim**-0.5
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (in_dim, out_dim)))
        if bias:
            self.bias = nnx.Param(jnp.zeros((out_dim,)))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Projects the last axis."""
        x = x.astype(self.dtype)
        projected = project(x, self.kernel[...].astype(self.dtype))
        if hasattr(self, "bias"):
            projected = projected + self.bias[...].astype(self.dtype)
        return projected if self.lora is None else projected + self.lora(x)


class LowRank(nnx.Module):
    """A trained change of a frozen kernel: a product of rank r, 0 at the beginning (LoRA, arXiv 2106.09685)."""

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float, *, rngs: nnx.Rngs):
        self.down = nnx.LoRAParam(in_dim**-0.5 * jax.random.normal(rngs.params(), (in_dim, rank)))
        self.up = nnx.LoRAParam(jnp.zeros((rank, out_dim)))
        self.scale = alpha / rank

    def __call__(self, x: jax.Array) -> jax.Array:
        """What is added to the projection of `x [..., D_in]`."""
        down, up = (part[...].astype(x.dtype) for part in (self.down, self.up))
        return project(project(x, down), up) * self.scale

    def kernel(self) -> jax.Array:
        """What is added to the kernel, `[D_in, D_out]`."""
        return self.down[...] @ self.up[...] * self.scale


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [..., D_in] @ kernel [D_in, D_out]`, with a backward pass that keeps the gradient's memory layout.

    JAX's own backward pass transposes that gradient, and recomputes dropout's hash, a second time for the kernel's
    gradient. On a CPU this costs a fifth to a third of a training step.
    """
    return x @ kernel


def _project_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _project_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    gradient = jax.lax.optimization_barrier(gradient)  # Computed once, for both products.
    to_x = jax.lax.dot_general(gradient, kernel, (((gradient.ndim - 1,), (1,)), ((), ())))
    rows, columns = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return to_x, jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))


project.defvjp(_project_forward, _project_backward)


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned scale, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, dim: int, *, dtype: jnp.dtype, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones((dim,)))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * inverse * self.scale[...]).astype(self.dtype)


class RelativeBias(nnx.Module):
    """T5's learned attention bias by bucketed relative position, shared by a stack's layers (arXiv 1910.10683)."""

    def __init__(
        self,
        num_heads: int,
        *,
        rngs: nnx.Rngs,
        bidirectional: bool,
        num_buckets: int = 32,
        max_distance: int = 128,
    ):
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (num_buckets, num_heads)))
        self.bidirectional = bidirectional
        self.num_buckets = num_buckets
        self.max_distance = max_distance

    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """Bias `[..., H, Q, K]` for integer positions `[..., Q]` and `[..., K]`."""
        relative = key_positions[..., None, :] - query_positions[..., :, None]
        buckets = relative_position_bucket(
            relative, self.bidirectional, self.num_buckets, self.max_distance
        )
        # A one-hot product instead of a gather: its transpose is a matrix product, not a giant scatter.
        one_hot = jax.nn.one_hot(buckets, self.num_buckets, dtype=jnp.float32)
        return jnp.einsum("...qkn,nh->...hqk", one_hot, self.table[...])


def relative_position_bucket(
    relative: jax.Array, bidirectional: bool, num_buckets: int, max_distance: int
) -> jax.Array:
    """T5's buckets for `key - query` positions: exact when near, logarithmic up to `max_distance` beyond."""
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(relative > 0, num_buckets, 0)
        distance = jnp.abs(relative)
    else:
        distance = jnp.maximum(-relative, 0)
    exact = num_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(max_distance / exact)
    far = exact + (ratio * (num_buckets - exact)).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))


def rotate(x: jax.Array, positions: jax.Array, rope: Rope = Rope()) -> jax.Array:  # noqa: B008
    """Rotary position embedding of `x [..., S, H, D]` at integer `positions [..., S]` (arXiv 2104.09864)."""
    frequencies = rope.frequencies(x.shape[-1] // 2)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [..., S, 1, D / 2].
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(
        x.dtype
    )


def dropout_seed(key: jax.Array | None) -> jax.Array | None:
    """The seed of all dropout masks of one forward pass, uint32 []; None (no dropout) without a key."""
    return None if key is None else jax.random.bits(key, (), jnp.uint32)


def split_seed(seed: jax.Array | None, num: int) -> list[jax.Array | None]:
    """`num` seeds from one, or as many Nones."""
    if seed is None:
        return [None] * num
    return [_mix(seed + jnp.uint32(i * 0x9E3779B9 & 0xFFFFFFFF)) for i in range(1, num + 1)]


def dropout(x: jax.Array, rate: float, seed: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and rescales the rest; the identity without a seed.

    An entry's random bits are a hash of its position and the seed. XLA fuses the hash with its neighbours and
    recomputes it in the backward pass, so no mask is stored. On a CPU a cryptographic generator (threefry or Philox)
    would take as long as the matrix products themselves.
    """
    if seed is None or rate == 0.0:
        return x
    position = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
        stride *= x.shape[axis]
    keep = _mix(position ^ seed) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def _mix(h: jax.Array) -> jax.Array:
    """A 32-bit integer hash with low avalanche bias: "lowbias32", C. Wellons, Hash Prospector, 2018."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)


def heads_first(key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys `[B, H, D, K]` and values `[B, H, K, D]` of `[B, K, H, D]`, as products with queries need them.

    Keys that many queries use, such as the steps of a search, are best stored like this; otherwise each query copies
    them.
    """
    return key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)


def merge_heads(mixed: jax.Array) -> jax.Array:
    """Heads side by side, `[..., H, D] -> [..., H * D]`."""
    return mixed.reshape(*mixed.shape[:-2], -1)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    *,
    rate: float = 0.0,
    seed: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of `query [B, Q, H, D]` over `key, value [B, K, H, D]` with additive bias `[B, H, Q, K]`.

    Here and below, keys and values may have fewer heads than queries, each shared by as many neighbouring query heads
    (grouped-query attention, arXiv 2305.13245).
    """
    return attend_heads_first(query, heads_first(key, value), bias, rate=rate, seed=seed)


def attend_heads_first(
    query: jax.Array,
    keys: tuple[jax.Array, jax.Array],
    bias: jax.Array | None,
    *,
    rate: float = 0.0,
    seed: jax.Array | None = None,
) -> jax.Array:
    """`attend` over keys and values that are `heads_first`."""
    # Heads first, then plain products: on a CPU the einsum over the other layout is slow.
    query = (query * query.shape[-1] ** -0.5).transpose(0, 2, 1, 3)
    logits = _matmul_in_groups(query, keys[0], preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    weights = jax.nn.softmax(logits, axis=-1).astype(keys[1].dtype)
    weights = dropout(weights, rate, seed)
    return _matmul_in_groups(weights, keys[1]).transpose(0, 2, 1, 3)


def _matmul_in_groups(
    x: jax.Array, y: jax.Array, preferred_element_type: jnp.dtype | None = None
) -> jax.Array:
    """`x [B, H, Q, I] @ y [B, H or fewer, I, K]`: the queries of heads that share keys are rows of one product."""
    batch, heads, rows, inner = x.shape
    grouped = x.reshape(batch, y.shape[1], -1, inner)
    product = jnp.matmul(grouped, y, preferred_element_type=preferred_element_type)
    return product.reshape(batch, heads, rows, -1)


def _for_each_head(keys: tuple[jax.Array, jax.Array], heads: int) -> tuple[jax.Array, ...]:
    """Keys and values `[..., H, D]`, repeated for the query heads that share them."""
    if keys[0].shape[-2] == heads:
        return keys
    return tuple(jnp.repeat(x, heads // x.shape[-2], axis=-2) for x in keys)


def attend_shared_and_own(
    query: jax.Array,
    shared: tuple[jax.Array, jax.Array],
    shared_bias: jax.Array,
    own: tuple[jax.Array, jax.Array],
    own_bias: jax.Array | None = None,
) -> jax.Array:
    """Attention of each beam over its user's keys, stored once per user, and over the beam's own few keys.

    The two parts are computed separately and merged through a common maximum and sum, which is exact (Hydragen, arXiv
    2402.05099, section 3.2).

    Args:
        query: `[B, M, H, D]`.
        shared: keys and values of P positions, the same for all beams of a user, `heads_first`.
        shared_bias: `[B, H or 1, 1, P]`, `MASKED` where there is no key.
        own: keys and values `[B, M, S, H, D]`.
        own_bias: `[B or 1, H or 1, M or 1, S]`, or None.

    Returns:
        `[B, M, H, D]`.
    """
    scale = query.shape[-1] ** -0.5
    f32 = jnp.float32
    heads = query.shape[2]
    own = _for_each_head(own, heads)  # Few, so that copies cost little.
    grouped = shared[0].shape[1] != heads
    if grouped:
        far = _matmul_in_groups(query.transpose(0, 2, 1, 3), shared[0], f32)
    else:
        far = jnp.einsum("bmhd,bhdp->bhmp", query, shared[0], preferred_element_type=f32)
    far = far * scale + shared_bias
    # Few keys per beam: fused sums of products, since a matrix product per beam and head would copy the keys.
    near = _inner(query[:, :, None], own[0]).transpose(0, 3, 1, 2) * scale
    if own_bias is not None:
        near = near + own_bias
    top = jnp.maximum(far.max(-1, keepdims=True), near.max(-1, keepdims=True))
    far, near = jnp.exp(far - top), jnp.exp(near - top)
    total = far.sum(-1) + near.sum(-1)  # [B, H, M].
    dtype = query.dtype
    if grouped:
        mixed = _matmul_in_groups(far.astype(dtype), shared[1]).transpose(0, 2, 1, 3)
    else:
        mixed = jnp.einsum("bhmp,bhpd->bmhd", far.astype(dtype), shared[1])
    mixed = mixed + (near.astype(dtype).transpose(0, 2, 3, 1)[..., None] * own[1]).sum(2)
    return (mixed / total.transpose(0, 2, 1)[..., None]).astype(dtype)


def attend_suffixes(
    query: jax.Array,
    shared: tuple[jax.Array, jax.Array],
    shared_bias: jax.Array,
    own: tuple[jax.Array, jax.Array],
    own_bias: jax.Array | None = None,
    *,
    rate: float = 0.0,
    seed: jax.Array | None = None,
) -> jax.Array:
    """Causal attention of n suffixes of S tokens to the keys they share and to their own earlier tokens.

    The two parts are merged exactly, as in `attend_shared_and_own`; here all S tokens are computed at once.

    Args:
        query: `[R, n, S, H, D]`.
        shared: keys and values `[R, P, H, D]` of the prefix that all suffixes of a row share.
        shared_bias: broadcastable to `[R, H, n, S, P]`, `MASKED` where there is no key.
        own: keys and values `[R, n, S, H, D]`.
        own_bias: `[H, S, S]`, or None.
        rate: of dropout on the weights.
        seed: see `dropout`.

    Returns:
        `[R, n, S, H, D]`.
    """
    far_seed, near_seed = split_seed(seed, 2)
    query = query * query.shape[-1] ** -0.5
    rows, num, length, heads, width = query.shape
    flat = query.transpose(0, 3, 1, 2, 4).reshape(rows, heads, num * length, width)
    keys, values = (x.transpose(0, 2, 1, 3) for x in shared)
    own = _for_each_head(own, heads)
    far = _matmul_in_groups(flat, keys.swapaxes(-1, -2), jnp.float32)
    far = far.reshape(rows, heads, num, length, -1) + shared_bias

    # Few tokens per suffix: sums of products per position are fused; thousands of tiny matrix products would be slow.
    queries, own_keys, own_values = (_places(x) for x in (query, *own))
    near = []
    for i in range(length):
        place = [_inner(queries[i], own_keys[j]) for j in range(i + 1)]
        near.append(jnp.stack(place + [jnp.full_like(place[0], MASKED)] * (length - 1 - i), -1))
    near = jnp.stack(near, axis=-2).transpose(0, 2, 1, 3, 4)  # [R, H, n, S, S].
    if own_bias is not None:
        near = near + own_bias[:, None]

    top = jax.lax.stop_gradient(
        jnp.maximum(far.max(-1, keepdims=True), near.max(-1, keepdims=True))
    )
    far, near = jnp.exp(far - top), jnp.exp(near - top)
    inverse = 1.0 / (far.sum(-1, keepdims=True) + near.sum(-1, keepdims=True))
    far = dropout((far * inverse).astype(query.dtype), rate, far_seed)
    near = dropout((near * inverse).astype(query.dtype), rate, near_seed)
    mixed = _matmul_in_groups(far.reshape(rows, heads, num * length, -1), values)
    mixed = mixed.reshape(rows, heads, num, length, width).transpose(0, 2, 3, 1, 4)
    near = near.transpose(0, 2, 3, 1, 4)  # [R, n, S, H, S].
    places = [
        sum(near[:, :, i, :, j, None] * own_values[j] for j in range(i + 1)) for i in range(length)
    ]
    return mixed + jnp.stack(places, axis=2)


def _places(x: jax.Array) -> list[jax.Array]:
    """The places `[R, n, H, D]` of `[R, n, S, H, D]`; their gradients are laid side by side, not added up."""
    return [place[:, :, 0] for place in jnp.split(x, x.shape[2], axis=2)]


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a * b).sum(-1, dtype=jnp.float32)


def side_by_side(slots: tuple[jax.Array, ...], width: int) -> jax.Array:
    """S positions `[B, M, H * D]` as one array `[B, M, S, H, D]`, with heads of `width` D."""
    stacked = jnp.stack(slots, axis=2)
    return stacked.reshape(*stacked.shape[:3], -1, width)


def attend_own(query: jax.Array, own: OwnKeys, bias: jax.Array) -> jax.Array:
    """Attention of each beam `[B, M, H, D]` over its own keys and values, S of `[B, M, H * D]` each.

    The bias is `[H, S]`, or `[B, M, H, S]` where beams differ.
    """
    scale = query.shape[-1] ** -0.5

    def stacked(query: jax.Array, own: OwnKeys, bias: jax.Array) -> jax.Array:
        keys, values = (side_by_side(x, query.shape[-1]) for x in own)
        logits = jnp.einsum("bmhd,bmshd->bmhs", query, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * scale + bias, axis=-1)
        return jnp.einsum("bmhs,bmshd->bmhd", weights.astype(query.dtype), values)

    def apart(query: jax.Array, own: OwnKeys, bias: jax.Array) -> jax.Array:
        """For a TPU: no array with short last axes; sums over heads are products, in float32."""
        heads, width = query.shape[2:]
        of_head = jnp.repeat(jnp.eye(heads), width, axis=0)  # [H * D, H], of 0 and 1.
        merged = merge_heads(query).astype(jnp.float32)
        logits = jnp.stack([_sums(merged * key, of_head) for key in own[0]], axis=-1)
        weights = jax.nn.softmax(logits * scale + bias, axis=-1)
        mixed = [
            _sums(weights[..., place], of_head.T) * value for place, value in enumerate(own[1])
        ]
        return sum(mixed).astype(query.dtype).reshape(query.shape)

    return jax.lax.platform_dependent(query, own, bias, tpu=apart, default=stacked)


def _sums(x: jax.Array, zeros_and_ones: jax.Array) -> jax.Array:
    """`x @ zeros_and_ones` in float32, whatever the precision of products: one product of bfloat16 numbers.

    A float32 is the sum of three bfloat16 numbers. Products with 0 and 1 are exact, and sums are float32.
    """
    high = jax.lax.reduce_precision(x, 8, 7)
    middle = jax.lax.reduce_precision(x - high, 8, 7)
    parts = jnp.concatenate([high, middle, x - high - middle], axis=-1).astype(jnp.bfloat16)
    ones = jnp.tile(zeros_and_ones, (3, 1)).astype(jnp.bfloat16)
    return jnp.matmul(parts, ones, preferred_element_type=jnp.float32)


def item_lengths(history: jax.Array) -> jax.Array:
    """Items of each right-padded history of tokens `[B, T, L]`: `[B]` int32."""
    return (history[:, :, 0] != 0).sum(axis=1, dtype=jnp.int32)
