"""What does a small model learn in a few minutes on this machine?

    make demo            all steps, as configs/demo.py says
    DEMO_STEPS=40 make demo

Trains a tokenizer and the model, continues a prompt, draws loss.png, and prints one table: held-out
bits per byte beside order-0, xz and bz2 on the same bytes, and the speed. Each step is the command
a user would type; a finished step is not done again.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

from experiments import compression_baselines
from jaxlm.cli import launch
from jaxlm.core import cache, config
from jaxlm.data import tokenizers
from jaxlm.data.pretraining import Data
from jaxlm.data.tokenized import shard_cache, shards
from jaxlm.train.run import metrics
from jaxlm.train.run import run as runs

CONFIG = "configs/demo.py"
PROMPTS = ("The with statement", "Return the number of")


def main() -> None:
    """Run every step."""
    parser = argparse.ArgumentParser(description="The demo: corpus, tokenizer, model, table.")
    parser.add_argument("--steps", type=int, help="a shorter run of this many steps")
    steps = parser.parse_args().steps
    begun = time.perf_counter()
    run = config.load(CONFIG)
    overrides = shortened(run, steps) if steps else []
    if launch.accelerated(dict(os.environ)):
        # The config's two devices are the cores of a CPU; one accelerator does without.
        overrides += ["--plan.data", "1"]
    if steps:
        run = dataclasses.replace(run, name=f"{run.name}-{steps}", steps=steps)
    if not pathlib.Path(run.data.tokenizer).exists():
        vocab = str(run.model.vocab)
        jaxlm("tokenizer", "train", "--kind", "bpe", "--vocab", vocab,
              "--source", run.data.source, "--holdout", str(run.data.holdout),
              "--out", run.data.tokenizer)  # fmt: skip
    jaxlm("train", CONFIG, *overrides)
    folder = runs.folder(run)
    jaxlm("sample", str(folder), "--temperature", "0.7", "--max-new", "48", "--prompt", *PROMPTS)
    jaxlm("plot", str(folder))
    report(run, folder)
    print(f"\nall of it took {time.perf_counter() - begun:.0f} s; results are in {folder}/")


def shortened(run: runs.Run, steps: int) -> list[str]:
    """The overrides that make a demo of `steps` steps."""
    warmup = str(min(run.optim.warmup, steps // 4))
    name = f"{run.name}-{steps}"
    return ["--steps", str(steps), "--name", name, "--optim.warmup", warmup]


def jaxlm(*args: str) -> None:
    """Run a command of the command line, shown as one would type it."""
    print(f"\n$ jaxlm {' '.join(args)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "jaxlm", *args])
    if done.returncode:
        sys.exit(done.returncode)


def report(run: runs.Run, folder: pathlib.Path) -> None:
    """Print the table."""
    result = json.loads((folder / "result.json").read_text("utf-8"))
    seen = list(metrics.records(folder / metrics.FILE))
    timings = [r["timing"] for r in seen if r["split"] == "train" and "step_seconds" in r["timing"]]

    def middle(name: str) -> float:
        return statistics.median(t[name] for t in timings)

    compressed = compressors(run)
    rows = [
        (f"{run.name}, {runs.parameters(run):,} parameters", result["val"]["bits_per_byte"]),
        ("xz -9e, having read the training text", compressed.xz_primed),
        ("bz2 -9, having read the training text", compressed.bz2_primed),
        ("xz -9e", compressed.xz),
        ("bz2 -9", compressed.bz2),
        ("order-0 entropy", compressed.order0),
    ]
    print(f"\n{'held-out bits per byte':<44}{result['val']['bytes']:,} bytes")
    for name, value in sorted(rows, key=lambda row: row[1]):
        print(f"  {name:<42}{value:.4f}")
    causal, full = middle("gflop_per_second_causal"), middle("gflop_per_second_full")
    print("speed, median")
    print(f"  {'tokens per second':<42}{middle('tokens_per_second'):,.0f}")
    print(f"  {'GFLOP/s, causal (full) attention':<42}{causal:.1f} ({full:.1f})")
    share = f"{middle('cpu_share'):.0%} of {os.cpu_count()} cores"
    print(f"  {'CPU share':<42}{share}")
    print("expected")
    print(f"  {verdict(run, result['val']['bits_per_byte'])}")


def compressors(run: runs.Run) -> compression_baselines.Baselines:
    """What compressors make of the same held-out bytes."""
    tokenizer = tokenizers.load(run.data.tokenizer)
    assert isinstance(run.data, Data)
    folder = shard_cache.prepare(run.data, str(cache.folder() / "shards"))
    train, val = (shards.open_shards(folder, s, tokenizer.hash) for s in ("train", "val"))
    return compression_baselines.measure(train.contents(tokenizer), val.contents(tokenizer))


def verdict(run: runs.Run, measured: float) -> str:
    """The config's expected number, and whether this run is within its tolerance."""
    told = re.search(r"^Expected: (.+)$", pathlib.Path(CONFIG).read_text("utf-8"), re.MULTILINE)
    assert told is not None
    number = re.match(r"([\d.]+) \+- ([\d.]+) bits per byte", told[1])
    if number is None or run.steps != config.load(CONFIG).steps:
        return f"{told[1]} (for the whole demo)"
    expected, tolerance = map(float, number.groups())
    inside = "within" if abs(measured - expected) <= tolerance else "OUTSIDE"
    return f"{told[1]}; this run is {inside} the tolerance"


if __name__ == "__main__":
    main()
