"""Time from the command to the end of the first step: `jaxlm train` against plain JAX and optax.

    python experiments/benchmarks/start.py --times 3

Both train the model of configs/markov.py; `PLAIN` is what one would write in forty lines, on random
tokens. Cold: no compiled program is cached. Warm: those of the cold start are. Both sides in turn,
each in a fresh process that is killed when it says that step 1 is done. Seconds of CPU (of both
cores) are given next to the wall time, since other work on the machine lengthens only that one.
"""

import argparse
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
import dataclasses
from configs import markov

def config():
    return dataclasses.replace(markov.config(), log_every=1)
"""
PLAIN = """
import jax, jax.numpy as jnp, numpy as np, optax

V, D, L, N, K, H, F, T, B = 259, 64, 2, 4, 2, 16, 192, 128, 16
SHAPES = dict(q=(D, N, H), k=(D, K, H), v=(D, K, H), o=(N * H, D))
SHAPES |= dict(gate=(D, F), up=(D, F), down=(F, D))

def init(key):
    keys = iter(jax.random.split(key, 2 + L * len(SHAPES)))
    draw = lambda shape: jax.random.normal(next(keys), shape) * shape[0] ** -0.5
    layer = lambda: {n: draw(s) for n, s in SHAPES.items()} | {"a": jnp.ones(D), "f": jnp.ones(D)}
    layers = [layer() for _ in range(L)]
    return {"e": draw((V, D)), "u": draw((D, V)), "n": jnp.ones(D), "l": layers}

def norm(x, w):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * w

def rope(x):
    angle = jnp.arange(T)[:, None] * 10000.0 ** (-jnp.arange(0, H, 2) / H)
    c, s, (a, b) = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None], jnp.split(x, 2, -1)
    return jnp.concatenate([a * c - b * s, b * c + a * s], -1)

def loss(p, ids):
    x = p["e"][ids]
    for w in p["l"]:
        h = norm(x, w["a"])
        q, k, v = (jnp.einsum("btd,dnh->btnh", h, w[n]) for n in "qkv")
        h = jax.nn.dot_product_attention(rope(q), rope(k), v, is_causal=True)
        x = x + h.reshape(B, T, -1) @ w["o"]
        h = norm(x, w["f"])
        x = x + (jax.nn.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]
    logits = norm(x, p["n"]) @ p["u"]
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:]).mean()

rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 20, 300)
tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))

@jax.jit
def step(p, s, ids):
    value, grads = jax.value_and_grad(loss)(p, ids)
    updates, s = tx.update(grads, s, p)
    return optax.apply_updates(p, updates), s, value

p = jax.jit(init)(jax.random.key(0))
p, s, value = step(p, jax.jit(tx.init)(p), np.random.default_rng(0).integers(0, V, (B, T)))
print("step 1", float(value), flush=True)
"""


def first_step(command: list[str], folder: pathlib.Path) -> tuple[float, float]:
    """(seconds of wall time, seconds of CPU) until a command prints a line with `step 1`."""
    environ = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": str(ROOT),
    }
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("step 1"):
            break
    else:
        raise SystemExit("".join(seen))
    wall = time.perf_counter() - begun
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    # utime, stime, and those of the children it has waited for
    return wall, sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    times = parser.parse_args().times
    seen: dict[str, list[tuple[float, float]]] = {}
    for _ in range(times):
        for name in ("plain", "jaxlm"):
            with tempfile.TemporaryDirectory() as at:
                folder = pathlib.Path(at)
                (folder / "plain.py").write_text(PLAIN)
                (folder / "start.py").write_text(CONFIG)
                train = ["-m", "jaxlm", "train", "start.py"]
                command = [sys.executable, *(["plain.py"] if name == "plain" else train)]
                for state in ("cold", "warm"):
                    seen.setdefault(f"{name}, {state}", []).append(first_step(command, folder))
                    for run in folder.glob("runs/*"):
                        run.rename(folder / f"{run.name}-{state}")
    print("| start | wall, s | CPU, s |\n|---|---|---|")
    median = {k: [statistics.median(x) for x in zip(*v, strict=True)] for k, v in seen.items()}
    for name, (wall, cpu) in median.items():
        print(f"| {name} | {wall:.1f} | {cpu:.1f} |")
    for state in ("cold", "warm"):
        ratio = [a / b for a, b in zip(median[f"jaxlm, {state}"], median[f"plain, {state}"])]
        print(f"| jaxlm / plain, {state} | {ratio[0]:.2f} | {ratio[1]:.2f} |")


if __name__ == "__main__":
    main()
