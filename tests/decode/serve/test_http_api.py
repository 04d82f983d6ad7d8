"""The server through OpenAI's own client, and through clients that behave badly."""

import concurrent.futures
import http.client
import json
import re
import socket
import threading
import time

import jax
import jax.numpy as jnp
import openai
import pytest
import uvicorn

from jaxlm.data.records.messages import Message
from jaxlm.decode import completions, prompt_tokens
from jaxlm.decode.serve import engine, http_api, wire, worker
from jaxlm.decode.token_sampling import Sampling
from tests.decode.test_completions import BYTES, SCRIPT, reciter  # noqa: F401

CAPACITY = engine.Capacity(slots=4, length=64, chunk=16, steps=4)
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}


def asked(messages, tools):
    """A template of the test's own: the last message's text, ended by an exclamation mark."""
    assert all(isinstance(message, Message) for message in messages) and not tools
    return prompt_tokens.Turn(completions.encode(BYTES, messages[-1].text), (ord("!"),))


class Server:
    """A server on a free port, in a thread."""

    def __init__(self, model, params, chat=asked, capacity=CAPACITY):
        self.engine = engine.Engine(model, params, capacity, BYTES)
        ends = (BYTES.special["eos"],)
        served = http_api.Served("tiny", worker.Worker(self.engine), BYTES, ends, chat)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = uvicorn.Config(http_api.app(served), port=self.port, log_level="error")
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, daemon=True)
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.01)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def post(self, path, body):
        """(status, JSON) of a body, bytes as they are."""
        connection = self.connect()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def get(self, path):
        connection = self.connect()
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def metric(self, name):
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def settle(self):
        """Waits until nothing runs."""
        for _ in range(400):
            if not self.engine.busy:
                return True
            time.sleep(0.02)
        return False


@pytest.fixture(scope="module")
def server(reciter):  # noqa: F811
    one = Server(*reciter)
    yield one
    one.uvicorn.should_exit = True
    one.thread.join(30)
    assert not one.thread.is_alive()


@pytest.fixture(scope="module")
def client(server):
    url = f"http://127.0.0.1:{server.port}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def test_completions_are_those_of_python(server, client, reciter):  # noqa: F811
    settings = {"max_tokens": 30, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    prompts = ["h\u00e9", "12345"]
    got = client.completions.create(
        model="tiny", prompt=prompts, n=2, logprobs=0, stop=["then"], **settings
    )
    sampling = Sampling(max_new=30, temperature=0.7, top_p=0.9, seed=3, stop_strings=("then",))
    rows = completions.complete(
        *reciter, BYTES, [prompts[0], prompts[0], prompts[1], prompts[1]], sampling
    )
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    for choice, row in zip(got.choices, rows, strict=True):
        assert choice.text == row.text
        assert choice.finish_reason == ("length" if row.finish == "length" else "stop")
        assert choice.logprobs.token_logprobs == pytest.approx(row.log_probs.tolist(), abs=2e-5)
        assert len(choice.logprobs.tokens) == len(row.tokens)
    lengths = [len(completions.encode(BYTES, prompt)) for prompt in prompts]
    assert got.usage.prompt_tokens == sum(lengths)
    assert got.usage.completion_tokens == sum(len(row.tokens) for row in rows)
    again = client.completions.create(
        model="tiny", prompt=completions.encode(BYTES, prompts[0]), **settings, stop="then"
    )
    assert again.choices[0].text == rows[0].text
    empty = client.completions.create(model="tiny", prompt="", temperature=0)
    assert empty.usage.completion_tokens == 16


def test_a_stream_is_the_answer_in_pieces(server, client):
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "h\u00e9"}], "seed": 1}
    ask |= {"temperature": 0.0, "logprobs": True}
    whole = client.chat.completions.create(**ask)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content == SCRIPT[2:]
    assert whole.choices[0].finish_reason == "stop"
    text, scores, ends = "", [], []
    options = {"include_usage": True}
    for part in client.chat.completions.create(**ask, stream=True, stream_options=options):
        assert (part.usage is None) == bool(part.choices)
        for choice in part.choices:
            text += choice.delta.content
            scores += [one.logprob for one in choice.logprobs.content]
            ends.append(choice.finish_reason)
    assert text == whole.choices[0].message.content and part.usage == whole.usage
    assert ends[-1] == "stop" and not any(ends[:-1]) and len(ends) > 4
    assert scores == [one.logprob for one in whole.choices[0].logprobs.content]
    streams = client.completions.create(
        model="tiny", prompt="h", n=3, temperature=0.0, max_tokens=9, stream=True
    )
    texts = ["", "", ""]
    for part in streams:
        texts[part.choices[0].index] += part.choices[0].text
    assert len(set(texts)) == 1 and texts[0].startswith("\u00e9llo")


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (COMPLETIONS, b"{", "JSON decode error"),
        (COMPLETIONS, {"model": "tiny"}, "prompt: Field required"),
        (COMPLETIONS, {"model": "tiny", "prompt": "a", "best": 2}, "best: Extra inputs are not"),
        (
            COMPLETIONS,
            {"model": "gpt", "prompt": "a"},
            "model: 'gpt' given; this server has 'tiny'",
        ),
        (COMPLETIONS, {"model": "tiny", "prompt": "a" * 63, "max_tokens": 9}, "too long"),
        (COMPLETIONS, {"model": "tiny", "prompt": "a" * 50, "max_tokens": 20}, "at most 13 here"),
        (COMPLETIONS, {"model": "tiny", "prompt": [1, 999]}, "token 999 is outside"),
        (COMPLETIONS, {"model": "tiny", "prompt": []}, "at least one is needed"),
        (COMPLETIONS, {"model": "tiny", "prompt": "a", "n": 0}, "n: Input should be greater"),
        (COMPLETIONS, {"model": "tiny", "prompt": "a", "logprobs": 6}, "logprobs: Input should be"),
        (CHAT, {"model": "tiny", "messages": []}, "messages: List should have at least 1 item"),
        (CHAT, {"model": "tiny", "messages": [{"role": "user"}]}, "messages[0]"),
        (CHAT, ASK | {"tools": [{}]}, "tools[0].type: Field required"),
        (CHAT, ASK | {"tool_choice": "required"}, "tool_choice: 'required' given without tools"),
        (CHAT, ASK | {"top_logprobs": 2}, "top_logprobs: 2 given; it needs logprobs=true"),
        (CHAT, ASK | {"logprobs": True, "top_logprobs": 21}, "less than or equal to 20"),
        (
            CHAT,
            {
                "model": "tiny",
                "messages": [{"role": "user", "content": "a"}],
                "response_format": {"type": "regex", "choice": ["a"]},
            },
            "response_format: type 'regex' given with ['choice']; ['regex'] is needed",
        ),
        (
            CHAT,
            ASK | {"response_format": {"type": "regex", "regex": "a", "whitespace": "free"}},
            "response_format.whitespace: 'free' given with type 'regex'",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(server, path, body, message):
    status, answer = server.post(path, body)
    assert status == 400 and message in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"
    assert not server.engine.busy


# Each field that becomes a setting of the engine, in vain: (path, fields, the message's beginning).
SETTINGS = [
    (COMPLETIONS, {"max_tokens": 0}, "max_tokens: 0 given"),
    (
        COMPLETIONS,
        {"max_tokens": 90},
        "max_tokens: 2 tokens of the prompt and 90 new ones make 92; ",
    ),
    (CHAT, {"max_tokens": 90}, "max_tokens: 2 tokens of the prompt and 90 new ones"),
    (CHAT, {"max_completion_tokens": -1}, "max_completion_tokens: -1 given"),
    (CHAT, {"max_completion_tokens": 90}, "max_completion_tokens: 2 tokens of the prompt and 90 n"),
    (COMPLETIONS, {"prompt": "a" * 63}, "prompt: 64 tokens given; a slot has 64"),
    (COMPLETIONS, {"prompt": ["a", "a" * 63], "n": 2}, "prompt[1]: 64 tokens given; a slot has 64"),
    (COMPLETIONS, {"prompt": [[1], [2, 999]]}, "prompt[1], position 1: token 999 is outside"),
    (COMPLETIONS, {"prompt": [[1], []]}, "prompt[1]: empty"),
    (CHAT, {"messages": [{"role": "user", "content": "a" * 70}]}, "messages: 71 tokens given"),
    (COMPLETIONS, {"temperature": -1}, "temperature: -1.0 given"),
    (COMPLETIONS, {"top_p": 0}, "top_p: 0.0 given"),
    (COMPLETIONS, {"top_k": 0}, "top_k: 0 given"),
    (CHAT, {"min_p": 2}, "min_p: 2.0 given"),
    (CHAT, {"repetition_penalty": 0}, "repetition_penalty: 0.0 given"),
    (COMPLETIONS, {"presence_penalty": 3}, "presence_penalty: 3.0 given"),
    (COMPLETIONS, {"frequency_penalty": -3}, "frequency_penalty: -3.0 given"),
    (COMPLETIONS, {"logit_bias": {"999": 1}}, "logit_bias, pair 0: token 999 is outside"),
    (COMPLETIONS, {"stop": ""}, "stop: '' given"),
    (CHAT, {"stop": ["a", ""]}, "stop: '' given"),
    (COMPLETIONS, {"stop": 3}, "stop: Input should be"),
    (COMPLETIONS, {"n": 200}, "n: Input should be"),
    (COMPLETIONS, {"seed": "a"}, "seed: Input should be"),
    (COMPLETIONS, {"logit_bias": {"a": 1}}, "logit_bias.a: Input should be a valid integer"),
]
FORMS = [
    ({"type": "choice", "choice": [""]}, "response_format.choice: ('',) given"),
    ({"type": "choice", "choice": []}, "response_format: nothing given"),
    ({"type": "regex", "regex": "(a"}, "response_format.regex: "),
    ({"type": "grammar", "grammar": "start: b"}, "response_format.grammar: "),
    (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}},
        "response_format.json_schema.schema: ",
    ),
    ({"type": "json_object", "whitespace": "no"}, "response_format.whitespace: Input should be"),
]


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [*SETTINGS, *((COMPLETIONS, {"response_format": form}, text) for form, text in FORMS)],
)
def test_errors_name_the_field_that_the_client_sent(server, path, fields, message):
    """Not the engine's setting that it becomes, in the message and in param."""
    prompt = {"prompt": "a"} if path == COMPLETIONS else {"messages": ASK["messages"]}
    status, answer = server.post(path, {"model": "tiny", **prompt, **fields})
    error = answer["error"]
    assert status == 400 and error["message"].startswith(message), error
    field = message.split(":")[0].split(",")[0]
    assert error["param"] == field and field.split(".")[0].split("[")[0] in {**prompt, **fields}
    assert not re.search(r"sampling\.|constraint\b|max_new|row 0|prompt 0", error["message"])


def test_likeliest_tokens_and_tools_are_named_by_their_fields():
    chat, completion = wire.Chat(**ASK), wire.Completion(model="tiny", prompt="a")
    text = "top: 20 given; it must be 0 to 9"
    assert chat.refused(text).param == "top_logprobs" != completion.refused(text).param
    assert str(completion.refused(text)) == "logprobs: 20 given; it must be 0 to 9"
    tools = chat.refused("constraint.grammar: at 3(8): failed to compile JSON schema", called=True)
    assert (tools.param, str(tools)[:15]) == ("tools", "tools: at 3(8):")
    assert chat.refused("the model is at rest").param is None


def test_answers_in_a_form(server, client):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema |= {"additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    ask = {"model": "tiny", "max_tokens": 40, "seed": 2}
    got = client.chat.completions.create(
        **ask, messages=[{"role": "user", "content": "a"}], response_format=form
    )
    if got.choices[0].finish_reason == "stop":
        assert json.loads(got.choices[0].message.content)["a"] in (1, 2)
    spaces = dict.fromkeys(map(str, b" \n\t"), 9.0) | {str(ord("}")): 4.0}
    for whitespace, least in (("fixed", 0), ("free", 1)):
        form = {"response_format": {"type": "json_object", "whitespace": whitespace}}
        got = client.completions.create(**ask, prompt="a", n=4, logit_bias=spaces, extra_body=form)
        begun = [choice.text.lstrip()[1:2] for choice in got.choices]
        assert sum(character.isspace() for character in begun) >= least
        assert whitespace == "free" or not any(character.isspace() for character in begun)
    more = {"response_format": {"type": "choice", "choice": ["ab", "cd"]}}
    got = client.completions.create(**ask, prompt="a", n=4, extra_body=more)
    assert {choice.text for choice in got.choices} <= {"ab", "cd"}
    bias = {"65": 100}
    biased = client.completions.create(model="tiny", prompt="a", max_tokens=3, logit_bias=bias)
    assert biased.choices[0].text == "AAA"


def test_a_model_without_a_template_has_no_chat(reciter):  # noqa: F811
    running = worker.Worker(engine.Engine(*reciter, CAPACITY, BYTES))
    served = http_api.Served("tiny", running, BYTES, (BYTES.special["eos"],))
    chat = wire.Chat(model="tiny", messages=[{"role": "user", "content": "a"}])
    answer = http_api._Answer(served, None, chat, None)
    with pytest.raises(ValueError, match="no chat template; use /v1/completions"):
        answer._requests()


@pytest.mark.parametrize(
    ("stream", "after"), [(True, 0), (True, 1), (True, 2), (True, 5), (False, 0)]
)
def test_a_client_that_goes_away_frees_its_slots(server, stream, after):
    """At every event of a stream, and while a whole answer is computed; requests that wait for a
    slot, too."""
    before = server.metric("jaxlm_cancelled_total")
    body = {"model": "tiny", "prompt": "12", "max_tokens": 60, "stream": stream, "n": 9, "seed": 1}
    # nothing ends by itself before: what follows the script is sampled
    body |= {"temperature": 5.0}
    connection = server.connect()
    connection.request("POST", COMPLETIONS, json.dumps(body), {"Content-Type": "application/json"})
    if stream:
        response = connection.getresponse()
        for _ in range(2 * after):  # an event and an empty line each
            response.readline()
        response.close()
    connection.close()
    until = time.monotonic() + 20
    while server.metric("jaxlm_cancelled_total") == before and time.monotonic() < until:
        time.sleep(0.02)
    assert server.metric("jaxlm_cancelled_total") > before
    assert server.settle()
    assert server.engine.running == server.engine.waiting == 0


def test_many_clients_get_what_each_would_alone(server, client):
    def ask(seed):
        got = client.completions.create(
            model="tiny", prompt="x" * (seed % 7), seed=seed, max_tokens=seed % 20 + 1, logprobs=0
        )
        return got.choices[0].text, got.choices[0].logprobs.token_logprobs

    seeds = list(range(16)) * 4
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        got = list(pool.map(ask, seeds))
    assert got == got[:16] * 4
    assert got[5] == ask(5) and server.settle()


def test_models_health_and_metrics(server, client):
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert server.get("/health") == (200, '{"status":"ok"}')
    counts = "jaxlm_generated_tokens_total", 'jaxlm_requests_total{path="/v1/completions",status='
    client.completions.create(model="tiny", prompt="12", max_tokens=3)
    before = [server.metric(counts[0]), server.metric(counts[1] + '"200"}')]
    used = client.completions.create(model="tiny", prompt="12", max_tokens=9).usage
    after = [server.metric(counts[0]), server.metric(counts[1] + '"200"}')]
    assert after == [before[0] + used.completion_tokens, before[1] + 1]
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="12", max_tokens=0)
    assert server.metric(counts[1] + '"400"}') >= 1
    text = server.get("/metrics")[1]
    assert "jaxlm_running 0.0" in text and "jaxlm_time_to_first_token_seconds_bucket" in text


def test_an_engine_that_fails_says_so(reciter):  # noqa: F811
    model, params = reciter
    one = Server(model, jax.tree.map(lambda x: x * jnp.nan, params))
    status, answer = one.post(COMPLETIONS, {"model": "tiny", "prompt": "a"})
    assert status == 503 and "logits are not finite" in answer["error"]["message"]
    assert one.get("/health")[0] == 503
    status, _ = one.post(COMPLETIONS, {"model": "tiny", "prompt": "a"})
    assert status == 503
    one.uvicorn.should_exit = True
    one.thread.join(30)
    assert not one.thread.is_alive()


def test_likeliest_tokens_are_named_when_they_are_asked_for(server, client):
    """k of each place, the sampled one's log-probability among them; none without asking."""
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "h\u00e9"}], "max_tokens": 9}
    got = client.chat.completions.create(
        **ask, temperature=2, logprobs=True, top_logprobs=20, seed=1
    )
    places = got.choices[0].logprobs.content
    assert len(places) == 9
    for place in places:
        scores = [one.logprob for one in place.top_logprobs]
        assert len(scores) == 20 and scores == sorted(scores, reverse=True)
        same = [one for one in place.top_logprobs if one.bytes == place.bytes]
        assert all(one.logprob == place.logprob for one in same)
    plain = client.chat.completions.create(**ask, temperature=2, logprobs=True, seed=1)
    assert all(place.top_logprobs == [] for place in plain.choices[0].logprobs.content)
    named = client.completions.create(
        model="tiny", prompt="h\u00e9", temperature=0, max_tokens=4, logprobs=3
    )
    scores = named.choices[0].logprobs
    assert scores.tokens == ["l", "l", "o", " "] and len(scores.top_logprobs) == 4
    for token, score, place in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs):
        assert len(place) in (2, 3) and place[token] == score == max(place.values())
