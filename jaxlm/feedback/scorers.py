"""Scores of responses: by functions, by a reward model, or by the sum of both."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlm.data.templates import template
from jaxlm.eval import reward_model
from jaxlm.feedback import output
from jaxlm.feedback.chat_model import Reply
from jaxlm.feedback.prompt_files import Prompt
from jaxlm.objectives.preference import reward as objective
from jaxlm.train import trained_weights
from jaxlm.train.rl import reward_functions
from jaxlm.train.run import run as runs

Scorer = Callable[[Sequence[tuple[Prompt, Reply]]], list[float]]


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
    saved = trained_weights.load(folder)
    if not isinstance(saved.run.objective, objective.Config):
        raise ValueError(f"reward_model: {folder} is not a run of objective reward")
    return {"run": runs.digest(saved.run), "step": saved.step}


def model(folder: str) -> Scorer:
    """A reward model's score, read at the last token of the conversation in its own template.

    Raises: as `about`; ValueError naming the prompt where a text exceeds the model's positions.
    """
    judge = trained_weights.judge(folder)

    def scored(given: Sequence[tuple[Prompt, Reply]]) -> list[float]:
        texts = []
        for prompt, reply in given:
            conversation = [*prompt.messages, output.assistant(reply.text)]
            tokens = template.encode(judge.written, judge.tokenizer, conversation).tokens
            if judge.context is not None and len(tokens) > judge.context:
                raise ValueError(
                    f"{prompt.record.origin}: prompt and response are {len(tokens)} tokens, the "
                    f"reward model {folder} has {judge.context} positions"
                )
            texts.append(tokens)
        scores = reward_model.score_tokens(judge, texts)
        for (prompt, _), value in zip(given, scores):
            if not np.isfinite(value):
                raise ValueError(
                    f"{prompt.record.origin}: the reward model {folder} gives it the score {value}"
                )
        return scores.tolist()

    return scored
