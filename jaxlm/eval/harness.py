"""lm-eval (extra `eval`) on a model of ours: its tasks, prompts and metrics, our scores.

import jaxlm, lm_eval
lm = jaxlm.eval.harness.LM(jaxlm.load("runs/first"))
lm_eval.simple_evaluate(model=lm, tasks=["lambada_openai"])["results"]

What a request reads is decided by lm-eval 0.4 (`TemplateLM`): a context's trailing spaces belong to
the continuation; context and continuation are encoded together and cut at the context's own number
of tokens; an empty context is the token that begins a document; longer requests lose their first
tokens. No such token precedes a context that is not empty, unless `bos` is given.
"""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jaxlm.core import check, param
from jaxlm.data.tokenizers import tokenizer as interface
from jaxlm.decode import completions
from jaxlm.decode.sampling_settings import Sampling
from jaxlm.eval import log_likelihoods
from jaxlm.models.model import Model
from jaxlm.parallel.plan import Plan

# Names that tasks give to the most new tokens, the first of several counts.
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_MAX_NEW = 256  # lm-eval's own, where a task gives none
# Settings of a task's generation_kwargs that a Sampling has under the same name.
_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Trained(Protocol):
    """A trained model, as `jaxlm.load` returns it."""

    model: Model
    params: param.Tree
    plan: Plan

    @property
    def tokenizer(self) -> interface.Tokenizer:
        """The tokenizer of its data."""
        ...

    @property
    def length(self) -> int:
        """Tokens that it reads at once."""
        ...


class _Scoring(NamedTuple):
    trained: Trained
    tokenizer: interface.Tokenizer
    scorer: log_likelihoods.Scorer
    begin: int
    seq: int
    rows: int
    bos: bool

    def score(
        self, requests: Sequence[log_likelihoods.Request]
    ) -> list[log_likelihoods.Likelihood]:
        params, plan = self.trained.params, self.trained.plan
        return log_likelihoods.score(
            self.scorer, params, requests, seq=self.seq, plan=plan, rows=self.rows
        )

    def encode(self, text: str, special: bool | None) -> list[int]:
        ids = self.tokenizer.encode(text)
        return [self.begin, *ids] if self.bos and special is not False else ids


def LM(saved: Trained, *, length: int | None = None, bos: bool = False, rows: int = 16) -> Any:
    """A model of lm-eval, from what `jaxlm.load` returns.

    length: tokens that a request may hold, the model's own (`Saved.length`) where none is given.
    bos: the token that begins a document precedes every context, as lm-eval's `add_bos_token`.
    rows: sequences in a batch, which changes nothing but speed.

    Raises: ImportError naming the extra; ValueError for a model that is no decoder.
    """
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise ImportError("lm-eval is not installed: pip install 'jaxlm[eval]'") from error
    seq = saved.length if length is None else length
    check.field("length", seq, seq >= 2, "at least 2 tokens")
    tokenizer = saved.tokenizer
    begin = interface.begin(tokenizer)
    compiled = log_likelihoods.scorer(saved.model, saved.plan)
    scoring = _Scoring(saved, tokenizer, compiled, begin, seq, rows, bos)

    class _LM(TemplateLM):
        max_length = seq

        @property
        def eot_token_id(self) -> int:
            return tokenizer.special["eos"]

        @property
        def prefix_token_id(self) -> int:
            return begin

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
            return scoring.encode(string, add_special_tokens)

        def _loglikelihood_tokens(self, requests: Any, **_) -> list[tuple[float, bool]]:
            pairs = [log_likelihoods.Request(context, rest) for _, context, rest in requests]
            return [(scored.log_prob, scored.greedy) for scored in scoring.score(pairs)]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return _rolling(scoring, [request.args[0] for request in requests])

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return _generated(scoring, [request.args for request in requests])

    return _LM()


def _rolling(scoring: _Scoring, texts: Sequence[str]) -> list[float]:
    """Nats of every token of each text, in windows."""
    windows = [
        list(log_likelihoods.windows(scoring.encode(text, False), scoring.begin, scoring.seq))
        for text in texts
    ]
    scored = iter(scoring.score([request for text in windows for request in text]))
    return [sum(next(scored).log_prob for _ in text) for text in windows]


def _generated(scoring: _Scoring, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Continuations of (context, generation_kwargs): those of one length of prompt together."""
    model, tokenizer = scoring.trained.model, scoring.tokenizer
    prompts, settings, repeats = [], [], Counter()
    for context, kwargs in requests:
        sampling = dataclasses.replace(_sampling(kwargs), seed=_seed(context, repeats[context]))
        repeats[context] += 1
        room = scoring.seq - sampling.max_new
        fits = f"below the model's length of {scoring.seq} tokens"
        check.field("max_gen_toks", sampling.max_new, room > 0, fits)
        prompts.append(scoring.encode(context, None)[-room:] or [scoring.begin])
        settings.append(sampling)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    for first in range(0, len(order), scoring.rows):
        part = order[first : first + scoring.rows]
        written = completions.complete(
            model,
            scoring.trained.params,
            tokenizer,
            [prompts[i] for i in part],
            [settings[i] for i in part],
        )
        for i, row in zip(part, written, strict=True):
            texts[i] = row.text
    return texts


def _sampling(kwargs: Mapping[str, Any]) -> Sampling:
    """The Sampling of a task's generation_kwargs: greedy unless it says do_sample.

    Raises: ValueError naming a setting that a Sampling does not have.
    """
    given = dict(kwargs)
    until = given.pop("until", None) or []
    stops = tuple(dict.fromkeys([until] if isinstance(until, str) else until))
    limits = [given.pop(name) for name in _LIMITS if name in given]
    sampled = given.pop("do_sample", given.get("temperature", 0) > 0)
    chosen = {name: given.pop(name) for name in _SETTINGS if name in given}
    if given:
        raise ValueError(
            f"generation_kwargs: {sorted(given)} given; these are supported: "
            f"{['until', 'do_sample', *_LIMITS, *_SETTINGS]}"
        )
    settings = Sampling(
        max_new=limits[0] if limits else _MAX_NEW,
        temperature=1.0 if sampled else 0.0,
        stop_strings=tuple(stop for stop in stops if stop),
    )
    return dataclasses.replace(settings, **chosen) if sampled else settings


def _seed(context: str, repeat: int) -> int:
    """The seed of the `repeat`-th request with a context: neither its order nor its batch is in it,
    and repeats differ."""
    return zlib.crc32(f"{repeat}:{context}".encode("utf-8", "surrogateescape"))
