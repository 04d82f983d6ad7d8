"""Text in, texts with scores out: beam search and contrastive search of any model that writes.

    found = hypotheses.complete(model, params, tokenizer, ["ab"], beam_search.Beams(num_beams=4))
    found[0][0].text, found[0][0].score

Shapes are rounded up as those of `token_sampling` are.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import batch as batches
from jaxlm.core import param
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import completions, encoder_decoder, prompt_tokens, sampling_loop, token_sampling
from jaxlm.decode.search import beam_search, contrastive_search
from jaxlm.decode.search.beam_search import Beams
from jaxlm.decode.search.contrastive_search import Contrastive
from jaxlm.models.model import Model
from jaxlm.ops.attention import At


class Hypothesis(NamedTuple):
    """One text.

    text: without the stop token's own text. tokens: what was generated, a stop token included.
    score: the sum of log-probabilities over length ** length_penalty, with groups after the costs
    of diversity; of contrastive search the sum. log_probs float32: of every token, under the
    model. similarity float32: of contrastive search, each token's largest cosine with those before
    it; else None. finish: "stop_token" or "length".
    """

    text: str
    tokens: list[int]
    score: float
    log_probs: np.ndarray
    similarity: np.ndarray | None
    finish: str


def complete(
    model: Model,
    params: param.Tree,
    tokenizer: tokenizers.Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    search: Beams | Contrastive,
) -> list[list[Hypothesis]]:
    """The texts found for each prompt, best first: `num_return_sequences` of beam search (fewer
    where there are no more), one of contrastive search. A prompt is text or tokens, as in
    `completions.complete`; of an encoder-decoder it is the source. The tokenizer's eos ends a text.

    Raises: as `find`.
    """
    eos = tokenizer.special["eos"]
    end = [eos] if model.kind == "encoder_decoder" else []
    ids = [
        list(prompt)
        if not isinstance(prompt, str)
        else [*tokenizer.encode(prompt), eos]
        if end
        else completions.encode(tokenizer, prompt)
        for prompt in prompts
    ]
    found = find(model, params, ids, prompt_tokens.stopping(search, (eos,)))
    before = [[]] * len(ids) if end else ids
    return [
        [one._replace(text=_text(tokenizer, prompt, one)) for one in row]
        for prompt, row in zip(before, found, strict=True)
    ]


def find(
    model: Model,
    params: param.Tree,
    prompts: token_sampling.Prompts,
    search: Beams | Contrastive,
) -> list[list[Hypothesis]]:
    """The texts found for each prompt (of an encoder-decoder, each source), without their text.

    prompts: token ids, of any lengths; one compiled program for a bucket of shapes. A row's texts
    do not depend on the others.

    Raises: ValueError, before any compute, as `token_sampling.generate` and
    `encoder_decoder.generate`; for an encoder, a model with a capacity of experts or without a KV
    cache, and top_k above the vocabulary. FloatingPointError if the model's logits are not finite.
    """
    where = "beams" if isinstance(search, Beams) else "contrastive"
    arrays, begin = _checked(model, prompts, search, where)
    width = token_sampling.bucket(max(len(a) for a in arrays))
    batch = token_sampling.bucket(len(arrays), 1)
    rows = batches.rows(arrays, width, batch)
    stop = np.full(token_sampling.bucket(len(search.stop_tokens), 1), -1, np.int32)
    stop[: len(search.stop_tokens)] = search.stop_tokens
    if isinstance(search, Beams):
        shape = beam_search.Shape(
            search.num_beam_groups,
            search.num_beams // search.num_beam_groups,
            search.num_return_sequences,
            search.early_stopping,
        )
        rule = beam_search.Rule(
            jnp.asarray(stop),
            jnp.int32(search.max_new),
            jnp.float32(search.length_penalty),
            jnp.float32(search.diversity_penalty),
        )
    else:
        shape = search.top_k
        alpha = jnp.float32(search.penalty_alpha)
        rule = contrastive_search.Rule(jnp.asarray(stop), jnp.int32(search.max_new), alpha)
    prepared = token_sampling.prepare(model, params) if model.kind == "decoder" else params
    out = _search(
        model._replace(spec=None),
        token_sampling.bucket(search.max_new),
        shape,
        begin,
        prepared,
        jnp.asarray(rows.tokens),
        At(jnp.asarray(rows.segments), jnp.asarray(rows.positions)),
        jnp.arange(batch) < len(arrays),
        rule,
    )
    return _on_host(out, len(arrays))


def _checked(
    model: Model, prompts: token_sampling.Prompts, search: Beams | Contrastive, where: str
) -> tuple[list[np.ndarray], int | None]:
    """The prompts or sources as arrays, and the token that a target begins with."""
    settings = token_sampling.Sampling(max_new=search.max_new, stop_tokens=search.stop_tokens)
    wide = search.num_beams if isinstance(search, Beams) else 1
    check = functools.partial(token_sampling.check_prompts, model, where=where, branches=wide)
    pairs = model.kind == "encoder_decoder"
    starts = [[model.cfg.start]] * len(prompts) if pairs else prompts
    arrays = check(starts, [settings] * len(prompts))
    token_sampling.check_independent(model, where)
    if isinstance(search, Contrastive) and search.top_k > model.cfg.vocab:
        raise ValueError(
            f"contrastive.top_k: {search.top_k} given; the vocabulary has {model.cfg.vocab} tokens"
        )
    if not pairs:
        return arrays, None
    return encoder_decoder.check_sources(model, prompts), model.cfg.start


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _search(
    model: Model,
    room: int,
    shape: beam_search.Shape | int,
    begin: int | None,
    params: param.Tree,
    tokens: jax.Array,
    at: At,
    active: jax.Array,
    rule: beam_search.Rule | contrastive_search.Rule,
) -> beam_search.Found | contrastive_search.Contrasted:
    source = None
    if begin is not None:
        source = at
        model, params = encoder_decoder.conditioned(model, params, tokens, at)
        tokens = jnp.full((tokens.shape[0], 1), begin, jnp.int32)
        at = At(jnp.ones_like(tokens), jnp.zeros_like(tokens))
    given = model, params, tokens, at, active
    if isinstance(rule, beam_search.Rule):
        assert isinstance(shape, beam_search.Shape)
        return beam_search.search(*given, rule, shape, room, source)
    assert isinstance(shape, int)
    return contrastive_search.search(*given, rule, shape, room, source)


def _on_host(
    out: beam_search.Found | contrastive_search.Contrasted, rows: int
) -> list[list[Hypothesis]]:
    host = jax.device_get(out)
    broken = np.flatnonzero(~host.finite[:rows])
    if broken.size:
        raise FloatingPointError(
            f"row {broken[0]}: the model's logits are not finite; are the weights?"
        )
    if isinstance(host, contrastive_search.Contrasted):
        return [[_contrasted(host, r)] for r in range(rows)]
    return [
        [_beam(host, r, m) for m, score in enumerate(host.scores[r]) if score > -np.inf]
        for r in range(rows)
    ]


def _beam(out: beam_search.Found, r: int, m: int) -> Hypothesis:
    n, finish = out.lengths[r, m], token_sampling.FINISH[out.finish[r, m]]
    tokens, score = out.tokens[r, m, :n].tolist(), float(out.scores[r, m])
    log_probs = np.asarray(out.log_probs[r, m, :n])
    return Hypothesis("", tokens, score, log_probs, None, finish)


def _contrasted(out: contrastive_search.Contrasted, r: int) -> Hypothesis:
    n, finish = out.lengths[r], token_sampling.FINISH[out.finish[r]]
    log_probs, similarity = np.asarray(out.log_probs[r, :n]), np.asarray(out.similarity[r, :n])
    score = float(log_probs.sum(dtype=np.float64))
    tokens = out.tokens[r, :n].tolist()
    return Hypothesis("", tokens, score, log_probs, similarity, finish)


def _text(tokenizer: tokenizers.Tokenizer, prompt: Sequence[int], one: Hypothesis) -> str:
    """The text of what follows the prompt, which kinds of tokenizers see that need neighbours."""
    stream = tokenizer.stream()
    for token in prompt:
        stream.push(int(token))
    end = len(one.tokens) - (one.finish == token_sampling.FINISH[sampling_loop.STOP_TOKEN])
    return "".join([*map(stream.push, one.tokens[:end]), stream.finish()])
