"""Products of rows with their group's matrix: XLA's own as the oracle, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import linear
from jaxlm.ops.kernels import ragged

SIZES = {
    "even": [25, 25, 25, 25],
    "uneven": [1, 70, 0, 29],
    "rest": [3, 0, 40, 17],
    "one": [0, 0, 0, 100],
    "none": [0, 0, 0, 0],
}


@pytest.fixture(scope="module")
def programs():
    def graded(f):
        def loss(x, w, sizes):
            y = f(x, w, sizes)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    return graded(linear.grouped), graded(jax.lax.ragged_dot)


@pytest.mark.parametrize("name", SIZES)
def test_equals_ragged_dot(programs, name):
    r = np.random.default_rng(0)
    x, w = (r.standard_normal(s).astype(np.float32) for s in ((100, 6), (4, 6, 5)))
    sizes = jnp.array(SIZES[name], jnp.int32)
    ours, theirs = (jax.tree.map(np.asarray, f(x, w, sizes)) for f in programs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, theirs)
    total = sum(SIZES[name])
    assert not ours[0][1][total:].any() and not ours[1][0][total:].any()


def test_rows_of_no_group_may_hold_anything(programs):
    r = np.random.default_rng(0)
    x, w = (r.standard_normal(s).astype(np.float32) for s in ((100, 6), (4, 6, 5)))
    x[60:] = np.nan
    (loss, y), grads = programs[0](x, w, jnp.array(SIZES["rest"], jnp.int32))
    assert np.isfinite(loss) and not y[60:].any()
    assert all(np.isfinite(g).all() for g in grads)


def test_a_few_rows_meet_only_their_own_matrices():
    # decoding: 3 rows of 64 groups are at most 3 visits, not 64
    visits = ragged._visits(jnp.zeros(64, jnp.int32).at[jnp.array([5, 9, 60])].set(1), 3, 8)
    assert visits.group.tolist() == [5, 9, 60] and visits.tile.tolist() == [0, 0, 0]


def test_bfloat16_is_close():
    r = np.random.default_rng(0)
    x, w = (r.standard_normal(s).astype(np.float32) for s in ((40, 16), (4, 16, 8)))
    sizes = jnp.array([10, 5, 20, 5], jnp.int32)
    want = linear.grouped(jnp.asarray(x), jnp.asarray(w), sizes)
    got = linear.grouped(jnp.asarray(x, jnp.bfloat16), jnp.asarray(w), sizes)
    assert got.dtype == jnp.bfloat16
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
