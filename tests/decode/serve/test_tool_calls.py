"""Tools: the form of calls in templates, calls out of text as it arrives, and through OpenAI's own
client, required ones made sure of."""

import json

import jax.numpy as jnp
import numpy as np
import openai
import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.data.records.messages import Message
from jaxlm.data.templates import call_forms, template
from jaxlm.decode import prompt_tokens
from jaxlm.decode.serve import engine, tool_calls
from jaxlm.decode.serve.tool_calls import Call, Reader
from jaxlm.models import gpt
from tests.decode.serve.test_http_api import CHAT, Server
from tests.decode.test_completions import BYTES

# Qwen 2.5's form of calls and results, with shorter words around them
QWEN = r"""{{ begin }}{%- for t in tools or [] %}{{ t | tojson + '\n' }}{% endfor %}
{%- for m in messages %}{{ '[' + m.role + ']' }}
{%- if m.role == 'tool' %}{{ '<tool_response>' + m.content + '</tool_response>' }}
{%- else %}{{ m.content }}{% endif %}
{%- for c in m.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}
{{- c.function.arguments | tojson + '}\n</tool_call>' }}
{%- endfor %}{{ eos_token if m.role == 'assistant' }}
{%- endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
# Llama 3.1's: one call, which is the whole message
LLAMA = r"""{{ begin }}{{ tools | tojson if tools }}
{%- for m in messages %}{{ '[' + m.role + ']' }}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set c = m.tool_calls[0].function %}
{{- '{"name": "' + c.name + '", "parameters": ' + c.arguments | tojson + '}' }}
{%- else %}{{ m.content }}{% endif %}{{ eos_token if m.role == 'assistant' }}
{%- endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"]}
CITY |= {"additionalProperties": False, "$defs": {"city": {"enum": ["Rome", "Oslo"]}}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]


def made(source):
    return template.given(template.Template("mine.jinja", source), {"tools": TOOLS})


def test_forms_are_read_off_templates():
    form = call_forms.of(made(QWEN), BYTES)
    assert form == (
        "\n<tool_call>\n",
        "\n</tool_call>",
        "name",
        "arguments",
        "\n</tool_call>\n<tool_call>\n",
    )
    assert call_forms.of(made(LLAMA), BYTES) == ("", "", "name", "parameters", None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (template.load("zephyr", "").source, "does not read 'tools'"),
        ("{{ begin }}{{ tools }}" + template.load("zephyr", "").source, "field 'tool_calls'"),
        (QWEN.replace('"arguments": ', '"id": 1, "arguments": '), r"\['arguments', 'id', 'name'\]"),
        (QWEN.replace("<tool_call>", "<eos>"), "special tokens"),
        (QWEN.replace('{"name": "', "<function=").replace("'}\\n", "'\\n"), "as JSON objects"),
        (QWEN.replace("%}[assistant]", "%}[assistant]<think>"), "does not go on from"),
    ],
)
def test_templates_without_a_readable_form_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        call_forms.of(made(source), BYTES)


CALLED = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "</tool_call>"}}\n'
    '</tool_call>\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'
)


@pytest.mark.parametrize(
    ("text", "words", "calls"),
    [
        (CALLED, "Let me see.", [("weather", {"city": "</tool_call>"}), ("now", {})]),
        (CALLED[12:], "", [("weather", {"city": "</tool_call>"}), ("now", {})]),
        ("no call <tool", "no call <tool", []),
        ("a \n", "a \n", []),
        ('<tool_call>{"name": "never", "arguments": {}}</tool_call>', None, []),
        ('<tool_call>{"name": "now"}</tool_call> b', None, []),
        ('x <tool_call>{"name": "now", "argum', None, []),
    ],
)
def test_calls_are_those_of_the_text_however_it_is_cut(text, words, calls):
    """Whole, by characters, and by pieces; where there is no call, nothing of the text is lost."""
    form = call_forms.of(made(QWEN), BYTES)
    for size in (1, 2, 5, len(text)):
        reader, parts = Reader(form, ["weather", "now"]), []
        for i in range(0, len(text), size):
            parts += reader.push(text[i : i + size])
        parts += reader.finish()
        said = "".join(part for part in parts if isinstance(part, str))
        got = [part for part in parts if isinstance(part, Call)]
        assert said == (text if words is None else words)
        assert [(call.name, json.loads(call.arguments)) for call in got] == calls
        assert reader.calls == len(calls)


def test_a_form_without_words_around_it_is_a_whole_reply():
    form = call_forms.of(made(LLAMA), BYTES)
    for text, want in (
        (' {"name": "now", "parameters": {}}', [Call("now", "{}")]),
        ('{"name": "now"', ['{"name": "now"']),
        ("It is {late}.", ["It is {late}."]),
    ):
        reader = Reader(form, ["now"])
        parts = [part for letter in text for part in reader.push(letter)] + reader.finish()
        joined = "".join(part for part in parts if isinstance(part, str))
        assert ([joined] if joined else parts) == want


def conversation(messages, tools):
    return prompt_tokens.asked(None, template.Template("mine.jinja", QWEN), BYTES, messages, tools)


SAID = 'Yes.\n<tool_call>\n{"name": "now", "arguments": {"zone": 1}}\n</tool_call>'
ROOM = 1024


@pytest.fixture(scope="module")
def server():
    """A model that says SAID whatever it is asked, by the number of the token: 70 after the
    generation prompt, which begins where every prompt of the test ends."""
    cfg = gpt.Config(vocab=BYTES.vocab, embed=ROOM, layers=1, heads=2, context=ROOM, tied=False)
    model = models.build(cfg)
    params = param.map(lambda p: jnp.zeros(p.shape), model.spec)
    turn = conversation([Message("user", "a")], TOOLS)
    said = [*SAID.encode(), BYTES.special["eos"]]
    unembed = np.zeros((ROOM, BYTES.vocab), np.float32)
    unembed[len(turn.tokens) - 1 + np.arange(len(said)), said] = 1.0
    params |= {
        "embed": {"table": params["embed"]["table"], "positions": jnp.eye(ROOM)},
        "norm": {"scale": jnp.ones(ROOM), "bias": jnp.zeros(ROOM)},
        "unembed": jnp.asarray(unembed),
    }
    one = Server(model, params, conversation, engine.Capacity(slots=2, length=ROOM, chunk=64))
    yield one
    one.uvicorn.should_exit = True
    one.thread.join(30)


@pytest.fixture(scope="module")
def ask(server):
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
    )

    def create(**settings):
        settings = {"messages": [{"role": "user", "content": "a"}], "temperature": 0} | settings
        return client.chat.completions.create(model="tiny", **settings)

    return create


def test_calls_come_out_whole_and_streamed(ask):
    (choice,) = ask(tools=TOOLS).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Yes."
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("now", '{"zone": 1}')
    assert call.type == "function" and call.id.startswith("call_")
    words, calls, reasons = "", [], []
    for event in ask(tools=TOOLS, stream=True):
        (choice,) = event.choices
        words += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        reasons.append(choice.finish_reason)
    assert words == "Yes." and reasons[-1] == "tool_calls" and not any(reasons[:-1])
    assert [(c.index, c.function.name, c.function.arguments) for c in calls] == [
        (0, "now", '{"zone": 1}')
    ]
    # what is cut off is no call
    (choice,) = ask(tools=TOOLS, max_tokens=30).choices
    assert choice.finish_reason == "length" and choice.message.content == SAID[:30]
    assert choice.message.tool_calls is None


@pytest.mark.slow
def test_required_calls_are_made_sure_of(ask):
    """Of a model that has nothing to say: every call is one of a function, by its schema."""
    settings = {"tools": TOOLS, "temperature": 1, "max_tokens": 120}
    named = {"type": "function", "function": {"name": "weather"}}
    for seed in range(4):
        choice = ask(tool_choice=named, seed=seed, **settings).choices[0]
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    form = call_forms.of(made(QWEN), BYTES)
    several = tool_calls.constraint(form, [t["function"] for t in TOOLS], True)
    once = tool_calls.constraint(form, [t["function"] for t in TOOLS], False)
    one = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    other = '<tool_call>\n{"name": "now", "arguments": {"a": [1, 2]}}\n</tool_call>'
    for text, limit, fits in (
        (one, once, True),
        (other, several, True),
        (f"{one}\n{other}", several, True),
        (f"{one}\n{other}", once, False),
        (one.replace("Oslo", "Bonn"), several, False),
        (one.replace("weather", "rain"), several, False),
        ("Oslo", several, False),
    ):
        assert matches(limit, text) == fits, text


def matches(limit, text):
    from jaxlm.decode import constraints

    matcher = constraints.Vocabulary(BYTES, BYTES.vocab, (BYTES.special["eos"],)).matcher(limit)
    for byte in text.encode():
        if not matcher.allowed()[byte]:
            return False
        matcher.take(byte)
    return matcher.accepting


def test_calls_and_results_go_back_into_the_conversation(server):
    said = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "now", "arguments": '{"zone": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    from jaxlm.decode.serve import wire

    body = wire.Chat(model="tiny", messages=said, tools=TOOLS)
    turn = conversation(body.conversation(), body.functions())
    text = BYTES.decode(turn.tokens)
    assert text.endswith(
        '[user]a[assistant]\n<tool_call>\n{"name": "now", "arguments": {"zone": 1}}\n</tool_call>'
        "[tool]<tool_response>noon</tool_response>[assistant]"
    )
    assert '"description": "The time."' in text
    none = wire.Chat(model="tiny", messages=said[:1], tools=TOOLS, tool_choice="none")
    assert none.functions() == []
    status, answer = server.post(CHAT, {"model": "tiny", "messages": said, "max_tokens": 2})
    assert status == 200 and answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice: function 'x' given; the tools are ['weather', 'now']",
        ),
        ({"tools": TOOLS[:1] * 2}, "two functions are named 'weather'"),
        (
            {
                "tools": TOOLS,
                "tool_choice": "required",
                "response_format": {"type": "choice", "choice": ["a"]},
            },
            "tool_choice: 'required' given with response_format",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]},
            "messages[0]: tool_calls[0]:",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "now", "arguments": "{"}}],
                    }
                ]
            },
            "arguments '{' are no JSON",
        ),
    ],
)
def test_what_fits_no_tool_is_refused(server, fields, message):
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    status, answer = server.post(CHAT, ask | fields)
    assert status == 400 and message in answer["error"]["message"]
