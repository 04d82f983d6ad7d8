"""Models with matrices in few bits: which they are, and what they compute."""

import functools
import json

import jax
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.decode import token_sampling
from jaxlm.models import gpt, model, packed_weights
from jaxlm.ops import linear, quant
from tests import programs
from tests.families import sizes

FAST = ("mistral", "llama-all")
NAMES = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in programs.FAMILIES]


@functools.cache
def packed(family, scheme):
    make = packed_weights.rounding(scheme)
    return packed_weights.encode(programs.shape(family).spec, programs.weights(family), make)


def read(family):
    """The compiled (params) -> hidden states of a batch."""
    shape = programs.shape(family)
    rows = programs.fit(family, programs.rows(0))
    return jax.jit(lambda params: model.read(shape, params, rows).x)


@pytest.mark.parametrize("family", NAMES)
def test_a_family_computes_what_its_dense_weights_do(family):
    """With every matrix that is packed replaced by what it represents, and not by what it was."""
    forward = read(family)
    given = packed(family, quant.Scheme("int4", 16))
    dense = jax.jit(packed_weights.dense)(given)
    got, want, first = (forward(p) for p in (given, dense, programs.weights(family)))
    np.testing.assert_allclose(got, want, atol=3e-5, rtol=3e-5)
    assert np.abs(want - first).max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt"])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_tables_in_few_bits(family, name):
    """Tied and not: logits are those of the weights that are represented, and none is kept."""
    scheme, shape = quant.Scheme(name, tables=True), programs.shape(family)
    make, weights = packed_weights.rounding(scheme), programs.weights(family)
    given = packed_weights.encode(shape.spec, weights, make, scheme)
    tables = [path for path in packed_weights.TABLES if path in param.flatten(shape.spec)]
    dense = packed_weights.dense(given)
    kept = packed_weights.size(packed_weights.encode(shape.spec, weights, make))
    for path in tables:
        want, got = param.flatten(weights)[path], param.flatten(dense)[path]
        assert got.shape == want.shape
        assert 0 < np.abs(got - want).max() < np.abs(want).max() / (100 if name == "int8" else 5)
    rows = programs.fit(family, programs.rows(0))
    run = jax.jit(lambda p: shape.unembed(shape.head(p), model.read(shape, p, rows).x))
    np.testing.assert_allclose(run(given), run(dense), atol=3e-5, rtol=3e-5)
    like = packed_weights.abstract(shape.spec, packed_weights.layout(given))
    stored = packed_weights.arrays(given)
    assert jax.tree.structure(packed_weights.restored(stored, like)) == jax.tree.structure(given)
    more = packed_weights.size(given).packed - kept.packed
    assert more == sum(param.flatten(weights)[path].size for path in tables)


def test_what_stays_as_it_is():
    for family in ("mistral", "qwen-moe", "deepseek", "t5-v1.1"):
        spec = programs.shape(family).spec
        chosen = packed_weights.paths(spec)
        kept = {p.rpartition("/")[2] for p in param.flatten(spec) if p not in chosen}
        assert not kept & {"gate", "up", "down", "o", "q"}
        words = ("router", "norm", "bias", "table", "unembed", "shared_gate")
        assert not [path for path in chosen if path.rpartition("/")[2].endswith(words)]
    with pytest.raises(ValueError, match="no matrices of layers"):
        packed_weights.paths({"w": param.shaper(a=2, b=3)("a -> b")})


@pytest.mark.parametrize("name", ["int8", "int2", "nf4", "mxfp4", "fp8"])
def test_weights_are_taken_apart_and_put_together(name):
    scheme, spec = quant.Scheme(name), models.spec(programs.FAMILIES["mistral"])
    given = packed("mistral", scheme)
    layout = json.loads(json.dumps(packed_weights.layout(given)))
    like = packed_weights.abstract(spec, layout)
    arrays = packed_weights.arrays(given)
    assert jax.tree.structure(like) == jax.tree.structure(given)
    assert jax.tree.structure(packed_weights.arrays(like)) == jax.tree.structure(arrays)
    for a, b in zip(jax.tree.leaves(like), jax.tree.leaves(given), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    again = packed_weights.restored(arrays, like)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(given), strict=True):
        assert a is b
    places = packed_weights.places(spec, layout)
    assert [p.shape for p in param.flatten(places).values()] == [
        x.shape for x in param.flatten(given).values()
    ]
    size = packed_weights.size(given)
    assert size == packed_weights.size(like)
    assert size.packed + size.others == param.count(spec)
    assert size.packed_bytes + size.others_bytes == sum(x.nbytes for x in jax.tree.leaves(given))


@pytest.mark.slow
def test_decoding_unpacks_one_matrix_at_a_time():
    """XLA takes what does not change out of the loop of decoding, and prefill has no loop: either
    unpacked all layers at once. Tokens are those of the dense weights."""
    cfg = gpt.Config(vocab=sizes.V, embed=128, layers=4, heads=2, ffn=512, context=32)
    shape = models.build(cfg)
    given = packed_weights.encode(
        shape.spec,
        programs.drawn(shape.spec, 0),
        packed_weights.rounding(quant.Scheme("int8")),
    )
    greedy = token_sampling.Sampling(max_new=6, temperature=0)
    job = token_sampling.prepared(shape, given, [[1, 2, 3]], [greedy])
    leaves = jax.tree.leaves(job.params, is_leaf=linear.is_leaf)
    assert sum(isinstance(w, quant.Packed) for w in leaves) == 4 * 6
    compiled = token_sampling._generate.lower(
        job.model, job.room, job.params, *job.inputs
    ).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 0.3 * 4 * packed_weights.size(given).packed
    out = token_sampling.generate(shape, given, [[1, 2, 3]], greedy)
    want = token_sampling.generate(shape, packed_weights.dense(given), [[1, 2, 3]], greedy)
    np.testing.assert_array_equal(out.tokens, want.tokens)
    np.testing.assert_allclose(out.log_probs, want.log_probs, atol=1e-4)
