"""A conversation: its answers are those of the whole prompt, and what is kept, cut and left out."""

import dataclasses
import json

import jax
import pytest

from jaxlm.data import pretraining
from jaxlm.data.records import chats
from jaxlm.data.records.chats import Chats
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import prompt_tokens, token_sampling
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.decode.serve.dialogue import Dialogue

BYTES = bytelevel.Bytes()
VICUNA = template.load("vicuna", "bytes")
SAMPLING = Sampling(max_new=8, temperature=1.2, top_k=30, seed=5)
LENGTH = 120


@pytest.fixture
def compiled():
    """Names of the programs that are compiled, or read from a cache of them, as it happens."""
    names: list[str] = []

    def listen(event, _, **more):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(more.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def dialogue(tiny):
    def make(
        data=pretraining.Data(), layout=VICUNA, sampling=SAMPLING, constraint=None, length=LENGTH
    ):
        model, params = tiny("bytes")
        params = token_sampling.prepare(model, params)
        return Dialogue(model, params, BYTES, data, layout, sampling, length, constraint)

    return make


def said(pieces):
    return "".join(pieces)


def want(tiny, messages, seed, max_new=8):
    """The answer of the whole conversation in one call."""
    turn = prompt_tokens.asked(pretraining.Data(), VICUNA, BYTES, messages)
    settings = Sampling(max_new=max_new, temperature=1.2, top_k=30, seed=seed)
    (row,) = prompt_tokens.answered(*tiny("bytes"), BYTES, [turn], settings)
    return row.text


@pytest.mark.slow
def test_answers_are_those_of_the_whole_conversation(dialogue, tiny):
    """Each with the next seed; another answer replaces the last; what is taken back is gone."""
    talk = dialogue()
    first = said(talk.say("Hi"))
    assert first == want(tiny, [Message("user", "Hi")], 5)
    messages = [Message("user", "Hi"), Message("assistant", first.strip()), Message("user", "So?")]
    assert said(talk.say("So?")) == want(tiny, messages, 6)
    again = said(talk.again())
    assert again == want(tiny, messages, 7)
    assert talk.messages == [*messages, Message("assistant", again.strip())]
    talk.undo()
    assert talk.messages == messages[:2]
    talk.set_system("Be brief.")
    said(talk.again())
    talk.reset()
    assert talk.messages == [] and talk.system == "Be brief."
    talk.undo()
    with pytest.raises(ValueError, match="nothing was asked yet"):
        talk.again()
    headed = [Message("system", "Be brief."), Message("user", "Hi")]
    assert said(talk.say("Hi")) == want(tiny, headed, 9)
    talk.set_system(None)
    assert said(talk.again()) == want(tiny, headed[1:], 10)


def test_the_beginning_is_not_computed_again(dialogue):
    talk = dialogue()
    cached = []
    for _ in range(2):
        said(talk.say("a message of thirty characters"))
        cached.append(talk.cached)
    assert cached == [0, 0]
    said(talk.again())
    assert talk.cached == 64  # a whole chunk


@pytest.mark.parametrize("rules", [{}, {"no_repeat_ngram_size": 4, "logit_bias": ((97, 1.0),)}])
def test_no_turn_compiles_anything(dialogue, compiled, rules):
    """Short and long ones, with and without a known prefix, stopped, after messages were left out:
    each turn of a growing conversation compiled up to twelve programs."""
    talk = dialogue(sampling=dataclasses.replace(SAMPLING, **rules), length=300)
    talk.warm()
    assert talk.messages == [] and talk._answers == 0
    del compiled[:]
    cached = []
    for text in ("a", "b" * 40, "c" * 90, "d"):
        said(talk.say(text))
        cached.append(talk.cached)
    said(talk.say("Hi", lambda: True))
    said(talk.again())
    talk.set_system("Be brief.")
    said(talk.say("e" * 60))
    assert talk.left_out and cached[0] == 0 and max(cached) > 64
    assert compiled == []


def test_oldest_exchanges_are_left_out_and_the_system_message_stays(dialogue, tiny):
    talk = dialogue()
    talk.set_system("Be brief.")
    for number in range(5):
        said(talk.say(f"message number {number}"))
    first = talk.left_out
    assert first == 6 and len(talk.messages) == 10
    sizes = []
    for start in (first - 2, first):  # an exchange more would have had no room
        kept = [Message("system", "Be brief."), *talk.messages[start:9]]
        turn = prompt_tokens.asked(pretraining.Data(), VICUNA, BYTES, kept)
        sizes.append(len(turn.tokens) + 8)
    assert sizes[0] > LENGTH >= sizes[1]
    talk.undo()
    assert said(talk.say("message number 4")) == want(tiny, kept, 10)
    assert talk.left_out == first


def test_an_answer_has_what_room_is_left_and_a_message_without_any_is_taken_back(dialogue):
    talk = dialogue()
    head = len(prompt_tokens.asked(pretraining.Data(), VICUNA, BYTES, [Message("user", "")]).tokens)
    said(talk.say("x" * (LENGTH - head - 3)))
    assert len(talk.messages) == 2
    assert talk._engine.capacity.length == LENGTH
    with pytest.raises(ValueError, match=f"makes {LENGTH} tokens, and {LENGTH} are all that"):
        said(talk.say("y" * (LENGTH - head)))
    assert len(talk.messages) == 2
    said(talk.say("z"))
    assert [m.text for m in talk.messages if m.role == "user"][-1] == "z"


def test_a_stopped_answer_keeps_what_was_said(dialogue):
    talk = dialogue()
    whole, pieces = said(dialogue().say("Hi")), []
    for piece in talk.say("Hi", lambda: len(said(pieces)) >= 2):
        pieces.append(piece)
    part = said(pieces)
    assert whole.startswith(part) and 2 <= len(part) < len(whole)
    assert talk.stopped and talk.messages[-1] == Message("assistant", part.strip())
    said(talk.say("So?"))
    assert not talk.stopped and len(talk.messages) == 4
    before = list(talk.messages)
    forced = dialogue(sampling=Sampling(max_new=4, forced_begin=(32, 32)))
    assert said(forced.say("Hi", lambda: True)).strip() == "" and forced.messages == []
    assert talk.messages == before


def test_conversations_go_to_training_and_back(dialogue, tmp_path):
    talk, file = dialogue(), tmp_path / "talk.jsonl"
    talk.set_system("Be brief.")
    said(talk.say("H\u00e4?"))
    talk.save(file)
    first = list(talk.messages)
    said(talk.say("So?"))
    talk.save(file)
    assert len(file.read_text("utf-8").splitlines()) == 2
    read = list(chats.read(Chats(str(file), template="vicuna"), VICUNA))
    head = Message("system", "Be brief.")
    assert [row.messages for row in read] == [(head, *first), (head, *talk.messages)]
    other = dialogue()
    other.load(file)
    assert (other.messages, other.system) == (talk.messages, "Be brief.") and not other.unanswered
    rows = [{"prompt": "a", "completion": "b"}, {"messages": [{"role": "user", "content": "c"}]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other.load(file)
    assert (other.messages, other.system) == ([Message("user", "c")], None) and other.unanswered
    file.write_text(json.dumps({"messages": [{"role": "tool", "content": "c"}]}))
    with pytest.raises(ValueError, match="role 'tool'"):
        other.load(file)
    file.write_text('{"promt": "a"}')
    with pytest.raises(ValueError, match="of no known layout"):
        other.load(file)
    assert other.messages == [Message("user", "c")]
    with pytest.raises(FileNotFoundError):
        other.load(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "source, message",
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{{ eos_token }}{% endfor %}",
         "system: template '.*own.jinja' does not write system messages"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
         "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
         "system: template '.*own.jinja': no system"),
    ],
)  # fmt: skip
def test_a_template_without_system_messages_refuses_one(dialogue, tmp_path, source, message):
    (tmp_path / "own.jinja").write_text(source)
    talk = dialogue(layout=template.load(str(tmp_path / "own.jinja"), "bytes"))
    with pytest.raises(ValueError, match=message):
        talk.set_system("Be brief.")
    assert talk.system is None
    talk.set_system(None)


def test_a_system_message_replaces_the_runs_own(dialogue):
    data = Chats("x", template="vicuna", system="Be kind.")
    talk = dialogue(data)
    for system in ("Be kind.", "Be brief."):
        talk.set_system(None if system == "Be kind." else system)
        talk.messages = [Message("user", "Hi")]
        assert bytes(talk._fitted().tokens[1:]) == f"{system} USER: Hi ASSISTANT:".encode()


def test_every_answer_matches_the_constraint(dialogue):
    pytest.importorskip("llguidance")
    talk = dialogue(constraint=Constraint(choices=("yes", "no")))
    assert said(talk.say("Hi")) in ("yes", "no")
    with pytest.raises(ValueError, match=r"sampling.n: 2 given; it must be 1: a conversation"):
        dialogue(sampling=Sampling(n=2))
