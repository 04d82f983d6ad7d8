"""How far does a small model read beyond the context it was trained at, and what does each way of
stretching its rotary positions give, before and after a brief fine-tune?

    python experiments/context_extension/stretch.py            minutes, on 2 cores
    python experiments/context_extension/stretch.py --quick    tiny, to see that it runs

Trains a byte-level model on short documents, then runs and fine-tunes it at four times the length.
Documents are Python's reference documentation with a passkey such as <48213> in it, said several
times. Measured on text the model has not seen: nats per byte by position, and how often all five
digits of a key are right that was said once, at any depth, and is asked for at the end.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxlm.cli import launch

HERE = pathlib.Path(__file__).parent
FACTOR = 4  # the long context is so many times the short one


class Size(NamedTuple):
    """One scale of the experiment."""

    context: int  # bytes the model is trained at
    embed: int
    layers: int
    documents: int
    steps: int
    batch: int
    tune_documents: int
    tune_steps: int
    tune_batch: int
    rounds: int  # of LongRoPE's search
    candidates: int  # of each, up to four
    rows: int  # read to measure one number


FULL = Size(128, 96, 3, 12000, 600, 32, 400, 40, 8, 3, 4, 48)
QUICK = Size(32, 32, 2, 300, 8, 8, 60, 3, 4, 1, 1, 8)


def main(argv: Sequence[str] | None = None) -> None:
    """Run every step and print the table."""
    parser = argparse.ArgumentParser(description="Context extension: how far, and by what.")
    parser.add_argument("--quick", action="store_true", help="tiny settings; numbers mean nothing")
    parser.add_argument("--out", type=pathlib.Path, help="where runs and results go")
    parser.add_argument("--record", action="store_true", help="keep the results beside this file")
    args = parser.parse_args(argv)
    size = QUICK if args.quick else FULL
    out = args.out or pathlib.Path("runs") / f"context_extension{'_quick' if args.quick else ''}"
    begun = time.perf_counter()
    results = experiment(size, out)
    results["seconds"] = round(time.perf_counter() - begun)
    for folder in (out, HERE) if args.record else (out,):
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (folder / "results.md").write_text(table(results), "utf-8")
        draw(results, folder / "results.png")
    print("\n" + table(results))


def experiment(size: Size, out: pathlib.Path) -> dict[str, Any]:
    """Every number of the experiment, JSON-ready."""
    from jaxlm.ops import rope
    from jaxlm.train import loop, trained_weights

    text = Text()
    long = FACTOR * size.context
    text.write(out / "short.jsonl", size.documents, size.context, seed=1)
    text.write(out / "long.jsonl", size.tune_documents, long, seed=2)
    base = run(size, out)
    loop.run(base)
    params = trained_weights.load(out / base.name).params
    probes = text.probes(size)
    factors = search(size, params, text)
    scalings: dict[str, rope.Scaling | None] = {
        "none": None,
        "linear": rope.Linear(float(FACTOR)),
        "ntk": rope.Ntk(float(FACTOR)),
        "yarn": rope.Yarn(float(FACTOR), size.context),
        "longrope": stretched(factors, size.context),
    }
    rows = {}
    for name, scaling in scalings.items():
        tuned = stretch(base, size, out, name, scaling)
        score = scorer(tuned.model)
        before = measure(score, params, probes)
        loop.run(tuned)
        after = measure(score, trained_weights.load(out / tuned.name).params, probes)
        rows[name] = {"before": before, "after": after}
    return {
        "context": size.context, "long": long, "lengths": lengths(size), "methods": rows,
        "longrope": factors, "tune_steps": size.tune_steps,
    }  # fmt: skip


def run(size: Size, out: pathlib.Path) -> Any:
    """The Run of the short context."""
    from jaxlm.data.pretraining import Data
    from jaxlm.models import llama
    from jaxlm.parallel.plan import Plan
    from jaxlm.train.optim.optimizer import Optim
    from jaxlm.train.run.run import Checkpoint, Run

    head = 32 if size.embed > 32 else 16
    return Run(
        name="base",
        out=str(out),
        model=llama.Config(
            vocab=259, embed=size.embed, layers=size.layers, heads=size.embed // head,
            kv=size.embed // head, head=head, ffn=size.embed * 11 // 4, context=size.context,
            qk_norm=True,
        ),
        data=Data(
            source=str(out / "short.jsonl"), seq=size.context, batch=size.batch, holdout=0.0
        ),
        optim=Optim(name="muon", lr=2e-2, warmup=size.steps // 10, schedule="linear", final=0.0),
        plan=Plan(),
        steps=size.steps,
        eval_every=None,
        log_every=max(1, size.steps // 20),
        checkpoint=Checkpoint(every=size.steps),
    )  # fmt: skip


def stretch(base: Any, size: Size, out: pathlib.Path, name: str, scaling: Any) -> Any:
    """The Run that begins from the base's weights at the long context."""
    from jaxlm.train.optim.optimizer import Optim

    long = FACTOR * size.context
    return dataclasses.replace(
        base,
        name=name,
        start=str(out / base.name),
        model=dataclasses.replace(base.model, context=long, scaling=scaling),
        data=dataclasses.replace(
            base.data, source=str(out / "long.jsonl"), seq=long, batch=size.tune_batch
        ),
        optim=Optim(name="muon", lr=5e-3, warmup=2, schedule="linear", final=0.0),
        steps=size.tune_steps,
        log_every=max(1, size.tune_steps // 4),
        checkpoint=dataclasses.replace(base.checkpoint, every=size.tune_steps),
    )


# --- Text --------------------------------------------------------------------------------------


class Text:
    """Documentation as one string of bytes; its last tenth is for measuring alone."""

    def __init__(self) -> None:
        from jaxlm.data.sources import source

        texts = [d.text for d in source.documents("pydocs")]
        kept = "\n".join(texts).encode("ascii", "ignore").translate(None, b"<>")
        cut = len(kept) * 9 // 10
        self.train, self.held = kept[:cut], kept[cut:]

    def write(self, path: pathlib.Path, count: int, length: int, seed: int) -> None:
        """A .jsonl of documents that fill rows of `length`.

        Their end falls behind the row, or the model would learn that texts end there, and the loss
        beyond would be that of surprise. The last byte and the end of all fill a few rows more.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        found = self.documents(count, length, seed)
        lines = (json.dumps({"text": text.decode("ascii")}) + "\n" for text in found)
        path.write_text("".join(lines), "utf-8")

    def documents(self, count: int, length: int, seed: int) -> Iterator[bytes]:
        """Training text of so many bytes, each with a key of its own said two to five times."""
        import numpy as np

        rng = np.random.default_rng(seed)
        for _ in range(count):
            times = int(rng.integers(2, 6)) if length > 40 else 2
            key = spoken(rng)
            room = length - times * len(key)
            filler = cut(self.train, room, rng)
            places = np.sort(rng.integers(0, room + 1, times))
            parts = np.split(np.frombuffer(filler, np.uint8), places)
            yield key.join(part.tobytes() for part in parts)

    def probes(self, size: Size) -> "Probes":
        """What is measured, of text the model has not seen."""
        import numpy as np

        rng = np.random.default_rng(9)
        long = FACTOR * size.context
        plain = [cut(self.held, long, rng) for _ in range(size.rows)]
        asked = {}
        for length in lengths(size):
            asked[length] = []
            for i in range(size.rows):
                key = spoken(rng)
                filler = cut(self.held, length - 2 * len(key) + 1, rng)
                depth = int((i + 0.5) / size.rows * len(filler))
                text = filler[:depth] + key + filler[depth:] + key[:-1]
                asked[length].append(text)
        return Probes(plain, asked)


class Probes(NamedTuple):
    """plain: texts of the long context. asked: by length, texts that end with a key's digits."""

    plain: list[bytes]
    asked: dict[int, list[bytes]]


def lengths(size: Size) -> list[int]:
    """The lengths at which keys are asked for."""
    return [size.context, 2 * size.context, FACTOR * size.context]


def spoken(rng: Any) -> bytes:
    """A key as it is said: <48213>."""
    return b"<%05d>" % int(rng.integers(100000))


def cut(text: bytes, length: int, rng: Any) -> bytes:
    """A random piece of so many bytes."""
    at = int(rng.integers(len(text) - length))
    return text[at : at + length]


# --- Measures ----------------------------------------------------------------------------------

# (params, texts of one length) -> (nats [rows, T], whether the likeliest byte is right [rows, T]).
Score = Callable[[Any, list[bytes]], tuple[Any, Any]]


def scorer(cfg: Any) -> Score:
    """Scores of texts under a model, compiled once: all are read at the model's context."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxlm import models
    from jaxlm.data import tokenizers
    from jaxlm.data.tokenizers import tokenizer
    from jaxlm.models import model
    from jaxlm.ops.attention import At

    built = models.build(cfg)
    begin = tokenizer.begin(tokenizers.load("bytes"))

    @jax.jit
    def run(params: Any, tokens: Any, targets: Any) -> tuple[Any, Any]:
        at = At(jnp.ones_like(tokens), jnp.tile(jnp.arange(tokens.shape[1]), (len(tokens), 1)))
        z = model.logits(built, params, tokens, at)
        nats = jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, targets[..., None], -1)[..., 0]
        return nats, jnp.argmax(z, -1) == targets

    def score(params: Any, texts: list[bytes]) -> tuple[Any, Any]:
        length = len(texts[0])
        targets = np.zeros((len(texts), cfg.context), np.int32)
        targets[:, :length] = [list(text) for text in texts]  # the ids of bytes are the bytes
        tokens = np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=begin)
        found = [
            run(params, tokens[i : i + 8], targets[i : i + 8]) for i in range(0, len(texts), 8)
        ]
        nats, right = (np.concatenate([np.asarray(f[k]) for f in found]) for k in (0, 1))
        return nats[:, :length], right[:, :length]

    return score


def measure(score: Score, params: Any, probes: Probes) -> dict[str, Any]:
    """{"nats": by sixteenth of the long context, "passkey": accuracy by length}."""
    import numpy as np

    nats = score(params, probes.plain)[0].mean(0)
    keys = {}
    for length, texts in probes.asked.items():
        right = score(params, texts)[1]
        keys[str(length)] = round(float(right[:, -5:].all(1).mean()), 4)
    return {"nats": [round(float(x.mean()), 4) for x in np.split(nats, 16)], "passkey": keys}


# --- LongRoPE's factors ------------------------------------------------------------------------


def stretched(factors: list[float], context: int) -> Any:
    """LongRoPE with these factors."""
    from jaxlm.ops import rope

    values = tuple(factors)
    return rope.LongRope((1.0,) * len(values), values, context, float(FACTOR))


def search(size: Size, params: Any, text: Text) -> list[float]:
    """LongRoPE's factor of each pair, that lose the least on training text of the long context.

    After Ding et al. 2024, section 3.2, in small: it begins from the factors of linear, NTK and
    YaRN; each round changes some pairs of the better two at random, keeps the factors from
    falling with the pair, in 1 .. 1.25 times the stretch, and scores what comes out.
    """
    import numpy as np

    from jaxlm.ops import rope

    plain = run(size, pathlib.Path()).model
    long = FACTOR * size.context
    texts = list(text.documents(16 if size.rows > 8 else 8, long, seed=3))
    rng = np.random.default_rng(4)

    def loss(factors: np.ndarray) -> float:
        values = [round(float(f), 4) for f in factors]
        scaling = stretched(values, size.context)
        cfg = dataclasses.replace(plain, context=long, scaling=scaling)
        return float(scorer(cfg)(params, texts)[0].mean())

    turned = rope.frequencies(plain.head, plain.theta).freqs
    first = (rope.Linear(FACTOR), rope.Ntk(FACTOR), rope.Yarn(FACTOR, size.context))
    pool = [turned / rope.frequencies(plain.head, plain.theta, s).freqs for s in first]
    scored = [(loss(factors), tuple(factors)) for factors in pool]
    for _ in range(size.rounds):
        parents = sorted(scored)[:2]
        for _, parent in (parents * 2)[: size.candidates]:
            change = np.where(rng.random(len(parent)) < 0.4, rng.uniform(0.6, 1.6, len(parent)), 1)
            child = np.clip(np.maximum.accumulate(parent * change), 1, 1.25 * FACTOR)
            scored.append((loss(child), tuple(child)))
    best = min(scored)
    print(f"LongRoPE: {best[0]:.4f} nats of {[round(s, 4) for s, _ in scored]}")
    return [round(float(f), 4) for f in best[1]]


# --- Results -----------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    context, long = results["context"], results["long"]
    spans = [(0, context), (context, 2 * context), (2 * context, long)]
    head = ["", *(f"nats at {a}..{b}" for a, b in spans)]
    head += [f"passkey at {n}" for n in results["lengths"]]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for when, told in (("before", "as it is"), ("after", f"{results['tune_steps']} steps on")):
        for name, row in results["methods"].items():
            nats, keys = row[when]["nats"], row[when]["passkey"]
            each = long // len(nats)
            cells = [f"{name}, {told}"]
            cells += [f"{_mean(nats[a // each : b // each]):.3f}" for a, b in spans]
            cells += [f"{keys[str(n)]:.0%}" for n in results["lengths"]]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """A picture: nats by position and passkeys by length, before and after."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(10, 7), layout="constrained")
    panels = picture.subplots(2, 2)
    for row, when in enumerate(("before", "after")):
        left, right = panels[row]
        for name, found in results["methods"].items():
            nats, keys = found[when]["nats"], found[when]["passkey"]
            each = results["long"] // len(nats)
            left.plot([(i + 0.5) * each for i in range(len(nats))], nats, label=name)
            right.plot(results["lengths"], list(keys.values()), marker="o", label=name)
        left.axvline(results["context"], color="gray", linewidth=0.8, linestyle=":")
        left.set(xlabel="position", ylabel="nats per byte", title=f"{when} the fine-tune")
        right.set(xlabel="length", ylabel="passkeys found", ylim=(-0.03, 1.03))
        left.legend()
    picture.savefig(path, dpi=100)


if __name__ == "__main__":
    launch.prepare()
    main()
