"""How much faster is a population than its members one after the other?

    python experiments/benchmarks/population_cpu.py --embed 32 --members 8

Trains the same tiny runs (seeds x learning rates) as one population and one by one, each way in a
process of its own with an empty compilation cache, and prints seconds from start to finished
directories, seconds of CPU, and the first member alone, which is mostly compiling: a population
cannot take less than that and the others' steps.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]


def main() -> None:
    """Run both ways and print the table."""
    parser = argparse.ArgumentParser(description="A population beside sequential runs.")
    parser.add_argument("--embed", type=int, default=32)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--way", choices=("population", "sequential"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(train(args.way, args.folder, args)))
        return
    rows = {}
    for way in ("sequential", "population"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--way", way, "--folder", folder]
            command += ["--embed", str(args.embed), "--members", str(args.members)]
            command += ["--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            rows[way] = json.loads(done.stdout.splitlines()[-1])
    print("| way | seconds | CPU seconds | first member alone: CPU | loss |\n|---|---|---|---|---|")
    for way, row in rows.items():
        first = f"{row['first_cpu']:.1f}" if row["first_cpu"] else ""
        cells = [f"{row['wall']:.1f}", f"{row['cpu']:.1f}", first, f"{row['loss']:.5f}"]
        print(f"| {way} | " + " | ".join(cells) + " |")
    a, b = rows["sequential"], rows["population"]
    print(f"\nCPU ratio {a['cpu'] / b['cpu']:.2f}, wall ratio {a['wall'] / b['wall']:.2f}")


def train(way: str, folder: str, args: argparse.Namespace) -> dict:
    """Seconds, CPU seconds, those of the first member, and the mean last loss, of one way."""
    import jax

    from jaxlm.data import pretraining
    from jaxlm.models import llama
    from jaxlm.train import loop
    from jaxlm.train.optim import optimizer
    from jaxlm.train.run import metrics
    from jaxlm.train.run import run as runs
    from jaxlm.train.sweep import population

    jax.config.update("jax_compilation_cache_dir", f"{folder}/xla")
    heads = max(args.embed // 16, 1)
    model = llama.Config(
        vocab=259, embed=args.embed, layers=2, heads=heads, kv=heads, head=16, ffn=2 * args.embed
    )
    members = [
        runs.Run(
            name=f"m{i}",
            model=model,
            data=pretraining.Data(seq=64, batch=8, holdout=0.01, seed=i % 2),
            optim=optimizer.Optim(lr=1e-3 * 2 ** (i / 2), warmup=10),
            steps=args.steps,
            seed=i,
            eval_every=None,
            out=folder,
        )
        for i in range(args.members)
    ]
    wall, cpu, first = time.perf_counter(), time.process_time(), None
    if way == "population":
        population.run(members)
    else:
        for member in members:
            loop.run(member)
            first = first or time.process_time() - cpu
    spent = time.perf_counter() - wall, time.process_time() - cpu
    last = [list(metrics.records(runs.folder(m) / metrics.FILE))[-1]["loss"] for m in members]
    loss = sum(last) / len(last)
    return {"wall": spent[0], "cpu": spent[1], "first_cpu": first, "loss": loss}


if __name__ == "__main__":
    main()
