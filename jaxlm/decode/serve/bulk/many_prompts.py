"""Continuations of any number of prompts by one engine, each as soon as it has ended."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.decode import constraints, sampling_settings
from jaxlm.decode.completions import Completion
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.decode.serve import engine
from jaxlm.decode.serve.bulk import bandwidth
from jaxlm.decode.serve.engine import Engine, Part


class Request(NamedTuple):
    """number: the prompt's place among all. tokens: its ids. sampling: its settings, whose seed is
    that of its first candidate."""

    number: int
    tokens: list[int]
    sampling: Sampling


class Meter:
    """Counts of what was decoded since its beginning. tokens: generated. bytes: read by the steps
    of decoding, weights and caches of the rows that ran; what reading prompts takes is left out."""

    def __init__(self, reads: bandwidth.Reads):
        self.tokens = 0
        self.bytes = 0.0
        self._reads = reads
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the beginning, prompts that were read included."""
        return time.perf_counter() - self._start

    def add(self, tokens: int, decoded: Sequence[tuple[int, int]]) -> None:
        """Count a step that gave so many tokens. decoded: (tokens before it, tokens that it added)
        of each row that ran, its first token apart, which comes with its prompt."""
        self.tokens += tokens
        steps = max((added for _, added in decoded), default=0)
        filled = sum(before for before, _ in decoded)
        self.bytes += steps * self._reads.step(len(decoded), filled)


class _Group(NamedTuple):
    """A request's candidates, each part None until it has ended."""

    request: Request
    ended: list[Part | None]


def texts(
    running: Engine,
    requests: Iterable[Request],
    constraint: constraints.Constraint | None = None,
    meter: Meter | None = None,
) -> Iterator[tuple[int, list[Completion]]]:
    """(number, its n continuations) of each request in the order in which they end: those of
    `completions.complete`, best first where `best_of` is given.

    Requests are taken from their iterator as slots become free, so that few are in memory.

    Raises: ValueError as `Engine.submit`; where rules leave no token, or a constraint became too
    complex, with the prompt's number.
    """
    source = iter(requests)
    places: dict[int, tuple[_Group, int]] = {}
    parts: dict[int, Part] = {}
    lengths: dict[int, int] = {}
    ended = False
    while not ended or running.busy:
        while not ended and running.waiting < running.capacity.slots:
            request = next(source, None)
            ended = request is None
            if request is not None:
                places |= _submitted(running, request, constraint)
        step, decoded = running.step(), []
        for part in step:
            number = part.number
            group, place = places[number]
            old = parts.get(number)
            parts[number] = part if old is None else engine.joined(old, part)
            first = int(number not in lengths)  # a token that came with its prompt
            before = lengths.get(number, len(group.request.tokens))
            lengths[number] = before + len(part.tokens)
            if len(part.tokens) > first:
                decoded.append((before + first, len(part.tokens) - first))
            if part.finish is None:
                continue
            group.ended[place] = _checked(parts.pop(number), group.request.number)
            del places[number], lengths[number]
            done = [part for part in group.ended if part is not None]
            if len(done) == len(group.ended):
                yield group.request.number, _chosen(done, group.request.sampling)
        if meter is not None:
            meter.add(sum(len(part.tokens) for part in step), decoded)


def _submitted(
    running: Engine, request: Request, constraint: constraints.Constraint | None
) -> dict[int, tuple[_Group, int]]:
    rows = [request.sampling]
    if request.sampling.candidates > 1:
        rows, _ = sampling_settings.candidates(rows)
    group = _Group(request, [None] * len(rows))
    return {
        running.submit(request.tokens, row, constraint): (group, place)
        for place, row in enumerate(rows)
    }


def _checked(part: Part, number: int) -> Part:
    if part.finish == "failed":
        raise ValueError(f"prompt {number}: {part.text}")
    if any(map(math.isnan, part.support_log_probs)):
        raise ValueError(
            f"prompt {number}: sampling.banned, no_repeat_ngram_size and min_new leave no token to "
            "choose; allow at least one, or lower max_new"
        )
    return part


def _chosen(parts: Sequence[Part], sampling: Sampling) -> list[Completion]:
    """The n candidates with the highest mean log-probability, or all in their order."""
    order = range(len(parts))
    if len(parts) > sampling.n:
        means = [np.mean(part.log_probs, dtype=np.float64) for part in parts]
        order = np.argsort(-np.array(means), kind="stable")[: sampling.n]
    return [_completion(parts[i]) for i in order]


def _completion(part: Part) -> Completion:
    logs = np.array(part.log_probs, np.float32), np.array(part.support_log_probs, np.float32)
    return Completion(part.text, part.tokens, *logs, str(part.finish))
