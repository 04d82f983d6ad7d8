"""linear.einsum against jnp.einsum: values, gradients, transformations, eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxlm.ops import linear

SIZES = dict(zip("BTDNHFV", (4, 3, 8, 2, 6, 16, 12), strict=True))
SPECS = ["BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTD,DF->BTF", "BTD,VD->BTV", "TD,DV->TV"]


def inputs(spec, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    names = spec.replace("->", ",").split(",")
    x, w, g = (rng.normal(size=[SIZES[c] for c in n]).astype(np.float32) for n in names)
    return jnp.asarray(x, dtype), jnp.asarray(w), jnp.asarray(g, dtype)


def value_and_gradients(function, x, w, g):
    def run(x, w, g):
        out, pull = jax.vjp(function, x, w)
        return out, *pull(g)

    return jax.jit(run)(x, w, g)


@pytest.mark.parametrize("spec", SPECS)
def test_equals_jnp_einsum(spec):
    x, w, g = inputs(spec)
    got = value_and_gradients(lambda x, w: linear.einsum(spec, x, w), x, w, g)
    true = value_and_gradients(lambda x, w: jnp.einsum(spec, x, w), x, w, g)
    for ours, theirs in zip(got, true, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_activations_keep_float32_weights_and_their_gradient():
    spec = "BTD,DNH->BTNH"
    x, w, g = inputs(spec, jnp.bfloat16)
    out, dx, dw = value_and_gradients(lambda x, w: linear.einsum(spec, x, w), x, w, g)
    assert (out.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    w16 = np.asarray(w.astype(jnp.bfloat16), np.float64)
    x64, g64 = np.asarray(x, np.float64), np.asarray(g, np.float64)
    np.testing.assert_allclose(out, np.einsum(spec, x64, w16), atol=0.05)
    np.testing.assert_allclose(dx, np.einsum("BTNH,DNH->BTD", g64, w16), atol=0.05)
    np.testing.assert_allclose(dw, np.einsum("BTD,BTNH->DNH", x64, g64), rtol=1e-5, atol=1e-5)


def test_any_rank_and_another_output_type():
    """The head: x of one or many rows in bfloat16, logits in float32."""
    x, w, _ = inputs("BTD,VD->BTV", jnp.bfloat16)
    for a in (x, x[0], x[0, 0]):
        out = linear.einsum("...D,VD->...V", a, w, jnp.float32)
        assert out.dtype == jnp.float32
        w16 = np.asarray(w.astype(jnp.bfloat16), np.float64)
        np.testing.assert_allclose(out, np.asarray(a, np.float64) @ w16.T, rtol=1e-5, atol=1e-5)


def test_under_checkpoint_scan_and_vmap():
    """A population of scanned, rematerialised two-layer maps has the gradient of plain einsums."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 4, 3, 8)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(2, 2, 8, 8)), jnp.float32)

    def population(product):
        def loss(x, w):
            @jax.checkpoint
            def layer(h, w):
                return jnp.tanh(product("BTD,DF->BTF", h, w)), None

            return jnp.sum(jax.lax.scan(layer, x, w)[0] ** 2)

        return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1))))(x, w)

    got, true = population(linear.einsum), population(jnp.einsum)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(true), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "spec, w_axes",
    [
        ("BTD,DNH->BTNH", ("fsdp", "tensor", None)),
        ("BTNH,NHD->BTD", ("tensor", None, "fsdp")),
        ("BTD,VD->BTV", ("tensor", "fsdp")),
    ],
)
def test_sharded_over_eight_devices(spec, w_axes):
    """data x fsdp x tensor: value and both gradients are those of one device."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def place(a, *axes):
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))

    x, w, g = inputs(spec)
    x_axes = [("data", "fsdp"), None, "tensor" if "N" in spec.partition(",")[0] else None]
    run = jax.jit(
        lambda x, w, g: value_and_gradients(lambda x, w: linear.einsum(spec, x, w), x, w, g)
    )
    got = run(place(x, *x_axes), place(w, *w_axes), place(g, ("data", "fsdp")))
    true = value_and_gradients(lambda x, w: jnp.einsum(spec, x, w), x, w, g)
    for ours, theirs in zip(got, true, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("BTD,DF", "expected the form"),
        ("BT,DF->BTF", "one letter per axis"),
        ("BTD,DF->BFT", "the summed axes must be"),
        ("TDB,DF->TBF", "the summed axes must be"),
        ("BTF,DF->BTD", "the summed sizes of x and w differ"),
    ],
)
def test_errors_name_the_spec(spec, message):
    with pytest.raises(ValueError, match=message):
        linear.einsum(spec, jnp.zeros((2, 3, 4)), jnp.zeros((4, 5)))


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_turned_matrix_is_the_matrix(rows):
    r = np.random.default_rng(0)
    x, w = r.standard_normal((rows, 6)), r.standard_normal((2, 6, 3, 4))
    turned = linear.turned(jnp.float32(w), 1, 1)
    assert turned.data.shape == (2, 3, 4, 6)
    first = jax.tree.map(lambda a: a[0], turned)  # one layer of it, as the decoder takes it
    assert first.shape == (6, 3, 4)
    run = jax.jit(lambda x, w: linear.einsum("BD,DNH->BNH", x, w))
    np.testing.assert_allclose(
        run(jnp.float32(x), first), np.einsum("BD,DNH->BNH", x, w[0]), 1e-4, 1e-5
    )
    np.testing.assert_array_equal(jnp.asarray(first), np.float32(w[0]))


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_rows_by_the_matrices_of_their_groups(backend, monkeypatch):
    """Value and gradients on both paths; whatever is in rows of no group gives 0 and moves
    nothing."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    r = np.random.default_rng(0)
    x, w, g = (jnp.float32(r.normal(size=s)) for s in ((7, 4), (3, 4, 5), (7, 5)))
    sizes, groups = np.array([2, 0, 3], np.int32), [0, 0, 2, 2, 2]
    given = jnp.where(np.arange(7)[:, None] < 5, x, np.nan if backend == "tpu" else x)
    got = value_and_gradients(lambda x, w: linear.grouped(x, w, sizes), given, w, g)
    y, dx, dw = np.zeros((7, 5)), np.zeros((7, 4)), np.zeros(w.shape)
    for i, group in enumerate(groups):
        y[i], dx[i] = x[i] @ w[group], w[group] @ g[i]
        dw[group] += np.outer(x[i], g[i])
    for ours, want in zip(got, (y, dx, dw), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-5)


def observed(r, *lead, inputs=4, outputs=5):
    """A matrix of random numbers as `linear.Observed`."""
    w = jnp.float32(r.normal(size=(*lead, inputs, outputs)))
    return linear.Observed(w, jnp.zeros((*lead, inputs, inputs)), jnp.zeros((*lead, inputs)))


def test_observed_inputs_are_summed_whatever_is_differentiated():
    """Products with one matrix, with one for each expert in either form; the gradients of x and the
    values are those of the matrices alone."""
    r = np.random.default_rng(0)
    x, places = jnp.float32(r.normal(size=(2, 3, 4))), jnp.float32(r.normal(size=(2, 3, 2, 4)))
    one, many = observed(r), observed(r, 3)
    sizes = jnp.array([1, 0, 4], jnp.int32)
    products = (
        (lambda x, w: linear.einsum("BTD,DF->BTF", x, w), x, one),
        (lambda x, w: linear.grouped(x.reshape(6, 4), w, sizes), x, many),
        (lambda x, w: linear.batched(x, w), places, many),
    )

    @jax.jit
    def run(x, places, one, many):
        return [
            jax.value_and_grad(lambda x, w, f=f: jnp.sum(jnp.sin(f(x, w))), (0, 1))(x, w)
            for f, x, w in products
        ], [
            jax.value_and_grad(lambda x, w, f=f: jnp.sum(jnp.sin(f(x, w))))(x, w.w)
            for f, x, w in products
        ]

    got, want = run(x, places, one, many)
    flat = np.asarray(x, np.float64).reshape(6, 4)
    by_expert = [flat[:1], flat[1:1], flat[1:5]]
    experts = np.moveaxis(np.asarray(places, np.float64), 1, 0).reshape(3, 4, 4)
    for (y, (dx, dw)), (value, plain), rows in zip(
        got, want, (flat, by_expert, experts), strict=True
    ):
        np.testing.assert_allclose(y, value, rtol=1e-6)
        np.testing.assert_allclose(dx, plain, rtol=1e-5, atol=1e-6)
        several = [rows] if dw.gram.ndim == 2 else rows
        for gram, size, inputs in zip(
            dw.gram.reshape(-1, 4, 4), dw.magnitude.reshape(-1, 4), several, strict=True
        ):
            np.testing.assert_allclose(gram, inputs.T @ inputs, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(size, np.abs(inputs).sum(0), rtol=1e-5, atol=1e-6)
