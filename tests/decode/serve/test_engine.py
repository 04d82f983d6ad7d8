"""Requests among others against each alone, bit for bit: any slot, any arrival, shared prefixes."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.decode import completions, token_sampling
from jaxlm.decode.serve import engine as engines
from jaxlm.decode.serve import prefix_cache, slots
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models import mistral
from tests.decode.test_completions import BYTES, reciter  # noqa: F401

CAPACITY = engines.Capacity(slots=3, length=64, chunk=16, steps=4)


def requests(count, seed=0, longest=44):
    draw = random.Random(seed)
    made = []
    for number in range(count):
        prompt = [draw.randrange(32) for _ in range(draw.randint(1, longest))]
        sampling = Sampling(
            max_new=draw.randint(1, 20),
            temperature=draw.choice([0.0, 1.0]),
            top_k=draw.choice([None, 5]),
            repetition_penalty=draw.choice([1.0, 1.3]),
            frequency_penalty=draw.choice([0.0, 0.0, 0.4]),
            no_repeat_ngram_size=draw.choice([0, 0, 2]),
            typical_p=draw.choice([1.0, 1.0, 0.8]),
            stop_tokens=(5,),
            seed=number,
        )
        made.append((prompt, sampling))
    return made


def alone(model, params, asked, capacity=CAPACITY):
    """What an engine that does nothing else makes of each request."""
    parts = []
    for prompt, sampling in asked:
        engine = engines.Engine(model, params, capacity)
        engine.submit(prompt, sampling)
        parts += engine.run()
    return parts


def same(part, other):
    fields = ("tokens", "log_probs", "support_log_probs", "finish")
    return all(getattr(part, name) == getattr(other, name) for name in fields)


@pytest.fixture(scope="module")
def llama(tiny):
    """(model, prepared weights, requests, what each gives alone)."""
    model, params = tiny("llama")
    params, asked = token_sampling.prepare(model, params), requests(10)
    return model, params, asked, alone(model, params, asked)


@pytest.mark.parametrize("name", ["llama", "window", pytest.param("gpt", marks=pytest.mark.slow)])
def test_requests_give_what_generate_gives(name, tiny):
    """Every token that of `token_sampling.generate`, whose log-probabilities are within 1e-5."""
    model, params = tiny(name)
    asked = requests(7, seed=3)
    engine = engines.Engine(model, params, CAPACITY)
    for prompt, sampling in asked:
        engine.submit(prompt, sampling)
    parts = engine.run()
    out = token_sampling.generate(model, params, [p for p, _ in asked], [s for _, s in asked])
    assert any(part.finish == "stop_token" for part in parts) or name == "llama"
    for r, part in enumerate(parts):
        assert part.tokens == out.tokens[r, : out.lengths[r]].tolist()
        assert part.finish == token_sampling.FINISH[out.finish[r]]
        np.testing.assert_allclose(part.log_probs, out.log_probs[r, : out.lengths[r]], atol=2e-5)
        want = out.support_log_probs[r, : out.lengths[r]]
        np.testing.assert_allclose(part.support_log_probs, want, atol=2e-5)


def test_a_request_is_the_same_bits_among_others_whenever_they_come_and_go(llama):
    """A random walk over submit, step and cancel, free slots holding NaN."""
    model, params, asked, expected = llama
    draw, engine = random.Random(1), engines.Engine(model, params, CAPACITY)
    numbers, done, cancelled, entered = {}, {}, set(), 0
    while entered < 40 or engine.busy:
        move = draw.random()
        if move < 0.45 and entered < 40:
            which = draw.randrange(len(asked))
            numbers[engine.submit(*asked[which])] = which
            entered += 1
        elif move < 0.55 and numbers:
            number = draw.choice(list(numbers))
            if engine.cancel(number):
                cancelled.add(number)
        else:
            poison(engine)
            for part in engine.step():
                old = done.get(part.number)
                done[part.number] = part if old is None else engines.joined(old, part)
    assert set(done) == set(numbers) and 0 < len(cancelled) < 15
    assert engine.running == engine.waiting == 0 and not engine.cancel(0)
    for number, part in done.items():
        if number in cancelled:
            got = expected[numbers[number]].tokens[: len(part.tokens)]
            assert part.finish == "cancelled" and part.tokens == got
        else:
            assert same(part, expected[numbers[number]]), number


def poison(engine):
    """NaN in every entry of the cache whose slot is free."""
    for lane in engine._lanes:
        state = lane._state
        if state is None:
            continue
        free = jnp.asarray([one is None for one in lane.requests])

        def put(x, free=free):
            return jnp.where(free.reshape(-1, *[1] * (x.ndim - 1)), jnp.nan, x)

        layers = jax.tree.map(put, state.cache.layers)
        lane._state = state._replace(cache=state.cache._replace(layers=layers))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "window", "gpt"])
def test_a_longer_cache_changes_no_bit(name, tiny_long):
    """Beside requests that grow the cache from 128 to 768 slots."""
    model, params = tiny_long(name)
    capacity = engines.Capacity(slots=3, length=700, chunk=64, steps=16)
    asked = [*requests(3, seed=5), *requests(2, seed=6, longest=600), *requests(2, seed=7)]
    engine = engines.Engine(model, params, capacity)
    for prompt, sampling in asked:
        engine.submit(prompt, sampling)
    parts = engine.run()
    assert max(len(prompt) for prompt, _ in asked) > 520
    for part, other in zip(parts, alone(model, params, asked, capacity), strict=True):
        assert same(part, other)


@pytest.fixture
def tiny_long(tiny):
    """tiny(name) with 1,024 positions."""

    def get(name):
        model, params = tiny(name)
        if name == "gpt":  # learned positions: as many as there are
            table = np.random.default_rng(0).normal(size=(1024, 16)).astype(np.float32)
            params = params | {"embed": params["embed"] | {"positions": table}}
        return models.build(dataclasses.replace(model.cfg, context=1024)), params

    return get


def test_a_prefix_that_was_read_before_changes_no_bit(llama):
    """Hits shorter and longer than the window; a prompt that is a whole number of chunks computes
    its last."""
    model, params, _, _ = llama
    shared = [7, 1, 30, 2, 9] * 8  # 40 tokens, two whole chunks
    tails = [[3], [4, 4], shared[:10], [8] * 8]
    asked = [([*shared, *tail], Sampling(max_new=6, temperature=0.0)) for tail in tails]
    asked.append((shared[:32], asked[0][1]))
    expected = alone(model, params, asked)
    engine = engines.Engine(model, params, CAPACITY)
    for prompt, sampling in asked:
        engine.submit(prompt, sampling)
    parts = engine.run()
    assert [part.cached for part in parts] == [0, 32, 32, 32, 16]
    assert [part.cached for part in expected] == [0] * 5
    assert all(same(a, b) for a, b in zip(parts, expected, strict=True))


def test_prefixes_are_dropped_when_there_is_no_room():
    page = ({"k": jnp.zeros((1, 1, 4, 8)), "v": jnp.zeros((1, 1, 4, 8))},)  # 256 bytes
    kept = prefix_cache.Prefixes(600, 4)
    a, b = [1] * 8, [2] * 8
    for prompt in (a, b):
        kept.add(prompt, 0, page)
    assert (kept.bytes, len(kept)) == (512, 2)
    assert len(kept.find(a, 2)) == 1  # a's is the later used one now
    kept.add(b, 1, page)
    assert (kept.bytes, len(kept)) == (512, 2)
    assert len(kept.find(a, 1)) == 1 and kept.find(b, 2) == []  # b's second lacks its first
    small = prefix_cache.Prefixes(255, 4)
    small.add(a, 0, page)
    assert (small.bytes, len(small)) == (0, 0)
    kept.add([3] * 4, 0, page)
    # tokens of the same chunk after others are another page
    assert kept.find([1, 1, 1, 1, 3, 3, 3, 3][4:], 1) and not kept.find([9] * 4 + [3] * 4, 2)


def test_few_programs_are_compiled(llama):
    model, params, asked, _ = llama
    engine = engines.Engine(model, params, CAPACITY)
    programs = (slots.begin, slots.go_on, slots.insert, slots.decode)
    before = [program._cache_size() for program in programs]
    for prompt, sampling in requests(20, seed=9):
        engine.submit(prompt, sampling)
    engine.run()
    # the first chunk and the later ones by their bucket (16 alone here), one insert, one decode
    assert [p._cache_size() - n for p, n in zip(programs, before)] == [0, 0, 0, 0]


@pytest.mark.parametrize("strings", [(), ("then",), ("\U0001f600", "d \U0001f600")])
def test_stop_strings_and_text_are_those_of_completions(reciter, strings):  # noqa: F811
    sampling = Sampling(max_new=50, temperature=0.0, stop_strings=strings)
    sampling = completions.with_eos(BYTES, sampling)
    (want,) = completions.complete(*reciter, BYTES, ["h\u00e9"], [sampling])
    engine = engines.Engine(*reciter, CAPACITY, BYTES)
    engine.submit(completions.encode(BYTES, "h\u00e9"), sampling)
    (part,) = engine.run()
    assert (part.text, part.tokens, part.finish) == (want.text, want.tokens, want.finish)
    assert part.finish == ("stop_string" if strings else "stop_token")
    assert engine.running == 0


def test_what_does_not_fit_is_refused_before_compute(llama, tiny):
    model, params, _, _ = llama
    engine = engines.Engine(model, params, CAPACITY)
    with pytest.raises(ValueError, match="a slot has 64, so max_new may be at most 24 here"):
        engine.submit([1] * 40, Sampling(max_new=30))
    with pytest.raises(ValueError, match="the prompt alone is too long"):
        engine.submit([1] * 64, Sampling(max_new=1))
    with pytest.raises(ValueError, match="prompt 0: empty"):
        engine.submit([], Sampling(max_new=1))
    with pytest.raises(ValueError, match="stop_strings: a tokenizer is needed"):
        engine.submit([1], Sampling(max_new=1, stop_strings=("a",)))
    with pytest.raises(ValueError, match="capacity.length: 100 given; it must be at most 64"):
        engines.Engine(*tiny("gpt"), engines.Capacity(length=100))
    crowded = {"experts": 2, "capacity": 1.0}
    cfg = mistral.Config(vocab=32, embed=8, layers=1, heads=2, kv=1, head=4, ffn=8, **crowded)
    with pytest.raises(ValueError, match="engine: model.capacity=1.0 drops tokens"):
        engines.Engine(models.build(cfg), params)
    with pytest.raises(ValueError, match="capacity.slots: 0 given"):
        engines.Capacity(slots=0)
    assert not engine.busy and engine.step() == []
    # slots, tokens and a chunk, layers, k and v, K, H, float32
    assert engine.cache_bytes == 3 * (64 + 16) * 2 * 2 * 2 * 8 * 4


def test_weights_that_are_not_finite_are_named(llama):
    model, params, asked, _ = llama
    engine = engines.Engine(model, jax.tree.map(lambda x: x * jnp.nan, params), CAPACITY)
    engine.submit(*asked[0])
    with pytest.raises(FloatingPointError, match="request 0: the model's logits are not finite"):
        engine.run()
