"""Constrained continuations: every output matches, and its law is the model's own, renormalised."""

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.data import tokenizers
from jaxlm.decode import completions, constraints, token_sampling
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.serve import engine
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models import model as models
from jaxlm.ops.attention import At
from tests.decode.test_completions import BYTES

VOCAB = {"byte_bpe": 275, "bpe": 300, "unigram": 278}
EOS = BYTES.special["eos"]
CAPACITY = engine.Capacity(slots=6, length=96, chunk=16, steps=4)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
GRAMMAR = 'start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[1-9][0-9]?/'


@pytest.fixture(scope="module")
def spoken(tiny):
    """(model, params) over the bytes tokenizer's ids, three of them beyond the tokenizer's."""
    return tiny("bytes")


def texts(spoken, asked):
    """The parts of constrained requests, decoded together."""
    running = engine.Engine(*spoken, CAPACITY, BYTES)
    for constraint, sampling in asked:
        running.submit(completions.encode(BYTES, "x"), sampling, constraint)
    return running.run()


def sampled(seed, max_new=60):
    return Sampling(max_new=max_new, temperature=1.0, stop_tokens=(EOS,), seed=seed)


def test_every_output_matches(spoken):
    """Together with rows without a constraint, whose bits do not change."""
    free = sampled(99, 20)
    asked = []
    for seed in range(4):
        asked += [
            (Constraint(choices=("yes", "no", "yesterday", 'a "b"\n\u00e9')), sampled(seed)),
            (Constraint(regex=r"[a-c]{2,4}/[0-9]+(\.[0-9]{2})?!"), sampled(seed)),
            (Constraint(json_schema=json.dumps(SCHEMA)), sampled(seed, 80)),
            (Constraint(grammar=GRAMMAR), sampled(seed)),
            (None, free),
        ]
    parts = texts(spoken, asked)
    (alone,) = texts(spoken, [(None, free)])
    seen, ended = set(), 0
    for (constraint, _), part in zip(asked, parts, strict=True):
        if constraint is None:
            assert (part.tokens, part.log_probs) == (alone.tokens, alone.log_probs)
            continue
        if part.finish == "length":  # no end before max_new
            continue
        ended += 1
        assert part.finish == "stop_token" and part.tokens[-1] == EOS
        if constraint.choices:
            assert part.text in constraint.choices
            seen.add(part.text)
        elif constraint.regex is not None:
            assert re.fullmatch(constraint.regex, part.text)
        elif constraint.json_schema is not None:
            value = json.loads(part.text)
            assert set(value) == set(SCHEMA["properties"]) and value["kind"] in "ab"
            assert 0 <= value["age"] <= 120 and len(value["name"]) <= 6
        else:
            assert all(0 < int(n) < 100 for n in part.text.split("+"))
    assert len(seen) > 1 and ended > 11


def test_log_probabilities_are_those_of_the_renormalised_law(spoken):
    """Of each token under the softmax over what may come next, by the full forward pass."""
    model, params = spoken
    choices = ("ab", "abc", "b")
    asked = [(Constraint(choices=choices), sampled(seed)) for seed in range(6)]
    prompt = completions.encode(BYTES, "x")
    for part in texts(spoken, asked):
        row = [*prompt, *part.tokens]
        at = At(jnp.ones((1, len(row)), jnp.int32), jnp.arange(len(row))[None])
        x = np.asarray(models.logits(model, params, jnp.asarray([row]), at)[0], np.float64)
        for t, token in enumerate(part.tokens):
            text, logits = bytes(part.tokens[:t]).decode(), x[len(prompt) - 1 + t]
            may = {ord(c[t]) for c in choices if c.startswith(text) and len(c) > t}
            may |= {EOS} if text in choices else set()
            total = np.log(sum(np.exp(logits[i]) for i in may))
            assert token in may
            assert part.support_log_probs[t] == pytest.approx(logits[token] - total, abs=2e-5)
            whole = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
            assert part.log_probs[t] == pytest.approx(logits[token] - whole, abs=2e-5)


def test_json_has_white_space_where_json_dumps_writes_it(spoken):
    """A random model to whom spaces and line ends are 150 times as likely as other tokens: they
    filled max_new. Where white space is free, they still do; `x-guidance` is the schema's own."""
    likelier = tuple((ord(c), 5.0) for c in " \n\t\r") + tuple((ord(c), 3.0) for c in '"}]')
    item = {"type": "object", "maxProperties": 2, "additionalProperties": {"enum": [1, [2, {}]]}}
    nested = json.dumps({"type": "array", "minItems": 2, "maxItems": 3, "items": item})
    one_space = json.dumps(json.loads(nested) | {"x-guidance": {"whitespace_pattern": " ?"}})
    settings = [dataclasses.replace(sampled(seed), logit_bias=likelier) for seed in range(8)]
    fixed, free, own = (
        texts(spoken, [(Constraint(json_schema=schema, whitespace=form), s) for s in settings])
        for schema, form in ((nested, "fixed"), (nested, "free"), (one_space, "fixed"))
    )
    ended = [json.loads(part.text) for part in fixed if part.finish == "stop_token"]
    assert len(ended) > 3 and all(len(value) in (2, 3) for value in ended)
    for part in fixed:
        assert re.fullmatch(r"([^\s,:]|[,:](?: |$))*", _without_strings(part.text)), part.text
        if part.finish == "stop_token":
            assert part.text == json.dumps(json.loads(part.text), ensure_ascii=False)
    assert any(re.search(r"\s\s\s", _without_strings(part.text)) for part in free)
    assert any(re.search(r"[{[]\s", _without_strings(part.text)) for part in own)
    assert not any(re.search(r"\s\s", _without_strings(part.text)) for part in own)


def _without_strings(text):
    """JSON text, maybe cut off, with a 0 for each string."""
    return re.sub(r'"(\\.|[^"\\])*("|$)', "0", text)


@pytest.mark.parametrize("kind", ["byte_bpe", "bpe", "unigram"])
def test_tokens_are_allowed_by_their_bytes(kind, tmp_path):
    """Each of a byte-pair tokenizer's tokens that the text may go on with, however the tokenizer
    cuts it; ids beyond the tokenizer's never."""
    text = "the cat then the cat is there and the thing in the theatre thrives " * 20
    tokenizer = tokenizers.train(kind, [text], VOCAB[kind], str(tmp_path / "tokenizer"))
    stops = (tokenizer.special["eos"],)
    vocab = constraints.Vocabulary(tokenizer, tokenizer.vocab + 5, stops)
    matcher = vocab.matcher(Constraint(choices=("the cat", "then")))
    allowed = matcher.allowed()
    assert allowed.shape == (tokenizer.vocab + 5,) and not matcher.accepting
    for token in range(tokenizer.vocab + 5):
        data = tokenizer.decode_bytes([token]) if token < tokenizer.vocab else b""
        fits = data != b"" and any(c.encode().startswith(data) for c in ("the cat", "then"))
        assert allowed[token] == fits, (token, data)
    for token in tokenizer.encode("then"):
        matcher.take(token)
    assert matcher.accepting and np.flatnonzero(matcher.allowed()).tolist() == list(stops)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing given; one of choices"),
        ({"regex": "a", "grammar": "b"}, "regex, grammar given; one of"),
        ({"choices": "ab"}, "texts that are not empty are needed"),
        ({"choices": ("a", "")}, "texts that are not empty are needed"),
        ({"json_schema": "{"}, "constraint.json_schema: no JSON"),
        ({"json_schema": "[1]"}, "an object is needed"),
        ({"json_schema": "{}", "whitespace": "none"}, "whitespace: 'none' given; it must be one"),
        ({"regex": "a", "whitespace": "free"}, "whitespace: 'free' given; .* without json_schema"),
    ],
)
def test_constraints_that_say_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Constraint(**fields)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint(regex="(a"), "constraint.regex: "),
        (Constraint(grammar="start: nothing"), "constraint.grammar: "),
        (Constraint(json_schema='{"type": "thing"}'), "constraint.json_schema: "),
    ],
)
def test_constraints_that_cannot_be_read_are_refused(spoken, constraint, message):
    running = engine.Engine(*spoken, CAPACITY, BYTES)
    with pytest.raises(ValueError, match=message):
        running.submit([1], sampled(0), constraint)
    with pytest.raises(ValueError, match="a constraint ends with one of them"):
        running.submit([1], Sampling(max_new=3), Constraint(regex="a"))
    assert not running.busy
    assert token_sampling.FINISH[3] == "length"
