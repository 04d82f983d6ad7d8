"""Caches in 8 bits: the same numbers however a text was cut, whatever was beside it; close to full
ones in a model that was trained to read its past; and as small as they are said to be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm import models
from jaxlm.decode import encoder_decoder, sampling_loop, token_sampling
from jaxlm.decode.search import hypotheses
from jaxlm.decode.search.beam_search import Beams
from jaxlm.decode.search.contrastive_search import Contrastive
from jaxlm.decode.serve import engine as engines
from jaxlm.decode.speculate import speculative_sampling
from jaxlm.decode.speculate.speculative_sampling import Speculate
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models import bert, llama
from jaxlm.models import model as functions
from jaxlm.models.layers import cache_kinds
from jaxlm.ops.attention import At
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import memory
from tests import programs
from tests.decode import test_ring_caches, test_sampling_loop
from tests.decode.serve.test_engine import same
from tests.families.deepseek import CASES as LATENT
from tests.families.t5 import T5

KINDS = ("int8", "fp8")
GREEDY = Sampling(max_new=9, temperature=0.0)
PROMPTS = [[3], [5, 9, 2, 31, 7, 7, 1], list(range(20)), [0, 30]]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def read_in(model, cuts, room, params, tokens):
    """Logits [B, T, V] of tokens that are read chunk by chunk, and the last cache."""
    params, out = sampling_loop.unstacked(params), []
    cache = sampling_loop.empty(model, len(tokens))
    for i, (a, b) in enumerate(zip(cuts, cuts[1:])):
        ones = jnp.ones((len(tokens), b - a), jnp.int32)
        at = At(ones, ones * jnp.arange(a, b))
        x, cache, _ = model.hidden(params, tokens[:, a:b], at, cache)
        out.append(model.unembed(model.head(params), x))
        if i == 0:
            cache = sampling_loop.grow(model, cache, room)
    return jnp.concatenate(out, axis=1), cache


@pytest.fixture(scope="module")
def latent():
    model = models.build(dataclasses.replace(LATENT["deepseek"], layers=2, ahead=0))
    return model, programs.drawn(model.spec, 1)


@pytest.mark.parametrize(
    "name, numbers",
    [
        ("llama", "int8"),
        ("latent", "fp8"),
        pytest.param("llama", "fp8", marks=pytest.mark.slow),
        pytest.param("latent", "int8", marks=pytest.mark.slow),
    ],
)
def test_chunks_of_any_size_give_the_same_and_nearly_the_full_forward(name, numbers, tiny, latent):
    model, params = latent if name == "latent" else tiny(name)
    less = cache_kinds.quantised(model, numbers)._replace(spec=None)
    tokens = jax.random.randint(jax.random.key(0), (2, 14), 0, 32)
    got, cache = read_in(less, (0, 5, 9, *range(10, 15)), 16, params, tokens)
    other, _ = read_in(less, (0, 12, 14), 16, params, tokens)
    ones = jnp.ones_like(tokens)
    forward = jax.jit(functools.partial(functions.logits, model))
    full = forward(params, tokens, At(ones, ones * jnp.arange(14)))
    np.testing.assert_allclose(got, other, atol=5e-5)
    off, scale = np.abs(got - full).max(), np.abs(full).max()
    assert 1e-4 < off / scale < (0.04 if numbers == "int8" else 0.15)
    spec = cache_kinds.quantised(model, numbers).cache(2, 16)
    for layer, entries in zip(spec, cache.layers, strict=True):
        assert {n: (p.shape, p.dtype) for n, p in layer.items()} == {
            n: (x.shape, str(x.dtype)) for n, x in entries.items()
        }


def test_bytes_of_a_token():
    """A byte each and two for a scale of each 64, of a head or of a latent and its rotary key."""
    presets = models.presets()
    kinds = [("llama3-8b", 32 * 2 * 8, 128), ("deepseek-v3", 61, 576), ("gpt2", 12 * 2 * 12, 64)]
    for name, vectors, size in kinds:
        for numbers in KINDS:
            got = memory.cache(
                presets[name], Plan(), batch=3, slots=1000, dtype=jnp.bfloat16, numbers=numbers
            )
            assert got == 3 * 1000 * vectors * (size + 2 * (size // 64))
    get = functools.partial(memory.cache, presets["gemma3-1b"], Plan(), batch=1, dtype=jnp.bfloat16)
    local, whole = 22 * 2 * 256, 4 * 2 * 256  # elements of a token; one layer in six is global
    assert get(slots=32768) == 2 * 32768 * (local + whole)
    assert get(slots=32768, rings=True) == 2 * ((512 + 128) * local + 32768 * whole)
    less = get(slots=32768, rings=True, numbers="int8")
    assert less == ((512 + 128) * local + 32768 * whole) * 66 // 64
    assert get(slots=600, rings=True) == get(slots=600) == 2 * 600 * (local + whole)


@pytest.fixture(scope="module")
def reader():
    """(model, weights) trained to repeat what it read: random tokens that come round."""
    cfg = llama.Config(vocab=16, embed=32, layers=2, heads=2, kv=2, head=16, ffn=48, context=64)
    model = models.build(cfg)
    params = jax.tree.map(jnp.asarray, programs.drawn(model.spec, 2))
    tx = optax.adam(6e-3)

    def loss(params, tokens):
        ones = jnp.ones_like(tokens)
        z = functions.logits(model, params, tokens, At(ones, ones * jnp.arange(tokens.shape[1])))
        nll = optax.softmax_cross_entropy_with_integer_labels(z[:, :-1], tokens[:, 1:])
        return jnp.mean(nll[:, 11:])

    def step(carry, key):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, periods(key, 32))
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def train(params):
        return jax.lax.scan(
            step, (params, tx.init(params)), jax.random.split(jax.random.key(1), 250)
        )

    (params, _), values = train(params)
    assert values[-1] < 0.3
    return model, params


def periods(key, rows):
    """int32[rows, 36]: 12 random tokens, three times."""
    return jnp.tile(jax.random.randint(key, (rows, 12), 0, 16), (1, 3))


@pytest.mark.parametrize("numbers", KINDS)
def test_a_model_that_reads_its_past_reads_it_in_8_bits(numbers, reader):
    """Its perplexity moves by less than 2 %, its greedy tokens are nearly all the same."""
    model, params = reader
    tokens = periods(jax.random.key(9), 16)
    cuts = (0, 12, 20, 36)

    def nats(model):
        z, _ = read_in(model._replace(spec=None), cuts, 40, params, tokens)
        z = jax.nn.log_softmax(z[:, 11:-1])
        return -float(jnp.mean(jnp.take_along_axis(z, tokens[:, 12:, None], axis=2)))

    less = cache_kinds.quantised(model, numbers)
    full, got = nats(model), nats(less)
    assert full < 0.4 and 0 < abs(got - full) < 0.02
    prompts = np.asarray(tokens[:, :16]).tolist()
    s = dataclasses.replace(GREEDY, max_new=16)
    out = [token_sampling.generate(m, params, prompts, s).tokens for m in (model, less)]
    assert np.mean(out[0] == out[1]) > 0.97
    assert np.mean(out[1] == np.asarray(tokens[:, 16:32])) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name, numbers", [("gemma", "int8"), ("oss", "fp8")])
def test_an_engine_gives_each_request_its_own_bits(name, numbers):
    """Among others and alone, with and without a prefix that was kept, with rings and without."""
    model, params = test_ring_caches.built(name)
    params = token_sampling.prepare(model, params)
    less = cache_kinds.quantised(model, numbers)
    asked = test_ring_caches.asked()
    got, engine = test_ring_caches.answers(less, params, asked)
    dense, _ = test_ring_caches.answers(test_ring_caches.dense(less), params, asked)
    assert all(map(same, got, dense)) and engine.prefixes.hits > 4
    some = asked[3:5]
    alone, _ = test_ring_caches.answers(less, params, some, together=False)
    assert all(map(same, got[3:5], alone))
    whole = engines.Engine(model, params, test_ring_caches.CAPACITY)
    assert engine.cache_bytes * 4 * 8 == whole.cache_bytes * (8 + 2)
    held = sum(
        x.nbytes for lane in engine._lanes for x in jax.tree.leaves(lane._state.cache.layers)
    )
    assert held <= engine.cache_bytes


@pytest.mark.parametrize("numbers", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_generate_gives_what_an_engine_gives_and_drafts_change_no_token(numbers, tiny):
    model, params = tiny("llama")
    less = cache_kinds.quantised(model, numbers)
    s = [dataclasses.replace(GREEDY, seed=i, temperature=i / 2) for i in range(4)]
    out = token_sampling.generate(less, params, PROMPTS, s)
    capacity, asked = engines.Capacity(slots=2, length=64, chunk=16), [*zip(PROMPTS, s)]
    asked.append((PROMPTS[2][:18], s[1]))  # begins with a chunk that was read
    got, engine = test_ring_caches.answers(less, params, asked, True, capacity)
    assert [part.tokens for part in got[:4]] == out.tokens.tolist() and engine.prefixes.hits
    alone, _ = test_ring_caches.answers(less, params, asked[2:], False, capacity)
    assert all(map(same, got[2:], alone))
    plain = token_sampling.generate(less, params, PROMPTS, GREEDY)
    drafted = speculative_sampling.generate(less, params, PROMPTS, GREEDY, Speculate("lookup"))
    np.testing.assert_array_equal(drafted.tokens, plain.tokens)
    np.testing.assert_allclose(drafted.log_probs, plain.log_probs, atol=5e-5)


def test_searches_read_it_too(tiny):
    """One beam, and a contrastive search without a penalty, are greedy."""
    model, params = tiny("llama")
    less = cache_kinds.quantised(model, "int8")
    want = token_sampling.generate(less, params, PROMPTS, GREEDY).tokens.tolist()
    for search in (Beams(max_new=9, num_beams=1), Contrastive(max_new=9, top_k=3, penalty_alpha=0)):
        found = hypotheses.find(less, params, PROMPTS, search)
        assert [one[0].tokens for one in found] == want


@pytest.mark.slow
def test_an_encoder_decoder_keeps_its_targets_so():
    model = models.build(T5)
    params = programs.drawn(model.spec, 1)
    sources = [[5, 9, 3, 7], [4, 4, 8]]
    full, got = (
        encoder_decoder.generate(m, params, sources, GREEDY)
        for m in (model, cache_kinds.quantised(model, "int8"))
    )
    assert 1e-6 < np.abs(full.log_probs[:, :2] - got.log_probs[:, :2]).max() < 0.05


def test_what_has_no_such_cache_is_refused(tiny):
    model, _ = tiny("llama")
    with pytest.raises(ValueError, match=r"cache: 'int4' given; it must be one of \['int8', 'fp8'"):
        cache_kinds.quantised(model, "int4")
    reader = models.build(bert.Config(vocab=8, embed=8, layers=1, heads=1, ffn=8, context=8))
    with pytest.raises(ValueError, match="bidirectional models have no KV cache"):
        cache_kinds.quantised(reader, "int8")
    recomputed = model._replace(cache=lambda batch, slots: ({"tokens": None},))
    with pytest.raises(ValueError, match="Flax module without a KV cache"):
        cache_kinds.quantised(recomputed, "fp8")
    assert cache_kinds.quantised(model, None) is model and cache_kinds.numbers(model) is None


@pytest.mark.parametrize("numbers", KINDS)
def test_no_copy_of_the_cache_and_no_more_than_a_block_in_full(numbers):
    """Keys of 640 slots of two rows and heads of 8: 20,480 codes, and 4,096 numbers a block."""
    cfg = llama.Config(vocab=32, embed=16, layers=2, heads=2, kv=2, head=8, ffn=24)
    model = cache_kinds.quantised(models.build(cfg), numbers)
    text = test_sampling_loop.compiled(
        model, programs.drawn(model.spec, 1),
        lambda p, t, at, r: sampling_loop.generate(model, p, t, at, r, 40), width=590, new=40,
    )  # fmt: skip
    body = "\n".join(test_sampling_loop.loop_bodies(text))
    codes = "s8" if numbers == "int8" else "u8"
    assert f"{codes}[2,2,640,8]" in body and "f32[2,2,128,8]" in body
    assert not any(f"{kind}[2,2,640,8]" in body for kind in ("f32", "bf16", "s32", "f16", "u16"))
    assert test_sampling_loop.moved(text, 2 * 2 * 640 * 8) == []
