"""Replies of a model of any kind to a prompt: it continues it, fills its holes, or answers it."""

from collections.abc import Iterator, Mapping, Sequence

from jaxlm.core import param
from jaxlm.data.corrupt import mask, span
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import (
    completions,
    encoder_decoder,
    fill_mask,
    sampling_settings,
    token_sampling,
)
from jaxlm.models.model import Model


def replies(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompt: str,
    sampling: token_sampling.Sampling,
    corrupt: mask.Mask | span.Span | None,
) -> list[Iterator[str]]:
    """Pieces of what is to be shown for each of n replies to a prompt, as soon as they are known
    where only one is sampled.

    A decoder continues the prompt, which comes first. An encoder gives the likeliest tokens of
    every mask in it, a line each. An encoder-decoder reads it as a source and writes the target.
    corrupt: the corruption in training, which decides how masks and sentinels are written: as the
    tokenizer spells them, and "<mask>" or "<extra_id_0>", ... where they are ids of their own.

    Raises: ValueError as `completions.stream`, `fill_mask.fill` and `encoder_decoder.generate`; for
    more than one reply of an encoder, which draws nothing.
    """
    if model.kind == "encoder_decoder":
        names = marks(tokenizer, corrupt)
        targets = _targets(model, params, tokenizer, prompt, sampling, names)
        return [iter([text]) for text in targets]
    if model.kind == "encoder":
        sampling_settings.check_single(sampling, "an encoder draws nothing")
        return [iter(_holes(model, params, tokenizer, prompt, marks(tokenizer, corrupt)))]
    texts = continued(model, params, tokenizer, prompt, sampling)
    return [_after(prompt, pieces) for pieces in texts]


def continued(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompt: str | Sequence[int],
    sampling: token_sampling.Sampling,
) -> list[Iterator[str]]:
    """Pieces of each of the n continuations of a prompt: a stream where only one is sampled.

    Raises: ValueError as `completions.stream`.
    """
    if sampling.candidates == 1:
        return [completions.stream(model, params, tokenizer, prompt, sampling)]
    rows = completions.complete(model, params, tokenizer, [prompt], [sampling])
    return [iter([row.text]) for row in rows]


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
    sampling: token_sampling.Sampling,
    names: Mapping[str, int],
) -> list[str]:
    source = [*fill_mask.encode(tokenizer, prompt, names), tokenizer.special["eos"]]
    settings = completions.with_eos(tokenizer, sampling)
    out = encoder_decoder.generate(model, params, [source], settings)
    rows = [row[:length].tolist() for row, length in zip(out.tokens, out.lengths, strict=True)]
    return [f"{prompt}\n  {written(tokenizer, row, names)}" for row in rows]


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
