"""Latent attention against the equations of its paper in float64, in both of its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core import param
from jaxlm.models.layers import mha, mla
from jaxlm.ops import rope
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from tests.models import latent

T, D, N, R, Q, NOPE, ROPE, VALUE = 7, 16, 3, 6, 5, 4, 6, 2
SCALE = 0.7


def weights(q_rank):
    spec = mla.spec(
        embed=D, heads=N, q_rank=q_rank, rank=R, nope=NOPE, rotary=ROPE, value=VALUE,
        out=param.fan_in(),
    )  # fmt: skip
    r = np.random.default_rng(0)
    # norms away from 1
    return param.map(lambda p: np.float32(r.normal(0.2 * (p.fan_in == 0), 0.5, p.shape)), spec)


@pytest.mark.parametrize(("q_rank", "interleaved"), [(Q, True), (None, False)])
def test_both_forms_are_the_papers_equations(q_rank, interleaved):
    """Row 0 holds two documents, row 1 begins with padding: prefill 3, then 4 by the cache."""
    w = weights(q_rank)
    h = np.random.default_rng(1).standard_normal((2, T, D), np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4, 5]], np.int32)
    want = latent.attention(
        jax.tree.map(np.float64, w), np.float64(h), segments, positions,
        100.0 ** (-np.arange(0, ROPE, 2) / ROPE), interleaved=interleaved, scale=SCALE,
    )  # fmt: skip
    real = segments > 0

    @jax.jit
    def both(w, h, at):
        def run(part, memory):
            return mla.apply(
                w, h[:, part], At(*(x[:, part] for x in at[:2])), memory, Plan(),
                rotary=rope.frequencies(ROPE, 100.0), interleaved=interleaved, scale=SCALE,
                eps=1e-6,
            )  # fmt: skip

        whole, none = run(slice(0, T), None)
        empty = {"latent": jnp.zeros((2, 0, R + ROPE))}
        first, entries = run(slice(0, 3), mha.Slots(empty, At(*(x[:, :0] for x in at[:2]))))
        rest, more = run(slice(3, T), mha.Slots(entries, At(*(x[:, :3] for x in at[:2]))))
        return whole, jnp.concatenate([first, rest], 1), none, entries, more

    with jax.default_matmul_precision("highest"):
        whole, pieces, none, entries, more = both(w, h, At(segments, positions))
    np.testing.assert_allclose(whole[real], want[real], atol=1e-5)
    np.testing.assert_allclose(pieces[real], want[real], atol=1e-5)
    assert np.abs(want).max() > 1
    assert none == {} and entries["latent"].shape == (2, 3, R + ROPE)
    assert more["latent"].shape == (2, T - 3, R + ROPE)


def test_the_cache_is_a_latent_and_one_rotary_key():
    ((name, p),) = mla.cache(2, 9, R, ROPE).items()
    assert (name, p.shape, p.axes) == ("latent", (2, 9, R + ROPE), ("batch", "seq", "rank"))


def test_a_pair_costs_a_keys_and_a_values_elements():
    # q.k over 128 + 64 dimensions and p.v over 128, in 128 heads
    assert mla.layer("moe", 128, 512, 128, 64, 128).pair == 2 * 128 * (192 + 128)
