"""Reward functions of responses: a weighted sum of functions of their text. No jax import.

    exact             1 if the response is the record's `answer`, white space around it aside
    number            1 if the last number of the response is the last one of `answer` (answers.py)
    tagged            1 if the response is <think>...</think><answer>...</answer> and nothing else
                      (the format reward of DeepSeek-R1, 2025, section 2.2.2)
    tagged_answer     1 if the content of <answer>...</answer> is `answer`, as text or as number
    finished          1 if the response ended by itself
    length            the characters of the response in thousands: with a negative weight, a cost
    file.py:function, module:function
                      your own: function(samples: list[Sample]) -> one number for each

A function of your own runs in a process of its own, with a limit on its time. It must judge each
sample by itself: where a call for all of them fails, it is called for one after the other.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core import check, io
from jaxlm.train.rl import answers, sandbox


class Sample(NamedTuple):
    """A response and what it is judged by: the prompt and response as text, without special tokens;
    the record that the prompt is of; whether the response ended by itself."""

    prompt: str
    response: str
    record: dict[str, Any]
    finished: bool


Function = Callable[[Sequence[Sample]], Sequence[float]]


class Scored(NamedTuple):
    """score float32[N]: the weighted sum. parts: what each function gave, by its name."""

    score: np.ndarray
    parts: dict[str, np.ndarray]


class Failed(ValueError):
    """A reward function gave no number for a sample: which function, which sample, why."""


# --- Functions by name -----------------------------------------------------------------------

_TAGGED = re.compile(
    r"\s*<think>((?:(?!</?think>|</?answer>).)*)</think>"
    r"\s*<answer>((?:(?!</?think>|</?answer>).)*)</answer>\s*",
    re.DOTALL,
)
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)


def exact(samples: Sequence[Sample]) -> list[float]:
    """1 where the response is the record's answer, white space around it aside."""
    return [float(s.response.strip() == _answer(s).strip()) for s in samples]


def number(samples: Sequence[Sample]) -> list[float]:
    """1 where the last number of the response is the last of the answer, as answers.py reads them:
    1,200.0 is 1200, and [1,2] ends in 2."""
    return [float(answers.same(s.response, _answer(s))) for s in samples]


def tagged(samples: Sequence[Sample]) -> list[float]:
    """1 where the response is one thought and one answer in their tags, and nothing else."""
    return [float(_TAGGED.fullmatch(s.response) is not None) for s in samples]


def tagged_answer(samples: Sequence[Sample]) -> list[float]:
    """1 where the response has one <answer>, and in it the record's answer."""
    scores = []
    for sample in samples:
        answers_ = _ANSWER.findall(sample.response)
        right = _answer(sample)
        scores.append(float(len(answers_) == 1 and _matches(answers_[0], right)))
    return scores


def finished(samples: Sequence[Sample]) -> list[float]:
    """1 where the response ended by itself."""
    return [float(s.finished) for s in samples]


def length(samples: Sequence[Sample]) -> list[float]:
    """The characters of each response, in thousands."""
    return [len(s.response) / 1000 for s in samples]


BUILT_IN: dict[str, Function] = {
    f.__name__: f for f in (exact, number, tagged, tagged_answer, finished, length)
}


def _answer(sample: Sample) -> str:
    if "answer" not in sample.record:
        raise ValueError(f"no field 'answer' in the record; it has {sorted(sample.record)}")
    return str(sample.record["answer"])


def _matches(text: str, answer: str) -> bool:
    return text.strip() == answer.strip() or answers.same(text, answer)


# --- Their weighted sum ----------------------------------------------------------------------


class Part(NamedTuple):
    """A function of the sum: its name, its factor, and how it is called, with a time limit."""

    name: str
    weight: float
    call: Callable[[list[Sample], float], Any]


@dataclasses.dataclass(frozen=True)
class Rewards:
    """A weighted sum of reward functions; `opened` makes one.

    seconds: how long one call may take. retries: how often a call that failed is made again, before
    the samples are judged one by one. folder: where a failure is written, None for nowhere.
    """

    parts: tuple[Part, ...]
    seconds: float
    retries: int
    folder: pathlib.Path | None

    def score(self, samples: Sequence[Sample]) -> Scored:
        """Scores of the samples.

        Raises: Failed naming the function and the first sample that it gives no finite number for,
        with all samples and what is known of them written to `folder`/reward_failure.jsonl.
        """
        values = {part.name: self._part(part, list(samples)) for part in self.parts}
        total = np.zeros(len(samples), np.float32)
        for part in self.parts:
            total += np.float32(part.weight) * values[part.name]
        return Scored(total, values)

    def _part(self, part: Part, samples: list[Sample]) -> np.ndarray:
        if not samples:
            return np.zeros(0, np.float32)
        why = ""
        for _ in range(self.retries + 1):
            try:
                return _numbers(part.call(samples, self.seconds), len(samples))
            except (sandbox.Failed, ValueError) as error:
                why = str(error)
        text = f"reward {part.name!r} failed for {len(samples)} samples; they are judged one by one"
        print(f"warning: {text}: {why}", file=sys.stderr)
        done: list[float] = []
        for sample in samples:
            try:
                done += _numbers(part.call([sample], self.seconds), 1).tolist()
            except (sandbox.Failed, ValueError) as error:
                raise self._failed(part, samples, done, error) from error
        return np.array(done, np.float32)

    def _failed(
        self, part: Part, samples: list[Sample], done: list[float], error: Exception
    ) -> Failed:
        at = len(done)
        trace = error.trace if isinstance(error, sandbox.Failed) else ""
        why, where = trace or str(error), ""
        if self.folder is not None:
            file = self.folder / "reward_failure.jsonl"
            values: list[Any] = [*done, *[None] * (len(samples) - at)]
            lines = [
                {"reward": part.name, "value": value, "error": why if i == at else None}
                | sample._asdict()
                for i, (sample, value) in enumerate(zip(samples, values, strict=True))
            ]
            text = "".join(json.dumps(line, default=str) + "\n" for line in lines)
            io.write(file, text)
            where = f"; all {len(samples)} samples are in {file}"
        bad = samples[at]
        failed = Failed(
            f"reward {part.name!r}, sample {at} of {len(samples)}, after {self.retries + 1} calls "
            f"for all and one for it alone: {error}; prompt {bad.prompt[-200:]!r}, response "
            f"{bad.response[:200]!r}{where}"
        )
        if trace:
            failed.add_note(trace)
        return failed


def _numbers(given: Any, count: int) -> np.ndarray:
    """float32[count]. Raises: ValueError for anything else."""
    if isinstance(given, str | bytes | dict | set):
        raise ValueError(f"returned a {type(given).__name__}, not {count} numbers")
    try:
        values = list(given)
    except TypeError as error:
        raise ValueError(f"returned a {type(given).__name__}, not {count} numbers") from error
    if len(values) != count:
        raise ValueError(f"returned {len(values)} values for {count} samples")
    return np.array([_number(value) for value in values], np.float32)


def _number(value: Any) -> float:
    # numpy's numbers too, one-element arrays not
    if isinstance(value, str | bytes) or np.ndim(value) != 0:
        raise ValueError(f"returned {value!r} for a sample, not a number")
    try:
        real = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"returned {value!r} for a sample, not a number") from error
    if not math.isfinite(real) or abs(real) > np.finfo(np.float32).max:
        raise ValueError(f"returned {real} for a sample, not a finite float32")
    return real


@contextlib.contextmanager
def opened(
    names: Sequence[str],
    weights: Sequence[float] = (),
    seconds: float = 60.0,
    retries: int = 1,
    folder: str | os.PathLike[str] | None = None,
) -> Iterator[Rewards]:
    """A context with the Rewards of these functions; () of weights is 1 for each. Functions of the
    user's are started in their processes, which end with the context.

    Raises: ValueError with `problems`; sandbox.Failed where one of them cannot be imported.
    """
    check.refuse("", problems("", names, weights))
    factors = tuple(weights) or (1.0,) * len(names)
    with contextlib.ExitStack() as stack:
        parts = []
        for name, weight in zip(names, factors, strict=True):
            if name in BUILT_IN:
                call = _here(BUILT_IN[name])
            else:
                process = stack.enter_context(sandbox.Process(name))
                process.start()
                call = process.call
            parts.append(Part(name, float(weight), call))
        logs = None if folder is None else pathlib.Path(folder)
        yield Rewards(tuple(parts), seconds, retries, logs)


def _here(function: Function) -> Callable[[list[Sample], float], Any]:
    return lambda samples, seconds: function(samples)


def problems(where: str, names: Sequence[str], weights: Sequence[float]) -> Iterator[str]:
    """Problems of the fields rewards and weights of the settings that are at `where`; nothing is
    run."""
    ok = len(weights) in (0, len(names)) and all(map(math.isfinite, weights))
    fits = f"a finite number for each of {len(names)} reward functions"
    yield from check.problem(check.path(where, "weights"), tuple(weights), ok, fits)
    field = check.path(where, "rewards")
    fits = "different functions: one that is named twice takes a weight instead"
    yield from check.problem(field, tuple(names), len({*names}) == len(names), fits)
    for name in names:
        place, _, function = name.rpartition(":")
        fits = f"one of {list(BUILT_IN)}, 'file.py:function' or 'module:function'"
        known = name in BUILT_IN or bool(place and function)
        yield from check.problem(field, name, known, fits)
        if known and place.endswith(".py") and not pathlib.Path(place).expanduser().is_file():
            yield f"{field}: {name!r} given, but there is no such file: {place}"
