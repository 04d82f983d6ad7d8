"""Speculate: its checks and its report, and `generate` on lists of token ids with it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from jaxlm.core import check, config, param, target
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import sampling_loop, stop_strings, token_sampling
from jaxlm.decode.sampling_settings import Sampling, each
from jaxlm.decode.speculate import draft_length, speculative_loop
from jaxlm.decode.speculate.drafts import Weights
from jaxlm.decode.speculate.speculative_loop import Method, Progress, Tally
from jaxlm.decode.token_sampling import Prompts
from jaxlm.models.layers import cache_kinds
from jaxlm.models.model import Model
from jaxlm.ops.attention import At


class Drafter(Protocol):
    """A model that drafts, and its weights; what `jaxlm.load` returns is one."""

    @property
    def model(self) -> Model:
        """Its functions."""
        ...

    @property
    def params(self) -> param.Tree:
        """Its weights."""
        ...


class Report(NamedTuple):
    """Counts over all texts of a call.

    passes: of the model over one text each, prefill aside. drafted: tokens that it verified;
    accepted: those of them that stayed. tokens: that the passes gave, the first token of a text,
    which prefill gives, aside.
    """

    passes: int
    drafted: int
    accepted: int
    tokens: int

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were accepted."""
        return self.accepted / max(self.drafted, 1)

    @property
    def tokens_per_pass(self) -> float:
        """Mean tokens of a pass: 1 is plain decoding."""
        return self.tokens / max(self.passes, 1)

    def __str__(self) -> str:
        return (
            f"speculation: {self.accepted} of {self.drafted} drafted tokens accepted "
            f"({self.acceptance:.1%}), {self.tokens_per_pass:.2f} tokens a pass"
        )


@dataclasses.dataclass(frozen=True)
class Speculate:
    """Speculative decoding: the tokens of plain decoding, in fewer passes of the model."""

    draft: Drafter | Literal["lookup", "mtp"]
    """A model with the same vocabulary that drafts (`jaxlm.load(...)`); "lookup" for what followed
    the latest n-gram when it occurred before; "mtp" for the model's own multi-token prediction."""
    length: int = 4
    """Tokens to draft for a pass, at most."""
    adaptive: bool = True
    """Whether fewer are drafted where recent drafts were rejected, or where the batch makes a pass
    over many tokens dear (`draft_length`)."""
    ngram: int = 3
    """Longest n-gram that "lookup" compares."""
    report: Callable[[Report], Any] | None = None
    """Called with the Report when all texts have ended."""

    def __post_init__(self) -> None:
        check.within("speculate", self, "length", "ngram", least=1)
        ok = self.draft in ("lookup", "mtp") if isinstance(self.draft, str) else True
        ok = ok and (isinstance(self.draft, str) or hasattr(self.draft, "model"))
        fits = 'a trained model, as jaxlm.load returns it, "lookup" or "mtp"'
        check.field("speculate.draft", self.draft, ok, fits)


def generate(
    model: Model,
    params: param.Tree,
    prompts: Prompts,
    sampling: Sampling | Sequence[Sampling],
    speculate: Speculate,
    tokenizer: tokenizers.Tokenizer | None = None,
) -> sampling_loop.Generation:
    """The continuations of `token_sampling.generate`, with its arguments.

    A pass over several tokens rounds otherwise than one over a token, in the last places of a
    float32 on a CPU: where that decides between two tokens, another continuation follows.

    Raises: ValueError as there, and as `problems`.
    """
    settings = each(sampling, len(prompts))
    if any(s.stop_strings for s in settings):
        watches = token_sampling.watching(tokenizer, prompts, settings)
        *_, out = chunks(model, params, prompts, settings, watches, 8, speculate)
        return token_sampling.chosen(out, settings)
    job, method, weights = _prepared(model, params, prompts, settings, speculate)
    out, tally = _generate(job.model, method, job.room, weights, *job.inputs)
    result = token_sampling.finished(job, out, settings)
    _tell(speculate, tally)
    return result


def chunks(
    model: Model,
    params: param.Tree,
    prompts: Prompts,
    sampling: Sampling | Sequence[Sampling],
    watches: list[stop_strings.Watch],
    every: int,
    speculate: Speculate,
) -> Iterator[sampling_loop.Generation]:
    """`token_sampling.chunks`, where `every` is a number of passes. Raises: as `generate`."""
    settings = each(sampling, len(prompts))
    job, method, weights = _prepared(model, params, prompts, settings, speculate)
    progress = _start(job.model, method, job.room, weights, *job.inputs)

    def advance(state: sampling_loop.State) -> sampling_loop.State:
        nonlocal progress
        progress = progress._replace(state=state)
        progress = _advance(job.model, method, every, weights, progress, job.inputs[-1])
        return progress.state

    yield from token_sampling.watched(job, progress.state, watches, advance)
    _tell(speculate, progress.tally)


def problems(model: Model, speculate: Speculate) -> Iterator[str]:
    """A line for each reason that a model cannot decode so."""
    if model.kind != "decoder":
        yield f"speculate: this model is an {model.kind}; decoders alone draft and verify"
        return
    yield from check.loaded("", lambda: token_sampling.check_independent(model, "speculate"))
    if speculate.draft == "mtp" and model.further is None:
        kind = config.kind(type(model.cfg))
        yield (
            f"speculate.draft: 'mtp' given; this {kind} model has no multi-token prediction "
            "(deepseek with model.ahead has), so it must be another model, or 'lookup'"
        )
    if isinstance(speculate.draft, str):
        return
    draft, name = speculate.draft.model, "speculate.draft"
    if draft.kind != "decoder":
        yield f"{name}: an {draft.kind} given; it must be a decoder"
        return
    yield from check.loaded("", lambda: token_sampling.check_independent(draft, name))
    if draft.cfg.vocab != model.cfg.vocab:
        yield (
            f"{name}: a model with {draft.cfg.vocab} token ids given; it must be one with the "
            f"{model.cfg.vocab} of the model that it drafts for"
        )


def _prepared(
    model: Model,
    params: param.Tree,
    prompts: Prompts,
    settings: list[Sampling],
    speculate: Speculate,
) -> tuple[token_sampling.Job, Method, Weights]:
    check.refuse("", problems(model, speculate))
    slack = speculate.length + 2  # a draft model reads its last two tokens anew
    model = cache_kinds.windowed(model, slack)
    job = token_sampling.prepared(model, params, prompts, settings)
    longest = max(len(p) + s.max_new for p, s in zip(prompts, settings, strict=True))
    draft, weights = speculate.draft, Weights(job.params)
    size = 0
    if not isinstance(draft, str):
        limit = draft.model.context
        if limit is not None and longest > limit:
            raise ValueError(
                f"speculate.draft: its {limit} positions are fewer than the {longest} of the "
                "longest prompt and sampling.max_new"
            )
        size = _size(draft.model.spec)
        weights = Weights(job.params, token_sampling.prepare(draft.model, draft.params))
        draft = cache_kinds.windowed(draft.model, slack)._replace(spec=None)
    elif draft == "mtp":
        size = _size(model.spec["ahead"]) // max(model.cfg.ahead, 1)
    every = tuple(range(speculate.length + 1))
    rows, own = len(job.inputs[-1].limit), _size(model.spec)
    costs = draft_length.costs(every, rows, own, size, target.platform())
    lengths = draft_length.lengths(speculate.length, speculate.adaptive, costs)
    method = Method(draft, lengths, tuple(costs[n] for n in lengths), speculate.ngram)
    return job, method, weights


def _size(spec: param.Tree) -> int:
    return sum(int(np.prod(p.shape)) for p in param.flatten(spec).values())


def _tell(speculate: Speculate, tally: Tally) -> None:
    if speculate.report is not None:
        speculate.report(Report(*(int(np.sum(n)) for n in jax.device_get(tally))))


# --- Programs, compiled once per model, method and shape --------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    model: Model,
    method: Method,
    room: int,
    weights: Weights,
    tokens: jax.Array,
    at: At,
    rows: sampling_loop.Rows,
) -> tuple[sampling_loop.Generation, Tally]:
    progress = speculative_loop.start(model, method, weights, tokens, at, rows, room)
    progress = speculative_loop.advance(model, method, weights, progress, rows, room)
    return progress.state.out, progress.tally


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(
    model: Model,
    method: Method,
    room: int,
    weights: Weights,
    tokens: jax.Array,
    at: At,
    rows: sampling_loop.Rows,
) -> Progress:
    return speculative_loop.start(model, method, weights, tokens, at, rows, room)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _advance(
    model: Model,
    method: Method,
    passes: int,
    weights: Weights,
    progress: Progress,
    rows: sampling_loop.Rows,
) -> Progress:
    return speculative_loop.advance(model, method, weights, progress, rows, passes)
