"""Preference labels: odds by hand, the liking for a place, and a model's own log-probabilities."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.data.records import preference_formats, records
from jaxlm.data.templates.template import Message
from jaxlm.decode.token_sampling import Sampling
from jaxlm.feedback import chat_model, preference_labels, principles
from jaxlm.ops.attention import At

PAIRS = [{"prompt": f"ask {i}", "response_a": "bad", "response_b": f"good {i}"} for i in range(3)]


@pytest.fixture
def settings(tmp_path, write):
    return preference_labels.Settings(
        pairs=write("pairs.jsonl", *PAIRS), out=str(tmp_path / "out.jsonl"), each=3, batch=2
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def judge(quality, place):
    """Odds of the choices: how good the responses are, and a liking for the first place."""

    def odds(conversation):
        text = conversation[0].text
        first, second = text.split("(A) ")[1].split("\n\n(B) ")
        gap = quality(first) - quality(second.split("\n\n")[0]) + place
        return [-1.0 + gap, -1.0]

    return odds


def test_both_orders_by_hand(settings, script, read):
    said = script(odds=judge(lambda text: 2.0 * text.startswith("good"), place=1.5))
    summary = preference_labels.run(said.voice, settings)
    wanted = (sigmoid(2 - 1.5) + sigmoid(2 + 1.5)) / 2  # bad first, good first
    for record, pair in zip(read(settings.out), PAIRS, strict=True):
        assert {k: record[k] for k in pair} == pair
        assert record["preference"] == pytest.approx(wanted, abs=1e-12)
        assert len({j["principle"] for j in record["judgements"]}) == 3
        assert record["judgements"][0]["log_probs"] == [[-1.5, -1.0], [2.5, -1.0]]
        assert record["provenance"]["by"] == "label"
    bias = (sigmoid(-0.5) + sigmoid(3.5)) / 2 - 0.5
    assert summary.facts["position_bias"] == pytest.approx(bias)
    assert summary.facts["flips"] == 0 and summary.facts["judgements"] == 9
    assert len(said.asked) == 18


def test_a_liking_for_a_place_is_no_preference(settings, script, read):
    summary = preference_labels.run(script(odds=judge(lambda text: 0.0, place=3.0)).voice, settings)
    assert [r["preference"] for r in read(settings.out)] == pytest.approx([0.5] * 3, abs=1e-15)
    assert summary.facts["position_bias"] == pytest.approx(sigmoid(3) - 0.5)
    assert summary.facts["flips"] == 1


def test_the_training_data_reads_what_is_written(settings, script):
    """The probability is that of response_b: the last of two conventions that could be mixed up."""
    said = script(odds=judge(lambda text: 2.0 * text.startswith("good"), place=0.0))
    preference_labels.run(said.voice, settings)
    ranking = preference_formats.read(next(records.read(settings.out)), None)
    best = ranking.responses[ranking.rank.index(0)]
    assert best[0].text == "good 0" and ranking.preference == pytest.approx(sigmoid(2))


def test_clamp_and_thoughts(settings, script, read):
    def think(conversation, seed):
        return f"hm {seed}"

    said = script(think, judge(lambda text: 5.0 * text.startswith("good"), 0.0))
    how = dataclasses.replace(
        settings, thought=True, clamp=(0.4, 0.6), each=1, sampling=Sampling(max_new=9)
    )
    preference_labels.run(said.voice, how)
    thoughts = set()
    for record in read(settings.out):
        assert record["preference"] == 0.6
        thoughts |= set(record["judgements"][0]["thoughts"])
    assert len(thoughts) == 6  # each order has its own
    last = [c for c in said.asked if len(c) == 3]
    default = principles.load("default")
    assert len(last) == 6 and all(c[2].text == default.conclude for c in last)
    assert all(c[1].text in thoughts and "step by step" in c[0].text for c in last)


def test_lists_and_revisions_are_pairs_too(write):
    name = write(
        "r.jsonl",
        {"prompt": "p", "responses": ["a", "b", "a", "c"]},
        {"prompt": "q", "completion": "new", "response": "old", "rounds": []},
        {"prompt": "q", "completion": "same", "response": "same", "rounds": []},
    )
    found = preference_labels.read(name)
    assert [(p.a, p.b) for p in found] == [("a", "b"), ("a", "c"), ("b", "c"), ("old", "new")]
    assert len({p.id for p in found}) == 4


@pytest.mark.parametrize(
    "value, told",
    [
        ({"prompt": "p"}, "no field 'responses' or 'response_a'"),
        ({"prompt": "p", "responses": "a"}, "responses: a list of texts is needed"),
        ({"prompt": "p", "responses": ["a", "a"]}, "no two different responses"),
    ],
)
def test_wrong_pairs(write, value, told):
    with pytest.raises(ValueError, match=told):
        preference_labels.read(write("r.jsonl", value))


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"each": 99}, r"each: 99 given; it must be 1 to \d+, the principles of default"),
        ({"clamp": (0.6, 0.9)}, r"clamp: \(0.6, 0.9\) given; .* 0 <= low <= 0.5"),
        (
            {"sampling": Sampling(max_new=3)},
            r"sampling: .*max_new=3,.* given; it must be .*max_new=256,.* without thought=True",
        ),
    ],
)
def test_wrong_settings(settings, script, changes, told):
    with pytest.raises(ValueError, match=told):
        preference_labels.run(script(None).voice, dataclasses.replace(settings, **changes))


def test_no_room(settings, script):
    summary = preference_labels.run(script(odds=lambda c: [0.0, 0.0], room=100).voice, settings)
    assert summary.written == 0 and sum(summary.dropped.values()) == 3


def test_weights_of_choices_are_the_models_own(random_model):
    """Against the logits of one row at a time, from ids that no template made."""
    model, params, tokenizer, chat = random_model
    spoken = chat_model.of(model, params, tokenizer, chat, [tokenizer.special["eos"]], {})
    talks = [[Message("user", text)] for text in ("Which?", "Which is better?")]
    talks.append([*talks[0], Message("assistant", "(A)"), Message("user", "Again?")])
    found = spoken.weigh(talks, ("(A)", "No"))
    begin, eos = tokenizer.special["bos"], tokenizer.special["eos"]
    prompts = [[begin, *b"Which?"], [begin, *b"Which is better?"]]
    prompts.append([*prompts[0], *b"(A)", eos, *b"Again?"])
    at = At(jnp.ones((1, 24), jnp.int32), jnp.arange(24)[None])
    # what stands behind a causal model's tokens does not matter
    read = jax.jit(
        lambda ids: model.unembed(model.head(params), model.hidden(params, ids, at).x)[0]
    )
    for row, ids in enumerate(prompts):
        for column, choice in enumerate((b"(A)", b"No")):
            tokens = np.zeros((1, 24), np.int32)
            tokens[0, : len(ids) + len(choice)] = [*ids, *choice]
            logits = np.asarray(read(tokens), np.float64)[len(ids) - 1 :]
            total = sum(z[c] - np.log(np.exp(z).sum()) for z, c in zip(logits, choice))
            assert found[row, column] == pytest.approx(total, abs=2e-5)


def test_what_is_said_does_not_depend_on_its_neighbours(random_model):
    model, params, tokenizer, chat = random_model
    stops = [tokenizer.special["eos"]]
    talks = [[Message("user", "x" * n)] for n in (1, 9, 2)]
    how = [Sampling(max_new=6, seed=s) for s in (5, 6, 7)]
    many = chat_model.of(model, params, tokenizer, chat, stops, {}, rows=8).say(talks, how)
    one = chat_model.of(model, params, tokenizer, chat, stops, {}, rows=1)
    assert many == one.say(talks, how)
    assert one.say(talks[::-1], how[::-1]) == many[::-1]
    with pytest.raises(ValueError, match="sampling.n: 2 given; it must be 1: each conversation"):
        one.say(talks[:1], [Sampling(n=2)])
    assert len({s.text for s in many}) == 3 and not many[0].finished
