"""What is BERT's own: types, the offset of positions, near and global attention, the head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.models import bert, model
from jaxlm.ops.attention import At
from tests.families.bert import BERT

B, T = 2, 8
NEAR = dataclasses.replace(BERT, layers=2, window=(2, 3), types=3)


def weights(cfg):
    r = np.random.default_rng(0)
    return param.map(
        lambda p: jnp.asarray(0.3 * r.standard_normal(p.shape), jnp.float32), models.spec(cfg)
    )


@pytest.fixture(scope="module")
def near():
    """(weights, a function to logits) of a model with windows."""
    w, built = weights(NEAR), models.build(NEAR)

    @jax.jit
    def run(w, tokens, shared, types):
        at = At(jnp.ones_like(tokens), jnp.tile(jnp.arange(T), (len(tokens), 1)), shared)
        return built.unembed(built.head(w), built.hidden(w, tokens, at, types=types).x)

    return w, run


def test_a_token_reaches_only_near_ones_and_a_global_one_all(near):
    w, run = near
    tokens = jnp.arange(T)[None].repeat(2, 0).at[1, 0].set(20)  # the rows differ at position 0
    none = jnp.zeros((2, T), bool)
    a, b = run(w, tokens, none, jnp.zeros_like(tokens))
    # windows of 2 and 3 reach 1 + 2 positions
    assert (a != b).any(-1).tolist() == [True] * 4 + [False] * 4
    a, b = run(w, tokens, none.at[:, 5].set(True), jnp.zeros_like(tokens))
    assert (a != b).any(-1).all()  # by way of the global token at 5


def test_global_tokens_read_with_projections_of_their_own(near):
    w, run = near
    tokens, types = jnp.arange(T)[None], jnp.zeros((1, T), jnp.int32)
    shared = jnp.zeros((1, T), bool).at[0, 5].set(True)

    def total(w, shared):
        return jnp.sum(run(w, tokens, shared, types)[:, 5] ** 2)

    for at, there in ((shared, True), (~shared & False, False)):
        grads = param.flatten(jax.grad(total)(w, at))
        moved = [bool(np.any(g)) for path, g in grads.items() if path.endswith("global/q")]
        assert moved == [there] * 2


def test_types_add_their_row(near):
    w, run = near
    tokens, none = jnp.arange(T)[None], jnp.zeros((1, T), bool)
    types = jnp.array([[0, 0, 2, 2, 1, 1, 0, 0]])
    rows = w["embed"]["types"][types[0]] - w["embed"]["types"][0]
    # the same as a table that has the difference in the tokens' own rows
    moved = w | {"embed": w["embed"] | {"table": w["embed"]["table"].at[:T].add(rows)}}
    head = run(moved, tokens, none, 0 * types) - run(w, tokens, none, types)
    # only the tied output matrix differs
    h = np.linalg.lstsq(np.asarray(rows[2:6]), np.asarray(head[0, :, 2:6]).T, rcond=None)[1]
    assert np.abs(head[..., T:]).max() < 2e-5 and (h.size == 0 or h.max() < 1e-6)


def test_an_offset_shifts_the_table_of_positions():
    w = weights(BERT)
    cfg = dataclasses.replace(BERT, offset=2)
    table = jnp.concatenate([jnp.full((2, 16), 9.0), w["embed"]["positions"]])
    other = w | {"embed": w["embed"] | {"positions": table}}
    tokens = jnp.arange(T)[None]
    at = At(jnp.ones_like(tokens), jnp.arange(T)[None])
    plain, shifted = models.build(BERT), models.build(cfg)

    @jax.jit
    def both(w, other):
        return model.logits(plain, w, tokens, at), model.logits(shifted, other, tokens, at)

    a, b = both(w, other)
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_pooler_reads_the_first_token():
    cfg = dataclasses.replace(BERT, pooler=True)
    w = weights(cfg)["pooler"]
    x = jax.random.normal(jax.random.key(0), (B, T, 16))
    want = np.tanh(np.asarray(x)[:, 0] @ np.asarray(w["dense"]) + np.asarray(w["bias"]))
    np.testing.assert_allclose(bert.pool(w, x), want, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": (2,)}, "model.window"),
        ({"offset": -1}, "model.offset"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"heads": 3}, "model.heads"),
    ],
)
def test_configs_that_are_none(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BERT, **change)


def test_there_is_no_cache():
    built = models.build(BERT)
    with pytest.raises(ValueError, match="no KV cache"):
        built.cache(1, 8)
