"""How fast does jaxlm train on a CPU, beside nanoGPT's operations in torch?

    python experiments/benchmarks/train_cpu.py --sizes 1m 10m --rounds 3

Both sides train the same GPT-2-shaped model from the same weights on the same batches with AdamW
and clipping. Each runs in a process of its own, in turns; the table shows the median of each
side's rounds, its ratio to torch within the round, and the losses, which have to agree to 4
decimals. Large pages are on for both. Run it on a quiet machine: a contended one flatters jaxlm,
because torch's two threads wait for each other.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
CHECKED = 3  # steps whose losses are compared
LR, DECAY, CLIP = 1e-3, 0.1, 1.0


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and its batch. `layers` also tells a side not to scan."""

    layers: int
    embed: int
    heads: int
    vocab: int
    rows: int
    seq: int = 256
    chunk: int = 2**20
    """Tokens per chunk of jaxlm's loss."""


SIZES = {
    "1m": Size(layers=4, embed=128, heads=4, vocab=2048, rows=16),
    "10m": Size(layers=6, embed=384, heads=6, vocab=512, rows=8),
    "124m": Size(layers=12, embed=768, heads=12, vocab=50304, rows=4, chunk=256),
}

# name: (is it torch, devices or threads, layers in a loop or compiled model)
SIDES = {
    "torch": (True, 2, False),
    "torch-compile": (True, 2, True),
    "jaxlm": (False, 1, False),
    "jaxlm-scan": (False, 1, True),
    "jaxlm-2x1": (False, 2, False),
    "jaxlm-scan-2x1": (False, 2, True),
}


def weights(size: Size) -> dict[str, np.ndarray]:
    """N(0, 0.02) float32 matrices: table [V,D], positions [T,D], and per layer q, k, v, o [D,D],
    up [D,4D], down [4D,D]. Norm scales are 1 and biases 0 on both sides."""
    d, n = size.embed, size.layers
    shapes = {"table": (size.vocab, d), "positions": (size.seq, d)}
    shapes |= {name: (n, d, d) for name in "qkvo"}
    shapes |= {"up": (n, d, 4 * d), "down": (n, 4 * d, d)}

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def tokens(size: Size) -> np.ndarray:
    """int64[B, T + 1]: one batch, trained on again and again; inputs and targets overlap."""
    return np.random.default_rng(0).integers(0, size.vocab, (size.rows, size.seq + 1))


def flops_per_token(size: Size) -> float:
    """Training FLOPs per token with causal attention, as `jaxlm plan` counts them."""
    from jaxlm.models import gpt
    from jaxlm.scaling.cost import flops

    return flops.per_token(_config(size, gpt), size.seq).training


def _config(size: Size, gpt: Any) -> Any:
    return gpt.Config(
        vocab=size.vocab,
        embed=size.embed,
        layers=size.layers,
        heads=size.heads,
        context=size.seq,
    )


def jaxlm_step(size: Size, devices: int, scan: bool) -> Callable[[], Any]:
    """A function that does jaxlm's own training step once and returns the loss array."""
    import jax

    from jaxlm import objectives
    from jaxlm.cli import launch
    from jaxlm.core.batch import Batch
    from jaxlm.models import gpt
    from jaxlm.objectives import clm
    from jaxlm.parallel import transfer
    from jaxlm.parallel.plan import Plan
    from jaxlm.train import step
    from jaxlm.train.optim import optimizer

    launch.devices(devices)
    unroll = 1 if scan else size.layers
    plan = Plan(data=devices, unroll=unroll, attention="blockwise", loss_chunk=size.chunk)
    objective = objectives.build(clm.Config(), gpt.build(_config(size, gpt), plan), plan)
    adamw = optimizer.Optim(lr=LR, schedule="constant", warmup=0, weight_decay=DECAY, clip=CLIP)
    tx = optimizer.build(adamw, objective.spec, 10**6, fp16=False)
    state = step.init(objective, tx, plan, seed=0)
    state = state._replace(params=_jaxlm_params(size, state.params))

    ids = tokens(size).astype(np.int32)
    ones = np.ones((size.rows, size.seq), np.int32)
    positions = np.tile(np.arange(size.seq, dtype=np.int32), (size.rows, 1))
    host = Batch(ids[:, :-1], ids[:, 1:], ones.astype(np.float32), ones, positions)
    batch = transfer.batch(plan, host)
    update = step.make(objective, tx, plan)

    def run() -> Any:
        nonlocal state
        state, metrics = update(state, batch)
        return jax.block_until_ready((metrics["loss"], state))[0]

    return run


def _jaxlm_params(size: Size, params: Any) -> Any:
    """The params with the common weights in their places, where they lie."""
    import jax

    from jaxlm.core import param

    common = weights(size)

    def put(keys: tuple, old: Any) -> Any:
        name = param.path_of(keys).rpartition("/")[2]
        if name not in common:
            return old
        return jax.device_put(common[name].reshape(old.shape), old.sharding)

    return jax.tree_util.tree_map_with_path(put, params)


def torch_step(size: Size, threads: int, compiled: bool) -> Callable[[], Any]:
    """A function that does one step of nanoGPT's operations in torch and returns the loss tensor:
    LayerNorm, one product for q, k, v, the fused attention kernel, GELU, a tied head, fused
    AdamW. GELU is GPT-2's tanh form on both sides."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    common, d, layers = weights(size), size.embed, range(size.layers)

    def leaf(a: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.ascontiguousarray(a), requires_grad=True)

    # torch.nn.Linear keeps [out, in]
    w: dict[str, Any] = {name: leaf(common[name]) for name in ("table", "positions")}
    for i in layers:
        w[f"qkv{i}"] = leaf(np.concatenate([common[n][i].T for n in "qkv"]))
        w |= {f"{n}{i}": leaf(common[n][i].T) for n in ("o", "up", "down")}
        sizes = {"qkv": 3 * d, "o": d, "up": 4 * d, "down": d}
        w |= {f"{n}_bias{i}": leaf(np.zeros(k, np.float32)) for n, k in sizes.items()}
    for i in (*(f"{a}{i}" for i in layers for a in "ab"), "z"):
        w[f"scale_{i}"] = leaf(np.ones(d, np.float32))
        w[f"shift_{i}"] = leaf(np.zeros(d, np.float32))

    def norm(x: torch.Tensor, i: str) -> torch.Tensor:
        return F.layer_norm(x, (d,), w[f"scale_{i}"], w[f"shift_{i}"], 1e-5)

    def loss(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows, seq = ids.shape
        x = F.embedding(ids, w["table"]) + w["positions"]
        for i in layers:
            h = F.linear(norm(x, f"a{i}"), w[f"qkv{i}"], w[f"qkv_bias{i}"])
            q, k, v = (a.view(rows, seq, size.heads, -1).transpose(1, 2) for a in h.split(d, dim=2))
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h.transpose(1, 2).contiguous().view(rows, seq, d)
            x = x + F.linear(h, w[f"o{i}"], w[f"o_bias{i}"])
            h = F.linear(norm(x, f"b{i}"), w[f"up{i}"], w[f"up_bias{i}"])
            x = x + F.linear(F.gelu(h, approximate="tanh"), w[f"down{i}"], w[f"down_bias{i}"])
        logits = F.linear(norm(x, "z"), w["table"])
        return F.cross_entropy(logits.view(-1, size.vocab), targets.reshape(-1))

    matrices = [t for name, t in w.items() if t.ndim == 2 and name != "positions"]
    others = [t for name, t in w.items() if t.ndim == 1 or name == "positions"]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8, fused=True)
    ids = torch.tensor(tokens(size))
    forward = torch.compile(loss) if compiled else loss

    def run() -> Any:
        adamw.zero_grad(set_to_none=True)
        out = forward(ids[:, :-1], ids[:, 1:])
        out.backward()
        torch.nn.utils.clip_grad_norm_(list(w.values()), CLIP)
        adamw.step()
        return out.detach()

    return run


def work(side: str, size: Size, seconds: float) -> dict[str, Any]:
    """Median wall and mean CPU seconds per step, cores kept busy, and the first losses."""
    is_torch, workers, looped = SIDES[side]
    run = (torch_step if is_torch else jaxlm_step)(size, workers, looped)
    losses = [float(run()) for _ in range(CHECKED)]
    times: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    median = statistics.median(times)
    return {"seconds": median, "cpu": cpu / len(times), "cores": cpu / wall, "losses": losses}


def gemm() -> dict[str, float]:
    """GFLOP/s of a float32 product [2048,2048] in torch and in XLA: the machine's limit."""
    import jax
    import torch

    torch.set_num_threads(2)
    a, n = np.ones((2048, 2048), np.float32), 2048
    t, j = torch.tensor(a), jax.numpy.asarray(a)
    product = jax.jit(jax.numpy.matmul)

    def best(f: Callable[[], Any]) -> float:
        f()
        times = []
        for _ in range(8):
            start = time.perf_counter()
            f()
            times.append(time.perf_counter() - start)
        return 2 * n**3 / min(times) / 1e9

    return {"torch": best(lambda: t @ t), "XLA": best(lambda: product(j, j).block_until_ready())}


def spawn(side: str, size: str, seconds: float, xla: str) -> dict[str, Any]:
    """What `--worker side` prints, from a fresh process with large pages and these XLA_FLAGS."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    env |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, __file__, "--worker", side, "--sizes", size]
    command += ["--seconds", str(seconds)]
    out = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def report(name: str, rounds: list[dict[str, dict[str, Any]]]) -> list[str]:
    """The table's lines for one size. Raises: ValueError where losses differ by 1e-4 or more."""
    size, lines = SIZES[name], []
    per_step = size.rows * size.seq
    work_per_token = flops_per_token(size)
    truth = rounds[0]["torch"]["losses"]
    for side in rounds[0]:
        seconds = statistics.median(r[side]["seconds"] for r in rounds)
        cpu = statistics.median(r[side]["cpu"] for r in rounds)
        cores = statistics.median(r[side]["cores"] for r in rounds)
        ratios = [r["torch"]["seconds"] / r[side]["seconds"] for r in rounds]
        losses = rounds[0][side]["losses"]
        if any(math.fabs(a - b) >= 1e-4 for a, b in zip(losses, truth, strict=True)):
            raise ValueError(f"{name}: losses of {side} are {losses}, of torch {truth}")
        speed = per_step / seconds
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        numbers = (
            f"{speed:,.0f} | {speed * work_per_token / 1e9:.0f} | {cores:.2f} | {cpu * 1e3:.0f}"
        )
        lines.append(f"| {name} | {side} | {numbers} | {spread} | {losses[-1]:.4f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1m", "10m"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="beside torch; default: jaxlm's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="measured per side and round")
    parser.add_argument("--xla", default="", help="XLA_FLAGS for jaxlm, as --xla=--xla_cpu_...")
    parser.add_argument("--worker", choices=[*SIDES, "gemm"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        out = gemm() if args.worker == "gemm" else None
        print(json.dumps(out or work(args.worker, SIZES[args.sizes[0]], args.seconds)))
        return
    chosen = args.sides or [side for side in SIDES if side.startswith("jaxlm")]
    sides = ["torch", *(side for side in chosen if side != "torch")]
    limit = spawn("gemm", "1m", 0, args.xla)
    versions = {name: metadata.version(name) for name in ("jax", "torch")}
    print(
        f"{os.cpu_count()} cores, {platform.machine()}; {versions}; float32 GEMM GFLOP/s: {limit}"
    )
    print("| size | side | tokens/s | GFLOP/s | cores busy | CPU ms/step | / torch | loss |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in args.sizes:
        rounds = [
            {s: spawn(s, name, args.seconds, args.xla) for s in sides} for _ in range(args.rounds)
        ]
        print("\n".join(report(name, rounds)), flush=True)


if __name__ == "__main__":
    main()
