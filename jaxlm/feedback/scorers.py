"""Scores of responses: by functions, by a reward model, or by the sum of both."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.data.records import preferences
from jaxlm.data.templates import template
from jaxlm.decode import token_sampling
from jaxlm.feedback import output
from jaxlm.feedback.chat_model import Said
from jaxlm.feedback.prompt_files import Ask
from jaxlm.models.layers import value_head
from jaxlm.models.model import Model
from jaxlm.objectives import log_probs
from jaxlm.objectives.preference import reward as objective
from jaxlm.train import trained_weights
from jaxlm.train.rl import reward_functions
from jaxlm.train.run import directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

Scorer = Callable[[Sequence[tuple[Ask, Said]]], list[float]]

_ROWS = 64  # texts that a reward model reads at once


def total(parts: Sequence[Scorer]) -> Scorer:
    """The sum of several."""

    def summed(given: Sequence[tuple[Ask, Said]]) -> list[float]:
        return [sum(each) for each in zip(*(part(given) for part in parts), strict=True)]

    return summed


def functions(rewards: reward_functions.Rewards) -> Scorer:
    """Scorer by reward functions; they see the prompt's last message, and its record."""

    def scored(given: Sequence[tuple[Ask, Said]]) -> list[float]:
        samples = [
            reward_functions.Sample(a.messages[-1].text, s.text, a.record.value, s.whole)
            for a, s in given
        ]
        return rewards.score(samples).score.tolist()

    return scored


def about(folder: str) -> dict[str, Any]:
    """Identity of a reward model, as records store it: the digest of its run, and its step.

    Raises: ValueError for a run of another objective; as `trained_weights.load`.
    """
    found = trained_weights.load(pathlib.Path(folder).expanduser())
    _check(found.run, folder)
    return {"run": runs.digest(found.run), "step": found.step}


def model(folder: str) -> Scorer:
    """A reward model's score, read at the last token of the conversation in its own template.

    Raises: as `about`; ValueError naming the prompt where a text exceeds the model's positions.
    """
    place = pathlib.Path(folder).expanduser()
    found = trained_weights.load(place)
    _check(found.run, folder)
    data = found.run.data
    assert isinstance(data, preferences.Preferences)  # what the objective reads
    tokenizer = directory.tokenizer(place, found.run)
    chat = template.load(data.template, data.tokenizer)
    fixed = found.model._replace(spec=None)

    def scored(given: Sequence[tuple[Ask, Said]]) -> list[float]:
        texts = []
        for ask, said in given:
            whole = [*ask.messages, output.assistant(said.text)]
            texts.append(template.encode(chat, tokenizer, whole).tokens)
            room = found.model.context
            if room is not None and len(texts[-1]) > room:
                raise ValueError(
                    f"{ask.record.origin}: prompt and response are {len(texts[-1])} tokens, the "
                    f"reward model {folder} has {room} positions"
                )
        scores = np.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for at in range(0, len(order), _ROWS):
            part = order[at : at + _ROWS]
            rows = _batch([texts[i] for i in part])
            scores[part] = np.asarray(_scores(fixed, found.params, rows))[: len(part)]
        for (ask, _), value in zip(given, scores):
            if not np.isfinite(value):
                raise ValueError(
                    f"{ask.record.origin}: the reward model {folder} gives it the score {value}"
                )
        return scores.tolist()

    return scored


def _check(run: Run, folder: str) -> None:
    if not isinstance(run.objective, objective.Config):
        raise ValueError(f"reward_model: {folder} is no run of objective reward")


def _batch(texts: Sequence[np.ndarray]) -> Batch:
    rows, width = token_sampling.bucket(len(texts), 1), token_sampling.bucket(max(map(len, texts)))
    tokens, targets, segments, positions = np.zeros((4, rows, width), np.int32)
    for r, text in enumerate(texts):
        tokens[r, : len(text)], segments[r, : len(text)] = text, 1
        positions[r, : len(text)] = np.arange(len(text))
    return Batch(tokens, targets, np.zeros((rows, width), np.float32), segments, positions)


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: Model, params: param.Tree, rows: Batch) -> jax.Array:
    x = log_probs.forward(model, params, rows).x
    return value_head.at_end(params["score"], x, rows.segments)
