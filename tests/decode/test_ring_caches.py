"""Rings for windows against the dense cache, bit for bit, and against the full forward: lengths
below, at and several times the window; padding on either side; rows that wait, are taken back, and
begin with what another left."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.decode import sampling_loop, token_sampling
from jaxlm.decode.search import hypotheses
from jaxlm.decode.search.beam_search import Beams
from jaxlm.decode.serve import engine as engines
from jaxlm.decode.speculate import speculative_sampling
from jaxlm.decode.speculate.speculative_sampling import Speculate
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models import gemma, mistral
from jaxlm.models import model as functions
from jaxlm.models.layers import cache_kinds, ring_cache
from jaxlm.ops.attention import BLOCK, At
from tests import programs
from tests.decode import test_sampling_loop
from tests.decode.serve.test_engine import same

SIZES = {"vocab": 32, "embed": 16, "layers": 2, "heads": 2, "kv": 1, "head": 8, "ffn": 24}
CONFIGS = {
    "gemma": gemma.Config(
        **SIZES, pattern=("local", "global"), window=100, score_softcap=5.0, sandwich=True,
        qk_norm=True, local_theta=100.0,
    ),
    "mistral": mistral.Config(**SIZES, window=128),
    "oss": mistral.Config(
        **SIZES | {"kv": 2}, window=40, pattern=("local", "global"), sinks=True, bias=True,
        experts=2, active=1, limit=7.0,
    ),
}  # fmt: skip
RING = 2 * BLOCK  # each one's window in blocks, and one to write in
ROOM = 5 * BLOCK


@functools.cache
def built(name):
    """(model without rings, weights)."""
    model = models.build(CONFIGS[name])
    params = programs.drawn(model.spec, 3)
    return model, jax.tree.map(lambda w: 1.5 * w, params)


def dense(model):
    """The model that nobody gives rings."""
    return model._replace(windows=())


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def cached(model, width, step, by_row, params, tokens, at):
    """Logits of the tokens after the first `width`, `step` at a time, and the last cache."""
    params = sampling_loop.unstacked(params)
    first = At(*(x[:, :width] for x in at[:2]))
    empty = sampling_loop.empty(model, len(tokens))
    cache = model.hidden(params, tokens[:, :width], first, empty).cache
    cache = sampling_loop.grow(model, cache, ROOM)
    if by_row:
        cache = cache._replace(filled=jnp.full(len(tokens), width, jnp.int32))

    def one(cache, start):
        def cut(x):
            return jax.lax.dynamic_slice_in_dim(x, start, step, 1)

        x, cache, _ = model.hidden(params, cut(tokens), At(*map(cut, at[:2])), cache)
        return cache, model.unembed(model.head(params), x)

    starts = jnp.arange(width, tokens.shape[1] - step + 1, step)
    cache, out = jax.lax.scan(one, cache, starts)
    return jnp.moveaxis(out, 0, 1).reshape(len(tokens), -1, out.shape[-1]), cache


@pytest.mark.parametrize(
    "name, width, step, by_row",
    [
        ("gemma", 300, 1, False),  # a prompt that is longer than the ring
        pytest.param("gemma", 60, 29, True, marks=pytest.mark.slow),
        pytest.param("mistral", 100, 1, True, marks=pytest.mark.slow),
        ("oss", 259, 16, False),
        pytest.param("oss", 80, 1, False, marks=pytest.mark.slow),
    ],
)
def test_a_ring_gives_the_dense_caches_bits_and_the_full_forward(name, width, step, by_row):
    model, params = built(name)
    ringed = cache_kinds.windowed(model, 32)
    draw = np.random.default_rng(0)
    tokens = jnp.asarray(draw.integers(0, 32, (2, ROOM)), jnp.int32)
    segments = np.ones((2, ROOM), np.int32)
    segments[1, :37] = 0  # a shorter text, its padding in front
    at = test_sampling_loop.places(segments)
    run = (width, step, by_row, params, tokens, at)
    got, cache = cached(ringed._replace(spec=None), *run)
    want, whole = cached(dense(model)._replace(spec=None), *run)
    np.testing.assert_array_equal(got, want)
    full = jax.jit(functools.partial(functions.logits, model))(params, tokens, at)
    full = full[:, width : width + got.shape[1]]
    there = segments[:, width : width + got.shape[1]] > 0
    np.testing.assert_allclose(got[there], full[there], atol=1e-4)
    assert np.abs(full[there]).max() > 0.5
    for layer, all_of, window in zip(cache.layers, whole.layers, model.windows, strict=True):
        assert layer["k"].shape[2] == (ROOM if window is None else RING)
        assert all_of["k"].shape[2] == ROOM


def test_spec_and_cache_hold_as_many_slots():
    window, room = 100, 1000
    assert ring_cache.size(window, 16, room) == RING
    assert ring_cache.size(BLOCK, 1, room) == RING and ring_cache.size(BLOCK + 1, 1, room) == 384
    assert ring_cache.size(window, BLOCK + 1, room) == 3 * BLOCK  # written at once
    assert ring_cache.size(window, 16, 200) == 200 and ring_cache.size(None, 16, room) == room
    model, _ = built("gemma")
    spec = cache_kinds.windowed(model).cache(3, room)
    assert [layer["v"].shape for layer in spec] == [(3, 1, RING, 8), (3, 1, room, 8)]


def test_the_slots_of_a_ring_hold_the_last_tokens():
    for filled in (0, 3, 256, 257, 700):
        held = np.asarray(ring_cache.tokens(jnp.int32(filled), RING))
        want = {i % RING: i for i in range(max(filled - RING, 0), filled)}
        assert [held[i] for i in want] == list(want.values())
        assert all(held[i] < 0 for i in range(RING) if i not in want)


PROMPTS = [[3], list(range(20)) * 14, [7, 9, 11] * 45, list(range(31)) * 9 + [5] * 30]
GREEDY = Sampling(max_new=180, temperature=0.0)


@pytest.mark.parametrize("name", ["gemma", pytest.param("oss", marks=pytest.mark.slow)])
def test_generate_is_that_of_a_dense_cache(name):
    """Prompts of 1 to 309 tokens, several continuations of each; those of one alone."""
    model, params = built(name)
    s = Sampling(max_new=180, n=2, seed=4)
    got, want = (token_sampling.generate(m, params, PROMPTS, s) for m in (model, dense(model)))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.log_probs, want.log_probs, atol=3e-5)
    alone = token_sampling.generate(model, params, PROMPTS[2:3], dataclasses.replace(s, seed=8))
    np.testing.assert_array_equal(alone.tokens, got.tokens[4:6])


CAPACITY = engines.Capacity(slots=2, length=560, chunk=64, steps=4, short_slots=2, short=320)


def answers(model, params, asked, together=True, capacity=CAPACITY):
    """(parts, engine) of requests in one engine, or the parts of each in an engine of its own."""
    if not together:
        return [answers(model, params, [one], True, capacity)[0][0] for one in asked], None
    engine = engines.Engine(model, params, capacity)
    for one in asked:
        engine.submit(*one)
    return engine.run(), engine


def asked():
    """Texts that stay below the window, come round the ring, outgrow their slot and have to wait
    for a larger one, and begin with the same tokens."""
    shared = (list(range(29)) * 12)[:330]
    prompts = [[4, 4], shared[:200], shared[:310], shared, [*shared[:192], 9], [6] * 300, [2] * 299]
    news = [60, 150, 150, 220, 40, 200, 40]
    return [
        (p, Sampling(max_new=n, seed=i, temperature=i % 2))
        for i, (p, n) in enumerate(zip(prompts, news))
    ]


@pytest.mark.slow
def test_an_engine_with_rings_gives_the_dense_ones_bits():
    model, params = built("gemma")
    params = token_sampling.prepare(model, params)
    got, engine = answers(model, params, asked())
    want, whole = answers(dense(model), params, asked())
    assert all(map(same, got, want))
    assert engine.prefixes.hits == whole.prefixes.hits > 4
    assert [part.cached for part in got] == [part.cached for part in want]
    lane = engine._lanes[1]._state.cache.layers
    assert lane[0]["k"].shape[2] == RING < lane[1]["k"].shape[2]
    assert engine.cache_bytes < whole.cache_bytes
    full = sum(
        x.nbytes for lane in engine._lanes for x in jax.tree.leaves(lane._state.cache.layers)
    )
    assert full <= engine.cache_bytes


@pytest.mark.slow
def test_a_hit_is_a_cold_prefill_and_a_neighbour_nothing():
    model, params = built("oss")
    params = token_sampling.prepare(model, params)
    got, engine = answers(model, params, asked())
    alone, _ = answers(model, params, asked(), together=False)
    assert engine.prefixes.hits and all(map(same, got, alone))


def test_a_row_that_waits_keeps_its_ring():
    """A text has outgrown its slot, the large one is taken, and the slots beside it are decoded
    meanwhile: its ring is written no further."""
    model, params = built("gemma")
    params = token_sampling.prepare(model, params)
    capacity = dataclasses.replace(CAPACITY, slots=1, short=300, short_slots=3)
    draw = np.random.default_rng(2)
    texts = [
        (draw.integers(0, 32, p).tolist(), Sampling(max_new=n, temperature=0.0))
        for p, n in ((296, 60), (296, 20), (8, 100))
    ]
    engine, waits, parts = engines.Engine(model, params, capacity), 0, {}
    for one in texts:
        engine.submit(*one)
    while engine.busy:
        for part in engine.step():
            old = parts.get(part.number)
            parts[part.number] = part if old is None else engines.joined(old, part)
        lane = engine._lanes[0]
        for slot in lane.outgrown:
            assert lane._state.cache.filled[slot] == 296 + lane.known(slot) - 1
            waits += 1
    (alone,), _ = answers(model, params, texts[1:2], False, capacity)
    assert waits > 10 and same(parts[1], alone)


@pytest.mark.parametrize("draft", ["lookup", pytest.param("model", marks=pytest.mark.slow)])
def test_rejected_drafts_leave_no_trace_in_a_ring(draft):
    model, params = built("gemma")
    if draft == "model":  # one that has rings, too, and is right at times
        noise = programs.drawn(model.spec, 9)
        near = jax.tree.map(lambda w, x: w + 0.05 * x, params, noise)
        draft = types.SimpleNamespace(model=model, params=near)
    reports = []
    told = Speculate(draft, length=3, adaptive=False, report=reports.append)
    got = speculative_sampling.generate(model, params, PROMPTS, GREEDY, told)
    want = token_sampling.generate(dense(model), params, PROMPTS, GREEDY)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.log_probs, want.log_probs, atol=3e-5)
    assert 0 < reports[0].accepted < reports[0].drafted


def test_beams_keep_a_dense_cache():
    model, params = built("gemma")
    beams = Beams(max_new=4, num_beams=2)
    found = [hypotheses.find(m, params, PROMPTS[1:2], beams) for m in (model, dense(model))]
    assert [x[0].tokens for x in found[0]] == [x[0].tokens for x in found[1]]


def test_what_a_ring_cannot_hold_is_refused():
    at = At(jnp.ones((1, 29), int), jnp.arange(29)[None])
    ring_cache.check(100, 256, 1000, At(*(x[:, :20] for x in at[:2])))
    ring_cache.check(100, 128, 128, at)
    with pytest.raises(ValueError, match="29 tokens at once; a ring of 128 slots for a window"):
        ring_cache.check(100, 128, 1000, at)
    with pytest.raises(ValueError, match="branches of a text need a dense cache"):
        ring_cache.check(100, 256, 1000, at._replace(views=jnp.ones((1, 29, 4), int)))


def test_no_copy_of_a_ring_in_the_compiled_body():
    """Neither of the dense layer's 384 slots nor of the ring's 256, 8 numbers each, of two rows."""
    model, params = built("gemma")
    model = cache_kinds.windowed(model)
    text = test_sampling_loop.compiled(
        model, params,
        lambda p, t, at, r: sampling_loop.generate(model, p, t, at, r, 40), width=300, new=40,
    )  # fmt: skip
    body = "\n".join(test_sampling_loop.loop_bodies(text))
    assert "f32[2,1,256,8]" in body and "f32[2,1,384,8]" in body
    assert test_sampling_loop.moved(text, 2 * 256 * 8) == []
