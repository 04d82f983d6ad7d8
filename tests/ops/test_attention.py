"""Attention kernels against an oracle in float64: one row of the table per feature."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import attention

B, T, N, K, H = 2, 150, 4, 2, 4  # T spans three blocks of the blockwise kernel

CELLS = {
    "causal": {},
    "bidirectional": {"causal": False},
    "window": {"window": 5},
    "window across blocks": {"window": 140},
    "bidirectional window": {"causal": False, "window": 3},
    "softcap": {"softcap": 1.5},
    "scale": {"scale": 0.3},
    "everything": {"window": 9, "softcap": 1.5, "scale": 0.7},
}


def row_places():
    """Row 0: documents of 60, 80 and 3 tokens, then padding. Row 1: one document."""
    segments = np.ones((B, T), np.int32)
    segments[0] = np.repeat([1, 2, 3, 0], [60, 80, 3, 7])
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    positions[0] = np.concatenate([np.arange(n) for n in (60, 80, 3, 7)])
    return segments, positions


def arrays(seed=0, kv=K):
    rng = np.random.default_rng(seed)
    shapes = ((B, T, N, H), (B, T, kv, H), (B, T, kv, H), (B, T, N, H))
    return [rng.normal(size=s).astype(np.float32) for s in shapes]


def oracle(q, k, v, g, segments, positions, causal=True, window=None, softcap=None, scale=None):
    """Output and gradients of sum(output * g), by loops over batch, head and query in float64."""
    q, k, v, g = (a.astype(np.float64) for a in (q, k, v, g))
    scale = 1 / np.sqrt(H) if scale is None else scale
    out, dq, dk, dv = (np.zeros_like(a) for a in (q, q, k, v))
    for b, n, t in np.ndindex(B, N, T):
        j = n // (N // k.shape[2])
        keys = [s for s in range(T) if segments[b, s] == segments[b, t] != 0]
        if causal:
            keys = [s for s in keys if positions[b, s] <= positions[b, t]]
        if window is not None:
            keys = [s for s in keys if abs(positions[b, t] - positions[b, s]) < window]
        if not keys:
            continue
        z = k[b, keys, j] @ q[b, t, n] * scale
        s = z if softcap is None else softcap * np.tanh(z / softcap)
        p = np.exp(s - s.max())
        p /= p.sum()
        out[b, t, n] = p @ v[b, keys, j]
        dp = v[b, keys, j] @ g[b, t, n]
        ds = p * (dp - p @ dp)
        dz = scale * (ds if softcap is None else ds * (1 - (s / softcap) ** 2))
        dq[b, t, n] = dz @ k[b, keys, j]
        dk[b, keys, j] += np.outer(dz, q[b, t, n])
        dv[b, keys, j] += np.outer(p, g[b, t, n])
    return out, dq, dk, dv


def value_and_gradients(q, k, v, g, segments, positions, **options):
    at = attention.At(jnp.asarray(segments), jnp.asarray(positions))

    @jax.jit
    def run(q, k, v, g):
        out, pull = jax.vjp(lambda *qkv: attention.attend(*qkv, at, at, **options), q, k, v)
        return out, *pull(g)

    return [np.asarray(a, np.float64) for a in run(q, k, v, g)]


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell, kernel):
    places, inputs = row_places(), arrays()
    got = value_and_gradients(*inputs, *places, kernel=kernel, **CELLS[cell])
    for ours, true in zip(got, oracle(*inputs, *places, **CELLS[cell]), strict=True):
        np.testing.assert_allclose(ours, true, atol=2e-5)


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
@pytest.mark.parametrize("kv", [1, N])
def test_multi_query_and_multi_head(kv, kernel):
    places, inputs = row_places(), arrays(kv=kv)
    got = value_and_gradients(*inputs, *places, kernel=kernel)
    for ours, true in zip(got, oracle(*inputs, *places), strict=True):
        np.testing.assert_allclose(ours, true, atol=2e-5)


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
def test_bfloat16(kernel):
    """Inputs rounded to bfloat16 (8 bits): outputs and gradients keep about 2 decimals."""
    places = row_places()
    inputs = [jnp.asarray(a, jnp.bfloat16) for a in arrays()]
    options = {"window": 40, "softcap": 3.0}
    got = value_and_gradients(*inputs, *places, kernel=kernel, **options)
    rounded = [np.asarray(a, np.float64) for a in inputs]
    for ours, true in zip(got, oracle(*rounded, *places, **options), strict=True):
        np.testing.assert_allclose(ours, true, atol=0.02 * np.abs(true).max())
        assert np.abs(ours - true).mean() < 0.005 * np.abs(true).max()


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
def test_a_query_that_sees_nothing_is_exactly_zero(kernel):
    """Padding gives 0 and takes no gradient, even where its cotangent and its scores are huge."""
    segments, positions = row_places()
    q, k, v, g = arrays()
    pad = segments == 0
    for a in (q, k, v, g):
        a[pad] = 1e18
    got = value_and_gradients(q, k, v, g, segments, positions, kernel=kernel)
    for a in got:
        assert np.isfinite(a).all()
        assert (a[pad] == 0).all()
        assert (a[~pad] != 0).any()


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
def test_no_gradient_crosses_documents(kernel):
    segments, positions = row_places()
    q, k, v, g = arrays()
    g[segments != 2] = 0
    _, dq, dk, dv = value_and_gradients(q, k, v, g, segments, positions, kernel=kernel)
    for a in (dq, dk, dv):
        assert (a[segments != 2] == 0).all()
        assert (a[segments == 2] != 0).any()


@pytest.mark.parametrize("options", [{}, {"window": 7, "softcap": 2.0, "scale": 0.4}])
def test_cached_equals_attend_on_the_concatenation(options):
    """Row 0 has 100 of 130 cache slots filled and continues there; row 1 fills all of them."""
    q, k, v, _ = arrays()
    old, filled = 130, np.array([100, 130])
    slot = np.arange(old)
    segments = np.ones((B, T), np.int32)
    segments[:, :old] = slot < filled[:, None]
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    positions[:, old:] = filled[:, None] + np.arange(T - old)
    at = attention.At(jnp.asarray(segments), jnp.asarray(positions))
    new_at, cache_at = (
        attention.At(*(a[:, s] for a in at[:2])) for s in (slice(old, T), slice(old))
    )
    k_cache, v_cache = (np.swapaxes(a[:, :old], 1, 2) for a in (k, v))
    got = attention.attend_cached(
        q[:, old:], k[:, old:], v[:, old:], new_at, k_cache, v_cache, cache_at, **options
    )
    zeros = np.zeros_like(q)
    true = oracle(q, k, v, zeros, segments, positions, **options)[0][:, old:]
    np.testing.assert_allclose(got, true, atol=2e-5)


@pytest.mark.parametrize(
    "options, widths",
    [
        ({"causal": False}, {256}),
        ({}, {64, 128, 192, 256}),
        ({"window": 64}, {64, 128}),
        ({"window": 66}, {64, 128, 192}),
    ],
)
def test_blockwise_leaves_out_keys_that_no_query_of_the_block_sees(options, widths):
    """Rows of 256 in blocks of 64: block i reads i + 1 blocks of keys, fewer with a window."""
    shape = jax.ShapeDtypeStruct((1, 256, 1, 8), jnp.float32)
    place = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    at = attention.At(place, place)
    trace = jax.make_jaxpr(lambda *a: attention.attend(*a, kernel="blockwise", **options))
    text = str(trace(shape, shape, shape, at, at))
    assert {int(n) for n in re.findall(r"f32\[1,1,1,64,(\d+)\] = dot_general", text)} - {
        8
    } == widths


def test_errors_name_what_is_wrong():
    q, k, v, _ = arrays()
    at = attention.At(*row_places())
    with pytest.raises(ValueError, match="'cudnn' or 'splash', got 'flash'"):
        attention.attend(q, k, v, at, at, kernel="flash")
    with pytest.raises(ValueError, match="T=10 queries and S=150 keys"):
        few = attention.At(*(a[:, :10] for a in at[:2]))
        attention.attend(q[:, :10], k, v, few, at, kernel="blockwise")
    with pytest.raises(ValueError, match="heads must be a multiple of kv, got 3 and 2"):
        attention.attend(q[:, :, :3], k, v, at, at)
    with pytest.raises(ValueError, match="window must be at least 1 key, got 0"):
        attention.attend(q, k, v, at, at, window=0)
    with pytest.raises(ValueError, match="softcap must be positive"):
        attention.attend(q, k, v, at, at, softcap=0.0)
    with pytest.raises(ValueError, match="do not fit"):
        attention.attend(q, k[:1], v[:1], at, at)
