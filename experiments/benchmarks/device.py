"""What one accelerator makes of jaxlm: training, decoding, attention, a population, and its laws.

    python experiments/benchmarks/device.py --write device.json       # at most 8 minutes on one GPU
    JAX_PLATFORMS=cpu python experiments/benchmarks/device.py --tiny  # the same code, on a CPU

The parts run in the order of PARTS, each in this process; one that fails is reported, and the rest
go on; one for which no time is left (`--minutes`) is named. Every rate has the device's own limit
next to it, measured here: bfloat16 products of 8,192 by 8,192 matrices, and a copy of 2 GiB. Times
are medians of calls that end with a value on the host. MFU counts the FLOPs of the model
(`scaling.cost.flops`), with the keys that each query may see, and none that are recomputed.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import models, objectives
from jaxlm.core import param
from jaxlm.core.batch import Batch
from jaxlm.decode import token_sampling
from jaxlm.models import gpt, llama
from jaxlm.objectives import clm
from jaxlm.ops import attention, masks
from jaxlm.parallel import devices
from jaxlm.parallel.plan import Plan
from jaxlm.scaling.cost import flops
from jaxlm.train import step
from jaxlm.train.optim import optimizer

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # the cases of the laws are the tests'

# Dense bfloat16 FLOP/s of NVIDIA's data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured: `FULL` on a device, `TINY` to rehearse."""

    matrix: int
    copied: int  # bytes
    rounds: int
    trained: tuple[tuple[str, Any, int, int], ...]  # name, Config, rows, tokens a row
    decoded: Any
    batches: tuple[int, ...]
    new: int
    heads: tuple[int, int, int, int, int]  # B, T, N, K, H
    members: int
    cases: int | None  # families in the laws; None is all
    compute: Any


GPT2 = gpt.Config(vocab=50304)
XL = llama.Config(
    vocab=50304, embed=2048, layers=24, heads=16, kv=16, head=128, ffn=5504, context=2048
)
SMALL = llama.Config(vocab=259, embed=32, layers=2, heads=2, kv=1, head=16, ffn=64, context=64)
FULL = Sizes(
    8192,
    2**31,
    10,
    (("124M", GPT2, 32, 1024), ("1.3B", XL, 8, 2048)),
    models.presets()["llama3-8b"],
    (1, 16),
    128,
    (4, 4096, 32, 8, 128),
    32,
    None,
    jnp.bfloat16,
)
TINY = Sizes(
    64,
    2**16,
    2,
    (("tiny", SMALL, 4, 64),),
    SMALL,
    (2,),
    4,
    (2, 32, 4, 2, 16),
    2,
    1,
    jnp.float32,
)


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a call that has run once before."""
    jax.block_until_ready(call())
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def limits(size: Sizes) -> Rows:
    """FLOP/s of a large product, and bytes a second that a copy reads and writes."""
    a = jnp.ones((size.matrix, size.matrix), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a)
    rate = 2 * size.matrix**3 / seconds(lambda: product(a), size.rounds)
    x = jnp.ones(size.copied // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    moved = 2 * size.copied / seconds(lambda: copy(x), size.rounds)
    return [{"products TFLOP/s": rate / 1e12, "copy GB/s": moved / 1e9}]


def peak() -> float | None:
    """FLOP/s of the data sheet; None for a device that is not in PEAKS."""
    kind = jax.devices()[0].device_kind
    return next((rate for name, rate in PEAKS.items() if name in kind), None)


def training(size: Sizes) -> Rows:
    """Steps of pretraining with every kernel that runs here."""
    limit, out = limits(size)[0]["products TFLOP/s"] * 1e12, []
    for name, cfg, rows, seq in size.trained:
        for kernel in ("xla", "blockwise", "cudnn", "splash"):
            if not attention.runs_here(kernel):
                continue
            plan = Plan(attention=kernel, remat="dots")
            each = _step_seconds(cfg, plan, rows, seq, size.rounds)
            work = flops.per_token(cfg, seq).training * rows * seq / each
            top = peak()
            out.append(
                {
                    "model": name,
                    "attention": kernel,
                    "tokens/s": rows * seq / each,
                    "MFU": None if top is None else work / top,
                    "share of products": work / limit,
                    "GiB": _gib(),
                }
            )
    return out


def _step_seconds(cfg: Any, plan: Plan, rows: int, seq: int, rounds: int) -> float:
    """Median seconds of a step on random rows of one document each."""
    objective = objectives.build(clm.Config(), models.build(cfg, plan), plan)
    tx = optimizer.build(optimizer.Optim(warmup=0), objective.spec, 1000, fp16=False)
    state, update = step.init(objective, tx, plan, seed=0), step.make(objective, tx, plan)
    ids = np.random.default_rng(0).integers(0, cfg.vocab, (rows, seq + 1)).astype(np.int32)
    ones = np.ones((rows, seq), np.int32)
    where = np.tile(np.arange(seq, dtype=np.int32), (rows, 1))
    batch = jax.device_put(Batch(ids[:, :-1], ids[:, 1:], ones.astype(np.float32), ones, where))

    def once() -> Any:
        nonlocal state
        state, measured = update(state, batch)
        return measured["loss"]

    each = seconds(once, rounds)
    loss = float(once())
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}")
    return each


def _gib() -> float | None:
    """The most memory that has been in use so far, where the device says so."""
    stats = jax.devices()[0].memory_stats()
    return None if not stats else stats.get("peak_bytes_in_use", 0) / 2**30


def decoding(size: Sizes) -> Rows:
    """Greedy decoding of random weights: every step reads all of them and the cache."""
    limit, cfg, out = limits(size)[0]["copy GB/s"] * 1e9, size.decoded, []
    model = models.build(cfg, Plan(compute=jnp.dtype(size.compute).name))

    def draw(key: jax.Array) -> param.Tree:
        drawn = param.init(model.spec, key)
        return jax.tree.map(lambda w: w.astype(size.compute), drawn)

    params = token_sampling.prepare(model, jax.jit(draw)(jax.random.key(0)))
    held = sum(x.nbytes for x in jax.tree.leaves(params))
    table = cfg.vocab * cfg.embed * jnp.dtype(size.compute).itemsize
    settings = token_sampling.Sampling(max_new=size.new, temperature=0.0)
    for batch in size.batches:
        prompts = np.random.default_rng(0).integers(0, cfg.vocab, (batch, 16)).tolist()
        once = token_sampling.Sampling(max_new=1, temperature=0.0)
        all_, first = (
            seconds(lambda s=s, p=prompts: token_sampling.generate(model, params, p, s).tokens, 3)
            for s in (settings, once)
        )
        each = (all_ - first) / (size.new - 1)
        cache = model.cache(batch, 16 + size.new // 2)
        shapes = [p.shape for layer in cache for p in param.flatten(layer).values()]
        slots = sum(math.prod(shape) for shape in shapes)
        read = held - (0 if cfg.tied else table) + slots * jnp.dtype(size.compute).itemsize
        out.append(
            {
                "batch": batch,
                "tokens/s": batch / each,
                "ms a token": 1e3 * each,
                "GB/s": read / each / 1e9,
                "share of copy": read / each / limit,
            }
        )
    return out


def kernels(size: Sizes) -> Rows:
    """Every attention kernel against float32 scores: value, gradients, milliseconds of both."""
    b, t, n, k, h = size.heads
    shapes = ((b, t, n, h), (b, t, k, h), (b, t, k, h), (b, t, n, h))
    keys = jax.random.split(jax.random.key(0), 4)
    q, key, v, g = (jax.random.normal(i, s, size.compute) for i, s in zip(keys, shapes))
    half = jnp.arange(t) // (t // 2)  # two documents a row
    at = masks.At(jnp.tile(half + 1, (b, 1)), jnp.tile(jnp.arange(t) % (t // 2), (b, 1)))

    def passes(kernel: Any, dtype: Any) -> Callable[[], Any]:
        def run(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> Any:
            parts = (x.astype(dtype) for x in (q, k, v))
            out, back = jax.vjp(
                lambda q, k, v: attention.attend(q, k, v, at, at, kernel=kernel), *parts
            )
            return out, back(g.astype(dtype))

        compiled = jax.jit(run)
        return lambda: compiled(q, key, v, g)

    with jax.default_matmul_precision("highest"):
        exact = jax.device_get(jax.tree.leaves(passes("blockwise", jnp.float32)()))
    out = []
    for kernel in ("xla", "blockwise", "cudnn", "splash"):
        if attention.runs_here(kernel):
            call = passes(kernel, size.compute)
            ours = jax.device_get(jax.tree.leaves(call()))
            apart = [
                float(np.abs(np.float32(a) - e).max() / np.abs(e).max())
                for a, e in zip(ours, exact)
            ]
            names = ("value", "dq", "dk", "dv")
            row = {"attention": kernel, **dict(zip(names, apart))}
            out.append(row | {"ms": 1e3 * seconds(call, size.rounds)})
    return out


def population(size: Sizes) -> Rows:
    """Steps a second of one small model, and of many abreast."""
    plan = Plan()
    objective = objectives.build(clm.Config(), models.build(SMALL, plan), plan)
    tx = optimizer.build(optimizer.Optim(warmup=0), objective.spec, 1000, fp16=False)
    ids = np.random.default_rng(0).integers(0, SMALL.vocab, (size.members, 8, 65)).astype(np.int32)
    ones = np.ones((size.members, 8, 64), np.int32)
    where = np.broadcast_to(np.arange(64, dtype=np.int32), ones.shape)
    batch = Batch(ids[..., :-1], ids[..., 1:], ones.astype(np.float32), ones, where)
    make = step.initializer(objective, tx, plan)
    seeds = [make(jax.random.key_data(jax.random.key(seed))) for seed in range(size.members)]
    states = jax.jit(lambda *each: jax.tree.map(lambda *x: jnp.stack(x), *each))(*seeds)
    body = step.body(objective, tx, plan)
    many, one = jax.jit(jax.vmap(body)), jax.jit(body)
    single = seeds[0], jax.tree.map(lambda x: x[0], batch)
    together = seconds(lambda: many(states, batch), size.rounds)
    alone = seconds(lambda: one(*single), size.rounds)
    return [
        {
            "members": size.members,
            "ms together": 1e3 * together,
            "ms of one": 1e3 * alone,
            "times as fast": size.members * alone / together,
        }
    ]


def laws(size: Sizes) -> Rows:
    """Every family's logits, loss and gradients here and on the CPU, float32 products: the largest
    differences, as parts of the largest value."""
    from tests import programs

    cpu, out = jax.devices("cpu")[0], []
    for case in list(programs.FAMILIES)[: size.cases]:
        batch, params = programs.rows(0), jax.tree.map(np.asarray, programs.weights(case))
        probe = programs.prober(case, Plan(compute="float32"))
        with jax.default_matmul_precision("highest"):
            here, there = (
                jax.device_get(probe(*jax.device_put((params, batch), d)))
                for d in (jax.devices()[0], cpu)
            )
        apart = {
            name: max(
                float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
                for a, b in zip(*(jax.tree.leaves(getattr(x, name)) for x in (here, there)))
            )
            for name in ("logits", "loss", "grads")
        }
        out.append({"case": case, **apart})
    return out


PARTS = {
    "limits": limits,
    "training": training,
    "decoding": decoding,
    "kernels": kernels,
    "population": population,
    "laws": laws,
}


def table(rows: Rows) -> str:
    """Rows of equal keys as Markdown."""

    def cell(x: Any) -> str:
        return "" if x is None else f"{x:,.4g}" if isinstance(x, float) else str(x)

    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(cell(r[n]) for n in names) + " |" for r in rows])


def main(argv: list[str] | None = None) -> int:
    """Run the parts, print their tables and write them; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small shapes, to rehearse on a CPU")
    parser.add_argument("--minutes", type=float, default=7.5, help="no part begins after these")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--write", type=pathlib.Path, help="a JSON file for all numbers")
    args = parser.parse_args(argv)
    devices.correct()
    device, begun = jax.devices()[0], time.perf_counter()
    record: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__, "parts": {}}
    print(f"{device.platform}, {device.device_kind}, jax {jax.__version__}")
    failed = False
    for name in args.parts:
        if time.perf_counter() - begun > 60 * args.minutes:
            print(f"\n{name}: no time is left")
            continue
        start = time.perf_counter()
        try:
            rows = PARTS[name](TINY if args.tiny else FULL)
        except Exception as error:  # the minutes on a device are few: what else can run, does
            traceback.print_exc()
            print(f"\n{name}: {type(error).__name__}: {error}")
            failed = True
            continue
        record["parts"][name] = rows
        print(f"\n## {name} ({time.perf_counter() - start:.0f} s)\n\n{table(rows)}", flush=True)
        if args.write is not None:
            args.write.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
