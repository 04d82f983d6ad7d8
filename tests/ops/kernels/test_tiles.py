"""Products by tiles: float64 as the oracle, rows that do not depend on others, decoding."""

import concurrent.futures
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.decode import sampling_loop, token_sampling
from jaxlm.models import gpt, llama, packed_weights
from jaxlm.ops import linear, quant
from jaxlm.ops.attention import At
from jaxlm.ops.kernels import machine_code, tile_products, tiles

ROWS = (1, 5, 39)  # 39 is three blocks of 12 rows and one of 3
SHAPE = (72, 3, 35)  # inputs, outputs: neither is a whole number of tiles or of groups of 64


def matrix(name):
    """A matrix [inputs, outputs...] in a format: (as `einsum` takes it now, in tiles)."""
    w = jax.random.normal(jax.random.key(0), SHAPE) / 8
    if name in ("float32", "bfloat16"):
        w = w.astype(name)
        return w, tiles.tiled(w, 0, 1)
    bits, group, affine = {
        "int8": ("int8", None, False),
        "int8 affine": ("int8", 24, True),
        "int4": ("int4", 64, True),
        "int4 symmetric": ("int4", 16, False),
        "awq": ("int4", 64, True),
    }[name]
    packed = quant.encode(w, 0, 1, quant.Scheme(bits, group, affine))
    if name == "awq":
        factors = jnp.linspace(0.5, 2, SHAPE[0])
        packed = dataclasses.replace(packed, channels=factors)
    return quant.dense(packed), tiles.tiled_integers(packed)


FORMATS = ("float32", "bfloat16", "int8", "int8 affine", "int4", "int4 symmetric", "awq")
multiply = jax.jit(lambda x, w: linear.einsum("BTD,DNH->BTNH", x, w))


@pytest.fixture(autouse=True)
def llvmlite():
    pytest.importorskip("llvmlite")


@pytest.mark.parametrize("name", FORMATS)
def test_a_product_is_that_of_the_dense_matrix_for_each_row_alone(name):
    dense, tiled = matrix(name)
    assert tiled.shape == SHAPE
    np.testing.assert_allclose(tiles.dense(tiled), dense, rtol=3e-7 if name == "awq" else 0)
    x = jax.random.normal(jax.random.key(1), (1, max(ROWS), SHAPE[0]))
    want = np.einsum("btd,dnh->btnh", np.float64(x), np.float64(dense))
    every = np.asarray(multiply(x, tiled))
    np.testing.assert_allclose(every, want, atol=1e-6 * np.abs(want).max(), rtol=0)
    for rows in ROWS[:-1]:  # bit for bit, wherever a row is and however many there are
        np.testing.assert_array_equal(multiply(x[:, -rows:], tiled), every[:, -rows:])


def test_activations_in_bfloat16_are_summed_in_float32():
    dense, tiled = matrix("bfloat16")
    x = jax.random.normal(jax.random.key(1), (1, 3, SHAPE[0])).astype(jnp.bfloat16)
    want = np.einsum("btd,dnh->btnh", np.float64(x), np.float64(dense))
    got = multiply(x, tiled)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(got), want, rtol=2**-8, atol=1e-3)


@pytest.mark.slow
def test_copies_in_few_bits_and_tables():
    w = jax.random.normal(jax.random.key(0), (3, 40, 70))
    packed = quant.encode(w, 1, 1, quant.Scheme("int4"))
    np.testing.assert_array_equal(tiles.dense(tiles.tiled_integers(packed)), quant.dense(packed))
    assert tiles.tiled_integers(quant.encode(w, 1, 1, quant.Scheme("int2"))) is None
    table, tokens = w[0].T, jnp.array([[0, 31, 32, 69]])  # [70, 40]
    x = jax.random.normal(jax.random.key(1), (2, 40))
    for given in (table, *(quant.encode_table(table, quant.Scheme(n)) for n in ("int8", "int4"))):
        arranged = given is table
        tiled = tiles.tiled_table(table) if arranged else tiles.tiled_integers(given)
        dense = table if arranged else quant.dense(given)
        assert tiled.shape == dense.shape == (70, 40)
        np.testing.assert_array_equal(tiles.take(tiled, tokens), dense[tokens])
        want = np.float64(x) @ np.float64(dense).T
        np.testing.assert_allclose(linear.einsum("BD,VD->BV", x, tiled), want, atol=2e-5)
        # the other way round there is no kernel
        other = linear.einsum("BV,VD->BD", jnp.ones((1, 70)), tiled)
        np.testing.assert_allclose(other[0], jnp.sum(dense, axis=0), atol=1e-4)


def test_many_calls_at_once_end_and_are_right():
    """Tiles of a product go to several threads; here all of XLA's are in such calls at a time."""
    w = jax.random.normal(jax.random.key(0), (256, 640))
    tiled, x = tiles.tiled(w, 0, 1), jax.random.normal(jax.random.key(1), (4, 256))
    assert tiled.data.nbytes > machine_code.SMALL
    run = jax.jit(lambda x, w: linear.einsum("BD,DF->BF", x, w))
    want = np.asarray(run(x, tiled))
    np.testing.assert_allclose(want, np.float64(x) @ np.float64(w), atol=2e-4)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: np.asarray(run(x, tiled)), range(200)):
            np.testing.assert_array_equal(got, want)
    several = jax.vmap(run, (0, None))(jnp.stack([x, 2 * x]), tiled)
    np.testing.assert_array_equal(several, [want, run(2 * x, tiled)])


def test_blocks_of_rows():
    for features in ("+avx512f", "+avx2"):
        sizes = machine_code.blocks(features)
        assert sizes == tuple(sorted(sizes, reverse=True)) and sizes[-1] == 1
        for n in sizes:
            assert f"@rows{n}(" in tile_products.text("f32", sizes)
    for rows in range(1, 40):
        assert sum(count * size for count, size in machine_code.pieces(rows)) == rows


CONFIGS = {
    "gpt": gpt.Config(vocab=300, embed=64, layers=2, heads=4, context=32),
    "llama": llama.Config(vocab=300, embed=64, layers=2, heads=4, kv=2, head=16, ffn=96),
}
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
GREEDY = token_sampling.Sampling(max_new=12, temperature=0.0)


@pytest.fixture(scope="module")
def drawn():
    """{name: (model, weights)}; matrices so large that no next token is nearly a tie."""

    def draw(cfg):
        model = models.build(cfg)
        params = param.init(model.spec, jax.random.key(0))
        return model, param.map(lambda p, w: 3 * w if p.fan_in else w, model.spec, params)

    return {name: draw(cfg) for name, cfg in CONFIGS.items()}


def packed(model, params, scheme):
    if scheme is None:
        return params
    return packed_weights.encode(model.spec, params, packed_weights.rounding(scheme), scheme)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "scheme", [None, pytest.param(quant.Scheme("int8", tables=True), marks=pytest.mark.slow)]
)
def test_decoding_is_that_of_xla_and_of_each_row_alone(drawn, name, scheme):
    model, params = drawn[name]
    params = packed(model, params, scheme)
    plain, tiled = (token_sampling.prepare(model, params, kernel) for kernel in ("xla", "tiles"))
    kinds = {type(w) for w in jax.tree.leaves(tiled, is_leaf=linear.is_leaf)}
    assert tiles.Tiled in kinds and not kinds & {linear.Turned, quant.Integers}
    want, got = (token_sampling.generate(model, p, PROMPTS, GREEDY) for p in (plain, tiled))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.log_probs, want.log_probs, atol=1e-4)
    alone = token_sampling.generate(model, tiled, PROMPTS[2:], GREEDY)
    np.testing.assert_array_equal(alone.tokens[0], got.tokens[2])


def test_no_weight_in_few_bits_is_unpacked_in_memory(drawn):
    model, params = drawn["gpt"]
    small = packed(model, params, quant.Scheme("int8", tables=True))
    tiled = token_sampling.prepare(model, small, "tiles")
    rows, _ = token_sampling.rows_from([GREEDY])
    tokens = jnp.ones((1, 4), jnp.int32)
    at = At(jnp.ones_like(tokens), jnp.arange(4)[None])
    static = model._replace(spec=None)
    run = jax.jit(lambda p, t, at, r: sampling_loop.generate(static, p, t, at, r, 12))
    text = run.lower(tiled, tokens, at, rows).compile().as_text()
    names = ("parameter", "get-tuple-element")
    made = re.findall(r"%\S+ = f32\[([\d,]+)\]\S* ([\w\-]+)\(", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape, op in made if op not in names]
    assert sizes and max(sizes) < 64 * 64  # the smallest matrix
    assert text.count('custom_call_target="jaxlm_tiles_s8"') >= 13


def test_what_cannot_be_is_refused(drawn, monkeypatch):
    model, params = drawn["gpt"]
    with pytest.raises(ValueError, match="products: 'eigen' given; it must be one of"):
        token_sampling.prepare(model, params, "eigen")
    assert "use 'xla'" in next(tiles.problems(jnp.float64))
    assert not tiles.chosen(jnp.float64) and not list(tiles.problems(jnp.bfloat16))
    monkeypatch.setattr(tiles, "available", lambda: False)
    jax.clear_caches()
    with pytest.raises(ValueError, match=r"without llvmlite: pip install 'jaxlm\[cpu\]'"):
        token_sampling.prepare(model, params, "tiles")
    assert not tiles.chosen(jnp.float32)
