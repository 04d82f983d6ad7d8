"""Schemes and what is refused; products with packed matrices of every scheme."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.ops import linear, quant

SCHEMES = [
    quant.Scheme("int8"),
    quant.Scheme("int4", group=16),
    quant.Scheme("int2", group=8, affine=False),
    quant.Scheme("nf4", double_quant=True),
    quant.Scheme("mxfp4"),
    quant.Scheme("fp8"),
]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"name": "int3"}, "name: 'int3' given; it must be one of"),
        ({"name": "int4", "group": 12}, "group: 12 given; it must be a multiple of 8"),
        ({"name": "fp8", "group": 64}, "group: 64 given; it must be None with scheme fp8"),
        ({"name": "nf4", "affine": True}, "affine: True given; it must be None with scheme nf4"),
        ({"name": "int4", "double_quant": True}, "double_quant: True given; it must be False"),
    ],
)
def test_what_does_not_fit_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        quant.Scheme(**fields)


def test_defaults_of_integers():
    settings = [quant.Scheme(name).integers for name in ("int8", "int4", "int2")]
    assert settings == [(8, None, False), (4, 64, True), (2, 64, True)]
    assert quant.Scheme("int8", 32, True).integers == (8, 32, True)


@functools.partial(jax.jit, static_argnums=1)
def products(x, scheme, w, experts, sizes):
    """Pairs of a product with a packed matrix and with the array that it represents."""
    one = quant.encode(w, 0, 1, scheme)
    many = quant.encode(experts, 1, 1, scheme)
    rows = x.reshape(-1, x.shape[-1])
    apart = jnp.broadcast_to(x[:, None], (len(x), 3, *x.shape[1:]))
    pairs = []
    for matrix, group in ((one, many), (quant.dense(one), quant.dense(many))):
        y, pull = jax.vjp(lambda x, w=matrix: linear.einsum("BTD,DNH->BTNH", x, w), x)
        pairs.append([y, pull(y)[0], linear.grouped(rows, group, sizes)])
        pairs[-1].append(linear.batched(apart, group))
        for product in (
            lambda x, w=group: linear.grouped(x.reshape(-1, 64), w, sizes),
            lambda x, w=group: linear.batched(jnp.broadcast_to(x[:, None], apart.shape), w),
        ):
            y, pull = jax.vjp(product, x)
            pairs[-1].append(pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0])
    return list(zip(*pairs, strict=True))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_products_are_those_of_the_dense_matrix(scheme, monkeypatch):
    """In parts of its outputs too, experts' and gradients in x; as `jaxlm.ops.linear` has them."""
    monkeypatch.setattr(linear, "PART", 256)
    r = np.random.default_rng(0)
    x, w, experts = (
        r.standard_normal(shape, np.float32) for shape in ((2, 3, 64), (64, 4, 4), (3, 64, 16))
    )
    sizes = jnp.array([2, 0, 3], jnp.int32)
    for got, want in products(x, scheme, w, experts, sizes):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_parts_are_the_fewest_whole_outputs_that_fit(scheme):
    w = np.random.default_rng(1).standard_normal((64, 24), np.float32)

    @jax.jit
    def both(w):
        kept = quant.encode(w, 0, 1, scheme)
        parts = quant.split(kept, 64 * 7)
        assert parts is not None and parts.shape == (4, 64, 6)
        return quant.dense(kept), jnp.moveaxis(quant.dense(parts), 0, 1)

    whole, parts = both(w)
    np.testing.assert_array_equal(parts.reshape(64, 24), whole)
