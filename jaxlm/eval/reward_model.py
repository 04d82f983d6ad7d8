"""Scores of texts by a trained reward model.

judge = trained_weights.judge("runs/reward")
reward_model.score(judge, [("Which colour is the sky?", "Blue."), ("Which?", "No.")])
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxlm.core import batch as batches
from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.data.records import preference_formats, preferences
from jaxlm.data.templates import template
from jaxlm.data.templates.template import Message
from jaxlm.data.tokenizers import tokenizer as interface
from jaxlm.decode import token_sampling
from jaxlm.models.model import Model
from jaxlm.objectives.preference import reward

# A prompt, and a response to it; a string is the user's or the assistant's one message.
Pair = tuple[str | Sequence[Message], str | Sequence[Message]]

_ROWS = 64  # texts in a forward pass, at most


class Judge(NamedTuple):
    """A reward model, and how texts are written for it: what `judge` returns and `score` reads.
    rewards(params, Batch) -> float32[B], compiled."""

    params: param.Tree
    rewards: Callable[[param.Tree, Batch], jax.Array]
    tokenizer: interface.Tokenizer
    written: template.Template
    seq: int
    vocab: int
    context: int | None


def judge(
    model: Model,
    params: param.Tree,
    vocab: int,
    data: preferences.Preferences,
    tokenizer: interface.Tokenizer,
) -> Judge:
    """A reward model of `vocab` token ids, and texts written by the template and cut to the length
    of the data that it learnt from."""
    written = template.load(data.template, data.tokenizer)
    compiled = jax.jit(functools.partial(reward.score, model))
    return Judge(params, compiled, tokenizer, written, data.seq, vocab, model.context)


def score(judge: Judge, pairs: Sequence[Pair]) -> np.ndarray:
    """float32[n]: the reward of each response to its prompt, read at the text's last token. Longer
    prompts lose their oldest tokens, as in training.

    Raises: ValueError naming the number of a response that is too long or that is empty,
    or whose reward is not finite.
    """
    rewards = score_tokens(judge, [_tokens(judge, n, pair) for n, pair in enumerate(pairs)])
    wrong = np.flatnonzero(~np.isfinite(rewards))
    if len(wrong):
        raise ValueError(f"response {wrong[0]}: its reward is {rewards[wrong[0]]}")
    return rewards


def score_tokens(judge: Judge, texts: Sequence[np.ndarray]) -> np.ndarray:
    """float32[n]: the reward of each text of token ids, finite or not.

    Raises: ValueError for an id that the model does not have.
    """
    rewards = np.zeros(len(texts), np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # rows of like lengths together
    for first in range(0, len(order), _ROWS):
        part = order[first : first + _ROWS]
        longest = len(texts[part[-1]])
        rows = batches.rows(
            [texts[i] for i in part],
            width=token_sampling.bucket(longest),
            count=token_sampling.bucket(len(part), 1),
        )
        interface.check_known(rows.tokens, judge.vocab, "the responses")
        rewards[part] = np.asarray(judge.rewards(judge.params, rows))[: len(part)]
    return rewards


def _tokens(judge: Judge, number: int, pair: Pair) -> np.ndarray:
    prompt, response = (
        (Message(role, text),) if isinstance(text, str) else tuple(text)
        for role, text in zip(("user", "assistant"), pair)
    )
    try:
        if not response or response[-1].role != "assistant":
            raise preference_formats.Unusable("it does not end with the assistant's message")
        texts = preferences.encode(prompt, [response], judge.written, judge.tokenizer)
        return preferences.fit(texts, judge.seq)[0].tokens
    except ValueError as error:
        raise ValueError(f"response {number}: {error}") from error
