"""Critique and revision: a model revises its own answers under a principle drawn each round.

Bai et al. 2022 ("Constitutional AI"), section 3. The pairs of prompt and last revision are the
training data; nothing between them is. A round starts from the answer of the round before, which
takes the place of the first one, so that a conversation does not grow with the rounds.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxlm.core import check, keyed_random
from jaxlm.data.templates.template import Message
from jaxlm.decode.token_sampling import Sampling
from jaxlm.feedback import output, principles, prompt_files
from jaxlm.feedback.chat_model import Reply, Voice
from jaxlm.feedback.journal import Record
from jaxlm.feedback.principles import Constitution, Principle
from jaxlm.feedback.prompt_files import Prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings: which answers are revised, and how."""

    prompts: str
    """Records with prompts (prompt_files.py): a file, directory or glob."""
    out: str
    """The .jsonl file that records are appended to; those already in it are not made again."""
    constitution: str = principles.DEFAULT
    """A file of principles (principles.py), or "default"."""
    rounds: int = 1
    """Critiques and revisions of each answer, under a principle drawn anew each time."""
    critique: bool = True
    """Whether the model criticises before it revises."""
    examples: int = 0
    """The constitution's worked examples to show before each request: for models that do not
    follow requests yet."""
    unfinished: output.Unfinished = "drop"
    """Treatment of an answer whose last revision was cut at sampling.max_new."""
    seed: int = 0
    """Seed of principles and samples; with its prompt's id it decides each: no other record
    matters."""
    batch: int = 256
    """Prompts that go through all rounds together, and are then written."""
    sampling: Sampling = Sampling(max_new=256)
    """Sampling of answers, critiques and revisions; its own seed must stay 0."""


class _Draft(NamedTuple):
    """A draft of an answer. first: the reply it began from; log: the record of its rounds."""

    prompt: Prompt
    first: Reply
    answer: Reply
    log: tuple[Record, ...]


def run(voice: Voice, settings: Settings) -> output.Summary:
    """Append {prompt, completion, response, rounds, ...} of every prompt that `out` lacks.

    completion is the last revision, what the model is to be trained on; response is the first
    answer. A conversation is written as messages, with the last revision as its end.

    Raises: ValueError and FileNotFoundError, before anything is sampled, for settings, prompts,
    principles and records that do not fit.
    """
    constitution = principles.load(settings.constitution)
    check.refuse("this feedback cannot start:", problems(settings, constitution))
    prompts = prompt_files.read(settings.prompts)
    provenance = output.provenance(
        "revise", voice, settings, constitution=principles.digest(constitution)
    )

    def revise(part: Sequence[Prompt], out: output.Output) -> None:
        drafts = _answered(voice, settings, part, out)
        for number in range(settings.rounds):
            drafts = _round(voice, settings, constitution, drafts, number, out)
        for draft in drafts:
            if out.passes(draft.prompt.id, draft.answer, settings.unfinished):
                out.keep(_record(settings, draft))

    return output.run(settings, provenance, prompts, revise)


def problems(settings: Settings, constitution: Constitution) -> Iterator[str]:
    """Problems of the settings, a line for each field that does not fit."""
    yield from output.problems(settings)
    yield from check.outside("", settings, "rounds", "batch", least=1)
    shown, have = settings.examples, len(constitution.examples)
    fits = f"0 to {have}, the examples of {settings.constitution}"
    yield from check.problem("examples", shown, 0 <= shown <= have, fits)


def _answered(
    voice: Voice, settings: Settings, part: Sequence[Prompt], out: output.Output
) -> list[_Draft]:
    seeds = [keyed_random.seed(settings.seed, prompt.id, "response") for prompt in part]
    talks = [list(prompt.messages) for prompt in part]
    replies = out.say(voice, settings.sampling, [p.id for p in part], talks, seeds)
    return [_Draft(p, r, r, ()) for p, r in zip(part, replies, strict=True) if r is not None]


def _round(
    voice: Voice,
    settings: Settings,
    constitution: Constitution,
    drafts: list[_Draft],
    number: int,
    out: output.Output,
) -> list[_Draft]:
    """The drafts after one more critique and revision, less those there is no room for."""
    ids = [d.prompt.id for d in drafts]
    drawn = [_principle(settings, constitution, i, number) for i in ids]
    shown = examples(constitution, settings.examples, settings.critique)
    talks = [[*shown, *d.prompt.messages, output.assistant(d.answer.text)] for d in drafts]
    critiques: list[Reply | None] = [_NONE] * len(drafts)
    if settings.critique:
        talks = [[*t, output.user(p.critique)] for t, p in zip(talks, drawn, strict=True)]
        seeds = [keyed_random.seed(settings.seed, i, "critique", number) for i in ids]
        critiques = out.say(voice, settings.sampling, ids, talks, seeds)
        talks = [
            [*t, output.assistant(c.text if c else "")]
            for t, c in zip(talks, critiques, strict=True)
        ]
    going = [i for i, c in enumerate(critiques) if c is not None]
    requests = [[*talks[i], output.user(drawn[i].revision)] for i in going]
    seeds = [keyed_random.seed(settings.seed, ids[i], "revision", number) for i in going]
    revised = out.say(voice, settings.sampling, [ids[i] for i in going], requests, seeds)
    return [
        drafts[i]._replace(answer=r, log=(*drafts[i].log, _logged(drawn[i], critiques[i], r, seed)))
        for i, r, seed in zip(going, revised, seeds, strict=True)
        if r is not None
    ]


_NONE = Reply("", "stop_token")


def _principle(settings: Settings, constitution: Constitution, name: str, number: int) -> Principle:
    drawn = (settings.seed, name, "principle", number)
    return keyed_random.distinct(constitution.principles, 1, *drawn)[0]


def examples(constitution: Constitution, count: int, critique: bool = True) -> list[Message]:
    """The first worked examples as the conversation in which a revision is requested."""
    by_name = {p.name: p for p in constitution.principles}
    turns: list[Message] = []
    for shown in constitution.examples[:count]:
        principle = by_name[shown.principle]
        turns += [output.user(shown.prompt), output.assistant(shown.response)]
        if critique:
            turns += [output.user(principle.critique), output.assistant(shown.critique)]
        turns += [output.user(principle.revision), output.assistant(shown.revision)]
    return turns


def _logged(principle: Principle, critique: Reply | None, revision: Reply, seed: int) -> Record:
    return {
        "principle": principle.name,
        "critique": critique.text if critique else "",
        "revision": revision.text,
        "finish": revision.finish,
        "seed": seed,
    }


def _record(settings: Settings, draft: _Draft) -> Record:
    return {
        "id": draft.prompt.id,
        **prompt_files.answered(draft.prompt.messages, draft.answer.text),
        "response": draft.first.text,
        "response_finish": draft.first.finish,
        "seed": keyed_random.seed(settings.seed, draft.prompt.id, "response"),
        "rounds": list(draft.log),
    }
