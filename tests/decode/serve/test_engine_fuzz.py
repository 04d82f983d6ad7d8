"""A random walk over all that an engine does at once, each request against itself alone, bit for
bit: constraints, stop strings, likeliest tokens, prompts read together, slots of two sizes, kept
prefixes, requests that are cancelled."""

import random

import jax
import numpy as np
import pytest

from jaxlm.decode import token_sampling
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.serve import engine as engines
from jaxlm.decode.token_sampling import Sampling
from tests.decode.serve.test_engine import poison
from tests.decode.test_completions import BYTES

CAPACITY = engines.Capacity(
    slots=2, length=64, chunk=16, steps=4, short_slots=3, short=24, together=2
)
FORMS = (
    None,
    None,
    None,
    Constraint(regex="[ab]{2,9}c?"),
    Constraint(choices=("yes", "no", "north by north-west")),
    Constraint(json_schema='{"type": "array", "items": {"enum": [1, 22]}, "maxItems": 4}'),
)
EOS = BYTES.special["eos"]


def requests(count):
    draw, made = random.Random(2), []
    shared = [draw.randrange(97, 123) for _ in range(32)]
    for number in range(count):
        prompt = [draw.randrange(97, 123) for _ in range(draw.choice([3, 14, 20, 21, 22, 23, 40]))]
        if draw.random() < 0.3:
            prompt = shared[: draw.choice([16, 20, 32])] + prompt[:8]
        sampling = Sampling(
            max_new=draw.choice([1, 2, 9, 20, 22]),
            temperature=draw.choice([0.0, 1.0, 1.0]),
            top_p=draw.choice([1.0, 0.9]),
            repetition_penalty=draw.choice([1.0, 1.2]),
            frequency_penalty=draw.choice([0.0, 0.0, 0.4]),
            stop_tokens=(EOS, 120),
            stop_strings=draw.choice([(), (), (), ("<", "bc", "L", "%")]),
            seed=number,
        )
        made.append((prompt, sampling, draw.choice(FORMS), draw.choice([0, 0, 3, 20])))
    return made


def alone(model, params, asked):
    """What an engine that does nothing else makes of each request."""
    parts = []
    for one in asked:
        engine = engines.Engine(model, params, CAPACITY, BYTES)
        engine.submit(*one)
        parts += engine.run()
    return parts


@pytest.fixture(scope="module")
def fixed(tiny):
    """(model, prepared weights, requests, what each gives alone)."""
    model, params = tiny("bytes")
    params, asked = token_sampling.prepare(model, params), requests(14)
    return model, params, asked, alone(model, params, asked)


def test_whatever_happens_around_a_request_it_is_the_same_bits(fixed):
    model, params, asked, expected = fixed
    draw, engine = random.Random(3), engines.Engine(model, params, CAPACITY, BYTES)
    numbers, done, cancelled, entered, moved = {}, {}, set(), 0, 0
    while entered < 60 or engine.busy:
        move = draw.random()
        if move < 0.5 and entered < 60:
            which = draw.randrange(len(asked))
            numbers[engine.submit(*asked[which])] = which
            entered += 1
        elif move < 0.58 and numbers:
            number = draw.choice(list(numbers))
            cancelled |= {number} if engine.cancel(number) else set()
        else:
            poison(engine)
            moved += len(engine._lanes[0].outgrown)
            for part in engine.step():
                old = done.get(part.number)
                done[part.number] = part if old is None else engines.joined(old, part)
    assert set(done) == set(numbers) and 0 < len(cancelled) < 20 and moved > 3
    assert engine.running == engine.waiting == 0 and not engine._cached
    assert all(lane.free == list(range(len(lane.requests))) for lane in engine._lanes)
    ends = set()
    for number, part in done.items():
        want = expected[numbers[number]]
        if number in cancelled:
            assert part.finish == "cancelled" and part.tokens == want.tokens[: len(part.tokens)]
            assert part.top == want.top[: len(part.top)] and want.text.startswith(part.text)
        else:
            assert part._replace(number=0, cached=0) == want._replace(number=0, cached=0), number
            ends.add(part.finish)
    assert ends == {"stop_token", "stop_string", "length"}
    assert any(part.cached for part in done.values())


def test_likeliest_tokens_are_those_of_the_softmax(fixed):
    """The k largest of the model's own law at each place, a constraint or a temperature aside; the
    sampled token's log-probability among them is the very one that is told."""
    model, params, asked, expected = fixed
    wanted = [(one, part) for one, part in zip(asked, expected, strict=True) if one[3]]
    assert len(wanted) > 3

    @jax.jit
    def forward(params, text, at):
        return model.unembed(model.head(params), model.hidden(params, text, at).x)

    for (prompt, _, _, top), part in wanted:
        assert [len(place) for place in part.top] == [top] * len(part.tokens)
        text = np.zeros((1, 64), np.int32)
        text[0, : len(prompt) + len(part.tokens)] = [*prompt, *part.tokens]
        at = token_sampling.At(np.ones_like(text), np.arange(64, dtype=np.int32)[None])
        logits = np.float64(forward(params, text, at))
        logits = logits[0, len(prompt) - 1 :][: len(part.tokens)]
        law = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        for place, token, score, row in zip(part.top, part.tokens, part.log_probs, law):
            ids, scores = (list(x) for x in zip(*place))
            best = np.argsort(-row, kind="stable")[:top]
            np.testing.assert_allclose(scores, row[best], atol=2e-5)
            assert ids == best.tolist() or np.allclose(row[ids], row[best], atol=1e-5)
            assert token not in ids or scores[ids.index(token)] == score
    assert all(part.top == [] for one, part in zip(asked, expected, strict=True) if not one[3])


def test_likeliest_tokens_and_short_slots_are_bounded(fixed):
    model, params, _, _ = fixed
    engine = engines.Engine(model, params, CAPACITY, BYTES)
    with pytest.raises(ValueError, match="top: 21 given; it must be 0 to 20"):
        engine.submit([1], Sampling(max_new=1), None, 21)
    with pytest.raises(ValueError, match="capacity.short: 65 given"):
        engines.Capacity(slots=1, length=64, short_slots=1, short=65)
    with pytest.raises(ValueError, match="capacity.together: 0 given"):
        engines.Capacity(together=0)
    # slots and their tokens and a chunk; short slots of whole chunks; k and v, K, H, float32
    assert engine.cache_bytes == (2 * (64 + 16) + 3 * 32) * 2 * 2 * 8 * 4
