"""Templates of models that think, call tools and read the clock, compared with transformers."""

import datetime
import json

import numpy as np
import pytest

from jaxlm.data import tokenizers
from jaxlm.data.records import chats, prompts
from jaxlm.data.records.messages import Message
from jaxlm.data.templates import template
from jaxlm.decode import prompt_tokens

SPECIAL = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</think>")

# Writes the thoughts of answers behind the last question alone, an empty one where there is none.
LAST_THINKS = r"""
{%- if tools %}{{ '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}
{%- for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages[::-1] %}{% if m.role == 'user' %}
{%- set ns.last = messages | length - 1 - loop.index0 %}{% break %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.previtem is undefined or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}
{%- endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
{%- elif message.role == 'assistant' %}
{%- set content = message.content or '' %}{% set thought = message.reasoning_content or '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\n' + ({'name': call.function.name} | tojson) + call.function.arguments }}
{%- endfor %}{{ '<|im_end|>\n' }}
{%- elif not loop.first %}{{ raise_exception('no role ' + message.role) }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}
{%- endif %}{% endif %}"""

# Opens a thought in the generation prompt, and leaves thoughts out of the conversation.
OPENS = r"""{% for m in messages %}{% if m['role'] == 'assistant' %}
{%- set said = m['content'].split('</think>')[-1] if '</think>' in m['content'] else m['content'] %}
{{- '<A>' + said + eos_token }}{% else %}{{ '<U>' + m['content'] }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}"""

# Marks what the assistant writes, in two parts where it calls a tool.
MARKS = r"""{% macro said(m) %}{% generation %}{{ m.content }}{% if not m.tool_calls %}<|im_end|>
{%- endif %}{% endgeneration %}{% endmacro %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}
{{- said(m) }}{% for call in m.tool_calls or [] %}{{ '\n' }}{% generation %}
{{- call.function | tojson(indent=1) }}<|im_end|>{% endgeneration %}{% endfor %}
{%- else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

DATED = r"""{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}{% for m in messages %}
{%- if m.role == 'tool' %}{% continue %}{% endif %}{{ m.role + ': ' + m.content }}
{%- if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""

TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"tz": "<|im_end|>"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": '{"tz": 0}'}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red", "reasoning_content": "An easy one."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "<think>\nNot red.\n</think>\n\nBlue"},
    {"role": "user", "content": "The time?"},
    {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "12:00", "name": "get_time", "tool_call_id": "c1"},
    {"role": "tool", "content": "13:00"},
    {"role": "assistant", "content": "Noon", "reasoning_content": None},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reasoning") / "t"
    texts = ["assistant user system tool <think> Red Blue Name a colour. Today: Noon\n\n"] * 20
    tokenizers.train("byte_bpe", texts, 310, str(folder), SPECIAL)
    ends = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    record = ends | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(record))
    return folder


def load(folder, source, query=""):
    path = folder.parent / f"{abs(hash(source))}.jinja"
    path.write_text(source)
    return template.load(f"{path}{query}", str(folder))


def read(messages):
    from jaxlm.data.records import messages as reading

    return [reading.read(m, "here") for m in messages]


def texts(tokenizer, written):
    """The texts of a document's answers, special tokens spelled out."""
    names = {mark.id: name for name, mark in tokenizer.marks.items()}
    spell = lambda i: names[i] if i in names else tokenizer.decode([i])  # noqa: E731
    return ["".join(map(spell, written.tokens[s.start : s.end].tolist())) for s in written.spans]


def test_every_answer_is_learnt_once_in_the_text_in_which_it_is_sampled(folder):
    """A second answer was refused under Qwen3's template: "no special token ends the turn"."""
    tokenizer = tokenizers.load(str(folder))
    made, said = load(folder, LAST_THINKS), read(TALK)
    numbers = [i for i, m in enumerate(said) if m.role == "assistant"]
    found = template.documents(made, tokenizer, said, numbers)
    assert [[s.message for s in one.spans] for one in found] == [[2], [4], [6, 9]]
    assert [texts(tokenizer, one) for one in found] == [
        ["<think>\nAn easy one.\n</think>\n\nRed<|im_end|>"],
        ["<think>\nNot red.\n</think>\n\nBlue<|im_end|>"],
        ['<think>\n\n</think>\n\nLet me look.<tool_call>\n{"name": "get_time"}{"tz": 0}<|im_end|>',
         "<think>\n\n</think>\n\nNoon<|im_end|>"],
    ]  # fmt: skip
    for one in found:
        for span in one.spans:
            asked = template.prompt(made, tokenizer, said[: span.message])
            np.testing.assert_array_equal(asked, one.tokens[: span.start])
            assert span.apart == ""
    # what is asked without a thought is learnt without one
    quiet = load(folder, LAST_THINKS, "?enable_thinking=false")
    asked = [said[1], Message("assistant", "x")]
    first, _ = template.documents(quiet, tokenizer, asked * 2, [1, 3])
    assert texts(tokenizer, first) == ["x<|im_end|>"]


def test_talking_goes_on_behind_a_second_answer(folder):
    tokenizer, made = tokenizers.load(str(folder)), load(folder, LAST_THINKS)
    asked = prompt_tokens.asked(chats.Chats("x"), made, tokenizer, read(TALK[:6]))
    text = tokenizer.decode(asked.tokens)
    assert "Red" in text and "Blue" in text and "easy" not in text and "Not red" not in text
    assert asked.stops[0] == tokenizer.marks["<|im_end|>"].id


def test_a_generation_prompt_that_opens_a_thought(folder, tmp_path):
    """The answer begins where the conversation and the prompt part, and it is told that sampling
    starts otherwise. A thought that the template would drop is not dropped in silence."""
    tokenizer, made = tokenizers.load(str(folder)), load(folder, OPENS)
    said = [Message("user", "q"), Message("assistant", "<b>a")]
    (written,) = template.documents(made, tokenizer, said, [1])
    assert texts(tokenizer, written) == ["<b>a<|eos|>"]
    assert written.spans[0].apart == "opened"
    assert template.stops(made, tokenizer) == (tokenizer.special["eos"],)
    assert tokenizer.decode(template.prompt(made, tokenizer, said[:1])) == "<U>q<A><think>\n"
    thought = [said[0], Message("assistant", "<think>\nlong</think>a")]
    assert tokenizer.decode(template.prompt(made, tokenizer, [*thought, said[0]]))
    with pytest.raises(ValueError, match="leaves out part of the 'content' of message 1"):
        template.documents(made, tokenizer, thought, [1])
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"prompt": "q", "completion": "a"}))
    data = chats.Chats(str(file), template=made.name, tokenizer=str(folder), holdout=0.0)
    (warning,) = chats.prepare(data).tally.warnings()
    assert "1 answers do not begin as the template's generation prompt ends" in warning


def test_the_clock_stands_still_unless_a_date_is_given(folder):
    tokenizer = tokenizers.load(str(folder))
    guarded = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}none{% endif %}"
    cases = [(DATED, "", "Today: 01 Jan 2025"), (DATED, "?clock=2026-05-04", "Today: 04 May 2026")]
    cases += [(guarded, "", "none"), (guarded, "?clock=2026-05-04", "2026")]
    for source, query, wanted in cases:
        made = load(folder, source, query)
        ids = template.prompt(made, tokenizer, [Message("user", "q")])
        assert tokenizer.decode(ids.tolist()).startswith(wanted)
    for query, told in (
        ("?clock=monday", "clock"),
        ("?x", "no variable"),
        ("?x=1", "does not read"),
    ):
        with pytest.raises(ValueError, match=told):
            template.prompt(load(folder, DATED, query), tokenizer, [Message("user", "q")])


def test_a_null_content_is_never_the_word_none(folder):
    """Records of OpenAI's API have it beside calls; transformers takes it for absent."""
    tokenizer, said = tokenizers.load(str(folder)), [Message("user", "q")]
    said += read([{"role": "assistant", "content": None, "tool_calls": [CALL]}])
    found = template.encode(load(folder, MARKS), tokenizer, said)
    assert "None" not in tokenizer.decode(found.tokens.tolist())
    # a template that asks whether it is null is told so
    asks = "{%- if m['content'] is none %}CALL {{ m.tool_calls[0].id }}{% else %}{{ m.content }}"
    rest = "{{ eos_token }}{% endif %}{% endfor %}"
    made = load(folder, "{% for m in messages %}{{ '<|im_start|>' }}" + asks + rest)
    text, _ = template._writer(made, tokenizer, said).text(2, False)
    assert text == "<|im_start|>q<|eos|><|im_start|>CALL c1"


@pytest.mark.parametrize(
    "layout, value, told",
    [
        ("chatml", {"messages": TALK[5:]}, "message 1: .*does not read the field 'tool_calls'"),
        ("chatml", {"messages": TALK[1:3]}, "does not read the field 'reasoning_content'"),
        ("chatml", {"messages": TALK[1:2] + TALK[7:8]}, "message 1: role 'tool' is unknown"),
        ("chatml", {"messages": TALK[3:5], "tools": [TOOL]}, "does not read 'tools'"),
        ("chatml", {"messages": [*TALK[5:6], TALK[4] | {"function_call": CALL}]},
         "field 'function_call'"),
        ("chatml", {"messages": TALK[3:5], "functions": [TOOL]}, "field 'functions' is not read"),
        ("chatml", {"instruction": "i", "output": "o", "history": [["a", "b"]]}, "field 'history'"),
        ("chatml", {"messages": TALK[:2] + TALK[4:5], "system": "s"}, "two system messages"),
        ("own", {"messages": [*TALK[3:4], TALK[4] | {"reasoning": "Hm."}]}, "field 'reasoning'"),
        ("own", {"messages": TALK[3:5], "tools": "{"}, "field 'tools' is no JSON"),
        ("own", {"messages": TALK[3:5], "chat_template_kwargs": {"thinking": 1}}, "'thinking'"),
    ],
)  # fmt: skip
def test_nothing_that_changes_what_is_learnt_is_dropped(folder, tmp_path, layout, value, told):
    """Calls, tools and thoughts were dropped: the model learnt to stop where it should call."""
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"prompt": "p", "completion": "c"}) + "\n" + json.dumps(value))
    name = layout if layout == "chatml" else load(folder, LAST_THINKS).name
    data = chats.Chats(str(file), template=name, tokenizer=str(folder), seq=512, holdout=0.0)
    with pytest.raises(ValueError, match=f"x.jsonl:2: .*{told}"):
        chats.prepare(data)


def test_fields_that_say_nothing_are_let_be_and_tools_reach_the_template(folder, tmp_path):
    inert = {"id": 3, "timestamp": "now", "tool_calls": None, "name": None, "weight": 1}
    value = {"messages": [m | inert for m in TALK[3:5]], "id": 7, "system": "Be brief.",
             "tools": json.dumps([TOOL]),
             "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(value))
    name = load(folder, LAST_THINKS).name
    tokenizer = tokenizers.load(str(folder))
    data = chats.Chats(str(file), template=name, tokenizer=str(folder), seq=512, holdout=0.0)
    rows = chats.prepare(data).train.read(np.array([0]))
    text = tokenizer.decode(rows.tokens[0].tolist())
    assert json.dumps(TOOL, ensure_ascii=False) in text and "Be brief." in text
    learnt = rows.targets[0][rows.weight[0] > 0].tolist()
    assert tokenizer.decode(learnt) == "Not red.\n\n\nBlue"
    asked = prompts.prepare(
        prompts.Prompts(str(file), template=name, tokenizer=str(folder), seq=512, holdout=0.0)
    ).train.read(np.array([0]))
    size = int((asked.segments[0] > 0).sum())
    assert tokenizer.decode(asked.tokens[0][:size].tolist()).endswith("<think>\n\n\n\n")


def test_two_blocks_of_one_message(folder):
    tokenizer, made = tokenizers.load(str(folder)), load(folder, MARKS)
    said = read(TALK[5:])
    said[2] = said[2]._replace(more="")
    (written,) = template.documents(made, tokenizer, said, [1, 4])
    assert [span.message for span in written.spans] == [1, 1, 4]
    first, second, third = texts(tokenizer, written)
    assert first == "Let me look." and third == "Noon<|im_end|>"
    assert json.loads(second.removesuffix("<|im_end|>")) == CALL["function"]


def test_a_template_that_ends_only_the_last_answer(folder):
    """Each answer is then learnt where it is the last, with its end."""
    tokenizer = tokenizers.load(str(folder))
    source = (
        "{% for m in messages %}{{ m.role + m.content }}{% if loop.last and m.role == 'assistant'"
    )
    made = load(folder, source + " %}{{ eos_token }}{% endif %}{% endfor %}"
                "{% if add_generation_prompt %}assistant{% endif %}")  # fmt: skip
    said = [Message("user", "a"), Message("assistant", "b")] * 2
    found = template.documents(made, tokenizer, said, [1, 3])
    assert [texts(tokenizer, one) for one in found] == [["b<|eos|>"], ["b<|eos|>"]]


@pytest.mark.parity
@pytest.mark.parametrize("source", [LAST_THINKS, OPENS, MARKS, DATED])
def test_texts_and_ids_are_those_of_transformers(folder, monkeypatch, source):
    """Whole conversations, those that end early, and prompts, with tools and variables."""
    import transformers
    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2025, 1, 1)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    chat_template_utils._compile_jinja_template.cache_clear()
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    ours, made = tokenizers.load(str(folder)), load(folder, source)
    tools = [TOOL | {"function": {"name": "get_time"}}]
    for given in ({}, {"tools": tools}, {"enable_thinking": False}):
        known = template._read_by_source(source).variables
        if not set(given) <= known:
            continue
        layout = template.given(made, given)
        kept = [m for m in TALK if m["role"] != "tool"] if source == OPENS else TALK
        talk = [{k: v for k, v in m.items() if v is not None} for m in kept]
        if source != LAST_THINKS:  # which alone reads thoughts
            talk = [{k: m[k] for k in m if k in ("role", "content")} for m in talk]
            talk[4]["content"] = "Blue"
        if source == MARKS:
            talk[6] |= {"tool_calls": [CALL]}
        for count in range(2, len(talk) + 1):
            if source == DATED and talk[count - 1]["role"] == "tool":
                continue
            for ask in (False, True):
                text = theirs.apply_chat_template(
                    talk[:count], chat_template=source, tokenize=False,
                    add_generation_prompt=ask, **given,
                )  # fmt: skip
                # a name that somebody typed is text here, and special there
                wanted = theirs(text, add_special_tokens=False)["input_ids"]
                said = read(talk[:count])
                found = template.prompt if ask else (lambda *a: template.encode(*a).tokens)
                assert found(layout, ours, said).tolist() == wanted
    if source == LAST_THINKS:  # what is exported has the variables as defaults
        quiet = load(folder, source, "?enable_thinking=false")
        given = {"tokenize": False, "add_generation_prompt": True}
        exported = theirs.apply_chat_template(
            TALK[:2], chat_template=template.portable(quiet), **given
        )
        wanted = theirs.apply_chat_template(
            TALK[:2], chat_template=source, enable_thinking=False, **given
        )
        assert exported == wanted and wanted.endswith("</think>\n\n")
