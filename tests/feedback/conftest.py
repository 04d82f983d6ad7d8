"""Voices that are scripted, and one of a tiny random model."""

import json

import numpy as np
import pytest

from jaxlm import models
from jaxlm.data.templates import template
from jaxlm.data.tokenizers import bytelevel
from jaxlm.feedback import chat_model
from jaxlm.models import llama
from tests import programs

ABOUT = {"folder": "runs/x", "step": 7, "run": "abc", "checkpoint": "last", "template": "plain"}


class Script:
    """A voice that answers by rule, and remembers what it was asked. answer(conversation, seed) ->
    text or Reply; odds(conversation) -> log-probabilities of the choices."""

    def __init__(self, answer=None, odds=None, room=10**9, about=ABOUT):
        self.answer, self.odds, self.room = answer, odds, room
        self.asked = []
        self.voice = chat_model.Voice(self.say, self.weigh, self.fits, about)

    def say(self, conversations, settings):
        self.asked += conversations
        found = [self.answer(list(c), s.seed) for c, s in zip(conversations, settings, strict=True)]
        return [chat_model.Reply(x, "stop_token") if isinstance(x, str) else x for x in found]

    def weigh(self, conversations, choices):
        self.asked += conversations
        return np.array([self.odds(list(c)) for c in conversations])

    def fits(self, conversation, new):
        return sum(len(m.text) for m in conversation) + new <= self.room


@pytest.fixture
def script():
    return Script


@pytest.fixture
def write(tmp_path):
    """A function that writes records to a file of this name, and returns its path."""

    def written(name, *values):
        path = tmp_path / name
        path.write_text("".join(json.dumps(v) + "\n" for v in values), "utf-8")
        return str(path)

    return written


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture
def read():
    return lines


@pytest.fixture(scope="session")
def random_model():
    """(model, params, tokenizer, template) of a tiny model that reads bytes, its weights random."""
    cfg = llama.Config(vocab=259, embed=16, layers=2, heads=2, kv=1, head=8, ffn=24)
    model = models.build(cfg)
    params = programs.drawn(model.spec, 1)
    return model, params, bytelevel.Bytes(), template.load("plain", "bytes")
