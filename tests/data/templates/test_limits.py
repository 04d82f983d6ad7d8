"""What a chat template may spend, and that ordinary templates do not notice."""

import pathlib
import threading
import time

import jinja2
import jinja2.ext
import jinja2.sandbox
import pytest

from jaxlm.data import tokenizers
from jaxlm.data.templates import layouts, limits, template
from jaxlm.data.templates.template import Message, Template

TALK = [Message("user", "Hi"), Message("assistant", "Yes")]


def render(source, messages=TALK, **given):
    made = limits.template(limits.environment([jinja2.ext.loopcontrols]), source)
    return made.render(messages=[{"role": m.role, "content": m.text} for m in messages], **given)


def plain(source, messages=TALK, **given):
    """As transformers sets up its own."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    listed = [{"role": m.role, "content": m.text} for m in messages]
    return made.from_string(source).render(messages=listed, **given)


NESTED = "".join(f"{{% for i{n} in range(100) %}}" for n in range(6)) + 6 * "{% endfor %}"
ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "small loops": NESTED,
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
}
LARGE = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "string": "{{ 'a' * 10**10 }}",
    "list": "{{ ([1] * 10**10) | length }}",
    "power": "{{ 10 ** 1000000000 }}",
    "squares": "{% set n = namespace(x=3) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}"
    "{% endfor %}",
    "sum": "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}",
    "join": "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "block": "{% set n = namespace(x='ab') %}{% for i in range(40) %}"
    "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "nested": "{% set n = namespace(x=['a']) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}"
    "{% endfor %}{{ n.x }}",
    "tojson": "{% set n = namespace(x=['a']) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}"
    "{% endfor %}{{ n.x | tojson }}",
    "equal": "{% set n = namespace(x=['a'], y=['a']) %}{% for i in range(40) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "indent": "{{ ('\n' * 100000) | indent(100000) }}",
    "expandtabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "joiner": "{{ (['a'] * 100000) | join('b' * 100000) }}",
    "method": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "percent": "{{ '%999999999d' % 1 }}",
    "format": "{{ '{:>999999999}'.format(1) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "star": "{{ '%*d' % (999999999, 1) }}",
    "output": "{% for i in range(90000) %}" + 1000 * "a" + "{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "zero": "{{ 1 // 0 }}",
}


@pytest.mark.parametrize("name", LARGE)
def test_what_would_fill_the_memory_is_refused_at_once(name):
    clock = time.process_time()
    with pytest.raises(jinja2.TemplateError):
        render(LARGE[name])
    assert time.process_time() - clock < 3


@pytest.mark.parametrize("name", ENDLESS)
def test_what_would_run_for_ever_ends_with_a_reason_on_any_thread(name, monkeypatch):
    """A template's loops had no limit of time; a signal would reach the main thread alone."""
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    caught = []

    def run():
        try:
            render(ENDLESS[name])
        except jinja2.TemplateError as error:
            caught.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert caught == ["it takes more than 0.2 seconds"]


def test_the_error_names_the_template(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    bytes_ = tokenizers.load("bytes")
    with pytest.raises(ValueError, match="template 'slow': it takes more than 0.2 seconds"):
        template.encode(Template("slow", NESTED), bytes_, TALK)
    with pytest.raises(ValueError, match="template 'zero': ZeroDivisionError"):
        template.encode(Template("zero", LARGE["zero"]), bytes_, TALK)
    with pytest.raises(ValueError, match="template 'deep': nested too deeply|'deep'"):
        template.encode(Template("deep", "{{ " + "(" * 5000 + ")" * 5000 + " }}"), bytes_, TALK)
    with pytest.raises(jinja2.TemplateError, match="1000001 characters; at most 1000000"):
        limits.template(limits.environment([]), "a" * 1_000_001)


FEATURES = """{% macro turn(m, last=false) -%}
<{{ m['role'] }}>{{ m.content | trim }}{{ '!' if last else '' }}
{% endmacro %}
{%- set ns = namespace(n=0, seen='') -%}
{%- for m in messages if m.role != 'system' -%}
{%- set ns.n = ns.n + 1 -%}{%- set ns.seen = ns.seen ~ m.role[0] -%}
{{ turn(m, last=loop.last) }}{% if loop.index0 % 2 == 1 %}{% continue %}{% endif %}{{ loop.index }}
{% else %}nothing{% endfor %}
{% filter upper %}{{ ns.seen }}{% endfilter %}{{ ns.n }} {{ '%s-%03d' % ('a', 7) }}
{% for k, v in {'a': 1, 'b': [1, {'c': 2}]}.items() recursive %}{{ k }}={{ v }};{% endfor %}
{{ messages | map(attribute='role') | join(', ') }} {{ messages | length }} {{ 'a' * 3 }}
{{ [1, 2] + [3] }} {{ 'x-y'.split('-')[-1] }} {{ 'abc'.replace('b', 'd') }} {{ 7 ** 2 }}
{{ messages | tojson }} {{ 'a' in 'abc' }} {{ 1 < 2 < 3 }} {{ {'a': 1} == {'a': 1} }} {{ missing }}
{% set block %}{% call(x) wrap() %}{{ x }}{% endcall %}{% endset %}{{ block }}
{{ '{} {a}'.format(1, a=2) }} {{ 'a\nb' | indent(2) }} {{ range(3) | list }} {{ 'A' ~ 1 ~ none }}
{{ [1, 2] | join }} {{ 'a\nb' | indent }} {{ 'a\tb'.expandtabs() }} {{ 'aa' | replace('a', '', 1) }}
{{ [] | join('-') }} {{ ', '.join(['a', 'b']) }} {{ 'a'.ljust(3) }} {{ '%5s' | format('a') }}"""
FEATURES = "{% macro wrap() %}[{{ caller('in') }}]{% endmacro %}" + FEATURES


def test_ordinary_templates_render_as_in_the_plain_sandbox():
    talk = [Message("system", "s"), *TALK, Message("user", " more \n")]
    assert render(FEATURES, talk) == plain(FEATURES, talk)
    for source, *_ in layouts.LAYOUTS.values():
        given = {"begin": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
        given["raise_exception"] = str
        assert render(source, **given) == plain(source, **given)
    with pytest.raises(jinja2.sandbox.SecurityError):
        render("{{ messages.__class__.__mro__ }}")


PUBLISHED = ("qwen2_5", "qwen3", "llama3_1", "deepseekv3", "gptoss", "gemma3", "phi3", "glm4moe")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_render_as_in_the_plain_sandbox_and_as_fast(name):
    trl = pytest.importorskip("trl")
    path = pathlib.Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    source = path.read_text("utf-8")
    talk = [Message("user", "Hi " * 300), Message("assistant", "<think>\nSo\n</think>\n\nYes")] * 4
    given = {"eos_token": "</s>", "bos_token": "<s>", "raise_exception": str, "tools": None}
    given["strftime_now"] = lambda form: "today"
    assert render(source, talk, **given) == plain(source, talk, **given)
    made = limits.template(limits.environment([jinja2.ext.loopcontrols]), source)
    other = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=[jinja2.ext.loopcontrols])
    listed = [{"role": m.role, "content": m.text} for m in talk]
    spent = []
    for one in (made, other.from_string(source)):
        clock = time.process_time()
        for _ in range(10):
            one.render(messages=listed, **given)
        spent.append((time.process_time() - clock) / 10)
    print(f"{name}: {1e3 * spent[0]:.2f} ms, {1e3 * spent[1]:.2f} ms without limits")
    assert spent[0] < 6 * spent[1] + 1e-3
