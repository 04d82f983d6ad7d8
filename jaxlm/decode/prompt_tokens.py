"""Prompts of a run's model as tokens: a text as its documents are, or a turn of a conversation as
its template writes it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from jaxlm.core import check, param
from jaxlm.data import kinds, pretraining
from jaxlm.data.records import chats
from jaxlm.data.templates import call_forms, template
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import completions, token_sampling
from jaxlm.decode.search.beam_search import Beams
from jaxlm.decode.search.contrastive_search import Contrastive
from jaxlm.models.model import Model

Settings = TypeVar("Settings", bound=token_sampling.Sampling | Beams | Contrastive)


class Turn(NamedTuple):
    """tokens: the prompt of the answer. stops: the ids that end it, other than eos. form: how it
    calls tools, where it has some."""

    tokens: list[int]
    stops: tuple[int, ...]
    form: call_forms.Form | None = None


def written(data: kinds.AnyData, layout: str | None = None) -> template.Template | None:
    """The template of a run's conversations, or that of another layout (`template.load`); None for
    a run of text. Raises: as `template.load`."""
    if layout is not None:
        return template.load(layout, data.tokenizer)
    if isinstance(data, pretraining.Data):
        return None
    return template.load(data.template, data.tokenizer)


def asked(
    data: kinds.AnyData,
    made: template.Template | None,
    tokenizer: tokenizers.Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Any] = (),
) -> Turn:
    """The Turn before the model's next words: the text of the one message where `made` is None;
    else the conversation so far, with the run's system message where it has none. tools:
    definitions of functions, as OpenAI has them, which the template writes.

    Raises: ValueError as `template.prompt`, and for tools as `call_forms.of`.
    """
    if made is None:
        check.field("tools", tools, not tools, "[]: this run has no chat template")
        (only,) = messages
        return Turn(completions.encode(tokenizer, only.text), ())
    own = any(message.role == "system" for message in messages)
    if isinstance(data, chats.Chats) and data.system is not None and not own:
        messages = [Message("system", data.system), *messages]
    form = None
    if tools:
        made = template.given(made, {"tools": list(tools)})
        form = call_forms.of(made, tokenizer)
    tokens = template.prompt(made, tokenizer, messages).tolist()
    return Turn(tokens, template.stops(made, tokenizer), form)


def stopping(sampling: Settings, stops: Sequence[int]) -> Settings:
    """The settings with these ids among those that end a text."""
    ends = tuple(dict.fromkeys((*sampling.stop_tokens, *stops)))
    return dataclasses.replace(sampling, stop_tokens=ends)


def turns(
    data: kinds.AnyData, tokenizer: tokenizers.Tokenizer, prompts: Sequence[str]
) -> list[Turn]:
    """Each prompt as a run's data has it: a text, or a user's words. Raises: as `asked`."""
    layout = written(data)
    return [asked(data, layout, tokenizer, [Message("user", prompt)]) for prompt in prompts]


def answered(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    turns: Sequence[Turn],
    sampling: token_sampling.Sampling,
) -> list[completions.Completion]:
    """The continuation of each turn, which its stops end. Raises: as `completions.complete`."""
    settings = [stopping(sampling, one.stops) for one in turns]
    prompts = [one.tokens for one in turns]
    return completions.complete(model, params, tokenizer, prompts, settings)
