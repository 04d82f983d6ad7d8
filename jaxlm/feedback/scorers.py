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
from jaxlm.feedback import output
from jaxlm.feedback.chat_model import Reply, groups, padded
from jaxlm.feedback.prompt_files import Prompt
from jaxlm.models.layers import value_head
from jaxlm.models.model import Model
from jaxlm.objectives import log_probs
from jaxlm.objectives.preference import reward as objective
from jaxlm.train import trained_weights
from jaxlm.train.rl import reward_functions
from jaxlm.train.run import directory
from jaxlm.train.run import run as runs
from jaxlm.train.run.run import Run

Scorer = Callable[[Sequence[tuple[Prompt, Reply]]], list[float]]

_ROWS = 64  # texts that a reward model reads at once


def total(parts: Sequence[Scorer]) -> Scorer:
    """The sum of several."""

    def summed(given: Sequence[tuple[Prompt, Reply]]) -> list[float]:
        columns = [part(given) for part in parts]
        return [sum(scores) for scores in zip(*columns, strict=True)]

    return summed


def functions(rewards: reward_functions.Rewards) -> Scorer:
    """Scorer by reward functions; they see the prompt's last message, and its record."""

    def scored(given: Sequence[tuple[Prompt, Reply]]) -> list[float]:
        samples = [
            reward_functions.Sample(
                prompt.messages[-1].text, reply.text, prompt.record.value, reply.finished
            )
            for prompt, reply in given
        ]
        return rewards.score(samples).score.tolist()

    return scored


def about(folder: str) -> dict[str, Any]:
    """Identity of a reward model, as records store it: the digest of its run, and its step.

    Raises: ValueError for a run of another objective; as `trained_weights.load`.
    """
    saved = trained_weights.load(pathlib.Path(folder).expanduser())
    _check(saved.run, folder)
    return {"run": runs.digest(saved.run), "step": saved.step}


def model(folder: str) -> Scorer:
    """A reward model's score, read at the last token of the conversation in its own template.

    Raises: as `about`; ValueError naming the prompt where a text exceeds the model's positions.
    """
    place = pathlib.Path(folder).expanduser()
    saved = trained_weights.load(place)
    _check(saved.run, folder)
    data = saved.run.data
    assert isinstance(data, preferences.Preferences)  # what the objective reads
    tokenizer = directory.tokenizer(place, saved.run)
    chat = template.load(data.template, data.tokenizer)
    fixed = saved.model._replace(spec=None)

    def scored(given: Sequence[tuple[Prompt, Reply]]) -> list[float]:
        texts = []
        for prompt, reply in given:
            conversation = [*prompt.messages, output.assistant(reply.text)]
            texts.append(template.encode(chat, tokenizer, conversation).tokens)
            room = saved.model.context
            if room is not None and len(texts[-1]) > room:
                raise ValueError(
                    f"{prompt.record.origin}: prompt and response are {len(texts[-1])} tokens, the "
                    f"reward model {folder} has {room} positions"
                )
        scores = np.zeros(len(texts))
        for part in groups([len(text) for text in texts], _ROWS):
            rows = padded([texts[i] for i in part])
            scores[part] = np.asarray(_scores(fixed, saved.params, rows))[: len(part)]
        for (prompt, _), value in zip(given, scores):
            if not np.isfinite(value):
                raise ValueError(
                    f"{prompt.record.origin}: the reward model {folder} gives it the score {value}"
                )
        return scores.tolist()

    return scored


def _check(run: Run, folder: str) -> None:
    if not isinstance(run.objective, objective.Config):
        raise ValueError(f"reward_model: {folder} is not a run of objective reward")


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: Model, params: param.Tree, rows: Batch) -> jax.Array:
    x = log_probs.forward(model, params, rows).x
    return value_head.at_end(params["score"], x, rows.segments)
