"""The engine on CPU: continuous against static batching, prefixes, and what HTTP adds.

    python experiments/benchmarks/serve_cpu.py [--size 10m 124m] [--rounds 3] [--minutes 8]
                                               [--traffic even heavy] [--out FILE]

- 64 requests of ragged lengths, greedy: the engine beside `token_sampling.generate` on batches of 8
  in the order of arrival, each of which waits for its longest. At equal slots the engine has 8.
  At equal memory it may hold as many entries of keys and values as 8 texts of the longest length
  there is, which a static batch has to have room for: 2 slots of that length and short ones.
  New tokens are log-normal, "even" (median 37, sigma 0.9, at most 256) or "heavy" (median 37, sigma
  1.2, at most 1,024: the tail of real traffic).
- 32 requests that share 1,024 tokens, one at a time: time to the first token with the prefix kept
  and without (the first request is not counted in either).
- 16 clients at once over HTTP on this machine beside the same requests given to the engine.

Weights are random; lengths are drawn once. Sides take turns, compilation excluded, and the median
of the rounds is reported; rounds are left out, but for one, where --minutes would not do, and the
last line says how many there were.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import pathlib
import platform
import socket
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable

import jax
import numpy as np
import uvicorn

from jaxlm import models
from jaxlm.core import param
from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import token_sampling
from jaxlm.decode.serve import engine, http_api, worker
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models import gpt, llama
from jaxlm.models.model import Model

SIZES = {
    "10m": llama.Config(
        vocab=4096, embed=320, layers=6, heads=5, kv=5, head=64, ffn=864, context=2048
    ),
    "124m": gpt.Config(context=2048),
}
SLOTS, REQUESTS, PREFIX = 8, 64, 1024
# name: sigma of log-normal new tokens, their most; (short slots, their entries) beside 2 long slots
TRAFFIC = {"even": (0.9, 256, 6, 256), "heavy": (1.2, 1024, 22, 256)}
TOKENIZER = bytelevel.Bytes()


def build(size: str) -> tuple[Model, param.Tree]:
    """A model with random weights, prepared for decoding."""
    model = models.build(SIZES[size])
    params = jax.jit(lambda key: param.init(model.spec, key))(jax.random.key(0))
    return model, token_sampling.prepare(model, params)


def requests(vocab: int, sigma: float = 0.9, most: int = 256) -> list[tuple[list[int], Sampling]]:
    """Prompts of 8 to 64 tokens and continuations of 8 to `most`, most of them short."""
    draw, made = np.random.default_rng(0), []
    for _ in range(REQUESTS):
        prompt = draw.integers(0, vocab, draw.integers(8, 65)).tolist()
        new = int(np.clip(draw.lognormal(3.6, sigma), 8, most))
        made.append((prompt, Sampling(max_new=new, temperature=0.0)))
    return made


def tokens(asked: list[tuple[list[int], Sampling]]) -> int:
    """Tokens that all requests generate: nothing ends before its limit."""
    return sum(sampling.max_new for _, sampling in asked)


def static(model: Model, params: param.Tree, asked: list[tuple[list[int], Sampling]]) -> None:
    """Batches in the order of arrival."""
    for i in range(0, len(asked), SLOTS):
        prompts, settings = zip(*asked[i : i + SLOTS], strict=True)
        token_sampling.generate(model, params, prompts, settings)


def continuous(running: engine.Engine, asked: list[tuple[list[int], Sampling]]) -> None:
    """All requests through the engine."""
    for prompt, sampling in asked:
        running.submit(prompt, sampling)
    assert all(part.finish == "length" for part in running.run())


def ragged(size: str, rounds: int, traffic: list[str], until: float) -> list[str]:
    """Rows of continuous against static batching, at equal slots and at equal memory."""
    model, params = build(size)
    rows = []
    for name in traffic:
        sigma, most, short_slots, short = TRAFFIC[name]
        asked = requests(model.cfg.vocab, sigma, most)
        plain = engine.Capacity(slots=SLOTS, length=64 + most, prefix_mib=0)
        room = SLOTS * plain.room
        mixed = dataclasses.replace(plain, slots=2, short_slots=short_slots, short=short)
        assert mixed.entries <= room
        equal, memory = (engine.Engine(model, params, each) for each in (plain, mixed))
        sides: dict[str, Callable[[], object]] = {
            "static": functools.partial(static, model, params, asked),
            "slots": functools.partial(continuous, equal, asked),
            "memory": functools.partial(continuous, memory, asked),
        }
        rate, done = rates(sides, tokens(asked), rounds, until)
        a, b = rate["slots"] / rate["static"], rate["memory"] / rate["static"]
        rows.append(
            f"| {size} | {name} | {rate['static']:,.0f} | {rate['slots']:,.0f} | {a:.2f}x | "
            f"2 + {short_slots} of {short} | {mixed.entries / room:.2f} | "
            f"{rate['memory']:,.0f} | {b:.2f}x | {done} |"
        )
    return rows


def rates(
    sides: dict[str, Callable[[], object]], count: int, rounds: int, until: float
) -> tuple[dict[str, float], int]:
    """(tokens a second of each side by the median of the rounds, in which they take turns; how many
    rounds there were: one at least, and none that begins after `until`, by `time.monotonic`)."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for work in sides.values():  # compiles
        work()
    done = 0
    while done < rounds and (not done or time.monotonic() < until):
        done += 1
        for name, work in sides.items():
            times[name].append(seconds(work))
    return {name: count / statistics.median(t) for name, t in times.items()}, done


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def first_tokens(model: Model, params: param.Tree, mib: float) -> float:
    """Median seconds to the first token of requests that share a prefix."""
    capacity = engine.Capacity(slots=1, length=PREFIX + 64, prefix_mib=mib)
    running, draw = engine.Engine(model, params, capacity), np.random.default_rng(1)
    prefix, times = draw.integers(0, model.cfg.vocab, PREFIX).tolist(), []
    for _ in range(33):
        tail = draw.integers(0, model.cfg.vocab, 16).tolist()
        running.submit([*prefix, *tail], Sampling(max_new=1, temperature=0.0))
        times.append(seconds(lambda: running.run()))
    return statistics.median(times[1:])


class Server:
    """The model behind HTTP on a free port."""

    def __init__(self, running: engine.Engine):
        served = http_api.Served("it", worker.Worker(running), TOKENIZER, ())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = uvicorn.Config(http_api.app(served), port=self.port, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def ask(self, one: tuple[list[int], Sampling]) -> int:
        """Tokens of an answer."""
        body = {"model": "it", "prompt": one[0], "max_tokens": one[1].max_new, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)["usage"]["completion_tokens"]

    def stop(self) -> None:
        """End it."""
        self.server.should_exit = True
        self.thread.join()


def measure(size: str, rounds: int, until: float) -> list[str]:
    """Rows of the table."""
    model, params = build(size)
    asked = requests(model.cfg.vocab)
    capacity = engine.Capacity(slots=SLOTS, length=512, chunk=64, prefix_mib=0)
    running = engine.Engine(model, params, capacity)
    over = engine.Engine(model, params, capacity, TOKENIZER)
    server = Server(over)

    def http() -> None:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(server.ask, asked)) == tokens(asked)

    sides: dict[str, Callable[[], object]] = {
        "continuous": lambda: continuous(running, asked),
        "http": http,
    }
    rate, done = rates(sides, tokens(asked), rounds, until)
    server.stop()
    cold, kept = (first_tokens(model, params, mib) for mib in (0, 1024))
    more = rate["continuous"] / rate["http"] - 1
    return [
        f"| {size} | {rate['continuous']:,.0f} | {rate['http']:,.0f} | {more:.1%} | "
        f"{1e3 * cold:.0f} ms | {1e3 * kept:.0f} ms | {kept / cold:.2f}x | {done} |"
    ]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", default=["10m"], choices=[*SIZES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--traffic", nargs="+", default=[*TRAFFIC], choices=[*TRAFFIC])
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    begun = time.monotonic()
    until = begun + 60 * args.minutes  # the tables share it by 3 to 1
    middle = begun + 0.75 * 60 * args.minutes
    rows = [row for size in args.size for row in ragged(size, args.rounds, args.traffic, middle)]
    head = [
        "| model | traffic | static, tokens/s | 8 slots | ratio | slots of equal memory | entries, "
        "of static's | tokens/s | ratio | rounds |",
        "|---" * 10 + "|",
        *rows,
        "",
        "| model | engine, tokens/s | over HTTP, 16 clients | HTTP adds | "
        "first token of 1,040, cold | prefix kept | ratio | rounds |",
        "|---" * 8 + "|",
    ]
    rows = [row for size in args.size for row in measure(size, args.rounds, until)]
    where = f"{platform.processor() or platform.machine()}, {len(jax.devices())} device, "
    lines = [*head, *rows, "", f"{where}jax {jax.__version__}, float32, {REQUESTS} requests, "]
    lines[-1] += f"{time.monotonic() - begun:.0f} s in all."
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
