"""A chat model: its replies in conversations, and the log-probabilities of given replies."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.data import pretraining
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenizers import tokenizer as interface
from jaxlm.decode import sampling_loop, stop_strings, token_sampling
from jaxlm.models.model import Model
from jaxlm.objectives import log_probs
from jaxlm.parallel.plan import Plan
from jaxlm.train import trained_weights
from jaxlm.train.run import directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

Conversation = Sequence[Message]


class Said(NamedTuple):
    """A message of the model: its text, and why it ended, as `token_sampling.FINISH` names it. It
    is whole unless that is "length"."""

    text: str
    finish: str

    @property
    def whole(self) -> bool:
        """Whether the model ended it itself."""
        return self.finish != "length"


class Voice(NamedTuple):
    """Interface of a model to the modules of this folder; a test may script one.

    say(conversations, settings) -> the model's next message in each. weigh(conversations, choices)
    -> float64[n, k]: the log-probability that its next message begins with each of k texts.
    fits(conversation, new) -> whether the model has room for it and `new` tokens more.
    about: JSON that records store about the model.
    """

    say: Callable[[Sequence[Conversation], Sequence[token_sampling.Sampling]], list[Said]]
    weigh: Callable[[Sequence[Conversation], Sequence[str]], np.ndarray]
    fits: Callable[[Conversation, int], bool]
    about: dict[str, Any]


def load(
    folder: str | pathlib.Path,
    checkpoint: trained_weights.Which = "last",
    layout: str | None = None,
    rows: int = 64,
) -> Voice:
    """The Voice of a run directory.

    layout: how conversations become tokens, a template's name or file; None is what the run was
    trained with, "plain" for one that read text, for which alone another fits. rows: conversations
    that are read at once; replies do not depend on it.

    Raises: as `trained_weights.load`; ValueError for a model that does not continue texts.
    """
    if rows < 1:
        raise ValueError(f"rows: {rows} given; at least 1 is needed")
    path = pathlib.Path(folder).expanduser()
    found = trained_weights.load(path, checkpoint)
    if found.model.kind != "decoder":
        raise ValueError(f"{folder}: this model does not continue texts, so it says nothing")
    tokenizer = directory.tokenizer(path, found.run)
    trained_weights.refuse_template(path, found.run, layout)
    chat = template.load(_layout(found.run) if layout is None else layout, found.run.data.tokenizer)
    stops = (*template.stops(chat, tokenizer), *trained_weights.stop_tokens(path))
    about = {
        "folder": str(folder),
        "step": found.step,
        "run": runs.digest(found.run),
        "checkpoint": checkpoint,
        "template": chat.name,
    }
    return of(found.model, found.params, tokenizer, chat, stops, about, rows)


def of(
    model: Model,
    params: param.Tree,
    tokenizer: interface.Tokenizer,
    chat: template.Template,
    stops: Sequence[int],
    about: dict[str, Any],
    rows: int = 64,
) -> Voice:
    """The Voice of a model and its weights, which are prepared for decoding once, here. stops: the
    ids that end a message of the model."""
    ready, fixed = token_sampling.prepare(model, params), model._replace(spec=None)
    ends = tuple(dict.fromkeys(stops))
    turn_ends = set(template.stops(chat, tokenizer))

    def say(
        conversations: Sequence[Conversation], settings: Sequence[token_sampling.Sampling]
    ) -> list[Said]:
        prompts = [template.prompt(chat, tokenizer, c).tolist() for c in conversations]
        settings = [_ending(s, ends) for s in settings]
        said: list[Said | None] = [None] * len(prompts)
        for part in _alike([len(p) for p in prompts], rows):
            asked, how = [prompts[i] for i in part], [settings[i] for i in part]
            out = token_sampling.generate(model, ready, asked, how, tokenizer)
            for row, i in enumerate(part):
                said[i] = _said(tokenizer, prompts[i], settings[i], out, row)
        return [s for s in said if s is not None]

    def weigh(conversations: Sequence[Conversation], choices: Sequence[str]) -> np.ndarray:
        texts = [
            text for c in conversations for text in _choices(chat, tokenizer, c, choices, turn_ends)
        ]
        found = np.zeros(len(texts))
        for part in _alike([len(t.tokens) for t in texts], rows):
            found[part] = _weighed(fixed, ready, [texts[i] for i in part])
        return found.reshape(len(conversations), len(choices))

    def fits(conversation: Conversation, new: int) -> bool:
        size = len(template.prompt(chat, tokenizer, conversation))
        return model.context is None or size + new <= model.context

    return Voice(say, weigh, fits, about)


def _layout(run: Run) -> str:
    return "plain" if isinstance(run.data, pretraining.Data) else run.data.template


def _ending(s: token_sampling.Sampling, ends: tuple[int, ...]) -> token_sampling.Sampling:
    return dataclasses.replace(s, stop_tokens=tuple(dict.fromkeys((*s.stop_tokens, *ends))))


def _alike(lengths: list[int], rows: int) -> list[list[int]]:
    """The places of all rows, in groups of at most `rows` of similar length."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[at : at + rows] for at in range(0, len(order), rows)]


def _said(
    tokenizer: interface.Tokenizer,
    prompt: list[int],
    settings: token_sampling.Sampling,
    out: sampling_loop.Generation,
    row: int,
) -> Said:
    length, finish = int(out.lengths[row]), int(out.finish[row])
    text = stop_strings.Watch(tokenizer, prompt, settings.stop_strings)
    for token in out.tokens[row, : length - (finish == sampling_loop.STOP_TOKEN)]:
        text.push(int(token))
    text.finish()
    return Said(text.text, token_sampling.FINISH[finish])


class _Choice(NamedTuple):
    """The tokens of a conversation and a choice after it; [start, end) are the choice's."""

    tokens: np.ndarray
    start: int
    end: int


def _choices(
    chat: template.Template,
    tokenizer: interface.Tokenizer,
    conversation: Conversation,
    choices: Sequence[str],
    stops: set[int],
) -> list[_Choice]:
    found = []
    for choice in choices:
        said = [*conversation, Message("assistant", choice)]
        (whole,) = template.documents(chat, tokenizer, said, [len(conversation)])
        start = whole.spans[0].start
        # the turn's end is not part of the text: a model that goes on after "(A)" has chosen, too
        ends = (i for i in range(start, len(whole.tokens)) if int(whole.tokens[i]) in stops)
        end = next(ends, len(whole.tokens))
        found.append(_Choice(whole.tokens[:end], start, end))
    return found


def _weighed(model: Model, params: param.Tree, texts: list[_Choice]) -> np.ndarray:
    """float64[n]: the log-probability of each choice, summed over its tokens."""
    rows, width = (
        token_sampling.bucket(len(texts), 1),
        token_sampling.bucket(max(len(t.tokens) for t in texts)),
    )
    tokens, targets, segments, positions = np.zeros((4, rows, width), np.int32)
    weight = np.zeros((rows, width), np.float32)
    for r, (row, start, end) in enumerate(texts):
        tokens[r, : len(row)], targets[r, : len(row) - 1] = row, row[1:]
        segments[r, : len(row)], positions[r, : len(row)] = 1, np.arange(len(row))
        weight[r, start - 1 : end - 1] = 1
    found = np.asarray(_sums(model, params, Batch(tokens, targets, weight, segments, positions)))
    if not np.isfinite(found).all():
        raise FloatingPointError("the model's logits are not finite; are the weights?")
    return found[: len(texts)].astype(np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _sums(model: Model, params: param.Tree, rows: Batch) -> jax.Array:
    x = log_probs.forward(model, params, rows).x
    found = log_probs.log_probs(model, params, x, rows.targets, Plan())
    return jnp.sum(jnp.where(rows.weight > 0, found, 0.0), axis=1)
