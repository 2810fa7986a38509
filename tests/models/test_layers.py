import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from platforms import of_tpu

from gr.models import layers
from gr.models.layers import MASKED, Linear, RelativeBias, RMSNorm, dropout_seed, item_lengths

pytestmark = pytest.mark.usefixtures("compile_in_haste")

# Compiled as a whole, which is faster than operation by operation.
attend = jax.jit(layers.attend, static_argnames="rate")
attend_own = jax.jit(layers.attend_own)


@jax.jit
def attend_shared_and_own(query, shared, *rest):
    return layers.attend_shared_and_own(query, layers.heads_first(*shared), *rest)


dropout = jax.jit(layers.dropout, static_argnames="rate")
relative_position_bucket = jax.jit(layers.relative_position_bucket, static_argnums=(1, 2, 3))
rotate = jax.jit(layers.rotate)
split_seed = jax.jit(layers.split_seed, static_argnames="num")

# Positions.


def t5_buckets(relative, *, bidirectional):
    return np.asarray(
        relative_position_bucket(jnp.array(relative), bidirectional, 32, 128)
    ).tolist()


def test_buckets_of_a_bidirectional_stack():
    # 16 buckets a side: 8 exact ones, then 8 + floor(2 log2(distance / 8)), at most 15; +16 for keys to the right.
    distance = [0, 1, 7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 128, 5000]
    bucket = [0, 1, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15]
    assert t5_buckets([-d for d in distance], bidirectional=True) == bucket
    right = t5_buckets(distance, bidirectional=True)
    assert right == [0] + [b + 16 for b in bucket[1:]]


def test_buckets_of_a_causal_stack():
    # 32 buckets, all for keys to the left: 16 exact ones, then 16 + floor(16 log2(distance / 16) / 3), at most 31.
    distance = [0, 1, 15, 16, 18, 19, 20, 21, 31, 35, 64, 112, 113, 128, 5000]
    bucket = [0, 1, 15, 16, 16, 17, 17, 18, 21, 22, 26, 30, 31, 31, 31]
    assert t5_buckets([-d for d in distance], bidirectional=False) == bucket
    assert t5_buckets([1, 40], bidirectional=False) == [0, 0]


def test_relative_bias_reads_the_table_at_the_bucket():
    bias = RelativeBias(2, rngs=nnx.Rngs(0), bidirectional=True)
    bias.table[...] = jnp.arange(64.0).reshape(32, 2)  # table[bucket, head] = 2 bucket + head.
    call = jax.jit(lambda bias, *positions: bias(*positions))
    found = call(bias, jnp.array([3, 0]), jnp.array([1, 3, 4]))
    # key - query: [-2, 0, 1] and [1, 3, 4], in buckets [2, 0, 17] and [17, 19, 20].
    np.testing.assert_array_equal(found[0], [[4, 0, 34], [34, 38, 40]])
    np.testing.assert_array_equal(found[1], [[5, 1, 35], [35, 39, 41]])
    per_user = call(bias, jnp.array([[3], [0]]), jnp.array([1, 3, 4]))
    assert per_user.shape == (2, 2, 1, 3)
    np.testing.assert_array_equal(per_user[:, 0, 0], [[4, 0, 34], [34, 38, 40]])


def test_rotation_turns_each_pair_by_position_times_frequency():
    # Width 4: pairs (0, 2) and (1, 3) turn by `position` and `position / 100` radians.
    x = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 4)
    turned = rotate(x, jnp.array([2]))[0, 0]
    expected = [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02)]
    np.testing.assert_allclose(turned, expected, rtol=1e-6)
    np.testing.assert_array_equal(rotate(x, jnp.array([0])), x)


def test_rotated_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    query, key = jnp.asarray(rng.normal(size=(2, 1, 1, 8)), jnp.float32)

    def score(query_position, key_position):
        turned = rotate(query, jnp.array([query_position])), rotate(key, jnp.array([key_position]))
        return float((turned[0] * turned[1]).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(3, 7) == pytest.approx(score(0, 4), abs=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-2
    assert abs(score(7, 3) - score(3, 7)) > 1e-2


# Projections and norms.


def test_rms_norm_by_hand():
    norm = RMSNorm(2, dtype=jnp.float32)
    norm.scale[...] = jnp.array([1.0, 10.0])
    # Mean square of (3, 4) is 12.5.
    expected = [[3 / 12.5**0.5, 40 / 12.5**0.5], [0, 0]]
    np.testing.assert_allclose(norm(jnp.array([[3.0, 4.0], [0.0, 0.0]])), expected, rtol=1e-6)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.full((4096,), 3.0, jnp.bfloat16)  # A bfloat16 sum of 4096 nines would stop at 2304.
    found = RMSNorm(4096, dtype=jnp.bfloat16)(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), 1.0)


def test_linear_computes_in_its_dtype_and_keeps_float32():
    linear = Linear(3, 2, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    linear.kernel[...] = jnp.arange(6.0).reshape(3, 2)
    found = linear(jnp.array([1.0, 1.0, 2.0]))
    assert found.dtype == jnp.bfloat16
    assert linear.kernel.dtype == jnp.float32
    assert found.tolist() == [0 + 2 + 8, 1 + 3 + 10]


def test_a_new_linear_keeps_the_variance():
    linear = Linear(256, 512, rngs=nnx.Rngs(0), dtype=jnp.float32, scale=0.5)
    assert float(jnp.std(linear.kernel[...])) == pytest.approx(0.5 / 16, rel=0.02)


def test_item_lengths_counts_items_not_codes():
    history = jnp.array([[[2, 5], [3, 4], [0, 0]], [[2, 4], [0, 0], [0, 0]]])
    assert item_lengths(history).tolist() == [2, 1]


# Attention.


def attend_oracle(query, key, value, bias):
    """One query, head and user at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    result = np.zeros(query.shape)
    for b, q, h in np.ndindex(query.shape[:3]):
        logits = key[b, :, h] @ query[b, q, h] / query.shape[-1] ** 0.5 + bias[b, h, q]
        weights = np.exp(logits - logits.max())
        result[b, q, h] = weights / weights.sum() @ value[b, :, h]
    return result


def qkv(num_queries=3, num_keys=5, seed=0):
    """Query `[2, Q, 2, 4]`, key and value `[2, K, 2, 4]`."""
    rng = np.random.default_rng(seed)
    counts = (num_queries, num_keys, num_keys)
    return [jnp.asarray(2 * rng.normal(size=(2, n, 2, 4)), jnp.float32) for n in counts]


def test_attend_is_softmax_attention():
    query, key, value = qkv()
    rng = np.random.default_rng(1)
    bias = np.where(rng.random((2, 2, 3, 5)) < 0.4, MASKED, rng.normal(size=(2, 2, 3, 5)))
    bias[..., 0] = 0.5  # Every query sees a key.
    found = attend(query, key, value, jnp.asarray(bias, jnp.float32))
    np.testing.assert_allclose(found, attend_oracle(query, key, value, bias), atol=1e-5)
    no_bias = attend_oracle(query, key, value, np.zeros_like(bias))
    np.testing.assert_allclose(attend(query, key, value, None), no_bias, atol=1e-5)


def test_a_masked_key_has_no_influence():
    query, key, value = qkv()
    bias = jnp.zeros((1, 1, 1, 5)).at[..., 2].set(MASKED)
    plain = attend(query, key, value, bias)
    far = attend(query, key.at[:, 2].set(1e3), value.at[:, 2].set(1e3), bias)
    np.testing.assert_array_equal(plain, far)


def test_a_fully_masked_row_stays_finite_also_in_its_gradient():
    query, key, value = qkv()
    bias = jnp.full((1, 1, 1, 5), MASKED)
    loss, grad = jax.jit(jax.value_and_grad(lambda q: attend(q, key, value, bias).sum()))(query)
    assert jnp.isfinite(loss)
    assert jnp.isfinite(grad).all()


def test_attention_with_dropout_drops_weights():
    query, key, value = qkv(num_keys=5)
    seed = dropout_seed(jax.random.key(0))
    found = attend(query, key, value, None, rate=0.5, seed=seed)
    assert not np.allclose(found, attend(query, key, value, None))
    np.testing.assert_array_equal(found, attend(query, key, value, None, rate=0.5, seed=seed))


@pytest.fixture
def beams():
    """Query `[2, 3, 2, 4]` of 3 beams; shared keys `[2, 5, 2, 4]`, own ones `[2, 3, 2, 2, 4]`."""
    rng = np.random.default_rng(3)
    query, *shared = qkv()
    own = [jnp.asarray(2 * rng.normal(size=(2, 3, 2, 2, 4)), jnp.float32) for _ in range(2)]
    return query, tuple(shared), tuple(own)


def test_attention_over_shared_and_own_keys_is_attention_over_both(beams):
    query, shared, own = beams
    rng = np.random.default_rng(4)
    shared_bias = rng.normal(size=(2, 2, 1, 5)) + np.where(np.arange(5) < 3, 0.0, MASKED)
    own_bias = rng.normal(size=(2, 2))
    found = attend_shared_and_own(
        query,
        shared,
        jnp.asarray(shared_bias, jnp.float32),
        own,
        jnp.asarray(own_bias, jnp.float32)[None, :, None],
    )
    for beam in range(3):
        both = [np.concatenate([s, o[:, beam]], axis=1) for s, o in zip(shared, own, strict=True)]
        bias = np.concatenate([shared_bias, np.tile(own_bias[:, None], (2, 1, 1, 1))], axis=-1)
        expected = attend_oracle(query[:, beam : beam + 1], *both, bias)
        np.testing.assert_allclose(found[:, beam : beam + 1], expected, atol=1e-5)


def test_the_merge_is_exact_when_one_part_dwarfs_the_other(beams):
    query, shared, own = beams
    for factor in (1e3, 1e-3):  # Either part's largest logit is hundreds above the other's.
        grown = (own[0] * factor, own[1])
        grown_shared = (shared[0] / factor, shared[1])
        found = attend_shared_and_own(query, grown_shared, jnp.zeros((2, 1, 1, 5)), grown)
        for beam in range(3):
            both = [
                np.concatenate([s, o[:, beam]], axis=1)
                for s, o in zip(grown_shared, grown, strict=True)
            ]
            expected = attend_oracle(query[:, beam : beam + 1], *both, np.zeros((2, 2, 1, 7)))
            np.testing.assert_allclose(found[:, beam : beam + 1], expected, atol=2e-3)


def test_with_no_shared_key_it_is_attention_over_the_own_keys(beams):
    query, shared, own = beams
    found = attend_shared_and_own(query, shared, jnp.full((2, 1, 1, 5), MASKED), own)
    np.testing.assert_allclose(found, attend_own(query, apart(own), jnp.zeros((2, 2))), atol=1e-5)


def apart(own):
    """Keys and values `[B, M, S, H, D]` as `attend_own` takes them."""
    return tuple(
        tuple(x[:, :, place].reshape(*x.shape[:2], -1) for place in range(x.shape[2])) for x in own
    )


@pytest.mark.parametrize("platform", ["default", "tpu"])
def test_attend_own_is_softmax_attention_for_each_beam(platform, beams, monkeypatch):
    if platform == "tpu":
        monkeypatch.setattr(jax.lax, "platform_dependent", of_tpu)
    query, _, own = beams
    bias = np.array([[0.5, -1.0], [2.0, 0.0]])
    # Made anew, since JAX keeps what it traced of the same function.
    attend = jax.jit(lambda *arguments: layers.attend_own(*arguments))
    with jax.default_matmul_precision("default"):
        found = attend(query, apart(own), jnp.asarray(bias, jnp.float32))
        each = attend(query, apart(own), jnp.tile(jnp.asarray(bias, jnp.float32), (2, 3, 1, 1)))
    np.testing.assert_array_equal(found, each)
    for beam in range(3):
        mine = [x[:, beam] for x in own]
        tiled = np.tile(bias[:, None], (2, 1, 1, 1))
        expected = attend_oracle(query[:, beam : beam + 1], *mine, tiled)
        np.testing.assert_allclose(found[:, beam : beam + 1], expected, atol=1e-5)


def test_sums_by_a_product_of_bfloat16_are_exact():
    """As for a TPU's sums over heads: alone, every float32 comes back as it was."""
    numbers = np.random.default_rng(0)
    x = numbers.normal(size=(50, 6)) * 10.0 ** numbers.integers(-20, 20, (50, 6))
    spread = jnp.repeat(jnp.eye(6), 4, axis=1)
    found = jax.jit(layers._sums)(x.astype(np.float32), spread)
    np.testing.assert_array_equal(found, np.repeat(x.astype(np.float32), 4, axis=1))


# Dropout.


def masks(num, shape, rate=0.3, key=0):
    """Which entries of `num` sites of one forward pass are kept."""
    seeds = split_seed(dropout_seed(jax.random.key(key)), num)
    return [np.asarray(dropout(jnp.ones(shape), rate, seed)) > 0 for seed in seeds]


def test_dropout_without_a_seed_or_a_rate_is_the_identity():
    x = jnp.arange(6.0)
    assert dropout_seed(None) is None
    assert layers.split_seed(None, 3) == [None, None, None]
    assert layers.dropout(x, 0.5, None) is x
    assert layers.dropout(x, 0.0, jnp.uint32(7)) is x


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    n = 1_000_000
    for rate in (0.1, 0.5):
        found = np.asarray(dropout(jnp.full((1000, n // 1000), 2.0), rate, jnp.uint32(12345)))
        assert set(np.unique(found).tolist()) == {0.0, np.float32(2.0 / (1 - rate)).item()}
        error = (rate * (1 - rate) / n) ** 0.5
        assert abs((found == 0).mean() - rate) < 4 * error
        assert abs(found.mean() - 2.0) < 4 * error * 2.0 / (1 - rate)


def test_dropout_keeps_the_dtype():
    found = dropout(jnp.ones((64,), jnp.bfloat16), 0.5, jnp.uint32(1))
    assert found.dtype == jnp.bfloat16


def test_dropout_of_one_key_is_the_same_and_of_another_key_another():
    first, again, other = (masks(1, (300,), key=key)[0] for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_masks_of_sites_rows_and_keys_are_uncorrelated():
    shape = (500, 400)
    sites = [*masks(6, shape), *masks(2, shape, key=1)]
    rows = [sites[0][0::2], sites[0][1::2]]  # Neighbouring users of one site.
    columns = [sites[0][:, 0::2], sites[0][:, 1::2]]
    for group in (sites, rows, columns):
        flat = np.array([mask.ravel() for mask in group], float)
        correlation = np.corrcoef(flat) - np.eye(len(flat))
        assert np.abs(correlation).max() < 5 / flat.shape[1] ** 0.5


def test_no_position_is_dropped_more_often_than_others():
    seeds = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(
        jax.random.split(jax.random.key(3), 4000)
    )
    dropped = jax.vmap(lambda seed: dropout(jnp.ones((8, 8)), 0.1, seed) == 0)(seeds)
    share = np.asarray(dropped.mean(axis=0))
    assert np.abs(share - 0.1).max() < 5 * (0.1 * 0.9 / 4000) ** 0.5


def test_the_backward_pass_drops_what_the_forward_pass_dropped():
    seed = dropout_seed(jax.random.key(0))
    x = jnp.arange(1.0, 101.0)
    grad = jax.grad(lambda x: dropout(x, rate=0.4, seed=seed).sum())(x)
    np.testing.assert_allclose(grad, dropout(x, rate=0.4, seed=seed) / x, rtol=1e-6)


def test_seeds_of_one_key_are_all_different():
    # As a model splits them: layers from the pass, sites from the layers.
    layers = split_seed(dropout_seed(jax.random.key(0)), 20)
    seeds = [int(seed) for layer in layers for seed in split_seed(layer, 6)]
    assert len(set(seeds)) == 120
