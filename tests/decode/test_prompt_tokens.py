"""A prompt's tokens are those of the text that its template writes by hand."""

import numpy as np
import pytest

from jaxlm.data import pretraining
from jaxlm.data.records import chats
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenizers import bytelevel, tokenizer
from jaxlm.decode import prompt_tokens, token_sampling

BYTES = bytelevel.Bytes()
CHAT = chats.Chats("x", template="vicuna", system="Be brief.")
TALK = [Message("user", "Hi"), Message("assistant", "Yes"), Message("user", "So?")]
VICUNA = "USER: Hi ASSISTANT: Yes{eos}USER: So? ASSISTANT:"


@pytest.mark.parametrize(
    "data, layout, messages, text",
    [
        (pretraining.Data(), None, TALK[:1], "Hi"),
        (pretraining.Data(), "vicuna", TALK, VICUNA),
        (CHAT, None, TALK, f"Be brief. {VICUNA}"),
        (
            CHAT,
            "zephyr",
            TALK[:1],
            "<|system|>\nBe brief.{eos}\n<|user|>\nHi{eos}\n<|assistant|>\n",
        ),
        (chats.Chats("x", template="vicuna"), None, TALK, VICUNA),
    ],
)
def test_a_prompt_is_written_by_the_data_or_another_layout(data, layout, messages, text):
    turn = prompt_tokens.asked(data, prompt_tokens.written(data, layout), BYTES, messages)
    parts = [list(part.encode()) for part in text.split("{eos}")]
    eos = BYTES.special["eos"]
    want = [tokenizer.begin(BYTES), *(i for part in parts[:-1] for i in (*part, eos)), *parts[-1]]
    np.testing.assert_array_equal(turn.tokens, want)


def test_stops_are_added_once_after_those_that_are_set():
    sampling = token_sampling.Sampling(stop_tokens=(7, 3), max_new=5)
    assert prompt_tokens.stopping(sampling, (3, 9, 9)).stop_tokens == (7, 3, 9)
    assert prompt_tokens.stopping(sampling, (3, 9)).max_new == 5
