"""Settings of continuations: the fields a user chooses, their checks, their arrays for the loop.

Names and meanings are those of transformers' GenerationConfig where it has the setting;
`docs/decoding.md` lists the differences.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import check
from jaxlm.decode import sampling_loop
from jaxlm.ops import penalties, sampling


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings for the continuation of a prompt."""

    max_new: int = 128
    """Tokens to generate at most."""
    temperature: float = 1.0
    """Logits are divided by it; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Keep the k likeliest tokens (all of a tie at the edge); None keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens with this probability; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this times as likely as the likeliest; 0 keeps all."""
    typical_p: float = 1.0
    """Keep the smallest set with this probability whose surprise is nearest the entropy."""
    repetition_penalty: float = 1.0
    """Makes tokens of prompt and continuation less likely where above 1 (CTRL's rule)."""
    presence_penalty: float = 0.0
    """Taken once from the logits of tokens that were generated."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that it was generated."""
    no_repeat_ngram_size: int = 0
    """No n tokens in a row occur twice in prompt and continuation; 0 allows all."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token and what is added to its logit."""
    banned: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens, of one or more, that are never completed."""
    forced_begin: tuple[int, ...] = ()
    """Tokens that the continuation begins with."""
    forced_end: tuple[int, ...] = ()
    """Tokens of which the last is one where the text reaches max_new."""
    min_new: int = 0
    """Tokens to generate before a stop token may end the text."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end the text; the one that did is the last generated token."""
    stop_strings: tuple[str, ...] = ()
    """Strings that end the text, wherever token boundaries fall; the text ends before them."""
    n: int = 1
    """Continuations of each prompt."""
    best_of: int | None = None
    """Continuations to sample, of which the n with the highest mean log-probability are kept."""
    seed: int = 0
    """Seed of a row. Continuation i of a prompt has seed + i; one Sampling for a batch of prompts
    counts on through all of them."""

    def __post_init__(self) -> None:
        check.within("sampling", self, "max_new", "top_k", "n", least=1)
        check.within("sampling", self, "temperature", "no_repeat_ngram_size", least=0)
        check.within("sampling", self, "top_p", "typical_p", above=0, most=1)
        check.within("sampling", self, "min_p", least=0, most=1)
        check.within("sampling", self, "repetition_penalty", above=0)
        check.within("sampling", self, "presence_penalty", "frequency_penalty", least=-2, most=2)
        check.within("sampling", self, "min_new", least=0, most=self.max_new)
        check.within("sampling", self, "seed", least=0, below=2**32)
        check.refuse("", _problems(self))

    @property
    def candidates(self) -> int:
        """Continuations that are sampled for each prompt."""
        return self.n if self.best_of is None else self.best_of


def _problems(s: Sampling) -> Iterator[str]:
    """A line for each setting that no interval describes."""
    for text in s.stop_strings:
        ok = isinstance(text, str) and text != ""
        yield from check.problem("sampling.stop_strings", text, ok, "strings that are not empty")
    for name in ("forced_begin", "forced_end"):
        value = getattr(s, name)
        yield from check.problem(f"sampling.{name}", value, _are_tokens(value), "token ids")
    fits = f"at most sampling.max_new={s.max_new} tokens"
    fit = len(s.forced_begin) <= s.max_new
    yield from check.problem("sampling.forced_begin", s.forced_begin, fit, fits)
    ok = all(_are_tokens(row) and len(row) > 0 for row in s.banned)
    fits = "sequences of one or more token ids, such as ((5,), (7, 8))"
    yield from check.problem("sampling.banned", s.banned, ok, fits)
    fits = "pairs of a token id and a finite number, each id once, such as ((5, -1.0),)"
    yield from check.problem("sampling.logit_bias", s.logit_bias, _are_biases(s.logit_bias), fits)
    fits = f"at least sampling.n={s.n}"
    yield from check.problem("sampling.best_of", s.best_of, s.candidates >= s.n, fits)
    if s.temperature == 0 and s.candidates > 1:
        name = "sampling.n" if s.best_of is None else "sampling.best_of"
        yield f"{name}: {s.candidates} given; at temperature 0 all samples are the same one"


def _are_tokens(value: Any) -> bool:
    return isinstance(value, Sequence) and all(
        isinstance(token, numbers.Integral) and not isinstance(token, bool) for token in value
    )


def _are_biases(pairs: Any) -> bool:
    if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs):
        return False
    numeric = all(isinstance(v, numbers.Real) and math.isfinite(v) for _, v in pairs)
    tokens = [token for token, _ in pairs]
    return numeric and _are_tokens(tokens) and len(set(tokens)) == len(tokens)


def each(settings: Sampling | Sequence[Sampling], prompts: int) -> list[Sampling]:
    """One Sampling per prompt. Raises: ValueError if a list has another length."""
    if isinstance(settings, Sampling):
        step = settings.candidates
        return [_later(settings, r * step) for r in range(prompts)]
    if len(settings) != prompts:
        raise ValueError(f"sampling: {len(settings)} settings given for {prompts} prompts")
    return list(settings)


def candidates(settings: Sequence[Sampling]) -> tuple[list[Sampling], np.ndarray]:
    """(settings of one continuation each, the prompt that each continues, int32[B]): those of the
    first prompt, then those of the second, and so on."""
    rows = [
        dataclasses.replace(_later(s, i), n=1, best_of=None)
        for s in settings
        for i in range(s.candidates)
    ]
    counts = [s.candidates for s in settings]
    return rows, np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def _later(s: Sampling, steps: int) -> Sampling:
    return dataclasses.replace(s, seed=(s.seed + steps) % 2**32)


def bucket(n: int, least: int = 16) -> int:
    """The smallest of least * (1, 1.5, 2, 3, 4, 6, ...) that is at least n."""
    size = least
    while size < n:
        step = 3 * size // 2
        size = step if n <= step and step > size else 2 * size
    return size


# --- Arrays ----------------------------------------------------------------------------------


def rows_of(settings: Sequence[Sampling], batch: int) -> sampling_loop.Rows:
    """Per-row settings as arrays [batch]; rows beyond the settings generate nothing."""
    idle = Sampling(temperature=0.0)
    padded = [*settings, *[idle] * (batch - len(settings))]
    typical = _column([s.typical_p for s in padded], np.float32)
    controls = sampling.Controls(
        temperature=_column([s.temperature for s in padded], np.float32),
        top_k=_column([s.top_k or 0 for s in padded], np.int32),
        top_p=_column([s.top_p for s in padded], np.float32),
        min_p=_column([s.min_p for s in padded], np.float32),
        repetition=_column([s.repetition_penalty for s in padded], np.float32),
        typical=typical if any(s.typical_p < 1 for s in settings) else None,
        rules=_rules(padded),
    )
    keys = _keys(np.array([s.seed for s in padded], np.uint32))
    stop = _lists([s.stop_tokens for s in padded], least=1)
    limit = [s.max_new for s in settings] + [0] * (batch - len(settings))
    return sampling_loop.Rows(controls, keys, stop, _column(limit, np.int32))


_keys = jax.jit(jax.vmap(jax.random.key))


def _column(values: Sequence[Any], dtype: Any) -> jax.Array:
    return jnp.asarray(np.array(values, dtype))


def _lists(lists: Sequence[Sequence[Any]], fill: float = -1, least: int = 0) -> jax.Array:
    """[B, bucketed width]: each list at the left of its row; width `least` where all are empty."""
    longest = max(map(len, lists))
    width = bucket(longest, 1) if longest else least
    table = np.full((len(lists), width), fill, np.int32 if fill == -1 else np.float32)
    for r, values in enumerate(lists):
        table[r, : len(values)] = values
    return jnp.asarray(table)


def _rules(settings: Sequence[Sampling]) -> penalties.Rules | None:
    """The rules of all rows; None where no row has any."""
    names = ("presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "min_new")
    names = (*names, "logit_bias", "banned", "forced_begin", "forced_end")
    if not any(getattr(s, name) for s in settings for name in names):
        return None
    places = bucket(max(len(s.banned) for s in settings), 1)
    length = bucket(max((len(row) for s in settings for row in s.banned), default=0), 1)
    places = places if any(s.banned for s in settings) else 0
    banned = np.full((len(settings), places, length), -1, np.int32)
    for r, s in enumerate(settings):
        for i, row in enumerate(s.banned):
            banned[r, i, length - len(row) :] = row
    return penalties.Rules(
        presence=_column([s.presence_penalty for s in settings], np.float32),
        frequency=_column([s.frequency_penalty for s in settings], np.float32),
        ngram=_column([s.no_repeat_ngram_size for s in settings], np.int32),
        min_new=_column([s.min_new for s in settings], np.int32),
        early=_lists([s.stop_tokens if s.min_new else () for s in settings]),
        bias_tokens=_lists([[token for token, _ in s.logit_bias] for s in settings]),
        bias=_lists([[value for _, value in s.logit_bias] for s in settings], fill=0),
        banned=jnp.asarray(banned),
        begin=_lists([s.forced_begin for s in settings]),
        end=_lists([s.forced_end for s in settings]),
    )


# --- Checks that depend on the model and the prompt ------------------------------------------


def check_single(s: Sampling, why: str) -> None:
    """Raises: ValueError for more than one continuation, where only one fits and why."""
    name = "n" if s.best_of is None else "best_of"
    check.field(f"sampling.{name}", s.candidates, s.candidates == 1, f"1: {why}")


def check_tokens(
    r: int, s: Sampling, prompt: Sequence[int], vocab: int, where: str = "sampling"
) -> None:
    """Check the settings of prompt r. where: their name.

    Raises: ValueError for a token outside the vocabulary, and for rules that leave no token at all
    for the first place that is not forced.
    """
    for name in ("stop_tokens", "forced_begin", "forced_end"):
        tokens = np.array(getattr(s, name), int)
        check_range(f"{where}.{name} of row {r}, place", tokens, vocab)
    biased = np.array([token for token, _ in s.logit_bias], int)
    check_range(f"sampling.logit_bias of row {r}, pair", biased, vocab)
    for i, row in enumerate(s.banned):
        check_range(f"sampling.banned of row {r}, sequence {i}, place", np.array(row, int), vocab)
    if s.banned or s.min_new or s.no_repeat_ngram_size:
        _check_choice(r, s, prompt, vocab)


def _check_choice(r: int, s: Sampling, prompt: Sequence[int], vocab: int) -> None:
    place, text = len(s.forced_begin), [int(token) for token in (*prompt, *s.forced_begin)]
    if place + bool(s.forced_end) >= s.max_new or set(s.forced_begin) & set(s.stop_tokens):
        return  # no token is chosen
    gone = set(s.stop_tokens) if place < s.min_new else set()
    for row in s.banned:
        if list(row[:-1]) == text[len(text) - len(row) + 1 :]:
            gone.add(row[-1])
    size = s.no_repeat_ngram_size
    for end in range(size, len(text) + 1) if size else ():
        if text[end - size : end - 1] == text[len(text) - size + 1 :]:
            gone.add(text[end - 1])
    if len(gone) >= vocab:
        raise ValueError(
            f"prompt {r}: sampling.banned, no_repeat_ngram_size and min_new leave none of the "
            f"{vocab} tokens for new token {place}; allow at least one"
        )


def check_range(where: str, ids: np.ndarray, vocab: int) -> None:
    """Raises: ValueError for an id outside the vocabulary, with its index after `where`."""
    wrong = np.flatnonzero((ids < 0) | (ids >= vocab))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"{where} {i}: token {ids[i]} is outside the vocabulary 0..{vocab - 1}")
