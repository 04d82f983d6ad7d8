"""Text in, text out: completions of prompts, and one completion as a stream."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.core import check, param
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import (
    constraints,
    sampling_loop,
    sampling_settings,
    stop_strings,
    token_sampling,
)
from jaxlm.decode.serve import engine
from jaxlm.decode.speculate import speculative_sampling
from jaxlm.models.model import Model


class Completion(NamedTuple):
    """One continuation.

    text: without the stop token's or stop string's own text. tokens: what was generated, those
    included. log_probs, support_log_probs float32: as in `sampling_loop.Generation`, one per token.
    finish: "stop_token", "stop_string" or "length".
    """

    text: str
    tokens: list[int]
    log_probs: np.ndarray
    support_log_probs: np.ndarray
    finish: str


def complete(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    sampling: token_sampling.Sampling | Sequence[token_sampling.Sampling],
    constraint: constraints.Constraint | None = None,
    speculate: speculative_sampling.Speculate | None = None,
) -> list[Completion]:
    """The n continuations of each prompt, prompt by prompt. A prompt is text after the token that
    precedes every document, so it may be empty, or tokens as they are (`prompt_tokens.asked`); the
    tokenizer's eos ends a text as a stop token does. constraint: what every continuation has to
    match that ends before max_new. speculate: how tokens are drafted.

    Raises: as `token_sampling.generate`; with a constraint, as `Engine.submit`; with speculate, as
    `speculative_sampling.generate`, and for a constraint along with it.
    """
    if constraint is not None and speculate is not None:
        raise ValueError("speculate: given with a constraint, which is decoded a token at a time")
    ids = [_ids(tokenizer, prompt) for prompt in prompts]
    settings = [with_eos(tokenizer, s) for s in token_sampling.each(sampling, len(prompts))]
    if constraint is not None:
        return _constrained(model, params, tokenizer, ids, settings, constraint)
    if speculate is None:
        out = token_sampling.generate(model, params, ids, settings, tokenizer)
    else:
        out = speculative_sampling.generate(model, params, ids, settings, speculate, tokenizer)
    texts = []
    each = [(prompt, s) for prompt, s in zip(ids, settings) for _ in range(s.n)]
    for r, (prompt, s) in enumerate(each):
        length, finish = int(out.lengths[r]), int(out.finish[r])
        tokens = out.tokens[r, :length].tolist()
        row = stop_strings.Watch(tokenizer, prompt, s.stop_strings)
        for token in tokens[: length - (finish == sampling_loop.STOP_TOKEN)]:
            row.push(token)
        row.finish()
        texts.append(
            Completion(
                row.text,
                tokens,
                np.asarray(out.log_probs[r, :length]),
                np.asarray(out.support_log_probs[r, :length]),
                token_sampling.FINISH[finish],
            )
        )
    return texts


def _constrained(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompts: Sequence[list[int]],
    settings: Sequence[token_sampling.Sampling],
    constraint: constraints.Constraint,
) -> list[Completion]:
    """`complete` by the engine, which looks at every token."""
    rows, origin = sampling_settings.candidates(settings)
    if any(s.best_of is not None for s in settings):
        raise ValueError("sampling.best_of: given with a constraint; choose among n by yourself")
    token_sampling.check_prompts(model, prompts, list(settings))
    lengths = [len(prompts[p]) + row.max_new for p, row in zip(origin, rows, strict=True)]
    capacity = engine.Capacity(min(8, len(rows)), max(lengths), steps=1)
    running = engine.Engine(model, params, capacity, tokenizer)
    for p, row in zip(origin, rows, strict=True):
        running.submit(prompts[p], row, constraint)
    texts = []
    for part in running.run():
        if part.finish == "failed":
            raise ValueError(part.text)
        logs = np.array(part.log_probs, np.float32), np.array(part.support_log_probs, np.float32)
        texts.append(Completion(part.text, part.tokens, *logs, str(part.finish)))
    return texts


def stream(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompt: str | Sequence[int],
    sampling: token_sampling.Sampling,
    every: int = 8,
    speculate: speculative_sampling.Speculate | None = None,
) -> Iterator[str]:
    """Pieces of the continuation, each as soon as it is certain: never half a character, never the
    beginning of a stop string. Joined they are the text that `complete` gives.

    every: tokens between two looks at the text, or passes where tokens are drafted (speculate); the
    pieces depend on it, the text does not.

    Raises: ValueError at the call for `every` below 1, more than one continuation, and as
    `token_sampling.generate` or `speculative_sampling.generate`.
    """
    if every < 1:
        raise ValueError(f"every: {every} given; at least 1 token is needed between looks")
    sampling_settings.check_single(sampling, "a stream is one text")
    ids = _ids(tokenizer, prompt)
    settings = [with_eos(tokenizer, sampling)]
    token_sampling.check_prompts(model, [ids], settings)
    if speculate is not None:
        check.refuse("", speculative_sampling.problems(model, speculate))
    row = stop_strings.Watch(tokenizer, ids, sampling.stop_strings)

    args = (model, params, [ids], settings, [row], every)

    def pieces() -> Iterator[str]:
        looks = (
            token_sampling.chunks(*args)
            if speculate is None
            else speculative_sampling.chunks(*args, speculate)
        )
        for _ in looks:
            if piece := row.take():
                yield piece
        if piece := row.finish():
            yield piece

    return pieces()


def encode(tokenizer: tokenizers.Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids after the token that precedes every document."""
    return [tokenizers.begin(tokenizer), *tokenizer.encode(prompt)]


def _ids(tokenizer: tokenizers.Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    return encode(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)


def with_eos(
    tokenizer: tokenizers.Tokenizer, s: token_sampling.Sampling
) -> token_sampling.Sampling:
    """The settings with the tokenizer's eos among the stop tokens."""
    eos = tokenizer.special["eos"]
    return s if eos in s.stop_tokens else dataclasses.replace(s, stop_tokens=(*s.stop_tokens, eos))
