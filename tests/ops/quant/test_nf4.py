"""NF4: its levels, packing and error; matrices of any shape; what a product with one is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxlm.ops import linear
from jaxlm.ops.quant import nf4


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@functools.partial(jax.jit, static_argnums=1)
def through(flat, double):
    """(codes, scales, the numbers they stand for) of numbers [n]."""
    codes, scales = nf4.encode(flat)
    kept = nf4.of_scales8(nf4.scales8(scales)) if double else scales
    return codes, kept, nf4.decode(codes, kept)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def stored(w, copies, inputs, double):
    """(a weight in 4 bits, the array it stands for)."""
    kept = nf4.nf4(w, copies, inputs, double)
    return kept, nf4.dense(kept)


def quantile(p):
    """The standard normal's quantile, by bisection of its distribution function."""
    from math import erf, sqrt

    low, high = -10.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + erf(middle / sqrt(2))) / 2 < p else (low, middle)
    return low


def test_the_levels_are_the_normal_distribution_s_quantiles():
    """8 above zero, 7 below, evenly spaced in probability up to an offset, and scaled to 1."""
    offset = 0.9677083
    above = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    want = np.sort([*above, 0.0, *below]) / max(above)
    np.testing.assert_allclose(nf4.LEVELS, want, atol=2e-7)
    eight = nf4.dynamic_levels()
    assert len(eight) == 256 and eight[-1] == 1 and np.all(np.diff(eight) > 0) and 0 in eight
    np.testing.assert_allclose(eight[0], -(0.9 * 127 / 128 + 0.1 + 1) / 2, atol=4e-3)


def test_codes_are_the_nearest_and_the_first_number_is_in_the_high_bits():
    x = gaussian(5 * 64)
    codes, scales, got = jax.tree.map(np.asarray, through(x, False))
    assert (codes.shape, codes.dtype, scales.shape) == ((5, 32), np.uint8, (5,))
    blocks = x.reshape(5, 64)
    np.testing.assert_array_equal(scales, np.abs(blocks).max(1))
    distance = np.abs((blocks / scales[:, None])[..., None] - np.array(nf4.LEVELS, np.float32))
    nearest = distance.argmin(-1)
    np.testing.assert_array_equal(codes >> 4, nearest[:, 0::2])
    np.testing.assert_array_equal(codes & 15, nearest[:, 1::2])
    want = np.array(nf4.LEVELS, np.float32)[nearest] * scales[:, None]
    np.testing.assert_array_equal(got, want.ravel())


@pytest.mark.parametrize("double", [False, True])
def test_the_error_on_normal_weights(double):
    """0.092 of their size, and 4.5 bits each, or 4.127 with scales in 8 bits."""
    w = gaussian(256, 1024)
    kept, got = stored(w, 0, 1, double)
    assert np.sqrt(np.mean((got - w) ** 2) / np.mean(w**2)) == pytest.approx(0.0920, abs=0.002)
    bits = 8 * sum(x.nbytes for x in jax.tree.leaves(kept)) / w.size
    assert bits == pytest.approx(4.127 if double else 4.5, abs=0.001)


@pytest.mark.parametrize(
    "shape, copies, inputs, double", [((3, 16, 4, 8), 1, 1, True), ((5, 3, 7), 0, 2, False)]
)
def test_any_shape_comes_back_from_blocks_of_outputs_by_inputs(shape, copies, inputs, double):
    """A layer's matrix is quantised alone, [out, in] and flat, the rest of a block being zeros."""
    w = gaussian(*shape)
    w[0] = 0  # a block of zeros is one of zeros again
    kept, got = stored(w, copies, inputs, double)
    assert kept.shape == shape == got.shape
    got = np.asarray(got)
    for i in range(shape[0] if copies else 1):
        one, back = (w[i], got[i]) if copies else (w, got)
        axes = [*range(inputs, one.ndim), *range(inputs)]
        flat = one.transpose(axes).ravel()
        alone = through(np.pad(flat, (0, -flat.size % 64)), double)[2][: one.size]
        np.testing.assert_allclose(back.transpose(axes).ravel(), alone, atol=1e-6)


@pytest.mark.parametrize("spec", ["BTD,DNH->BTNH", "BTNH,NHD->BTD"])
def test_a_product_reads_it_and_moves_it_never(spec):
    """The value and the gradient in x are those of the array it stands for, in both dtypes."""
    sizes = dict(zip("BTDNH", (4, 3, 8, 2, 6), strict=True))
    xs, ws = spec.split("->")[0].split(",")
    x, w = (gaussian(*(sizes[c] for c in s), seed=i) for i, s in enumerate((xs, ws)))
    kept, plain = stored(w, 0, sum(c in xs for c in ws), True)

    @jax.jit
    def both(x, w):
        y, pull = jax.vjp(lambda x: linear.einsum(spec, x, w), x)
        return y, pull(y)[0]

    for dtype, atol in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.1)):
        given = jnp.asarray(x, dtype)
        for got, want in zip(both(given, kept), both(given, plain), strict=True):
            assert got.dtype == want.dtype == dtype
            np.testing.assert_allclose(got, want, atol=atol, rtol=atol)


def test_blocks_split_over_a_mesh_are_those_of_one_device():
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    w, x = gaussian(2, 64, 8, 4), gaussian(4, 3, 64)
    kept, _ = stored(w, 1, 1, False)
    place = NamedSharding(mesh, PartitionSpec(None, ("fsdp", "tensor")))
    spread = jax.device_put(kept, place)

    @jax.jit
    def run(x, kept):
        one = jax.tree.map(lambda leaf: leaf[1], kept)
        return linear.einsum("BTD,DNH->BTNH", x, one)

    np.testing.assert_allclose(run(x, spread), run(x, kept), atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("double", [False, True])
def test_live_bitsandbytes_has_the_same_bytes(double):
    """Codes, scales and numbers of bitsandbytes on a CPU, for a linear layer [out, in]."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    # ours [in, out]; their CPU kernel reads rows of whole blocks alone
    w = gaussian(128, 48, seed=3)
    packed, state = functional.quantize_4bit(
        torch.from_numpy(w.T.copy()), quant_type="nf4", blocksize=64, compress_statistics=double
    )
    kept, got = stored(w, 0, 1, double)
    np.testing.assert_array_equal(np.asarray(kept.codes).ravel(), packed.numpy().ravel())
    if double:
        np.testing.assert_array_equal(kept.scales.codes, state.absmax.numpy().ravel())
        np.testing.assert_allclose(kept.scales.largest, state.state2.absmax.numpy(), rtol=1e-6)
        np.testing.assert_allclose(kept.scales.offset, state.offset.numpy(), rtol=1e-6)
        np.testing.assert_allclose(nf4.dynamic_levels(), state.state2.code.numpy(), atol=1e-7)
    else:
        np.testing.assert_array_equal(kept.scales, state.absmax.numpy())
    theirs = functional.dequantize_4bit(packed, state).numpy()
    np.testing.assert_allclose(np.asarray(got).T, theirs, rtol=1e-6, atol=1e-7)
