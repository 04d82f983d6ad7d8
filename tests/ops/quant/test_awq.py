"""AWQ: against a search in float64, never worse than rounding, and factors that cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops.quant import awq, integers

encode = jax.jit(integers.encode, static_argnums=(1, 2, 3, 4, 5))
rows = jax.jit(integers.rows)


def case(seed=0, n=96, outputs=20):
    """(w [n, outputs], gram, magnitude): a few inputs are far larger than the others."""
    r = np.random.default_rng(seed)
    x = r.standard_normal((300, n)) * np.where(r.uniform(size=n) < 0.05, 20.0, 1.0)
    w = r.standard_normal((n, outputs)).astype(np.float32)
    return w, (x.T @ x).astype(np.float32), np.abs(x).sum(0).astype(np.float32)


def loss(w, kept, gram):
    off = w.T.astype(np.float64) - np.asarray(rows(kept), np.float64)
    return np.sum((off @ gram) * off)


@pytest.mark.parametrize("bits, group, affine", [(4, 32, True), (2, 32, False)])
def test_the_exponent_is_the_best_of_twenty(bits, group, affine):
    w, gram, magnitude = case()
    kept = awq.encode(w, gram, magnitude, 1, bits, group, affine)
    nearest = jax.jit(lambda w: integers.rows(integers.encode(w, 0, 1, bits, group, affine)))
    losses, factors = [], []
    share = magnitude / magnitude.mean()
    for a in np.arange(20) / 20:
        s = share.astype(np.float64) ** a
        s = np.float32(s / np.sqrt(s.max() * s.min()))
        off = w.T - np.asarray(nearest(w * s[:, None]), np.float64) / s
        losses.append(np.sum((off @ gram) * off))
        factors.append(s)
    best = int(np.argmin(losses))
    assert best > 0 and losses[best] < 0.8 * losses[0]
    np.testing.assert_allclose(kept.channels, factors[best], rtol=1e-5)
    assert loss(w, kept, gram) == pytest.approx(losses[best], rel=1e-2)


def test_it_is_never_worse_than_rounding_and_equal_where_nothing_came():
    for seed in range(4):
        w, gram, magnitude = case(seed, 40, 8)
        plain = encode(w, 0, 1, 4, 32, True)
        kept = awq.encode(w, gram, magnitude, 1, 4, 32, True)
        assert loss(w, kept, gram) <= loss(w, plain, gram) * (1 + 1e-5)
    kept = awq.encode(w, 0 * gram, 0 * magnitude, 1, 4, 32, True)
    np.testing.assert_array_equal(kept.codes, plain.codes)
    np.testing.assert_array_equal(kept.channels, np.ones(40))


def test_the_factors_alone_change_nothing():
    w, _, magnitude = case()
    s = awq.channels(magnitude, 0.5)
    assert float(jnp.max(s) * jnp.min(s)) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose((w * s[:, None]) / s[:, None], w, rtol=1e-6)
