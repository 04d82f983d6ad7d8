"""Sampling settings, their checks, and `generate` on lists of token ids.

Shapes are rounded up so that few programs are compiled: prompt length, batch and new tokens each to
the next of 16, 24, 32, 48, 64, 96, ... (a batch from 1, 2, 3, 4, 6, 8, ...). The additional rows
and slots are padding: they are masked, and cut off the result.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import batch as batches
from jaxlm.core import check, param, target
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import sampling_loop, stop_strings
from jaxlm.models.model import Model
from jaxlm.ops import linear, quant, sampling
from jaxlm.ops.attention import At
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import memory

FINISH = ("running", "stop_token", "stop_string", "length")
"""Names of the codes of Generation.finish."""

Prompts = Sequence[Sequence[int]]


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
    repetition_penalty: float = 1.0
    """Makes tokens of prompt and continuation less likely where above 1 (CTRL's rule)."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end the text; the one that did is the last generated token."""
    stop_strings: tuple[str, ...] = ()
    """Strings that end the text, wherever token boundaries fall; the text ends before them."""
    seed: int = 0
    """Seed of a row. One Sampling for a batch gives row r seed + r."""

    def __post_init__(self) -> None:
        check.within("sampling", self, "max_new", "top_k", least=1)
        check.within("sampling", self, "temperature", least=0)
        check.within("sampling", self, "top_p", above=0, most=1)
        check.within("sampling", self, "min_p", least=0, most=1)
        check.within("sampling", self, "repetition_penalty", above=0)
        check.within("sampling", self, "seed", least=0, below=2**32)
        for s in self.stop_strings:
            ok = isinstance(s, str) and s != ""
            check.field("sampling.stop_strings", s, ok, "strings that are not empty")


def prepare(model: Model, params: param.Tree) -> param.Tree:
    """The weights as decoding reads them: layers apart, matrices in the dtype they are used in, and
    on a CPU with their outputs first (`linear.Turned`); adapters become part of them. Matrices in
    few bits (`quant.Packed`) stay so.

    It costs one copy, which `generate` and `stream` otherwise make at every call. Weights that are
    already so prepared are returned as they are.
    """
    if sampling_loop.unstacked_already(params):
        return params
    params = {name: params[name] for name in model.spec}  # without an objective's heads
    return _prepare(_static(model), _products(model.spec), params)


def generate(
    model: Model,
    params: param.Tree,
    prompts: Prompts,
    sampling: Sampling | Sequence[Sampling],
    tokenizer: tokenizers.Tokenizer | None = None,
) -> sampling_loop.Generation:
    """Continuations of prompts, as numpy arrays [B, largest max_new] (see
    `sampling_loop.Generation`).

    prompts: token ids, at least one each; a model that starts from nothing is given
    `tokenizer.begin(t)`. sampling: one for all rows (row r with seed + r), or one per row. Without
    stop strings this is one compiled program; with them, which needs the tokenizer, the host looks
    at the text every few tokens, and the result is the same as if it had looked at each.

    Raises: ValueError, before any compute, for an empty prompt, a token outside the vocabulary, a
    text longer than the model's positions, a stop string without a tokenizer. FloatingPointError
    if the model's logits are not finite.
    """
    settings = each(sampling, len(prompts))
    if not any(s.stop_strings for s in settings):
        job = _job(model, params, prompts, settings)
        out = _generate(job.model, job.room, job.params, *job.inputs)
        return on_host(out, job.rows, job.columns)
    if tokenizer is None:
        raise ValueError("sampling.stop_strings: a tokenizer is needed to find strings in tokens")
    watches = [
        stop_strings.Watch(tokenizer, prompt, s.stop_strings)
        for prompt, s in zip(prompts, settings)
    ]
    *_, out = chunks(model, params, prompts, settings, watches, 16)
    return out


def chunks(
    model: Model,
    params: param.Tree,
    prompts: Prompts,
    sampling: Sampling | Sequence[Sampling],
    watches: list[stop_strings.Watch],
    every: int,
) -> Iterator[sampling_loop.Generation]:
    """The Generation so far, after every few tokens, until all rows have ended.

    watches: one per row; each is shown its row's new tokens, and ends the row at a stop string.
    """
    job = _job(model, params, prompts, each(sampling, len(prompts)))
    state = _start(job.model, job.room, job.params, *job.inputs)
    while True:
        out = on_host(state.out, job.rows, job.columns)
        ended = np.asarray(state.out.finish).copy()
        for r, row in enumerate(watches):
            _show(row, out, r)
            if row.stopped and out.finish[r] != sampling_loop.STOP_STRING:
                ended[r] = sampling_loop.STOP_STRING
                out = _cut(out, r, row.tokens)
        yield out
        if not (ended == sampling_loop.RUNNING).any():
            return
        lengths = np.asarray(state.out.lengths).copy()
        lengths[: len(watches)] = out.lengths
        state = state._replace(
            out=state.out._replace(finish=jnp.asarray(ended), lengths=jnp.asarray(lengths))
        )
        state = _advance(job.model, every, job.params, state, job.inputs[-1])


def each(sampling: Sampling | Sequence[Sampling], rows: int) -> list[Sampling]:
    """One Sampling per row. Raises: ValueError if a list has another length."""
    if isinstance(sampling, Sampling):
        return [
            dataclasses.replace(sampling, seed=(sampling.seed + r) % 2**32) for r in range(rows)
        ]
    if len(sampling) != rows:
        raise ValueError(f"sampling: {len(sampling)} settings given for {rows} prompts")
    return list(sampling)


def bucket(n: int, least: int = 16) -> int:
    """The smallest of least * (1, 1.5, 2, 3, 4, 6, ...) that is at least n."""
    size = least
    while size < n:
        step = 3 * size // 2
        size = step if n <= step and step > size else 2 * size
    return size


class _Job(NamedTuple):
    """A checked request: the model as a static argument, tokens to make room for, prepared weights,
    (tokens, at, rows) on padded shapes, and the shape to cut the result to."""

    model: Model
    room: int
    params: param.Tree
    inputs: tuple[jax.Array, At, sampling_loop.Rows]
    rows: int
    columns: int


def _job(model: Model, params: param.Tree, prompts: Prompts, settings: list[Sampling]) -> _Job:
    arrays = check_prompts(model, prompts, settings)
    new = max(s.max_new for s in settings)
    batch, width = bucket(len(arrays), 1), bucket(max(len(a) for a in arrays))
    rows = batches.rows(arrays, width, batch)
    inputs = (
        jnp.asarray(rows.tokens),
        At(jnp.asarray(rows.segments), jnp.asarray(rows.positions)),
        rows_of(settings, batch),
    )
    prepared = prepare(model, params)
    return _Job(_static(model), bucket(new), prepared, inputs, len(arrays), new)


def rows_of(settings: list[Sampling], batch: int) -> sampling_loop.Rows:
    """Per-row settings as arrays [batch]; rows beyond the settings generate nothing."""
    idle = Sampling(temperature=0.0)
    padded = settings + [idle] * (batch - len(settings))

    def column(values: list, dtype: Any) -> jax.Array:
        return jnp.asarray(np.array(values, dtype))

    places = bucket(max(len(s.stop_tokens) for s in padded), 1)
    stop = np.full((batch, places), -1, np.int32)
    for r, s in enumerate(padded):
        stop[r, : len(s.stop_tokens)] = s.stop_tokens
    controls = sampling.Controls(
        temperature=column([s.temperature for s in padded], np.float32),
        top_k=column([s.top_k or 0 for s in padded], np.int32),
        top_p=column([s.top_p for s in padded], np.float32),
        min_p=column([s.min_p for s in padded], np.float32),
        repetition=column([s.repetition_penalty for s in padded], np.float32),
    )
    keys = jax.vmap(jax.random.key)(column([s.seed for s in padded], np.uint32))
    limit = column([s.max_new for s in settings] + [0] * (batch - len(settings)), np.int32)
    return sampling_loop.Rows(controls, keys, jnp.asarray(stop), limit)


def check_prompts(model: Model, prompts: Prompts, settings: list[Sampling]) -> list[np.ndarray]:
    """The prompts as int32 arrays.

    Raises: ValueError naming row, position, value and what would fit; and for an encoder.
    """
    if model.kind == "encoder":
        raise ValueError("bidirectional models do not continue text; see `decode.fill_mask.fill`")
    if not prompts:
        raise ValueError("prompts: none given; at least one is needed")
    vocab, arrays = model.cfg.vocab, []
    for r, (prompt, s) in enumerate(zip(prompts, settings, strict=True)):
        row = np.asarray(prompt)
        if not row.size:
            raise ValueError(
                f"prompt {r}: empty; a model continues at least one token. To start from nothing, "
                "give the token that begins every document (bos, or eos without one)"
            )
        if row.ndim != 1 or row.dtype.kind not in "iu":
            raise ValueError(f"prompt {r}: token ids are needed, got {prompt!r:.60}")
        _check_range(f"prompt {r}, position", row, vocab)
        _check_range(f"sampling.stop_tokens of row {r}, place", np.array(s.stop_tokens, int), vocab)
        total = len(row) + s.max_new
        if model.context is not None and total > model.context:
            raise ValueError(
                f"prompt {r}: {len(row)} tokens and sampling.max_new={s.max_new} make {total}; the "
                f"model has {model.context} positions, so max_new may be at most "
                f"{model.context - len(row)} here"
            )
        arrays.append(row.astype(np.int32))
    rows, slots = len(arrays), max(len(a) + s.max_new for a, s in zip(arrays, settings))
    # two bytes an element are the least that a cache takes
    layers = {str(i): layer for i, layer in enumerate(model.cache(rows, slots))}
    need = memory.spec_bytes(layers, memory.mesh(Plan()), jnp.bfloat16)
    devices.check(f"sampling.max_new: the cache of {rows} texts of {slots:,} tokens", need)
    return arrays


def _check_range(where: str, ids: np.ndarray, vocab: int) -> None:
    wrong = np.flatnonzero((ids < 0) | (ids >= vocab))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"{where} {i}: token {ids[i]} is outside the vocabulary 0..{vocab - 1}")


def on_host(out: sampling_loop.Generation, rows: int, columns: int) -> sampling_loop.Generation:
    """The Generation as numpy arrays [rows, columns], padding cut off.

    Raises: FloatingPointError for a log-probability that is not finite.
    """
    arrays: list[Any] = [np.array(x)[:rows] for x in jax.device_get(out)]
    host = sampling_loop.Generation(*arrays)
    host = host._replace(
        **{f: getattr(host, f)[:, :columns] for f in host._fields[:1] + host._fields[2:4]}
    )
    bad = np.argwhere(~np.isfinite(host.log_probs))
    if bad.size:
        r, t = bad[0]
        raise FloatingPointError(
            f"row {r}, new token {t}: the model's logits are not finite; are the weights?"
        )
    return host


def _show(row: stop_strings.Watch, out: sampling_loop.Generation, r: int) -> None:
    """Push the row's tokens that its watch has not seen; a stop token's text is not part of it."""
    end = out.lengths[r] - (out.finish[r] == sampling_loop.STOP_TOKEN)
    while row.tokens < end and not row.stopped:
        row.push(int(out.tokens[r, row.tokens]))


def _cut(out: sampling_loop.Generation, r: int, length: int) -> sampling_loop.Generation:
    """The Generation with row r ended by a stop string after `length` tokens."""
    for x in (out.tokens, out.log_probs, out.support_log_probs):
        x[r, length:] = 0
    out.lengths[r], out.finish[r] = length, sampling_loop.STOP_STRING
    return out


# --- Programs, compiled once per model and shape ---------------------------------------------


def _static(model: Model) -> Model:
    """The model without its spec, a dict: what is left can be a static argument of jit."""
    return model._replace(spec=None)


class _Product(NamedTuple):
    """A weight's copies and inputs, and whether it is one matrix a layer. A weight with one for
    each expert or head has products of its own, which read it as it is stored."""

    copies: int
    inputs: int
    single: bool


def _products(spec: param.Tree) -> tuple[_Product, ...]:
    return tuple(
        _Product(p.copies, p.inputs, set(p.axes[: p.copies]) <= {"layer"})
        for p in param.flatten(spec).values()
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prepare(model: Model, products: tuple[_Product, ...], params: param.Tree) -> param.Tree:
    token = jnp.zeros((1, 1), jnp.int32)
    dtype = jax.eval_shape(model.hidden, params, token, At(token, token)).x.dtype
    leaves, structure = jax.tree.flatten(params, is_leaf=linear.is_leaf)

    def ready(w: Any, p: _Product) -> Any:
        if isinstance(w, quant.Packed):
            return w
        w = linear.dense(w)
        w = w.astype(dtype) if p.inputs else w
        if p.inputs and p.single and target.platform() == "cpu":
            return linear.turned(w, p.copies, p.inputs)
        return w

    stored = [ready(w, p) for w, p in zip(leaves, products, strict=True)]
    return sampling_loop.unstacked(jax.tree.unflatten(structure, stored))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    model: Model, room: int, params: param.Tree, tokens: jax.Array, at: At, rows: sampling_loop.Rows
) -> sampling_loop.Generation:
    return sampling_loop.generate(model, params, tokens, at, rows, room)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(
    model: Model, room: int, params: param.Tree, tokens: jax.Array, at: At, rows: sampling_loop.Rows
) -> sampling_loop.State:
    return sampling_loop.start(model, params, tokens, at, rows, room)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _advance(
    model: Model,
    steps: int,
    params: param.Tree,
    state: sampling_loop.State,
    rows: sampling_loop.Rows,
) -> sampling_loop.State:
    return sampling_loop.advance(model, params, state, rows, steps)
