"""Replies of a model of any kind to a prompt: it continues it, fills its holes, or answers it."""

from collections.abc import Iterator, Mapping, Sequence

from jaxlm.core import param
from jaxlm.data.corrupt import mask, span
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import completions, encoder_decoder, fill_mask, hypotheses, token_sampling
from jaxlm.decode.beam_search import Beams
from jaxlm.decode.contrastive_search import Contrastive
from jaxlm.models.model import Model

Settings = token_sampling.Sampling | Beams | Contrastive


def reply(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompt: str,
    settings: Settings,
    corrupt: mask.Mask | span.Span | None,
) -> Iterator[str]:
    """Pieces of what is to be shown for a prompt, each as soon as it is known.

    A decoder continues the prompt, which comes first. An encoder gives the likeliest tokens of
    every mask in it, a line each. An encoder-decoder reads it as a source and writes the target.
    corrupt: the corruption in training, which decides how masks and sentinels are written: as the
    tokenizer spells them, and "<mask>" or "<extra_id_0>", ... where they are ids of their own.
    Several texts of a search are a line each, after their scores.

    Raises: ValueError as `completions.stream`, `hypotheses.complete`, `fill_mask.fill` and
    `encoder_decoder.generate`, and for a search by an encoder.
    """
    if model.kind == "encoder_decoder":
        return iter(
            [_target(model, params, tokenizer, prompt, settings, marks(tokenizer, corrupt))]
        )
    if model.kind == "encoder":
        if not isinstance(settings, token_sampling.Sampling):
            raise ValueError("an encoder fills in masks: beams and contrastive search do not apply")
        return iter(_holes(model, params, tokenizer, prompt, marks(tokenizer, corrupt)))
    if isinstance(settings, token_sampling.Sampling):
        return _continued(prompt, completions.stream(model, params, tokenizer, prompt, settings))
    (found,) = hypotheses.complete(model, params, tokenizer, [prompt], settings)
    if len(found) == 1:
        return iter([prompt, found[0].text])
    return iter([prompt, *(f"\n  {one.score:.4f}  {one.text!r}" for one in found)])


def answer(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompt: Sequence[int],
    settings: Settings,
) -> Iterator[str]:
    """Pieces of the one reply to the tokens of a conversation.

    Raises: as `completions.stream` and `hypotheses.complete`; for more than one text of beams.
    """
    if isinstance(settings, token_sampling.Sampling):
        return completions.stream(model, params, tokenizer, prompt, settings)
    if isinstance(settings, Beams) and settings.num_return_sequences > 1:
        n = settings.num_return_sequences
        raise ValueError(f"beams.num_return_sequences: {n} given; a conversation has 1 reply")
    (found,) = hypotheses.complete(model, params, tokenizer, [prompt], settings)
    return iter([found[0].text])


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


def _continued(prompt: str, pieces: Iterator[str]) -> Iterator[str]:
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


def _target(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompt: str,
    settings: Settings,
    names: Mapping[str, int],
) -> str:
    source = [*fill_mask.encode(tokenizer, prompt, names), tokenizer.special["eos"]]
    if isinstance(settings, token_sampling.Sampling):
        ending = completions.with_eos(tokenizer, settings)
        out = encoder_decoder.generate(model, params, [source], ending)
        return f"{prompt}\n  {written(tokenizer, out.tokens[0, : out.lengths[0]].tolist(), names)}"
    (found,) = hypotheses.complete(model, params, tokenizer, [source], settings)
    scores = [f"{one.score:.4f}  " if len(found) > 1 else "" for one in found]
    lines = [f"\n  {s}{written(tokenizer, one.tokens, names)}" for s, one in zip(scores, found)]
    return "".join([prompt, *lines])


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
