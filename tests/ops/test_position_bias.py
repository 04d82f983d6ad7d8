"""Biases by distance: ALiBi's published slopes, T5's buckets against transformers' own."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import position_bias

DISTANCES = np.arange(-700, 700)


def test_slopes_as_published():
    """The paper's figure 3 has 8 heads: 1/2, 1/4, ... 1/256; 16 heads start at 2 ** -0.5."""
    np.testing.assert_allclose(position_bias.slopes(8), 0.5 ** np.arange(1, 9))
    np.testing.assert_allclose(
        position_bias.slopes(16), 2.0 ** (-0.5 * np.arange(1, 17)), rtol=1e-6
    )
    twelve = [*position_bias.slopes(8), *position_bias.slopes(16)[[0, 2, 4, 6]]]
    np.testing.assert_array_equal(position_bias.slopes(12), np.asarray(twelve))
    np.testing.assert_array_equal(position_bias.slopes(1), [2.0**-8])


def test_alibi_falls_with_the_distance_on_both_sides():
    ahead = jnp.asarray([[[0, 2], [-3, 0]]])  # one row, 2 queries, 2 keys
    got = position_bias.alibi(position_bias.slopes(2))(ahead)
    assert got.shape == (1, 2, 2, 2)
    np.testing.assert_allclose(got[0, 0], [[0, -2 / 16], [-3 / 16, 0]])
    np.testing.assert_allclose(got[0, 1], [[0, -2 / 256], [-3 / 256, 0]])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("count, farthest", [(32, 128), (8, 20), (12, 100), (4, 9)])
def test_buckets_hold_the_distances_that_the_paper_says(count, farthest, causal):
    """Bucket by bucket: exact ones hold one distance, the others one power of the ratio each."""
    got = np.asarray(position_bias.buckets(DISTANCES, count, farthest, causal))
    own = count if causal else count // 2
    for ahead, bucket in zip(DISTANCES.tolist(), got.tolist(), strict=True):
        first = 0 if causal or ahead <= 0 else own
        far = max(-ahead, 0) if causal else abs(ahead)
        exact = own // 2
        want = far
        if far >= exact:  # the last bucket whose lower bound is not above the distance
            ratio = farthest / exact
            bounds = [exact * ratio ** (i / (own - exact)) for i in range(own - exact)]
            want = exact + sum(far >= b * (1 - 1e-12) for b in bounds) - 1
        assert bucket == first + want, (ahead, bucket)


@pytest.mark.parity
@pytest.mark.parametrize("causal", [True, False])
def test_buckets_are_those_of_transformers(causal):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    for count, farthest in ((32, 128), (32, 40), (8, 20), (64, 1000), (10, 129)):
        true = t5.T5Attention._relative_position_bucket(
            torch.tensor(DISTANCES), not causal, count, farthest
        )
        got = position_bias.buckets(DISTANCES, count, farthest, causal)
        np.testing.assert_array_equal(got, true.numpy())


@pytest.mark.parity
def test_slopes_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    for heads in (1, 2, 3, 8, 12, 25, 112):
        true = bloom.build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
        np.testing.assert_allclose(position_bias.slopes(heads), true.numpy(), rtol=1e-6)


def test_the_learnt_bias_reads_its_table():
    table = jnp.arange(24.0).reshape(8, 3)
    ahead = jnp.asarray([[[0, 1], [-1, 0]]])
    got = position_bias.bucketed(table, farthest=20, causal=False)(ahead)
    assert got.shape == (1, 3, 2, 2)
    np.testing.assert_array_equal(got[0, :, 0, 1], table[4 + 1])
    np.testing.assert_array_equal(got[0, :, 1, 0], table[1])


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        position_bias.slopes(0)
    with pytest.raises(ValueError, match="got count=2, farthest=128"):
        position_bias.buckets(DISTANCES, 2, 128, False)
    with pytest.raises(ValueError, match="got count=32, farthest=16"):
        position_bias.buckets(DISTANCES, 32, 16, True)
