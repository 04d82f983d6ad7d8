"""Speculative decoding on CPU: tokens per second with drafts and without, of a trained pair.

    python experiments/benchmarks/speculate_cpu.py [--steps 120 1500] [--batches 1 8] [--rounds 5]

A model of 10 million weights and one of 0.3 million that drafts for it are trained on the
documentation in this Python's own modules (`pydocs`), as bytes; random weights would agree by
chance alone. Prompts are held-out text. Plain and speculative decoding take turns; the time of each
is its median over the rounds, prefill included, compilation excluded. Runs are kept in --out: a
second call trains nothing. Under temperature 0 the tokens are compared, and the largest difference
is printed between logits of a pass over all drafts and those of a token at a time.
"""

import argparse
import itertools
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxlm
from jaxlm.core import cache
from jaxlm.data.sources import source
from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import sampling_loop, token_sampling
from jaxlm.decode.speculate import speculative_sampling
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models import llama
from jaxlm.ops.attention import At
from jaxlm.parallel import devices
from jaxlm.train.trained_weights import Saved

SIZES = {
    "target": llama.Config(
        vocab=259, embed=320, layers=8, heads=5, kv=5, head=64, ffn=864, context=1024
    ),
    "draft": llama.Config(
        vocab=259, embed=128, layers=1, heads=2, kv=2, head=64, ffn=448, context=1024
    ),
}
TOKENIZER = bytelevel.Bytes()


def trained(name: str, steps: int, out: str) -> Saved:
    """The model of SIZES[name] after `steps` steps of 8 rows of 128 bytes."""
    data = jaxlm.Data(source="pydocs", tokenizer="bytes", seq=128, batch=8)
    optim = jaxlm.Optim(name="muon", lr=5e-3, warmup=max(1, steps // 20))
    run = jaxlm.Run(
        name=f"{name}-{steps}",
        model=SIZES[name],
        data=data,
        optim=optim,
        steps=steps,
        eval_every=steps,
        eval_batches=4,
        out=out,
    )
    result = jaxlm.train(run)
    if result.val is not None:
        print(f"{name}: {result.val['bits_per_byte']:.3f} bits per byte after {steps} steps")
    return jaxlm.load(pathlib.Path(out) / run.name)


def prompts(count: int, length: int) -> list[list[int]]:
    """The first bytes of held-out documents."""
    texts = source.texts("pydocs", "text", "val", 0.05)
    rows = (list(TOKENIZER.encode(text)[:length]) for text in texts if len(text) >= length)
    return list(itertools.islice(rows, count))


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def largest_difference(saved: Saved, rows: list[list[int]], width: int) -> float:
    """Largest difference of a logit between a pass over `width` tokens and a token at a time."""
    model, params = saved.model, token_sampling.prepare(saved.model, saved.params)
    tokens = jnp.asarray(rows)

    def last(step: int) -> np.ndarray:
        read = tokens.shape[1] - width
        cache = sampling_loop.empty(model, len(rows))
        out, first = [], 0
        for size in (read, *[step] * (width // step)):
            part = tokens[:, first : first + size]
            places = jnp.broadcast_to(jnp.arange(first, first + size), part.shape)
            x, cache, _ = hidden(params, part, At(jnp.ones_like(part), places), cache)
            if not first:
                cache = sampling_loop.grow(model, cache, tokens.shape[1])
            out.append(model.unembed(model.head(params), x))
            first += size
        return np.asarray(jnp.concatenate(out[1:], axis=1))

    hidden = jax.jit(model.hidden)
    return float(np.abs(last(width) - last(1)).max())


def measured(
    target: Saved, speculate: jaxlm.Speculate, rows: list[list[int]], s: Sampling, rounds: int
) -> dict[str, float | bool | str]:
    """One line of the table."""
    weights = token_sampling.prepare(target.model, target.params)
    reports: list[speculative_sampling.Report] = []
    told = jaxlm.Speculate(
        speculate.draft, speculate.length, speculate.adaptive, report=reports.append
    )

    def plain() -> np.ndarray:
        return token_sampling.generate(target.model, weights, rows, s).tokens

    def drafted() -> np.ndarray:
        return speculative_sampling.generate(target.model, weights, rows, s, told).tokens

    same = bool((plain() == drafted()).all())  # and both are compiled
    pairs = [(seconds(plain), seconds(drafted)) for _ in range(rounds)]
    before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
    new = len(rows) * s.max_new
    return {
        "draft": speculate.draft if isinstance(speculate.draft, str) else "model",
        "temperature": s.temperature,
        "batch": len(rows),
        "length": speculate.length,
        "plain": new / before,
        "speculative": new / after,
        "ratio": before / after,
        "low": min(a / b for a, b in pairs),
        "high": max(a / b for a, b in pairs),
        "acceptance": reports[-1].acceptance,
        "tokens_per_pass": reports[-1].tokens_per_pass,
        "equal": same,
    }


def main() -> None:
    """Train, measure and print the table."""
    parser = argparse.ArgumentParser(description="Speculative decoding on CPU.")
    parser.add_argument("--steps", type=int, nargs=2, default=(120, 1500), help="target, draft")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--lengths", type=int, nargs="+", default=(8,))
    parser.add_argument("--temperatures", type=float, nargs="+", default=(0.0, 0.8))
    parser.add_argument("--drafts", nargs="+", default=("model", "lookup"))
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fixed", action="store_true", help="no adaptive length")
    parser.add_argument("--out", default="runs/speculate_cpu")
    args = parser.parse_args()
    devices.correct()
    cache.programs()
    target, draft = (trained(n, k, args.out) for n, k in zip(SIZES, args.steps, strict=True))
    head = "draft temperature batch length plain speculative ratio acceptance tokens/pass equal"
    print(f"{platform.processor()} jax {jax.__version__}, {args.new} new tokens, tokens/s")
    print("| " + " | ".join(head.split()) + " |\n" + "|---" * len(head.split()) + "|")
    lines = []
    for name in args.drafts:
        for temperature in args.temperatures:
            for batch in args.batches:
                for length in args.lengths:
                    speculate = jaxlm.Speculate(
                        draft if name == "model" else name, length, not args.fixed
                    )
                    s = Sampling(max_new=args.new, temperature=temperature)
                    row = measured(target, speculate, prompts(batch, 64), s, args.rounds)
                    lines.append(row)
                    equal = row["equal"] if not temperature else "-"
                    print(
                        f"| {row['draft']} | {temperature} | {batch} | {length} "
                        f"| {row['plain']:.0f} | {row['speculative']:.0f} "
                        f"| {row['ratio']:.2f}x ({row['low']:.2f}-{row['high']:.2f}) "
                        f"| {row['acceptance']:.0%} | {row['tokens_per_pass']:.2f} | {equal} |",
                        flush=True,
                    )
    width = max(args.lengths) + 1
    gap = largest_difference(target, prompts(1, 64), width)
    print(f"largest difference of a logit, {width} tokens a pass against 1: {gap:.1e}")
    pathlib.Path(args.out, "speculate_cpu.json").write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
