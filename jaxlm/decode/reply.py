"""Replies of a model of any kind to a prompt: it continues it, fills its holes, or answers it."""

from collections.abc import Iterator, Mapping, Sequence

from jaxlm.core import check, param
from jaxlm.data.corrupt import mask, span
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import (
    completions,
    constraints,
    encoder_decoder,
    fill_mask,
    sampling_settings,
    token_sampling,
)
from jaxlm.decode.search import hypotheses
from jaxlm.decode.search.beam_search import Beams
from jaxlm.decode.search.contrastive_search import Contrastive
from jaxlm.decode.speculate import speculative_sampling
from jaxlm.decode.speculate.speculative_sampling import Speculate
from jaxlm.models.model import Model

Settings = token_sampling.Sampling | Beams | Contrastive


def replies(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompt: str,
    settings: Settings,
    corrupt: mask.Mask | span.Span | None,
    constraint: constraints.Constraint | None = None,
    speculate: Speculate | None = None,
) -> list[Iterator[str]]:
    """Pieces of what is to be shown for each of n replies to a prompt, as soon as they are known
    where only one is sampled.

    A decoder continues the prompt, which comes first. An encoder gives the likeliest tokens of
    every mask in it, a line each. An encoder-decoder reads it as a source and writes the target.
    corrupt: the corruption in training, which decides how masks and sentinels are written: as the
    tokenizer spells them, and "<mask>" or "<extra_id_0>", ... where they are ids of their own.
    Several texts of a search are a line each, after their scores.

    Raises: ValueError as `completions.stream`, `hypotheses.complete`, `fill_mask.fill` and
    `encoder_decoder.generate`; for a search by an encoder, and more than one reply of it.
    """
    if constraint is not None and model.kind != "decoder":
        raise ValueError("constraint: only what a decoder samples can be constrained")
    if speculate is not None:
        check.refuse("", speculative_sampling.problems(model, speculate))
        refuse_search(settings)
    if model.kind == "encoder_decoder":
        names = marks(tokenizer, corrupt)
        targets = _targets(model, params, tokenizer, prompt, settings, names)
        return [iter([text]) for text in targets]
    if model.kind == "encoder":
        if not isinstance(settings, token_sampling.Sampling):
            raise ValueError("an encoder fills in masks: beams and contrastive search do not apply")
        sampling_settings.check_single(settings, "an encoder draws nothing")
        return [iter(_holes(model, params, tokenizer, prompt, marks(tokenizer, corrupt)))]
    if constraint is not None or isinstance(settings, token_sampling.Sampling):
        texts = continued(model, params, tokenizer, prompt, settings, constraint, speculate)
        return [_after(prompt, pieces) for pieces in texts]
    (found,) = hypotheses.complete(model, params, tokenizer, [prompt], settings)
    if len(found) == 1:
        return [iter([prompt, found[0].text])]
    return [iter([prompt, *(f"\n  {one.score:.4f}  {one.text!r}" for one in found)])]


def continued(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompt: str | Sequence[int],
    settings: Settings,
    constraint: constraints.Constraint | None = None,
    speculate: Speculate | None = None,
) -> list[Iterator[str]]:
    """Pieces of each of the n continuations of a prompt: a stream where only one is sampled.

    Raises: ValueError as `completions.stream` and `hypotheses.complete`; for more than one text of
    beams.
    """
    if not isinstance(settings, token_sampling.Sampling):
        if constraint is not None:
            raise ValueError("constraint: given with a search; only sampling can be constrained")
        if isinstance(settings, Beams) and settings.num_return_sequences > 1:
            n = settings.num_return_sequences
            raise ValueError(f"beams.num_return_sequences: {n} given; a conversation has 1 reply")
        if speculate is not None:
            refuse_search(settings)
        (found,) = hypotheses.complete(model, params, tokenizer, [prompt], settings)
        return [iter([found[0].text])]
    if settings.candidates == 1 and constraint is None:
        pieces = completions.stream(model, params, tokenizer, prompt, settings, speculate=speculate)
        return [pieces]
    rows = completions.complete(
        model, params, tokenizer, [prompt], [settings], constraint, speculate
    )
    return [iter([row.text]) for row in rows]


def refuse_search(settings: Settings) -> None:
    """Raises: ValueError for a search, where tokens are drafted."""
    if not isinstance(settings, token_sampling.Sampling):
        name = "beams" if isinstance(settings, Beams) else "contrastive search"
        raise ValueError(f"speculate: given with {name}; only what is sampled can be drafted")


def marks(tokenizer: tokenizers.Tokenizer, corrupt: mask.Mask | span.Span | None) -> dict[str, int]:
    """{spelling of a special token in a prompt: its id}."""
    spelled = fill_mask.spelled(tokenizer)
    if isinstance(corrupt, mask.Mask) and corrupt.token is not None:
        spelled |= dict.fromkeys(("<mask>", "[MASK]"), corrupt.token)
    if isinstance(corrupt, span.Span) and corrupt.sentinel is not None:
        roles = {i for name, i in tokenizer.special.items() if name in ("pad", "bos", "eos", "unk")}
        for number in range(100):  # as many as T5 has
            i = corrupt.sentinel - number
            if i in roles or (i < tokenizer.vocab and i not in tokenizer.special.values()):
                break  # the sentinels end where other ids begin
            spelled[f"<extra_id_{number}>"] = i
    return spelled


def _after(prompt: str, pieces: Iterator[str]) -> Iterator[str]:
    yield prompt
    yield from pieces


def _holes(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompt: str,
    names: Mapping[str, int],
) -> list[str]:
    if "<mask>" not in names:
        raise ValueError(
            "this model fills in masked tokens, and its tokenizer has no mask: give its id as "
            "data.corrupt.token of the run"
        )
    holes = fill_mask.fill(model, params, tokenizer, prompt, names["<mask>"], marks=names)
    lines = [prompt]
    for number, hole in enumerate(holes, 1):
        guesses = "  ".join(f"{guess.text!r} {guess.probability:.3f}" for guess in hole)
        lines.append(f"\n  mask {number}: {guesses}")
    return lines


def _targets(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompt: str,
    settings: Settings,
    names: Mapping[str, int],
) -> list[str]:
    source = [*fill_mask.encode(tokenizer, prompt, names), tokenizer.special["eos"]]
    if isinstance(settings, token_sampling.Sampling):
        ending = completions.with_eos(tokenizer, settings)
        out = encoder_decoder.generate(model, params, [source], ending)
        rows = [row[:length].tolist() for row, length in zip(out.tokens, out.lengths, strict=True)]
        return [f"{prompt}\n  {written(tokenizer, row, names)}" for row in rows]
    (found,) = hypotheses.complete(model, params, tokenizer, [source], settings)
    scores = [f"{one.score:.4f}  " if len(found) > 1 else "" for one in found]
    lines = [f"\n  {s}{written(tokenizer, one.tokens, names)}" for s, one in zip(scores, found)]
    return ["".join([prompt, *lines])]


def written(tokenizer: tokenizers.Tokenizer, ids: Sequence[int], names: Mapping[str, int]) -> str:
    """The text of ids with the named special tokens spelled out; other ids beyond text are left
    out."""
    spelling = {i: name for name, i in names.items()}
    parts: list[str] = []
    run: list[int] = []
    for i in [*ids, None]:
        if i is not None and i not in spelling:
            run.append(i)
            continue
        parts += [tokenizer.decode(run)] if run else []
        parts += [] if i is None else [spelling[i]]
        run = []
    return "".join(parts)
