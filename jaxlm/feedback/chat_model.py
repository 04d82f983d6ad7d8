"""A chat model: its replies in conversations, and the log-probabilities of given replies."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import batch as batches
from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.core.remote import staging
from jaxlm.data import pretraining
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenizers import tokenizer as interface
from jaxlm.decode import sampling_loop, sampling_settings, stop_strings, token_sampling
from jaxlm.models.model import Model
from jaxlm.objectives import log_probs
from jaxlm.parallel.plan import Plan
from jaxlm.train import trained_weights
from jaxlm.train.run import directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

Conversation = Sequence[Message]


class Reply(NamedTuple):
    """A message of the model: its text, and why it ended, as `token_sampling.FINISH` names it."""

    text: str
    finish: str

    @property
    def finished(self) -> bool:
        """Whether the model ended it itself, in place of being cut."""
        return self.finish != "length"


class Voice(NamedTuple):
    """Interface of a model to the modules of this folder; a test may script one.

    say(conversations, settings) -> the model's next message in each. weigh(conversations, choices)
    -> float64[n, k]: the log-probability that its next message begins with each of k texts.
    fits(conversation, new) -> whether the model has room for it and `new` tokens more.
    about: JSON that records store about the model.
    """

    say: Callable[[Sequence[Conversation], Sequence[token_sampling.Sampling]], list[Reply]]
    weigh: Callable[[Sequence[Conversation], Sequence[str]], np.ndarray]
    fits: Callable[[Conversation, int], bool]
    about: dict[str, Any]


def load(
    folder: str | os.PathLike[str],
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
    path = staging.local(folder)
    saved = trained_weights.load(path, checkpoint)
    if saved.model.kind != "decoder":
        raise ValueError(f"{folder}: this model does not continue texts; a decoder is needed")
    tokenizer = directory.tokenizer(path, saved.run)
    trained_weights.refuse_template(path, saved.run, layout)
    chat = template.load(_layout(saved.run) if layout is None else layout, saved.run.data.tokenizer)
    stops = (*template.stops(chat, tokenizer), *trained_weights.stop_tokens(path))
    about = {
        "folder": str(folder),
        "step": saved.step,
        "run": runs.digest(saved.run),
        "checkpoint": checkpoint,
        "template": chat.name,
    }
    return of(saved.model, saved.params, tokenizer, chat, stops, about, rows)


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
    ) -> list[Reply]:
        prompts = [template.prompt(chat, tokenizer, c).tolist() for c in conversations]
        settings = [_ending(s, ends) for s in settings]
        replies: dict[int, Reply] = {}
        for part in groups([len(p) for p in prompts], rows):
            out = token_sampling.generate(
                model, ready, [prompts[i] for i in part], [settings[i] for i in part], tokenizer
            )
            for row, i in enumerate(part):
                replies[i] = _reply(tokenizer, prompts[i], settings[i], out, row)
        return [replies[i] for i in range(len(prompts))]

    def weigh(conversations: Sequence[Conversation], choices: Sequence[str]) -> np.ndarray:
        texts: list[_Choice] = []  # [conversations x choices]
        for conversation in conversations:
            texts += _choices(chat, tokenizer, conversation, choices, turn_ends)
        log_odds = np.zeros(len(texts))
        for part in groups([len(t.tokens) for t in texts], rows):
            log_odds[part] = _weighed(fixed, ready, [texts[i] for i in part])
        return log_odds.reshape(len(conversations), len(choices))

    def fits(conversation: Conversation, new: int) -> bool:
        size = len(template.prompt(chat, tokenizer, conversation))
        return model.context is None or size + new <= model.context

    return Voice(say, weigh, fits, about)


def _layout(run: Run) -> str:
    return "plain" if isinstance(run.data, pretraining.Data) else run.data.template


def _ending(s: token_sampling.Sampling, ends: tuple[int, ...]) -> token_sampling.Sampling:
    sampling_settings.check_single(s, "each conversation has one reply")
    return dataclasses.replace(s, stop_tokens=tuple(dict.fromkeys((*s.stop_tokens, *ends))))


def groups(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """The indices of all texts, in groups of at most `rows` of similar length."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[at : at + rows] for at in range(0, len(order), rows)]


def _reply(
    tokenizer: interface.Tokenizer,
    prompt: list[int],
    settings: token_sampling.Sampling,
    out: sampling_loop.Generation,
    row: int,
) -> Reply:
    length, finish = int(out.lengths[row]), int(out.finish[row])
    text = stop_strings.Watch(tokenizer, prompt, settings.stop_strings)
    for token in out.tokens[row, : length - (finish == sampling_loop.STOP_TOKEN)]:
        text.push(int(token))
    text.finish()
    return Reply(text.text, token_sampling.FINISH[finish])


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
    encoded = []
    for choice in choices:
        answered = [*conversation, Message("assistant", choice)]
        (document,) = template.documents(chat, tokenizer, answered, [len(conversation)])
        tokens, start = document.tokens, document.spans[0].start
        # the turn's end is not part of the text: a model that goes on after "(A)" has chosen, too
        ends = (i for i in range(start, len(tokens)) if int(tokens[i]) in stops)
        end = next(ends, len(tokens))
        encoded.append(_Choice(tokens[:end], start, end))
    return encoded


def _weighed(model: Model, params: param.Tree, texts: list[_Choice]) -> np.ndarray:
    """float64[n]: the log-probability of each choice, summed over its tokens."""
    # sizes are rounded up, so that few are compiled
    count, width = (
        token_sampling.bucket(len(texts), 1),
        token_sampling.bucket(max(len(text.tokens) for text in texts)),
    )
    batch = batches.rows([text.tokens for text in texts], width, count)
    for r, (_, start, end) in enumerate(texts):
        batch.weight[r, start - 1 : end - 1] = 1  # on targets
    sums = np.asarray(_sums(model, params, batch))
    if not np.isfinite(sums).all():
        raise FloatingPointError("the model's logits are not finite; are the weights?")
    return sums[: len(texts)].astype(np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _sums(model: Model, params: param.Tree, rows: Batch) -> jax.Array:
    x = log_probs.forward(model, params, rows).x
    each = log_probs.log_probs(model, params, x, rows.targets, Plan())  # [B, T]
    return jnp.sum(jnp.where(rows.weight > 0, each, 0.0), axis=1)
