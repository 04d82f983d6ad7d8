"""`generate` on lists of token ids: requests are checked, padded, run and cut to size.

Shapes are rounded up so that few programs are compiled: prompt length, batch and new tokens each to
the next of 16, 24, 32, 48, 64, 96, ... (a batch from 1, 2, 3, 4, 6, 8, ...). The additional rows
and slots are padding: they are masked, and cut off the result.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import batch as batches
from jaxlm.core import check, config, param, target
from jaxlm.data.tokenizers import tokenizer as tokenizers
from jaxlm.decode import sampling_loop, sampling_settings, stop_strings
from jaxlm.decode.sampling_settings import Sampling, bucket, each, rows_of
from jaxlm.models.layers import cache_kinds
from jaxlm.models.model import Model
from jaxlm.ops import linear, quant
from jaxlm.ops.attention import At
from jaxlm.ops.kernels import tiles
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import memory

FINISH = ("running", "stop_token", "stop_string", "length")
"""Names of the codes of Generation.finish."""

Prompts = Sequence[Sequence[int]]
Products = Literal["platform", "xla", "tiles"]
PRODUCTS = ("platform", "xla", "tiles")


class Job(NamedTuple):
    """A checked request: the model as a static argument, tokens to make room for, prepared weights,
    (tokens, at, rows) on padded shapes, and the shape to cut the result to."""

    model: Model
    room: int
    params: param.Tree
    inputs: tuple[jax.Array, At, sampling_loop.Rows]
    rows: int
    columns: int


def prepare(model: Model, params: param.Tree, products: Products = "platform") -> param.Tree:
    """The weights as decoding reads them: layers apart, matrices in the dtype they are used in, and
    on a CPU in the layout of their products; adapters become part of them. Matrices in few bits
    (`quant.Packed`) stay so.

    products: "xla", on a CPU with their outputs first (`linear.Turned`); "tiles", by machine code
    of this library's own (`ops.kernels.tiles`, extra `cpu`), which reads integers of 8 and 4 bits
    as they are stored; "platform" is tiles on one CPU device where the extra is installed.

    It costs one copy, which `generate` and `stream` otherwise make at every call. Weights that are
    already so prepared are returned as they are.

    Raises: ValueError for "tiles" without the extra, on another platform, or in a dtype it has not.
    """
    check.field("products", products, products in PRODUCTS, f"one of {[*PRODUCTS]}")
    if sampling_loop.unstacked_already(params):
        return params
    params = {name: params[name] for name in model.spec}  # without an objective's heads
    return _prepare(_static(model), products, _products(model.spec), params)


def generate(
    model: Model,
    params: param.Tree,
    prompts: Prompts,
    sampling: Sampling | Sequence[Sampling],
    tokenizer: tokenizers.Tokenizer | None = None,
) -> sampling_loop.Generation:
    """Continuations of prompts, as numpy arrays [B, largest max_new] (see
    `sampling_loop.Generation`): the n of the first prompt, then those of the second, and so on;
    where they are the best of more, the best first.

    prompts: token ids, at least one each; a model that starts from nothing is given
    `tokenizer.begin(t)`. sampling: one for all prompts, whose continuations have its seed and those
    after it, or one per prompt. Without stop strings this is one compiled program; with them, which
    needs the tokenizer, the host looks at the text every few tokens, and the result is the same as
    if it had looked at each.

    Raises: ValueError, before any compute, for an empty prompt, a token outside the vocabulary, a
    text longer than the model's positions, a stop string without a tokenizer, rules that leave no
    token for the first place, and later for another; FloatingPointError for logits not finite.
    """
    settings = each(sampling, len(prompts))
    if not any(s.stop_strings for s in settings):
        job = prepared(model, params, prompts, settings)
        return finished(job, _generate(job.model, job.room, job.params, *job.inputs), settings)
    watches = watching(tokenizer, prompts, settings)
    *_, out = chunks(model, params, prompts, settings, watches, 16)
    return chosen(out, settings)


def chunks(
    model: Model,
    params: param.Tree,
    prompts: Prompts,
    sampling: Sampling | Sequence[Sampling],
    watches: list[stop_strings.Watch],
    every: int,
) -> Iterator[sampling_loop.Generation]:
    """The Generation of all candidates so far, after every few tokens, until all rows have ended.

    watches: one per row; each is shown its row's new tokens, and ends the row at a stop string.
    """
    job = prepared(model, params, prompts, each(sampling, len(prompts)))

    def advance(state: sampling_loop.State) -> sampling_loop.State:
        return _advance(job.model, every, job.params, state, job.inputs[-1])

    state = _start(job.model, job.room, job.params, *job.inputs)
    yield from watched(job, state, watches, advance)


def watching(
    tokenizer: tokenizers.Tokenizer | None, prompts: Prompts, settings: Sequence[Sampling]
) -> list[stop_strings.Watch]:
    """The Watch of every candidate. Raises: ValueError without a tokenizer."""
    if tokenizer is None:
        raise ValueError("sampling.stop_strings: a tokenizer is needed to find strings in tokens")
    rows, origin = sampling_settings.candidates(settings)
    return [stop_strings.Watch(tokenizer, prompts[p], s.stop_strings) for p, s in zip(origin, rows)]


def watched(
    job: Job,
    state: sampling_loop.State,
    watches: list[stop_strings.Watch],
    advance: Callable[[sampling_loop.State], sampling_loop.State],
) -> Iterator[sampling_loop.Generation]:
    """`chunks`, from a State on. advance(state) -> the State a few tokens on."""
    while True:
        out = on_host(state.out, job.rows, job.columns)
        ended = np.asarray(state.out.finish).copy()
        for r, row in enumerate(watches):
            # a stop token's text is not part of it
            end = out.lengths[r] - (out.finish[r] == sampling_loop.STOP_TOKEN)
            row.follow(out.tokens[r, :end].tolist())
            if row.stopped:
                ended[r] = sampling_loop.STOP_STRING
                out = _cut(out, r, row.tokens)
        check_choices(out)
        yield out
        if not (ended == sampling_loop.RUNNING).any():
            return
        lengths = np.asarray(state.out.lengths).copy()
        lengths[: len(watches)] = out.lengths
        so_far = state.out._replace(finish=jnp.asarray(ended), lengths=jnp.asarray(lengths))
        state = advance(state._replace(out=so_far))


def finished(
    job: Job, out: sampling_loop.Generation, settings: Sequence[Sampling]
) -> sampling_loop.Generation:
    """The result of `generate` for what a job's program returned. Raises: as `generate`."""
    host = on_host(out, job.rows, job.columns)
    check_choices(host)
    return chosen(host, settings)


def prepared(model: Model, params: param.Tree, prompts: Prompts, settings: list[Sampling]) -> Job:
    """The Job of prompts with a Sampling each. Raises: ValueError as `check_prompts`."""
    model = cache_kinds.windowed(model)
    arrays = check_prompts(model, prompts, settings)
    new = max(s.max_new for s in settings)
    width = bucket(max(len(a) for a in arrays))
    batch = batches.rows(arrays, width, bucket(len(arrays), 1))
    rows, count = rows_from(settings)
    at = At(jnp.asarray(batch.segments), jnp.asarray(batch.positions))
    inputs, weights = (jnp.asarray(batch.tokens), at, rows), prepare(model, params)
    return Job(_static(model), bucket(new), weights, inputs, count, new)


def rows_from(settings: Sequence[Sampling]) -> tuple[sampling_loop.Rows, int]:
    """(Rows of all candidates of prompts with these settings, how many those are); each prompt's
    settings are its own, and one candidate of every prompt is a program without `origin`."""
    each_row, origin = sampling_settings.candidates(settings)
    batch = bucket(len(each_row), 1)
    rows = rows_of(each_row, batch)
    if len(each_row) > len(settings):
        padded = np.pad(origin, (0, batch - len(origin)))
        rows = rows._replace(origin=jnp.asarray(padded))
    return rows, len(each_row)


def chosen(out: sampling_loop.Generation, settings: Sequence[Sampling]) -> sampling_loop.Generation:
    """The n rows of each prompt, out of all its candidates: those with the highest mean of
    `log_probs` over their tokens, the best first, where there are more than n."""
    total = np.sum(out.log_probs, axis=1, dtype=np.float64)
    mean, keep, first = total / out.lengths, [], 0
    for s in settings:
        rows = np.arange(first, first + s.candidates)
        if s.candidates > s.n:
            rows = rows[np.argsort(-mean[rows], kind="stable")[: s.n]]
        keep += rows.tolist()
        first += s.candidates
    return sampling_loop.Generation(*(x[keep] for x in out))


def check_prompts(
    model: Model,
    prompts: Prompts,
    settings: list[Sampling],
    where: str = "sampling",
    branches: int = 1,
) -> list[np.ndarray]:
    """The prompts as int32 arrays. where: the name of the settings; branches: continuations of a
    prompt that the cache holds.

    Raises: ValueError naming row, position, value and what would fit; and for an encoder.
    """
    if model.kind == "encoder":
        raise ValueError("bidirectional models do not continue text; see `decode.fill_mask.fill`")
    if not prompts:
        raise ValueError("prompts: none given; at least one is needed")
    arrays = [
        check_prompt(model, r, prompt, s, where)
        for r, (prompt, s) in enumerate(zip(prompts, settings, strict=True))
    ]
    rows = sum(s.candidates for s in settings)
    slots = max(len(a) + branches * s.max_new for a, s in zip(arrays, settings))
    # two bytes an element are the least that a cache takes
    layers = {str(i): layer for i, layer in enumerate(model.cache(rows, slots))}
    need = memory.spec_bytes(layers, memory.mesh(Plan()), jnp.bfloat16)
    devices.check(f"{where}.max_new: the cache of {rows} texts of {slots:,} tokens", need)
    return arrays


def check_prompt(
    model: Model, r: int, prompt: Sequence[int], s: Sampling, where: str = "sampling"
) -> np.ndarray:
    """Prompt r as int32[P]; what a batch of it takes is not looked at. Raises: as
    `check_prompts`."""
    row = np.asarray(prompt)
    if not row.size:
        raise ValueError(
            f"prompt {r}: empty; a model continues at least one token. To start from nothing, "
            "give the token that begins every document (bos, or eos without one)"
        )
    if row.ndim != 1 or row.dtype.kind not in "iu":
        raise ValueError(f"prompt {r}: token ids are needed, got {prompt!r:.60}")
    sampling_settings.check_range(f"prompt {r}, position", row, model.cfg.vocab)
    sampling_settings.check_tokens(r, s, row.tolist(), model.cfg.vocab, where)
    total = len(row) + s.max_new
    if model.context is not None and total > model.context:
        left = model.context - len(row)
        fits = f"max_new may be at most {left} here" if left > 0 else "the prompt alone is too long"
        raise ValueError(
            f"prompt {r}: {len(row)} tokens and {where}.max_new={s.max_new} make {total}; the "
            f"model has {model.context} positions, so {fits}"
        )
    return row.astype(np.int32)


def check_independent(model: Model, where: str) -> None:
    """Raises: ValueError for a model whose tokens of one row and position are not independent of
    others': with a capacity, experts would leave out some, and a module without a KV cache reads
    all of a row."""
    if getattr(model.cfg, "capacity", None) is not None:
        raise ValueError(
            f"{where}: model.capacity={model.cfg.capacity} drops tokens, so that texts would "
            "compete for experts; None, which is dropless, has the same weights"
        )
    if any("tokens" in layer for layer in model.cache(1, 1)):
        kind = config.kind(type(model.cfg))
        raise ValueError(f"{where}: a {kind} model has no KV cache, which is needed here")


def independent(model: Model) -> bool:
    """Whether `check_independent` passes a model."""
    try:
        check_independent(model, "")
    except ValueError:
        return False
    return True


def on_host(out: sampling_loop.Generation, rows: int, columns: int) -> sampling_loop.Generation:
    """The Generation as numpy arrays [rows, columns], padding cut off.

    Raises: FloatingPointError for a log-probability that is not finite.
    """
    arrays: list[Any] = [np.array(x)[:rows] for x in jax.device_get(out)]
    host = sampling_loop.Generation(*arrays)
    host = host._replace(
        **{f: getattr(host, f)[:, :columns] for f in host._fields[:1] + host._fields[2:4]}
    )
    for r, t in np.argwhere(~np.isfinite(host.log_probs)):
        raise FloatingPointError(
            f"row {r}, new token {t}: the model's logits are not finite; are the weights?"
        )
    return host


def check_choices(out: sampling_loop.Generation) -> None:
    """Raises: ValueError with the row and place where its rules left no token to choose."""
    none = np.argwhere(np.isnan(out.support_log_probs))
    if none.size:
        r, t = none[0]
        raise ValueError(
            f"row {r}, new token {t}: sampling.banned, no_repeat_ngram_size and min_new leave no "
            "token to choose; allow at least one, or lower max_new"
        )


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
    """A weight's copies and inputs, whether it is one matrix a layer, and whether it is an
    embedding table that is the output matrix, too. A weight with one for each expert or head has
    products of its own, which read it as it is stored."""

    copies: int
    inputs: int
    single: bool
    tied: bool


def _products(spec: param.Tree) -> tuple[_Product, ...]:
    def product(path: str, p: param.Param) -> _Product:
        tied = path == "embed/table" and "unembed" not in spec
        return _Product(p.copies, p.inputs, set(p.axes[: p.copies]) <= {"layer"}, tied)

    return tuple(product(path, p) for path, p in param.flatten(spec).items())


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prepare(
    model: Model, kernel: Products, products: tuple[_Product, ...], params: param.Tree
) -> param.Tree:
    token = jnp.zeros((1, 1), jnp.int32)
    dtype = jax.eval_shape(model.hidden, params, token, At(token, token)).x.dtype
    if kernel == "tiles":
        check.refuse("", tiles.problems(dtype))
    tiled = kernel == "tiles" or (kernel == "platform" and tiles.chosen(dtype))
    leaves, structure = jax.tree.flatten(params, is_leaf=linear.is_leaf)

    def ready(w: Any, p: _Product) -> Any:
        if isinstance(w, quant.Packed):
            fits = tiled and p.single and isinstance(w, quant.Integers)
            return (tiles.tiled_integers(w) if fits else None) or w
        w = linear.dense(w)
        if tiled and p.tied and w.dtype == dtype:
            return tiles.tiled_table(w)
        w = w.astype(dtype) if p.inputs else w
        if p.inputs and p.single and target.platform() == "cpu":
            layout = tiles.tiled if tiled else linear.turned
            return layout(w, p.copies, p.inputs)
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
