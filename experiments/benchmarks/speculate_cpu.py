"""Speculative decoding on CPU: a trained pair, the cost of its passes, and tokens per second.

    python experiments/benchmarks/speculate_cpu.py [--pair DIR] [--steps 240 400 60] [--rounds 5]

A model of 11 million weights learns the sources of Python's standard library (`pysrc`), as bytes,
and one of 0.5 million that drafts for it the same text and then the model's distributions on it
(jaxlm's own distillation). Runs are kept in --pair: a second call trains nothing. Printed are

- held-out bits per byte of both, and how often their likeliest bytes are the same one;
- the cost of a pass by the number of its tokens, of the model alone and with drafting, relative to
  one token and to a step of plain decoding, and the speed-up that these costs allow if every draft
  is accepted with probability 0.5 to 1: no draft of this size, however good, gives more;
- decoding with drafts and without, in turn, the median of the rounds' ratios: prefill is included,
  compilation is not. Prompts are the first bytes of held-out files; those of `lookup` rows are the
  same. Tokens are compared, at every temperature.
"""

import argparse
import functools
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxlm
from jaxlm.core import cache
from jaxlm.data.sources import source
from jaxlm.data.tokenizers import bytelevel
from jaxlm.decode import sampling_loop, token_sampling
from jaxlm.decode.speculate import drafts, speculative_loop, speculative_sampling
from jaxlm.decode.speculate.drafts import Weights
from jaxlm.decode.token_sampling import Sampling
from jaxlm.models import llama
from jaxlm.objectives import distill
from jaxlm.ops.attention import At
from jaxlm.parallel import devices
from jaxlm.train.trained_weights import Saved

SIZES = {
    "target": llama.Config(
        vocab=259, embed=384, layers=6, heads=6, kv=6, head=64, ffn=1024, context=1024
    ),
    "draft": llama.Config(
        vocab=259, embed=128, layers=2, heads=2, kv=2, head=64, ffn=384, context=1024
    ),
}
CORPUS, SEQ, PROMPT, LENGTH = "pysrc", 256, 64, 8
WIDTHS = (1, 2, 3, 5, 9)  # tokens of a pass: one more than drafts
ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


def trained(pair: pathlib.Path, steps: tuple[int, int, int]) -> tuple[Saved, Saved]:
    """The target and its draft, of 8 rows of SEQ bytes a step: the draft learns the text, and then
    the target's distributions on it."""

    def run(size: str, name: str, steps: int, lr: float, **fields: Any) -> Saved:
        run = jaxlm.Run(
            name=f"{name}-{steps}",
            model=SIZES[size],
            data=jaxlm.Data(source=CORPUS, tokenizer="bytes", seq=SEQ, batch=8),
            optim=jaxlm.Optim(name="muon", lr=lr, warmup=max(1, steps // 20)),
            steps=steps,
            out=str(pair),
            **{"eval_every": steps, "eval_batches": 8} | fields,
        )
        jaxlm.train(run)
        return jaxlm.load(pair / run.name)

    target = run("target", "target", steps[0], 5e-3)
    draft = run("draft", "draft", steps[1], 5e-3)
    distilled = run(
        "draft",
        "distilled",
        steps[2],
        2e-3,
        start=str(draft.folder),
        eval_every=None,  # all held-out text would be read by the teacher too
        eval_batches=None,
        objective=distill.Config(teacher=str(target.folder)),
    )
    target, draft = (
        x._replace(params=token_sampling.prepare(x.model, x.params)) for x in (target, distilled)
    )
    return target, draft


@functools.cache
def texts(count: int, length: int) -> list[list[int]]:
    """The first bytes of held-out documents."""
    tokenizer = bytelevel.Bytes()
    whole = source.texts(CORPUS, "text", "val", 0.05)
    rows = (list(tokenizer.encode(text)[:length]) for text in whole if len(text) >= length)
    return list(itertools.islice(rows, count))


def compare(target: Saved, draft: Saved, count: int = 16) -> None:
    """Print bits per byte of both on held-out text, and how often they agree."""
    tokens = jnp.asarray(texts(count, SEQ))
    places = jnp.broadcast_to(jnp.arange(SEQ), tokens.shape)

    def logits(saved: Saved) -> np.ndarray:
        @jax.jit
        def run(params, tokens):
            x = saved.model.hidden(params, tokens, At(jnp.ones_like(tokens), places)).x
            return saved.model.unembed(saved.model.head(params), x)

        return np.asarray(jax.nn.log_softmax(run(saved.params, tokens)))[:, :-1]

    both = [logits(saved) for saved in (target, draft)]
    for name, x in zip(("target", "draft"), both, strict=True):
        own = np.take_along_axis(x, np.asarray(tokens)[:, 1:, None], axis=2)
        print(f"{name}: {-own.mean() / np.log(2):.3f} bits per byte on {count} held-out files")
    same = np.mean(np.argmax(both[0], -1) == np.argmax(both[1], -1))
    p, q = (np.exp(x) for x in both)
    print(f"likeliest bytes are equal at {same:.0%}; 1 - total variation {overlap(p, q):.0%}, one")
    print(f"noise for both accepts {shared(p, q):.0%}")


def overlap(p: np.ndarray, q: np.ndarray) -> float:
    """Mean probability with which rejection sampling accepts."""
    return float(np.minimum(p, q).sum(-1).mean())


def shared(p: np.ndarray, q: np.ndarray) -> float:
    """Mean probability with which Gumbel-max draws by one noise are equal."""
    p, q = (x.reshape(-1, x.shape[-1]).astype(np.float64) + 1e-30 for x in (p, q))
    rows = [(1 / np.maximum(a / a[:, None], b / b[:, None]).sum(-1)).sum() for a, b in zip(p, q)]
    return float(np.mean(rows))


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begun


def alternated(works: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each work in each round [works][rounds]; the first of all, which compiles, is not
    among them."""
    for work in works:
        seconds(work)
    return [list(x) for x in zip(*([seconds(w) for w in works] for _ in range(rounds)))]


def passes(saved: Saved, batch: int, width: int, count: int = 10) -> Callable[[], object]:
    """`count` passes of the model alone over `width` tokens of each row, after 200."""
    model, read, slots = saved.model, 200, 200 + 8 * LENGTH

    @jax.jit
    def run(params, cache, tokens):
        def step(_, left):
            cache, tokens = left
            at = At(jnp.ones_like(tokens), read + jnp.zeros_like(tokens) + jnp.arange(width))
            x, new, _ = model.hidden(params, tokens, at, cache)
            tokens = jnp.argmax(model.unembed(model.head(params), x), -1).astype(jnp.int32)
            return drafts.before(new, jnp.full(batch, read), cache.filled), tokens

        return jax.lax.fori_loop(0, count, step, (cache, tokens))[1]

    tokens = jnp.asarray(texts(batch, read))
    at = At(jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(read), tokens.shape))
    _, full, _ = jax.jit(model.hidden)(saved.params, tokens, at, sampling_loop.empty(model, batch))
    full = drafts.roomy(model, full, None, slots, read)
    return lambda: run(saved.params, full, tokens[:, :width])


def whole(target: Saved, draft: Saved, batch: int, drafted: int) -> Callable[[], object]:
    """10 passes of speculation with `drafted` drafts, drafting and choice included; 10 steps of
    plain decoding where it is 0."""
    s, (model, weights) = Sampling(max_new=10 * (LENGTH + 1), temperature=0.0), target[2:4]
    job = token_sampling.prepared(model, weights, texts(batch, PROMPT), [s] * batch)
    if not drafted:
        first = jax.jit(sampling_loop.start, static_argnums=(0, 5))
        state = first(job.model, job.params, *job.inputs, job.room)
        step = jax.jit(sampling_loop.advance, static_argnums=(0, 4))
        return lambda: step(job.model, job.params, state, job.inputs[-1], 10).out
    both = Weights(job.params, draft.params)
    method = speculative_loop.Method(draft.model._replace(spec=None), (drafted,), (1.0,))
    start = jax.jit(speculative_loop.start, static_argnums=(0, 1, 6))
    begun = start(job.model, method, both, *job.inputs, job.room)
    advance = jax.jit(speculative_loop.advance, static_argnums=(0, 1, 5))
    return lambda: advance(job.model, method, both, begun, job.inputs[-1], 10).tally


def costs(target: Saved, draft: Saved, batch: int, rounds: int) -> list[float]:
    """Print and return the cost of a pass with 0, 1, ... drafts, in steps of plain decoding; those
    between WIDTHS are interpolated."""
    works = [passes(target, batch, w) for w in WIDTHS]
    works += [whole(target, draft, batch, w - 1) for w in WIDTHS] + [passes(draft, batch, 1)]
    times = [1e2 * statistics.median(x) for x in alternated(works, rounds)]  # ms of one of 10
    alone, with_drafts, step = times[: len(WIDTHS)], times[len(WIDTHS) : -1], times[-1]
    for w, a, b in zip(WIDTHS, alone, with_drafts, strict=True):
        relative = f"{a:.2f} | {a / alone[0]:.2f} | {b:.2f} | {b / with_drafts[0]:.2f}"
        print(f"| {batch} | {w} | {relative} |", flush=True)
    print(f"| {batch} | draft, 1 | {step:.2f} | {step / alone[0]:.2f} | | |")
    every = np.interp(range(LENGTH + 1), [w - 1 for w in WIDTHS], with_drafts)
    return [float(x / with_drafts[0]) for x in every]


def allowed(cost: list[float], acceptance: float) -> tuple[float, int]:
    """The largest speed-up at an acceptance, and the number of drafts that gives it."""
    tokens = np.cumsum(acceptance ** np.arange(len(cost)))
    ratio = tokens / np.asarray(cost)
    return float(ratio.max()), int(ratio.argmax())


def measured(
    target: Saved,
    speculate: jaxlm.Speculate,
    batch: int,
    s: Sampling,
    rounds: int,
) -> dict[str, float | bool | str]:
    """One line of the table: 4 prompts one by one, or a batch."""
    rows = texts(max(batch, 4), PROMPT)
    groups = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    reports: list[speculative_sampling.Report] = []
    told = jaxlm.Speculate(speculate.draft, speculate.length, report=reports.append)
    model, weights = target.model, target.params

    def plain() -> list[Any]:
        return [token_sampling.generate(model, weights, g, s).tokens for g in groups]

    def drafted() -> list[Any]:
        return [speculative_sampling.generate(model, weights, g, s, told).tokens for g in groups]

    same = np.mean([np.mean(a == b) for a, b in zip(plain(), drafted(), strict=True)])
    report = speculative_sampling.Report(*np.sum(reports, axis=0))
    before, after = alternated([plain, drafted], rounds)
    ratios = [a / b for a, b in zip(before, after, strict=True)]
    new = len(rows) * s.max_new
    return {
        "draft": speculate.draft if isinstance(speculate.draft, str) else "model",
        "temperature": s.temperature,
        "batch": batch,
        "plain": new / statistics.median(before),
        "speculative": new / statistics.median(after),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "acceptance": report.acceptance,
        "tokens_per_pass": report.tokens_per_pass,
        "equal": float(same),
    }


def main() -> None:
    """Train, measure and print the tables."""
    parser = argparse.ArgumentParser(description="Speculative decoding on CPU.")
    parser.add_argument(
        "--steps", type=int, nargs=3, default=(240, 400, 60), help="of target, draft, distilling"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--temperatures", type=float, nargs="+", default=(0.0, 0.8))
    parser.add_argument("--new", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pair", type=pathlib.Path, default=pathlib.Path("runs/speculate_cpu"))
    args = parser.parse_args()
    devices.correct()
    cache.programs()
    target, draft = trained(args.pair, tuple(args.steps))
    compare(target, draft)
    print(f"\njax {jax.__version__}\n\n| batch | tokens | model alone, ms | of one token "
          "| with drafting, ms | of a plain step |\n" + "|---" * 6 + "|")  # fmt: skip
    cost = {batch: costs(target, draft, batch, args.rounds) for batch in args.batches}
    print("\n| batch | " + " | ".join(f"a = {a}" for a in ACCEPTANCES) + " |")
    print("|---" * (len(ACCEPTANCES) + 1) + "|")
    for batch in args.batches:
        cells = (allowed(cost[batch], a) for a in ACCEPTANCES)
        print(f"| {batch} | " + " | ".join(f"{x:.2f}x, {n} drafts" for x, n in cells) + " |")
    head = "draft, temperature, batch, plain, speculative, ratio, accepted, tokens a pass, equal"
    print("\n| " + head.replace(", ", " | ") + " |\n" + "|---" * 9 + "|")
    lines = []
    for way, temperature, batch in itertools.product(
        (draft, "lookup"), args.temperatures, args.batches
    ):
        s = Sampling(max_new=args.new, temperature=temperature)
        line = measured(target, jaxlm.Speculate(way, LENGTH), batch, s, args.rounds)
        lines.append(line)
        print(
            f"| {line['draft']} | {temperature} | {batch} | {line['plain']:.0f} "
            f"| {line['speculative']:.0f} "
            f"| {line['ratio']:.2f}x ({line['low']:.2f}-{line['high']:.2f}) "
            f"| {line['acceptance']:.0%} | {line['tokens_per_pass']:.2f} "
            f"| {line['equal']:.1%} |",
            flush=True,
        )
    record = {"costs": cost, "lines": lines}
    pathlib.Path(args.pair, "speculate_cpu.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
