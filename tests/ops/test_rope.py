"""Rotary positions against complex multiplication in float64, and the scalings against the numbers
and the functions of transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import rope

H, THETA = 8, 10_000.0
PHI = rope.LongRope((1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 4.0, 8.0), 32, 4.0)


def test_frequencies():
    rotary = rope.frequencies(H, THETA)
    np.testing.assert_allclose(rotary.freqs, [1, 0.1, 0.01, 0.001], rtol=1e-6)
    assert rotary.freqs.dtype == np.float32 and rotary.attention == 1


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turned", [H, H // 2])
def test_apply_turns_each_pair(interleaved, turned):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, H)).astype(np.float32)
    positions = rng.integers(0, 100, (2, 5)).astype(np.int32)
    rotary = rope.frequencies(turned, THETA)._replace(attention=1.5)
    got = rope.apply(x, positions, rotary, interleaved)
    first = x[..., :turned].astype(np.complex128)
    a, b = np.split(first, 2, -1) if not interleaved else (first[..., ::2], first[..., 1::2])
    angle = positions[:, :, None, None] * THETA ** (-np.arange(0, turned, 2) / turned)
    pair = 1.5 * (a + 1j * b) * np.exp(1j * angle)
    parts = (pair.real, pair.imag)
    want = np.stack(parts, -1).reshape(first.shape) if interleaved else np.concatenate(parts, -1)
    np.testing.assert_allclose(got, np.concatenate([want, x[..., turned:]], -1), atol=3e-5)


def test_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (np.tile(rng.normal(size=(1, 1, 1, H)), (1, 2, 1, 1)) for _ in range(2))
    rotary = rope.frequencies(H, THETA)
    q = rope.apply(jnp.asarray(q), np.array([[7, 1007]]), rotary)
    k = rope.apply(jnp.asarray(k), np.array([[3, 1003]]), rotary)
    near, far = jnp.sum(q * k, axis=(0, 2, 3))
    np.testing.assert_allclose(near, far, rtol=1e-3)


def test_bfloat16_keeps_its_type_and_large_positions():
    """Position 4097 is 4096 in bfloat16: the angle has to be formed in float32."""
    x = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    out = rope.apply(x, np.array([[4097]]), rope.frequencies(2, THETA))
    assert out.dtype == jnp.bfloat16
    true = [np.cos(4097) - np.sin(4097), np.cos(4097) + np.sin(4097)]
    np.testing.assert_allclose(np.asarray(out[0, 0, 0], np.float64), true, atol=0.01)


# Angles of pairs 16, 32, 48 and 63 of 64, their sum over all pairs, and the attention factor, as
# transformers 5.23 computes them.
PUBLISHED = {
    "llama3": (5e5, rope.Llama3(), None, 1.0,
        [0.0376060307, 5.24846022e-4, 6.64786967e-6, 3.06892588e-7], 5.38605826),
    "linear": (1e4, rope.Linear(4.0), None, 1.0, [0.025, 0.0025, 2.5e-4, 2.88695e-5], 1.86498855),
    "dynamic": (1e4, rope.Dynamic(4.0, 2048), 8192, 1.0,
        [0.0521307215, 0.00271761231, 1.41671102e-4, 8.88293835e-6], 5.93171602),
    "yarn": (1e4, rope.Yarn(16.0, 4096), None, 1.277258872,
        [0.1, 0.00567307696, 6.25e-5, 7.21738706e-6], 7.36523477),
    "yarn-deepseek": (1e4, rope.Yarn(40.0, 4096, mscale=1.0, mscale_all=1.0), None, 1.0,
        [0.1, 0.0055, 2.5e-5, 2.88695e-6], 7.36144599),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_scalings_have_the_published_angles(name):
    theta, scaling, context, attention, some, total = PUBLISHED[name]
    rotary = rope.frequencies(128, theta, scaling, context)
    np.testing.assert_allclose(rotary.freqs[[16, 32, 48, 63]], some, rtol=2e-6)  # as many digits
    np.testing.assert_allclose(rotary.freqs.astype(np.float64).sum(), total, rtol=1e-6)
    assert rotary.attention == pytest.approx(attention, rel=1e-9)


def test_longrope_takes_the_set_of_the_context():
    for context, slower in ((32, PHI.short), (33, PHI.long)):
        rotary = rope.frequencies(H, THETA, PHI, context)
        np.testing.assert_allclose(rotary.freqs, [1, 0.1, 0.01, 0.001] / np.array(slower), 1e-6)
    assert rotary.attention == pytest.approx((1 + np.log(4) / np.log(32)) ** 0.5)
    published = rope.LongRope((1.0,), (1.0,), 4096, 32.0)  # Phi-3 mini 128k
    assert rope.frequencies(2, THETA, published, 1).attention == pytest.approx(1.190238071)


def test_ntk_interpolates_the_slowest_pair_alone_in_full():
    plain, ntk = (rope.frequencies(H, THETA, s).freqs for s in (None, rope.Ntk(4.0)))
    assert ntk[0] == plain[0] and ntk[-1] == pytest.approx(plain[-1] / 4)
    dynamic = rope.frequencies(H, THETA, rope.Dynamic(1.0, 16), 64).freqs
    np.testing.assert_array_equal(dynamic, ntk)  # four times the context
    below = rope.frequencies(H, THETA, rope.Dynamic(4.0, 16), 9).freqs
    np.testing.assert_array_equal(below, plain)


def test_yarn_may_blend_between_fractions_of_pairs():
    whole, part = (
        rope.frequencies(128, 1e4, rope.Yarn(4.0, 4096, truncate=t)).freqs for t in (True, False)
    )
    assert np.argmax(whole != part) > 0 and np.abs(whole / part - 1).max() > 0.005
    assert rope.sharpness(40.0) == pytest.approx(1.368888)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("record", "scaling"),
    [
        ({"rope_type": "linear", "factor": 3.0}, rope.Linear(3.0)),
        ({"rope_type": "dynamic", "factor": 3.0}, rope.Dynamic(3.0, 64)),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}, rope.Llama3(8.0, 1.0, 4.0, 64)),
        ({"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 64},
         rope.Yarn(5.0, 64)),
        ({"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 64,
          "beta_fast": 9, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False},
         rope.Yarn(5.0, 64, 9.0, 2.0, None, 0.7, 1.3, False)),
        ({"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 64,
          "attention_factor": 1.5}, rope.Yarn(5.0, 64, attention=1.5)),
        ({"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 2.0, 2.0, 2.0, 3.0],
          "long_factor": [1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 9.0, 9.0], "factor": 4.0,
          "original_max_position_embeddings": 64},
         rope.LongRope((1.0, 1.1, 1.2, 1.3, 2.0, 2.0, 2.0, 3.0),
                       (1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 9.0, 9.0), 64, 4.0)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [40, 200])
@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_scalings_equal_transformers(record, scaling, length, partial):
    import transformers
    from transformers import modeling_rope_utils

    if record["rope_type"] == "longrope" and partial != 1:
        record = record | {k: record[k][:4] for k in ("short_factor", "long_factor")}
        scaling = rope.LongRope(scaling.short[:4], scaling.long[:4], 64, 4.0)
    theta = {"rope_theta": 5e4, "partial_rotary_factor": partial}
    cfg = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=64,
        rope_parameters=record | theta,
    )  # fmt: skip
    want, attention = modeling_rope_utils.ROPE_INIT_FUNCTIONS[record["rope_type"]](
        cfg, "cpu", seq_len=length
    )
    rotary = rope.frequencies(int(16 * partial), 5e4, scaling, length)
    np.testing.assert_allclose(rotary.freqs, want.numpy(), rtol=5e-7)
    assert rotary.attention == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rope.frequencies(7, THETA), "rotary_dim: 7 given; it must be even"),
        (lambda: rope.frequencies(8, 0.0), "theta must be positive, got 0"),
        (lambda: rope.frequencies(8, 1e4, PHI), "context: none given; LongRope is decided by it"),
        (lambda: rope.frequencies(4, 1e4, PHI, 9), "4 factors given; 2 pairs of dimensions turn"),
        (lambda: rope.frequencies(2, 1e4, rope.Ntk(2.0)), "rotary_dim: 2 given; NTK-aware"),
        (lambda: rope.Linear(0.5), "factor: 0.5 given; it must be at least 1"),
        (lambda: rope.Dynamic(0.5, 64), "factor: 0.5 given; it must be at least 1"),
        (lambda: rope.Dynamic(2.0, 0), "original: 0 given; it must be at least 1"),
        (lambda: rope.Llama3(low=4.0), "high: 4.0 given; it must be above low=4.0"),
        (lambda: rope.Yarn(4.0, 64, beta_slow=40.0), "beta_fast: 32.0 given; it must be above"),
        (lambda: rope.LongRope((1.0,), (1.0, 2.0), 64, 2.0), "long: 2 factors given, and short"),
        (lambda: rope.LongRope((0.0,), (1.0,), 64, 2.0), "short: .* it must be positive factors"),
        (
            lambda: rope.apply(
                jnp.ones((1, 1, 1, 4)), jnp.zeros((1, 1), jnp.int32), rope.frequencies(8, 1e4)
            ),
            "x: heads of 4 given; RoPE rotates 8 dimensions",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
