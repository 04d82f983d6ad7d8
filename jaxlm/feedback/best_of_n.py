"""Several responses to each prompt: all or each of them, the best of n, or those good enough.

Best of n: its divergence from the model is at most log n - (n - 1) / n nats (Stiennon et al. 2020,
appendix G.3). Good enough, "above": rejection sampling, as for Llama 2 or STaR. Responses are
scored by reward functions (train/rl/reward_functions.py), a reward model's run, or both.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from jaxlm.core import check, keyed_random
from jaxlm.decode.token_sampling import Sampling
from jaxlm.feedback import output, prompt_files, scorers
from jaxlm.feedback.chat_model import Reply, Voice
from jaxlm.feedback.journal import Record
from jaxlm.feedback.prompt_files import Prompt
from jaxlm.train.rl import reward_functions

Keep = Literal["all", "each", "best", "above"]

BELOW = "no response is good enough"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings: how many responses are sampled, and which of them are kept."""

    prompts: str
    """Records with prompts (prompt_files.py): a file, directory or glob."""
    out: str
    """The .jsonl file that records are appended to; those already in it are not made again."""
    count: int = 4
    """Responses to each prompt."""
    keep: Keep = "all"
    """`all` in one record, with their scores if there are any; `each` as a pair to train on; the
    `best` as such a pair; or each that is `above` the threshold, equal ones once."""
    threshold: float = 0.0
    """With keep="above": the least score that is good enough."""
    rewards: tuple[str, ...] = ()
    """Reward functions by name, "file.py:function" or "module:function"; scores are summed."""
    weights: tuple[float, ...] = ()
    """A factor for each reward function; () is 1 for all."""
    reward_model: str | None = None
    """A run directory of objective reward, whose score is added; None adds none."""
    reward_seconds: float = 60.0
    """Seconds that one call of a reward function of your own may take."""
    unfinished: output.Unfinished = "drop"
    """Treatment of responses that were cut at sampling.max_new."""
    seed: int = 0
    """Seed of the samples; with its prompt's id it decides each: no other record matters."""
    batch: int = 64
    """Prompts that are answered together, and then written."""
    sampling: Sampling = Sampling(max_new=256)
    """Sampling of responses; its own seed must stay 0."""


class _Response(NamedTuple):
    """score: None where nothing scores responses."""

    reply: Reply
    seed: int
    score: float | None


def run(voice: Voice, settings: Settings) -> output.Summary:
    """Append records of every prompt that `out` lacks: {prompt, responses, seeds, finish, scores}
    of all responses, or {prompt, completion, score, seed, finish} of those that are kept.

    The summary's facts, where there are scores: their mean, and that of each prompt's best, over
    the prompts of this run.

    Raises: as `critique.run`; `reward_functions.Failed` naming the sample that got no score.
    """
    check.refuse("this feedback cannot start:", problems(settings))
    prompts = prompt_files.read(settings.prompts)
    means: list[tuple[float, float]] = []  # of each prompt: mean and best score
    with _scorer(settings) as scorer:

        def respond(part: Sequence[Prompt], out: output.Output) -> None:
            for prompt, responses in _responded(voice, settings, part, scorer, out):
                scores = [r.score for r in responses if r.score is not None]
                means.extend([(sum(scores) / len(scores), max(scores))] if scores else [])
                for record in _records(settings, prompt, responses, out):
                    out.keep(record)

        provenance = _provenance(voice, settings)
        return output.run(settings, provenance, prompts, respond, lambda records: _facts(means))


def problems(settings: Settings) -> Iterator[str]:
    """Problems of the settings, a line for each field that does not fit."""
    yield from output.problems(settings)
    yield from check.outside("", settings, "count", "batch", least=1)
    yield from check.outside("", settings, "reward_seconds", above=0)
    yield from reward_functions.problems("", settings.rewards, settings.weights)
    scored = bool(settings.rewards) or settings.reward_model is not None
    fits = "'all' or 'each' without rewards or reward_model, which score responses"
    yield from check.problem(
        "keep", settings.keep, scored or settings.keep in ("all", "each"), fits
    )
    ok = settings.keep == "above" and math.isfinite(settings.threshold)
    fits = "a finite number with keep='above', and 0 with all else, which does not read it"
    yield from check.problem("threshold", settings.threshold, ok or settings.threshold == 0, fits)


def _provenance(voice: Voice, settings: Settings) -> Record:
    provenance = output.provenance("sample", voice, settings)
    del provenance["settings"]["reward_seconds"]
    if settings.reward_model is not None:
        provenance["settings"]["reward_model"] = scorers.about(settings.reward_model)
    return provenance


@contextlib.contextmanager
def _scorer(settings: Settings) -> Iterator[scorers.Scorer | None]:
    """Opens the sum of the settings' scorers; None if they name none."""
    with contextlib.ExitStack() as stack:
        parts: list[scorers.Scorer] = []
        if settings.rewards:
            functions = stack.enter_context(
                reward_functions.opened(settings.rewards, settings.weights, settings.reward_seconds)
            )
            parts.append(scorers.functions(functions))
        if settings.reward_model is not None:
            parts.append(scorers.model(settings.reward_model))
        yield scorers.total(parts) if parts else None


def _responded(
    voice: Voice,
    settings: Settings,
    part: Sequence[Prompt],
    scorer: scorers.Scorer | None,
    out: output.Output,
) -> list[tuple[Prompt, list[_Response]]]:
    """The responses to each prompt, scored; prompts that there is no room for are left out."""
    prompts, seeds = [], []  # [prompts x count]
    for prompt in part:
        for i in range(settings.count):
            prompts.append(prompt)
            seeds.append(keyed_random.seed(settings.seed, prompt.id, "response", i))
    talks = [list(prompt.messages) for prompt in prompts]
    replies = out.say(voice, settings.sampling, [prompt.id for prompt in prompts], talks, seeds)
    drawn = zip(prompts, replies, seeds, strict=True)
    sampled = [(prompt, reply, seed) for prompt, reply, seed in drawn if reply is not None]
    scores: list[float | None] = [None] * len(sampled)
    if scorer is not None:
        scores = list(scorer([(prompt, reply) for prompt, reply, _ in sampled]))
    responses: dict[str, tuple[Prompt, list[_Response]]] = {}
    for (prompt, reply, seed), score in zip(sampled, scores, strict=True):
        responses.setdefault(prompt.id, (prompt, []))[1].append(_Response(reply, seed, score))
    return list(responses.values())


def _records(
    settings: Settings, prompt: Prompt, responses: Sequence[_Response], out: output.Output
) -> Iterator[Record]:
    """The records of one prompt; it is dropped, with the reason, if there are none."""
    flaws = [output.flaw(r.reply, settings.unfinished) for r in responses]
    fit = [r for r, flaw in zip(responses, flaws, strict=True) if flaw is None]
    if not fit:
        out.drop(prompt.id, min(flaw for flaw in flaws if flaw is not None))
        return
    if settings.keep == "all":
        yield _all(prompt, fit)
        return
    chosen = fit if settings.keep == "each" else _good(settings, fit)
    for i, r in enumerate(chosen):
        name = prompt.id if i == 0 else f"{prompt.id}+{i}"
        about: dict[str, Any] = {"seed": r.seed, "finish": r.reply.finish}
        about |= {} if r.score is None else {"score": r.score}
        yield {"id": name, **prompt_files.answered(prompt.messages, r.reply.text), **about}
    if not chosen:
        out.drop(prompt.id, BELOW)


def _good(settings: Settings, fit: Sequence[_Response]) -> list[_Response]:
    """The best, or all above the threshold, the best first. One answer that is sampled twice is one
    answer."""
    ranked = sorted(fit, key=lambda r: -_score(r))
    if settings.keep == "best":
        return ranked[:1]
    once: dict[str, _Response] = {}
    for r in ranked:
        if _score(r) >= settings.threshold:
            once.setdefault(r.reply.text, r)
    return list(once.values())


def _all(prompt: Prompt, responses: Sequence[_Response]) -> Record:
    record: Record = {
        "id": prompt.id,
        "prompt": prompt_files.written(prompt.messages),
        "responses": [r.reply.text for r in responses],
        "seeds": [r.seed for r in responses],
        "finish": [r.reply.finish for r in responses],
    }
    if responses[0].score is not None:
        record["scores"] = [_score(r) for r in responses]
    return record


def _score(response: _Response) -> float:
    assert response.score is not None
    return response.score


def _facts(means: Sequence[tuple[float, float]]) -> dict[str, float]:
    if not means:
        return {}
    mean, best = (sum(column) / len(means) for column in zip(*means, strict=True))
    return {"score": mean, "best_score": best}
