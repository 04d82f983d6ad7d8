"""The cost of a planned run, as lines of text: parameters, FLOPs, bytes, tokens."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from flax import traverse_util

from jaxlm import models
from jaxlm.core import param
from jaxlm.models.layers import cache_kinds, stack
from jaxlm.ops.quant.cache_entries import Numbers
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import flops, memory

# Hoffmann et al. 2022, table 3: 20.2 tokens per parameter at 1B, 20 at 10B.
TOKENS_PER_PARAMETER = 20
# The row that makes models comparable: the cache of one sequence of this many tokens.
CACHE_TOKENS = 4096


class Row(NamedTuple):
    """One line of a report; a value of "" makes it a heading."""

    name: str
    value: str


def groups(spec: param.Tree) -> dict[str, int]:
    """{group: parameters}: weights outside the layers by name, the layers by sublayer."""
    out: dict[str, int] = {}
    for path, p in traverse_util.flatten_dict(spec).items():
        # ("stack", segment, kind, sublayer, ...) or ("embed", "table")
        name = f"layers: {path[3]}" if path[0] == "stack" else path[0]
        out[name] = out.get(name, 0) + math.prod(p.shape)
    return out


def rows(
    cfg: models.AnyConfig,
    plan: Plan,
    *,
    batch: int,
    seq: int,
    steps: int | None,
    tx: optax.GradientTransformation,
    dtype: Any,
    targets: int | None = None,
) -> list[Row]:
    """The report of training `cfg` on `batch` rows of `seq` tokens under a plan.

    targets: of an encoder-decoder, the target tokens of a row (None: `seq`); all per token is then
    per source token. steps: the run's length, None for a model that is only looked at. tx: the
    optimiser. dtype: that of activations and cache. Needs no device of the plan's.

    Raises: ValueError naming what does not divide over the plan's mesh.
    """
    count = param.count(models.spec(cfg))
    name = jnp.dtype(dtype).name
    return [
        *_parameters(cfg, count),
        *_flops(cfg, seq, targets),
        *_bytes(cfg, plan, batch, seq, tx, dtype, targets),
        Row(f"KV cache of one sequence, per device, {name}", ""),
        *_caches(cfg, plan, seq, dtype),
        Row("training", ""),
        *_tokens(cfg, count, batch * seq, seq, steps, targets),
    ]


def _parameters(cfg: models.AnyConfig, count: int) -> list[Row]:
    spec = models.spec(cfg)
    parts = [Row(k, f"{n:,}  ({n / count:.1%})") for k, n in groups(spec).items()]
    out = [Row("parameters", ""), *parts, Row("total", f"{count:,}")]
    active = round(flops.active(cfg))
    return out if active == count else [*out, Row("active for a token", f"{active:,}")]


def _flops(cfg: models.AnyConfig, seq: int, targets: int | None) -> list[Row]:
    out = [Row(f"FLOPs per token at {seq:,} tokens", "")]
    for name, causal in (("causal attention", True), ("full attention", False)):
        f = flops.per_token(cfg, seq, causal=causal, targets=targets)
        share = f.attention / f.forward
        text = f"{si(f.forward)} forward, {si(f.training)} training ({share:.1%} attention)"
        out.append(Row(name, text))
    return out


def _bytes(
    cfg: models.AnyConfig,
    plan: Plan,
    batch: int,
    seq: int,
    tx: optax.GradientTransformation,
    dtype: Any,
    targets: int | None,
) -> list[Row]:
    part = memory.training(cfg, plan, batch=batch, seq=seq, tx=tx, dtype=dtype, targets=targets)
    rows = f"{batch} x {seq:,} tokens, {plan.microbatches} micro-batches"
    how = f"{jnp.dtype(dtype).name}, remat {plan.remat}, attention {plan.attention}"
    return [
        *_pipeline(cfg, plan),
        Row(f"bytes per device: {plan}; {rows}; {how}", ""),
        Row("weights, float32", devices.binary(part.weights)),
        Row("optimiser", devices.binary(part.optimiser)),
        Row("gradients, float32", devices.binary(part.gradients)),
        Row("activations", devices.binary(part.activations)),
        Row("logits of one chunk, float32", devices.binary(part.logits)),
        Row("total", devices.binary(part.total)),
    ]


def _pipeline(cfg: models.AnyConfig, plan: Plan) -> list[Row]:
    """The turns of a pipeline, the share of them that is idle, and the layers outside of it."""
    if plan.pipe == 1:
        return []
    spec = models.spec(cfg)
    stack.check(spec, plan)
    text = f"{plan.turns} of a stage for {plan.parts} parts x {plan.pipe_rounds} rounds"
    rows = [Row(f"pipeline of {plan.pipe} stages", ""), Row("turns", text)]
    rows.append(Row("bubble", f"{plan.bubble:.1%} of them"))
    for name in ("encoder", "stack"):
        if name in spec and (stages := stack.staged(spec[name], plan)) is not None:
            segment, repeats = stages
            inside, every = repeats * len(spec[name][segment]), len(stack.kinds(spec[name]))
            text = f"{inside} of {every} in the stages; pipe splits the rows of the others"
            rows.append(Row(f"layers of the {name}", text))
    return rows


def _caches(cfg: models.AnyConfig, plan: Plan, seq: int, dtype: Any) -> list[Row]:
    model = models.build(cfg, plan)
    if model.kind == "encoder":
        return [Row("none", "it reads whole texts, and continues none")]
    longest = model.context
    lengths = {min(n, longest or n) for n in (CACHE_TOKENS, seq)}
    tensor = Plan(tensor=plan.tensor)

    def row(slots: int, numbers: Numbers | None) -> Row:
        size = memory.cache(
            cfg, tensor, batch=1, slots=slots, dtype=dtype, rings=True, numbers=numbers
        )
        name = f"{slots:,} tokens" + (f", {numbers}" if numbers else "")
        return Row(name, devices.binary(size))

    kinds: list[Numbers | None] = [None]
    kinds += [] if any(cache_kinds.problems(model, "int8")) else ["int8"]
    return [row(slots, kind) for kind in kinds for slots in sorted(lengths)]


def _tokens(
    cfg: models.AnyConfig,
    count: int,
    each: int,
    seq: int,
    steps: int | None,
    targets: int | None,
) -> list[Row]:
    """The tokens that make a model of this size compute-optimal, and those of the run."""

    def cost(tokens: int) -> str:
        return f"{si(flops.per_token(cfg, seq, targets=targets).training * tokens)}FLOPs"

    best = TOKENS_PER_PARAMETER * count
    text = f"{short(best)} tokens, {best / each:,.0f} steps, {cost(best)}"
    out = [Row(f"{TOKENS_PER_PARAMETER} tokens per parameter", text)]
    if steps is not None:
        tokens = steps * each
        text = f"{short(tokens)} tokens, {steps:,} steps, {cost(tokens)}"
        out.append(Row(f"this run: {tokens / count:.1f} tokens per parameter", text))
    return out


def text(report: list[Row]) -> str:
    """The rows as aligned lines."""
    width = max(len(row.name) for row in report if row.value) + 2
    return "\n".join(
        f"  {row.name:<{width}}{row.value}" if row.value else f"\n{row.name}" for row in report
    ).lstrip("\n")


def si(n: float) -> str:
    """A number of operations with its SI prefix."""
    units = ["Y", "Z", "E", "P", "T", "G", "M", "k"]
    return _short(n, tuple(zip(units, range(24, 0, -3))))


def short(n: float) -> str:
    """A count as papers write it: 160.6B."""
    return _short(n, (("T", 12), ("B", 9), ("M", 6), ("k", 3))).replace(" ", "")


def _short(n: float, units: tuple[tuple[str, int], ...]) -> str:
    for unit, power in units:
        if n >= 10**power:
            return f"{n / 10**power:.4g} {unit}"
    return f"{n:.0f} "
